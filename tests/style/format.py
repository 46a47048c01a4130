#!/usr/bin/env python3
"""format - every C file is as clang-format 14 (Debian 12's) with our .clang-format would write it"""

import shutil
import subprocess
import sys

import tree

EXIT_SKIPPED = 77


def main():
    program = shutil.which("clang-format-14")
    if not program:
        print("no clang-format-14 here (tests/install-deps brings it)")
        return EXIT_SKIPPED
    return subprocess.run([program, "--dry-run", "-Werror", *tree.sources()], cwd=tree.ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
