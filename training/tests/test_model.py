"""python -m unittest discover -s tests (from training/)."""

import sys
import unittest
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from decode_speed import photon_tokens, transformer_tokens
from export_golden import configs, randomise, reference_logits
from generate import MODES, Generator
from photon_model import Photon, PhotonConfig, StackConfig, causal_attention, window_attention
from sample import continue_prompts, min_p
from transformer_model import Transformer, TransformerConfig


def random_models():
    for seed, (name, config) in enumerate(configs().items()):
        model = Photon(config).double().eval()
        randomise(model, torch.Generator().manual_seed(seed))
        yield name, model


def random_tokens(model: Photon, count: int, seed: int = 7) -> list[int]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (count,), generator=rng).tolist()


class Model(unittest.TestCase):
    @torch.no_grad()
    def test_logits_see_exactly_the_tokens_before_them(self):
        for name, model in random_models():
            with self.subTest(name):
                count = 3 * model.config.meta_tokens()
                tokens = random_tokens(model, count)
                logits = reference_logits(model, tokens)
                for p in range(count - 1):
                    changed = list(tokens)
                    changed[p] = 3 + (tokens[p] - 2) % (model.config.vocab_size - 3)
                    difference = (reference_logits(model, changed) - logits).abs().amax(-1)
                    self.assertEqual(difference[: p + 1].max().item(), 0.0)
                    self.assertGreater(difference[p + 1].item(), 1e-9)

    @torch.no_grad()
    def test_loss_is_the_cross_entropy_of_the_forward_pass(self):
        for name, model in random_models():
            with self.subTest(name):
                tokens = torch.tensor([random_tokens(model, 2 * model.config.meta_tokens())])
                for rows, own_predictions in ((0, False), (1, True)):
                    logits = model(tokens, torch.float64, own_predictions)
                    expected = torch.nn.functional.cross_entropy(logits[0], tokens[0])
                    loss, _ = model.loss(tokens, torch.float64, rows)
                    self.assertAlmostEqual(loss.item(), expected.item(), places=5)

    def test_prompts_continued_together_read_as_the_reference_continues_each(self):
        tried = 0
        for name, model in random_models():
            if any(level.config.encoder_span != "block" for level in model.levels[:-1]):
                continue
            with self.subTest(name):
                meta = model.config.meta_tokens()
                prompts = [random_tokens(model, 2 * meta, seed) for seed in range(3)]
                for mode in MODES if len(model.levels) > 1 else ("exact",):
                    together = continue_prompts(
                        model, torch.tensor(prompts), 2 * meta, lambda row: row.argmax(-1), mode
                    )
                    for prompt, tokens in zip(prompts, together.tolist()):
                        written = Generator(model, mode).run(prompt, 2 * meta)
                        self.assertEqual(tokens, prompt + written, mode)
                    tried += 1
        self.assertGreater(tried, 6)

    def test_samples_stay_among_the_likely_tokens(self):
        torch.manual_seed(1)
        logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, -1)
        share = torch.bincount(min_p(1.0, 0.25)(logits), minlength=4) / 4000
        for found, expected in zip(share.tolist(), (0.526, 0.316, 0.158, 0.0)):
            self.assertAlmostEqual(found, expected, delta=0.03)

    def test_windows_attend_only_to_themselves(self):
        rng = torch.Generator().manual_seed(1)
        for windows in (1, 6, 16, 48):
            shape = (windows, 5, 2, 8)
            q, k, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
            expected = torch.cat(
                [causal_attention(*w) for w in zip(*(t.split(1) for t in (q, k, v)))]
            )
            self.assertLess((window_attention(q, k, v) - expected).abs().max().item(), 1e-12)

    @torch.no_grad()
    def test_recgen_conditions_read_predictions_from_a_random_meta_context_on(self):
        for name, model in random_models():
            if len(model.levels) > 1:
                with self.subTest(name):
                    tokens = random_tokens(model, 2 * model.config.meta_tokens())
                    states = model.encode(torch.tensor([tokens] * 16), torch.float64)
                    top, last = model.levels[-1], len(model.levels) - 1
                    predicted = model.decode_units(last, model.conditions(states[-1][:1]), None)
                    first = predicted[:, : top.config.chunk_size]
                    from_predictions = top.encoder(top.chunker(first)[:, None])[0, 0]
                    found = model.predicted_conditions(states)[:, 1]
                    real = (found - states[-1][0, 0]).abs().amax(-1) < 1e-9
                    read = (found - from_predictions).abs().amax(-1) < 1e-9
                    self.assertTrue(torch.equal(real, ~read))
                    self.assertTrue(real.any() and read.any())

    def test_config_survives_a_round_trip(self):
        for name, config in configs().items():
            with self.subTest(name):
                self.assertEqual(PhotonConfig.from_dict(config.to_dict()), config)


class Generation(unittest.TestCase):
    @torch.no_grad()
    def test_exact_is_greedy_decoding_by_full_forward_passes(self):
        for name, model in random_models():
            with self.subTest(name):
                meta = model.config.meta_tokens()
                for length in (meta, meta + 1, 2 * meta - 1):
                    tokens = random_tokens(model, length)
                    generator = Generator(model, "exact")
                    output = generator.run(tokens, meta)
                    for token, row in zip(output, generator.logits):
                        expected = reference_logits(model, tokens + [0])[-1]
                        self.assertLess((row - expected).abs().max().item(), 1e-9)
                        self.assertEqual(token, int(expected.argmax()))
                        tokens.append(token)

    @torch.no_grad()
    def test_hiergen_is_the_own_predictions_forward_pass(self):
        for name, model in random_models():
            with self.subTest(name):
                meta = model.config.meta_tokens()
                prompt = random_tokens(model, 2 * meta)
                generator = Generator(model, "hiergen")
                output = generator.run(prompt, 2 * meta)
                expected = model(
                    torch.tensor([prompt + output]), torch.float64, own_predictions=True
                )[0, 2 * meta :]
                self.assertLess((torch.stack(generator.logits) - expected).abs().max().item(), 1e-9)

    @torch.no_grad()
    def test_cached_decoding_is_exact(self):
        for name, model in random_models():
            levels = model.config.levels
            if len(levels) == 2 and levels[0].encoder_span == "block":
                with self.subTest(name):
                    prompt = random_tokens(model, 2 * model.config.meta_tokens())
                    count = 2 * model.config.meta_tokens()
                    cached = [int(t) for t in photon_tokens(model, torch.tensor([prompt]), count)]
                    self.assertEqual(cached, Generator(model, "exact").run(prompt, count))

    @torch.no_grad()
    def test_cached_transformer_is_its_forward_pass(self):
        model = Transformer(TransformerConfig(64, StackConfig(32, 2, 2, 2, 16, 64, qk_norm=True)))
        model = model.double()
        tokens = torch.arange(3, 12)[None]
        for token in transformer_tokens(model, tokens, 6):
            self.assertEqual(int(token), int(model(tokens, torch.float64)[0, -1].argmax()))
            tokens = torch.cat([tokens, token[:, None]], dim=1)

    def test_with_one_level_hiergen_is_exact_and_recgen_is_refused(self):
        for name, model in random_models():
            if len(model.levels) == 1:
                with self.subTest(name):
                    prompt = random_tokens(model, model.config.meta_tokens() + 1)
                    runs = [Generator(model, mode).run(prompt, 20) for mode in ("exact", "hiergen")]
                    self.assertEqual(*runs)
                    with self.assertRaises(ValueError):
                        Generator(model, "recgen")

    def test_modes_agree_on_the_prompts_meta_context(self):
        for name, model in random_models():
            if len(model.levels) > 1:
                with self.subTest(name):
                    meta = model.config.meta_tokens()
                    prompt = random_tokens(model, meta + 1)
                    first = [Generator(model, mode).run(prompt, 1)[: meta - 1] for mode in MODES]
                    self.assertEqual(first[0], first[1])
                    self.assertEqual(first[0], first[2])


if __name__ == "__main__":
    unittest.main()
