"""Exports a trainer's state as a checkpoint folder.

python export.py --state RUN/state.pt --tokenizer tokenizer.model --out DIR
"""

import argparse
import shutil
from pathlib import Path

from checkpoint import DTYPES, load_checkpoint, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--max-shard-mib", type=int, default=0, help="split into shards of this size; 0: one file"
    )
    args = parser.parse_args()
    save_checkpoint(load_checkpoint(args.state), args.out, args.dtype, args.max_shard_mib << 20)
    shutil.copyfile(args.tokenizer, args.out / "tokenizer.model")


if __name__ == "__main__":
    main()
