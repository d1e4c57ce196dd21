"""The stock openai package against the HTTP port."""

import os

import openai

client = openai.OpenAI(
    base_url=os.environ.get("PHOTON_HTTP", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("PHOTON_API_KEY", "unused"),
)
model = client.models.list().data[0].id

print("Once upon a time", end="")
stream = client.completions.create(
    model=model,
    prompt="Once upon a time",
    max_tokens=60,
    temperature=0.3,
    stream=True,
    # What OpenAI's API does not have: docs/http.md.
    extra_body={"mode": "exact", "top_k": 50},
)
for chunk in stream:
    print(chunk.choices[0].text, end="", flush=True)
print()

answer = client.completions.create(model=model, prompt=["One day", "The fox"], max_tokens=16, n=2, seed=7)
for choice in answer.choices:
    print(f"{choice.index}: {choice.text!r} ({choice.finish_reason})")
