//! The disturbances: each second a relay is killed, stopped or restarted, its port is flooded, or its disk is filled.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    disks::Disks,
    nodes::{Nodes, loopback},
};

/// Cap on relays that are down at once: killed, stopped, or started without a published descriptor.
const MAX_DOWN: usize = 3;
/// Time limit for the end of a relay after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which the directory is killed and started again.
const DIRECTORY_INTERVAL: Duration = Duration::from_secs(60);
/// The first kill of the directory.
const FIRST_DIRECTORY_KILL: Duration = Duration::from_secs(7);
/// Duration of a flood.
const FLOOD: Duration = Duration::from_secs(3);
/// Datagrams of a flood in each [`FLOOD_STEP`]: 2,000 a second.
const FLOOD_BATCH: usize = 20;
const FLOOD_STEP: Duration = Duration::from_millis(10);
/// Hosts of the addresses from which floods come.
const FLOOD_HOSTS: std::ops::Range<usize> = 210..218;

/// The state of a relay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Started, but its descriptor is not published yet.
    Starting(Instant),
    Up,
    /// Stopped by SIGSTOP until this time.
    Stopped(Instant),
    /// Killed by SIGKILL at this time.
    Killed(Instant),
    /// SIGTERM was sent at this time.
    Ending(Instant),
}

/// A time during which a relay was down.
#[derive(Clone, Copy)]
struct Outage {
    relay: usize,
    from: Instant,
    /// The end, once the relay is up again.
    to: Option<Instant>,
}

/// All disturbances of a run.
pub(super) struct Strikes {
    random: fastrand::Rng,
    disks: Option<Disks>,
    states: Vec<State>,
    outages: Vec<Outage>,
    /// Relays with a full disk, and the end of that.
    full: Vec<(usize, Instant)>,
    floods: Vec<JoinHandle<u64>>,
    /// The start of the second of the next strike, and the time of that strike.
    second: Instant,
    next: Instant,
    next_directory_kill: Instant,
    /// The times and descriptions of all strikes.
    history: Vec<(Instant, String)>,
    /// The number of strikes of each kind.
    pub(super) counts: BTreeMap<&'static str, u32>,
    /// The longest time from the start of a relay to the publication of its descriptor.
    pub(super) slowest_start: Duration,
    /// Descriptions of nodes that ended without a strike.
    pub(super) ended: Vec<String>,
}

impl Strikes {
    pub(super) fn new(seed: u64, relays: usize, disks: Option<Disks>) -> Self {
        let now = Instant::now();
        Self {
            random: fastrand::Rng::with_seed(seed),
            disks,
            states: vec![State::Up; relays],
            outages: Vec::new(),
            full: Vec::new(),
            floods: Vec::new(),
            second: now,
            next: now,
            next_directory_kill: now + FIRST_DIRECTORY_KILL,
            history: Vec::new(),
            counts: BTreeMap::new(),
            slowest_start: Duration::ZERO,
            ended: Vec::new(),
        }
    }

    /// Performs the strikes that are due, and ends those whose time is over. Returns whether a process has changed.
    pub(super) fn turn(&mut self, now: Instant, nodes: &mut Nodes) -> bool {
        let mut changed = self.advance(now, nodes);
        if now >= self.next {
            self.strike(now, nodes);
            self.second += Duration::from_secs(1);
            self.next = self.second + Duration::from_millis(self.random.u64(..1000));
            changed = true;
        }
        if now >= self.next_directory_kill {
            self.next_directory_kill += DIRECTORY_INTERVAL;
            self.record(now, "directory killed and restarted", "directory");
            nodes.directory.kill();
            nodes.directory.start();
        }
        changed
    }

    /// Ends all strikes: stopped relays continue, and disks are emptied. Returns the datagrams of all floods.
    pub(super) fn finish(&mut self, nodes: &Nodes) -> u64 {
        for (number, state) in self.states.iter_mut().enumerate() {
            if matches!(state, State::Stopped(_)) {
                nodes.relays[number].signal(Signal::SIGCONT);
                *state = State::Up;
            }
        }
        for (relay, _) in self.full.drain(..) {
            self.disks.as_ref().unwrap().empty(relay);
        }
        self.floods.drain(..).map(|flood| flood.join().unwrap()).sum()
    }

    /// Whether the relay was down at any time from `from` to `to`.
    pub(super) fn was_down(&self, relay: usize, from: Instant, to: Instant) -> bool {
        let overlaps = |outage: &Outage| outage.from <= to && outage.to.is_none_or(|end| end >= from);
        self.outages.iter().any(|outage| outage.relay == relay && overlaps(outage))
    }

    /// The strikes in the `seconds` before `end`, for the description of a failure.
    pub(super) fn before(&self, end: Instant, seconds: u64) -> String {
        let recent = self.history.iter().rev().skip_while(|(at, _)| *at > end);
        let recent = recent.take_while(|(at, _)| end - *at < Duration::from_secs(seconds));
        let texts = recent.map(|(at, what)| format!("{what} −{:.1} s", (end - *at).as_secs_f64()));
        texts.collect::<Vec<_>>().join(", ")
    }

    /// Moves each relay to its next state if the time or the process requires it.
    fn advance(&mut self, now: Instant, nodes: &mut Nodes) -> bool {
        let mut changed = false;
        for relay in 0..self.states.len() {
            let node = &mut nodes.relays[relay];
            let ended = node.has_ended();
            let report = node.report().is_some_and(|report| report["report"] == "published");
            match self.states[relay] {
                State::Ending(_) if ended => {
                    node.start();
                    self.states[relay] = State::Starting(now);
                    changed = true;
                }
                State::Ending(since) => {
                    assert!(now - since < END_TIMEOUT, "{} does not end after SIGTERM", node.name);
                }
                _ if ended => {
                    self.ended.push(format!("{} ended by itself{}", node.name, node.log_tail()));
                    self.states[relay] = State::Killed(now);
                    self.begin_outage(now, relay);
                }
                State::Starting(since) if report => {
                    self.slowest_start = self.slowest_start.max(now - since);
                    self.end_outage(now, relay);
                }
                State::Stopped(until) if now >= until => {
                    node.signal(Signal::SIGCONT);
                    self.end_outage(now, relay);
                }
                State::Starting(_) | State::Up | State::Stopped(_) | State::Killed(_) => {}
            }
        }
        let (over, full): (Vec<_>, Vec<_>) = self.full.drain(..).partition(|(_, until)| now >= *until);
        self.full = full;
        for (relay, _) in over {
            self.disks.as_ref().unwrap().empty(relay);
        }
        changed
    }

    /// Performs one strike of a random kind on a random relay.
    fn strike(&mut self, now: Instant, nodes: &mut Nodes) {
        let has_room = self.states.iter().filter(|state| **state != State::Up).count() < MAX_DOWN;
        match self.random.u32(..100) {
            0..30 if has_room => self.kill(now, nodes),
            30..45 if has_room => self.stop(now, nodes),
            45..55 if has_room => self.restart(now, nodes),
            0..75 if self.longest_killed().is_some() => self.start(now, nodes),
            75..88 if self.disks.is_some() => self.fill(now, nodes),
            _ => self.flood(now, nodes),
        }
    }

    /// Kills a relay that is up or starting.
    fn kill(&mut self, now: Instant, nodes: &mut Nodes) {
        let running = |state: &State| matches!(state, State::Up | State::Starting(_));
        let Some(relay) = self.choose(running) else { return };
        nodes.relays[relay].kill();
        self.record(now, "killed (SIGKILL)", &nodes.relays[relay].name);
        self.begin_outage(now, relay);
        self.states[relay] = State::Killed(now);
    }

    /// Stops a relay for one to six seconds.
    fn stop(&mut self, now: Instant, nodes: &Nodes) {
        let Some(relay) = self.choose(|state| *state == State::Up) else { return };
        nodes.relays[relay].signal(Signal::SIGSTOP);
        self.record(now, "stopped (SIGSTOP)", &nodes.relays[relay].name);
        self.begin_outage(now, relay);
        self.states[relay] = State::Stopped(now + Duration::from_millis(self.random.u64(1000..6000)));
    }

    /// Ends a relay by SIGTERM; it is started again once it has ended.
    fn restart(&mut self, now: Instant, nodes: &Nodes) {
        let Some(relay) = self.choose(|state| *state == State::Up) else { return };
        nodes.relays[relay].signal(Signal::SIGTERM);
        self.record(now, "restarted (SIGTERM)", &nodes.relays[relay].name);
        self.begin_outage(now, relay);
        self.states[relay] = State::Ending(now);
    }

    /// Starts the relay that was killed first.
    fn start(&mut self, now: Instant, nodes: &mut Nodes) {
        let Some(relay) = self.longest_killed() else { return };
        nodes.relays[relay].start();
        self.record(now, "started after a kill", &nodes.relays[relay].name);
        self.states[relay] = State::Starting(now);
    }

    fn fill(&mut self, now: Instant, nodes: &Nodes) {
        let Some(disks) = &self.disks else { return };
        let relay = self.random.usize(..self.states.len());
        if self.full.iter().any(|(other, _)| *other == relay) {
            return;
        }
        disks.fill(relay);
        self.full.push((relay, now + Duration::from_secs(self.random.u64(5..15))));
        self.record(now, "disk filled", &nodes.relays[relay].name);
    }

    fn flood(&mut self, now: Instant, nodes: &Nodes) {
        let relay = self.random.usize(..self.states.len());
        let (address, seed) = (nodes.address_of(relay), self.random.u64(..));
        self.floods.push(thread::spawn(move || flood(address, seed)));
        self.record(now, "port flooded", &nodes.relays[relay].name);
    }

    fn choose(&mut self, suits: impl Fn(&State) -> bool) -> Option<usize> {
        let suitable: Vec<usize> = (0..self.states.len()).filter(|relay| suits(&self.states[*relay])).collect();
        self.random.choice(suitable)
    }

    fn longest_killed(&self) -> Option<usize> {
        let killed = self.states.iter().enumerate().filter_map(|(relay, state)| match state {
            State::Killed(since) => Some((*since, relay)),
            _ => None,
        });
        killed.min().map(|(_, relay)| relay)
    }

    fn begin_outage(&mut self, now: Instant, relay: usize) {
        // A relay that is killed while it starts has been down since before.
        if self.outages.iter().all(|outage| outage.relay != relay || outage.to.is_some()) {
            self.outages.push(Outage { relay, from: now, to: None });
        }
    }

    fn end_outage(&mut self, now: Instant, relay: usize) {
        self.states[relay] = State::Up;
        for outage in self.outages.iter_mut().filter(|outage| outage.relay == relay) {
            outage.to.get_or_insert(now);
        }
    }

    fn record(&mut self, now: Instant, kind: &'static str, name: &str) {
        *self.counts.entry(kind).or_default() += 1;
        self.history.push((now, format!("{name} {kind}")));
    }
}

/// Sends datagrams of random bytes, and of bytes that begin like STUN and DTLS, for [`FLOOD`]; returns their number.
fn flood(to: SocketAddr, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let sockets: Vec<_> = FLOOD_HOSTS.map(|host| UdpSocket::bind((loopback(host), 0)).unwrap()).collect();
    let end = Instant::now() + FLOOD;
    let mut sent = 0;
    while Instant::now() < end {
        for _ in 0..FLOOD_BATCH {
            let length = random.usize(1..1200);
            let mut datagram: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            let start: &[u8] = match random.u8(..3) {
                // A binding request with the magic cookie, and a ClientHello in a record of epoch 0.
                0 => &[0, 1, 0, 8, 0x21, 0x12, 0xA4, 0x42],
                1 => &[22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0, 48, 0, 0, 0, 0, 0, 0, 48, 0xFE, 0xFD],
                _ => &[],
            };
            let known = start.len().min(length);
            datagram[..known].copy_from_slice(&start[..known]);
            // The port is closed while its relay is down.
            sent += u64::from(sockets[random.usize(..sockets.len())].send_to(&datagram, to).is_ok());
        }
        // The rate is bounded by a pause after each batch.
        thread::sleep(FLOOD_STEP);
    }
    sent
}
