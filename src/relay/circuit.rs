//! One circuit at a relay: its endpoints, this relay's layer, and the state of its next hop.

use core::{ops::RangeInclusive, time::Duration};

use crate::{
    base::{CircuitId, Counter as _, HopIndex, Instant, Owner, RelayId},
    channel::ChannelId,
    onion::RelayLayer,
    wire::{BODY_LEN, Fragments},
};

use super::create_windows::SentCreate;

/// Time after which a client's circuit ends that has no next hop and never had a stream that the relay served.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(600);
/// The same for a later hop, which may be the last of a circuit that a client keeps ready, and for any hop after its
/// last stream.
const UNUSED_LATER_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time limit from the first to the last fragment of one CREATE or EXTEND.
pub(super) const FRAGMENTS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit from EXTEND to CREATE: slightly more than the limit of a dial and its handshake.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(22);
/// Time limit from CREATE to the last fragment of CREATED.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Cap on GONE messages of one circuit (`proto/05-relay-messages.md` §7).
const MAX_GONE: u8 = 4;

/// A circuit on one channel: its endpoint towards the origin, or towards the next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CircuitEndpoint {
    pub(super) channel: ChannelId,
    pub(super) circuit: CircuitId,
}

/// The endpoint by which a circuit was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Towards the origin.
    Previous,
    /// Towards the next hop.
    Next,
}

impl CircuitEndpoint {
    /// All possible endpoints of a channel.
    pub(super) fn range(channel: ChannelId) -> RangeInclusive<Self> {
        Self { channel, circuit: CircuitId::LOWEST }..=Self { channel, circuit: CircuitId::HIGHEST }
    }
}

/// The use of a circuit, by which the circuits of an owner are ordered. At the cap, the least used circuit is evicted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CircuitRank {
    /// Whether the circuit has a next hop or an open stream.
    pub(super) serves: bool,
    /// The time of the last cell from the origin.
    pub(super) last_cell: Instant,
}

/// The state of a circuit's next hop.
pub(super) enum NextHop {
    /// This relay is the last hop.
    None,
    /// The CREATE waits for the channel to the next hop, for the rate of CREATEs to it, or for room in its window.
    Waiting(RelayId),
    /// CREATE is sent; CREATED is incomplete.
    Creating { endpoint: CircuitEndpoint, volunteer: bool, sent: SentCreate, reply: Fragments },
    /// The next hop has answered.
    Open(CircuitEndpoint),
}

impl NextHop {
    /// The endpoint towards the next hop, if there is one.
    pub(super) const fn endpoint(&self) -> Option<CircuitEndpoint> {
        match self {
            Self::Creating { endpoint, .. } | Self::Open(endpoint) => Some(*endpoint),
            Self::None | Self::Waiting(_) => None,
        }
    }

    /// The unanswered CREATE, and the channel on which it was sent.
    pub(super) const fn sent_create(&self) -> Option<(ChannelId, SentCreate)> {
        match self {
            Self::Creating { endpoint, sent, .. } => Some((endpoint.channel, *sent)),
            Self::None | Self::Waiting(_) | Self::Open(_) => None,
        }
    }
}

/// One circuit.
pub(super) struct Circuit {
    pub(super) hop: HopIndex,
    pub(super) previous: CircuitEndpoint,
    pub(super) owner: Owner,
    /// The circuit's rank in [`Owned`](crate::base::Owned).
    pub(super) listed_rank: CircuitRank,
    /// The circuit's rank among those on the channel to its next hop.
    pub(super) listed_next_rank: CircuitRank,
    pub(super) next: NextHop,
    pub(super) layer: RelayLayer,
    /// The time of the last cell from the origin.
    pub(super) last_cell: Instant,
    /// The time since which the circuit has served no stream at this hop.
    unused_since: Instant,
    /// Whether the circuit has ever served a stream at this hop.
    has_served: bool,
    /// The fragments of an incomplete EXTEND.
    extend: Fragments,
    /// Number of GONE messages sent.
    gone_sent: u8,
    /// The deadline of an EXTEND in progress.
    deadline: Option<Instant>,
}

impl Circuit {
    pub(super) const fn new(
        now: Instant,
        hop: HopIndex,
        owner: Owner,
        previous: CircuitEndpoint,
        layer: RelayLayer,
    ) -> Self {
        let rank = CircuitRank { serves: false, last_cell: now };
        Self {
            hop,
            previous,
            owner,
            listed_rank: rank,
            listed_next_rank: rank,
            next: NextHop::None,
            layer,
            last_cell: now,
            unused_since: now,
            has_served: false,
            extend: Fragments::new(),
            gone_sent: 0,
            deadline: None,
        }
    }

    /// Adds a fragment of an EXTEND: `Some(None)` while fragments are missing, `None` if the circuit must end.
    pub(super) fn push_extend(&mut self, now: Instant, fragment: &[u8]) -> Option<Option<Vec<u8>>> {
        if !matches!(self.next, NextHop::None) || self.hop.next().is_none() {
            return None;
        }
        let body = self.extend.push(fragment).ok()?;
        if body.is_none() {
            self.deadline.get_or_insert(now.after(FRAGMENTS_TIMEOUT));
        }
        Some(body)
    }

    /// Records that the CREATE to the next hop waits.
    pub(super) fn set_waiting(&mut self, now: Instant, relay: RelayId) {
        self.next = NextHop::Waiting(relay);
        self.deadline = Some(now.after(EXTEND_TIMEOUT));
    }

    /// Records that CREATE is sent to the next hop.
    pub(super) fn set_creating(&mut self, now: Instant, endpoint: CircuitEndpoint, volunteer: bool, sent: SentCreate) {
        self.next = NextHop::Creating { endpoint, volunteer, sent, reply: Fragments::new() };
        self.deadline = Some(now.after(CREATE_TIMEOUT));
    }

    /// Records that the next hop can't be reached, so that this relay is the last hop again. `None` if the circuit must
    /// end.
    pub(super) fn set_gone(&mut self) -> Option<()> {
        self.gone_sent.increment();
        self.next = NextHop::None;
        self.deadline = None;
        (self.gone_sent <= MAX_GONE).then_some(())
    }

    /// Adds a fragment of the next hop's CREATED: `Some(None)` while fragments are missing, `None` if the circuit must
    /// end.
    pub(super) fn push_created(&mut self, body: &[u8; BODY_LEN]) -> Option<Option<Vec<u8>>> {
        let NextHop::Creating { endpoint, reply, .. } = &mut self.next else { return None };
        let created = reply.push(body).ok()?;
        if created.is_some() {
            self.next = NextHop::Open(*endpoint);
            self.deadline = None;
        }
        Some(created)
    }

    /// The side of `endpoint`; `None` if it is not an endpoint of the circuit.
    pub(super) fn side(&self, endpoint: CircuitEndpoint) -> Option<Side> {
        if self.previous == endpoint {
            Some(Side::Previous)
        } else if self.next.endpoint() == Some(endpoint) {
            Some(Side::Next)
        } else {
            None
        }
    }

    /// The circuit's rank now. `has_stream`: whether a stream of the circuit is open at this hop.
    pub(super) const fn current_rank(&self, has_stream: bool) -> CircuitRank {
        CircuitRank { serves: has_stream || matches!(self.next, NextHop::Open(_)), last_cell: self.last_cell }
    }

    /// The time at which the circuit ends if nothing changes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.deadline, self.unused_until()].into_iter().flatten().min()
    }

    /// Records that a stream of the circuit was served at `time`.
    pub(super) fn set_served(&mut self, time: Instant) {
        self.has_served = true;
        self.unused_since = self.unused_since.max(time);
    }

    /// The time at which the circuit ends as unused; `None` once it is extended. Messages without an open stream don't
    /// postpone that time, because they cost their origin almost nothing.
    fn unused_until(&self) -> Option<Instant> {
        let timeout =
            if self.hop == HopIndex::FIRST && !self.has_served { UNUSED_TIMEOUT } else { UNUSED_LATER_TIMEOUT };
        matches!(self.next, NextHop::None).then(|| self.unused_since.after(timeout))
    }
}
