#!/usr/bin/env python3
"""What the card can do at most, measured beside everything else: bf16 products and copies of memory.

    ceilings.py --json OUT.json
"""
import argparse
import json
import pathlib
import statistics
import time

import torch


def median_seconds(device, body, repeats=20):
    times = []
    for i in range(repeats + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        body()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=8192, help="of the square matrices")
    parser.add_argument("--copy-mib", type=int, default=4096)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    options = parser.parse_args()
    a, b = (torch.randn(options.size, options.size, device=options.device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    flops = 2 * options.size**3 / median_seconds(options.device, lambda: torch.matmul(a, b, out=product))
    source = torch.zeros(options.copy_mib << 20, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    # A copy reads every byte and writes it.
    bandwidth = 2 * source.nbytes / median_seconds(options.device, lambda: target.copy_(source))
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report = {"device": name, "product_flops": flops, "copy_bytes_per_second": bandwidth}
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{name}: products {flops * 1e-12:.1f} TFLOP/s, copies {bandwidth * 1e-12:.2f} TB/s")


if __name__ == "__main__":
    main()
