#!/usr/bin/env python3
"""Accuracy against the number of samples that vote, through a real server, on sums that the model was not trained on.

    PYTHONPATH=build/release/tests/e2e/stubs bench/quality/votes.py --server-program build/release/server/photon-server \\
        --model models/additions --out votes.json

Each sum is asked once for each number of samples, drawn at temperature 1, and the server makes one answer of them by
majority vote; a vote that is decided stops the rest. Greedy decoding, one sample, is the line to compare with. An answer
is the first unit of its meta-context, which all modes generate alike. Needs python3-grpcio and the stubs that the
build makes.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, integration_pb2

import additions

BATCH_SEQUENCES = 1024
VOTE = integration_pb2.Integration(
    majority_vote={"answer_source": integration_pb2.ANSWER_SOURCE_LAST_NUMBER}, omit_samples=True)


def ask(stub, sums, samples, temperature, seed):
    """(right answers, generated tokens, tokens without early stops) of `sums`."""
    right, generated, at_most = 0, 0, 0
    for first in range(0, len(sums), BATCH_SEQUENCES // samples):
        part = sums[first:first + BATCH_SEQUENCES // samples]
        request = pb.GenerateBatchRequest(
            prompts=[pb.Prompt(text=additions.question(a, b)) for a, b in part],
            parameters=pb.GenerationParameters(
                max_tokens=4, n=samples, sampling={"temperature": temperature, "seed": seed},
                integration=VOTE))
        for message in stub.GenerateBatch(request, timeout=600):
            if message.HasField("error"):
                sys.exit(f"{message.error}")
            result = message.output.integration
            a, b = part[message.prompt_index]
            right += result.answer != "" and float(result.answer.replace(",", "")) == a + b
            generated += result.generated_tokens
            at_most += result.generated_tokens + result.saved_tokens
    return right, generated, at_most


def start(program, model):
    process = subprocess.Popen([program, "--model", model, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                                "--max-rows", "256"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if match := re.search(r"serving \S+ on \S+:(\d+)", line):
            return process, f"127.0.0.1:{match[1]}"
    sys.exit(f"{program}: did not start")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-program", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sums", type=int, default=1000)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 3, 9, 27])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()

    sums = additions.HELD_OUT[:options.sums]
    process, address = start(options.server_program, options.model)
    rows = []
    try:
        stub = generation_pb2_grpc.GenerationServiceStub(grpc.insecure_channel(address))
        print(f"{'samples':>8} {'right':>8} {'tokens/sum':>11} {'unstopped':>10}")
        # At temperature 0 one sample is all that there is.
        for samples, temperature in [(1, 0), *((n, 1) for n in options.samples)]:
            begin = time.monotonic()
            right, generated, at_most = ask(stub, sums, samples, temperature, options.seed)
            rows.append({"samples": samples, "temperature": temperature, "sums": len(sums),
                         "accuracy": right / len(sums), "tokens_per_sum": generated / len(sums),
                         "tokens_per_sum_without_early_stops": at_most / len(sums), "seconds": time.monotonic() - begin})
            name = "greedy" if temperature == 0 else str(samples)
            print(f"{name:>8} {100 * right / len(sums):7.1f}% {generated / len(sums):11.1f} {at_most / len(sums):10.1f}",
                  flush=True)
    finally:
        process.terminate()
        process.stderr.close()
        process.wait()
    options.out.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
