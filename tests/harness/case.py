"""case - the base of every test: the servers, counterd and the flusher, as one configuration has them"""

import collections
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import unittest

from .basics import DEADLINE_S, EXIT_OK, FLUSHER, KEEP, REDIS_TIMEOUT_MS, scratch_dir, wait_until
from .counterd import Counterd
from .network import Proxy, free_port
from .postgres_server import postgres
from .processes import SANITIZER_REPORT, Process, die_with_parent
from .redis_server import Redis

Result = collections.namedtuple("Result", "code out err")


class Case(unittest.TestCase):
    """A scratch directory, a Redis, an empty database and a configuration for every test."""

    maxDiff = 2000

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > before:
            for process in self.processes:
                print(process.tail(), file=sys.stderr)
        for process in self.processes:
            process.kill()
        return result

    def setUp(self):
        self.processes = []
        self.dir = scratch_dir()
        if not KEEP:
            self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.redis = self.track(Redis(self.dir)).start()
        self.postgres = postgres()
        self.database = self.postgres.new_database()
        self.config = {
            "shards": 8,
            "listen": {"udp": ["127.0.0.1:0"], "tcp": ["127.0.0.1:0"], "http": "127.0.0.1:0"},
            "coalesce_ms": 20,
            "redis": {"url": self.redis.url, "timeout_ms": REDIS_TIMEOUT_MS},
            "postgres": {"url": self.postgres.url(self.database)},
        }

    def tearDown(self):
        """Ends every counterd as a user would, so that a leak shows; no log may hold a sanitizer's report."""
        for process in self.processes:  # a test that failed half way may have left one of them stopped
            if process.alive:
                process.signal(signal.SIGCONT)
        for process in self.processes:
            if isinstance(process, Counterd) and process.alive and self.redis.alive:
                process.stop()
            self.assertIsNone(SANITIZER_REPORT.search(process.log()), process.tail(80))

    def track(self, process):
        """Its log is shown when the test fails, and it is ended with the test."""
        self.processes.append(process)
        return process

    def write_config(self, name="counterd.json", **changes):
        """All at once: who reads it meanwhile finds the one before, or this one."""
        path, new = self.dir / name, self.dir / f"{name}.new"
        new.write_text(json.dumps({**self.config, **changes}))
        return new.rename(path)

    def counterd(self, name="counterd", event="ready", env=None, **changes):
        """A running counterd with this test's configuration, with some keys changed."""
        path = self.write_config(f"{name}.json", **changes)
        return self.track(Counterd(self.dir, path, name, env)).start(event)

    def ready(self, name="counterd", **options):
        """A running counterd that could store at once what it is sent."""
        counterd = self.counterd(name, **options)
        wait_until(lambda: counterd.http("/readyz")[0] == 200, what=lambda: f"/readyz: {counterd.http('/readyz')}")
        return counterd

    def refused_start(self, config):
        """How counterd ends that will not run with this. A Redis that does not answer in time is away, and that is no
        reason to refuse: then it is tried again."""
        def refused():
            counterd = self.track(Counterd(self.dir, config, f"refused{len(self.processes)}")).spawn()
            wait_until(lambda: not counterd.alive or counterd.events("redis_away"), what=f"an end\n{counterd.tail()}")
            if counterd.alive:
                counterd.kill()
                return None
            return Result(counterd.wait(), "", counterd.log())
        return wait_until(refused, what="a Redis that answers")

    def proxied_redis(self):
        """A proxy before this test's Redis, and the "redis" of a configuration that goes through it."""
        proxy = Proxy(self.dir / "proxy.sock", self.redis.path)
        self.addCleanup(proxy.close)
        return proxy, {**self.config["redis"], "url": f"unix://{proxy.path}?db=0"}

    def proxied_postgres(self):
        """The same for Postgres."""
        directory = self.dir / "pg"
        directory.mkdir()
        name = ".s.PGSQL.5432"
        proxy = Proxy(directory / name, self.postgres.directory / name)
        self.addCleanup(proxy.close)
        return proxy, {"url": self.postgres.url(self.database, directory=directory)}

    def flusher_killed(self, proxy, when, before, config, *args):
        """kill -9 of a flusher, right before or right after a request through the proxy."""
        flusher = self.track(Process(f"killed{len(self.processes)}", self.dir, [FLUSHER, "-c", config, *args]))
        proxy.hold(when, lambda: flusher.signal(signal.SIGKILL), before)
        flusher.spawn()
        self.assertEqual(flusher.wait(), -signal.SIGKILL, f"the step was not seen\n{flusher.tail()}")
        proxy.wait_released()

    @contextlib.contextmanager
    def flushers_that_die(self, config, seed):
        """Meanwhile flushers run, one after the other, each only for a random part of what it needs."""
        over, dice = threading.Event(), random.Random(seed)

        def run():
            while not over.is_set():
                with subprocess.Popen([FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL) as flusher:
                    try:
                        flusher.wait(dice.uniform(0, 0.15))
                    except subprocess.TimeoutExpired:
                        flusher.kill()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def program(self, *argv, env=None, deadline_s=DEADLINE_S):
        """Runs a program to its end."""
        try:
            done = subprocess.run([str(arg) for arg in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, timeout=deadline_s, errors="replace",
                                  env={**os.environ, **(env or {})}, preexec_fn=die_with_parent(signal.SIGKILL))
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{argv} took longer than {deadline_s} s: {late.stderr}") from None
        self.assertIsNone(SANITIZER_REPORT.search(done.stderr), done.stderr)
        return Result(done.returncode, done.stdout, done.stderr)

    def flusher(self, *args, code=EXIT_OK, env=None, config=None):
        """Runs `flusher -c FILE args` and checks its exit code (None: any)."""
        path = config or self.write_config("flusher.json")
        done = self.program(FLUSHER, "-c", path, *args, env=env)
        if code is not None:
            self.assertEqual(done.code, code, f"flusher {shlex.join(args)}: {done}")
        return done

    def migrate(self):
        return self.flusher("migrate")

    def flush(self, *args, **options):
        return self.flusher("run", *args, **options)

    def query(self, sql):
        return self.postgres.query(sql, self.database)

    def counters(self, like="%"):
        """key -> value of the default target."""
        return {key: int(value) for key, value in
                self.query(f"select key, value from counterd.counters where key like '{like}'")}


class Replicated(Case):
    """Beside them a Redis with a replica, which is not started yet."""

    def setUp(self):
        super().setUp()
        port = free_port()
        self.primary = self.track(Redis(self.dir, "primary", tcp_port=port, settings=[
            "--repl-diskless-sync-delay", "0"])).start()
        self.replica = self.track(Redis(self.dir, "replica", settings=["--replicaof", "127.0.0.1", port]))

    def start_replica(self):
        self.replica.start()
        wait_until(lambda: self.primary.call("WAIT", 1, 100) == 1, what="the replica to follow")
