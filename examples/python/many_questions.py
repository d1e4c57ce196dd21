"""Has the server read a document once, and asks many questions about it side by side."""

import asyncio
import os

from photon_client import AsyncClient

TALE = (
    "Once upon a time there was a fox who lived in a small house by the forest. Every day he went to the river to "
    "look for his friend, the owl. One day the owl was not there, and the fox was sad. He looked behind the trees and "
    "under the leaves. He asked the frog, and he asked the birds, but nobody had seen the owl that day. The sun went "
    "down, and it was cold. Then the fox heard a small voice that called him from the old well by the road. He ran to "
    "the well and looked down. It was dark, and he could not see the bottom. The fox found a long rope and tied it to "
    "a tree. He threw the other end into the well and waited. Slowly, something began to climb up the rope. "
)
QUESTIONS = [" So the fox", " The owl", " Then", " At night", " In the end"]


async def main() -> None:
    async with AsyncClient(os.environ.get("PHOTON_SERVER", "127.0.0.1:50051"), timeout_s=60) as client:
        document = await client.create_document(TALE, name="tale", ttl_s=600)
        print(f"{document.num_tokens} tokens, kept as {document.reference} until {document.expires:%H:%M}\n")

        # One call with many questions ...
        answers = await client.ask(document, QUESTIONS, max_tokens=20, temperature=0.3)
        for question, answer in zip(QUESTIONS, answers):
            print(f"...{question}{answer.text}")
        cached = answers[0].samples[0].usage.cached_tokens
        print(f"\n{cached} tokens of the document were not computed again\n")

        # ... or many calls, for instance of different users.
        await asyncio.gather(*(show(client, document.reference, question) for question in QUESTIONS[:2]))
        await client.delete_document(document)


async def show(client: AsyncClient, reference: str, question: str) -> None:
    pieces = [chunk.text async for chunk in client.stream_ask(reference, [question], max_tokens=20)]
    print(f"...{question}{''.join(pieces)}")


asyncio.run(main())
