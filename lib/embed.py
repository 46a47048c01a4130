#!/usr/bin/env python3
"""embed.py OUT.c HEADER TYPE NAME INDEX FILE... - text files as one C array, each with its SHA1.

The array is `const struct TYPE NAME[]` of {name, sha1, text}, as HEADER declares it. INDEX is what an element's
enum constant begins with (SCRIPT_ and seal.lua: SCRIPT_SEAL), or - for the order given and a NAME_len.
"""
import hashlib
import json
import pathlib
import sys


def element(index, path):
    text = path.read_text(encoding='ascii')
    place = '' if index == '-' else f'[{index}{path.stem.upper()}] = '
    lines = [f'    {place}{{',
             f'        .name = "{path.stem}",',
             f'        .sha1 = "{hashlib.sha1(text.encode()).hexdigest()}",',
             '        .text =']
    lines += [f'            {json.dumps(line)}' for line in text.splitlines(keepends=True)]
    return lines + ['            "",', '    },']


def main():
    out, header, kind, name, index, *paths = sys.argv[1:]
    lines = [f'#include "{header}"', '', f'const struct {kind} {name}[] = {{']
    for path in map(pathlib.Path, paths):
        lines += element(index, path)
    lines.append('};')
    if index == '-':
        lines.append(f'const size_t {name}_len = {len(paths)};')
    pathlib.Path(out).write_text('\n'.join(lines) + '\n', encoding='ascii')


main()
