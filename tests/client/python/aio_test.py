"""photon_client for asyncio against the real server."""

import asyncio
import unittest

from photon_client import (
    AsyncClient,
    CancelledError,
    DeadlineExceededError,
    HealthStatus,
    InvalidArgumentError,
    NotFoundError,
    RetryPolicy,
    Vote,
)

import programs
from programs import PATIENCE_S, SLOW, STORY

GREEDY = {"temperature": 0, "ignore_eos": True}


class AsyncClientTest(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)

    async def asyncSetUp(self):
        self.client = AsyncClient(self.server.address, timeout_s=PATIENCE_S)
        self.addAsyncCleanup(self.client.close)

    async def test_streams_run_side_by_side(self):
        async def text(prompt):
            return "".join(
                [chunk.text async for chunk in self.client.stream(prompt, max_tokens=30, **GREEDY)]
            )

        prompts = [STORY, "One day, Tom", "The fox"]
        streamed = await asyncio.gather(*map(text, prompts))
        outcomes = await self.client.batch(prompts, max_tokens=30, **GREEDY)
        self.assertEqual(streamed, [outcome.text for outcome in outcomes])
        self.assertEqual(
            (await self.client.generate(STORY, max_tokens=30, **GREEDY)).text, streamed[0]
        )

    async def test_samples_and_votes(self):
        outcome = await self.client.samples(
            STORY, 3, max_tokens=5, integrate=Vote("whole_text"), **GREEDY
        )
        vote = await self.client.vote(STORY, 3, max_tokens=5, answer="whole_text", **GREEDY)
        self.assertEqual(vote.text, outcome.consensus.text)
        self.assertEqual((await self.client.best_of(STORY, 3, max_tokens=5, **GREEDY)).text, vote.text)

    async def test_documents(self):
        document = await self.client.create_document(STORY * 20)
        (answer,) = await self.client.ask(document, [" Then"], max_tokens=5, **GREEDY)
        chunks = [
            chunk async for chunk in self.client.stream_ask(document, [" Then"], max_tokens=5, **GREEDY)
        ]
        self.assertEqual("".join(chunk.text for chunk in chunks), answer.text)
        self.assertEqual((await self.client.get_document(document.reference)).id, document.id)
        self.assertIn(document.id, [listed.id for listed in await self.client.list_documents()])
        self.assertGreater(
            (await self.client.extend_document(document, 7200)).expires, document.expires
        )
        await self.client.delete_document(document)
        with self.assertRaises(NotFoundError):
            [chunk async for chunk in self.client.stream_ask(document, [" Then"])]

    async def test_the_model(self):
        tokens = await self.client.tokenize(STORY)
        self.assertEqual(await self.client.detokenize(tokens), STORY)
        self.assertEqual((await self.client.model_info()).name, "demo")
        self.assertTrue((await self.client.estimate_cost(STORY)).fits)
        await self.client.wait_until_serving(PATIENCE_S)
        self.assertIs(await self.client.health(), HealthStatus.SERVING)
        with self.assertRaises(InvalidArgumentError) as caught:
            await self.client.generate(STORY, top_p=2)
        self.assertEqual(
            caught.exception.field_violations[0].field, "parameters.sampling.top_p"
        )
        queries = {chunk.query async for chunk in self.client.stream_batch([STORY, STORY], max_tokens=2)}
        self.assertEqual(queries, {0, 1})

    async def test_a_stream_that_is_left_leaves_the_batch(self):
        with programs.server("--max-rows", "1", *SLOW) as server:
            async with AsyncClient(server.address, timeout_s=PATIENCE_S) as client:
                async with client.stream(STORY, max_tokens=900, ignore_eos=True) as stream:
                    await anext(stream)
                await client.generate(STORY, max_tokens=1)

    async def test_a_stream_may_be_cancelled_from_elsewhere(self):
        stream = self.client.stream(STORY, max_tokens=1900, ignore_eos=True)
        await anext(stream)
        stream.cancel()
        with self.assertRaises(CancelledError):
            async for _ in stream:
                pass
        # The other way round: who cancels the task cancels the stream.
        stream = self.client.stream(STORY, max_tokens=1900, ignore_eos=True)
        await anext(stream)
        waiting = asyncio.create_task(self.text_of(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await waiting

    async def text_of(self, stream):
        return "".join([chunk.text async for chunk in stream])

    async def test_a_call_waits_for_a_server_that_starts(self):
        address, _ = programs.own_addresses(2)
        retry = RetryPolicy(max_attempts=10**6, initial_backoff_s=0.05, multiplier=1)
        async with AsyncClient(address, timeout_s=PATIENCE_S, retry=retry) as client:
            with self.assertRaises(DeadlineExceededError):
                await client.wait_until_serving(0.1)
            whole = asyncio.create_task(client.generate(STORY, max_tokens=1))
            stream = client.stream(STORY, max_tokens=1)
            server = await asyncio.to_thread(programs.ServerProcess, listen=address)
            try:
                self.assertEqual((await whole).usage.generated_tokens, 1)
                self.assertIsNotNone([chunk async for chunk in stream][-1].result)
            finally:
                await asyncio.to_thread(server.stop)


if __name__ == "__main__":
    unittest.main()
