#!/usr/bin/env python3
"""Draws docs/benchmarks/*.svg from docs/benchmarks/data/*.json. Needs matplotlib.

    bench/plots.py [--data docs/benchmarks/data] [--out docs/benchmarks/plots] [NAME ...]

Also of any report of photon-serving-bench: bench/plots.py --report RESULTS.json --out FOLDER.
"""
import argparse
import json
import math
import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "photon", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
                        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
import matplotlib.ticker  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODES = {"exact": "C0", "hiergen": "C1", "recgen": "C2"}


def save(figure, path):
    for axis in figure.axes:
        # Labels between the powers run into each other.
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date the same data give the same file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def panels(count, height=2.9):
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, height), squeeze=False)
    return figure, axes[0]


def growth(data, out):
    results = json.loads((data / "growth.json").read_text())
    rows = results["context"]["rows"]
    figure, (speed, fill, memory) = panels(3)
    for batch in sorted({row["batch"] for row in rows}):
        of_batch = [row for row in rows if row["batch"] == batch]
        contexts = [row["context"] for row in of_batch]
        speed.plot(contexts, [row["tokens_per_second"] for row in of_batch], "o-", label=f"{batch} at a time")
        fill.plot(contexts, [row["fill_tokens_per_second"] for row in of_batch], "o-", label=f"{batch} at a time")
        memory.plot(contexts, [row["context"] * row["kv_bytes_per_token"] * batch / 2**20 for row in of_batch], "o-",
                    label=f"{batch} at a time")
    for axis, title in ((speed, "decoded, tokens/s"), (fill, "prefilled, tokens/s"), (memory, "cache, MiB")):
        axis.set(xscale="log", xlabel="context, tokens", title=title)
        axis.set_xscale("log", base=2)
        axis.legend()
    speed.set_ylim(bottom=0)
    fill.set_ylim(bottom=0)
    memory.set_yscale("log")
    save(figure, out / "growth-context.svg")

    rows = results["sequences"]["rows"]
    figure, (speed, step) = panels(2)
    for mode, colour in MODES.items():
        of_mode = [row for row in rows if row["phase"] == mode]
        batches = [row["batch"] for row in of_mode]
        speed.plot(batches, [row["tokens_per_second"] for row in of_mode], "o-", color=colour, label=mode)
        step.plot(batches, [row["step_seconds"] * 1e3 for row in of_mode], "o-", color=colour, label=mode)
    for axis, title in ((speed, "tokens/s"), (step, "a step of 16 tokens, ms")):
        axis.set_xscale("log", base=2)
        axis.set(xlabel="sequences at a time", title=title)
        axis.legend()
    speed.set_ylim(bottom=0)
    step.set_yscale("log")
    save(figure, out / "growth-sequences.svg")

    rows = results["sharing"]["rows"]
    figure, (speed, seconds) = panels(2)
    lines = {}
    for row in rows:
        documents, questions, samples = map(int, row["documents_questions_samples"].split(" x "))
        lines.setdefault((documents, samples), []).append((questions, row["tokens_per_second"], row["seconds"]))
    for (documents, samples), points in sorted(lines.items()):
        label = f"{documents} document{'s' * (documents > 1)}, {samples} sample{'s' * (samples > 1)}"
        speed.plot([p[0] for p in points], [p[1] for p in points], "o-", label=label)
        seconds.plot([p[0] for p in points], [p[2] for p in points], "o-", label=label)
    for axis, title in ((speed, "tokens/s, documents' prefill included"), (seconds, "seconds for all")):
        axis.set_xscale("log", base=2)
        axis.set(xlabel="questions of each document", title=title)
        axis.legend(fontsize=7)
    speed.set_ylim(bottom=0)
    seconds.set_yscale("log")
    save(figure, out / "growth-sharing.svg")


def peers(data, out):
    for path in sorted(data.glob("peers-*.json")):
        loads = json.loads(path.read_text())["loads"]
        figure, axes = panels(len(loads), height=3.2)
        for axis, (load, measured) in zip(axes, loads.items()):
            for i, (name, rows) in enumerate(measured["rows"].items()):
                if load == "together":
                    axis.plot([row["streams"] for row in rows], [row["tokens_per_second"] for row in rows], "o-", label=name)
                else:
                    axis.barh([i], [rows[0]["tokens_per_second"]], label=name)
            if load == "together":
                axis.set_xscale("log", base=2)
                axis.set_yscale("log")
                axis.set(xlabel="streams")
                axis.legend(fontsize=7)
            else:
                axis.set_yticks(range(len(measured["rows"])), measured["rows"])
                axis.set_xscale("log")
            axis.set_title(f"{load}, tokens/s")
        save(figure, out / f"{path.stem}.svg")


# Bits per byte of the validation text: models/demo/README.md. Those of the faster modes are log2 of the perplexity
# under the mode, scaled so that `exact` has what teacher forcing gives; of the Transformer its best moment and its end.
BITS_PER_BYTE = {"exact": 1.266, "hiergen": 1.266 * math.log(42.9) / math.log(20.2),
                 "recgen": 1.266 * math.log(55.2) / math.log(20.2)}
TRANSFORMER_BITS_PER_BYTE = {"best": 1.236, "end": 1.367}


def quality(data, out):
    engine = json.loads((data / "demo-modes.json").read_text())["rows"]
    transformer = json.loads((data / "peers-demo.json").read_text())["loads"]["together"]["rows"]["llama.cpp mha bf16"]
    figure, axes = panels(2)
    for axis, sequences in zip(axes, (1, 64)):
        points = [(f"PHOTON {row['phase']}", row["tokens_per_second"], BITS_PER_BYTE[row["phase"]])
                  for row in engine if row["batch"] == sequences and row["phase"] in MODES]
        speed = next(row["decode_tokens_per_second"] for row in transformer if row["streams"] == sequences)
        points += [(f"Transformer, {moment}", speed, bits) for moment, bits in TRANSFORMER_BITS_PER_BYTE.items()]
        for name, speed, bits in points:
            axis.plot(speed, bits, "o" if name.startswith("PHOTON") else "s")
            axis.annotate(name, (speed, bits), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(xlabel="tokens/s", ylabel="bits per byte", title=f"{sequences} at a time", xscale="log")
        axis.margins(0.3)
    save(figure, out / "quality-speed.svg")


def votes(data, out):
    rows = json.loads((data / "votes.json").read_text())["rows"]
    drawn = [row for row in rows if row["temperature"] > 0]
    greedy = next(row for row in rows if row["temperature"] == 0)
    figure, axes = panels(2)
    for axis, key, label in ((axes[0], "samples", "samples that vote"), (axes[1], "tokens_per_sum", "tokens per sum")):
        axis.plot([row[key] for row in drawn], [100 * row["accuracy"] for row in drawn], "o-", label="majority vote")
        axis.axhline(100 * greedy["accuracy"], color="black", linestyle=":", linewidth=1, label="greedy, one sample")
        axis.set(xscale="log", xlabel=label, title="sums right, %")
        axis.legend()
    save(figure, out / "votes.svg")


def overhead(data, out):
    figure, (speed, delay) = panels(2)
    for name, label in (("cpu", "over gRPC"), ("cpu-scheduler", "scheduler alone")):
        workload, = json.loads((data / f"overhead-{name}.json").read_text())["workloads"]
        medians = [variant["median"] for variant in workload["variants"]]
        streams = [int(variant["name"].split()[0]) for variant in workload["variants"]]
        speed.plot(streams, [m["tokens_per_second"] for m in medians], "o-", label=label)
        speed.plot(streams, [m["engine_alone_tokens_per_second"] for m in medians], "s:", label=f"{label}: engine alone")
        delay.plot(streams, [m["step_ms"] for m in medians], "o-", label=f"{label}: a step")
        delay.plot(streams, [m["queue_ms_p99"] for m in medians], "s:", label=f"{label}: wait for it, p99")
    speed.set(xscale="log", xlabel="streams", title="tokens/s")
    delay.set(xscale="log", yscale="log", xlabel="streams", title="ms")
    for axis in (speed, delay):
        axis.legend(fontsize=7)
    speed.set_ylim(bottom=0)
    save(figure, out / "overhead.svg")


def report(path, out):
    """A figure for each workload of a report of photon-serving-bench: throughput and latencies by variant."""
    for workload in json.loads(path.read_text())["workloads"]:
        if "variants" not in workload:
            continue
        names = [variant["name"] for variant in workload["variants"]]
        medians = [variant["median"] for variant in workload["variants"]]
        figure, (speed, latency) = panels(2)
        speed.bar(names, [m["tokens_per_second"] for m in medians])
        speed.set_title(f"{workload['workload']}, tokens/s")
        for key in ("ttft_ms_p50", "ttft_ms_p99", "gap_ms_p99", "e2e_ms_p99"):
            latency.plot(names, [m[key] for m in medians], "o-", label=key)
        latency.set(yscale="log", title="latency, ms")
        latency.legend(fontsize=7)
        for axis in (speed, latency):
            axis.tick_params(axis="x", rotation=30)
        save(figure, out / f"{path.stem}-{workload['workload']}.svg")


def cuda(data, out):
    """Of bench/cuda/suite.py: data/cuda/CARD/MODEL/STAGE.json, of the card that was measured last."""
    folders = sorted((data / "cuda/h200").iterdir())
    for folder in folders:
        reports = json.loads((folder / "photon.json").read_text())["reports"]
        figure, (by_batch, by_context) = panels(2)
        for mode, colour in MODES.items():
            at_1152 = [(row["batch"], row["tokens_per_second"]) for report in reports if report.get("context") == 1152
                       for row in report["rows"] if row["phase"] == mode]
            by_batch.plot(*zip(*at_1152), "o-", color=colour, label=mode)
            at_64 = sorted((report["context"], row["tokens_per_second"]) for report in reports if "rows" in report
                           for row in report["rows"] if row["phase"] == mode and row["batch"] == 64)
            by_context.plot(*zip(*at_64), "o-", color=colour, label=mode)
        if (folder / "transformer.json").exists():
            rows = [row for report in json.loads((folder / "transformer.json").read_text())["reports"]
                    for row in report["rows"] if row["phase"] == "decode" and "tokens_per_second" in row]
            for attention, style in (("mha", "s--"), ("gqa", "^--")):
                mine = [row for row in rows if row["attention"] == attention]
                by_batch.plot(*zip(*[(row["batch"], row["tokens_per_second"]) for row in mine if row["context"] == 1152]),
                              style, color="0.5", label=f"Transformer, {attention}")
                by_context.plot(*zip(*[(row["context"], row["tokens_per_second"]) for row in mine if row["batch"] == 64]),
                                style, color="0.5", label=f"Transformer, {attention}")
        by_batch.set(yscale="log", title=f"{folder.name}, H200: decoded at context 1,152, tokens/s", xlabel="sequences")
        by_context.set(yscale="log", title="64 sequences, tokens/s", xlabel="context, tokens")
        for axis in (by_batch, by_context):
            axis.set_xscale("log", base=2)
        by_batch.legend(fontsize=7)
        save(figure, out / f"cuda-{folder.name}.svg")


def served(data, out):
    """Of bench/cuda/serving.py: the server on a GPU beside its engine alone."""
    rows = json.loads((data / "cuda/h200/photon-600m/serving.json").read_text())["rows"]
    streams = [row["streams"] for row in rows]
    figure, (speed, latency) = panels(2)
    speed.plot(streams, [row["alone"]["engine_alone_tokens_per_second"] for row in rows], "s:", color="0.5", label="engine alone")
    speed.plot(streams, [row["served"]["slots_per_second"] for row in rows], "^--", label="served: slots decoded")
    speed.plot(streams, [row["served"]["tokens_per_second"] for row in rows], "o-", label="served: tokens")
    for key, label in (("step_ms", "a step"), ("gap_ms_p50", "between tokens, median"), ("queue_ms_p99", "wait for the first step, p99"),
                       ("ttft_ms_p50", "first token, median")):
        latency.plot(streams, [row["served"][key] for row in rows], "o-", label=label)
    speed.set(xscale="log", yscale="log", xlabel="streams", title="photon-server on an H200, tokens/s")
    latency.set(xscale="log", yscale="log", xlabel="streams", title="ms")
    for axis in (speed, latency):
        axis.legend(fontsize=7)
    save(figure, out / "cuda-served.svg")


DRAWN = {"growth": growth, "peers": peers, "quality": quality, "votes": votes, "overhead": overhead,
         "cuda": cuda, "served": served}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DRAWN))
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "docs/benchmarks/data")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/benchmarks/plots")
    parser.add_argument("--report", type=pathlib.Path)
    options = parser.parse_args()
    if options.report:
        return report(options.report, options.out)
    for name in options.names or DRAWN:
        DRAWN[name](options.data, options.out)


if __name__ == "__main__":
    main()
