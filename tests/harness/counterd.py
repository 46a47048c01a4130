"""counterd - a running counterd: where it listens, what it says of itself, and how it is sent lines"""

import json
import socket
import urllib.error
import urllib.request

from .basics import COUNTERD, DEADLINE_S, as_bytes, wait_until
from .processes import Process

DATAGRAM_BYTES = 1432  # what clients put into one datagram: an Ethernet frame's worth


def datagrams(lines):
    """Lines (text or bytes) packed as clients do: as many as fit into DATAGRAM_BYTES, joined by LF."""
    batch, length = [], 0
    for line in lines:
        raw = as_bytes(line)
        if batch and length + 1 + len(raw) > DATAGRAM_BYTES:
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

    def send_unix(self, lines):
        return self.send_datagrams(self.address("unix"), datagrams(lines), socket.AF_UNIX)

    def send_tcp(self, lines, last_lf=True):
        with socket.create_connection(self.address("tcp"), timeout=DEADLINE_S) as connection:
            raw = b"\n".join(map(as_bytes, lines))
            connection.sendall(raw + b"\n" if last_lf else raw)

    def settle(self, lines):
        """Waits until `lines` lines have come in since the start (accepted or not) and Redis has acknowledged all
        that counts; gives the status."""
        def settled():
            status = self.status()
            # The figures are not read at one moment: only when they add up does `pending` speak of all these lines.
            whole = status["received"]["lines"] == status["accepted"] + status["rejected"]["total"]
            return status if whole and status["received"]["lines"] >= lines and status["pending"] == 0 else None
        status = wait_until(settled, what=lambda: f"{lines} lines in Redis; status: {self.status()}")
        if status["received"]["lines"] != lines:
            raise AssertionError(f"{status['received']['lines']} lines came, {lines} were sent: {status}")
        return status

    @staticmethod
    def rejected(status):
        """reason -> lines, without those that did not occur."""
        return {reason: lines for reason, lines in status["rejected"].items() if lines and reason != "total"}
