//! Recently closed streams, and the messages that the peer may still send for them.

use std::collections::{BTreeMap, VecDeque};

use super::{
    credit::SentBytes,
    state::{Receiving, StreamPhase, StreamState},
};
use crate::base::StreamId;

const MAX_STREAMS: usize = 1024;

/// Recently closed streams. Holds at most 1,024 entries; the oldest is evicted first.
#[derive(Default)]
pub(super) struct LateStreams {
    streams: BTreeMap<StreamId, Late>,
    order: VecDeque<(StreamId, u64)>,
    inserted: u64,
}

struct Late {
    number: u64,
    bytes_left: u64,
    sent: SentBytes,
    /// CONNECTED may arrive.
    connected: bool,
    /// RESOLVED may arrive.
    resolved: bool,
    /// END(Done) may arrive.
    finish: bool,
}

impl LateStreams {
    /// Adds a closed stream, on which the peer may still send `late_bytes`.
    pub(super) fn insert(&mut self, id: StreamId, stream: &StreamState, late_bytes: u64) {
        self.inserted = self.inserted.saturating_add(1);
        let late = Late {
            number: self.inserted,
            bytes_left: late_bytes,
            sent: stream.sent,
            connected: stream.phase == StreamPhase::Beginning,
            resolved: stream.phase == StreamPhase::Resolving,
            finish: stream.carries_data() && stream.receiving == Receiving::Open,
        };
        self.streams.insert(id, late);
        self.order.push_back((id, self.inserted));
        // `order` may name streams that were removed or inserted again.
        while self.order.len() > MAX_STREAMS {
            if let Some((oldest, number)) = self.order.pop_front()
                && self.streams.get(&oldest).is_some_and(|late| late.number == number)
            {
                self.streams.remove(&oldest);
            }
        }
    }

    pub(super) fn contains(&self, id: StreamId) -> bool {
        self.streams.contains_key(&id)
    }

    /// Removes a stream after the peer's last message, or when its identifier is reused; returns whether there was
    /// one.
    pub(super) fn remove(&mut self, id: StreamId) -> bool {
        self.streams.remove(&id).is_some()
    }

    /// Whether `bytes` of DATA may still arrive on the stream; counts them.
    pub(super) fn takes_data(&mut self, id: StreamId, bytes: u64) -> bool {
        let Some(late) = self.streams.get_mut(&id) else { return false };
        match late.bytes_left.checked_sub(bytes) {
            Some(left) => {
                late.bytes_left = left;
                true
            }
            None => false,
        }
    }

    /// Whether a CREDIT of `bytes` may still arrive on the stream; counts it.
    pub(super) fn takes_credit(&mut self, id: StreamId, bytes: u32) -> bool {
        self.streams.get_mut(&id).is_some_and(|late| late.sent.takes_credit(bytes))
    }

    /// Whether CONNECTED may still arrive on the stream, which it may once.
    pub(super) fn takes_connected(&mut self, id: StreamId) -> bool {
        self.streams.get_mut(&id).is_some_and(|late| core::mem::take(&mut late.connected))
    }

    /// Whether END(Done) may still arrive on the stream, which it may once. No bytes follow it.
    pub(super) fn takes_finish(&mut self, id: StreamId) -> bool {
        self.streams.get_mut(&id).is_some_and(|late| {
            late.bytes_left = 0;
            core::mem::take(&mut late.finish)
        })
    }

    /// Whether RESOLVED may still arrive on the stream. It is the peer's last message.
    pub(super) fn takes_resolved(&mut self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|late| late.resolved) && self.remove(id)
    }
}
