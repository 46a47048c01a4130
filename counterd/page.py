#!/usr/bin/env python3
"""page.py OUT.c PAGE.html - the status page as C, with the Content-Security-Policy that lets just its own script and
style run: they are named by their hashes, so that not even text of ours that is mistaken for a script would be one."""
import base64
import hashlib
import json
import pathlib
import re
import sys


def hashes(page, tag):
    found = re.findall(rf'<{tag}>(.*?)</{tag}>', page, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in found)
    return ' '.join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def main():
    out, source = map(pathlib.Path, sys.argv[1:])
    page = source.read_text(encoding='ascii')
    policy = (f"default-src 'none'; connect-src 'self'; script-src {hashes(page, 'script')}; "
              f"style-src {hashes(page, 'style')}; img-src data:; base-uri 'none'; form-action 'none'; "
              "frame-ancestors 'none'")
    lines = ['#include "counterd/page.h"', '', f'const char page_policy[] = {json.dumps(policy)};',
             'const char page_html[] =']
    lines += [f'    {json.dumps(line)}' for line in page.splitlines(keepends=True)]
    out.write_text('\n'.join(lines) + ';\n', encoding='ascii')


main()
