"""A network of processes on this machine for measurements: the code that umbel-lab and tor-lab share.

A Lab owns a work folder with the built programs loadgen and netdelay, the network namespaces that the conditions need,
and its processes. The end of its `with` block ends the processes, by their ids, and removes the namespaces and the
folder. SIGINT, SIGTERM and --limit end the block.
"""

import argparse
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

FOLDER = os.path.dirname(os.path.realpath(__file__))
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
TICKS = os.sysconf('SC_CLK_TCK')
CONGESTION_CONTROL = '/proc/sys/net/ipv4/tcp_congestion_control'
# A namespace can use only the algorithms in this file. An administrator can add others that the kernel has.
ALLOWED_CONTROLS = '/proc/sys/net/ipv4/tcp_allowed_congestion_control'
# First three bytes of the addresses that netdelay assigns.
NET = '10.77.0'
# Time limit of one run of loadgen, in seconds.
LOAD_TIMEOUT = 90
# Number of bulk streams of a mix, each on its own circuit.
MIX_STREAMS = 16
# Number of the user name, and of requests, of the light circuit of a mix.
MIX_LIGHT_USER = 100
MIX_LIGHT_REQUESTS = 20
# Duration of the measurement `beside`, in seconds.
BESIDE_SECS = 20
# Longest run of the bulk streams of a mix, in seconds.
MIX_SECS = 100
# Rows of loadgen that are not printed.
HIDDEN = re.compile(
    r'\.rss_\w+_pid|'
    r'\.(samples|bytes|streams|concurrency|loadgen_cores|cpu|(connect|total|rtt|latency)_(min|max)|seconds)$'
)


def parser(description, default_measurements, other_measurements):
    """The options of both labs."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        '--only',
        default=','.join(default_measurements),
        metavar='A,B',
        help=f'measurements: {", ".join(default_measurements)} (the default), {", ".join(other_measurements)}',
    )
    options.add_argument('--secs', type=float, default=6, help='length of each throughput run (default 6)')
    options.add_argument('--keep', action='store_true', help='measure nothing; print the addresses and keep running')
    options.add_argument(
        '--limit', type=int, default=0, metavar='SECS', help='end after this many seconds'
    )
    options.add_argument(
        '--end-with-parent', action='store_true', help='end when the parent process ends'
    )
    options.add_argument('--dir', help='work folder, emptied before and kept after (default: a temporary one)')
    link = options.add_argument_group(
        'conditions',
        'Any of the first three puts every node into a network namespace of its own, '
        'which needs root. Without them everything is on 127.0.0.1.',
    )
    link.add_argument('--delay-ms', type=float, default=0, help='one way, on each link')
    link.add_argument('--loss', type=float, default=0, help='percent of packets dropped')
    link.add_argument('--rate-mbit', type=float, default=0, help='into each node, with 100 ms of queue')
    link.add_argument('--jitter-ms', type=float, default=0, help='maximum additional delay; the order is kept')
    link.add_argument('--reorder', type=float, default=0, help='percent of packets held 5 ms longer')
    link.add_argument('--mtu', type=int, default=1500)
    link.add_argument('--trace', metavar='FILE', help='every 10 ms the queue before each node, in milliseconds')
    link.add_argument('--tcp-cc', metavar='NAME', help="TCP's congestion control in the namespaces (default bbr)")
    return options


def print_row(name, value, unit):
    """Prints one figure."""
    text = f'{value:.6g}' if isinstance(value, (int, float)) else value
    print(name, text, unit, flush=True)


def die_with_parent():
    """Makes the kernel end this process when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def on_signal(number, _frame):
    """Ends this process after its `finally` blocks."""
    sys.exit('lab: not done within --limit' if number == signal.SIGALRM else 128 + number)


def resident_mib(pid):
    with open(f'/proc/{pid}/status') as status:
        return int(re.search(r'VmRSS:\s+(\d+)', status.read())[1]) / 1024


def private_kib(pid):
    """The private memory of a process, without its program's file."""
    with open(f'/proc/{pid}/status') as status:
        return int(re.search(r'RssAnon:\s+(\d+)', status.read())[1])


def cpu_ticks(pid, with_children=False):
    with open(f'/proc/{pid}/stat') as stat:
        fields = stat.read().rsplit(')', 1)[1].split()
    return sum(map(int, fields[11 : 15 if with_children else 13]))


def cpu_seconds(pids):
    return sum(cpu_ticks(pid) for pid in pids) / TICKS


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)


class Lab:
    """Processes of one network, by the names of its nodes, and the load on them."""

    def __init__(self, options, nodes, client, hosts=None):
        """`hosts` maps nodes to the numbers of their namespaces. By default each node has its own."""
        self.options = options
        self.nodes = nodes
        self.client = client
        self.only = set(options.only.split(','))
        self.namespaced = options.delay_ms > 0 or options.loss > 0 or options.rate_mbit > 0
        self.hosts = hosts or {node: number for number, node in enumerate(nodes + ['origin'])}
        self.prefix = f'lab{os.getpid()}n'
        self.processes = {}
        self.folder = options.dir
        self.target = None
        # Seconds in which a stream reaches its rate, before the measurement starts.
        self.ramp = 1.5 if not self.namespaced else 6 if options.delay_ms <= 50 else 12
        # Number of latency samples, for about a second.
        self.samples = 100 if not self.namespaced else max(10, int(1000 / max(1, options.delay_ms)))

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, on_signal)
        signal.alarm(self.options.limit)
        if self.options.end_with_parent:
            die_with_parent()
        try:
            self.prepare()
        except BaseException:
            self.clean_up()
            raise
        return self

    def __exit__(self, *_):
        self.clean_up()

    def prepare(self):
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.makedirs(self.folder)
        else:
            self.folder = tempfile.mkdtemp(prefix='lab.')
        for program in ('loadgen', 'netdelay') if self.namespaced else ('loadgen',):
            source = f'{FOLDER}/{program}.c'
            subprocess.run(['cc', '-O2', '-w', '-o', f'{self.folder}/{program}', source], check=True)
        if self.namespaced:
            self.make_namespaces()

    def clean_up(self):
        """Ends every process and removes the namespaces. Signals are ignored meanwhile."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        # netdelay removes the namespaces, so it ends last.
        netdelay = self.processes.pop('netdelay', None)
        for process in self.processes.values():
            process.terminate()
        for process in [*self.processes.values(), netdelay]:
            if process:
                end(process)
        self.processes.clear()
        if not self.options.dir and self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- namespaces

    def make_namespaces(self):
        if os.geteuid():
            sys.exit('lab: network namespaces need root: run it as root, or without --delay-ms, --loss and --rate-mbit')
        options = self.options
        command = [f'{self.folder}/netdelay', '--prefix', self.prefix, '--net', NET]
        for name, value in (
            ('n', max(self.hosts.values()) + 1),
            ('mtu', options.mtu),
            ('delay-ms', options.delay_ms),
            ('loss', options.loss / 100),
            ('rate-mbit', options.rate_mbit),
            ('jitter-ms', options.jitter_ms),
            ('reorder', options.reorder / 100),
        ):
            command += [f'--{name}', str(value)]
        if options.trace:
            command += ['--trace', options.trace]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes['netdelay'] = process
        if process.stdout.readline().strip() != 'ready':
            sys.exit('lab: netdelay created no namespaces')
        control = options.tcp_cc or 'bbr'
        for node in self.hosts:
            set_control = self.inside(node, ['sh', '-c', f'echo {control} > {CONGESTION_CONTROL}'])
            if subprocess.run(set_control, stderr=subprocess.DEVNULL).returncode:
                sys.exit(f'lab: unknown TCP congestion control {control}: choose one of {ALLOWED_CONTROLS} with --tcp-cc')
        print_row('one_way_delay_per_link', options.delay_ms, 'ms')
        print_row('loss_per_link', options.loss, '%')
        print_row('tcp_cc_in_namespaces', control, 'text')

    def address(self, node):
        return f'{NET}.{self.hosts[node] + 1}' if self.namespaced else '127.0.0.1'

    def namespace(self, node):
        return f'{self.prefix}{self.hosts[node]}'

    def inside(self, node, command):
        """The command that runs `command` in the namespace of `node`."""
        return ['ip', 'netns', 'exec', self.namespace(node)] + command if self.namespaced else command

    # ---- processes

    def spawn(self, node, command, log):
        """Starts a node's process, with its output in the file `log` of the work folder."""
        with open(f'{self.folder}/{log}', 'w') as output:
            # The pipe is the input of a program that ends with its input.
            process = subprocess.Popen(
                self.inside(node, command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        self.processes[node] = process
        return process

    def start_origin(self, port):
        self.target = f'{self.address("origin")}:{port}'
        self.spawn('origin', [f'{self.folder}/loadgen', 'origin', '--listen', self.target], 'origin.log')

    def pid(self, node):
        return self.processes[node].pid

    def pids(self):
        """The processes of the network, without origin. During `bulk_beside`, includes the load generator of the bulk load."""
        return [process.pid for node, process in self.processes.items() if node not in ('origin', 'netdelay')]

    def print_memory(self, name, nodes):
        for node in nodes:
            print_row(f'{name}.{node}', resident_mib(self.pid(node)), 'MiB')

    def fail(self, message, log):
        """Ends the lab with the last lines of a log."""
        with contextlib.suppress(OSError), open(f'{self.folder}/{log}') as file:
            message += ':\n' + file.read()[-500:]
        sys.exit('lab: ' + message)

    def stay_up(self):
        """Runs until a signal, for --keep."""
        while True:
            signal.pause()

    # ---- load

    def foreign_cpu(self):
        """Processor seconds of all other programs on this machine, which disturb the figures of this lab.

        Sums the times of each process and of its reaped children, because the ticks of /proc/stat miss short bursts.
        """
        own = {os.getpid()} | {process.pid for process in self.processes.values()}
        ticks = 0
        for entry in os.listdir('/proc'):
            if entry.isdigit() and int(entry) not in own:
                with contextlib.suppress(OSError, IndexError):
                    ticks += cpu_ticks(entry, with_children=True)
        return ticks / TICKS

    def loadgen(self, prefix, mode, socks, *arguments):
        """The command for a loadgen run beside the client."""
        pids = ','.join(map(str, self.pids()))
        command = [
            f'{self.folder}/loadgen',
            mode,
            '--target',
            self.target,
            '--socks',
            socks,
            '--prefix',
            prefix + '.',
            '--pids',
            pids,
            *map(str, arguments),
        ]
        return self.inside(self.client, command)

    def load(self, prefix, mode, socks, *arguments):
        """Runs loadgen and prints its figures, unless the prefix ends with `warm`. Returns the figures by name."""
        quiet = prefix.endswith('warm')
        started, foreign = time.time(), self.foreign_cpu()
        try:
            result = subprocess.run(
                self.loadgen(prefix, mode, socks, *arguments), stdout=subprocess.PIPE, text=True, timeout=LOAD_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            print_row(prefix + '.timeout', 1, 'flag')
            return {}
        figures = {}
        for line in result.stdout.splitlines():
            name, value, _unit = line.split(' ', 2)
            figures[name[len(prefix) + 1 :]] = float(value)
            no_error = name.endswith(('.errors', '.corrupt')) and float(value) == 0
            if not (quiet or no_error or HIDDEN.search(name)):
                print(line, flush=True)
        if not quiet:
            print_row(prefix + '.foreign_cores', (self.foreign_cpu() - foreign) / (time.time() - started), 'cores')
        return figures

    def measure(self, name, socks, bulk_1_runs=1, shares=()):
        """Runs the measurements of a client that both labs have and --only selects.

        `shares` are nodes whose processor time over all bulk_1 runs is printed.
        """
        secs = ('--secs', self.options.secs)
        bulk = ('bulk', socks, '--ramp', self.ramp, *secs, '--streams')
        wanted = self.only.intersection
        self.load(f'{name}.warm', 'ttfb', socks, '--n', 3)
        if wanted({'ttfb'}):
            self.load(f'{name}.ttfb', 'ttfb', socks, '--n', self.samples)
            self.load(f'{name}.echo', 'echo', socks, '--n', self.samples + 1)
        if wanted({'ttfbnew'}):
            self.load(f'{name}.ttfb_new_circuit', 'ttfb', socks, '--n', 40, '--circuits', 40)
        if wanted({'bulk', 'bulk_1'}):
            before = {node: cpu_seconds([self.pid(node)]) for node in shares}
            for _ in range(bulk_1_runs):
                self.load(f'{name}.bulk_1', *bulk, 1)
            for node, cpu in before.items():
                print_row(f'{name}.bulk_1.cpu_{node}_share', cpu_seconds([self.pid(node)]) - cpu, 's_over_all_bulk_1')
        if wanted({'bulk'}):
            self.load(f'{name}.bulk_4', *bulk, 4)
            self.load(f'{name}.bulk_16', *bulk, 16)
        if wanted({'bulk', 'bulk_16_circ16'}):
            self.load(f'{name}.bulk_16_circ16.warm', 'hold', socks, '--streams', 16, '--circuits', 16, '--secs', 0.1)
            self.load(f'{name}.bulk_16_circ16', *bulk, 16, '--circuits', 16)
        if wanted({'mix'}):
            self.mix(f'{name}.mix', socks)
        if wanted({'beside'}):
            self.beside(f'{name}.beside', socks)
        if wanted({'up'}):
            self.load(f'{name}.up_1', 'bulk', socks, '--up', '--streams', 1, '--mib', 8 if self.namespaced else 32)
        if wanted({'rps'}):
            rps = ('rps', socks, '--conc', 64, *secs, '--ramp', 1)
            self.load(f'{name}.rps_64_new', *rps)
            self.load(f'{name}.rps_64_keep', *rps, '--keepalive')

    def mix(self, prefix, socks):
        """Measures the time to first byte on an already built circuit while 16 other circuits carry bulk streams."""
        light = ('ttfb', socks, '--circuits', 1, '--iso-base', MIX_LIGHT_USER, '--n')
        self.load(f'{prefix}.warm', *light, 1)
        streams = ('--streams', MIX_STREAMS, '--circuits', MIX_STREAMS, '--secs', MIX_SECS)
        with self.bulk_beside(prefix, socks, *streams):
            time.sleep(self.ramp + 2)
            self.load(f'{prefix}.ttfb', *light, MIX_LIGHT_REQUESTS)

    def beside(self, prefix, socks):
        """Measures a stream and a TCP connection from the origin to the client, over the same line into the client."""
        seconds = ('--streams', 1, '--secs', BESIDE_SECS)
        with self.bulk_beside(f'{prefix}.overlay', socks, *seconds):
            self.load(f'{prefix}.tcp', 'bulk', 'direct', '--ramp', self.ramp, *seconds)
            time.sleep(1)

    @contextlib.contextmanager
    def bulk_beside(self, prefix, socks, *arguments):
        """Runs a bulk load while the block runs, ends it and prints its throughput."""
        command = self.loadgen(prefix, 'bulk', socks, '--ramp', self.ramp, *arguments)
        bulk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        self.processes['bulk'] = bulk
        yield
        bulk.terminate()
        output, _ = bulk.communicate(timeout=10)
        del self.processes['bulk']
        for line in output.splitlines():
            if re.search('throughput|stream_|jain', line):
                print(line, flush=True)


def end(process):
    """Ends a process by its id and waits for it."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
