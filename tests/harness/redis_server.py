"""redis_server - a Redis of the test's own, and a client that speaks to it"""

import collections
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from .basics import DEADLINE_S, ROOT, as_bytes
from .processes import Server


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
            raw = as_bytes(arg)
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


SHARD_KEYS = ("open", "sealed", "meta", "writers", "durable", "open_seqs", "sealed_seqs")


def shard_keys(shard):
    return [f"{{counterd:{shard}}}:{name}" for name in SHARD_KEYS]


PENDING = """
local found = {}
for _, name in ipairs({'open', 'sealed'}) do
    for _, key in ipairs(redis.call('KEYS', ARGV[1] .. name)) do
        for _, part in ipairs(redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')) do
            found[#found + 1] = part
        end
    end
end
return found
"""


class Redis(Server):
    """A private redis-server: Unix socket only (unless a test is about TCP), and every write in its file before it is
    acknowledged, so that it may be killed."""

    def __init__(self, directory, name="redis", password=None, tcp_port=0, settings=()):
        self.directory = Path(directory) / name
        self.directory.mkdir()
        self.path = self.directory / "redis.sock"
        self.password, self.tcp_port = password, tcp_port
        argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(tcp_port), "--unixsocket", self.path,
                "--unixsocketperm", "700", "--dir", self.directory, "--save", "", "--appendonly", "yes",
                "--appendfsync", "no", "--maxmemory-policy", "noeviction"]
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
        return super().start()

    def _cut_torn_tail(self):
        """As docs/operations.md has it for a Redis that was killed while it wrote: with aof-load-truncated Redis cuts
        its file within the transaction that it was writing, and what is left of that comes alive at the start after the
        next (valkey-io/valkey#4342)."""
        manifest = self.directory / "appendonlydir" / "appendonly.aof.manifest"
        if manifest.exists():
            subprocess.run(["redis-check-aof", "--fix", manifest], input="y\n", text=True, stdout=subprocess.DEVNULL)

    def _answers(self):
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
        """member -> score over all shards, open and sealed, at one moment: what no flush has taken away yet."""
        total = collections.Counter()
        reply = self.call("EVAL", PENDING, 0, f"{{{namespace}:*}}:")
        for member, score in zip(reply[::2], reply[1::2]):
            total[member.decode()] += int(float(score))
        return dict(total)

    def script(self, name, shard, *args):
        """One of lib/scripts, called as counterd and the flusher do."""
        text = (ROOT / "lib" / "scripts" / f"{name}.lua").read_text()
        return self.call("EVAL", text, len(SHARD_KEYS), *shard_keys(shard), *args)

    def seal(self, shard, gen):
        """What a flusher does that dies right after it."""
        return self.script("seal", shard, gen)

    def endless_script(self):
        """Returns when SCRIPT KILL has come."""
        client = RespClient(self.path, self.password)
        with contextlib.suppress(RedisError):
            client.call("EVAL", "while true do end", 0)
        client.close()

    def is_busy(self):
        try:
            self.call("PING")
        except RedisError as error:
            return str(error).startswith("BUSY")
        return False

    def backup(self):
        """What it has on disk at this moment, while it goes on; for restore()."""
        path = self.directory.parent / f"{self.name}.{time.monotonic_ns()}"
        self.signal(signal.SIGSTOP)
        shutil.copytree(self.directory / "appendonlydir", path)
        self.signal(signal.SIGCONT)
        return path

    def restore(self, backup):
        """Dies, and is to start with an older state."""
        self.kill()
        data = self.directory / "appendonlydir"
        shutil.rmtree(data)
        shutil.copytree(backup, data)

    def roll_back(self, backup):
        self.restore(backup)
        self.start()

    def accepted(self):
        """The running total of all shards: every unit that was ever appended."""
        return sum(int(self.call("HGET", key, "accepted") or 0) for key in self.call("KEYS", "{counterd:*}:meta"))
