#!/usr/bin/env python3
"""shell - shellcheck has nothing to say about our shell scripts"""

import shutil
import subprocess
import sys

import tree

EXIT_SKIPPED = 77


def main():
    program = shutil.which("shellcheck")
    if not program:
        print("no shellcheck here (tests/install-deps brings it)")
        return EXIT_SKIPPED
    return subprocess.run([program, "-x", *tree.shell_scripts()], cwd=tree.ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
