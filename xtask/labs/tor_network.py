"""A private Tor network for tor-lab: keys, configuration, start, and the control port.

Three directory authorities (a0 to a2), four relays (r0 and r3 entries, r1 middle, r2 exit) and two clients: c0, whose
path is (r0 or r3)-r1-r2 with Conflux off, and c1 with Conflux allowed. An Arti client can be added.
"""

import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time

from lab import LIBC, print_row, write

AUTHORITIES = ['a0', 'a1', 'a2']
RELAYS = ['r0', 'r1', 'r2', 'r3']
ENTRIES, MIDDLE, EXIT = ['r0', 'r3'], 'r1', 'r2'
CLIENT, CONFLUX_CLIENT = 'c0', 'c1'
NODES = AUTHORITIES + RELAYS + [CLIENT, CONFLUX_CLIENT]
# The Conflux client shares the client's namespace.
HOSTS = {node: min(number, NODES.index(CLIENT)) for number, node in enumerate(NODES)} | {
    'origin': NODES.index(CLIENT) + 1
}
CONSENSUS_TIMEOUT = 150
CLIENT_RESTARTS = 6
ARTI_TIMEOUT = 60
# Offsets from --base-port, above the ten ports of each node.
ARTI_PORT, ORIGIN_PORT = 95, 99

EVERY_NODE = """\
TestingTorNetwork 1
SafeLogging 0
ShutdownWaitLength 0
ControlPort {control}
CookieAuthentication 0
LogTimeGranularity 1
AssumeReachable 1
PathsNeededToBuildCircuits 0.25
CircuitBuildTimeout 30
LearnCircuitBuildTimeout 0
DataDirectory {folder}/{node}
Log {log} file {folder}/{node}/log
{authorities}
"""
EVERY_SERVER = """\
Address {address}
SocksPort 0
Nickname {node}
ContactInfo {node}@test.invalid
ORPort {address}:{onion}
AddressDisableIPv6 1
NumCPUs 2
ExtendAllowPrivateAddresses 1
DirCache 1
"""
# Clients use only Fast and Stable relays as guards.
AUTHORITY = """\
DirPort {address}:{directory}
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
TestingV3AuthInitialVotingInterval 20
TestingV3AuthInitialVoteDelay 4
TestingV3AuthInitialDistDelay 4
V3AuthVotingInterval 20
V3AuthVoteDelay 4
V3AuthDistDelay 4
V3AuthNIntervalsValid 20
TestingDirAuthVoteGuard {entries}
TestingDirAuthVoteGuardIsStrict 1
TestingMinExitFlagThreshold 0
AuthDirFastGuarantee 1
MinMeasuredBWsForAuthToIgnoreAdvertised 0
V3BandwidthsFile {folder}/bw
ExitPolicy reject *:*
"""
RELAY = """\
MetricsPort {address}:{directory}
MetricsPortPolicy accept *
"""
EXIT_RELAY = """\
ExitRelay 1
ExitPolicyRejectPrivate 0
IPv6Exit 0
ExitPolicy accept *:*
"""
EVERY_CLIENT = """\
SocksPort 127.0.0.1:{socks}
ClientRejectInternalAddresses 0
EnforceDistinctSubnets 0
EntryNodes {entries}
ExitNodes {exit}
MaxCircuitDirtiness 3600
MaxClientCircuitsPending 1024
"""
ARTI = """\
[application]
permit_debugging = true
allow_running_as_root = true
[proxy]
socks_listen = "127.0.0.1:{port}"
[logging]
console = "info"
[storage]
cache_dir = "{folder}/arti/cache"
state_dir = "{folder}/arti/state"
[storage.permissions]
dangerously_trust_everyone = true
[address_filter]
allow_local_addrs = true
[path_rules]
ipv4_subnet_family_prefix = 33
ipv6_subnet_family_prefix = 129
[override_net_params]
[tor_network]
fallback_caches = [ {caches} ]
[tor_network.authorities]
v3idents = [ {identities} ]
uploads = [ {addresses} ]
downloads = [ {addresses} ]
votes = [ {addresses} ]
"""
ARTI_CACHE = '{{ rsa_identity = "{fingerprint}", ed_identity = "{ed25519}", orports = ["{address}:{onion}"] }}'


def find_tor():
    """The program of Debian's package `tor`."""
    tor = shutil.which('tor') or shutil.which('tor', path='/usr/sbin')
    if not tor or not shutil.which('tor-gencert'):
        sys.exit('tor-lab: tor or tor-gencert is not installed: install the package tor (`cargo xtask compare` does)')
    return tor


class Tor:
    """The Tor network of a lab."""

    def __init__(self, lab, log, parameters):
        self.lab = lab
        self.log = log
        self.parameters = parameters
        self.program = find_tor()
        # The fingerprints of the servers' keys, and of the authorities' signing identities.
        self.fingerprints, self.identities = {}, {}

    def version(self):
        words = subprocess.run([self.program, '--version'], capture_output=True, text=True).stdout.split()
        return words[2].rstrip('.')

    def ports(self, node):
        """Onion, directory, control and SOCKS port of a node."""
        first = self.lab.options.base_port + 10 * (NODES.index(node) if node in NODES else len(NODES))
        return {'onion': first, 'directory': first + 1, 'control': first + 2, 'socks': first + 3}

    def socks(self, node):
        return f'127.0.0.1:{self.ports(node)["socks"]}'

    def path(self, node):
        return f'{self.lab.folder}/{node}'

    # ---- configuration

    def configure(self):
        """Makes the keys of all servers and the configuration of all nodes."""
        for node in NODES:
            os.makedirs(f'{self.path(node)}/keys', 0o700)
            os.chmod(self.path(node), 0o700)
        self.make_identities()
        for node in AUTHORITIES + RELAYS:
            self.fingerprints[node] = self.make_fingerprint(node)
        for node in NODES:
            write(f'{self.path(node)}/torrc', self.torrc(node))

    def make_identities(self):
        """Makes the signing identities of the authorities, concurrently because each takes seconds."""
        running = []
        for node in AUTHORITIES:
            address = f'{self.lab.address(node)}:{self.ports(node)["directory"]}'
            command = ['tor-gencert', '--create-identity-key', '--passphrase-fd', '0', '-m', '12', '-a', address]
            process = subprocess.Popen(
                command,
                cwd=f'{self.path(node)}/keys',
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            process.stdin.write(b'lab\n')
            process.stdin.close()
            running.append(process)
        if any([process.wait() for process in running]):
            sys.exit('tor-lab: tor-gencert failed')
        for node in AUTHORITIES:
            with open(f'{self.path(node)}/keys/authority_certificate') as certificate:
                self.identities[node] = re.search(r'^fingerprint (\w+)', certificate.read(), re.M)[1]

    def make_fingerprint(self, node):
        command = [
            self.program,
            '--quiet',
            '--list-fingerprint',
            '-f',
            '/nonexistent',
            '--ignore-missing-torrc',
            '--DataDirectory',
            self.path(node),
            '--ORPort',
            '1',
            '--DirAuthority',
            'x 127.0.0.1:1 ' + 'F' * 40,
        ]
        output = subprocess.run(command, capture_output=True, text=True).stdout
        fingerprint = ''.join(output.split()[1:])
        if len(fingerprint) != 40:
            sys.exit(f'tor-lab: tor printed no fingerprint: {output}')
        return fingerprint

    def torrc(self, node):
        prints = self.fingerprints
        text = EVERY_NODE
        if self.lab.namespaced:
            text += 'OutboundBindAddress {address}\n'
        if node in AUTHORITIES:
            text += EVERY_SERVER + AUTHORITY
            if self.parameters:
                text += f'ConsensusParams {self.parameters}\n'
        elif node in RELAYS:
            text += EVERY_SERVER + (EXIT_RELAY if node == EXIT else 'ExitPolicy reject *:*\n') + RELAY
        elif node == CLIENT:
            text += EVERY_CLIENT + f'NumEntryGuards 1\nMiddleNodes {prints[MIDDLE]}\nConfluxEnabled 0\n'
        else:
            text += EVERY_CLIENT + 'NumEntryGuards 2\nConfluxEnabled 1\n'
        return text.format(
            node=node,
            folder=self.lab.folder,
            log=self.log,
            address=self.lab.address(node),
            authorities=self.authority_lines(),
            entries=','.join(prints[entry] for entry in ENTRIES),
            exit=prints[EXIT],
            **self.ports(node),
        )

    def authority_lines(self):
        return '\n'.join(
            f'DirAuthority {node} orport={self.ports(node)["onion"]} no-v2 v3ident={self.identities[node]} '
            f'{self.lab.address(node)}:{self.ports(node)["directory"]} {self.fingerprints[node]}'
            for node in AUTHORITIES
        )

    # ---- start

    def start(self):
        """Starts the network and waits until both clients are ready."""
        started = time.time()
        # A relay is Stable if its uptime, in whole seconds, is at least the median of the relays whose bandwidth is
        # measured. So all have the same measure, and the relays that must not be guards start later.
        measured = ''.join(f'node_id=${self.fingerprints[node]} bw=10000 nick={node}\n' for node in RELAYS)
        write(f'{self.lab.folder}/bw', f'{int(started)}\n{measured}')
        for node in AUTHORITIES + ENTRIES:
            self.spawn(node)
        time.sleep(3)
        for node in (MIDDLE, EXIT):
            self.spawn(node)
        # The clients start when both entries can answer them.
        while not all(is_full(self.flags(entry)) for entry in ENTRIES):
            if time.time() - started > CONSENSUS_TIMEOUT:
                sys.exit(f'tor-lab: no full consensus after {CONSENSUS_TIMEOUT} s: {self.flags(ENTRIES[0])}')
            time.sleep(0.5)
        print_row('full_consensus', time.time() - started, 's')
        self.start_clients()
        print_row('bootstrap_network', time.time() - started, 's')

    def spawn(self, node):
        self.lab.spawn(node, [self.program, '-f', f'{self.path(node)}/torrc', '--quiet'], f'{node}/stdout')

    def flags(self, node):
        """Flags of each relay in a node's consensus; none while the node lacks the microdescriptors."""
        try:
            with open(f'{self.path(node)}/cached-microdesc-consensus') as file:
                consensus = file.read()
            with open(f'{self.path(node)}/cached-microdescs.new') as file:
                descriptors = file.read()
        except OSError:
            return {}
        flags = dict(re.findall(r'^r (\S+) .*?^s ([^\n]*)', consensus, re.M | re.S))
        return flags if descriptors.count('\nonion-key') >= len(flags) else {}

    def start_clients(self):
        """Starts the clients. A client without a permitted entry in its guard sample is restarted without state."""
        clients = [CLIENT, CONFLUX_CLIENT]
        for node in clients:
            self.spawn(node)
        restarts = 0
        for node in clients:
            while not self.is_ready(node, 90 if self.lab.namespaced else 25):
                restarts += 1
                if restarts > CLIENT_RESTARTS:
                    self.lab.fail(f'{node} does not bootstrap', f'{node}/log')
                self.forget_state(node)
                self.spawn(node)
        print_row('client_restarts', restarts, 'count')

    def forget_state(self, node):
        process = self.lab.processes[node]
        process.terminate()
        process.wait(10)
        for name in os.listdir(self.path(node)):
            file = f'{self.path(node)}/{name}'
            if name != 'torrc' and not os.path.isdir(file):
                os.remove(file)

    def is_ready(self, node, limit):
        """Waits until a client has bootstrapped; false if it does not within `limit` seconds."""
        end = time.time() + limit
        while time.time() < end:
            with contextlib.suppress(OSError, RuntimeError, EOFError), self.control(node) as control:
                if 'PROGRESS=100' in control.command('GETINFO status/bootstrap-phase')[0]:
                    return True
            if self.lab.processes[node].poll() is not None:
                self.lab.fail(f'{node} ended', f'{node}/log')
            time.sleep(0.5)
        return False

    def control(self, node):
        namespace = f'/run/netns/{self.lab.namespace(node)}' if self.lab.namespaced else None
        return Control(self.ports(node)['control'], namespace)

    # ---- Arti

    def start_arti(self, program):
        """Starts an Arti client and returns its SOCKS port's address; None if it does not bootstrap."""
        port = self.lab.options.base_port + ARTI_PORT
        os.makedirs(f'{self.lab.folder}/arti', 0o700)
        write(f'{self.lab.folder}/arti.toml', self.arti_configuration(port))
        started = time.time()
        process = self.lab.spawn('arti', [program, 'proxy', '-c', f'{self.lab.folder}/arti.toml'], 'arti.log')
        while time.time() - started < ARTI_TIMEOUT:
            with open(f'{self.lab.folder}/arti.log') as log:
                if 'Sufficiently bootstrapped' in log.read():
                    print_row('arti.bootstrap', time.time() - started, 's')
                    return f'127.0.0.1:{port}'
            if process.poll() is not None:
                break
            time.sleep(0.2)
        print(f'# arti did not bootstrap; see {self.lab.folder}/arti.log', file=sys.stderr)
        return None

    def arti_configuration(self, port):
        caches = [
            ARTI_CACHE.format(
                fingerprint=self.fingerprints[node],
                ed25519=self.ed25519(node),
                address=self.lab.address(node),
                onion=self.ports(node)['onion'],
            )
            for node in AUTHORITIES
        ]
        addresses = [f'["{self.lab.address(node)}:{self.ports(node)["directory"]}"]' for node in AUTHORITIES]
        identities = [f'"{self.identities[node]}"' for node in AUTHORITIES]
        return ARTI.format(
            port=port,
            folder=self.lab.folder,
            caches=', '.join(caches),
            identities=', '.join(identities),
            addresses=', '.join(addresses),
        )

    def ed25519(self, node):
        with open(f'{self.path(node)}/keys/ed25519_master_id_public_key', 'rb') as key:
            return base64.b64encode(key.read()[-32:]).decode().rstrip('=')


def is_full(flags):
    """Whether a consensus has every relay, with the flags that clients need."""
    return (
        len(flags) == len(AUTHORITIES + RELAYS)
        and all('Running' in of_relay for of_relay in flags.values())
        and 'Exit' in flags[EXIT]
        and all({'Guard', 'Stable', 'Fast'} <= set(flags[entry].split()) for entry in ENTRIES)
    )


class Control:
    """A connection to a Tor control port."""

    def __init__(self, port, namespace):
        self.pending = b''
        # The port is on the namespace's loopback, so the socket must be made there.
        with contextlib.nullcontext() if namespace is None else entered(namespace):
            self.socket = socket.create_connection(('127.0.0.1', port), 5)
        self.socket.settimeout(60)
        self.command('AUTHENTICATE')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, command):
        self.socket.sendall(command.encode() + b'\r\n')

    def line(self):
        while b'\r\n' not in self.pending:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError
            self.pending += more
        line, self.pending = self.pending.split(b'\r\n', 1)
        return line.decode('latin1')

    def command(self, command):
        """The lines that answer a command; events between them are skipped."""
        self.send(command)
        answer = []
        while True:
            line = self.line()
            if line.startswith('650'):
                continue
            answer.append(line)
            if line[3:4] == '+':
                while (more := self.line()) != '.':
                    answer.append(more)
            elif line[3:4] == ' ':
                break
        if not answer[-1].startswith('250'):
            raise RuntimeError(f'{command}: {answer[-1]}')
        return answer

    def build_circuits(self, path, count, parallel):
        """Builds circuits, `parallel` at a time; returns build times in seconds, circuit numbers and failures."""
        self.command('SETEVENTS CIRC')
        times, circuits, failed = [], [], 0
        building, asked, left = {}, [], count
        while left or building or asked:
            while left and len(building) + len(asked) < parallel:
                self.send(f'EXTENDCIRCUIT 0 {path}')
                asked.append(time.perf_counter())
                left -= 1
            line = self.line()
            words = line.split()
            if line.startswith('250 EXTENDED'):
                building[words[2]] = asked.pop(0)
            elif line.startswith('650 CIRC') and words[2] in building:
                if words[3] == 'BUILT':
                    times.append(time.perf_counter() - building.pop(words[2]))
                    circuits.append(words[2])
                elif words[3] in ('FAILED', 'CLOSED'):
                    building.pop(words[2])
                    failed += 1
            elif line[0] in '45':
                asked.pop(0)
                failed += 1
        self.command('SETEVENTS')
        return times, circuits, failed

    def close_circuits(self, circuits):
        for circuit in circuits:
            self.command(f'CLOSECIRCUIT {circuit}')


@contextlib.contextmanager
def entered(namespace):
    """Puts this process into a network namespace during the block."""
    own, other = os.open('/proc/self/ns/net', os.O_RDONLY), os.open(namespace, os.O_RDONLY)
    try:
        if LIBC.setns(other, 0):
            raise OSError(f'setns {namespace}')
        yield
    finally:
        LIBC.setns(own, 0)
        os.close(own)
        os.close(other)
