#!/usr/bin/env python3
"""test_model - the memory store that simulations run on does step for step what the scripts do in a real Redis

Random steps of seeds 1, 2, ... (MODEL_SEED=n: that one), each compared by its reply and by all that the shard holds after it.
"""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

MODEL_STEPS = harness.BUILD / "tests" / "simulation" / "model_steps"
SEEDS, STEPS = 20, 300


class Model(unittest.TestCase):
    def setUp(self):
        directory = harness.scratch_dir()
        self.redis = harness.Redis(directory).start()
        self.addCleanup(self.redis.kill)
        self.keys = [f"{{model:0}}:{key}" for key in harness.SHARD_KEYS]
        self.scripts = {path.stem: path.read_text() for path in (harness.ROOT / "lib" / "scripts").glob("*.lua")}

    def pairs(self, command, key, *args):
        reply = [word.decode() for word in self.redis.call(command, f"{{model:0}}:{key}", *args)]
        return dict(zip(reply[::2], reply[1::2]))

    def state(self):
        meta = self.pairs("HGETALL", "meta")
        numbers = {name: int(meta.get(name, 0)) for name in ("accepted", "events", "accepted_at_seal", "events_at_seal")}
        texts = {name: meta.get(name, "") for name in ("sealed_gen", "prev_gen", "set_aside")}
        sets = {name: {key: int(float(score)) for key, score in self.pairs("ZRANGE", name, 0, -1, "WITHSCORES").items()}
                for name in ("open", "sealed")}
        seqs = {name: self.pairs("HGETALL", name) for name in ("open_seqs", "sealed_seqs")}
        vectors = {name: [int(self.pairs("HGETALL", name).get(f"w{n}", 0)) for n in range(3)]
                   for name in ("writers", "durable")}
        return {**numbers, **texts, **sets, **seqs, **vectors}

    def compare(self, seed, *mutant):
        steps = subprocess.run([MODEL_STEPS, str(seed), str(STEPS), *mutant], check=True, stdout=subprocess.PIPE,
                               text=True).stdout
        self.redis.call("FLUSHALL")
        for number, line in enumerate(steps.splitlines()):
            step = json.loads(line)
            reply = self.redis.call("EVAL", self.scripts[step["script"]], len(self.keys), *self.keys, *step["args"])
            reply = [None if want is None else got.decode() for got, want in zip(reply, step["reply"])]
            where = f"MODEL_SEED={seed}, step {number}: {step['script']} {step['args']}"
            self.assertEqual(reply, step["reply"], where)
            self.assertEqual(self.state(), step["state"], where)

    def test_every_step_is_what_redis_does(self):
        given = os.environ.get("MODEL_SEED")
        for seed in [int(given)] if given else range(1, SEEDS + 1):
            self.compare(seed)

    def test_a_model_that_errs_is_noticed(self):
        """1: MUTANT_NO_SEQ_CHECK, 4: MUTANT_RELEASE_ANY of memory_store.h"""
        for mutant in ("1", "4"):
            with self.assertRaises(AssertionError):
                self.compare(1, mutant)


if __name__ == "__main__":
    harness.main()
