"""DocumentService as a stock grpcio client sees it."""

import time
import unittest

import grpc
from photon.v1 import document_pb2 as pb
from photon.v1 import document_pb2_grpc, model_pb2, model_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY

TALE = (STORY + " who lived in a small house by the forest. ") * 30
QUESTIONS = [" Then", " She", " Who", "\nThe fox", "Where", " One day", "", " In the end"]
PARAMETERS = {
    "max_tokens": 20,
    "sampling": {"temperature": 1, "seed": 9},
    "stop": {"ignore_eos": True},
}


def upload(text=TALE, **settings):
    yield pb.CreateDocumentRequest(settings=settings)
    for begin in range(0, len(text), 500):
        yield pb.CreateDocumentRequest(text=text[begin : begin + 500])


def bearer(key):
    return [("authorization", f"Bearer {key}")]


class DocumentsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess(*SLOW, "--page-tokens", "64")
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.documents = document_pb2_grpc.DocumentServiceStub(cls.channel)
        cls.models = model_pb2_grpc.ModelServiceStub(cls.channel)

    def create(self, *args, metadata=None, **settings):
        return self.documents.CreateDocument(
            upload(*args, **settings), timeout=PATIENCE_S, metadata=metadata
        ).document

    def ask(self, document, questions, metadata=None, **parameters):
        request = pb.AskRequest(
            document_id=document.id,
            questions=[q if isinstance(q, dict) else {"text": q} for q in questions],
            parameters={**PARAMETERS, **parameters},
        )
        token_ids, results, errors = {}, {}, {}
        for message in self.documents.Ask(request, timeout=PATIENCE_S, metadata=metadata):
            if message.HasField("error"):
                errors[message.question_index] = message.error
                continue
            key = (message.question_index, message.output.sample_index)
            token_ids.setdefault(key, []).extend(message.output.token_ids)
            if message.output.HasField("result"):
                results[key] = message.output.result
        return token_ids, results, errors

    def assert_not_found(self, call, *args, metadata=None):
        with self.assertRaises(grpc.RpcError) as caught:
            call(*args, timeout=PATIENCE_S, metadata=metadata)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def get(self, document_id):
        return self.documents.GetDocument(
            pb.GetDocumentRequest(document_id=document_id), timeout=PATIENCE_S
        ).document

    def test_eight_questions_in_three_samples_cost_one_prefill(self):
        document = self.create(display_name="a tale")
        meta = self.models.GetModelInfo(model_pb2.GetModelInfoRequest()).meta_context_tokens
        self.assertGreater(document.num_tokens, 200)
        self.assertGreater(document.cache_bytes, 0)
        token_ids, results, errors = self.ask(document, QUESTIONS, n=3)
        self.assertFalse(errors)
        self.assertEqual(
            sorted(results), [(q, s) for q in range(len(QUESTIONS)) for s in range(3)]
        )
        for key, result in results.items():
            self.assertEqual(len(token_ids[key]), 20)
            # All but the document's last meta-contexts.
            self.assertGreaterEqual(result.usage.cached_tokens, document.num_tokens - 2 * meta)
        self.assertGreater(len({tuple(ids) for ids in token_ids.values()}), 8)

    def test_the_model_reads_the_texts_as_one(self):
        document = self.create()
        token_ids, _, _ = self.ask(document, [" Then"], sampling={"temperature": 0})
        tokens = self.models.Tokenize(
            model_pb2.TokenizeRequest(text=TALE + " Then", add_bos=True), timeout=PATIENCE_S
        ).token_ids
        self.assertEqual(len(tokens), document.num_tokens + 1)
        from_ids, _, _ = self.ask(
            document, [{"token_ids": {"ids": tokens[-1:]}}], sampling={"temperature": 0}
        )
        self.assertEqual(from_ids, token_ids)

    def test_a_bad_question_fails_alone(self):
        document = self.create()
        _, results, errors = self.ask(document, [" Then", {"token_ids": {"ids": [10**6]}}])
        self.assertEqual(list(results), [(0, 0)])
        self.assertIn("questions[1].token_ids.ids[0]", errors[1].message)

    def test_a_document_lives_until_it_is_deleted(self):
        document = self.create(display_name="short")
        described = self.get(document.id)
        self.assertEqual(described.display_name, "short")
        self.assertEqual(described.num_tokens, document.num_tokens)
        self.assertEqual(described.owner, document.owner)
        listed = self.documents.ListDocuments(pb.ListDocumentsRequest(), timeout=PATIENCE_S)
        self.assertIn(document.id, [d.id for d in listed.documents])
        self.documents.DeleteDocument(
            pb.DeleteDocumentRequest(document_id=document.id), timeout=PATIENCE_S
        )
        self.assert_not_found(
            self.documents.GetDocument, pb.GetDocumentRequest(document_id=document.id)
        )

    def test_a_document_expires_unless_it_is_extended(self):
        document = self.create(ttl_s=1)
        kept = self.create(ttl_s=1)
        self.documents.UpdateDocument(
            pb.UpdateDocumentRequest(document_id=kept.id, ttl_s=600), timeout=PATIENCE_S
        )
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            try:
                self.get(document.id)
            except grpc.RpcError as error:
                self.assertEqual(error.code(), grpc.StatusCode.NOT_FOUND)
                break
        else:
            self.fail("the document did not expire")
        self.assertGreaterEqual(time.time() * 1000, document.expires_unix_ms - 50)
        self.assertEqual(self.get(kept.id).id, kept.id)

    def test_another_tenant_does_not_see_it(self):
        document = self.create(metadata=bearer("alice"))
        for metadata in (None, bearer("bob")):
            self.assert_not_found(
                self.documents.GetDocument,
                pb.GetDocumentRequest(document_id=document.id),
                metadata=metadata,
            )
            self.assert_not_found(
                lambda request, **options: list(self.documents.Ask(request, **options)),
                pb.AskRequest(document_id=document.id, questions=[{"text": "?"}]),
                metadata=metadata,
            )
        _, results, _ = self.ask(document, [" Then"], metadata=bearer("alice"))
        self.assertGreater(results[0, 0].usage.cached_tokens, 0)

    def test_questions_that_are_cancelled_leave_the_batch(self):
        document = self.create()
        request = pb.AskRequest(
            document_id=document.id,
            questions=[{"text": q} for q in QUESTIONS],
            parameters={**PARAMETERS, "max_tokens": 900, "n": 4},
        )
        stream = self.documents.Ask(request, timeout=PATIENCE_S)
        next(stream)
        stream.cancel()
        # 32 sequences of hundreds of steps: one that comes now would have to share with them.
        estimate = model_pb2.EstimateCostRequest(prompt_tokens=10, max_tokens=10)
        give_up = time.monotonic() + PATIENCE_S
        while not self.models.EstimateCost(estimate, timeout=PATIENCE_S).fits_now:
            self.assertLess(time.monotonic(), give_up)
        _, results, _ = self.ask(document, [" Then"])
        self.assertEqual(results[0, 0].usage.generated_tokens, 20)

    def test_an_upload_out_of_order_is_refused(self):
        for messages, mention in (
            ([pb.CreateDocumentRequest(text="a")], "settings"),
            ([pb.CreateDocumentRequest(settings={})], "empty"),
            ([pb.CreateDocumentRequest(settings={"ttl_s": 0})], "ttl_s"),
        ):
            with self.subTest(mention=mention):
                with self.assertRaises(grpc.RpcError) as caught:
                    self.documents.CreateDocument(iter(messages), timeout=PATIENCE_S)
                self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
                self.assertIn(mention, caught.exception.details())

    def test_an_estimate_says_what_a_generation_takes(self):
        info = self.models.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=PATIENCE_S)
        estimate = self.models.EstimateCost(
            model_pb2.EstimateCostRequest(prompt_tokens=1000, max_tokens=24), timeout=PATIENCE_S
        )
        self.assertEqual(estimate.pages, 1024 // info.cache.page_tokens)
        self.assertEqual(estimate.cache_bytes, estimate.pages * info.cache.page_bytes)
        self.assertGreater(estimate.transformer_cache_bytes, 10 * estimate.cache_bytes)
        self.assertTrue(estimate.fits)
        large = self.models.EstimateCost(
            model_pb2.EstimateCostRequest(prompt_tokens=10**8), timeout=PATIENCE_S
        )
        self.assertFalse(large.fits)


if __name__ == "__main__":
    unittest.main()
