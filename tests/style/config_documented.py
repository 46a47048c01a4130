#!/usr/bin/env python3
"""config_documented - every configuration key stands in README.md, in a man page and in examples/counterd.json, there
with its default and a comment

    config_documented.py CONFIG_KEYS      the program built from config_keys.c, which prints the table
"""

import json
import re
import subprocess
import sys

import tree

EXAMPLE = "examples/counterd.json"
STRING_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)


def without_comments(text):
    return STRING_OR_COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else " ", text)


def expected(kind, default):
    if kind == "list":
        return default.split()
    return default if kind == "text" else json.loads(default)


def lookup(config, name):
    for part in name.split("."):
        if part not in config:
            return None
        config = config[part]
    return config


def has_comment(text, name):
    """A comment on the key's line, or alone on the line above it."""
    key = re.compile(rf'"{re.escape(name.split(".")[-1])}"\s*:')
    lines = text.splitlines()
    return any(key.search(line) and ("//" in line or lines[at - 1].lstrip().startswith("//"))
               for at, line in enumerate(lines))


def main():
    table = subprocess.run([sys.argv[1]], check=True, stdout=subprocess.PIPE, text=True).stdout
    readme = (tree.ROOT / "README.md").read_text()
    man = "".join(path.read_text() for path in sorted(tree.ROOT.glob("man/*")) if path.is_file()).replace("\\-", "-")
    example = (tree.ROOT / EXAMPLE).read_text()
    config = json.loads(without_comments(example))
    wrong = []
    for line in table.splitlines():
        name, kind, default, _unit = line.split("\t")
        if not re.search(rf"\b{re.escape(name)}\b", readme):
            wrong.append(f"README.md does not tell of '{name}'")
        if not re.search(rf"\b{re.escape(name)}\b", man):
            wrong.append(f"no page in man/ tells of '{name}'")
        if lookup(config, name) != expected(kind, default):
            wrong.append(f"{EXAMPLE}: '{name}' is {lookup(config, name)!r}, its default {expected(kind, default)!r}")
        elif not has_comment(example, name):
            wrong.append(f"{EXAMPLE}: '{name}' has no comment")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
