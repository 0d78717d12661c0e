//! Building of circuits: CREATE from a neighbour, EXTEND from an origin, CREATED from the next hop.

use rand::CryptoRng;

use crate::{
    base::{Counter as _, HopIndex, Instant, RelayId},
    channel::ChannelId,
    directory::ConsensusRelay,
    handshake::respond,
    onion::{RelayLayer, message_capacity},
    wire::{
        BODY_LEN, Fragments, MESSAGE_HEADER_LEN, RelayMessage, create_cells, created_cells, decode_create,
        decode_extend, split,
    },
};

use super::{CREATE_LIMIT, Circuit, CircuitEndpoint, CircuitKey, DIAL_LIMIT, FRAGMENTS_LIMIT, Relay, table::NextHop};

/// Cap on half-built circuits of one channel.
const HALF_BUILT_PER_CHANNEL: usize = 64;

/// Cap on circuits of one channel that wait for a channel to their next hop. It leaves room for other neighbours if
/// one extends to relays that don't answer.
const DIALLING_PER_CHANNEL: usize = 256;

/// Cap on relays that the circuits of one channel wait for, because a node's dials are few.
const DIALS_PER_CHANNEL: usize = 16;

/// Cap on GONE messages of one circuit (`proto/05-relay-messages.md` §7).
const MAX_GONE: u8 = 4;

/// A CREATE that lacks fragments.
pub(super) struct HalfBuilt {
    hop: HopIndex,
    request: Fragments,
    deadline: Instant,
}

impl Relay {
    /// Handles a CREATE, or a fragment of one, on an unused identifier.
    pub(super) fn handle_create(
        &mut self,
        now: Instant,
        endpoint: CircuitEndpoint,
        body: &[u8; BODY_LEN],
        rng: &mut dyn CryptoRng,
    ) {
        match self.collect_create(now, endpoint, body) {
            Some(Some((hop, request))) if self.open_circuit(now, endpoint, hop, &request, rng).is_some() => {}
            Some(None) => {}
            Some(Some(_)) | None => self.destroy(now, endpoint),
        }
    }

    /// Reassembles a CREATE: `None` to refuse it, `Some(None)` while fragments are missing.
    fn collect_create(
        &mut self,
        now: Instant,
        endpoint: CircuitEndpoint,
        body: &[u8; BODY_LEN],
    ) -> Option<Option<(HopIndex, Vec<u8>)>> {
        let begun = self.forget_half_built(endpoint);
        let (hop, fragment) = decode_create(body).ok()?;
        // Only relays create later hops; only clients create first hops (`proto/02-channel.md` §5).
        if (hop == HopIndex::FIRST) != self.channels.peer(endpoint.channel).is_none() {
            return None;
        }
        let mut half = match begun {
            Some(half) if half.hop == hop => half,
            Some(_) => return None,
            // The caps come before any work.
            None if self.table.len() >= self.parameters.circuits => return None,
            None if !self.channels.may_create(now, endpoint.channel) => return None,
            None => HalfBuilt { hop, request: Fragments::new(), deadline: now.after(FRAGMENTS_LIMIT) },
        };
        if let Some(request) = half.request.push(fragment).ok()? {
            return Some(Some((hop, request)));
        }
        let of_channel =
            self.half_built.range(CircuitEndpoint::range(endpoint.channel)).take(HALF_BUILT_PER_CHANNEL).count();
        if self.half_built.len() >= self.parameters.half_built || of_channel >= HALF_BUILT_PER_CHANNEL {
            return None;
        }
        self.half_built_deadlines.set(endpoint, half.deadline);
        self.half_built.insert(endpoint, half);
        Some(None)
    }

    pub(super) fn forget_half_built(&mut self, endpoint: CircuitEndpoint) -> Option<HalfBuilt> {
        self.half_built_deadlines.remove(endpoint);
        self.half_built.remove(&endpoint)
    }

    fn open_circuit(
        &mut self,
        now: Instant,
        endpoint: CircuitEndpoint,
        hop: HopIndex,
        request: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Option<()> {
        if self.table.len() >= self.parameters.circuits {
            return None;
        }
        let answer = respond(&self.identity, &self.onion_keys, hop, request, rng)
            .inspect_err(|error| tracing::debug!(%error, class = %error.class(), "refusing a circuit"))
            .ok()?;
        let cells = created_cells(endpoint.circuit, &answer.reply).ok()?;
        if !self.channels.admit_circuit(endpoint.channel, endpoint.circuit) {
            return None;
        }
        for cell in cells {
            self.channels.send(endpoint.channel, cell).ok()?;
        }
        let key = self.table.insert(Circuit::new(now, hop, endpoint, RelayLayer::new(hop, answer.keys)));
        self.schedule(key);
        Some(())
    }

    /// Handles an EXTEND, or a fragment of one.
    pub(super) fn handle_extend(&mut self, now: Instant, key: CircuitKey, fragment: &[u8], rng: &mut dyn CryptoRng) {
        if self.collect_extend(now, key, fragment, rng).is_none() {
            self.end(now, key);
        }
    }

    /// `None` if the circuit must end.
    fn collect_extend(
        &mut self,
        now: Instant,
        key: CircuitKey,
        fragment: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Option<()> {
        let circuit = self.table.circuit_mut(key)?;
        if !matches!(circuit.next, NextHop::None) || circuit.hop.next().is_none() {
            return None;
        }
        let Some(body) = circuit.extend.push(fragment).ok()? else {
            circuit.deadline.get_or_insert(now.after(FRAGMENTS_LIMIT));
            self.schedule(key);
            return Some(());
        };
        let previous = circuit.previous.channel;
        let (relay, request) = decode_extend(&body).ok()?;
        // A hop back to the previous relay, or to this one, would only hide that the circuit is short.
        if relay == self.identity || Some(relay) == self.channels.peer(previous) {
            return None;
        }
        let Some(target) = self.known.relay(&relay).map(ConsensusRelay::dial_target) else {
            return match self.channels.reach(&relay) {
                Some(channel) => self.create(now, key, channel, request, rng),
                None => self.send_gone(key),
            };
        };
        if self.channels.lookup(&relay).is_none() && !self.may_wait(previous, relay) {
            return None;
        }
        match self.channels.connect(now, &target) {
            Some(channel) => self.create(now, key, channel, request, rng),
            None => self.wait_for_channel(now, key, relay, request.to_vec()),
        }
    }

    /// Answers GONE to the origin: the next relay can't be reached. The circuit stays as it was. `None` if the
    /// circuit must end.
    fn send_gone(&mut self, key: CircuitKey) -> Option<()> {
        let circuit = self.table.circuit_mut(key)?;
        circuit.gone.increment();
        circuit.next = NextHop::None;
        circuit.deadline = None;
        if circuit.gone > MAX_GONE {
            return None;
        }
        self.schedule(key);
        self.send_message(key, &RelayMessage::Gone).then_some(())
    }

    /// Handles the loss of the channel to the next hop. A volunteer's channel may close at any moment, so before
    /// CREATED the origin gets GONE and may choose another relay.
    pub(super) fn handle_next_closed(&mut self, now: Instant, key: CircuitKey) {
        let Some(circuit) = self.table.circuit(key) else { return };
        let endpoint = match &circuit.next {
            NextHop::Creating { endpoint, volunteer: true, .. } => Some(*endpoint),
            _ => None,
        };
        if let Some(endpoint) = endpoint {
            self.table.remove_endpoint(endpoint);
            if self.send_gone(key).is_some() {
                return;
            }
        }
        self.end(now, key);
    }

    /// Whether a circuit from `channel` may wait for a channel to `relay`.
    fn may_wait(&self, channel: ChannelId, relay: RelayId) -> bool {
        let (mut all, mut of_channel, mut dials) = (0_usize, 0_usize, 0_usize);
        for (dialled, keys) in &self.dialling {
            let circuits = keys.iter().filter_map(|key| self.table.circuit(*key));
            let ours = circuits.filter(|circuit| circuit.previous.channel == channel).count();
            all = all.saturating_add(keys.len());
            of_channel = of_channel.saturating_add(ours);
            dials = dials.saturating_add(usize::from(ours > 0 && *dialled != relay));
        }
        all < self.parameters.dialling && of_channel < DIALLING_PER_CHANNEL && dials < DIALS_PER_CHANNEL
    }

    fn wait_for_channel(&mut self, now: Instant, key: CircuitKey, relay: RelayId, request: Vec<u8>) -> Option<()> {
        self.dialling.entry(relay).or_default().insert(key);
        let circuit = self.table.circuit_mut(key)?;
        circuit.next = NextHop::Dialling { relay, request };
        circuit.deadline = Some(now.after(DIAL_LIMIT));
        self.schedule(key);
        Some(())
    }

    /// A channel to a relay is open: sends the CREATEs that waited for it.
    pub(super) fn create_waiting(&mut self, now: Instant, relay: RelayId, channel: ChannelId, rng: &mut dyn CryptoRng) {
        for key in self.dialling.remove(&relay).unwrap_or_default() {
            let Some(circuit) = self.table.circuit_mut(key) else { continue };
            let NextHop::Dialling { request, .. } = core::mem::replace(&mut circuit.next, NextHop::None) else {
                continue;
            };
            if self.create(now, key, channel, &request, rng).is_none() {
                self.end(now, key);
            }
        }
    }

    /// Sends CREATE to the next hop. `None` if the circuit must end.
    fn create(
        &mut self,
        now: Instant,
        key: CircuitKey,
        channel: ChannelId,
        request: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Option<()> {
        let volunteer = self.channels.reaches(channel);
        let circuit = self.table.circuit_mut(key)?;
        let hop = circuit.hop.next()?;
        let endpoint = CircuitEndpoint { channel, circuit: self.channels.allocate_circuit(channel, rng)? };
        circuit.next = NextHop::Creating { endpoint, volunteer, reply: Fragments::new() };
        circuit.deadline = Some(now.after(CREATE_LIMIT));
        self.table.insert_next(endpoint, key);
        for cell in create_cells(endpoint.circuit, hop, request).ok()? {
            self.channels.send(channel, cell).ok()?;
        }
        self.schedule(key);
        Some(())
    }

    /// Handles the next hop's CREATED, or a fragment of it, and forwards the whole as EXTENDED.
    pub(super) fn handle_created(&mut self, now: Instant, key: CircuitKey, body: &[u8; BODY_LEN]) {
        if self.collect_created(key, body).is_none() {
            self.end(now, key);
        }
    }

    /// `None` if the circuit must end.
    fn collect_created(&mut self, key: CircuitKey, body: &[u8; BODY_LEN]) -> Option<()> {
        let circuit = self.table.circuit_mut(key)?;
        let NextHop::Creating { endpoint, reply, .. } = &mut circuit.next else { return None };
        let Some(body) = reply.push(body).ok()? else { return Some(()) };
        circuit.next = NextHop::Open(*endpoint);
        circuit.deadline = None;
        let capacity = message_capacity(circuit.hop).saturating_sub(MESSAGE_HEADER_LEN);
        for fragment in split(&body, capacity).ok()? {
            self.send_message(key, &RelayMessage::Extended { fragment: fragment.into() }).then_some(())?;
        }
        Some(())
    }
}
