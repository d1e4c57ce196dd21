"""What share of prompt tokens is found in the cache, by one server or by replicas behind Envoy."""

import concurrent.futures
import re
import urllib.request

import photon_client

from programs import PATIENCE_S

SENTENCE = " Once there was a {} who lived by the {} and wanted to find the {}."
ANIMALS = ("fox", "owl", "bear", "hare", "wolf", "mouse", "cat", "dog", "frog", "duck", "goat", "crow")
PLACES = ("river", "hill", "lake", "road", "sea", "barn", "mill")


def story(number, sentences=12):
    """A text of some 200 tokens, whose beginning no other number has."""
    begin = f"Tale {number}:"
    return begin + "".join(
        SENTENCE.format(ANIMALS[(number + i) % 12], PLACES[i % 7], ANIMALS[(number * 5 + i) % 12])
        for i in range(sentences)
    )


def ask(address, *, contexts, questions, clients, kinds=("prompts", "documents"), affinity=None):
    """Asks `questions` about each of `contexts` documents, and sends as many prompts that begin with one of as
    many texts. photon_client chooses the affinity of prompts unless `affinity` does; "" is none."""
    parameters = {"max_tokens": 4, "temperature": 0, "timeout_s": PATIENCE_S}
    with photon_client.Client(address) as client:

        def prompts(number):
            for question in range(questions):
                client.generate(story(number) + f" Question {question}", affinity=affinity, **parameters)

        def document(number):
            read = client.create_document(story(1000 + number), timeout_s=PATIENCE_S)
            for question in range(questions):
                client.ask(read, [f" Question {question}"], **parameters)

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            work = [{"prompts": prompts, "documents": document}[kind] for kind in kinds]
            tasks = [pool.submit(task, n) for n in range(contexts) for task in work]
            for task in tasks:
                task.result()


def prompt_tokens(servers):
    """(all, found in the cache), of all servers together."""
    totals = [0.0, 0.0]
    for server in servers:
        with urllib.request.urlopen(server.http_url + "metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        for i, name in enumerate(("photon_prompt_tokens_total", "photon_prompt_tokens_cached_total")):
            totals[i] += float(re.search(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE).group(1))
    return totals


def hit_rate(servers):
    tokens, cached = prompt_tokens(servers)
    return cached / tokens
