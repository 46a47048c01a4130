"""harness - real servers and the real programs in a scratch directory, all gone when the test ends

A test file is a Python unittest module that ends in `harness.main()`. Its cases derive from `Case`, which gives each
test a Redis of its own, a database of its own (in a Postgres shared by the file), a configuration, and helpers:

    class Pipeline(harness.Case):
        def test_a_line_becomes_a_row(self):
            self.migrate()
            counterd = self.counterd()
            counterd.send_udp(["page.home:1|c"])
            counterd.settle(1)
            self.flush()
            self.assertEqual(self.counters(), {"page.home": 1})

What keeps such tests honest, quick and free of collisions:
- every server listens on a Unix socket in the scratch directory, and counterd on ports that the kernel chose (port 0;
  the log tells which), so any number of test files can run at once, beside the machine's own services;
- nothing waits a fixed time: `wait_until` polls a condition up to a deadline, so a slow machine is slow, not red;
- every child gets PR_SET_PDEATHSIG, so none outlives the test, not even after kill -9;
- fsync is off in Postgres: no test here cuts the power, and kill -9 of a process does not need it.

Environment: COUNTERD_BUILD, the build directory (default: build/ beside tests/); COUNTERD_STRICT=1, a missing server
or program is a failure instead of a skip; COUNTERD_KEEP=1, scratch directories stay.
"""

import atexit
import collections
import contextlib
import ctypes
import json
import os
import pwd
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("COUNTERD_BUILD", ROOT / "build")).resolve()
COUNTERD = BUILD / "counterd" / "counterd"
FLUSHER = BUILD / "flusher" / "flusher"
SHARED = Path(os.environ.get("COUNTERD_SHARED", ROOT.parent / "shared"))

EXIT_OK, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_TEMPFAIL, EXIT_CONFIG = 0, 64, 69, 75, 78
EXIT_SKIPPED = 77  # what meson takes for "skipped"

DEADLINE_S = 30  # for what takes milliseconds; only a hang or a sanitizer on a busy machine comes near
DATAGRAM_BYTES = 1432  # what clients put into one datagram: an Ethernet frame's worth


def wait_until(condition, deadline_s=DEADLINE_S, what="condition"):
    """Polls until condition() is true and returns its value. `what` (text, or a function that gives it) says in the
    failure what was waited for."""
    end = time.monotonic() + deadline_s
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {deadline_s} s: {text} (last seen: {value!r})")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


# --- scratch directories -------------------------------------------------------------------------------------------

def scratch_dir(prefix="counterd-test-"):
    """A directory that is removed at exit. In /tmp, whatever TMPDIR says: a socket's path has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o711)  # Postgres runs as another user and must get through
    if os.environ.get("COUNTERD_KEEP") == "1":
        print(f"kept: {path}", file=sys.stderr)
    else:
        atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


# atexit runs after sys.exit but not after a deadly signal; meson ends a test that takes too long with SIGTERM.
for _signal in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_signal, lambda number, frame: sys.exit(128 + number))


# --- processes -----------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_running = []


def _die_with_parent(how):
    def in_child():
        _libc.prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    return in_child


@atexit.register
def _kill_all():
    for process in list(_running):
        process.kill()


_LOG_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def parse_log_line(line):
    """level=info event=x error="a \\"b\\"" -> dict"""
    return {name: value[1:-1].replace('\\"', '"') if value.startswith('"') else value
            for name, value in _LOG_FIELD.findall(line)}


class Process:
    """A child, with what it writes in a file; started by the constructor's caller with start()."""

    death_signal = signal.SIGKILL

    def __init__(self, name, directory, argv, user=None, env=None):
        self.name, self.argv, self.user, self.env = name, [str(arg) for arg in argv], user, env
        self.log_path = Path(directory) / f"{name}.log"
        self.child = None

    def spawn(self):
        with open(self.log_path, "ab") as log:
            self.child = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self.user,
                extra_groups=[] if self.user else None, env={**os.environ, **(self.env or {})},
                preexec_fn=_die_with_parent(self.death_signal))
        _running.append(self)
        return self

    @property
    def pid(self):
        return self.child.pid

    @property
    def alive(self):
        return self.child is not None and self.child.poll() is None

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, deadline_s=DEADLINE_S):
        """The exit code; a hang is a failure."""
        try:
            code = self.child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not exit within {deadline_s} s\n{self.tail()}") from None
        if self in _running:
            _running.remove(self)
        return code

    def stop(self, deadline_s=DEADLINE_S):
        """SIGTERM and the exit code that it led to."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self):
        """kill -9: what a crash looks like."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.kill()
            self.wait()

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def tail(self, lines=40):
        return "\n".join([f"--- {self.name}"] + self.log().splitlines()[-lines:])

    def events(self, event=None, **fields):
        """Log lines as dicts, those of one event and with the given fields."""
        wanted = {"event": event, **fields} if event else fields
        found = [parse_log_line(line) for line in self.log().splitlines()]
        return [line for line in found if all(line.get(name) == value for name, value in wanted.items())]

    def wait_event(self, event, count=1, deadline_s=DEADLINE_S, **fields):
        """Waits until the event stands in the log `count` times; gives the last of them."""
        def seen():
            found = self.events(event, **fields)
            if len(found) < count and not self.alive:
                raise AssertionError(f"{self.name} exited with {self.child.returncode} before event={event}\n"
                                     f"{self.tail()}")
            return found[-1] if len(found) >= count else None
        return wait_until(seen, deadline_s, lambda: f"event={event} {fields} from {self.name}\n{self.tail()}")


# --- Redis ---------------------------------------------------------------------------------------------------------

class RedisError(Exception):
    pass


class RespClient:
    """Speaks RESP2 over a Unix socket: call("GET", "key") -> bytes, int, None or a list of such."""

    def __init__(self, path, password=None):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.reader = self.socket.makefile("rb")
        if password:
            self.call("AUTH", password)

    def call(self, *args):
        return self.calls([args])[0]

    def calls(self, commands):
        """All of them in one go; the replies in their order."""
        self.socket.sendall(b"".join(map(self._request, commands)))
        return [self._reply() for _ in commands]

    @staticmethod
    def _request(args):
        request = [b"*%d\r\n" % len(args)]
        for arg in args:
            raw = arg if isinstance(arg, bytes) else str(arg).encode()
            request.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
        return b"".join(request)

    def _reply(self):
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.reader.read(size + 2)[:-2]
        return None if int(rest) < 0 else [self._reply() for _ in range(int(rest))]

    def close(self):
        self.reader.close()
        self.socket.close()


class Redis(Process):
    """A private redis-server: Unix socket only (unless a test is about TCP), and every acknowledged write on disk, so
    that it may be killed."""

    def __init__(self, directory, name="redis", password=None, tcp_port=0, settings=()):
        self.directory = Path(directory) / name
        self.directory.mkdir()
        self.path = self.directory / "redis.sock"
        self.password = password
        argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(tcp_port), "--unixsocket", self.path,
                "--unixsocketperm", "700", "--dir", self.directory, "--save", "", "--appendonly", "yes", "--appendfsync", "always",
                "--maxmemory-policy", "noeviction"]
        if password:
            argv += ["--requirepass", password]
        super().__init__(name, directory, argv + list(settings))
        self._client = None

    @property
    def url(self):
        return f"unix://{self.path}?db=0"

    def start(self, mend=True):
        if mend:
            self._cut_torn_tail()
        self.spawn()
        wait_until(self._answers, what=lambda: f"an answer from Redis\n{self.tail()}")
        return self

    def _cut_torn_tail(self):
        """As docs/operations.md has it for a Redis that was killed while it wrote: with aof-load-truncated Redis cuts its
        file within the transaction that it was writing, and what is left of that comes alive at the start after the next
        (valkey-io/valkey#4342)."""
        manifest = self.directory / "appendonlydir" / "appendonly.aof.manifest"
        if manifest.exists():
            subprocess.run(["redis-check-aof", "--fix", manifest], input="y\n", text=True, stdout=subprocess.DEVNULL)

    def _answers(self):
        if not self.alive:
            raise AssertionError(f"redis-server exited\n{self.tail()}")
        try:
            return self.call("PING") == b"PONG"
        except (OSError, RedisError):  # not listening yet; LOADING
            return False

    def call(self, *args):
        try:
            if self._client is None:
                self._client = RespClient(self.path, self.password)
            return self._client.call(*args)
        except OSError:
            self.forget_client()
            raise

    def forget_client(self):
        if self._client is not None:
            self._client.close()
            self._client = None

    def wait(self, deadline_s=DEADLINE_S):
        self.forget_client()
        return super().wait(deadline_s)

    def pending(self, namespace="counterd"):
        """member -> score over all shards, open and sealed: what no flush has taken away yet."""
        total = collections.Counter()
        for key in self.call("KEYS", f"{{{namespace}:*}}:open") + self.call("KEYS", f"{{{namespace}:*}}:sealed"):
            reply = self.call("ZRANGE", key, 0, -1, "WITHSCORES")
            for member, score in zip(reply[::2], reply[1::2]):
                total[member.decode()] += int(float(score))
        return dict(total)

    def accepted(self, namespace="counterd"):
        """The running total of all shards: every unit that was ever appended."""
        return sum(int(self.call("HGET", key, "accepted") or 0)
                   for key in self.call("KEYS", f"{{{namespace}:*}}:meta"))


def free_port():
    """A TCP port that was free a moment ago; for servers that can't be told to take any and say which."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- Postgres ------------------------------------------------------------------------------------------------------

def postgres_bin():
    """The directory of initdb and postgres, the newest version's, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    return Path(shutil.which("initdb")).parent if shutil.which("initdb") else None


def unprivileged_user():
    """Postgres refuses to run as root; then it is the user that its package made, or nobody."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("no user to run Postgres as")


class Postgres(Process):
    """A private cluster on a Unix socket. Anybody on the machine who gets to the socket is let in, but the role
    `locked` needs its password; tests of passwords use that."""

    death_signal = signal.SIGQUIT  # "immediate shutdown": it takes its own children along
    LOCKED_PASSWORD = "let me in"

    def __init__(self, directory, name="postgres"):
        self.directory = Path(directory) / name
        self.directory.mkdir()
        self.data = self.directory / "data"
        user = unprivileged_user()
        if user:
            shutil.chown(self.directory, user)
        self.initdb(user)
        settings = {"listen_addresses": "", "unix_socket_directories": self.directory,
                    "unix_socket_permissions": "0700", "fsync": "off", "full_page_writes": "off",
                    "shared_buffers": "32MB", "max_connections": "50", "autovacuum_naptime": "10min"}
        argv = [postgres_bin() / "postgres", "-D", self.data]
        for setting, value in settings.items():
            argv += ["-c", f"{setting}={value}"]
        super().__init__(name, directory, argv, user=user)
        self.databases = 0

    def initdb(self, user):
        subprocess.run([postgres_bin() / "initdb", "-N", "-D", self.data, "-A", "trust", "-U", "postgres", "-E",
                        "UTF8", "--no-locale", "--no-instructions"], check=True, user=user, cwd=self.directory,
                       extra_groups=[] if user else None, stdout=subprocess.DEVNULL)
        hba = self.data / "pg_hba.conf"
        hba.write_text("local all locked scram-sha-256\nlocal all all trust\n")

    def start(self):
        self.spawn()
        wait_until(self._answers, what=lambda: f"an answer from Postgres\n{self.tail()}")
        return self

    def _answers(self):
        if not self.alive:
            raise AssertionError(f"postgres exited\n{self.tail()}")
        return subprocess.run(["psql", "-X", "-c", "select 1", self.url("template1")], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0

    def stop(self, deadline_s=DEADLINE_S):
        """A fast shutdown: sessions are cut, nothing is lost."""
        if self.alive:
            self.signal(signal.SIGINT)
        return self.wait(deadline_s)

    def kill(self):
        """Not kill -9: that would leave shared memory behind. "Immediate" is a crash too."""
        if self.alive:
            self.signal(signal.SIGQUIT)
            self.wait()

    def url(self, database, user="postgres", directory=None):
        return f"host={directory or self.directory} dbname={database} user={user}"

    def new_database(self):
        self.databases += 1
        name = f"test_{self.databases}"
        self.query(f"create database {name}", "template1")
        return name

    def query(self, sql, database):
        """Rows as lists of text; NULL is ''."""
        done = subprocess.run(["psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url(database)],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise AssertionError(f"psql: {done.stderr}\n{sql}")
        return [line.split("\t") for line in done.stdout.splitlines()]


# One cluster for a whole test file: initdb takes half a second, a database 50 ms.
_postgres = None


def postgres():
    global _postgres
    if _postgres is None:
        _postgres = Postgres(scratch_dir("counterd-pg-")).start()
    elif not _postgres.alive:  # a test stopped it
        _postgres.start()
    return _postgres


# --- a bad network between two of them -----------------------------------------------------------------------------

class Proxy:
    """Passes bytes between a Unix socket of its own and another, and can interfere at one request:

        proxy.cut(when)          the request for which when(bytes) is true is passed on; when its answer comes, the
                                 connection is closed before a byte of it is passed: the server did it, the client can't
                                 know. swallow=True: not closed, the answer just never comes.
        proxy.hold(when, then)   with the answer withheld (before=True: the request), then() is called: to kill the
                                 client, say, or to let another one overtake it. After that the bytes go on their way.
    """

    def __init__(self, path, upstream):
        self.path, self.upstream = Path(path), Path(upstream)
        self.when = None
        self.times = 0  # left
        self.lost_replies = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, when, times=1, swallow=False):
        self.mode, self.then, self.before = "swallow" if swallow else "cut", None, False
        self.when, self.times = when, times

    def hold(self, when, then, before=False):
        self.mode, self.then, self.before = "hold", then, before
        self.when, self.times = when, 1

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _is_it(self, request):
        if self.times == 0 or not self.when(request):
            return False
        self.times -= 1
        return True

    def _serve(self, client):
        server = socket.socket(socket.AF_UNIX)
        with client, server, contextlib.suppress(OSError):
            server.connect(str(self.upstream))
            caught = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if ready is client:
                        if not caught and self._is_it(data):
                            caught = not self.before
                            if self.before:
                                self.then()
                        server.sendall(data)
                    elif not caught:
                        client.sendall(data)
                    elif self.mode == "hold":
                        caught = False
                        self.then()
                        client.sendall(data)
                    else:
                        self.lost_replies.append(data)
                        if self.mode == "cut":
                            return


# --- counterd ------------------------------------------------------------------------------------------------------

def datagrams(lines, size=DATAGRAM_BYTES):
    """Lines (text or bytes) packed as clients do: as many as fit into `size` bytes, joined by LF."""
    batch, length = [], 0
    for line in lines:
        raw = line if isinstance(line, bytes) else line.encode()
        if batch and length + 1 + len(raw) > size:
            yield b"\n".join(batch)
            batch, length = [], 0
        batch.append(raw)
        length += len(raw) + (1 if length else 0)
    if batch:
        yield b"\n".join(batch)


def host_port(address):
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Counterd(Process):
    def __init__(self, directory, config_path, name="counterd", env=None):
        super().__init__(name, directory, [COUNTERD, "-c", config_path], env=env)

    def start(self, event="ready"):
        """`event`: what to wait for in the log; None = nothing."""
        before = len(self.events(event)) if event else 0
        self.spawn()
        if event:
            self.wait_event(event, before + 1)
        return self

    def address(self, kind, index=0):
        """Where it really listens: (host, port), or a path; the configuration says port 0."""
        found = [line["address"] for line in self.events("listening", kind=kind)]
        if index >= len(found):
            raise AssertionError(f"counterd does not listen on {kind} {index}\n{self.tail()}")
        return found[index] if kind == "unix" else host_port(found[index])

    def http(self, path):
        """(status code, body)"""
        host, port = self.address("http")
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=DEADLINE_S) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self):
        return json.loads(self.http("/v1/status")[1])

    def send_datagrams(self, target, payloads, family=socket.AF_INET, in_flight=64):
        """Never more than `in_flight` datagrams ahead of what counterd says it has read, so that the kernel has room
        for all of them, however small a socket buffer it grants. Nobody else may send meanwhile."""
        sent = 0
        start = self.status()["received"]["datagrams"]
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            for payload in payloads:
                sender.sendto(payload, target)
                sent += 1
                if sent % in_flight == 0:
                    self._wait_read(start + sent)
        self._wait_read(start + sent)
        return sent

    def _wait_read(self, count):
        wait_until(lambda: self.status()["received"]["datagrams"] >= count,
                   what=lambda: f"{count} datagrams read; {self.status()}")

    def send_udp(self, lines, index=0):
        host, port = self.address("udp", index)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return self.send_datagrams((host, port), datagrams(lines), family)

    def send_unix(self, lines, index=0):
        return self.send_datagrams(self.address("unix", index), datagrams(lines), socket.AF_UNIX)

    def send_tcp(self, lines, last_lf=True):
        with socket.create_connection(self.address("tcp"), timeout=DEADLINE_S) as connection:
            raw = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
            connection.sendall(raw + b"\n" if last_lf else raw)

    def settle(self, lines, deadline_s=DEADLINE_S):
        """Waits until `lines` lines have come in since the start (accepted or not) and Redis has acknowledged all
        that counts; gives the status."""
        def settled():
            status = self.status()
            # The figures are not read at one moment: only when they add up does `pending` speak of all these lines.
            whole = status["received"]["lines"] == status["accepted"] + status["rejected"]["total"]
            return status if whole and status["received"]["lines"] >= lines and status["pending"] == 0 else None
        status = wait_until(settled, deadline_s, lambda: f"{lines} lines in Redis; status: {self.status()}")
        if status["received"]["lines"] != lines:
            raise AssertionError(f"{status['received']['lines']} lines came, {lines} were sent: {status}")
        return status

    @staticmethod
    def rejected(status):
        """reason -> lines, without those that did not occur."""
        return {reason: lines for reason, lines in status["rejected"].items() if lines and reason != "total"}


# --- the base of every test ----------------------------------------------------------------------------------------

SANITIZER_REPORT = re.compile(r"runtime error:|(Address|Leak|Thread|UndefinedBehavior)Sanitizer")

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
        if os.environ.get("COUNTERD_KEEP") != "1":
            self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.redis = self.track(Redis(self.dir)).start()
        self.postgres = postgres()
        self.database = self.postgres.new_database()
        self.config = {
            "shards": 8,
            "listen": {"udp": ["127.0.0.1:0"], "tcp": ["127.0.0.1:0"], "http": "127.0.0.1:0"},
            "coalesce_ms": 20,
            "redis": {"url": self.redis.url},
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
        path = self.dir / name
        path.write_text(json.dumps({**self.config, **changes}))
        return path

    def counterd(self, name="counterd", event="ready", env=None, **changes):
        """A running counterd with this test's configuration, with some keys changed."""
        path = self.write_config(f"{name}.json", **changes)
        return self.track(Counterd(self.dir, path, name, env)).start(event)

    def program(self, *argv, env=None, deadline_s=DEADLINE_S):
        """Runs a program to its end."""
        try:
            done = subprocess.run([str(arg) for arg in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, timeout=deadline_s, errors="replace",
                                  env={**os.environ, **(env or {})}, preexec_fn=_die_with_parent(signal.SIGKILL))
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{argv} took longer than {deadline_s} s: {late.stderr}") from None
        self.assertIsNone(SANITIZER_REPORT.search(done.stderr), done.stderr)
        return Result(done.returncode, done.stdout, done.stderr)

    def flusher(self, *args, code=EXIT_OK, env=None, config=None, deadline_s=DEADLINE_S):
        """Runs `flusher -c FILE args` and checks its exit code (None: any)."""
        path = config or self.write_config("flusher.json")
        done = self.program(FLUSHER, "-c", path, *args, env=env, deadline_s=deadline_s)
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


def missing():
    """What this machine lacks for these tests; '' when nothing."""
    for program in ("redis-server", "psql"):
        if shutil.which(program) is None:
            return f"no {program} here (tests/install-deps brings it)"
    if postgres_bin() is None:
        return "no Postgres server here (tests/install-deps brings it)"
    for program in (COUNTERD, FLUSHER):
        if not program.exists():
            return f"{program} is not built"
    return ""


def main():
    lack = missing()
    if lack:
        print(lack, file=sys.stderr)
        sys.exit(1 if os.environ.get("COUNTERD_STRICT") == "1" else EXIT_SKIPPED)
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    if result.wasSuccessful() and result.testsRun == len(result.skipped) and result.skipped:
        sys.exit(EXIT_SKIPPED)
    sys.exit(0 if result.wasSuccessful() else 1)
