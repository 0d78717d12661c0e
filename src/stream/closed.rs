//! Recently closed streams, and the messages that the peer may still send on them.

use std::collections::{BTreeMap, VecDeque};

use super::{
    credit::SentBytes,
    state::{Receiving, StreamPhase, StreamState},
};
use crate::base::{Counter as _, StreamId, shrink_queue};

const MAX_CLOSED: usize = 1024;

/// Recently closed streams. Holds at most 1,024 streams; the oldest is evicted first.
#[derive(Default)]
pub(super) struct ClosedStreams {
    streams: BTreeMap<StreamId, ClosedStream>,
    /// Identifier and number of the streams, oldest first. Also contains some streams that were removed since.
    order: VecDeque<(StreamId, u64)>,
    /// The number of insertions.
    inserted: u64,
}

/// A closed stream, with the messages that may still arrive.
struct ClosedStream {
    /// The number of the insertion, which differs if the identifier is inserted again.
    number: u64,
    /// Bytes of DATA that may arrive.
    bytes_left: u64,
    /// The bytes sent, for which CREDIT may arrive.
    sent: SentBytes,
    /// Whether CONNECTED may arrive.
    may_get_connected: bool,
    /// Whether RESOLVED may arrive.
    may_get_resolved: bool,
    /// Whether END(Done) may arrive.
    may_get_finished: bool,
}

impl ClosedStreams {
    /// Adds a closed stream, on which the peer may still send `late_bytes`.
    pub(super) fn insert(&mut self, id: StreamId, stream: &StreamState, late_bytes: u64) {
        self.inserted.increment();
        let closed = ClosedStream {
            number: self.inserted,
            bytes_left: late_bytes,
            sent: stream.sent,
            may_get_connected: stream.phase == StreamPhase::Beginning,
            may_get_resolved: stream.phase == StreamPhase::Resolving,
            may_get_finished: stream.carries_data() && stream.receiving == Receiving::Open,
        };
        self.streams.insert(id, closed);
        self.order.push_back((id, self.inserted));
        self.keep_newest(MAX_CLOSED);
        if self.order.len() > self.streams.len().saturating_mul(2) {
            let streams = &self.streams;
            self.order.retain(|(id, number)| streams.get(id).is_some_and(|closed| closed.number == *number));
            shrink_queue(&mut self.order);
        }
    }

    /// The number of stored streams.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Evicts the oldest streams beyond `count` streams.
    pub(super) fn keep_newest(&mut self, count: usize) {
        while self.streams.len() > count
            && let Some((oldest, number)) = self.order.pop_front()
        {
            if self.streams.get(&oldest).is_some_and(|closed| closed.number == number) {
                self.streams.remove(&oldest);
            }
        }
    }

    pub(super) fn contains(&self, id: StreamId) -> bool {
        self.streams.contains_key(&id)
    }

    /// Removes a stream after the peer's last message, or when its identifier is reused. Returns whether the stream was
    /// stored.
    pub(super) fn remove(&mut self, id: StreamId) -> bool {
        self.streams.remove(&id).is_some()
    }

    /// Handles DATA of `bytes` bytes; `false` if fewer bytes may arrive on the stream.
    pub(super) fn handle_data(&mut self, id: StreamId, bytes: u64) -> bool {
        let Some(closed) = self.streams.get_mut(&id) else { return false };
        match closed.bytes_left.checked_sub(bytes) {
            Some(left) => {
                closed.bytes_left = left;
                true
            }
            None => false,
        }
    }

    /// Handles a CREDIT of `bytes` bytes; `false` if no reader of the sent bytes can grant it.
    pub(super) fn handle_credit(&mut self, id: StreamId, bytes: u32) -> bool {
        self.streams.get_mut(&id).is_some_and(|closed| closed.sent.handle_credit(bytes))
    }

    /// Handles CONNECTED, which may arrive once; `false` if no CONNECTED may arrive on the stream.
    pub(super) fn handle_connected(&mut self, id: StreamId) -> bool {
        self.streams.get_mut(&id).is_some_and(|closed| core::mem::take(&mut closed.may_get_connected))
    }

    /// Handles END(Done), which may arrive once; `false` if no END(Done) may arrive on the stream. No bytes may follow.
    pub(super) fn handle_finished(&mut self, id: StreamId) -> bool {
        self.streams.get_mut(&id).is_some_and(|closed| {
            closed.bytes_left = 0;
            core::mem::take(&mut closed.may_get_finished)
        })
    }

    /// Handles RESOLVED, the peer's last message; `false` if no RESOLVED may arrive on the stream.
    pub(super) fn handle_resolved(&mut self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|closed| closed.may_get_resolved) && self.remove(id)
    }
}
