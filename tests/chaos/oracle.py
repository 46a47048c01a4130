"""oracle - what each row in Postgres may be, by what clients sent and what was acknowledged

For every key: acknowledged <= row <= sent, once all is flushed; and row <= sent at any moment. A client that repeats until it
is answered leaves nothing that was sent and not acknowledged, so for its keys this is equality. Deltas are positive.
Thread-safe. Memory: a few numbers per key, and the last entries of its history since the last rebase().
"""

import collections
import threading
import time

HISTORY_MAX = 300


class Oracle:
    def __init__(self, effects=dict):
        """`effects`(deltas) is what these count as, other keys that they are fanned out to included."""
        self.effects = effects
        self.lock = threading.Lock()
        self.sent = collections.Counter()
        self.acknowledged = collections.Counter()
        self.increments = collections.Counter()  # by client, of all times
        self.history = {}
        self.begin = time.monotonic()

    def note(self, keys, text):
        entry = f"{time.monotonic() - self.begin:9.3f} {text}"
        for key in keys:
            self.history.setdefault(key, collections.deque(maxlen=HISTORY_MAX)).append(entry)

    def send(self, client, what, deltas):
        """To be called before a byte of it goes out."""
        with self.lock:
            self.increments[client.split(".")[0]] += len(deltas)
            deltas = self.effects(deltas)
            self.sent.update(deltas)
            for key, delta in deltas.items():
                self.note([key], f"{client} sends {what}: {delta}")

    def acknowledge(self, client, what, deltas):
        with self.lock:
            deltas = self.effects(deltas)
            self.acknowledged.update(deltas)
            self.note(deltas, f"{client} has {what} acknowledged")

    def give_up(self, client, what, deltas, why):
        with self.lock:
            self.note(self.effects(deltas), f"{client} gives {what} up: {why}")

    def excess(self, rows):
        """Keys that have more than was ever sent; `rows` was read before."""
        with self.lock:
            return {key: row for key, row in rows.items() if row > self.sent[key]}

    def wrong(self, rows):
        """key -> what is wrong with it; for when nothing is on its way any more."""
        with self.lock:
            wrong = {}
            for key in self.sent.keys() | rows.keys():
                row, low, high = rows.get(key, 0), self.acknowledged[key], self.sent[key]
                if row < low:
                    wrong[key] = f"row {row}, acknowledged {low}: {low - row} lost"
                elif row > high:
                    wrong[key] = f"row {row}, sent {high}: {row - high} too much"
            return wrong

    def rebase(self, rows):
        """What was in doubt has been decided: from here on the rows are what was sent and acknowledged."""
        with self.lock:
            self.sent = collections.Counter(rows)
            self.acknowledged = collections.Counter(rows)
            self.history.clear()

    def story(self, key):
        with self.lock:
            return list(self.history.get(key, ()))
