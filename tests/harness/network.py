"""network - what this machine has (IPv6, a free port), and a bad network between two programs: relays that cut, hold"""

import contextlib
import random
import select
import socket
import threading
from pathlib import Path

from .basics import DEADLINE_S


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def free_port():
    """A TCP port that was free a moment ago; for servers that can't be told to take any and say which. It is below
    those that the kernel gives to whoever asks for any."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(10000, end) if end > 20000 else 0))
            return probe.getsockname()[1]


class Relay:
    """Listens on the Unix socket `path`, or on a port of the loopback, and has each client served by a thread of its
    own."""

    def __init__(self, path=None):
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(str(path) if path else ("127.0.0.1", 0))
        self.listener.listen(128)
        self.address = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

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
            threading.Thread(target=self._serve_and_close, args=(client,), daemon=True).start()

    def _serve_and_close(self, client):
        with client, contextlib.suppress(OSError):
            self._serve(client)


class Proxy(Relay):
    """Passes bytes between a Unix socket of its own and another, and can interfere at one request:

        proxy.cut(when)          the request for which when(bytes) is true is passed on; when its answer comes, the
                                 connection is closed before a byte of it is passed: the server did it, the client can't
                                 know. swallow=True: not closed, the answer just never comes.
        proxy.hold(when, then)   with the answer withheld (before=True: the request), then() is called: to kill the
                                 client, say, or to let another one overtake it. After that the bytes go on their way;
                                 wait_released() returns when they have.
    """

    def __init__(self, path, upstream):
        self.path, self.upstream = Path(path), Path(upstream)
        self.times = 0  # left
        self.lost_replies = []
        super().__init__(path)

    def cut(self, when, times=1, swallow=False):
        self._arm("swallow" if swallow else "cut", when, times, None, False)

    def hold(self, when, then, before=False):
        self._arm("hold", when, 1, then, before)

    def _arm(self, mode, when, times, then, before):
        with self.lock:
            self.mode, self.when, self.times, self.then, self.before = mode, when, times, then, before
            self.released = threading.Event()

    def wait_released(self):
        if not self.released.wait(DEADLINE_S):
            raise AssertionError(f"what {self.path} holds did not go on its way within {DEADLINE_S} s")

    def _is_it(self, request):
        with self.lock:
            if self.times == 0 or not self.when(request):
                return False
            self.times -= 1
            return True

    def _release(self, side, data):
        try:
            self.then()
            side.sendall(data)
        finally:
            self.released.set()

    def _serve(self, client):
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self.upstream))
            caught = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if ready is client:
                        if caught or not self._is_it(data):
                            server.sendall(data)
                        elif self.before:
                            self._release(server, data)
                        else:
                            caught = True
                            server.sendall(data)
                    elif not caught:
                        client.sendall(data)
                    elif self.mode == "hold":
                        caught = False
                        self._release(client, data)
                    else:
                        self.lost_replies.append(data)
                        if self.mode == "cut":
                            return
