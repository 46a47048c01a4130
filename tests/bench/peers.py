"""peers - other statsd servers, as Debian and npm ship them, each with a configuration that spares it what it can."""
import pathlib
import shutil
import socket
import subprocess
import time

from harness import cpu_seconds, million, percent, print_table, round_of, running, spread, wait_until

CASES = {
    '1 line, 10 k keys': {'lines': 1, 'keys': 10_000},
    '20 lines, 10 k keys': {'lines': 20, 'keys': 10_000},
}

COLLECTD = """
BaseDir "{directory}"
PIDFile "{directory}/collectd.pid"
PluginDir "/usr/lib/collectd"
TypesDB "/usr/share/collectd/types.db"
Interval 10
LoadPlugin statsd
<Plugin statsd>
  Host "127.0.0.1"
  Port "{port}"
</Plugin>
"""

NETDATA = """
[global]
  run as user = root
[directories]
  cache = {directory}
  lib = {directory}
  log = {directory}
[logs]
  debug = none
  error = none
  access = none
[db]
  mode = ram
[web]
  mode = none
[ml]
  enabled = no
[health]
  enabled = no
[plugins]
  enable running new plugins = no
  proc = no
  diskspace = no
  cgroups = no
  tc = no
  idlejitter = no
  timex = no
  apps = no
  statsd = yes
[statsd]
  enabled = yes
  bind to = udp:127.0.0.1:{port}
  default port = {port}
  create private charts for metrics matching = !*
"""

STATSD = "{{ port: {port}, address: '127.0.0.1', mgmt_port: 0, backends: [], servers: [{{ server: './servers/udp', " \
         "address: '127.0.0.1', port: {port} }}], flushInterval: 10000 }}\n"


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def udp_socket(port):
    """The line of /proc/net/udp of the socket that hears on the port: its queue in bytes and its drops, or None."""
    for line in pathlib.Path('/proc/net/udp').read_text(encoding='ascii').split('\n')[1:]:
        fields = line.split()
        if fields and fields[1] == f'0100007F:{port:04X}':
            return int(fields[4].split(':')[1], 16), int(fields[12])
    return None


def install(bench):
    """From the registries: Debian's packages, npm's statsd into the build directory."""
    missing = [package for binary, package in (('collectd', 'collectd-core'), ('netdata', 'netdata-core'))
               if not find(binary)]
    if missing:
        subprocess.run(['apt-get', 'install', '-qq', '-y', '--no-install-recommends', *missing], check=True,
                       stdout=subprocess.DEVNULL)
    if not statsd_script(bench).exists():
        subprocess.run(['npm', 'install', '--silent', '--prefix', bench.build / 'bench/peers', 'statsd'], check=True,
                       stdout=subprocess.DEVNULL)


def find(binary):
    return shutil.which(binary, path='/usr/bin:/usr/sbin')


def statsd_script(bench):
    return bench.build / 'bench/peers/node_modules/statsd/stats.js'


def commands(bench, port):
    """How each peer that is there is started."""
    def config(name, text):
        path = bench.directory / name
        path.write_text(text.format(port=port, directory=bench.directory), encoding='ascii')
        return path

    found = {}
    if find('netdata'):
        found['netdata'] = [find('netdata'), '-D', '-c', config('netdata.conf', NETDATA)], None
    if find('collectd'):
        found['collectd'] = [find('collectd'), '-f', '-C', config('collectd.conf', COLLECTD)], None
    if statsd_script(bench).exists():
        found['statsd (node)'] = ['node', statsd_script(bench), config('statsd.js', STATSD)], statsd_script(bench).parent
    return found


def peer_round(bench, peer, port, case):
    drops, cpu = udp_socket(port)[1], cpu_seconds(peer.pid)
    sent = bench.blast(port, case)
    wait_until(lambda: udp_socket(port)[0] == 0)
    time.sleep(0.3)
    lost = udp_socket(port)[1] - drops
    return round_of(case, sent, sent['datagrams'] - lost, cpu_seconds(peer.pid) - cpu)


def peers(bench):
    """The same datagrams for counterd and for others, in turns; what they received by the kernel's drop counts."""
    results, rows = {}, []
    install(bench)
    for name, case in CASES.items():
        port = free_port()
        sides = {'bare': [], 'counterd': []}
        with running(bench, {}) as counterd:
            others = {}
            for peer, (argv, directory) in commands(bench, port).items():
                # One at a time hears on the port; the others are stopped.
                sides[peer] = []
                others[peer] = argv, directory
            for _ in range(bench.rounds):
                sides['bare'].append(bench.bare_round(case))
                sides['counterd'].append(bench.counterd_round(counterd, case))
                for peer, (argv, directory) in others.items():
                    process = bench.start(argv, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    wait_until(lambda: udp_socket(port))
                    bench.blast(port, case, 0.3)
                    # Some hear long before they read.
                    wait_until(lambda: udp_socket(port)[0] == 0)
                    sides[peer].append(peer_round(bench, process, port, case))
                    process.kill()
                    process.wait()
                    bench.processes.remove(process)
        results[name] = sides
        bare = spread(r['lines_per_cpu_s'] for r in sides['bare'])['median']
        for side, rounds in sides.items():
            speed = spread(r['lines_per_cpu_s'] for r in rounds)
            rows.append([name, side, million(speed['median']), percent(speed['median'] / bare),
                         percent(max(r['loss'] for r in rounds))])
    print_table(['case', 'side', 'lines/CPU s, median', 'of bare', 'loss, worst'], rows)
    return results
