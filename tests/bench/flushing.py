#!/usr/bin/env python3
"""flushing [NAME...] - the benchmarks behind docs/performance-flush.md: flush, redis-cost, end-to-end.

Each starts a Redis and a Postgres of its own, on Unix sockets in a temporary directory, and stops them again. Both are as
their packages set them up (fsync, full_page_writes), but for memory and for checkpoints and vacuums, which the benchmark
orders itself, between rounds. Sides take turns, round by round; what a round costs is told as time and as the CPU time of
each process, because the latter is what a busy machine blurs least. Results are printed as tables and written as JSON.
"""
import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHARDS = 64

# Who does what: METHOD, transactions, keys per statement, connections. See handsql.c.
HAND = {
    'hand: upsert': ('upsert', 1, 10_000, 1),
    'hand: upsert, 2 connections': ('upsert', 1, 10_000, 2),
    'hand: upsert, a transaction per shard': ('upsert', SHARDS, 10_000, 1),
    'hand: COPY, upsert': ('copyup', 1, 0, 1),
}
HAND_INSERT = {'hand: INSERT, blind': ('insert', 1, 10_000, 1)}
HAND_UPDATE = {
    'hand: COPY, UPDATE FROM': ('copyupd', 1, 0, 1),
    'hand: UPDATE FROM unnest': ('updfrom', 1, 100_000, 1),
    'hand: prepared UPDATEs, pipelined': ('updates', 1, 10_000, 1),
}
# The best that works whatever rows are there; the ratios are to the fastest of these on as many connections.
GENERAL = ('hand: upsert', 'hand: COPY, upsert')


def load_harness():
    """That of the tests, under another name: here `harness` is harness.py beside this file."""
    spec = importlib.util.spec_from_file_location('servers', ROOT / 'tests/harness/__init__.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['servers'] = module  # a package's own imports look for it there
    spec.loader.exec_module(module)
    return module


def spread(values):
    values = list(values)
    return {'min': min(values), 'median': statistics.median(values), 'max': max(values)}


def print_table(head, rows):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ['-' * width for width in widths], *rows]:
        print('| ' + ' | '.join(str(cell).ljust(width) for cell, width in zip(row, widths)) + ' |', flush=True)


def cpu_seconds(pid):
    """CPU time of all threads of a process, to the nanosecond: the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime(~pid << 3 | 2)


def peak_memory(pid):
    """Bytes. Not ru_maxrss, in which Python itself remains after fork and exec."""
    for line in pathlib.Path(f'/proc/{pid}/status').read_text(encoding='ascii').split('\n'):
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) * 1024
    return 0


class Pipeline:
    """A Redis, a Postgres and a configuration; knows how to fill the one and to prepare the other."""

    def __init__(self, bench, **redis_options):
        os.environ['COUNTERD_BUILD'] = str(bench.build)
        self.harness = load_harness()
        self.build, self.writers = bench.build, 0
        self.directory = self.harness.scratch_dir('counterd-bench-')
        self.redis = self.harness.Redis(self.directory)
        for option, value in {'appendfsync': 'everysec', **redis_options}.items():
            self.redis.argv += ['--' + option.replace('_', '-'), value]
        self.redis.start()
        self.postgres = self.harness.Postgres(self.directory)
        for setting in ('fsync=on', 'full_page_writes=on', 'shared_buffers=512MB', 'max_wal_size=8GB',
                        'checkpoint_timeout=1h', 'autovacuum=off'):
            self.postgres.argv += ['-c', setting]
        self.postgres.start()
        self.database = self.postgres.new_database()
        self.configure()
        self.run([self.harness.FLUSHER, '-c', self.config, 'migrate'])

    def stop(self):
        self.redis.kill()
        self.postgres.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def configure(self, **options):
        self.config = self.directory / 'bench.json'
        self.config.write_text(json.dumps({
            'namespace': 'bench', 'shards': SHARDS, 'redis': {'url': self.redis.url},
            'listen': {'udp': ['127.0.0.1:0'], 'tcp': [], 'http': '127.0.0.1:0'},
            'postgres': {'url': self.postgres.url(self.database)}, **options}))

    def postgres_cpu_seconds(self):
        """Of its backends that have ended; in steps of a hundredth."""
        fields = pathlib.Path(f'/proc/{self.postgres.pid}/stat').read_text(encoding='ascii').rsplit(')', 1)[1].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf('SC_CLK_TCK')

    def run(self, argv):
        """A program from its start to its end: seconds, CPU seconds of all three, its peak memory, what it printed."""
        before = self.postgres_cpu_seconds(), cpu_seconds(self.redis.pid)
        began = time.monotonic()
        with subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE) as child:
            memory = 0
            while not select.select([child.stdout], [], [], 0.002)[0]:
                memory = max(memory, peak_memory(child.pid))
            out = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        if child.returncode != 0:
            raise SystemExit(f'{argv} exited with {child.returncode}')
        time.sleep(0.05)  # until the backends have ended
        return {'seconds': seconds, 'client_cpu_s': usage.ru_utime + usage.ru_stime,
                'postgres_cpu_s': self.postgres_cpu_seconds() - before[0],
                'redis_cpu_s': cpu_seconds(self.redis.pid) - before[1],
                'memory_bytes': memory, 'out': out.decode()}

    def query(self, sql):
        return self.postgres.query(sql, self.database)

    def hand(self, keys, method, transactions=1, chunk=10_000, connections=1):
        return self.run([self.build / 'tests/bench/flush/handsql', self.postgres.url(self.database), method, keys,
                         transactions, chunk or 10_000, connections])

    def fill(self, keys):
        self.writers += 1
        self.run([self.build / 'tests/bench/flush/fill', self.redis.path, 'bench', SHARDS, keys, f'w{self.writers}'])

    def prepare(self, state, keys):
        """Rows as they are before a flush: none of them, every one, or half; without dead ones."""
        wanted = {'insert': 0, 'update': keys, 'mixed': keys // 2}[state]
        if state != 'update' or int(self.query('select count(*) from counterd.counters')[0][0]) != wanted:
            self.query('truncate counterd.counters')
            if wanted:
                self.hand(wanted, 'upsert')
        for table in ('counters', 'shards', 'writers', 'ledger'):
            self.query(f'vacuum analyze counterd.{table}')

    def flush_round(self, state, keys, jobs):
        self.configure(flush={'jobs': jobs})
        self.fill(keys)
        self.prepare(state, keys)
        return self.run([self.harness.FLUSHER, '-c', self.config, 'run', '--json'])

    def hand_round(self, state, keys, case):
        self.prepare(state, keys)
        return self.hand(keys, *case)


# --- flush ---------------------------------------------------------------------------------------------------------

def flush(bench):
    """The whole of `flusher run`, from Redis to committed rows, against SQL that has the rows in memory already."""
    results = {}
    pipeline = Pipeline(bench)
    for keys in (1_000, 100_000, 1_000_000):
        for state in ('insert', 'update', 'mixed'):
            name = f'{keys} keys, {state}'
            if bench.only in name:
                results[name] = flush_case(bench, pipeline, keys, state)
                print_flush(name, keys, results[name])
    pipeline.stop()
    return results


def flush_case(bench, pipeline, keys, state):
    sides = {f'flusher, jobs {jobs}': lambda jobs=jobs: pipeline.flush_round(state, keys, jobs) for jobs in (1, 2, 4)}
    hand = HAND | (HAND_INSERT if state == 'insert' else HAND_UPDATE if state == 'update' else {})
    for side, case in hand.items():
        sides[side] = lambda case=case: pipeline.hand_round(state, keys, case)
    rounds = {side: [] for side in sides}
    for _ in range(bench.rounds):
        for side, play in sides.items():
            rounds[side].append(play())
    return rounds


def print_flush(name, keys, rounds):
    def median(side, what):
        return statistics.median(result[what] for result in rounds[side])

    one = min(median(side, 'seconds') for side in GENERAL)
    two = median('hand: upsert, 2 connections', 'seconds')
    work = min(median(side, 'postgres_cpu_s') for side in GENERAL)
    rows = []
    for side, results in rounds.items():
        speed = spread(keys / result['seconds'] for result in results)
        rows.append([name, side, *(f'{speed[which] / 1000:.1f} k' for which in ('min', 'median', 'max')),
                     *(f'{best / median(side, "seconds"):.2f}' for best in (one, two)),
                     f'{work / median(side, "postgres_cpu_s"):.2f}' if median(side, 'postgres_cpu_s') else '',
                     *(f'{median(side, what) * 1e6 / keys:.2f}' for what in
                       ('postgres_cpu_s', 'redis_cpu_s', 'client_cpu_s')),
                     f'{median(side, "memory_bytes") / 2**20:.0f} MB' if side.startswith('flusher') else ''])
    print_table(['case', 'side', 'keys/s, min', 'median', 'max', 'of best upsert', 'of 2 connections',
                 'of its Postgres CPU', 'Postgres us/key', 'Redis us/key', 'client us/key', 'memory'], rows)


# --- redis-cost ----------------------------------------------------------------------------------------------------

def script(name):
    text = (ROOT / f'lib/scripts/{name}.lua').read_text()
    return text, hashlib.sha1(text.encode()).hexdigest()


def shard_keys(shard):
    return [f'{{bench:{shard}}}:{suffix}'.encode()
            for suffix in ('open', 'sealed', 'meta', 'writers', 'durable', 'open_seqs', 'sealed_seqs')]


class RedisCost:
    """Times by Redis's own slow log, which counts what a command holds Redis for, and not the wire. On a busy machine
    the longest is what the scheduler did; the median is the script."""

    def __init__(self, pipeline):
        self.redis = pipeline.redis
        for name in ('append', 'seal'):
            self.redis.call('SCRIPT', 'LOAD', script(name)[0])
        self.redis.call('SCRIPT', 'LOAD', self.HINCRBY)
        self.log_above(30)
        self.redis.call('CONFIG', 'SET', 'slowlog-max-len', 100_000)

    def log_above(self, microseconds):
        """Redis 7.0 logs what a script calls too, if it is slow enough; logging each call would be half of the time."""
        self.redis.call('CONFIG', 'SET', 'slowlog-log-slower-than', microseconds)

    HINCRBY = "for i = 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end"

    def memory(self):
        """Of all keys; INFO would count buffers and the slow log too."""
        return sum(self.redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) for key in self.redis.call('KEYS', '*'))

    def held_ms(self, name):
        """How long each command of that name since the last RESET took."""
        log = self.redis.call('SLOWLOG', 'GET', 100_000)
        return [entry[2] / 1000 for entry in log if entry[3][0].upper() == name]

    def append(self, keys, size, shards=1, first=0):
        """All keys in batches of `size`; gives seconds held per call."""
        self.redis.call('SLOWLOG', 'RESET')
        seqs = [first] * shards
        for number, start in enumerate(range(0, len(keys), size)):
            shard, chunk = number % shards, keys[start:start + size]
            seqs[shard] += 1
            self.redis.call('EVALSHA', script('append')[1], 7, *shard_keys(shard), 'w', seqs[shard], 0, len(chunk),
                            *(word for key in chunk for word in (key, b'1')))
        return self.held_ms(b'EVALSHA')

    def hincrby(self, keys, size):
        self.redis.call('SLOWLOG', 'RESET')
        for start in range(0, len(keys), size):
            self.redis.call('EVALSHA', hashlib.sha1(self.HINCRBY.encode()).hexdigest(), 1, 'hash',
                            *(word for key in keys[start:start + size] for word in (key, b'1')))
        return self.held_ms(b'EVALSHA')

    def pages(self, size, members):
        self.redis.call('SLOWLOG', 'RESET')
        sealed = shard_keys(0)[1]
        for start in range(0, members, size):
            self.redis.call('ZRANGE', sealed, start, start + size - 1, 'WITHSCORES')
        return self.held_ms(b'ZRANGE')


def redis_cost(bench):
    """What one member costs Redis, in time and bytes, and for how long one call keeps everybody else waiting."""
    results = {'chunks': {}, 'structures': {}, 'shards': {}}
    pipeline = Pipeline(bench, save='', appendonly='no')
    cost = RedisCost(pipeline)
    count = 20_000 if bench.quick else 200_000
    keys = [f'page.{i * 2654435761 % 2**32:08x}.views'.encode() for i in range(count)]
    rows = []
    for size in (100, 500, 1000, 2000, 5000):
        pipeline.redis.call('FLUSHALL')
        new = cost.append(keys, size)
        again = cost.append(keys, size, first=len(new))
        pipeline.redis.call('EVALSHA', script('seal')[1], 7, *shard_keys(0), f'g{size}')
        pages = cost.pages(size, len(keys))
        result = {what: {'us_per_member': statistics.median(times) * 1000 * len(times) / count, 'held_ms': spread(times)}
                  for what, times in (('new', new), ('again', again), ('page', pages))}
        results['chunks'][size] = result
        rows.append([size, *(text for what in result.values() for text in (
            f'{what["us_per_member"]:.2f}', f'{what["held_ms"]["median"]:.2f} / {what["held_ms"]["max"]:.2f}'))])
    print_table(['members', 'append, new: us/member', 'ms held, median / max', 'append, there: us/member',
                 'ms held, median / max', 'page: us/member', 'ms held, median / max'], rows)
    rows = []
    for name, play in (('sorted set, append', lambda: cost.append(keys, 1000)),
                       ('hash, HINCRBY in a script', lambda: cost.hincrby(keys, 1000))):
        pipeline.redis.call('FLUSHALL')
        held = play()
        results['structures'][name] = {'us_per_member': statistics.median(held) * 1000 * len(held) / count,
                                       'bytes_per_member': cost.memory() / count}
        rows.append([name, *(f'{value:.2f}' for value in results['structures'][name].values())])
    print()
    print_table(['structure', 'us/member', 'bytes/member'], rows)
    rows = []
    for shards in (1, 8, 64, 256, 1024):
        pipeline.redis.call('FLUSHALL')
        held = cost.append(keys, max(1, min(1000, count // shards // 2)), shards)
        result = {'us_per_member': statistics.median(held) * 1000 * len(held) / count, 'bytes_per_member': cost.memory() / count}
        pipeline.redis.call('SLOWLOG', 'RESET')
        pipeline.redis.call('FLUSHALL')
        cost.log_above(0)
        for shard in range(shards):
            pipeline.redis.call('EVALSHA', script('seal')[1], 7, *shard_keys(shard), 'g')
        result['idle_seal_us'] = statistics.median(cost.held_ms(b'EVALSHA')) * 1000
        cost.log_above(30)
        results['shards'][shards] = result
        rows.append([shards, *(f'{value:.2f}' for value in result.values())])
    print()
    print_table(['shards', 'us/member', 'bytes/member', 'seal of an idle shard, us'], rows)
    pipeline.stop()
    return results


# --- end-to-end ----------------------------------------------------------------------------------------------------

LINES = 20  # in a datagram


def send(address, datagrams, per_second):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        began = time.monotonic()
        for sent, datagram in enumerate(datagrams):
            if sent % 50 == 0:
                time.sleep(max(0, began + sent / per_second - time.monotonic()))
            sender.send(datagram)
    return time.monotonic() - began


def end_to_end(bench):
    """Lines in by UDP to rows in Postgres, twice over for the same keys: all new, then all there."""
    results, rows = {}, []
    lines = 100_000 if bench.quick else 1_000_000
    for keys in (100, 10_000, 100_000, 1_000_000):
        if keys > lines or bench.only not in f'{keys} keys':
            continue
        pipeline = Pipeline(bench)
        pipeline.configure(flush={'jobs': 2}, keys_max=2_000_000)
        names = [f'page.{i * 2654435761 % 2**32:08x}.views:1|c'.encode() for i in range(keys)]
        datagrams = [b'\n'.join(names[(start + i) % keys] for i in range(LINES)) for start in range(0, lines, LINES)]
        counterd = pipeline.harness.Counterd(pipeline.directory, pipeline.config).start()
        for state in ('insert', 'update'):
            before = counterd.status()
            cpu = cpu_seconds(counterd.pid), cpu_seconds(pipeline.redis.pid)
            sending = send(counterd.address('udp'), datagrams, 20_000)
            status = pipeline.harness.wait_until(lambda: settled(counterd), 120)
            result = {'lines': status['accepted'] - before['accepted'], 'sending_s': sending,
                      'counterd_cpu_s': cpu_seconds(counterd.pid) - cpu[0],
                      'redis_append_cpu_s': cpu_seconds(pipeline.redis.pid) - cpu[1],
                      'flush': pipeline.run([pipeline.harness.FLUSHER, '-c', pipeline.config, 'run', '--json'])}
            stored = int(pipeline.query('select coalesce(sum(value), 0) from counterd.counters')[0][0])
            assert stored == status['accepted'], f'{status["accepted"]} accepted, {stored} in Postgres'
            results[f'{keys} keys, {state}'] = result
            done = result['flush']
            cpus = (result['counterd_cpu_s'], result['redis_append_cpu_s'] + done['redis_cpu_s'],
                    done['client_cpu_s'], done['postgres_cpu_s'])
            rows.append([keys, state, f'{result["lines"] / 1000:.0f} k', f'{1 - result["lines"] / lines:.2%}',
                         f'{sending:.2f}', f'{done["seconds"]:.2f}', *(f'{value:.2f}' for value in cpus),
                         f'{sum(cpus) * 1e6 / result["lines"]:.2f}', f'{sum(cpus) * 1e6 / keys:.1f}'])
        counterd.stop()
        pipeline.stop()
    print_table(['keys', 'rows', 'lines', 'lost', 'sending, s', 'flush, s', 'CPU s: counterd', 'Redis', 'flusher',
                 'Postgres', 'us/line', 'us/key'], rows)
    return results


_last = {}


def settled(counterd):
    """Its status, once all that it has is in Redis and nothing more comes."""
    status = counterd.status()
    seen = _last.get(counterd.pid)
    if seen is None or seen[0] != status['received']['datagrams']:
        _last[counterd.pid] = seen = (status['received']['datagrams'], time.monotonic())
    return status if time.monotonic() - seen[1] > 0.3 and status['pending'] == 0 else None


# --- the command ---------------------------------------------------------------------------------------------------

BENCHES = {'flush': flush, 'redis-cost': redis_cost, 'end-to-end': end_to_end}


def machine():
    model = [line.split(':')[1].strip() for line in open('/proc/cpuinfo', encoding='utf-8') if 'model name' in line]
    return f'{len(model)} x {model[0]}, Linux {os.uname().release}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(BENCHES))
    parser.add_argument('--build', type=pathlib.Path, default=ROOT / 'build', help='meson build directory')
    parser.add_argument('--out', type=pathlib.Path, help='directory for the JSON files (default: BUILD/bench)')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='two rounds of the small cases: to see that it works')
    parser.add_argument('--only', default='', help='cases whose name contains this')
    bench = parser.parse_args()
    bench.build = bench.build.resolve()
    if bench.quick:
        bench.rounds, bench.only = 2, bench.only or '1000 keys'
    out = bench.out or bench.build / 'bench'
    out.mkdir(parents=True, exist_ok=True)
    print(machine())
    for name in bench.names or BENCHES:
        if name not in BENCHES:
            parser.error(f"no benchmark '{name}'; there are {', '.join(BENCHES)}")
        print(f'\n## {name}  (load {os.getloadavg()[0]:.1f})')
        result = BENCHES[name](bench)
        (out / f'{name}.json').write_text(json.dumps({'machine': machine(), name: result}, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
