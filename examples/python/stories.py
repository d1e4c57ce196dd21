"""Generates with photon_client: as it comes, in samples, and by a vote."""

import os

from photon_client import Client, InvalidArgumentError

with Client(os.environ.get("PHOTON_SERVER", "127.0.0.1:50051"), timeout_s=60) as client:
    info = client.model_info()
    print(f"{info.name}: {info.num_parameters:,} parameters on {info.device}\n")

    prompt = "Once upon a time, there was a little girl"
    print(prompt, end="")
    for chunk in client.stream(prompt, max_tokens=80, temperature=0.3, top_p=0.9):
        print(chunk.text, end="", flush=True)
        if chunk.result is not None:
            print(f"\n({chunk.result.finish_reason.value}, seed {chunk.result.seed})\n")

    # Four samples cost one prefill.
    for sample in client.samples(prompt, 4, max_tokens=16, seed=7).samples:
        print("-", sample.text)

    vote = client.vote("One, two,", 8, max_tokens=3, answer="whole_text", temperature=0.5)
    print(f"\n{vote.samples_finished} samples voted: {vote.answer!r}")

    try:
        client.generate(prompt, top_p=2)
    except InvalidArgumentError as error:
        for violation in error.field_violations:
            print(f"\n{violation.field}: {violation.description}")
