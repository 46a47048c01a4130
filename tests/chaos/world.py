"""world - the real programs and servers of a chaos run, bad networks between them, and everything that is done to them

    clients -> [http, tcp] -> counterd -> [redis] -> Redis <- [flusher-redis] <- flushers -> [flusher-pg] -> Postgres

Time passes in rounds: a storm of faults, then calm, in which all is mended, flushed, and compared. There are two kinds:
"crash", in which anything may die but Redis keeps its data, and "rollback", in which Redis comes back with earlier states
while counterd lives (it may be stopped for a while). In some rounds counterd has a spool_dir. Each key that a client counts
is fanned out to a copy in a table of the application's, which rolls up, and where at first only every second one has a row: the
others are parked, and retried. Only the main thread does harm and mends; flushers, auditor and
watcher are threads that run what they are named after, again and again.
"""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import harness
from clients import KEYS, Keyed, Late, Post, Sync, Udp
from network import BadNetwork
from oracle import Oracle

SHARDS = 6
PATIENCE_S = 180   # for what takes a second on an idle machine
EXIT_DATA = 65

FANOUT = [{"match": "{kind}.{n}", "also": ["{kind}.copy.{n}"]}]
TARGETS = [
    {"match": "{kind}.copy.{n}", "table": "copies", "value": "count", "touch": "seen",
     "rollup": {"table": "copy_seconds", "bucket": "1s"}},
    {"match": "sync.{n}", "table": "counterd.counters", "rollup": {"bucket": "10s"}},
    {"match": "*", "table": "counterd.counters"}]
TABLES = f"""
    create table copies (kind text, n int, count bigint not null default 0, seen timestamptz, primary key (kind, n));
    create table copy_seconds (kind text, n int, bucket timestamptz, count bigint not null, primary key (kind, n, bucket));
    insert into copies (kind, n) select kind, n from unnest(array['sync', 'post', 'udp', 'keyed', 'late']) kind,
        generate_series(0, {KEYS - 1}) n where n % 2 = 0"""
ROWS = """
    select key, sum(value) from (
        select key, value from counterd.counters union all
        select kind || '.copy.' || n, count from copies union all
        select key, delta from counterd.parked) everywhere group by key"""
# key, its row, what its buckets add up to
UNLIKE_THEIR_ROLLUPS = """
    select kind || '.copy.' || n, count, sum
        from copies left join (select kind, n, sum(count) from copy_seconds group by 1, 2) seconds using (kind, n)
        where count <> coalesce(sum, 0) union all
    select key, value, sum
        from counterd.counters left join (select key, sum(value) from counterd.rollups group by 1) buckets using (key)
        where key like 'sync.%' and value is distinct from sum"""


def with_copies(deltas):
    return {**deltas, **{key.replace(".", ".copy."): delta for key, delta in deltas.items()}}


class Wrong(Exception):
    """What the run is there to find."""


class HarshPostgres(harness.Postgres):
    def children(self):
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def signal_children(self, number, dice=None):
        """All of them, or one."""
        pids = self.children()
        for pid in [dice.choice(pids)] if dice and pids else pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_9(self):
        self.child.kill()
        self.wait()

    def restart(self):
        """The children of a postmaster that was killed may still hold its shared memory; they leave by themselves."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.start()
                return
            except AssertionError:
                if self.alive or time.monotonic() > end:
                    raise


class World:
    def __init__(self, directory, seed, log):
        self.dir, self.seed, self.log_file = Path(directory), seed, log
        self.dice = random.Random(f"{seed}")
        self.oracle = Oracle(with_copies)
        self.round = 0
        self.begin = time.monotonic()
        self.lock = threading.Lock()
        self.tallies = collections.Counter()
        self.over = threading.Event()          # everybody ends, come what may
        self.clients_done = threading.Event()  # clients begin nothing new
        self.calm = threading.Event()          # flushers and watchers end
        self.failures = []
        self.repairs = {}                      # component -> (when, how)
        self.snapshots = []
        self.counterds = 0
        self.counterd = None
        self.redis = harness.Redis(self.dir).start()
        self.postgres = HarshPostgres(self.dir).start()
        self.database = self.postgres.new_database()
        self.make_networks()
        self.direct = self.write_config("direct.json")
        self.troubled = self.write_config("troubled.json", redis=self.through("flusher-redis"), postgres={
            "url": self.postgres.url(self.database, directory=self.dir / "pg")})
        self.flusher("migrate")
        self.postgres.query(TABLES, self.database)
        self.spool = self.dir / "spool"
        self.spool.mkdir()
        self.spooling = False

    # --- the scene ---

    def make_networks(self):
        self.tcp, self.http = (
            BadNetwork(kind, lambda kind=kind: self.dial(kind), self.dice_of(kind), self.tally) for kind in ("tcp", "http"))
        (self.dir / "pg").mkdir()
        unix = {"redis": (self.dir / "redis.net", self.redis.path),
                "flusher-redis": (self.dir / "flusher-redis.net", self.redis.path),
                "flusher-pg": (self.dir / "pg" / ".s.PGSQL.5432", self.postgres.directory / ".s.PGSQL.5432")}
        self.networks = {"tcp": self.tcp, "http": self.http}
        for name, (path, upstream) in unix.items():
            def dial(upstream=upstream):
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(upstream))
                return server
            self.networks[name] = BadNetwork(name, dial, self.dice_of(name), self.tally, path)
        self.networks["flusher-pg"].precious = lambda request: b"COMMIT" in request

    def dice_of(self, name):
        return random.Random(f"{self.seed} {name}")

    def through(self, network):
        return {"url": f"unix://{self.networks[network].address}?db=0", "timeout_ms": 1000}

    def write_config(self, name, **changes):
        # A loopback address of our own: on the usual one, the port of a counterd that was killed may be given to another
        # test's, which would acknowledge what it gets.
        pid = os.getpid()
        own = f"127.{64 + pid // 65536 % 64}.{pid // 256 % 256}.{pid % 254 + 1}:0"
        config = {"shards": SHARDS, "targets": TARGETS,
                  "redis": {"url": self.redis.url, "timeout_ms": harness.REDIS_TIMEOUT_MS},
                  "fanout": FANOUT,
                  "listen": {"udp": [own], "tcp": [own], "http": own},
                  "postgres": {"url": self.postgres.url(self.database)}}
        path = self.dir / name
        path.write_text(json.dumps({**config, **changes}))
        return path

    def log(self, text):
        with self.lock:
            self.log_file.write(f"{time.monotonic() - self.begin:9.3f} {text}\n")

    def tally(self, what):
        self.log(what)
        with self.lock:
            self.tallies[what] += 1

    def wrong(self, text):
        """Any thread may find it; the main thread ends the run."""
        self.log(f"WRONG {text}")
        with self.lock:
            self.failures.append(text)
        self.over.set()

    # --- counterd ---

    def start_counterd(self):
        self.counterds += 1
        name = f"counterd{self.counterds}"
        self.settings = {"redis": self.through("redis"), "workers": self.dice.choice((1, 1, 2)),
                         "spool_dir": str(self.spool) if self.spooling else ""}
        path = self.write_config(f"{name}.json", **self.settings, coalesce_ms=self.dice.choice((2, 10, 50)))
        self.counterd = harness.Counterd(self.dir, path, name).start("listening")
        self.log(f"{name} starts")
        for old in (f"counterd{self.counterds - 20}{suffix}" for suffix in (".log", ".json")):
            (self.dir / old).unlink(missing_ok=True)

    def address(self, kind):
        """None: not listening."""
        try:
            return self.counterd.address(kind) if self.counterd.alive else None
        except AssertionError:
            return None

    def dial(self, kind):
        address = self.address(kind)
        if address is None:
            raise ConnectionRefusedError
        return socket.create_connection(address, timeout=harness.DEADLINE_S)

    def end_counterd(self, codes):
        """SIGTERM, and what must come of it."""
        self.counterd.signal(signal.SIGTERM)
        code = self.counterd.wait(PATIENCE_S)
        self.log(f"{self.counterd.name} exits {code}")
        if code not in codes:
            self.wrong(f"{self.counterd.name} exited with {code}\n{self.counterd.tail()}")
        self.check_log(self.counterd)
        return code

    def check_log(self, process):
        log = process.log()
        if harness.SANITIZER_REPORT.search(log) or "Assertion" in log:
            self.wrong(process.tail(80))

    # --- flushers and those who watch ---

    def flusher(self, *words, config=None, codes=(0,), patience_s=PATIENCE_S):
        """(exit code, output) of a run to its end."""
        done = subprocess.run([harness.FLUSHER, "-c", config or self.direct, *words], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=patience_s)
        if codes and done.returncode not in codes:
            self.wrong(f"flusher {' '.join(words)} exited with {done.returncode}: {done.stdout}{done.stderr}")
        return done.returncode, done.stdout

    def harry_flushers(self, number):
        """Flushes again and again, and kills or stops some of the flushers; one of the threads prefers --every."""
        dice = random.Random(f"{self.seed} {self.round} flusher {number}")
        errors = self.dir / f"flusher.{number}.err"
        while not self.calm.is_set():
            stays = number == 0 and dice.random() < 0.7
            words = ["--every", "1"] if stays else dice.choice((["run"], ["run"], ["parked", "retry"]))
            with open(errors, "w") as log:
                child = subprocess.Popen([harness.FLUSHER, "-c", self.troubled, *words], stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=log)
            ended = self.harry(child, dice, stays)
            text = errors.read_text()
            self.log(f"flusher.{number} {' '.join(words)} exits {child.returncode}")
            if child.returncode not in (0, 69, 75, *ended) or harness.SANITIZER_REPORT.search(text):
                self.wrong(f"a flusher exited with {child.returncode}: {text}")
            self.calm.wait(dice.uniform(0, 0.3))

    def harry(self, child, dice, stays):
        """Waits for its end, or brings it about; the exit codes that this makes right, too."""
        fate = dice.random()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(dice.uniform(0.5, 4) if stays else dice.uniform(0, 0.1) if fate < 0.5 else 2)
            return ()
        if fate < 0.35:
            self.tally("flusher.kill")
            child.kill()
            child.wait()
            return (-signal.SIGKILL,)
        if fate < 0.5:
            self.tally("flusher.stop")
            child.send_signal(signal.SIGSTOP)
            self.calm.wait(dice.uniform(0, 2))
            child.send_signal(signal.SIGCONT)
        if stays:
            child.terminate()
        # One that waits for a lock or an answer may be late; in calm it must end.
        end = time.monotonic() + PATIENCE_S
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if child.poll() is None:
            self.wrong("a flusher does not come to an end")
            child.kill()
            child.wait()
        return (-signal.SIGTERM,) if stays else ()  # it may come before its handler is there

    def rows(self):
        return {key: int(value) for key, value in self.postgres.query(ROWS, self.database)}

    def watch(self):
        """At no moment a row has more than was sent, and no audit finds anything lost or doubled."""
        while not self.calm.wait(0.5):
            code, out = self.flusher("audit", "--json", codes=None)
            with self.lock:
                self.tallies[f"audit exits {code}"] += 1
            if code not in (0, 69, 75):
                self.wrong(f"audit exited with {code}: {out}")
            try:
                excess = self.oracle.excess(self.rows())
            except AssertionError:  # no Postgres at the moment
                continue
            for key, row in excess.items():
                self.wrong(f"{key}: row {row} is more than was ever sent")

    # --- faults: each does harm, and says how it is mended and after how many seconds at most ---

    def redis_kill(self):
        self.redis.kill()
        return self.redis.start, 1.5

    def redis_stop(self):
        self.redis.signal(signal.SIGSTOP)
        return lambda: self.redis.signal(signal.SIGCONT), 2

    def redis_snapshot(self):
        """Harmless: what is on disk at a moment, for a later rollback."""
        self.snapshots.append(self.redis.backup())
        return None, 0

    def redis_rollback(self):
        if not self.snapshots:
            return self.redis_snapshot()
        self.redis.restore(self.dice.choice(self.snapshots))
        return self.redis.start, 0.5

    def postgres_crash(self):
        self.postgres.kill()
        return self.postgres.restart, 1.5

    def postgres_kill(self):
        self.postgres.kill_9()
        return self.postgres.restart, 1.5

    def backend_kill(self):
        """One of its processes: it throws all sessions out and recovers."""
        self.postgres.signal_children(signal.SIGKILL, self.dice)
        return None, 0

    def backends_stop(self):
        self.postgres.signal_children(signal.SIGSTOP)
        return lambda: self.postgres.signal_children(signal.SIGCONT), 2

    def counterd_kill(self):
        self.counterd.kill()
        self.check_log(self.counterd)
        return self.start_counterd, 0.5

    def counterd_stop(self):
        self.counterd.signal(signal.SIGSTOP)
        return lambda: self.counterd.signal(signal.SIGCONT), 2

    def counterd_restart(self):
        self.end_counterd((0, 75))
        return self.start_counterd, 0.2

    def counterd_reload(self):
        """Other targets, so that all that is derived from them is made anew, but what the clients' keys mean stays."""
        more = [{"match": f"unused.{n}.{{key}}", "table": "unused", "value": "n"} for n in range(self.dice.randrange(4))]
        self.write_config(f"{self.counterd.name}.json", **self.settings, targets=more + TARGETS,
                          coalesce_ms=self.dice.choice((2, 10, 50)))
        self.counterd.signal(signal.SIGHUP)
        return None, 0

    def redis_full(self):
        self.redis.call("CONFIG", "SET", "maxmemory", "1")
        return lambda: self.redis.call("CONFIG", "SET", "maxmemory", "0"), 2

    def rows_come(self):
        """Those of some keys that were parked until now."""
        kind, begin = self.dice.choice(("sync", "post", "udp", "keyed", "late")), self.dice.randrange(KEYS)
        with contextlib.suppress(AssertionError):  # no Postgres at the moment
            self.postgres.query(f"insert into copies (kind, n) select '{kind}', n from generate_series({begin}, {begin + 3}) n"
                                " on conflict do nothing", self.database)
        return None, 0

    def network_storm(self):
        network = self.dice.choice(list(self.networks.values()))
        self.log(f"storm over {network.name}")
        network.storm(self.dice.choice((0.01, 0.05, 0.2)))
        return lambda: network.storm(0.01), 3

    CRASH = {"redis": (redis_kill, redis_stop, redis_full),
             "counterd": (counterd_kill, counterd_kill, counterd_stop, counterd_restart, counterd_reload),
             "postgres": (postgres_crash, postgres_kill, backend_kill, backends_stop, rows_come), "network": (network_storm,)}
    ROLLBACK = {"redis": (redis_snapshot, redis_snapshot, redis_rollback, redis_kill, redis_stop),
                "counterd": (counterd_stop, counterd_reload), "postgres": CRASH["postgres"], "network": (network_storm,)}

    def do_harm(self, faults):
        component = self.dice.choice(sorted(set(faults) - set(self.repairs)) or [None])
        if component is None:
            return
        fault = self.dice.choice(faults[component])
        self.tally(fault.__name__)
        mend, most = fault(self)
        if mend:
            self.repairs[component] = (time.monotonic() + self.dice.uniform(0, most), mend)

    def mend(self, all_of_it=False):
        for component, (when, how) in list(self.repairs.items()):
            if all_of_it or time.monotonic() >= when:
                del self.repairs[component]
                how()
                self.log(f"{component} mended")

    def check_alive(self):
        for component, process in (("redis", self.redis), ("postgres", self.postgres), ("counterd", self.counterd)):
            if component not in self.repairs and not process.alive:
                self.wrong(f"{component} died by itself, {process.child.returncode}\n{process.tail()}")

    # --- a round ---

    def play(self, kind, seconds, sabotage=None):
        """A round. Wrong: something is; the run is over."""
        self.round += 1
        self.spooling = self.dice.random() < 0.5
        self.log(f"round {self.round}: {kind}{', with a spool' if self.spooling else ''}")
        self.clients_done.clear()
        self.calm.clear()
        quarantined = self.quarantined()
        self.start_counterd()
        clients = [make(self, number) for make, numbers in self.cast(kind) for number in range(numbers)]
        threads = [threading.Thread(target=self.guard, args=(self.harry_flushers, n), daemon=True) for n in range(3)]
        threads.append(threading.Thread(target=self.guard, args=(self.watch,), daemon=True))
        for thread in clients + threads:
            thread.start()
        for network in self.networks.values():
            network.storm(0.01)
        self.storm(self.CRASH if kind == "crash" else self.ROLLBACK, seconds)
        self.heal(clients, threads)
        if kind == "crash" and self.quarantined() != quarantined:
            self.wrong("a generation went into quarantine although Redis kept its data")
        self.settle(sabotage)

    @staticmethod
    def cast(kind):
        return (Sync, 3), (Post, 2), (Udp, 1), (Keyed if kind == "crash" else Late, 3)

    def guard(self, function, *args):
        try:
            function(*args)
        except Exception as bug:
            self.wrong(f"{function.__name__}: {bug!r}")

    def storm(self, faults, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.over.is_set():
            self.mend()
            self.check_alive()
            self.do_harm(faults)
            self.over.wait(self.dice.uniform(0.02, 0.8))

    def heal(self, clients, threads):
        """Everything is up, everybody has finished."""
        self.mend(all_of_it=True)
        for network in self.networks.values():
            network.heal(lambda condition, what: harness.wait_until(condition, PATIENCE_S, what))
        self.log("calm")
        self.clients_done.set()
        self.calm.set()
        for thread in clients + threads:
            thread.join(PATIENCE_S)
            if thread.is_alive():
                self.wrong(f"{thread.name} does not come to an end")
        self.stop_if_wrong()

    def stop_if_wrong(self):
        if self.failures:
            raise Wrong

    def quarantined(self):
        return int(self.postgres.query("select count(*) from counterd.quarantine", self.database)[0][0])

    def settle(self, sabotage):
        """All that counts goes to Postgres, while counterd lives and once more when it has ended; then each key is compared."""
        harness.wait_until(lambda: self.counterd.status()["pending"] == 0, PATIENCE_S, "counterd has stored all")
        harness.wait_until(self.flush_to_the_end, PATIENCE_S, lambda: f"a balanced audit: {self.flusher('audit', codes=None)}")
        self.end_counterd((0,))
        self.flusher("run")
        if sabotage:
            sabotage(self)
        self.flusher("audit")
        rows = self.rows()
        for key, row, buckets in self.postgres.query(UNLIKE_THEIR_ROLLUPS, self.database):
            self.wrong(f"{key}: row {row}, its buckets {buckets}")
        for left in self.spool.glob("*/*.spool*"):
            self.wrong(f"{left} is left, though all is in Redis")
        for key, text in sorted(self.oracle.wrong(rows).items()):
            self.wrong("\n  ".join([f"{key}: {text}"] + self.oracle.story(key)))
        self.stop_if_wrong()
        self.oracle.rebase(rows)
        for path in self.snapshots:
            shutil.rmtree(path)
        self.snapshots.clear()

    def flush_to_the_end(self):
        """Whether Redis holds nothing, Postgres all, and what is in quarantine is evidence only (which is dropped): all of
        it was sent again, but for requests with an Idempotency-Key, which nobody sends again once they were answered."""
        code, _ = self.flusher("run", codes=(0, 75))
        for row in json.loads(self.flusher("quarantine", "list", "--json")[1])["quarantine"]:
            only_here = [writer["writer"] for writer in row["writers"] if writer["only_here"]]
            if all(writer.startswith("once:") for writer in only_here):
                self.flusher("quarantine", "drop", str(row["id"]))
        audit, _ = self.flusher("audit", codes=(0, 75))
        self.stop_if_wrong()
        return code == 0 and audit == 0 and not self.redis.pending()

    def close(self):
        """Nothing of ours runs afterwards."""
        self.over.set()
        self.clients_done.set()
        self.calm.set()
        for network in self.networks.values():
            network.calm.set()
            network.close()
        for process in (self.counterd, self.redis, self.postgres):
            if process is not None and process.alive:
                process.signal(signal.SIGCONT)
                process.kill()
