//! Building of circuits: CREATE from a neighbour, EXTEND from an origin, CREATED from the next hop.

use rand::CryptoRng;

use crate::{
    base::{HopIndex, Instant, Owner, RelayId},
    channel::ChannelId,
    directory::ConsensusRelay,
    handshake::respond,
    onion::{RelayLayer, message_capacity},
    wire::{
        BODY_LEN, MESSAGE_HEADER_LEN, RelayMessage, create_cells, created_cells, decode_create, decode_extend, split,
    },
};

use super::{
    Relay,
    circuit::{Circuit, CircuitEndpoint, NextHop},
    create_windows::SentCreate,
    partial_creates::PartialCreate,
    table::CircuitKey,
    waiting_creates::WaitingCreate,
};

impl Relay {
    /// Handles a CREATE, or a fragment of one, on an unused identifier.
    pub(super) fn handle_create(&mut self, now: Instant, endpoint: CircuitEndpoint, body: &[u8; BODY_LEN]) {
        if self.collect_create(now, endpoint, body).is_none() {
            self.destroy(now, endpoint);
        }
    }

    /// Reassembles a CREATE, and queues it once it is complete. `None` if the CREATE must be refused.
    fn collect_create(&mut self, now: Instant, endpoint: CircuitEndpoint, body: &[u8; BODY_LEN]) -> Option<()> {
        let partial = self.partial_creates.remove(endpoint);
        let (hop, fragment) = decode_create(body).ok()?;
        // Only relays create later hops; only clients create first hops (`proto/02-channel.md` §5).
        if (hop == HopIndex::FIRST) != self.channels.peer(endpoint.channel).is_none() {
            return None;
        }
        let owner = self.update_limits(endpoint.channel)?;
        let mut partial = match partial {
            Some(partial) if partial.hop == hop => partial,
            Some(_) => return None,
            // The caps are checked before any work.
            None if self.may_create(now, endpoint.channel, &owner) => PartialCreate::new(now, hop, owner),
            None => return None,
        };
        match partial.request.push(fragment).ok()? {
            Some(request) => self.queue_create(now, endpoint, hop, request),
            None => {
                if let Some(evicted) = self.partial_creates.insert(endpoint, partial).ok()? {
                    self.destroy(now, evicted);
                }
                Some(())
            }
        }
    }

    /// Queues a complete CREATE for its handshake. `None` if the CREATE must be refused.
    fn queue_create(&mut self, now: Instant, endpoint: CircuitEndpoint, hop: HopIndex, request: Vec<u8>) -> Option<()> {
        let owner = self.update_limits(endpoint.channel)?;
        let is_admitted = self.table.admits(&owner) && self.waiting_creates.admits(&owner);
        // The circuit is live while it waits: the channel counts it, and isn't idle.
        if !is_admitted || !self.channels.admit_circuit(endpoint.channel, endpoint.circuit) {
            return None;
        }
        let evicted = self.waiting_creates.insert(endpoint, WaitingCreate::new(now, hop, owner, request)).ok()?;
        if let Some(evicted) = evicted {
            self.refuse(now, evicted);
        }
        Some(())
    }

    /// Performs the handshakes of waiting CREATEs that the rate permits now, in turns of their owners.
    pub(super) fn perform_handshakes(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while !self.waiting_creates.is_empty() && self.handshake_tokens.take(now, self.handshake_rate) {
            let Some((endpoint, create)) = self.waiting_creates.pop() else { return };
            if self.open_circuit(now, endpoint, &create, rng).is_none() {
                self.refuse(now, endpoint);
            }
        }
    }

    /// The time of the next [`Self::perform_handshakes`].
    pub(super) fn next_handshake(&self) -> Option<Instant> {
        (!self.waiting_creates.is_empty()).then(|| self.handshake_tokens.available_at(self.handshake_rate, 1))
    }

    /// Refuses a CREATE that no longer waits.
    pub(super) fn refuse(&mut self, now: Instant, endpoint: CircuitEndpoint) {
        // The circuit ends before its DESTROY is queued, so that the DESTROY counts towards the channel's cap of
        // refusals.
        self.channels.end_circuit(now, endpoint.channel, endpoint.circuit);
        self.destroy(now, endpoint);
    }

    /// Answers a CREATE and adds the circuit. `None` if the CREATE must be refused.
    fn open_circuit(
        &mut self,
        now: Instant,
        endpoint: CircuitEndpoint,
        create: &WaitingCreate,
        rng: &mut dyn CryptoRng,
    ) -> Option<()> {
        let WaitingCreate { hop, owner, .. } = *create;
        if !self.table.admits(&owner) {
            return None;
        }
        let answer = respond(&self.identity, &self.onion_keys, hop, &create.request, rng)
            .inspect_err(|error| tracing::debug!(%error, class = %error.class(), "refusing a circuit"))
            .ok()?;
        for cell in created_cells(endpoint.circuit, &answer.reply).ok()? {
            self.channels.send(endpoint.channel, cell).ok()?;
        }
        self.make_room(now, &owner);
        self.table.insert(Circuit::new(now, hop, owner, endpoint, RelayLayer::new(hop, answer.keys))).map(|_| ())
    }

    /// Whether the shares and rates of the table, the owner and the channel admit one more circuit.
    fn may_create(&mut self, now: Instant, channel: ChannelId, owner: &Owner) -> bool {
        self.table.admits(owner) && self.channels.may_create(now, channel) && self.allowances.take(now, owner)
    }

    /// Sets the limits of a channel and its link for its owner. Returns the owner of the circuits over the channel.
    pub(super) fn update_limits(&mut self, channel: ChannelId) -> Option<Owner> {
        let owner = self.owner(channel);
        self.channels.set_listed(channel, matches!(owner, Some(Owner::Relay(_))));
        owner
    }

    /// At a cap, ends the least used circuit of another owner to make room for one of `owner`.
    fn make_room(&mut self, now: Instant, owner: &Owner) {
        let Self { table, streams, .. } = self;
        if let Some(key) = table.least_used(owner, |key| streams.has_open(key)) {
            tracing::debug!("ending the least used circuit of the owner closest to its share");
            self.end(now, key);
        }
    }

    /// Handles an EXTEND, or a fragment of one.
    pub(super) fn handle_extend(&mut self, now: Instant, key: CircuitKey, fragment: &[u8], rng: &mut dyn CryptoRng) {
        if self.collect_extend(now, key, fragment, rng).is_none() {
            self.end(now, key);
        }
    }

    /// Reassembles an EXTEND, and extends the circuit once it is complete. `None` if the circuit must end.
    fn collect_extend(
        &mut self,
        now: Instant,
        key: CircuitKey,
        fragment: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Option<()> {
        let circuit = self.table.circuit_mut(key)?;
        let (previous, owner) = (circuit.previous.channel, circuit.owner);
        let Some(body) = circuit.push_extend(now, fragment)? else {
            self.table.schedule(key);
            return Some(());
        };
        let (relay, request) = decode_extend(&body).ok()?;
        // A hop back to the previous relay or to this relay would make the circuit appear longer than its path is.
        if relay == self.identity || Some(relay) == self.channels.peer(previous) {
            return None;
        }
        let target = self.known.relay(&relay).map(ConsensusRelay::dial_target);
        let channel =
            if target.is_some() { self.channels.lookup(&relay) } else { self.channels.channel_to_volunteer(&relay) };
        if channel.is_none() && target.is_none() {
            return self.send_gone(key);
        }
        if let Some(channel) = channel
            && self.create_windows.has_room(now, channel)
            && self.waiting_extends.may_create(now, &relay)
        {
            return self.create(now, key, channel, request, rng);
        }
        let evicted = self.waiting_extends.to_evict(&owner).ok()?;
        if channel.is_none()
            && let Some(target) = target
        {
            if !self.waiting_extends.may_dial(&owner, &relay, self.channels.free_dials()) {
                return None;
            }
            self.channels.connect(now, &target);
        }
        if let Some(evicted) = evicted {
            self.end(now, evicted);
        }
        self.table.circuit_mut(key)?.set_waiting(now, relay);
        self.table.schedule(key);
        let next = (relay, channel.is_none());
        let waits = self.waiting_extends.insert(now, next, key, owner, request.to_vec());
        if channel.is_some() {
            self.waiting_extends.schedule(relay);
        }
        waits.then_some(())
    }

    /// Answers GONE to the origin: the next relay can't be reached. The circuit returns to the state before the EXTEND.
    /// `None` if the circuit must end.
    fn send_gone(&mut self, key: CircuitKey) -> Option<()> {
        self.table.circuit_mut(key)?.set_gone()?;
        self.table.schedule(key);
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
            self.table.remove_next(endpoint, key);
            if self.send_gone(key).is_some() {
                return;
            }
        }
        self.end(now, key);
    }

    /// Sends the CREATEs that wait for `relay`, as far as its window and the rate permit now, in turns of their owners.
    pub(super) fn create_waiting(&mut self, now: Instant, relay: RelayId, rng: &mut dyn CryptoRng) {
        let channel = match self.known.relay(&relay).map(ConsensusRelay::dial_target) {
            Some(target) => self.channels.connect(now, &target),
            None => self.channels.channel_to_volunteer(&relay),
        };
        self.waiting_extends.set_dialled(&relay, channel.is_none());
        let Some(channel) = channel else { return self.handle_unreachable(now, &relay) };
        while self.create_windows.has_room(now, channel)
            && let Some((key, request)) = self.waiting_extends.pop(now, &relay)
        {
            if self.create(now, key, channel, &request, rng).is_none() {
                self.end(now, key);
            }
        }
    }

    /// Handles the loss of the channel for which circuits wait. A listed relay is dialled again; else the origins get
    /// GONE.
    fn handle_unreachable(&mut self, now: Instant, relay: &RelayId) {
        if self.known.relay(relay).is_some() {
            return;
        }
        for key in self.waiting_extends.take(relay) {
            if self.send_gone(key).is_none() {
                self.end(now, key);
            }
        }
    }

    /// Sends CREATE to the next hop. On a channel with the maximum number of circuits, ends a circuit of the owner closest
    /// to its share, unless that is the owner of this circuit. `None` if the circuit must end.
    fn create(
        &mut self,
        now: Instant,
        key: CircuitKey,
        channel: ChannelId,
        request: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Option<()> {
        let volunteer = self.channels.reaches(channel);
        let (hop, owner) = (self.table.circuit(key)?.hop.next()?, self.table.circuit(key)?.owner);
        if self.channels.is_full(channel)
            && let Some(evicted) = self.table.least_used_on(channel, &owner)
        {
            self.end(now, evicted);
        }
        let endpoint = CircuitEndpoint { channel, circuit: self.channels.allocate_circuit(channel, rng)? };
        let sent = self.create_windows.send(now, channel, self.channels.peer(channel)?);
        self.table.circuit_mut(key)?.set_creating(now, endpoint, volunteer, sent);
        self.table.insert_next(endpoint, key);
        for cell in create_cells(endpoint.circuit, hop, request).ok()? {
            self.channels.send(channel, cell).ok()?;
        }
        self.table.schedule(key);
        Some(())
    }

    /// Handles the next hop's CREATED, or a fragment of one, and forwards the complete CREATED as EXTENDED.
    pub(super) fn handle_created(&mut self, now: Instant, key: CircuitKey, body: &[u8; BODY_LEN]) {
        if self.collect_created(now, key, body).is_none() {
            self.end(now, key);
        }
    }

    /// Reassembles a CREATED, and sends EXTENDED once it is complete. `None` if the circuit must end.
    fn collect_created(&mut self, now: Instant, key: CircuitKey, body: &[u8; BODY_LEN]) -> Option<()> {
        let circuit = self.table.circuit_mut(key)?;
        let sent = circuit.next.sent_create();
        let Some(body) = circuit.push_created(body)? else { return Some(()) };
        let capacity = message_capacity(circuit.hop).saturating_sub(MESSAGE_HEADER_LEN);
        if let Some((channel, sent)) = sent {
            self.handle_create_end(now, channel, sent, true);
        }
        for fragment in split(&body, capacity).ok()? {
            self.send_message(key, &RelayMessage::Extended { fragment: fragment.into() }).then_some(())?;
        }
        Some(())
    }

    /// Handles the end of a CREATE on `channel`, by CREATED or with its circuit. A waiting circuit may have room now.
    pub(super) fn handle_create_end(&mut self, now: Instant, channel: ChannelId, sent: SentCreate, is_answered: bool) {
        if let Some(relay) = self.create_windows.remove(now, channel, sent, is_answered) {
            self.waiting_extends.schedule(relay);
        }
    }
}
