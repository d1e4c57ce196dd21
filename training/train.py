"""Trains a PHOTON model or the Transformer baseline for a given time.

    python train.py --config configs/demo.json --cache CACHE --out RUN --minutes 12

The schedule follows the clock: the rate warms up over the first 1 % of `--minutes`, holds, and
falls linearly to zero over the last `--decay` share. `RUN/state.pt` is rewritten now and then, at
SIGTERM and at the end; `--resume` continues from it, `--init DIR --start-minutes M` from a
checkpoint alone, M minutes into the schedule. `--hiergen-text` draws the rows of `hiergen` and
`recgen` conditioning from a file that sample.py wrote. Matrices are trained by Muon, everything
else by AdamW; `--optimizer adamw` uses AdamW throughout.
"""

import argparse
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from checkpoint import build_model, load_checkpoint
from data import WEIGHTS, Mixture, parse_weights
from evaluate import bits_per_byte
from muon import Muon


def build_optimizers(model: nn.Module, args) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, p in model.named_parameters():
        is_table = "embedding" in name or name == "lm_head"
        (
            matrices if p.ndim == 2 and not is_table and not name.endswith(".conv") else others
        ).append(p)
    adamw = dict(lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if args.optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others}]
        return [torch.optim.AdamW(groups, **adamw)]
    return [
        torch.optim.AdamW(others, **adamw),
        Muon(matrices, lr=args.matrix_lr, weight_decay=args.weight_decay),
    ]


def rate(progress: float, decay: float) -> float:
    """The learning rate's factor at `progress` (0 .. 1) of the run."""
    warmup = min(1.0, (progress + 1e-4) / 0.01)
    return max(0.0, min(warmup, (1 - progress) / decay))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="config.json of the model to train"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder that data.py filled")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, required=True, help="training time, compilation excluded"
    )
    parser.add_argument(
        "--weights", default=WEIGHTS, help="how often each training file is seen, relatively"
    )
    parser.add_argument("--batch", type=int, default=128, help="sequences per step")
    parser.add_argument("--length", type=int, default=1024, help="tokens per sequence")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=3e-3, help="AdamW's rate")
    parser.add_argument("--matrix-lr", type=float, default=0.02, help="Muon's rate")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of the matrices")
    parser.add_argument(
        "--decay", type=float, default=0.6, help="share of the run over which the rate falls"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.1, help="weight of the recursive-consistency loss"
    )
    parser.add_argument(
        "--hiergen-share",
        type=float,
        default=0.25,
        help="share of each batch conditioned on the decoders' own predictions",
    )
    parser.add_argument(
        "--recgen-share",
        type=float,
        default=0.0,
        help="part of the hiergen share whose top stream reads predictions too",
    )
    parser.add_argument(
        "--hiergen-text", help="file that the hiergen share is drawn from; default: all of them"
    )
    parser.add_argument("--clip", type=float, default=1.0, help="gradient norm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of activations"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report-seconds", type=float, default=15)
    parser.add_argument("--validate-minutes", type=float, default=2.0)
    parser.add_argument(
        "--validate-windows", type=int, default=128, help="windows of an intermediate validation"
    )
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument(
        "--max-seconds", type=float, default=0, help="save and stop after this long; 0: never"
    )
    parser.add_argument(
        "--turn", type=Path, help="train while holding a lock on this file, so that runs take turns"
    )
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from")
    parser.add_argument(
        "--start-minutes", type=float, default=0.0, help="where in the schedule to start"
    )
    parser.add_argument(
        "--cpu-clock", action="store_true", help="count processor time instead of wall time"
    )
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, args.dtype)
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "state.pt"

    model = (
        load_checkpoint(args.init)
        if args.init
        else build_model(json.loads(args.config.read_text()))
    )
    model = model.to(args.device).train()
    optimizers = build_optimizers(model, args)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    elapsed, step, tokens_seen = 60 * args.start_minutes, 0, 0
    if args.resume:
        state = torch.load(state_file, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        elapsed, step, tokens_seen = state["elapsed"], state["step"], state["tokens"]

    print(
        f"{args.out.name}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{args.device}, {args.dtype}",
        flush=True,
    )
    begun = time.monotonic()
    data = Mixture(args.cache, parse_weights(args.weights), args.seed + step)
    loss = model.loss if args.no_compile else torch.compile(model.loss, dynamic=False)
    hiergen_rows = round(args.hiergen_share * args.batch)
    recgen_rows = min(hiergen_rows, round(args.recgen_share * args.batch))
    hiergen_data = data
    if args.hiergen_text:
        hiergen_data = Mixture(args.cache, {args.hiergen_text: 1.0}, args.seed + step)

    def train_step() -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.cat(
            [
                hiergen_data.batch(hiergen_rows, args.length),
                data.batch(args.batch - hiergen_rows, args.length),
            ]
        )
        if args.device != "cpu":
            tokens = tokens.pin_memory().to(args.device, non_blocking=True)
        cross_entropy, consistency = loss(tokens, dtype, hiergen_rows, recgen_rows)
        (cross_entropy + args.alpha * consistency).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        return cross_entropy.detach(), consistency.detach()

    def save() -> None:
        state = {
            "config": model.config.to_dict(),
            "model": model.state_dict(),
            "elapsed": elapsed,
            "optimizers": [o.state_dict() for o in optimizers],
            "step": step,
            "tokens": tokens_seen,
        }
        temporary = state_file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, state_file)

    def validate(limit: int) -> float:
        return bits_per_byte(
            model, args.cache, min(args.batch, 16), args.length, limit, args.device, dtype
        )

    stopped = False

    def stop(signum, frame) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    clock = time.process_time if args.cpu_clock else time.monotonic

    train_step()  # compiles
    model.zero_grad(set_to_none=True)
    print(f"{args.out.name}: ready after {time.monotonic() - begun:.0f} s", flush=True)
    if args.turn:
        torch.cuda.empty_cache()
        turn = args.turn.open("w")
        fcntl.flock(turn, fcntl.LOCK_EX)
    started = last = clock()
    begun_at, begun_tokens, minutes, last_step = elapsed, tokens_seen, args.minutes, step
    next_validation, next_save = (
        elapsed / 60 + args.validate_minutes,
        elapsed / 60 + args.save_minutes,
    )
    while not stopped:
        elapsed = begun_at + clock() - started
        if elapsed >= minutes * 60 or (args.max_seconds and elapsed - begun_at >= args.max_seconds):
            break
        factor = rate(elapsed / 60 / minutes, args.decay)
        for optimizer, rates in zip(optimizers, base_rates):
            for group, base in zip(optimizer.param_groups, rates):
                group["lr"] = base * factor
        cross_entropy, consistency = train_step()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        tokens_seen += args.batch * args.length

        now = clock()
        if now - last >= args.report_seconds:
            speed = (step - last_step) * args.batch * args.length / (now - last)
            print(
                f"{args.out.name} {elapsed / 60:6.2f} of {minutes:g} min  step {step}  "
                f"loss {cross_entropy.item():.4f}  rec {consistency.item():.3f}  "
                f"rate {factor:.3f}  {speed:,.0f} tok/s  {tokens_seen / 1e6:.2f} M tokens",
                flush=True,
            )
            last, last_step = clock(), step
        if elapsed / 60 >= next_validation:
            bpb = validate(args.validate_windows)
            print(
                f"{args.out.name} {elapsed / 60:6.2f} min  validation {bpb:.4f} bits per byte",
                flush=True,
            )
            next_validation += args.validate_minutes
        if elapsed / 60 >= next_save:
            save()
            next_save += args.save_minutes
    save()
    print(
        f"{args.out.name}: {step} steps, {tokens_seen:,} tokens, {elapsed / 60:.2f} min, "
        f"{(tokens_seen - begun_tokens) / max(elapsed - begun_at, 1e-9):,.0f} tokens/s; "
        f"validation {validate(0):.4f} bits per byte",
        flush=True,
    )


if __name__ == "__main__":
    main()
