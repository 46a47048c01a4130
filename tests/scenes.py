"""scenes - bad days to look at: each method brings one about with real programs and gives the counterd that lives it

What takes minutes in life is brought about by setting times in Redis back: counterd takes all ages from there.
"""

import random
import resource
import signal
import socket
import threading
import time

import harness
from harness import wait_until

HOSTILE = ["<script>document.title='owned'</script>:1|g", "<img src=x onerror=alert(1)>:x|c", "\"'&lt;\\:1|ms"]
LATE_MS = 600_000


class Traffic:
    """Lines that keep coming, some of them junk, until stop()."""

    def __init__(self, counterd, lines_per_s=2000, junk=0.0):
        self.target, self.lines_per_s, self.junk = counterd.address("udp"), lines_per_s, junk
        self.lines = 0  # sent
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        dice = random.Random(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            turn = 0
            while not self.ended.wait(0.02):
                turn += 1
                wave = 1 + 0.4 * abs((turn % 700) / 350 - 1) + dice.uniform(-0.15, 0.15)
                lines = [dice.choice(HOSTILE) if dice.random() < self.junk else
                         f"page.{int(dice.paretovariate(0.7)) % 400}:1|c"
                         for _ in range(int(self.lines_per_s * 0.02 * wave))]
                for payload in harness.datagrams(lines):
                    sender.sendto(payload, self.target)
                self.lines += len(lines)

    def stop(self):
        self.ended.set()
        self.thread.join()


class Scene(harness.Case):
    def tearDown(self):
        for traffic in getattr(self, "traffic", []):
            traffic.stop()
        super().tearDown()

    def send_on(self, counterd, **options):
        self.traffic = [*getattr(self, "traffic", []), Traffic(counterd, **options)]

    def running(self, **changes):
        self.migrate()
        return self.ready(**changes)

    def warned(self, counterd, code):
        """Its status, once it warns of that."""
        def check():
            status = counterd.status()
            return status if code in [warning["code"] for warning in status["warnings"]] else None
        return wait_until(check, what=lambda: f"warning {code}; there are {counterd.status()['warnings']}")

    def stored(self, counterd, lines=("page.home:1|c", "page.about:1|c", "api.acme.calls:3|c")):
        """Some lines, all in Redis."""
        before = counterd.status()["appended"]["increments"]
        counterd.send_udp(lines)
        wait_until(lambda: counterd.status()["appended"]["increments"] >= before + len(lines), what="lines in Redis")

    def set_back(self, field, ms=LATE_MS):
        """As if what the field tells had happened so long ago."""
        for key in self.redis.call("KEYS", "{counterd:*}:meta"):
            at = self.redis.call("HGET", key, field)
            if at:
                self.redis.call("HSET", key, field, int(at) - ms)

    def healthy(self):
        counterd = self.running()
        self.stored(counterd)
        self.flush()
        self.send_on(counterd, junk=0.002)
        wait_until(lambda: counterd.status()["accepted"] > 1000, what="traffic")
        wait_until(lambda: counterd.status()["in_redis"].get("last_flush_ms_ago") is not None, what="a flush seen")
        return counterd

    def redis_stopped(self):
        counterd = self.running()
        self.stored(counterd)
        self.redis.stop()
        self.send_on(counterd)
        self.warned(counterd, "redis_away")
        return counterd

    def redis_full(self):
        counterd = self.running()
        self.stored(counterd)
        self.redis.call("CONFIG", "SET", "maxmemory", "1000000")
        self.send_on(counterd)
        self.warned(counterd, "redis_full")
        return counterd

    def redis_misfit(self):
        """Somebody sets a password that counterd does not have."""
        counterd = self.running()
        self.redis.call("CONFIG", "SET", "requirepass", "new")
        self.redis.password = "new"
        self.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.warned(counterd, "redis_misfit")
        return counterd

    def spooling(self, **changes):
        """Redis is away, and there is a disk."""
        directory = self.dir / "spool"
        directory.mkdir()
        counterd = self.running(spool_dir=str(directory), **changes)
        self.stored(counterd)
        self.redis.stop()
        self.send_on(counterd)
        wait_until(lambda: counterd.status()["spool"]["waiting"] > 0, what="increments on disk")
        return counterd

    def spool_filling(self):
        counterd = self.spooling(spool_bytes=1048576)
        self.traffic.pop().stop()  # it would fill the rest
        for payload in range(40):
            before = counterd.status()["spool"]
            if before["bytes"] > before["bytes_max"] * 0.87:
                break
            counterd.send_udp([f"session.{payload}.{n}.{'x' * 80}:1|c" for n in range(400)])
            wait_until(lambda: counterd.status()["spool"]["batches"] >= before["batches"] + 8, what="more on disk")
        self.warned(counterd, "spool_nearly_full")
        return counterd

    def disk_full(self):
        """The kernel says no, here by a limit on file sizes."""
        counterd = self.spooling()
        _, hard = resource.prlimit(counterd.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(counterd.pid, resource.RLIMIT_FSIZE, (4096, hard))
        self.warned(counterd, "spool_failed")
        return counterd

    def postgres_stopped(self):
        counterd = self.running()
        self.stored(counterd)
        self.postgres.stop()
        self.addCleanup(harness.postgres)
        self.flush(code=harness.EXIT_UNAVAILABLE)
        self.set_back("opened_ms")
        self.warned(counterd, "flush_overdue")
        return counterd

    def no_cron(self):
        """Nobody runs flusher."""
        counterd = self.running()
        self.stored(counterd)
        self.flush()
        self.set_back("last_release_ms")
        self.stored(counterd, [f"page.{n}:{n}|c" for n in range(1, 400)])
        self.set_back("opened_ms")
        self.warned(counterd, "flush_overdue")
        return counterd

    def flusher_stuck(self):
        """One that has sealed, and hangs."""
        counterd = self.running()
        self.stored(counterd, [f"page.{n}:{n}|c" for n in range(1, 100)])
        for shard in range(self.config["shards"]):
            self.redis.seal(shard, f"{shard:026}")
        self.set_back("sealed_ms")
        self.set_back("sealed_opened_ms")
        self.stored(counterd)
        self.warned(counterd, "flush_stuck")
        return counterd

    def junk_flooding(self):
        counterd = self.running()
        self.send_on(counterd, junk=0.6)
        self.warned(counterd, "junk")
        return counterd

    def kernel_dropping(self):
        counterd = self.running(listen={"udp": ["127.0.0.1:0"], "tcp": [], "http": "127.0.0.1:0",
                                        "buffer_bytes": 8192})
        counterd.signal(signal.SIGSTOP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(3000):
                sender.sendto(b"flood:1|c", counterd.address("udp"))
        counterd.signal(signal.SIGCONT)
        self.send_on(counterd, lines_per_s=500)
        self.warned(counterd, "kernel_dropping")
        return counterd

    def keys_over_limit(self):
        counterd = self.running(keys_max=1000)
        for _ in range(3):
            counterd.signal(signal.SIGSTOP)  # so that all of it is there at once
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for payload in harness.datagrams(f"session.{n}:1|c" for n in range(3000)):
                    sender.sendto(payload, counterd.address("udp"))
            counterd.signal(signal.SIGCONT)
        self.send_on(counterd)
        self.warned(counterd, "keys_over_limit")
        return counterd

    def redis_went_back(self):
        counterd = self.running()
        self.stored(counterd)
        self.redis.call("FLUSHALL")
        self.stored(counterd)
        self.warned(counterd, "redis_went_back")
        return counterd

    def increments_lost(self):
        """Redis forgets, and so has the history."""
        counterd = self.running(history_bytes=0)
        self.stored(counterd)
        self.redis.call("FLUSHALL")
        self.stored(counterd)
        self.warned(counterd, "increments_lost")
        return counterd

    def history_full(self):
        counterd = self.running(history_bytes=4096)
        self.stored(counterd, [f"some.rather.long.key.{n}:1|c" for n in range(500)])
        self.warned(counterd, "history_full")
        return counterd

    def stopping(self):
        """Told to stop, with increments that Redis does not take now."""
        counterd = self.running()
        self.stored(counterd)
        self.redis.signal(signal.SIGSTOP)
        counterd.send_udp(["late:1|c"] * 10)
        counterd.signal(signal.SIGTERM)
        self.warned(counterd, "stopping")
        return counterd

    @staticmethod
    def pause(seconds):
        """For pictures only: lets traffic go on for a while."""
        time.sleep(seconds)
