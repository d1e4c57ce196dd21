#!/usr/bin/env python3
"""Counts the instructions of fixed workloads with Callgrind and compares them with those kept in counts.json.

    check.py PROGRAM --build NAME            fails where a workload takes more than the tolerance allows
    check.py PROGRAM --build NAME --update   writes down what it counted

PROGRAM is photon-counted-workloads; NAME says what compiled it ("GNU 12, RelWithDebInfo"), because another
compiler makes other instructions. Instructions do not depend on how busy the machine is, so a step that became
slower shows on any machine. Where Valgrind, AVX2 or counts of such a build are missing, it says so and exits
with 77, which CTest shows as skipped.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

COUNTS = pathlib.Path(__file__).with_name("counts.json")
SKIPPED = 77


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(SKIPPED)


def count(program, workload, model):
    """Instructions inside CountedRegion(), in the thread that calls it."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--toggle-collect=photon::CountedRegion*", "--callgrind-out-file=/dev/null",
         program, workload, model], capture_output=True, text=True)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or collected is None or int(collected[1]) == 0:
        sys.exit(f"{workload}: exit status {done.returncode}\n{done.stderr}")
    return int(collected[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--build", required=True)
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()

    if shutil.which("valgrind") is None:
        skip("no valgrind; scripts/install_deps --checks installs it")
    if "avx2" not in pathlib.Path("/proc/cpuinfo").read_text().split():
        skip("this processor has no AVX2")
    kept = json.loads(COUNTS.read_text())
    expected = kept["instructions"].get(options.build, {})
    if not expected and not options.update:
        skip(f"counts.json has no counts of {options.build}, only of {', '.join(kept['instructions'])}")

    workloads = subprocess.run([options.program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    counted, slower = {}, []
    print(f"{'':24} {'counted':>13} {'kept':>13} {'change':>9}")
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model")
        subprocess.run([options.program, "--write-model", model], check=True)
        for workload in workloads:
            counted[workload] = instructions = count(options.program, workload, model)
            before = expected.get(workload)
            change = f"{100 * (instructions / before - 1):+7.2f} %" if before else "new"
            print(f"{workload:24} {instructions:13,} {before or 0:13,} {change:>9}", flush=True)
            # How often the planning thread wakes while a step runs is a matter of timing.
            part = "scheduler" if workload.startswith("schedule-") else "engine"
            tolerance = kept["tolerance_percent"][part]
            if before is None or instructions > before * (1 + tolerance / 100):
                slower.append(workload)
    if options.update:
        kept["instructions"][options.build] = counted
        COUNTS.write_text(json.dumps(kept, indent=2) + "\n")
        return 0
    if slower:
        print(f"\nAbove what is kept by more than counts.json tolerates, or not kept: {', '.join(slower)}.\n"
              f"Where the work is worth it, write it down: bench/instructions/check.py {options.program} "
              f"--build '{options.build}' --update")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
