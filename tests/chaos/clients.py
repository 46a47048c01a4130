"""clients - who counts while everything breaks, each in a thread of its own, and tells the oracle

| client | acknowledged by | repeats | so its rows are |
|---|---|---|---|
| keyed | 200, by Idempotency-Key | until it is | exactly what it sent |
| late  | the same, while Redis goes back in time: then Redis may forget it for good | until it is | at most what it sent |
| sync  | SYNCED                  | never       | between acknowledged and sent |
| post  | 200                     | never       | between acknowledged and sent |
| udp   | nothing                 | never       | at most what it sent |
"""

import http.client
import random
import socket
import threading
import traceback

KEYS = 40        # of each kind, shared by its clients
TIMEOUT_S = 3    # for an answer, while all is broken; longer than redis.timeout_ms


class Unanswered(Exception):
    """Whether it counts is unknown."""


class Client(threading.Thread):
    def __init__(self, world, number):
        name = f"{type(self).__name__.lower()}.{number}"
        super().__init__(name=name, daemon=True)
        self.world, self.oracle = world, world.oracle
        self.dice = random.Random(f"{world.seed} {world.round} {name}")
        self.batches = 0

    def deltas(self):
        kind = self.name.split(".")[0]
        return {f"{kind}.{key}": self.dice.randrange(1, 9)
                for key in self.dice.sample(range(KEYS), self.dice.randrange(1, 12))}

    def run(self):
        try:
            while not self.world.clients_done.is_set():
                self.batches += 1
                self.batch(f"{self.world.seed}-{self.world.round}-{self.name}-{self.batches}", self.deltas())
                self.world.clients_done.wait(self.dice.uniform(0, 0.04))
            self.end()
        except Exception:
            self.world.wrong(f"{self.name}: {traceback.format_exc()}")

    def end(self):
        pass

    @staticmethod
    def lines(deltas):
        return b"".join(b"%s:%d|c\n" % (key.encode(), delta) for key, delta in deltas.items())


class Post(Client):
    def post(self, deltas, headers):
        """The code of the answer."""
        connection = http.client.HTTPConnection(*self.world.http.address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", "/v1/increments", self.lines(deltas), headers)
            reply = connection.getresponse()
            reply.read()
            return reply.status
        except (OSError, http.client.HTTPException) as broken:
            raise Unanswered(repr(broken)) from None
        finally:
            connection.close()

    def batch(self, name, deltas):
        self.oracle.send(self.name, name, deltas)
        try:
            code = self.post(deltas, {})
        except Unanswered as why:
            self.oracle.give_up(self.name, name, deltas, why)
            return
        if code == 200:
            self.oracle.acknowledge(self.name, name, deltas)
        elif code in (429, 503):
            self.oracle.give_up(self.name, name, deltas, code)
        else:
            raise AssertionError(f"{name}: answered {code}")


class Keyed(Post):
    def acknowledge(self, name, deltas):
        self.oracle.acknowledge(self.name, name, deltas)

    def batch(self, name, deltas):
        self.oracle.send(self.name, name, deltas)
        while not self.world.over.is_set():
            try:
                code = self.post(deltas, {"Idempotency-Key": name})
            except Unanswered as why:
                code = why
            if code == 200:
                self.acknowledge(name, deltas)
                return
            if isinstance(code, int) and code not in (429, 503):
                raise AssertionError(f"{name}: answered {code}")
            self.oracle.give_up(self.name, f"{name} for now", deltas, code)
            self.world.over.wait(self.dice.uniform(0.01, 0.2))
        raise AssertionError(f"{name} was never acknowledged")


class Late(Keyed):
    def acknowledge(self, name, deltas):
        """Nobody has it in a history."""
        self.oracle.give_up(self.name, name, deltas, "200")


class Sync(Client):
    stream = answers = None

    def connect(self):
        """Before anything is counted, so that what meets a daemon that is away does not count as sent: the less is in
        doubt, the more a wrong row shows."""
        try:
            self.stream = socket.create_connection(self.world.tcp.address, timeout=TIMEOUT_S)
            self.answers = self.stream.makefile("rb")
            self.stream.sendall(b"SYNC up\n")
            if self.answers.readline() == b"SYNCED up\n":
                return True
        except OSError:
            pass
        self.end()
        return False

    def batch(self, name, deltas):
        if self.stream is None and not self.connect():
            return
        self.oracle.send(self.name, name, deltas)
        try:
            self.stream.sendall(self.lines(deltas) + b"SYNC %s\n" % name.encode())
            answer = self.answers.readline()
        except OSError as broken:
            answer = repr(broken)
        if answer == b"SYNCED %s\n" % name.encode():
            self.oracle.acknowledge(self.name, name, deltas)
            return
        self.oracle.give_up(self.name, name, deltas, answer)
        self.end()

    def end(self):
        for file in (self.answers, self.stream):
            if file is not None:
                file.close()
        self.stream = self.answers = None


class Udp(Client):
    def batch(self, name, deltas):
        address = self.world.address("udp")
        if address is None:
            return
        self.oracle.send(self.name, name, deltas)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(self.lines(deltas), address)
