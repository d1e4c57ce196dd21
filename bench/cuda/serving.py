#!/usr/bin/env python3
"""photon-server on a GPU against its engine alone: closed loops of calls whose outputs stream.

    bench/cuda/serving.py --bundle build/cuda-bundle --checkpoint DIR --streams 1 64 1024 4096 --json OUT.json

For each number of streams: the engine alone (Engine::Step in a loop over prompts and outputs of the mean lengths), the
scheduler over it in one process, and photon-server with load generators beside it, in processes of their own since one
reads no more than some 200,000 tokens/s. The server's figures are differences of two readings of its /metrics, one when
every load generator has warmed up and one --seconds later; latencies are the load generators', the worst of them for
percentiles above the median.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

START_SECONDS = 120  # of a server


class Programs:
    def __init__(self, options):
        self.options = options
        self.bundle = pathlib.Path(options.bundle).resolve()
        self.environment = os.environ | {"LD_LIBRARY_PATH": f"{self.bundle}/lib:" + os.environ.get("LD_LIBRARY_PATH", "")}

    def start(self, program, *arguments, **pipes):
        command = [str(self.bundle / program), *map(str, arguments)]
        print("+", *command, file=sys.stderr, flush=True)
        return subprocess.Popen(command, env=self.environment, **pipes)

    def load(self, clients, report, *arguments):
        o = self.options
        return self.start("photon-serving-bench", "--mode", o.mode, "--clients", *clients, "--warm-up", o.warm_up, "--json", report,
                          *arguments, stdout=subprocess.DEVNULL)

    def loops(self, clients, report, *arguments):
        o = self.options
        return self.load(clients, report, "--prompt-tokens", o.prompt_tokens, "--output-tokens", o.output_tokens,
                         "--repeats", 1, *arguments)


def finish(*processes):
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"a program failed: exit codes {codes}")


class Metrics:
    """Of /metrics: {name: sum over labels}, and when."""

    def __init__(self, address):
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
        self.time = time.monotonic()
        self.values = {}
        for name, value in re.findall(r"^(photon_\w+)(?:\{[^\n]*\})? (\S+)$", text, re.MULTILINE):
            self.values[name] = self.values.get(name, 0) + float(value)

    def since(self, before, name):
        return self.values[name] - before.values[name]


def engine_alone(programs, scratch):
    """{streams: the engine alone, and the scheduler over it in its process}"""
    o = programs.options
    report = scratch / "alone.json"
    finish(programs.loops(o.streams, report, "--in-process", "--device", "cuda", "--model", o.checkpoint, "--max-rows", o.max_rows,
                         "--kv-memory", o.kv_memory, "--workloads", "overhead", "--seconds", o.seconds))
    variants = json.loads(report.read_text())["workloads"][0]["variants"]
    # In the order of the numbers of streams.
    return {streams: variant["median"] for streams, variant in zip(sorted(o.streams), variants)}


def served(programs, scratch, streams, grpc, http):
    o = programs.options
    processes = min(streams, o.processes)
    shares = [streams // processes + (i < streams % processes) for i in range(processes)]
    reports = [scratch / f"load-{i}.json" for i in range(processes)]
    # They start within a second of each other; the window lies inside of all of theirs.
    margin = 1.0
    began = time.monotonic()
    loads = [programs.loops([share], report, "--server", grpc, "--workloads", "throughput", "--connections",
                           min(share, o.connections), "--seconds", o.seconds + 2 * margin)
             for share, report in zip(shares, reports)]
    time.sleep(max(0.0, began + o.warm_up + margin - time.monotonic()))
    begin = Metrics(http)
    time.sleep(o.seconds)
    end = Metrics(http)
    finish(*loads)
    seconds = end.time - begin.time
    calls = [json.loads(report.read_text())["workloads"][0]["variants"][0]["median"] for report in reports]
    steps = end.since(begin, "photon_step_duration_seconds_count")
    tokens = end.since(begin, "photon_generation_tokens_total")
    slots = tokens + end.since(begin, "photon_wasted_slots_total")
    row = {"rows_per_step": end.since(begin, "photon_step_rows_sum") / max(steps, 1),
           "tokens_per_second": tokens / seconds, "slots_per_second": slots / seconds, "steps_per_second": steps / seconds,
           "step_ms": 1e3 * end.since(begin, "photon_step_duration_seconds_sum") / max(steps, 1),
           "host_ms_per_step": 1e3 * end.since(begin, "photon_host_seconds_total") / max(steps, 1),
           "load_generators": processes,
           "read_tokens_per_second": sum(call["tokens_per_second"] for call in calls)}
    for name in ("ttft_ms", "gap_ms", "e2e_ms", "queue_ms"):
        row[f"{name}_p50"] = statistics.median(call[f"{name}_p50"] for call in calls)
        row[f"{name}_p99"] = max(call[f"{name}_p99"] for call in calls)
    return row


def first_token(programs, scratch, prompt, grpc):
    """Of one call alone, the median of eleven prompts of the same length and other texts."""
    report = scratch / "first.json"
    finish(programs.load([1], report, "--server", grpc, "--workloads", "together", "--prompt-tokens", prompt, "--output-tokens",
                         programs.options.output_tokens, "--repeats", 11, "--seed", prompt))
    median = json.loads(report.read_text())["workloads"][0]["variants"][0]["median"]
    return {"prompt": prompt, "ttft_ms": median["ttft_ms_p50"], "cached_percent": median["cached_percent"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="what bench/cuda/bundle made")
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="with a tokenizer")
    parser.add_argument("--devices", default="cuda:0", help="of the server")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 1024, 4096])
    parser.add_argument("--max-rows", type=int, default=4096)
    parser.add_argument("--kv-memory", default="60%")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--mode", choices=("exact", "hiergen", "recgen"), default="exact")
    parser.add_argument("--processes", type=int, default=8, help="of the load generator, at most")
    parser.add_argument("--connections", type=int, default=8, help="of each")
    parser.add_argument("--warm-up", type=float, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--first-token", type=int, nargs="*", default=[], help="prompts until whose first token is measured, too")
    parser.add_argument("--no-alone", dest="alone", action="store_false", help="the server only")
    parser.add_argument("--json", type=pathlib.Path, required=True)
    options = parser.parse_args()

    programs = Programs(options)
    grpc, http = "127.0.0.1:7100", "127.0.0.1:7101"
    report = {"command": " ".join(sys.argv), "devices": options.devices, "processors": os.cpu_count(), "rows": [],
              "first_token": []}
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        alone = engine_alone(programs, scratch) if options.alone else {}
        log = options.json.with_suffix(".log").open("w")
        server = programs.start(
            "photon-server", "--model", options.checkpoint, "--device", options.devices, "--max-rows", options.max_rows,
            "--kv-memory", options.kv_memory, "--max-queue", 2 * max(options.streams), "--listen", grpc, "--http-listen", http,
            "--log-level", "warning", stdout=log, stderr=log)
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"http://{http}/readyz", timeout=1)
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > until:
                        sys.exit(f"the server did not start: see {log.name}")
                    time.sleep(0.2)
            for prompt in options.first_token:
                report["first_token"].append(first_token(programs, scratch, prompt, grpc))
                print(report["first_token"][-1], flush=True)
            for streams in options.streams:
                row = {"streams": streams, "served": served(programs, scratch, streams, grpc, http)}
                line = f"{streams} streams: served {row['served']['tokens_per_second']:,.0f} tokens/s"
                if streams in alone:
                    row["alone"] = alone[streams]
                    engine = alone[streams]["engine_alone_tokens_per_second"]
                    line += f", engine alone {engine:,.0f}, scheduler over it {alone[streams]['tokens_per_second']:,.0f}"
                report["rows"].append(row)
                print(line, flush=True)
                options.json.write_text(json.dumps(report, indent=1) + "\n")
        finally:
            server.terminate()
        if server.wait() != 0:
            sys.exit(f"the server ended with {server.returncode}: see {log.name}")


if __name__ == "__main__":
    main()
