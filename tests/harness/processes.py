"""processes - children whose log is read, and none of which outlives the test"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import subprocess
from pathlib import Path

from .basics import DEADLINE_S, wait_until

SANITIZER_REPORT = re.compile(r"runtime error:|(Address|Leak|Thread|UndefinedBehavior)Sanitizer")

_LOG_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def parse_log_line(line):
    """level=info event=x error="a \\"b\\"" -> dict"""
    return {name: value[1:-1].replace('\\"', '"') if value.startswith('"') else value
            for name, value in _LOG_FIELD.findall(line)}


_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_running = []


def die_with_parent(how):
    """For Popen's preexec_fn: the child gets the signal `how` when this process ends."""
    def in_child():
        _libc.prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    return in_child


@atexit.register
def _kill_all():
    for process in list(_running):
        process.kill()


class Process:
    """A child, with what it writes in a file. The constructor starts nothing: spawn() does, or a subclass's start(),
    which waits until it is of use."""

    death_signal = signal.SIGKILL
    pass_fds = ()  # what it inherits beside stdin, stdout, stderr

    def __init__(self, name, directory, argv, user=None, env=None):
        self.name, self.argv, self.user, self.env = name, [str(arg) for arg in argv], user, env
        self.log_path = Path(directory) / f"{name}.log"
        self.child = None

    def spawn(self):
        with open(self.log_path, "ab") as log:
            self.child = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self.user,
                extra_groups=[] if self.user else None, env={**os.environ, **(self.env or {})},
                pass_fds=self.pass_fds, preexec_fn=die_with_parent(self.death_signal))
        _running.append(self)
        return self

    @property
    def pid(self):
        return self.child.pid

    @property
    def alive(self):
        return self.child is not None and self.child.poll() is None

    def signal(self, number):
        """Also from a thread that is faster than the one that spawns it."""
        wait_until(lambda: self.child, what=f"{self.name} to be spawned")
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

    def stop(self):
        """SIGTERM and the exit code that it led to."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait()

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
        """Log lines as dicts, those of one event and with the given fields; not one that is being written."""
        wanted = {"event": event, **fields} if event else fields
        found = [parse_log_line(line) for line in self.log().split("\n")[:-1]]
        return [line for line in found if all(line.get(name) == value for name, value in wanted.items())]

    def wait_event(self, event, count=1, deadline_s=DEADLINE_S, **fields):
        """Waits until the event stands in the log `count` times; gives the last of them."""
        def seen():
            alive = self.alive  # before the look: the last line may be the one
            found = self.events(event, **fields)
            if len(found) < count and not alive:
                raise AssertionError(f"{self.name} exited with {self.child.returncode} before event={event}\n"
                                     f"{self.tail()}")
            return found[-1] if len(found) >= count else None
        return wait_until(seen, deadline_s, lambda: f"event={event} {fields} from {self.name}\n{self.tail()}")


class Server(Process):
    """One that is up when _answers() says so, which is asked while it is alive."""

    def start(self):
        self.spawn()
        wait_until(self._up, what=lambda: f"an answer from {self.name}\n{self.tail()}")
        return self

    def _up(self):
        if not self.alive:
            raise AssertionError(f"{self.name} exited\n{self.tail()}")
        return self._answers()
