"""harness - what the benchmarks have in common: servers in a temporary directory, CPU time, blasts, tables."""
import contextlib
import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

DEADLINE_S = 60


def wait_until(condition, deadline_s=DEADLINE_S):
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(0.01)
    return value


def cpu_seconds(pid):
    """CPU time of all threads of a process, to the nanosecond: the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime(~pid << 3 | 2)


def memory_bytes(pid):
    for line in pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text(encoding='ascii').split('\n'):
        if line.startswith('Private_Dirty:'):
            return int(line.split()[1]) * 1024
    return 0


def voluntary_switches(pid):
    total = 0
    for task in pathlib.Path(f'/proc/{pid}/task').iterdir():
        for line in (task / 'status').read_text(encoding='ascii').split('\n'):
            if line.startswith('voluntary_ctxt_switches'):
                total += int(line.split()[1])
    return total


class Counterd:
    """A counterd of its own, with its port and its figures."""

    def __init__(self, bench, options):
        config = {
            'namespace': f'bench{len(bench.processes)}',
            'listen': {'udp': ['127.0.0.1:0'], 'tcp': [], 'http': '127.0.0.1:0'},
            'redis': {'url': f'unix://{bench.redis_socket}'},
        } | options
        path = bench.directory / f'{config["namespace"]}.json'
        log = bench.directory / f'{config["namespace"]}.log'
        path.write_text(json.dumps(config), encoding='ascii')
        self.namespace = config['namespace']
        self.process = bench.start([bench.build / 'counterd/counterd', '-c', path], stderr=log.open('w'))
        self.pid = self.process.pid
        text = wait_until(lambda: 'kind=http' in log.read_text() and log.read_text())
        self.port = int(text.split('kind=udp address=127.0.0.1:')[1].split()[0])
        self.http = text.split('kind=http address=')[1].split()[0]
        wait_until(lambda: self.status()['ready'])

    def status(self):
        with urllib.request.urlopen(f'http://{self.http}/v1/status') as reply:
            return json.load(reply)

    def settled(self):
        """Its status, once all that it has is in Redis."""
        last = [-1, 0.0]

        def check():
            status = self.status()
            if status['received']['datagrams'] != last[0]:
                last[:] = [status['received']['datagrams'], time.monotonic()]
            quiet = time.monotonic() - last[1] > 0.25
            return quiet and status['pending'] == 0 and status

        return wait_until(check)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Bench:
    def __init__(self, build, rounds, seconds, only=''):
        self.build, self.rounds, self.seconds, self.only = build, rounds, seconds, only
        self.processes = []

    def __enter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='counterd-bench.'))
        self.redis_socket = self.directory / 'redis.sock'
        self.redis = self.start(['redis-server', '--port', '0', '--unixsocket', self.redis_socket, '--save', '',
                                 '--appendonly', 'no', '--dir', self.directory], stdout=subprocess.DEVNULL)
        wait_until(self.redis_socket.exists)
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
        shutil.rmtree(self.directory)

    def start(self, argv, **options):
        process = subprocess.Popen([str(word) for word in argv], **options)
        self.processes.append(process)
        return process

    def redis_cli(self, *words):
        return subprocess.run(['redis-cli', '-s', self.redis_socket, *map(str, words)], capture_output=True, text=True,
                              check=True).stdout.strip()

    def blast(self, port, case, seconds=None):
        argv = [self.build / 'tests/bench/blast', port, '-s', seconds or self.seconds]
        for flag, name in (('-k', 'keys'), ('-l', 'lines'), ('-r', 'rate'), ('-g', 'segments'), ('-n', 'datagrams')):
            if case.get(name):
                argv += [flag, case[name]]
        if case.get('tags'):
            argv.append('-t')
        out = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True).stdout
        return json.loads(out)

    def bare_round(self, case, pausing=False):
        """One round of the bare loop."""
        argv = [self.build / 'tests/bench/bare'] + ['-g'] * bool(case.get('segments')) + ['-p'] * pausing
        bare = self.start(argv, stdout=subprocess.PIPE, text=True)
        port = int(bare.stdout.readline())
        sent = self.blast(port, case)
        time.sleep(0.05)
        bare.send_signal(signal.SIGTERM)
        got = json.loads(bare.communicate()[0])
        self.processes.remove(bare)
        return round_of(case, sent, got['datagrams'], got['cpu_seconds'])

    def counterd_round(self, counterd, case):
        """The same for counterd, all the way into Redis."""
        before, cpu = counterd.settled(), cpu_seconds(counterd.pid)
        sent = self.blast(counterd.port, case)
        after = counterd.settled()
        lines = after['accepted'] - before['accepted']
        datagrams = after['received']['datagrams'] - before['received']['datagrams']
        assert lines == datagrams * case['lines'], 'counterd did not count what it received'
        result = round_of(case, sent, datagrams, cpu_seconds(counterd.pid) - cpu)
        result['appended_batches'] = after['appended']['batches'] - before['appended']['batches']
        return result


def round_of(case, sent, datagrams, cpu):
    return {
        'offered_per_s': sent['lines'] / sent['seconds'],
        'sender_cores': sent['cpu_seconds'] / sent['seconds'],
        'loss': 1 - datagrams / sent['datagrams'],
        'cpu_seconds': cpu,
        'lines_per_cpu_s': datagrams * case['lines'] / cpu,
    }


def spread(values):
    values = list(values)
    return {'min': min(values), 'median': statistics.median(values), 'max': max(values)}


def million(value):
    return f'{value / 1e6:.2f} M'


def percent(value):
    return f'{value * 100:.1f} %'


def print_table(head, rows):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ['-' * width for width in widths], *rows]:
        print('| ' + ' | '.join(str(cell).ljust(width) for cell, width in zip(row, widths)) + ' |', flush=True)


@contextlib.contextmanager
def watching(counterd, paths):
    """Somebody who asks for these each second."""
    ended = threading.Event()

    def watch():
        while not ended.wait(1):
            for path in paths:
                with urllib.request.urlopen(f'http://{counterd.http}{path}') as reply:
                    reply.read()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextlib.contextmanager
def running(bench, options):
    """A counterd with a Redis that is empty again afterwards."""
    counterd = Counterd(bench, options)
    try:
        yield counterd
    finally:
        counterd.stop()
        bench.processes.remove(counterd.process)
        bench.redis_cli('FLUSHALL')
