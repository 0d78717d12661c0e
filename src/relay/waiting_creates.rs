//! Complete CREATEs that wait for their handshake, with caps, deadlines and turns of their owners.

use core::time::Duration;

use crate::{
    base::{AtCap, Deadlines, HopIndex, Instant, Owner, TurnQueue},
    channel::ChannelId,
};

use super::circuit::CircuitEndpoint;

/// Time limit from the last fragment of a CREATE to its handshake. Origins and extending relays wait longer for CREATED,
/// so no handshake is performed for a circuit that they have given up.
const WAIT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time from the deadline of a CREATE to its refusal, if the channel has no room for a refusal at the deadline.
const REFUSAL_DELAY: Duration = Duration::from_millis(50);

/// A complete CREATE.
pub(super) struct WaitingCreate {
    pub(super) hop: HopIndex,
    pub(super) request: Vec<u8>,
    pub(super) owner: Owner,
    since: Instant,
}

impl WaitingCreate {
    pub(super) fn new(now: Instant, hop: HopIndex, owner: Owner, request: Vec<u8>) -> Self {
        Self { hop, request, owner, since: now }
    }
}

/// All waiting CREATEs. An operation takes logarithmic time, and at most a visit of the sources of one network.
pub(super) struct WaitingCreates {
    queue: TurnQueue<CircuitEndpoint, WaitingCreate>,
    deadlines: Deadlines<CircuitEndpoint>,
}

impl WaitingCreates {
    pub(super) fn new(cap: usize) -> Self {
        Self { queue: TurnQueue::new(cap), deadlines: Deadlines::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether [`insert`](Self::insert) adds a CREATE of `owner`.
    pub(super) fn admits(&self, owner: &Owner) -> bool {
        self.queue.admits(owner)
    }

    /// Adds a CREATE on `endpoint`, which must have none. At a cap, removes the oldest CREATE of another owner, and
    /// returns its endpoint for the caller to refuse.
    ///
    /// # Errors
    /// As [`TurnQueue::insert`].
    pub(super) fn insert(
        &mut self,
        endpoint: CircuitEndpoint,
        create: WaitingCreate,
    ) -> Result<Option<CircuitEndpoint>, AtCap> {
        let WaitingCreate { since, owner, .. } = create;
        let evicted = self.queue.insert(since, owner, endpoint, create)?;
        if let Some(evicted) = evicted {
            self.deadlines.remove(evicted);
        }
        self.deadlines.set(endpoint, since.after(WAIT_TIMEOUT));
        Ok(evicted)
    }

    /// Removes the CREATE on `endpoint`, if there is one.
    pub(super) fn remove(&mut self, endpoint: CircuitEndpoint) -> Option<WaitingCreate> {
        self.deadlines.remove(endpoint);
        self.queue.remove(endpoint)
    }

    /// Removes the CREATEs on a closed channel.
    pub(super) fn remove_channel(&mut self, channel: ChannelId) {
        let endpoints: Vec<_> = self.queue.range(CircuitEndpoint::range(channel)).collect();
        for endpoint in endpoints {
            self.remove(endpoint);
        }
    }

    /// Removes and returns the next CREATE: the oldest of the owner whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(CircuitEndpoint, WaitingCreate)> {
        let (endpoint, create) = self.queue.pop()?;
        self.deadlines.remove(endpoint);
        Some((endpoint, create))
    }

    /// Removes the next CREATE whose deadline is `now` or earlier. Returns its endpoint for the caller to refuse.
    ///
    /// Many CREATEs of a channel can expire at the same time, and a channel closes beyond its cap of refusals. So a
    /// CREATE whose channel doesn't meet `has_room` is refused later.
    pub(super) fn pop_expired(
        &mut self,
        now: Instant,
        has_room: impl Fn(ChannelId) -> bool,
    ) -> Option<CircuitEndpoint> {
        while let Some(endpoint) = self.deadlines.pop_due(now) {
            if has_room(endpoint.channel) {
                self.remove(endpoint);
                return Some(endpoint);
            }
            self.deadlines.set(endpoint, now.after(REFUSAL_DELAY));
        }
        None
    }

    /// The time of the next [`Self::pop_expired`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// The numbers of CREATEs, of their deadlines, and of turns in both indexes.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> (usize, usize, usize, usize) {
        let (creates, turns, order) = self.queue.counts();
        (creates, self.deadlines.len(), turns, order)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::base::{CircuitId, LinkId, RelayId};

    fn source(network: u8) -> Owner {
        Owner::of_address([10, 0, network, 1].into())
    }

    fn endpoint(circuit: u32) -> CircuitEndpoint {
        CircuitEndpoint { channel: ChannelId(LinkId(1)), circuit: CircuitId::new(circuit).unwrap() }
    }

    fn insert(waiting: &mut WaitingCreates, owner: Owner, circuits: impl Iterator<Item = u32>) {
        for circuit in circuits {
            let now = Instant::from_nanos(circuit.into());
            waiting.insert(endpoint(circuit), WaitingCreate::new(now, HopIndex::FIRST, owner, Vec::new())).unwrap();
        }
    }

    fn pop(waiting: &mut WaitingCreates) -> Option<u32> {
        waiting.pop().map(|(endpoint, _)| endpoint.circuit.value())
    }

    #[test]
    fn owners_take_turns_of_one_create_and_listed_relays_of_four() {
        let mut waiting = WaitingCreates::new(640);
        insert(&mut waiting, source(1), 10..15);
        insert(&mut waiting, Owner::Relay(RelayId::from_bytes([1; 32])), 20..26);
        insert(&mut waiting, source(2), 30..32);
        assert_eq!(pop(&mut waiting), Some(10));
        insert(&mut waiting, source(3), 40..41);
        let rest: Vec<_> = core::iter::from_fn(|| pop(&mut waiting)).collect();
        assert_eq!(rest, [20, 21, 22, 23, 30, 11, 40, 24, 25, 31, 12, 13, 14]);
        assert_eq!(waiting.len(), (0, 0, 0, 0));
    }

    #[test]
    fn the_sources_of_a_network_share_its_turn() {
        let mut waiting = WaitingCreates::new(640);
        for host in 1..=5 {
            let owner = Owner::of_address([10, 0, 1, host].into());
            insert(&mut waiting, owner, u32::from(host) * 10..u32::from(host) * 10 + 2);
        }
        insert(&mut waiting, source(2), 70..72);
        let order: Vec<_> = core::iter::from_fn(|| pop(&mut waiting)).collect();
        assert_eq!(order, [10, 70, 20, 71, 30, 40, 50, 11, 21, 31, 41, 51]);
        assert_eq!(waiting.len(), (0, 0, 0, 0));
    }

    #[test]
    fn an_owner_that_withdraws_its_creates_goes_to_the_end() {
        let mut waiting = WaitingCreates::new(640);
        insert(&mut waiting, source(1), 10..12);
        insert(&mut waiting, source(2), 20..22);
        for circuit in 10..12 {
            assert!(waiting.remove(endpoint(circuit)).is_some());
        }
        assert!(waiting.remove(endpoint(10)).is_none());
        insert(&mut waiting, source(1), 12..14);
        let order: Vec<_> = core::iter::from_fn(|| pop(&mut waiting)).collect();
        assert_eq!(order, [20, 12, 21, 13]);
    }
}
