#!/usr/bin/env python3
"""manual - the manual pages are clean, and a program's page has each of its options, commands and exit codes

    manual.py COUNTERD FLUSHER      the programs
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import tree

EXITS = {"OK": 0, "USAGE": 64, "DATAERR": 65, "UNAVAILABLE": 69, "OSERR": 71, "TEMPFAIL": 75, "CONFIG": 78}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def section(page, title):
    found = re.search(rf'^\.SH "?{title}"?$(.*?)(?=^\.SH|\Z)', page, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def exits_of(program):
    """The exit codes that its sources name."""
    text = "".join((tree.ROOT / path).read_text() for path in tree.sources() if path.parts[0] == program)
    return {EXITS[name] for name in re.findall(r"\bEX_([A-Z]+)\b", text) if name in EXITS}


def check(program, page):
    """Yields what the page lacks, or has too much."""
    said = subprocess.run([program, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    there, told = set(OPTION.findall(said)), set(OPTION.findall(page))
    for option in sorted(there ^ told):
        yield f"{option}: {'not in the page' if option in there else 'no such option'}"
    for command in re.findall(r"^  ([a-z]+) ", said.partition("commands:")[2].partition("options:")[0], re.MULTILINE):
        if not re.search(rf"\b{command}\b", section(page, "COMMANDS")):
            yield f"command {command}: not in the page"
    told = {int(code) for code in re.findall(r"^\.B (\d+)$", section(page, "EXIT STATUS"), re.MULTILINE)}
    for code in sorted(exits_of(program.name) - told):
        yield f"exit code {code}: not in the page"


def complaints(path):
    if not shutil.which("man"):
        return []
    done = subprocess.run(["man", "--warnings", "-l", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return done.stderr.splitlines()


def main():
    wrong = []
    for program in map(Path, sys.argv[1:]):
        path = tree.ROOT / f"man/{program.name}.8"
        wrong += [f"man/{path.name}: {text}" for text in check(program, path.read_text().replace("\\-", "-"))]
    for path in sorted(tree.ROOT.glob("man/*.[58]")):
        wrong += [f"man/{path.name}: {text}" for text in complaints(path)]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
