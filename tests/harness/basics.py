"""basics - where things are, exit codes, how a test waits, and scratch directories"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("COUNTERD_BUILD", ROOT / "build")).resolve()
COUNTERD = BUILD / "counterd" / "counterd"
FLUSHER = BUILD / "flusher" / "flusher"
SHARED = Path(os.environ.get("COUNTERD_SHARED", ROOT.parent / "shared"))
KEEP = os.environ.get("COUNTERD_KEEP") == "1"

EXIT_OK, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_TEMPFAIL, EXIT_CONFIG = 0, 64, 69, 75, 78
EXIT_SKIPPED = 77  # what meson takes for "skipped"

DEADLINE_S = 60  # for what takes milliseconds; only a hang or a sanitizer on a busy machine comes near
REDIS_TIMEOUT_MS = 20000  # where a test is not about it: a Redis that has to wait for the CPU is not away


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


def away_from_turn(period_s, margin_s):
    """Returns when no minute, hour or day (of UTC) of `period_s` ends within `margin_s`."""
    wait_until(lambda: period_s - time.time() % period_s > margin_s, margin_s + DEADLINE_S, "the next one to begin")


def as_bytes(value):
    return value if isinstance(value, bytes) else str(value).encode()


def scratch_dir(prefix="counterd-test-"):
    """A directory that is removed at exit. In /tmp, whatever TMPDIR says: a socket's path has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o711)  # Postgres runs as another user and must get through
    if KEEP:
        print(f"kept: {path}", file=sys.stderr)
    else:
        atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


# atexit runs after sys.exit but not after a deadly signal; meson ends a test that takes too long with SIGTERM.
for _signal in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_signal, lambda number, frame: sys.exit(128 + number))
