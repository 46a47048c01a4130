#!/usr/bin/env python3
"""docs/line-protocol.md once more, in Python: exact, slow, and written from the document, not from lib/metric.c.

reference.py --check FILE   verify every row of a table such as conformance.tsv
reference.py --lines        read escaped packets, one per line, from stdin; print the answer to each

Only what a parser can know is here: `truncated`, `overflow`, `denied`, a stream's line limit and the sum pending
for a key belong to the daemon around it.
"""

import re
import sys
from fractions import Fraction

KEY_BYTES_MAX = 255  # key and tags together
UNITS_MAX = 9_000_000_000_000
MICROS = 1_000_000  # per unit
RATE_ONE = 10**18  # of a rate, 18 places count
TIME_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z

VAL = re.compile(rb"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
RATE = re.compile(rb"[0-9]+(\.[0-9]+)?|\.[0-9]+")
DIGITS = re.compile(rb"[0-9]+")

VERBS = {b"INCR": 1, b"DECR": -1, b"INCRBY": 1}

if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)  # a value may have as many digits as a line has bytes


class Reject(Exception):
    """str() of it is the reason."""


# The grammar: each function takes the bytes of one rule, returns what they mean, or raises Reject.


def packet_lines(packet):
    """The lines that are not blank, without their LF and one CR."""
    lines = (line.removesuffix(b"\r") for line in packet.split(b"\n"))
    return [line for line in lines if line]


def parse_line(line):
    """(canonical key, micros)"""
    verb, space, rest = line.partition(b" ")
    if space and verb in VERBS:
        return parse_spelled_out(verb, rest)
    return parse_statsd(line)


def parse_spelled_out(verb, rest):
    key, space, value = rest.partition(b" ")
    if verb == b"INCRBY" and not space:
        raise Reject("syntax")
    check_key(key)
    micros = parse_val(value) if space else MICROS
    return key, VERBS[verb] * micros


def parse_statsd(line):
    head, pipe, rest = line.partition(b"|")
    key, colon, values = head.partition(b":")
    if not colon or not pipe:
        raise Reject("syntax")
    metric_type, *fields = rest.split(b"|")
    if metric_type != b"c":
        raise Reject("type")
    check_key(key)
    micros = sum(parse_val(value) for value in values.split(b":"))
    rate, tags = parse_fields(fields)
    result = divide(micros, rate)
    check_range(result)
    return canonical_key(key, tags), result


def divide(micros, rate):
    if not rate and micros:
        raise Reject("range")
    return round_half_away(micros / rate) if micros else 0


def check_key(key):
    if not key or has_forbidden_byte(key):
        raise Reject("key")
    if len(key) > KEY_BYTES_MAX:
        raise Reject("too_long")
    check_utf8(key)


def has_forbidden_byte(text):
    return any(byte <= 0x20 or byte in b":|" for byte in text)


def check_utf8(text):
    try:
        text.decode("utf-8", "strict")  # no overlong forms, no surrogates, nothing above U+10FFFF
    except UnicodeDecodeError:
        raise Reject("utf8") from None


def parse_val(text):
    """Micros: a value is exact to six places before anything is done with it."""
    if not VAL.fullmatch(text):
        raise Reject("value")
    micros = round_half_away(Fraction(text.decode()) * MICROS)
    check_range(micros)
    return micros


def check_range(micros):
    if abs(micros) > UNITS_MAX * MICROS:
        raise Reject("range")


def round_half_away(number):
    whole = int(abs(number) + Fraction(1, 2))
    return whole if number >= 0 else -whole


def parse_fields(fields):
    """(rate, the text of the tags)"""
    rate, tags = Fraction(1), b""
    seen = set()
    for field in fields:
        kind = field[:1]
        if not kind or kind in seen:
            raise Reject("syntax")
        if kind in (b"@", b"#", b"T"):
            seen.add(kind)
        if kind == b"@":
            rate = parse_rate(field[1:])
        elif kind == b"#":
            tags = field[1:]
        elif kind == b"T":
            check_unixtime(field[1:])
    return rate, tags


def parse_rate(text):
    if not RATE.fullmatch(text):
        raise Reject("rate")
    rate = Fraction(text.decode())
    if not 0 < rate <= 1:
        raise Reject("rate")
    return Fraction(int(rate * RATE_ONE), RATE_ONE)


def check_unixtime(text):
    if not DIGITS.fullmatch(text):
        raise Reject("syntax")
    if int(text) > TIME_MAX:
        raise Reject("range")


def canonical_key(key, tags):
    """Every tag is held to the rules, also one that a later tag of its name replaces."""
    values = dict(parse_tag(tag) for tag in tags.split(b",") if tag)
    for name in sorted(values):
        value = values[name]
        key += b";" + name + (b"" if value is None else b"=" + value)
    if len(key) > KEY_BYTES_MAX:
        raise Reject("too_long")
    check_utf8(tags)
    return key


def parse_tag(tag):
    name, colon, value = tag.partition(b":")
    if not name or b"=" in name or b";" in tag:
        raise Reject("key")
    if has_forbidden_byte(name) or has_forbidden_byte(value):
        raise Reject("key")
    return name, value if colon else None


def parse_packet(packet):
    """One outcome for each line that is not blank: (key, micros), or the reason as a str."""
    outcomes = []
    for line in packet_lines(packet):
        try:
            outcomes.append(parse_line(line))
        except Reject as reject:
            outcomes.append(str(reject))
    return outcomes


# The table: source TAB input TAB answer.

NAMED_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
CHAR_OF_NAMED_ESCAPE = {name: char for char, name in NAMED_ESCAPES.items()}
ESCAPE = re.compile(rb"\\(?:[\\nrt]|x[0-9a-f]{2})")


def escape(raw):
    out = b""
    for byte in raw:
        char = bytes([byte])
        if char in NAMED_ESCAPES:
            out += NAMED_ESCAPES[char]
        else:
            out += char if 0x20 <= byte <= 0x7E else b"\\x%02x" % byte
    return out.decode()


def unescape(text):
    def char_of(match):
        escaped_char = match.group()
        if escaped_char in CHAR_OF_NAMED_ESCAPE:
            return CHAR_OF_NAMED_ESCAPE[escaped_char]
        return bytes.fromhex(escaped_char[2:].decode())

    escaped = text.encode()
    if b"\\" in ESCAPE.sub(b"", escaped):
        raise ValueError(f"no such escape: '{text}'")
    return ESCAPE.sub(char_of, escaped)


def answer(packet):
    def word(outcome):
        if isinstance(outcome, str):
            return "!" + outcome
        key, micros = outcome
        return f"{escape(key)}={micros}"

    return " ".join(word(outcome) for outcome in parse_packet(packet)) or "-"


def check(path):
    """The number of rows that are wrong; says which."""
    rows, wrong, seen = 0, 0, set()

    def complain(number, text):
        nonlocal wrong
        wrong += 1
        print(f"{path}:{number}: {text}")

    with open(path, encoding="ascii", newline="\n") as table:
        for number, row in enumerate(table, 1):
            if row.startswith("#"):
                continue
            columns = row.removesuffix("\n").split("\t")
            if len(columns) != 3:
                complain(number, f"{len(columns)} columns, not 3")
                continue
            rows += 1
            source, text, expected = columns
            packet = unescape(text)
            project = source.partition(":")[0]
            if escape(packet) != text:
                complain(number, "input is not escaped as escape() does it")
            if (project, packet) in seen:
                complain(number, f"'{text}' is there twice for '{project}'")
            seen.add((project, packet))
            if answer(packet) != expected:
                complain(number, f"'{text}' is '{answer(packet)}', table says '{expected}'")
    print(f"{rows} rows, {wrong} wrong")
    return wrong


def main(arguments):
    if arguments == ["--lines"]:
        for text in sys.stdin:
            print(answer(unescape(text.removesuffix("\n"))))
        return 0
    if len(arguments) == 2 and arguments[0] == "--check":
        return 1 if check(arguments[1]) else 0
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
