#!/usr/bin/env python3
"""The whole comparison on one GPU, in stages of less than ten minutes each.

    bench/cuda/suite.py --bundle build/cuda-bundle --out OUT [STAGE ...]       default: all, one after another

    ceilings      bf16 products and copies of memory
    photon        photon-600m and photon-1.2b: prefill; each mode by batch and by context
    regimes       the paper's: 2,048 tokens in and 128 out, 128 in and 2,048 out
    transformer   the vanilla Transformers of the same sizes, multi-head and grouped-query, by batch and by context
    vanilla-regimes  the same regimes of theirs
    batching      Hugging Face Transformers' continuous batching
    profile       one step by kernel, with Nsight Compute where the machine has it

Each stage writes OUT/STAGE.json and leaves those of other stages alone, so that stages may be run in calls of
their own; figures are comparable where the stages say the same device. --smoke runs the Python
parts in tiny shapes on the processor, to find mistakes before a GPU is paid for.
"""
import argparse
import csv
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODELS = ("photon-600m", "photon-1.2b")
CONTEXTS = (128, 1152, 4096, 16384, 32768)
BATCHES = (1, 4, 16, 64, 256, 1024, 2048)
# Prompts until whose first token is measured.
FIRST_TOKENS = (128, 1024, 8192)
# Tokens in, tokens out.
REGIMES = {"PF": (2048, 128), "DE": (128, 2048)}


class Photon:
    """photon-engine-bench of a bundle, over random weights whose context is long enough."""

    def __init__(self, options, scratch):
        self.bundle, self.scratch, self.device = pathlib.Path(options.bundle).resolve(), scratch, options.device
        self.environment = os.environ | {"LD_LIBRARY_PATH": f"{self.bundle}/lib:" + os.environ.get("LD_LIBRARY_PATH", "")}
        self.models = {}

    def run(self, *command, timeout=None):
        print("+", *command, file=sys.stderr, flush=True)
        return subprocess.run([str(c) for c in command], env=self.environment, capture_output=True, text=True,
                              timeout=timeout)

    def model(self, name):
        if name not in self.models:
            config = json.loads((ROOT / "models" / name / "config.json").read_text())
            config["max_context"] = max(CONTEXTS) + 1024
            shape = self.scratch / f"{name}.json"
            shape.write_text(json.dumps(config))
            done = self.run(self.bundle / "photon-random-checkpoint", "--config", shape, "--out", self.scratch / name)
            if done.returncode != 0:
                sys.exit(done.stderr)
            self.models[name] = self.scratch / name
        return self.models[name]

    def bench(self, name, batches, context, steps):
        """The engine's report, or what it said instead."""
        report = self.scratch / "report.json"
        report.unlink(missing_ok=True)
        done = self.run(self.bundle / "photon-engine-bench", "--device", self.device, "--model", self.model(name),
                        "--batches", *batches, "--context", context, "--steps", steps, "--repeats", 3, "--json", report)
        if done.returncode != 0:
            return {"model": name, "batches": batches, "context": context, "error": done.stderr.strip()[-500:]}
        return json.loads(report.read_text()) | {"model": name}

    def largest_fitting(self, name, batches, context, steps):
        """As bench(), with the batches that the memory holds."""
        for count in range(len(batches), 0, -1):
            report = self.bench(name, batches[:count], context, steps)
            if "error" not in report:
                return report
            print(report["error"], file=sys.stderr)
        return report


def photon(options, scratch):
    engine = Photon(options, scratch)
    reports = []
    for name in options.models:
        reports.append(engine.largest_fitting(name, BATCHES, 1152, 2))
        for context in CONTEXTS:
            if context != 1152:
                reports.append(engine.largest_fitting(name, (1, 64, 1024), context, 1))
    return {"reports": reports}


def regimes(options, scratch):
    """From the speed of a prefill and of steps over the whole output: what requests that come and go would see."""
    engine = Photon(options, scratch)
    rows = []
    for name in options.models:
        for regime, (prompt, output) in REGIMES.items():
            report = engine.largest_fitting(name, (64, 256, 1024), prompt, output // 16)
            if "error" in report:
                rows.append({"model": name, "regime": regime, **report})
                continue
            prefill = next(row for row in report["rows"] if row["phase"] == "prefill")["tokens_per_second"]
            gib = report["kv_bytes_per_token"] * (prompt + output) / 2**30
            for row in report["rows"]:
                if row["phase"] == "prefill":
                    continue
                seconds_per_token = prompt / output / prefill + 1 / row["tokens_per_second"]
                rate = 1 / seconds_per_token
                rows.append({"model": name, "device": report["device"], "regime": regime, "prompt": prompt,
                             "output": output, "mode": row["phase"], "batch": row["batch"], "tokens_per_second": rate,
                             "cache_bytes_per_sequence": gib * 2**30, "tpm": rate / 1e3 / gib})
    return {"rows": rows}


def python_stage(options, scratch, script, *arguments):
    """A script of this folder once for each model; a model that fails does not stop the next."""
    reports = []
    for name in options.models:
        report = scratch / "report.json"
        report.unlink(missing_ok=True)
        command = [sys.executable, HERE / script, "--model", name, "--device", options.device, "--json", report, *arguments]
        print("+", *command, file=sys.stderr, flush=True)
        done = subprocess.run([str(c) for c in command], stderr=subprocess.PIPE, text=True)
        sys.stderr.write(done.stderr[-4000:])
        reports.append(json.loads(report.read_text()) if report.exists() else {"model": name})
        if done.returncode != 0:
            reports[-1]["error"] = done.stderr.strip()[-500:]
    return {"reports": reports}


def transformer(options, scratch):
    if options.smoke:
        return python_stage(options, scratch, "transformer.py", "--no-compile", "--first-token", 16, "--contexts", 32, "--batches", 1, 2,
                            "--prompt", 16, "--prefill-tokens", 32, "--steps", 2, "--repeats", 1)
    return python_stage(options, scratch, "transformer.py", "--contexts", *CONTEXTS, "--batches", 1, 16, 64, 256, 512, 1024,
                        "--first-token", *FIRST_TOKENS)


def vanilla_regimes(options, scratch):
    if options.smoke:
        return python_stage(options, scratch, "transformer.py", "--no-compile", "--contexts", "--prompt", 16,
                            "--prefill-tokens", 32, "--repeats", 1, "--regimes", "16,4", "4,8", "--regime-batches", 1, 3)
    regimes = [f"{prompt},{output}" for prompt, output in REGIMES.values()]
    return python_stage(options, scratch, "transformer.py", "--contexts", "--regimes", *regimes)


def batching(options, scratch):
    if options.smoke:
        return python_stage(options, scratch, "batching.py", "--requests", 2, 3, "--prompt", 8, "--output", 4)
    return python_stage(options, scratch, "batching.py")


def ceilings(options, scratch):
    report = scratch / "ceilings.json"
    tiny = ["--size", "64", "--copy-mib", "1"] if options.smoke else []
    subprocess.run([sys.executable, HERE / "ceilings.py", "--device", options.device, "--json", report, *tiny], check=True)
    return json.loads(report.read_text())


def kernel_shares(text):
    """Of ncu's CSV: {kernel: {seconds, launches}}."""
    # What the program prints itself comes before the header.
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        return {}
    unit = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3}
    kernels = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[header:]))):
        if row["Metric Name"] != "gpu__time_duration.sum":
            continue
        name = re.sub(r"^void |<unnamed>::|\(anonymous namespace\)::", "", row["Kernel Name"]).split("(")[0].split("<")[0]
        kernel = kernels.setdefault(name, {"seconds": 0.0, "launches": 0})
        kernel["seconds"] += float(row["Metric Value"].replace(",", "")) * unit[row["Metric Unit"]]
        kernel["launches"] += 1
    return dict(sorted(kernels.items(), key=lambda item: -item[1]["seconds"]))


def profile(options, scratch):
    ncu = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if ncu is None:
        return {"error": "no Nsight Compute (ncu) on this machine"}
    engine = Photon(options, scratch)
    profiles = []
    for batch in (1, 1024):
        done = engine.run(ncu, "--metrics", "gpu__time_duration.sum", "--csv", "--clock-control", "none", "--cache-control", "none", "--launch-count", 2500,
                          engine.bundle / "photon-engine-bench", "--no-graphs", "--device", "cuda", "--model",
                          engine.model("photon-600m"), "--batches", batch, "--context", 0, "--steps", 1, "--repeats", 1)
        profiles.append({"model": "photon-600m", "batch": batch, "kernels": kernel_shares(done.stdout),
                         "error": None if done.returncode == 0 else (done.stderr or done.stdout)[-500:]})
    return {"profiles": profiles}


STAGES = {"ceilings": ceilings, "photon": photon, "regimes": regimes, "transformer": transformer,
          "vanilla-regimes": vanilla_regimes, "batching": batching, "profile": profile}
PYTHON_STAGES = ("ceilings", "transformer", "vanilla-regimes", "batching")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="of those above")
    parser.add_argument("--bundle", default=str(ROOT / "build/cuda-bundle"), help="what bench/cuda/bundle made")
    parser.add_argument("--models", nargs="+", choices=(*MODELS, "tiny"), default=list(MODELS))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    options.device = "cuda"
    stages = options.stages or list(STAGES)
    if options.smoke:
        options.device, options.models = "cpu", ["tiny"]
        stages = [stage for stage in stages if stage in PYTHON_STAGES]

    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as name:
        for stage in stages:
            begin = time.monotonic()
            result = STAGES[stage](options, pathlib.Path(name))
            result |= {"stage": stage, "command": " ".join(sys.argv), "stage_seconds": time.monotonic() - begin}
            (options.out / f"{stage}.json").write_text(json.dumps(result, indent=1) + "\n")
            errors = [part["error"] for part in (result, *result.get("reports", ()), *result.get("profiles", ()))
                      if part.get("error")]
            failed += [stage] if errors else []
            print(f"{stage}: {result['stage_seconds']:.0f} s{''.join(chr(10) + '  ' + e for e in errors)}", flush=True)
    if failed:
        sys.exit(f"not all was measured in: {', '.join(failed)}")


if __name__ == "__main__":
    main()
