#!/usr/bin/env python3
"""links - every relative link in a document leads to a file that is there, and to a heading that it has"""

import re
import sys

import tree

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(path):
    """The names that GitHub gives to a document's headings."""
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading) for heading in HEADING.findall(path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def check(document):
    """Yields the links that lead nowhere."""
    for target, anchor in LINK.findall(FENCED.sub("", document.read_text())):
        path = (document.parent / target).resolve() if target else document
        if not path.exists():
            yield f"no file '{target}'"
        elif anchor and anchor not in anchors(path):
            yield f"no heading '#{anchor}' in '{path.relative_to(tree.ROOT)}'"


def main():
    wrong = [f"{path}: {complaint}" for path in tree.files() if path.suffix == ".md"
             for complaint in check(tree.ROOT / path)]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
