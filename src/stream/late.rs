//! Recently closed streams, and the messages that the peer may still send for them.

use std::collections::{BTreeMap, VecDeque};

use crate::base::StreamId;

const MAX_STREAMS: usize = 1024;
/// Maximum late messages of one stream, other than DATA.
const MAX_MESSAGES: u8 = 64;

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
    messages_left: u8,
}

impl LateStreams {
    pub(super) fn insert(&mut self, id: StreamId, late_bytes: u64) {
        self.inserted = self.inserted.saturating_add(1);
        let late = Late { number: self.inserted, bytes_left: late_bytes, messages_left: MAX_MESSAGES };
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

    /// Removes a stream after the peer's last message, or when its identifier is reused.
    pub(super) fn remove(&mut self, id: StreamId) {
        self.streams.remove(&id);
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

    /// Whether one more message other than DATA may arrive on the stream; counts it.
    pub(super) fn takes_message(&mut self, id: StreamId) -> bool {
        let Some(late) = self.streams.get_mut(&id) else { return false };
        match late.messages_left.checked_sub(1) {
            Some(left) => {
                late.messages_left = left;
                true
            }
            None => false,
        }
    }
}
