//! The honest client: builds circuits over three relays, and measures their time to a first byte, the share of them that
//! stands at the end, and the round trip of bytes on the first of them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use rand::rngs::StdRng;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin, stdin},
    time::sleep,
};
use umbel::{
    base::{CircuitId, Instant, RelayId, StreamId},
    channel::{ChannelEvent, ChannelId, Channels, QUEUE_HIGH},
    circuit::{CircuitEvent, Origin},
    directory::ConsensusRelay,
    flow::FlowParameters,
    stream::{StreamCommand, StreamEvent},
    wire::{Host, Target},
};

use super::{
    Outcome,
    party::{Party, User},
};

/// The place of the attacked relay on each path.
const ROLES: [&str; 3] = ["guard", "middle", "exit"];
/// Interval between the starts of two circuits.
const CIRCUIT_INTERVAL: Duration = Duration::from_millis(250);
/// Interval between two echoes on the first circuit of a role.
const ECHO_INTERVAL: Duration = Duration::from_millis(100);
const HOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the first byte of the last circuits.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a first circuit of each role before the attack.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Builds one circuit of each role until all succeed, and prints "ready". Measures after a line of standard input, and
/// prints the result.
pub(crate) async fn run(
    paths: [[&ConsensusRelay; 3]; 3],
    source: IpAddr,
    target: SocketAddr,
    duration: Duration,
) -> Outcome<()> {
    let mut lines = BufReader::new(stdin()).lines();
    let mut party = Party::bind(source).await?;
    let mut probe = Probe::new(paths, target);
    for (role, name) in ROLES.iter().enumerate() {
        let end = party.now().after(START_TIMEOUT);
        loop {
            probe.start(party.now(), role);
            while probe.circuits.iter().any(Circuit::is_in_progress) && party.now() < end {
                party.turn(ECHO_INTERVAL, &mut probe).await?;
            }
            let Some(Circuit { state, .. }) = probe.circuits.last().filter(|circuit| !circuit.stands()) else { break };
            if party.now() >= end {
                let reason = if let CircuitState::Ended(reason) = state { reason } else { "no first byte" };
                return Err(format!("no circuit with the attacked relay as {name}: {reason}").into());
            }
            // The relays may still lack the consensus.
            sleep(ECHO_INTERVAL).await;
        }
    }
    drop((party, probe));
    println!("ready");
    wait_for_line(&mut lines).await?;
    measure(paths, source, target, duration).await
}

async fn wait_for_line(lines: &mut Lines<BufReader<Stdin>>) -> Outcome<()> {
    lines.next_line().await?.map(drop).ok_or_else(|| "standard input ended".into())
}

/// Opens new channels and builds circuits, the roles in turn.
async fn measure(
    paths: [[&ConsensusRelay; 3]; 3],
    source: IpAddr,
    target: SocketAddr,
    duration: Duration,
) -> Outcome<()> {
    let mut party = Party::bind(source).await?;
    let mut probe = Probe::new(paths, target);
    let (end, mut role) = (party.now().after(duration), 0);
    let (mut next_circuit, mut next_echo) = (party.now(), party.now());
    loop {
        let now = party.now();
        if now >= end {
            break;
        }
        if now >= next_circuit {
            next_circuit = next_circuit.after(CIRCUIT_INTERVAL);
            probe.start(now, role);
            role = (role + 1) % ROLES.len();
        }
        if now >= next_echo {
            next_echo = next_echo.after(ECHO_INTERVAL);
            probe.echo(now);
        }
        party.turn(next_circuit.min(next_echo).since(now), &mut probe).await?;
    }
    let end = party.now().after(LAST_BYTES_TIMEOUT);
    while probe.circuits.iter().any(Circuit::is_in_progress) && party.now() < end {
        party.turn(ECHO_INTERVAL, &mut probe).await?;
    }
    probe.print();
    Ok(())
}

/// The circuits of the client.
struct Probe<'a> {
    paths: [[&'a ConsensusRelay; 3]; 3],
    target: SocketAddr,
    channels: HashMap<RelayId, ChannelId>,
    circuits: Vec<Circuit>,
    /// The index of each circuit that has a channel.
    by_id: HashMap<(ChannelId, CircuitId), usize>,
}

/// One circuit.
struct Circuit {
    role: usize,
    started: Instant,
    state: CircuitState,
    first_byte: Option<Duration>,
    /// The times of the echoes without an answer, and the round trips of the others.
    sent: VecDeque<Instant>,
    round_trips: Vec<Duration>,
}

enum CircuitState {
    /// Waits for a channel to its first relay.
    Waiting,
    Started {
        channel: ChannelId,
        origin: Box<Origin>,
        stream: Option<StreamId>,
    },
    /// Ended, for this reason.
    Ended(String),
}

impl Circuit {
    fn is_in_progress(&self) -> bool {
        self.first_byte.is_none() && !matches!(self.state, CircuitState::Ended(_))
    }

    fn stands(&self) -> bool {
        self.first_byte.is_some() && matches!(self.state, CircuitState::Started { .. })
    }
}

impl<'a> Probe<'a> {
    fn new(paths: [[&'a ConsensusRelay; 3]; 3], target: SocketAddr) -> Self {
        Self { paths, target, channels: HashMap::new(), circuits: Vec::new(), by_id: HashMap::new() }
    }

    fn start(&mut self, started: Instant, role: usize) {
        let (sent, round_trips) = (VecDeque::new(), Vec::new());
        self.circuits.push(Circuit {
            role,
            started,
            state: CircuitState::Waiting,
            first_byte: None,
            sent,
            round_trips,
        });
    }

    /// Sends bytes on the first circuit of each role that stands.
    fn echo(&mut self, now: Instant) {
        for role in 0..ROLES.len() {
            let circuit = self.circuits.iter_mut().find(|circuit| circuit.role == role && circuit.stands());
            let Some(circuit) = circuit else { continue };
            if let CircuitState::Started { origin, stream: Some(stream), .. } = &mut circuit.state
                && let Some(streams) = origin.last_hop_streams()
            {
                streams.handle_command(*stream, StreamCommand::Write(Bytes::from_static(b"?")));
                circuit.sent.push_back(now);
            }
        }
    }

    /// Handles the events of a circuit's origin.
    fn handle_origin(&mut self, now: Instant, number: usize) {
        let Some(circuit) = self.circuits.get_mut(number) else { return };
        let CircuitState::Started { origin, stream, .. } = &mut circuit.state else { return };
        while let Some(event) = origin.poll_event() {
            match event {
                CircuitEvent::Built => {
                    let target = Target { host: Host::Ip(self.target.ip()), port: self.target.port() };
                    *stream = origin.open(now, target).ok();
                }
                CircuitEvent::Stream(_, _, StreamEvent::Data(bytes)) => {
                    let mut count = bytes.len();
                    if circuit.first_byte.is_none() {
                        circuit.first_byte = Some(now.since(circuit.started));
                        count = count.saturating_sub(1);
                    }
                    let answered = circuit.sent.drain(..count.min(circuit.sent.len()));
                    circuit.round_trips.extend(answered.map(|sent| now.since(sent)));
                    if let (Some(streams), Some(stream)) = (origin.last_hop_streams(), *stream) {
                        streams.handle_command(stream, StreamCommand::Consumed(bytes.len()));
                    }
                }
                CircuitEvent::Stream(_, _, StreamEvent::Closed(reason)) => {
                    circuit.state = CircuitState::Ended(format!("the stream ended: {reason:?}"));
                    return;
                }
                // A relay without a consensus answers GONE.
                CircuitEvent::Gone { .. } => origin.close(),
                CircuitEvent::Closed(error) => {
                    circuit.state = CircuitState::Ended(error.to_string());
                    return;
                }
                _ => {}
            }
        }
    }

    fn print(&self) {
        let mut failures = BTreeMap::<String, usize>::new();
        for (role, name) in ROLES.iter().enumerate() {
            let circuits = || self.circuits.iter().filter(move |circuit| circuit.role == role);
            let stood = circuits().filter(|circuit| circuit.stands()).count();
            let first = Sorted::new(circuits().filter_map(|circuit| circuit.first_byte));
            let echoes = Sorted::new(circuits().flat_map(|circuit| circuit.round_trips.iter().copied()));
            let lost: usize = circuits().map(|circuit| circuit.sent.len()).sum();
            println!("{name} started {} stood {stood} first {first} echo {echoes} lost {lost}", circuits().count());
            for circuit in circuits() {
                let reason = match &circuit.state {
                    CircuitState::Ended(reason) => reason.clone(),
                    CircuitState::Waiting => "no channel to its first relay".to_owned(),
                    CircuitState::Started { .. } if circuit.first_byte.is_none() => "no first byte".to_owned(),
                    CircuitState::Started { .. } => continue,
                };
                let count = failures.entry(format!("{name}: {reason}")).or_default();
                *count = count.saturating_add(1);
            }
        }
        for (reason, count) in failures {
            println!("failure {count} {reason}");
        }
        println!("end");
    }
}

/// Times in ascending order; prints the median, the 95th percentile and the longest, in milliseconds.
struct Sorted(Vec<Duration>);

impl Sorted {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        Self(times)
    }
}

impl std::fmt::Display for Sorted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |percent: usize| {
            let index = self.0.len().saturating_sub(1).saturating_mul(percent) / 100;
            self.0.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        write!(f, "{:.1} {:.1} {:.1}", at(50), at(95), at(100))
    }
}

impl User for Probe<'_> {
    fn handle_event(&mut self, now: Instant, event: ChannelEvent, _: &mut Channels, rng: &mut StdRng) {
        match event {
            ChannelEvent::Open { channel, peer: Some(relay), .. } => _ = self.channels.insert(relay, channel),
            ChannelEvent::Cell { channel, cell } => {
                let number = cell.circuit().and_then(|circuit| self.by_id.get(&(channel, circuit)).copied());
                let Some(number) = number else { return };
                if let Some(Circuit { state: CircuitState::Started { origin, .. }, .. }) = self.circuits.get_mut(number)
                {
                    origin.handle_cell(now, cell, rng);
                }
                self.handle_origin(now, number);
            }
            ChannelEvent::Closed { channel } => {
                self.channels.retain(|_, open| *open != channel);
                for circuit in &mut self.circuits {
                    if matches!(&circuit.state, CircuitState::Started { channel: used, .. } if *used == channel) {
                        circuit.state = CircuitState::Ended("the channel closed".to_owned());
                    }
                }
            }
            // The circuits that wait for this channel dial again.
            _ => {}
        }
    }

    fn send(&mut self, now: Instant, channels: &mut Channels, rng: &mut StdRng) {
        for number in 0..self.circuits.len() {
            let Some(circuit) = self.circuits.get_mut(number) else { return };
            if matches!(circuit.state, CircuitState::Waiting) {
                let Some(path) = self.paths.get(circuit.role) else { continue };
                let [first, ..] = path;
                let Some(channel) = self.channels.get(&first.identity()).copied() else {
                    channels.connect(now, &first.dial_target());
                    continue;
                };
                let Some(id) = channels.allocate_circuit(channel, rng) else { continue };
                let keys = path.iter().map(|relay| relay.keys()).collect();
                let Ok(origin) = Origin::start(now, keys, id, FlowParameters::default(), HOP_TIMEOUT, rng) else {
                    continue;
                };
                circuit.state = CircuitState::Started { channel, origin: Box::new(origin), stream: None };
                self.by_id.insert((channel, id), number);
            }
            let CircuitState::Started { channel, origin, .. } = &mut circuit.state else { continue };
            if origin.poll_timeout().is_some_and(|due| due <= now) {
                origin.handle_timeout(now);
            }
            while channels.queued_of(*channel, origin.circuit()) < QUEUE_HIGH
                && let Some(cell) = origin.poll_cell(now, rng)
            {
                let _ = channels.send(*channel, cell);
            }
            self.handle_origin(now, number);
        }
    }
}
