#!/usr/bin/env python3
"""guarantees - every row of the README's table of guarantees names a test that shows it, and that test exists"""

import re
import sys

import tree

SECTION = re.compile(r"^## Guarantees$(.*?)^## ", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`([\w.]+)::(\w+)`")


def tests_in(name):
    """The names of the tests in all files of that name; None: there is no such file."""
    paths = [path for path in tree.files() if path.parts[0] == "tests" and path.name == name]
    if not paths:
        return None
    text = "".join((tree.ROOT / path).read_text() for path in paths)
    return set(re.findall(r"^(?:START_TEST\(| +def )(\w+)\b", text, re.MULTILINE))


def main():
    table = SECTION.search((tree.ROOT / "README.md").read_text())[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    wrong = [] if rows else ["README.md has no table of guarantees"]
    for row in rows:
        names = NAME.findall(row.split("|")[-2])
        if not names:
            wrong.append(f"no test named: {row}")
        for file, test in names:
            found = tests_in(file)
            if found is None:
                wrong.append(f"no file {file} in tests/: {row}")
            elif test not in found:
                wrong.append(f"no {test} in {file}: {row}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
