#!/usr/bin/env python3
"""Loads on llama.cpp, by its C interface: what its server does for many clients, without the server.

    llama_cpp_load.py MODEL.gguf --threads 2 together --streams 1 16 64 --prompt 128 --output 128
    llama_cpp_load.py MODEL.gguf --threads 2 questions --document 8192 --questions 64

`together`: streams of their own prompts, all prefilled in batches, then decoded a token of each at a time.
`questions`: one document, prefilled once; each question is a sequence that shares its cells (llama.cpp's
unified cache). Prints one JSON object per measurement. Tokens are greedy and nothing ends early.
"""
import argparse
import ctypes
import json
import resource
import statistics
import time

import llama_cpp as ll
import numpy as np

NO_TEXT = ctypes.cast(None, ctypes.c_void_p)


class Batch:
    """A llama_batch whose arrays NumPy fills."""

    def __init__(self, capacity):
        self.batch = ll.llama_batch_init(capacity, 0, 1)
        self.capacity = capacity
        self.tokens = np.ctypeslib.as_array(self.batch.token, (capacity,))
        self.positions = np.ctypeslib.as_array(self.batch.pos, (capacity,))
        np.ctypeslib.as_array(self.batch.n_seq_id, (capacity,))[:] = 1
        # Each token's list of sequences lies where llama_batch_init put it.
        self.sequences = [self.batch.seq_id[i] for i in range(capacity)]
        self.outputs = np.ctypeslib.as_array(self.batch.logits, (capacity,))
        self.count = 0

    def clear(self):
        self.count = 0

    def add(self, tokens, first_position, sequence, output_last):
        end = self.count + len(tokens)
        self.tokens[self.count:end] = tokens
        self.positions[self.count:end] = np.arange(first_position, first_position + len(tokens))
        self.outputs[self.count:end] = 0
        for i in range(self.count, end):
            self.sequences[i][0] = sequence
        if output_last:
            self.outputs[end - 1] = 1
        self.count = end


class Llama:
    def __init__(self, options, context, streams, unified):
        self.options = options
        if not options.verbose:
            ll.llama_log_set(options.silence, NO_TEXT)
        parameters = ll.llama_model_default_params()
        self.model = ll.llama_model_load_from_file(options.gguf.encode(), parameters)
        if not self.model:
            raise SystemExit(f"{options.gguf}: llama.cpp does not load it; --verbose says why")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = options.batch
        parameters.n_ubatch = options.ubatch
        parameters.n_seq_max = streams
        parameters.n_threads = parameters.n_threads_batch = options.threads
        parameters.kv_unified = unified
        parameters.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[options.flash_attention]
        parameters.no_perf = True
        self.context = ll.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise SystemExit("llama.cpp makes no context of that size")
        self.memory = ll.llama_get_memory(self.context)
        self.batch = Batch(options.batch)

    def close(self):
        ll.llama_batch_free(self.batch.batch)
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def decode(self):
        """Runs the batch; returns the best token of each output."""
        batch = self.batch
        batch.batch.n_tokens = batch.count
        status = ll.llama_decode(self.context, batch.batch)
        if status != 0:
            raise SystemExit(f"llama_decode: {status}")
        outputs = int(batch.outputs[:batch.count].sum())
        best = []
        if outputs:
            logits = ll.llama_get_logits(self.context)
            best = np.ctypeslib.as_array(logits, (outputs, self.vocab)).argmax(axis=1).tolist()
        batch.clear()
        return best

    def prefill(self, prompts, first_position):
        """prompts: by sequence. Batches are filled across prompts. Returns first tokens and when each came."""
        first, when, waiting = {}, {}, []

        def run():
            best = self.decode()
            now = time.perf_counter()
            for sequence, token in zip(waiting, best):
                first[sequence], when[sequence] = token, now
            waiting.clear()

        for sequence, prompt in prompts.items():
            done = 0
            while done < len(prompt):
                take = min(len(prompt) - done, self.batch.capacity - self.batch.count)
                is_last = done + take == len(prompt)
                self.batch.add(prompt[done:done + take], first_position + done, sequence, is_last)
                if is_last:
                    waiting.append(sequence)
                done += take
                if self.batch.count == self.batch.capacity:
                    run()
        if self.batch.count:
            run()
        return first, when

    def generate(self, last, positions, steps):
        for _ in range(steps):
            for sequence, token in last.items():
                self.batch.add([token], positions[sequence], sequence, True)
                positions[sequence] += 1
            last = dict(zip(last, self.decode()))


def percentile(values, percent):
    values = sorted(values)
    return values[max(0, -(-len(values) * percent // 100) - 1)]


def figures(streams, output, begin, first, end):
    """As photon-serving-bench's: tokens of the whole window, prefill included."""
    prefilled = max(first.values())
    wait_ms = [1e3 * (t - begin) for t in first.values()]
    return {
        "streams": streams,
        "seconds": end - begin,
        "tokens_per_second": streams * output / (end - begin),
        "decode_tokens_per_second": streams * (output - 1) / (end - prefilled) if output > 1 else 0,
        "ttft_ms_p50": percentile(wait_ms, 50),
        "ttft_ms_p99": percentile(wait_ms, 99),
    }


def together(llama, options, streams, random):
    ll.llama_memory_clear(llama.memory, True)
    prompts = {s: random.integers(3, llama.vocab, options.prompt).tolist() for s in range(streams)}
    begin = time.perf_counter()
    last, when = llama.prefill(prompts, 0)
    llama.generate(last, {s: options.prompt for s in prompts}, options.output - 1)
    end = time.perf_counter()
    return figures(streams, options.output, begin, when, end) | {
        "prompt_tokens": options.prompt,
        "output_tokens": options.output,
        "prompt_tokens_per_second": streams * options.prompt / (max(when.values()) - begin),
    }


def questions(llama, options, random):
    ll.llama_memory_clear(llama.memory, True)
    document = random.integers(3, llama.vocab, options.document).tolist()
    asked = {1 + q: random.integers(3, llama.vocab, options.question).tolist() for q in range(options.questions)}
    begin = time.perf_counter()
    llama.prefill({0: document}, 0)
    prefilled = time.perf_counter()
    for sequence in asked:
        ll.llama_memory_seq_cp(llama.memory, 0, sequence, -1, -1)
    last, when = llama.prefill(asked, options.document)
    llama.generate(last, {s: options.document + options.question for s in asked}, options.output - 1)
    end = time.perf_counter()
    return figures(options.questions, options.output, begin, when, end) | {
        "document_tokens": options.document,
        "question_tokens": options.question,
        "output_tokens": options.output,
        "document_seconds": prefilled - begin,
        "asked_tokens_per_second": options.questions * options.output / (end - prefilled),
    }


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def report(load, llama, runs):
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"load": load, **medians(runs), "peak_rss_bytes": peak_kib * 1024, "runs": runs}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2048, help="tokens of a batch; llama.cpp's default")
    parser.add_argument("--ubatch", type=int, default=512, help="computed at a time; llama.cpp's default")
    parser.add_argument("--flash-attention", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="llama.cpp's own log")
    commands = parser.add_subparsers(dest="load", required=True)
    command = commands.add_parser("together")
    command.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    command.add_argument("--prompt", type=int, default=128)
    command.add_argument("--output", type=int, default=128)
    command = commands.add_parser("questions")
    command.add_argument("--document", type=int, default=8192)
    command.add_argument("--questions", type=int, default=64)
    command.add_argument("--question", type=int, default=48)
    command.add_argument("--output", type=int, default=32)
    options = parser.parse_args()
    options.silence = ll.llama_log_callback(lambda level, text, data: None)

    ll.llama_backend_init()
    if options.load == "together":
        for streams in options.streams:
            # Rounded up, as llama.cpp shares the cells out among streams.
            cells = -(-(options.prompt + options.output) // 256) * 256
            llama = Llama(options, cells * streams, streams, unified=False)
            together(llama, argparse.Namespace(prompt=16, output=4), streams, np.random.default_rng(0))  # warm-up
            runs = [together(llama, options, streams, np.random.default_rng(r)) for r in range(options.repeats)]
            report("together", llama, runs)
            llama.close()
    else:
        cells = options.document + options.questions * (options.question + options.output)
        llama = Llama(options, -(-cells // 256) * 256, 1 + options.questions, unified=True)
        runs = [questions(llama, options, np.random.default_rng(r)) for r in range(options.repeats)]
        report("questions", llama, runs)
        llama.close()


if __name__ == "__main__":
    main()
