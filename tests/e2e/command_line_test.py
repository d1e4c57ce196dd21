"""The photon command line against a server."""

import functools
import json
import os
import signal
import subprocess
import tempfile
import unittest

import programs
from programs import PATIENCE_S, STORY

GREEDY = ("--temperature", "0", "--max-tokens", "20", "--ignore-eos")


class CommandLineTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess(*programs.SLOW)
        cls.addClassCleanup(cls.server.stop)
        cls.environment = {**os.environ, "PHOTON_SERVER": cls.server.address}

    def photon(self, *args, stdin="", code=0):
        process = subprocess.run(
            [programs.CLI, *args],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=PATIENCE_S,
        )
        self.assertEqual(process.returncode, code, process.stderr)
        return process

    def test_the_prompt_comes_from_an_argument_a_file_or_standard_input(self):
        from_argument = self.photon("generate", STORY, *GREEDY).stdout
        self.assertTrue(from_argument.strip())
        self.assertEqual(self.photon("generate", *GREEDY, stdin=STORY).stdout, from_argument)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(STORY)
            file.flush()
            self.assertEqual(
                self.photon("generate", "--file", file.name, *GREEDY).stdout, from_argument
            )

    def test_the_summary_goes_to_standard_error(self):
        process = self.photon("generate", STORY, *GREEDY, "--mode", "recgen", "--echo")
        self.assertTrue(process.stdout.startswith(STORY))
        self.assertIn("20 tokens in", process.stderr)
        self.assertIn("recgen", process.stderr)
        self.assertEqual(self.photon("generate", STORY, *GREEDY, "--quiet").stderr, "")

    def test_every_parameter_reaches_the_server(self):
        for flag, value in {
            "--temperature": "-1",
            "--top-k": "-1",
            "--top-p": "0",
            "--min-p": "2",
            "--max-tokens": "0",
            "--top-logprobs": "21",
            "--stop-ids": "-1",
            "--stop": "x" * 257,
        }.items():
            with self.subTest(flag=flag):
                process = self.photon("generate", STORY, f"{flag}={value}", code=1)
                self.assertIn("INVALID_ARGUMENT", process.stderr)

    def test_a_stop_string_ends_the_text(self):
        text = self.photon("generate", STORY, *GREEDY).stdout.rstrip("\n")
        stop = text[len(text) // 2 :][:4]
        process = self.photon("generate", STORY, *GREEDY, "--stop", "\u2603", "--stop", stop)
        self.assertEqual(process.stdout.rstrip("\n"), text[: text.index(stop)].rstrip("\n"))
        self.assertIn("ended by stop string", process.stderr)

    def test_json_has_a_message_per_line(self):
        lines = self.photon("generate", STORY, *GREEDY, "--json").stdout.splitlines()
        messages = [json.loads(line) for line in lines]
        self.assertEqual(sum(len(message["token_ids"]) for message in messages), 20)
        self.assertEqual(messages[-1]["result"]["finish_reason"], "FINISH_REASON_LENGTH")

    def test_ids_and_logprobs_are_written_for_each_token(self):
        ids = self.photon("generate", STORY, *GREEDY, "--ids").stdout.split()
        self.assertEqual(len(ids), 20)
        lines = self.photon("generate", STORY, *GREEDY, "--top-logprobs", "2").stdout.splitlines()
        self.assertEqual([line.split()[0] for line in lines], ids)
        self.assertTrue(all(len(line.split()) == 4 for line in lines))

    def test_tokens_go_there_and_back(self):
        ids = self.photon("tokenize", STORY).stdout.split()
        self.assertEqual(self.photon("detokenize", *ids).stdout, STORY + "\n")
        with_bos = self.photon("tokenize", "--bos", STORY).stdout.split()
        self.assertEqual(with_bos[1:], ids)
        from_ids = self.photon("generate", "--prompt-ids", ",".join(with_bos), *GREEDY).stdout
        self.assertEqual(from_ids, self.photon("generate", STORY, *GREEDY).stdout)

    def test_info_and_health_describe_the_server(self):
        self.assertIn("recgen", self.photon("info").stdout)
        self.assertIn("meta_context_tokens", json.loads(self.photon("info", "--json").stdout))
        self.assertEqual(self.photon("health").stdout, "SERVING\n")
        self.assertEqual(self.photon("health", "--wait", "--deadline", "60").stdout, "SERVING\n")
        self.assertIn("NOT_FOUND", self.photon("health", "--service", "nobody", code=1).stderr)

    def test_several_samples_are_written_when_they_have_ended(self):
        alone = self.photon("generate", STORY, *GREEDY).stdout
        text = self.photon("generate", STORY, *GREEDY, "--n", "3", "--quiet").stdout
        for sample in range(3):
            self.assertIn(f"[sample {sample}]\n{alone}", text)

    def test_a_vote_can_be_all_that_is_written(self):
        alone = self.photon("generate", STORY, *GREEDY).stdout
        process = self.photon(
            "generate", STORY, *GREEDY, "--n", "5", "--vote", "text", "--only-result"
        )
        self.assertEqual(process.stdout.split(), ["[result]", *alone.split()])
        self.assertRegex(process.stderr, r"[345] votes, first sample 0")
        refused = self.photon("generate", STORY, "--vote", "regex:(", "--n", "2", code=1)
        self.assertIn("regular_expression", refused.stderr)
        none = self.photon("generate", STORY, *GREEDY, "--vote", "regex:\u2603", code=1)
        self.assertIn("no answer", none.stderr)

    def test_a_batch_has_a_prompt_on_each_line(self):
        alone = self.photon("generate", STORY, *GREEDY).stdout
        process = self.photon("batch", *GREEDY, "--quiet", stdin=f"{STORY}\n\nThe fox\n")
        self.assertIn(f"[prompt 0]\n{alone}", process.stdout)
        self.assertIn("[prompt 1]\n", process.stdout)

    def test_a_document_is_created_asked_and_deleted(self):
        created = self.photon("document", "create", STORY, "--name", "tale", "--ttl", "600")
        document = created.stdout.strip()
        self.assertIn("tale", created.stderr)
        self.assertIn(document, self.photon("document", "list").stdout)
        self.assertIn("tale", self.photon("document", "get", document).stdout)
        self.photon("document", "extend", document, "--ttl", "900")
        answer = self.photon("ask", "--document", document, " who", " and", *GREEDY).stdout
        self.assertIn("[question 0]\n", answer)
        self.assertIn("[question 1]\n", answer)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(STORY)
            file.flush()
            from_file = self.photon("ask", "--file", file.name, " who", *GREEDY).stdout
            self.assertIn(from_file.split("\n", 1)[1], answer)
        self.assertEqual(
            self.photon("document", "list").stdout.count("\n"), 1, "the file's document is gone"
        )
        self.photon("document", "delete", document)
        gone = self.photon("ask", "--document", document, "?", code=1)
        self.assertIn("NOT_FOUND", gone.stderr)

    def test_an_estimate_needs_no_prompt(self):
        text = self.photon("estimate", "--prompt-tokens", "1000", "--max-tokens", "24").stdout
        self.assertIn("1000 of prompt, 24 of output", text)
        self.assertIn("fits          now", text)

    def test_a_plan_asks_no_server(self):
        nowhere = {**self.environment, "PHOTON_SERVER": "127.0.0.1:1"}
        plan = [programs.CLI, "plan", programs.MODEL]
        run = functools.partial(
            subprocess.run, capture_output=True, text=True, env=nowhere, timeout=PATIENCE_S
        )
        figures = json.loads(
            run([*plan, "--card", "h100", "--output", "json"], check=True).stdout
        )
        self.assertIn("prefill", [bound["phase"] for bound in figures["bounds"]])
        text = run([*plan, "--sequences", "3", "--bandwidth", "40G", "--flops", "1T"], check=True)
        self.assertIn("3 sequences", text.stdout)
        self.assertIn("recgen", text.stdout)
        patch = run([*plan, "--sequences", "3", "--output", "kubernetes"], check=True).stdout
        self.assertIn("PHOTON_KV_MEMORY", patch)
        for arguments, code, message in (
            (["--sequences", "0"], 1, "sequences: expected 1"),
            (["--memory", "1MiB"], 1, "has 1048576 bytes of memory"),
            ([], 1, "memory: needed"),
            (["--memory", "60%"], 2, "expected bytes"),
            (["--flops", "fast"], 2, "expected a number above 0"),
            (["--card", "abacus"], 2, "abacus"),
            (["--kv-memory", "0%", "--memory", "1GiB"], 2, "is not above 0%"),
        ):
            with self.subTest(arguments=arguments):
                refused = run([*plan, *arguments])
                self.assertEqual(refused.returncode, code, refused.stderr)
                self.assertIn(message, refused.stderr)

    def test_ctrl_c_cancels_the_stream(self):
        process = subprocess.Popen(
            [programs.CLI, "generate", STORY, "--max-tokens", "900", "--ignore-eos"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        self.assertTrue(os.read(process.stdout.fileno(), 1))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 130, stderr)
        self.assertIn(b"interrupted", stderr)

    def test_a_deadline_is_a_failure(self):
        process = self.photon(
            "generate", STORY, "--max-tokens", "900", "--ignore-eos", "--deadline", "0.02", code=1
        )
        self.assertIn("DEADLINE_EXCEEDED", process.stderr)

    def test_no_server_is_a_failure_and_bad_usage_exits_2(self):
        nowhere = self.photon("info", "--server=127.0.0.1:1", code=1)
        self.assertIn("UNAVAILABLE", nowhere.stderr)
        for args in ([], ["generate", "--nonsense"], ["generate", STORY, "--mode", "best"],
                     ["document"], ["ask", "?"], ["generate", STORY, "--vote", "best"],
                     ["generate", "--file", "/nowhere"], ["generate", STORY, "--top-k", "x"]):
            self.photon(*args, code=2)


if __name__ == "__main__":
    unittest.main()
