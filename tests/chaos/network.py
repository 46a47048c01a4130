"""network - a bad network before a server: passes bytes on, and now and then does what networks do to a request

| trouble  | the server gets | its client sees |
|---|---|---|
| refuse   | nothing                    | the connection closed as soon as it is made |
| before   | a part of it, or nothing   | the connection closed |
| after    | all of it                  | the connection closed instead of an answer |
| torn     | all of it                  | a part of the answer, then the connection closed |
| late     | all of it, after a while   | the connection closed, long before |
| silent   | all of it                  | nothing at all |
| slow     | all of it, after a while   | the answer |
"""

import select
import threading
import time

import harness

TROUBLES = ("refuse", "before", "after", "torn", "late", "silent", "slow")


class BadNetwork(harness.Relay):
    def __init__(self, name, dial, dice, tally, path=None):
        """Listens on the Unix socket `path`, or on a port of the loopback. dial() connects to the server, OSError when it
        can't. `tally`(name) counts what was done to whom."""
        self.name, self.dial, self.dice, self.tally = name, dial, dice, tally
        self.likely = 0.0           # how likely a request is to meet trouble
        self.precious = lambda request: False  # requests that meet it ten times as often
        self.calm = threading.Event()
        self.calm.set()
        self.troubled = 0           # requests that trouble is being made for
        super().__init__(path)

    def storm(self, likely):
        self.calm.clear()
        self.likely = likely

    def heal(self, wait_until):
        """No trouble from here on, and what was held back has arrived."""
        self.likely = 0.0
        self.calm.set()
        wait_until(lambda: self.troubled == 0, what=f"what {self.name} holds back")

    def _trouble(self, request):
        with self.lock:
            likely = min(0.3, self.likely * 10) if self.precious(request) else self.likely
            if self.calm.is_set() or self.dice.random() >= likely:
                return None
            return self.dice.choice(TROUBLES[1:])

    def _serve(self, client):
        with self.lock:
            refused = not self.calm.is_set() and self.dice.random() < self.likely
        if refused:
            self.tally(f"{self.name}.refuse")
            return
        with self.dial() as server:
            self._pass(client, server)

    def _pass(self, client, server):
        sides = {client: server, server: client}
        while True:
            for side in select.select(list(sides), [], [])[0]:
                data = side.recv(65536)
                if not data:
                    return
                trouble = self._trouble(data) if side is client else None
                if trouble is None:
                    sides[side].sendall(data)
                elif not self._make(trouble, client, server, data):
                    return

    def _make(self, trouble, client, server, request):
        """Whether the connection lives on."""
        self.tally(f"{self.name}.{trouble}")
        with self.lock:
            self.troubled += 1
            pause, share = self.dice.uniform(0, 1), self.dice.random()
        try:
            if trouble == "before":
                server.sendall(request[:int(len(request) * share)])
            elif trouble in ("after", "torn"):
                server.sendall(request)
                answer = server.recv(65536) if select.select([server], [], [], 2)[0] else b""
                client.sendall(answer[:int(len(answer) * share)] if trouble == "torn" else b"")
            elif trouble == "late":
                client.close()
                self.calm.wait(pause)
                server.sendall(request)
            elif trouble == "silent":
                server.sendall(request)
                self._swallow(client, server)
            else:
                self.calm.wait(pause)
                server.sendall(request)
                return True
            return False
        finally:
            with self.lock:
                self.troubled -= 1

    def _swallow(self, client, server):
        end = time.monotonic() + 5
        while not self.calm.is_set() and time.monotonic() < end:
            for side in select.select([client, server], [], [], 0.1)[0]:
                if not side.recv(65536):
                    return
