#!/usr/bin/env python3
"""named_tests - what a document promises, a test shows: each row of the README's table of guarantees, and each bad day of
docs/operations.md, names the tests that do, and these exist; and none stands where nothing runs it"""

import ast
import re
import sys

import tree

NAME = re.compile(r"`([\w.]+)::(\w+)`")


def section(path, title):
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", (tree.ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def guarantees():
    """The table's rows: what is shown, and where it is named."""
    rows = [line for line in section("README.md", "Guarantees").splitlines() if line.startswith("| ")][1:]
    return [(row, row.split("|")[-2]) for row in rows]


def bad_days():
    return [(day.splitlines()[0], day) for day in section("docs/operations.md", "Bad days").split("\n### ")[1:]]


def tests_in(name):
    """The names of the tests in all files of that name; None: there is no such file."""
    paths = [path for path in tree.files() if path.parts[0] == "tests" and path.name == name]
    if not paths:
        return None
    text = "".join((tree.ROOT / path).read_text() for path in paths)
    return set(re.findall(r"^(?:START_TEST\(| +def )(\w+)\b", text, re.MULTILINE))


def check(promise, text):
    """Yields what is wrong with one of them."""
    names = NAME.findall(text)
    if not names:
        yield f"no test named: {promise}"
    for file, test in names:
        found = tests_in(file)
        if found is None:
            yield f"no file {file} in tests/: {promise}"
        elif test not in found:
            yield f"no {test} in {file}: {promise}"


def hidden():
    """Tests that an edit has moved into a function."""
    functions = [(path, node) for path in tree.files() if path.parts[0] == "tests" and path.suffix == ".py"
                 for node in ast.walk(ast.parse((tree.ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)]
    for path, function in functions:
        for inner in ast.walk(function):
            if inner is not function and isinstance(inner, ast.FunctionDef) and inner.name.startswith("test_"):
                yield f"{path}: {inner.name} stands in {function.name}(), where nothing runs it"


def main():
    wrong = list(hidden())
    for path, promises in (("README.md", guarantees()), ("docs/operations.md", bad_days())):
        if not promises:
            wrong.append(f"{path} promises nothing")
        for promise, text in promises:
            wrong += check(promise, text)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
