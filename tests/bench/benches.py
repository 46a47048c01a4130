"""benches - the benchmarks of tests/bench/run: each takes a Bench, prints a table and returns what it found."""
import pathlib
import time

from harness import (cpu_seconds, memory_bytes, million, percent, print_table, running, spread,
                     voluntary_switches, watching)

RECEIVE = {
    '1 line, 10 k keys': {'lines': 1, 'keys': 10_000},
    '20 lines, 10 k keys': {'lines': 20, 'keys': 10_000},
    '1 line, 1 M keys': {'lines': 1, 'keys': 1_000_000},
    '20 lines, 1 M keys': {'lines': 20, 'keys': 1_000_000},
    '20 lines, 10 k keys, tags': {'lines': 20, 'keys': 10_000, 'tags': True},
    '20 lines, 1 M keys, tags': {'lines': 20, 'keys': 1_000_000, 'tags': True},
    '1 line, 10 k keys, 100 k/s': {'lines': 1, 'keys': 10_000, 'rate': 100_000},
}


def ratios(ours, theirs):
    return spread(a['lines_per_cpu_s'] / b['lines_per_cpu_s'] for a, b in zip(ours, theirs))


def receive(bench):
    """The whole of counterd, sockets to Redis, against a bare recvmmsg loop: one that blocks until something comes,
    and one that sleeps for a millisecond whenever there is no more."""
    results = {}
    for name, case in RECEIVE.items():
        if bench.only not in name:
            continue
        sides = {'bare, blocking': [], 'bare, pausing': [], 'counterd': []}
        with running(bench, {}) as counterd:
            bench.blast(counterd.port, case, 0.5)
            for _ in range(bench.rounds):
                sides['bare, blocking'].append(bench.bare_round(case))
                sides['bare, pausing'].append(bench.bare_round(case, pausing=True))
                sides['counterd'].append(bench.counterd_round(counterd, case))
        results[name] = {'case': case, 'rounds': sides, 'ratios': {}}
        rows = []
        for side, rounds in sides.items():
            speed = spread(r['lines_per_cpu_s'] for r in rounds)
            ratio = ratios(sides['counterd'], rounds)
            results[name]['ratios'][side] = ratio
            rows.append([name, side, million(spread(r['offered_per_s'] for r in rounds)['median']),
                         percent(max(r['loss'] for r in rounds)),
                         *(million(speed[which]) for which in ('min', 'median', 'max')),
                         '' if side == 'counterd' else ' / '.join(percent(value) for value in ratio.values())])
        print_table(['case', 'side', 'offered lines/s', 'loss, worst', 'lines/CPU s, min', 'median', 'max',
                     'counterd is at, min / median / max'], rows)
    return results


WATCHED = {
    '20 lines, 10 k keys': {'lines': 20, 'keys': 10_000},
    '1 line, 10 k keys, 100 k/s': {'lines': 1, 'keys': 10_000, 'rate': 100_000},
}


def watched(bench):
    """What it costs to be watched: the same with a scrape of /metrics and a page that polls, each second, and without."""
    results, rows = {}, []
    for name, case in WATCHED.items():
        if bench.only not in name:
            continue
        sides = {'unwatched': [], 'watched': []}
        with running(bench, {}) as counterd:
            bench.blast(counterd.port, case, 0.5)
            for _ in range(bench.rounds):
                sides['unwatched'].append(bench.counterd_round(counterd, case))
                with watching(counterd, ('/metrics', '/v1/status?recent', '/v1/top?n=10')):
                    sides['watched'].append(bench.counterd_round(counterd, case))
        ratio = ratios(sides['watched'], sides['unwatched'])
        results[name] = {'case': case, 'rounds': sides, 'ratio': ratio}
        for side, rounds in sides.items():
            speed = spread(r['lines_per_cpu_s'] for r in rounds)
            rows.append([name, side, percent(max(r['loss'] for r in rounds)),
                         *(million(speed[which]) for which in ('min', 'median', 'max')),
                         ' / '.join(percent(value) for value in ratio.values()) if side == 'watched' else ''])
    print_table(['case', 'side', 'loss, worst', 'lines/CPU s, min', 'median', 'max',
                 'of the unwatched, min / median / max'], rows)
    return results


def redis_bytes(bench):
    return int(bench.redis_cli('INFO', 'memory').split('used_memory:')[1].split()[0])


def cardinality_case(bench, keys, per_key):
    # All of it within one tick, and in the same time whether there are many events or few.
    with running(bench, {'keys_max': 2_000_000, 'coalesce_ms': 8000}) as counterd:
        memory, redis = memory_bytes(counterd.pid), redis_bytes(bench)
        cpu, redis_cpu = cpu_seconds(counterd.pid), cpu_seconds(bench.redis.pid)
        bench.blast(counterd.port, {'keys': keys, 'lines': 20, 'rate': 10_000 * per_key,
                                    'datagrams': keys * per_key // 20}, 60)
        status = counterd.settled()
        return {
            'lines': status['accepted'],
            'table_bytes': status['table']['bytes'],
            'history_bytes': status['appended']['history_bytes'],
            'counterd_bytes': memory_bytes(counterd.pid) - memory,
            'redis_bytes': redis_bytes(bench) - redis,
            'counterd_cpu_s': cpu_seconds(counterd.pid) - cpu,
            'redis_cpu_s': cpu_seconds(bench.redis.pid) - redis_cpu,
        }


def cardinality(bench):
    """What one more distinct key costs, and that ten times the events of the same keys cost little more."""
    results, rows = {}, []
    for keys in (10_000, 100_000, 1_000_000):
        for per_key in (1, 10):
            result = cardinality_case(bench, keys, per_key)
            results[f'{keys} keys, {per_key} each'] = result
            rows.append([keys, result['lines'], *(f'{result[name] / keys:.0f}' for name in
                                                  ('table_bytes', 'history_bytes', 'counterd_bytes', 'redis_bytes')),
                         *(f'{result[name] / keys * 1e9:.0f} ns' for name in ('counterd_cpu_s', 'redis_cpu_s'))])
    print_table(['keys', 'lines', 'table bytes/key', 'history bytes/key', 'counterd bytes/key', 'Redis bytes/key',
                 'counterd CPU/key', 'Redis CPU/key'], rows)
    return results


def workers(bench):
    """One busy sender, one socket: does its load stay on one worker?"""
    results, rows = {}, []
    case = {'lines': 20, 'keys': 10_000}
    for count in (1, 2):
        with running(bench, {'workers': count}) as counterd:
            bench.blast(counterd.port, case, 0.5)
            rounds, shares = [], []
            for _ in range(bench.rounds):
                before = thread_seconds(counterd.pid)
                rounds.append(bench.counterd_round(counterd, case))
                after = thread_seconds(counterd.pid)
                spent = sorted((after[tid] - before[tid] for tid in after), reverse=True)
                shares.append(spent[0] / sum(spent))
        results[count] = {'rounds': rounds, 'busiest_thread': spread(shares)}
        rows.append([count, million(spread(r['offered_per_s'] for r in rounds)['median']),
                     percent(max(r['loss'] for r in rounds)),
                     million(spread(r['lines_per_cpu_s'] for r in rounds)['median']),
                     percent(spread(shares)['median'])])
    print_table(['workers', 'offered lines/s', 'loss, worst', 'lines/CPU s', 'of the CPU time in one thread'], rows)
    return results


def thread_seconds(pid):
    ticks = {}
    for task in pathlib.Path(f'/proc/{pid}/task').iterdir():
        fields = (task / 'stat').read_text(encoding='ascii').rsplit(')', 1)[1].split()
        ticks[task.name] = (int(fields[11]) + int(fields[12])) / 100
    return ticks


def idle(bench):
    """How often a counterd that nobody writes to wakes up."""
    results, rows = {}, []
    for count in (1, 2):
        with running(bench, {'workers': count}) as counterd:
            bench.blast(counterd.port, {'lines': 1, 'keys': 10, 'rate': 1000}, 0.1)
            counterd.settled()
            time.sleep(1)
            seconds = max(bench.seconds, 1) * 5
            before, cpu = voluntary_switches(counterd.pid), cpu_seconds(counterd.pid)
            time.sleep(seconds)
            woken, cpu = voluntary_switches(counterd.pid) - before, cpu_seconds(counterd.pid) - cpu
        results[count] = {'seconds': seconds, 'wakeups': woken, 'cpu_seconds': cpu}
        rows.append([count, f'{seconds:.0f}', woken, f'{cpu * 1e6:.0f} us'])
    print_table(['workers', 'seconds', 'wakeups', 'CPU time'], rows)
    return results
