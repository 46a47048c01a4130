#!/usr/bin/env python3
"""conformance.py PARSE_LINES [--mutations N] [--seed S] - both parsers against conformance.tsv, and against each other.

The table's answers must be those of lib/metric.c (through PARSE_LINES) and of reference.py; then inputs of the table are
mutated, and the two parsers must give the same answer to each.
"""
import argparse
import pathlib
import random
import subprocess
import sys

import reference

TABLE = pathlib.Path(__file__).with_name('conformance.tsv')

# Bytes that mean something to the grammar come up more often than chance would have it.
TELLING = b':|@#,;.=+-eET0159cgms \r\n\x00\x7f\x80\xc3\xa9\xff'


def rows():
    for line in TABLE.read_text(encoding='ascii').split('\n'):
        if line and not line.startswith('#'):
            yield line.split('\t')[1:]


def ask(parse_lines, packets):
    text = ''.join(packet + '\n' for packet in packets)
    answers = subprocess.run([parse_lines], input=text, capture_output=True, text=True, check=True).stdout
    return answers.removesuffix('\n').split('\n')


def mutate(rng, packet, others):
    packet = bytearray(packet)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(packet))
        kind = rng.randrange(5)
        if kind == 0:
            packet[at:at] = bytes([rng.choice(TELLING)])
        elif kind == 1:
            del packet[at:at + rng.randint(1, 3)]
        elif kind == 2 and at < len(packet):
            packet[at] = rng.choice(TELLING) if rng.random() < 0.8 else rng.randrange(256)
        elif kind == 3:
            other = rng.choice(others)
            start = rng.randint(0, len(other))
            packet[at:at] = other[start:start + rng.randint(1, 12)]
        else:
            start = rng.randint(0, len(packet))
            packet[at:at] = packet[start:start + rng.randint(1, 40)]
    return bytes(packet[:2000])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('parse_lines')
    parser.add_argument('--mutations', type=int, default=20000)
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    table = list(rows())
    wrong = reference.check(TABLE)

    for (packet, expected), got in zip(table, ask(arguments.parse_lines, [row[0] for row in table]), strict=True):
        if got != expected:
            wrong += 1
            print(f"'{packet}': lib/metric.c says '{got}', the table '{expected}'")

    rng = random.Random(arguments.seed)
    inputs = [reference.unescape(packet) for packet, _ in table]
    inputs = [packet for packet in inputs if len(packet) < 600]
    mutated = [mutate(rng, rng.choice(inputs), inputs) for _ in range(arguments.mutations)]
    escaped = [reference.escape(packet) for packet in mutated]
    for packet, text, got in zip(mutated, escaped, ask(arguments.parse_lines, escaped), strict=True):
        expected = reference.answer(packet)
        if got != expected:
            wrong += 1
            print(f"'{text}': lib/metric.c says '{got}', reference.py '{expected}' (seed {arguments.seed})")
    print(f'{len(table)} rows, {len(mutated)} mutations with seed {arguments.seed}, {wrong} wrong')
    return 1 if wrong else 0


sys.exit(main())
