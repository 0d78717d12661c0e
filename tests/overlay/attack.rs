//! Floods of CREATEs and ClientHellos against a relay: real processes in network namespaces. An honest client measures its circuits
//! meanwhile.
//!
//! `cargo xtask attack` runs all attacks for a minute each with optimised programs, and prints a table. Without its
//! variables the test runs one attack for a few seconds and asserts no time.

use std::{
    env, fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use super::{
    harness::*,
    machines::{Network, ip},
};

/// The machines. The address of each is in a network of its own.
const DIRECTORY: usize = 0;
const ATTACKED: usize = 1;
const RELAYS: [usize; 3] = [ATTACKED, 2, 3];
const CLIENT: usize = 4;
const TARGET: usize = 5;
const ATTACKER: usize = 6;
/// The other guards of an attack through eight guards. Relays 2 and 3 are guards too.
const FURTHER_GUARDS: Range<usize> = 7..13;

/// Seconds of the attack in the short form.
const SHORT: u64 = 6;
/// Longest wait for the links of the attacker. The caps of the relay may refuse some of them.
const LINKS_TIMEOUT: Duration = Duration::from_secs(20);
/// Least percentage of the honest client's circuits that stand.
const LEAST_STANDING: u64 = 95;

/// An attack: the sources of its links, and what it does with them.
struct Attack {
    name: &'static str,
    sources: Vec<IpAddr>,
    links_of_source: usize,
    /// Extends its circuits to another relay.
    extends: bool,
    /// Opens its links to each of eight other relays, and extends its circuits to the attacked relay.
    through_guards: bool,
    /// Opens no link, and sends ClientHellos with valid cookies instead.
    hellos: bool,
}

impl Attack {
    fn new(name: &'static str, sources: impl Iterator<Item = IpAddr>, links_of_source: usize) -> Self {
        Self { name, sources: sources.collect(), links_of_source, extends: false, through_guards: false, hellos: false }
    }

    fn extending(mut self) -> Self {
        self.extends = true;
        self
    }

    fn through_guards(mut self) -> Self {
        self.through_guards = true;
        self
    }

    /// Sends hellos from `links_of_source` ports of each source.
    fn with_hellos(mut self) -> Self {
        self.hellos = true;
        self
    }

    fn is_ipv6(&self) -> bool {
        self.sources.iter().any(IpAddr::is_ipv6)
    }

    /// The links to one relay.
    fn links(&self) -> usize {
        self.sources.len() * self.links_of_source
    }

    /// The machines of all relays.
    fn relays(&self) -> Vec<usize> {
        let further = self.through_guards.then_some(FURTHER_GUARDS);
        RELAYS.into_iter().chain(further.into_iter().flatten()).collect()
    }
}

/// Address `host` of the attacker's IPv4 /24 `network`.
fn ipv4(network: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 66, network, host).into()
}

/// An address of a /64 of the attacker's IPv6 /48.
fn ipv6(subnet: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x66, subnet, 0, 0, 0, 1).into()
}

/// All attacks of the measurement. The caps of a relay are 256 channels of a source and 1,024 of a network.
fn attacks() -> Vec<Attack> {
    let sixteen = || (0..16).map(|network| ipv4(network, 1));
    vec![
        Attack::new("none", std::iter::empty(), 0),
        Attack::new("one-address", std::iter::once(ipv4(0, 1)), 64),
        Attack::new("sixteen-addresses", sixteen(), 16),
        Attack::new("slash-24", (1..=254).map(|host| ipv4(0, host)), 4),
        Attack::new("slash-48", (0..256).map(ipv6), 4),
        Attack::new("many-networks", (0..64).flat_map(|network| (1..=4).map(move |host| ipv4(network, host))), 2),
        Attack::new("sixteen-extend", sixteen(), 2).extending(),
        Attack::new("extend-through-eight", (1..=4).map(|host| ipv4(0, host)), 2).through_guards(),
        Attack::new("hellos", std::iter::once(ipv4(0, 1)), 1).with_hellos(),
        Attack::new("sixteen-hellos", sixteen(), 8).with_hellos(),
    ]
}

#[test]
#[ignore = "needs root and iproute2: cargo xtask test runs a short form, cargo xtask attack measures"]
fn circuits_of_an_honest_client_stand_while_addresses_flood_their_relay() {
    if !may_make_namespaces() {
        return;
    }
    let programs = Programs::find();
    let Ok(seconds) = env::var("UMBEL_ATTACK_SECONDS") else {
        let sources = (0..16).map(|network| ipv4(network, 1));
        let outcome = run(&programs, &Attack::new("short", sources, 2).extending(), SHORT);
        eprintln!("{}", outcome.row());
        assert!(outcome.created > 100 && outcome.extended > 0, "the relay creates and extends the attacker's circuits");
        outcome.roles.iter().for_each(Role::check);
        return;
    };
    let only = env::var("UMBEL_ATTACK_ONLY").unwrap_or_default();
    let chosen = |attack: &Attack| only.is_empty() || only.split(',').any(|name| name == attack.name);
    let outcomes: Vec<_> = attacks()
        .iter()
        .filter(|attack| chosen(attack))
        .map(|attack| run(&programs, attack, seconds.parse().unwrap()))
        .collect();
    assert!(!outcomes.is_empty(), "no attack has a name of {only:?}");
    println!("\n{}", Outcome::header());
    outcomes.iter().for_each(|outcome| println!("{}", outcome.row()));
    outcomes.iter().flat_map(|outcome| &outcome.failures).for_each(|failure| println!("{failure}"));
    outcomes.iter().flat_map(|outcome| &outcome.roles).for_each(Role::check);
}

/// The programs under test.
struct Programs {
    umbel: PathBuf,
    attack: PathBuf,
}

impl Programs {
    /// Those in the folder of `UMBEL_ATTACK_PROGRAMS`, or else those that cargo built with this test.
    fn find() -> Self {
        match env::var_os("UMBEL_ATTACK_PROGRAMS").map(PathBuf::from) {
            Some(folder) => Self { umbel: folder.join("umbel"), attack: folder.join("examples/attack") },
            None => Self { umbel: env!("CARGO_BIN_EXE_umbel").into(), attack: example("attack").get_program().into() },
        }
    }
}

/// The figures of an attack.
struct Outcome {
    name: &'static str,
    links: u64,
    seconds: f64,
    sent: u64,
    created: u64,
    extended: u64,
    refused: u64,
    /// Processor time of the attacked relay, in seconds.
    processor: f64,
    /// Resident memory of the attacked relay at the end, in MiB.
    memory: u64,
    roles: Vec<Role>,
    failures: Vec<String>,
}

/// The circuits on which the attacked relay has one role. Times are in milliseconds: median, 95th percentile, longest.
struct Role {
    name: String,
    started: u64,
    stood: u64,
    first: [f64; 3],
    echo: [f64; 3],
}

impl Role {
    fn parse(line: &str) -> Self {
        let times = |label: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != label).skip(1);
            std::array::from_fn(|_| words.next().unwrap().parse().unwrap())
        };
        let (started, stood) = (number(line, "started"), number(line, "stood"));
        Self { name: first_word(line), started, stood, first: times("first"), echo: times("echo") }
    }

    fn check(&self) {
        let Self { name, started, stood, .. } = self;
        assert!(*started >= 5, "{started} circuits with the attacked relay as {name}");
        assert!(stood * 100 >= started * LEAST_STANDING, "{stood} of {started} circuits stand, the relay as {name}");
    }
}

impl Outcome {
    fn header() -> &'static str {
        "| attack | links | CREATEs/s sent | answered/s | extended/s | refused/s | processor | memory | role: stand, first byte p50 / p95 / longest, echo p50 / p95 / longest (ms) |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|---|"
    }

    fn row(&self) -> String {
        let rate = |count: u64| format!("{:.0}", count as f64 / self.seconds);
        let role = |role: &Role| {
            let [first, first_95, first_max] = role.first;
            let [echo, echo_95, echo_max] = role.echo;
            let Role { name, started, stood, .. } = role;
            format!(
                "{name}: {stood}/{started}, {first:.0} / {first_95:.0} / {first_max:.0}, {echo:.1} / {echo_95:.1} / {echo_max:.0}"
            )
        };
        let roles: Vec<_> = self.roles.iter().map(role).collect();
        format!(
            "| {} | {} | {} | {} | {} | {} | {:.0} % | {} MiB | {} |",
            self.name,
            self.links,
            rate(self.sent),
            rate(self.created),
            rate(self.extended),
            rate(self.refused),
            self.processor / self.seconds * 100.0,
            self.memory,
            roles.join("; "),
        )
    }
}

/// Starts a network, attacks it for `seconds`, and measures.
fn run(programs: &Programs, attack: &Attack, seconds: u64) -> Outcome {
    let scratch = tempfile::tempdir().unwrap();
    let lab = Lab::new(programs, scratch.path(), attack);
    let nodes = lab.start_nodes();
    let attacked = &nodes[1].0;
    let mut probe = lab.probe(seconds);
    assert_eq!(next_line(&probe.lines), "ready", "the client's first circuits succeed");

    let floods = lab.floods(attack);
    let end = Instant::now() + LINKS_TIMEOUT;
    let open = |flood: &Reporting| {
        let mut line = next_line(&flood.lines);
        while number(&line, "open") < attack.links() as u64 && Instant::now() < end {
            line = next_line(&flood.lines);
        }
        line
    };
    let before: Vec<_> = floods.iter().map(open).collect();
    let (started, processor) = (Instant::now(), processor_time(attacked.id()));
    writeln!(probe.process.0.stdin.as_mut().unwrap()).unwrap();
    let (mut roles, mut failures) = (Vec::new(), Vec::new());
    loop {
        let line = next_line_within(&probe.lines, Duration::from_secs(seconds) + TIMEOUT);
        match first_word(&line).as_str() {
            "end" => break,
            "failure" => failures.push(format!("{}: {}", attack.name, line.trim_start_matches("failure "))),
            _ => roles.push(Role::parse(&line)),
        }
    }
    let after: Vec<_> = floods.iter().map(|flood| flood.lines.try_iter().last().unwrap_or_default()).collect();
    let sum = |lines: &[String], label: &str| lines.iter().map(|line| number(line, label)).sum::<u64>();
    let since = |label: &str| sum(&after, label).saturating_sub(sum(&before, label));
    Outcome {
        name: attack.name,
        links: sum(&after, "open"),
        seconds: started.elapsed().as_secs_f64(),
        sent: since("sent"),
        created: since("created"),
        extended: since("extended"),
        refused: since("refused"),
        processor: processor_time(attacked.id()) - processor,
        memory: resident_memory(attacked.id()),
        roles,
        failures,
    }
}

/// A network of nodes on machines.
struct Lab<'a> {
    network: Network,
    programs: &'a Programs,
    folder: &'a Path,
    ipv6: bool,
    authority: String,
    /// The machines of the attacked relay and of the others, with their identities.
    relays: Vec<(usize, String)>,
}

/// A process with its lines.
struct Reporting {
    process: ChildProcess,
    lines: Receiver<String>,
}

impl<'a> Lab<'a> {
    fn new(programs: &'a Programs, folder: &'a Path, attack: &Attack) -> Self {
        let machines = if attack.through_guards { FURTHER_GUARDS.end } else { FURTHER_GUARDS.start };
        let addresses: Vec<_> = (1..=machines).map(|machine| format!("10.{machine}.0.1")).collect();
        let network = Network::new(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
        for machine in 0..machines {
            let name = network.name(machine);
            ip(&["-n", &name, "address", "add", &format!("fd00::{}/64", machine + 1), "dev", "eth0", "nodad"]);
            if machine == ATTACKER {
                // All addresses of these networks are local.
                ip(&["-n", &name, "route", "add", "local", "10.66.0.0/16", "dev", "lo"]);
                ip(&["-n", &name, "route", "add", "local", "2001:db8:66::/48", "dev", "lo"]);
                ip(&["netns", "exec", &name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind"]);
            } else {
                ip(&["-n", &name, "route", "add", "10.66.0.0/16", "via", &format!("10.{}.0.1", ATTACKER + 1)]);
                ip(&["-n", &name, "route", "add", "2001:db8:66::/48", "via", &format!("fd00::{}", ATTACKER + 1)]);
            }
        }
        let authority = shown_key(&folder.join("directory"), "directory", "authority");
        let identity = |machine: usize| identity_in(&folder.join(format!("node{machine}")));
        let relays = attack.relays().into_iter().map(|machine| (machine, identity(machine))).collect();
        Self { network, programs, folder, ipv6: attack.is_ipv6(), authority, relays }
    }

    /// The address of a machine, as a host in an address with a port.
    fn host(&self, machine: usize) -> String {
        if self.ipv6 { format!("[fd00::{}]", machine + 1) } else { self.network.addresses[machine].clone() }
    }

    fn network_options(&self) -> [String; 4] {
        let directory = format!("http://{}:9360", self.network.addresses[DIRECTORY]);
        ["--directory".into(), directory, "--authority".into(), self.authority.clone()]
    }

    /// A command on a machine. The attacked relay has a processor core alone, so that its processor time limits it
    /// rather than that of the attacker. The attacker takes only the time that other processes leave.
    fn command(&self, machine: usize, program: &Path) -> Command {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let core = match machine {
            _ if cores == 1 => "0".to_owned(),
            ATTACKED => "0".to_owned(),
            _ => format!("1-{}", cores - 1),
        };
        let mut command = self.network.command(machine, "taskset");
        command.args(["-c", &core]);
        if machine == ATTACKER {
            command.args(["nice", "-n", "10"]);
        }
        command.arg(program).stdin(Stdio::piped());
        command
    }

    fn node(&self, machine: usize, role: &str, configure: impl FnOnce(&mut Command)) -> ChildProcess {
        let mut command = self.command(machine, &self.programs.umbel);
        command.args([role, "--data-dir"]).arg(self.folder.join(format!("node{machine}")));
        configure(&mut command);
        let log = fs::File::create(self.folder.join(format!("node{machine}.log"))).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        ChildProcess(command.spawn().unwrap())
    }

    /// Starts the directory, the attacked relay and the others, and the target.
    fn start_nodes(&self) -> Vec<ChildProcess> {
        let config = self.folder.join("directory.toml");
        let listen = format!("listen = \"{}:9360\"\n", self.network.addresses[DIRECTORY]);
        let relays = self.relays.len();
        fs::write(&config, format!("{listen}await_relays = {relays}\nprivate_network = true\n")).unwrap();
        let mut directory = self.command(DIRECTORY, &self.programs.umbel);
        directory.args(["directory", "--config"]).arg(&config).arg("--data-dir").arg(self.folder.join("directory"));
        directory.stdout(Stdio::null()).stderr(Stdio::null());
        let mut nodes = vec![ChildProcess(directory.spawn().unwrap())];
        for (machine, _) in &self.relays {
            nodes.push(self.node(*machine, "relay", |command| {
                command.args(["--listen", &format!("{}:4443", self.host(*machine))]).args(self.network_options());
                command.args(["--exit", "accept *:*", "--allow-private-targets"]);
            }));
        }
        let target = self.attack_program(TARGET, |command| _ = command.args(["target", &self.target()]));
        nodes.push(target.process);
        nodes
    }

    fn target(&self) -> String {
        format!("{}:80", self.network.addresses[TARGET])
    }

    /// Starts one of the programs of `tests/attack` on a machine.
    fn attack_program(&self, machine: usize, configure: impl FnOnce(&mut Command)) -> Reporting {
        let mut command = self.command(machine, &self.programs.attack);
        configure(&mut command);
        let mut process = ChildProcess(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = lines_of(process.0.stdout.take().unwrap());
        Reporting { process, lines }
    }

    fn probe(&self, seconds: u64) -> Reporting {
        self.attack_program(CLIENT, |command| {
            command.arg("probe").args(self.network_options());
            self.relays.iter().take(RELAYS.len()).for_each(|(_, relay)| _ = command.args(["--relay", relay]));
            let source = self.host(CLIENT);
            command.args(["--source", source.trim_matches(['[', ']'])]);
            command.args(["--target", &self.target(), "--seconds", &seconds.to_string()]);
        })
    }

    /// Starts the attacker's programs: one for each relay to which it opens links.
    fn floods(&self, attack: &Attack) -> Vec<Reporting> {
        let (attacked, others) = self.relays.split_first().unwrap();
        let flood = |(_, relay): &(usize, String), next: Option<&str>| self.flood(attack, relay, next);
        match attack {
            Attack { sources, .. } if sources.is_empty() => Vec::new(),
            Attack { through_guards: true, .. } => others.iter().map(|guard| flood(guard, Some(&attacked.1))).collect(),
            Attack { extends, .. } => vec![flood(attacked, extends.then_some(&others[0].1))],
        }
    }

    fn flood(&self, attack: &Attack, relay: &str, next: Option<&str>) -> Reporting {
        self.attack_program(ATTACKER, |command| {
            command.arg("flood").args(self.network_options()).args(["--relay", relay]);
            command.args(["--links", &attack.links_of_source.to_string()]);
            if let Some(next) = next {
                command.args(["--extend", next]);
            }
            if attack.hellos {
                command.arg("--hellos");
            }
            attack.sources.iter().for_each(|source| _ = command.args(["--source", &source.to_string()]));
        })
    }
}

fn next_line(lines: &Receiver<String>) -> String {
    next_line_within(lines, TIMEOUT)
}

fn next_line_within(lines: &Receiver<String>, timeout: Duration) -> String {
    lines.recv_timeout(timeout).expect("the program reports in time")
}

/// The number after the word `label` in a line; zero in an empty line.
fn number(line: &str, label: &str) -> u64 {
    let word = line.split_whitespace().skip_while(|word| *word != label).nth(1);
    word.map_or(0, |word| word.parse().unwrap())
}

/// A process's processor time, in seconds.
fn processor_time(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// A process's resident memory, in MiB.
fn resident_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}
