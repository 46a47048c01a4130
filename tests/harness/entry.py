"""entry - a test file as a program: what it needs of the machine, and the exit code that meson reads"""

import os
import shutil
import sys
import unittest

from .basics import COUNTERD, EXIT_SKIPPED, FLUSHER
from .postgres_server import postgres_bin


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
