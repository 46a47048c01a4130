#!/usr/bin/env python3
"""plot DIRECTORY [OUT] - the JSON files that tests/bench/run wrote, as bar charts: receive.svg, peers.svg, flush.svg.

A bar is the median of the rounds, its whisker reaches from the least to the most.
"""
import html
import json
import pathlib
import statistics
import sys

LABEL, PLOT, VALUE = 250, 400, 190  # widths, in pixels
ROW, GAP = 18, 16                   # heights of a bar, and of what stands between two groups

STYLE = """text{font:12px system-ui,sans-serif;fill:#333}.g{font-weight:600}.v{font-variant-numeric:tabular-nums}
.o{fill:#b9c2cc}.c{fill:#1f7a6d}.w{stroke:#111;stroke-width:1.2}.t{stroke:#c2410c;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){text{fill:#ddd}.o{fill:#57606a}.c{fill:#4fb3a3}.w{stroke:#eee}}"""


class Bar:
    def __init__(self, side, values, note=''):
        self.side, self.note = side, note
        self.least, self.median, self.most = min(values), statistics.median(values), max(values)


def number(value):
    for limit, unit in ((1e6, ' M'), (1e3, ' k')):
        if value >= limit:
            return f'{value / limit:.3g}{unit}'
    return f'{value:.3g}'


def bar_svg(bar, y, scale):
    middle, ours = y + ROW / 2 - 1, bar.side.startswith(('counterd', 'flusher'))
    return (f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{html.escape(bar.side)}</text>'
            f'<rect class="{"c" if ours else "o"}" x="{LABEL}" y="{y}" width="{bar.median * scale:.1f}" height="{ROW - 4}"/>'
            f'<line class="w" x1="{LABEL + bar.least * scale:.1f}" x2="{LABEL + bar.most * scale:.1f}" y1="{middle}" '
            f'y2="{middle}"/>'
            f'<text class="v" x="{LABEL + bar.most * scale + 6:.1f}" y="{y + 12}">'
            f'{html.escape(number(bar.median) + bar.note)}</text>')


def chart(title, unit, groups):
    """`groups`: name -> (bars, where a line marks the target or None). Each group has a scale of its own."""
    parts, y = [], 66
    for name, (bars, target) in groups.items():
        scale = PLOT / max(max(bar.most for bar in bars), target or 0)
        parts.append(f'<text class="g" x="8" y="{y}">{html.escape(name)}</text>')
        y += 8
        top = y - 4
        for bar in bars:
            parts.append(bar_svg(bar, y, scale))
            y += ROW
        if target:
            x = LABEL + target * scale
            parts.append(f'<line class="t" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y}"/>')
        y += GAP + 8
    width = LABEL + PLOT + VALUE
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img" '
            f'aria-label="{html.escape(title)}"><style>{STYLE}</style>'
            f'<text class="g" x="8" y="20">{html.escape(title)}</text><text x="8" y="38">'
            f'{html.escape(unit)}</text>{"".join(parts)}</svg>\n')


def received(side, rounds):
    loss = max(r['loss'] for r in rounds)
    return Bar(side, [r['lines_per_cpu_s'] for r in rounds], f', {loss:.1%} lost' if loss > 0.0005 else '')


def receive(document):
    groups = {}
    for name, case in document['receive'].items():
        bars = [received(side, rounds) for side, rounds in case['rounds'].items()]
        target = {1: 0.95, 20: 0.65}[case['case']['lines']]
        groups[name] = bars, target * bars[0].median
    return 'Receiving; the dashed line is the target', 'lines per second of the receiver\'s CPU', groups


def peers(document):
    groups = {name: ([received(side, rounds) for side, rounds in sides.items()], None)
              for name, sides in document['peers'].items()}
    return 'Receiving, and others', 'lines per second of the receiver\'s CPU', groups


def flush(document):
    groups = {}
    for name, sides in document['flush'].items():
        keys = int(name.split()[0])
        bars = [Bar(side, [keys / r['seconds'] for r in rounds]) for side, rounds in sides.items()]
        upsert = next((bar.median for bar in bars if bar.side == 'hand: upsert'), None)
        groups[name] = bars, 0.9 * upsert if upsert else None
    return 'Flushing, whole programs; the dashed line is the target', 'keys per second', groups


def main():
    source = pathlib.Path(sys.argv[1])
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else source
    for make in (receive, peers, flush):
        path = source / f'{make.__name__}.json'
        if not path.exists():
            continue
        document = json.loads(path.read_text(encoding='utf-8'))
        title, unit, groups = make(document)
        (out / f'{make.__name__}.svg').write_text(chart(title, f'{unit}; {document["machine"]}', groups), encoding='utf-8')


if __name__ == '__main__':
    main()
