#!/usr/bin/env python3
"""embed.py OUT.c SCRIPT.lua... - the Lua scripts as C strings, each with the SHA1 by which Redis knows it."""
import hashlib
import json
import pathlib
import sys


def main():
    out, *scripts = sys.argv[1:]
    lines = ['#include "lib/keyspace.h"', '', 'const struct script scripts[SCRIPT_COUNT] = {']
    for path in map(pathlib.Path, scripts):
        text = path.read_text(encoding='ascii')
        lines.append(f'    [SCRIPT_{path.stem.upper()}] = {{')
        lines.append(f'        .name = "{path.stem}",')
        lines.append(f'        .sha1 = "{hashlib.sha1(text.encode()).hexdigest()}",')
        lines.append('        .text =')
        lines += [f'            {json.dumps(line)}' for line in text.splitlines(keepends=True)]
        lines += ['            "",', '    },']
    lines.append('};')
    pathlib.Path(out).write_text('\n'.join(lines) + '\n', encoding='ascii')


main()
