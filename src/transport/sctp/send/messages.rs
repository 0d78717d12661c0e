//! The messages of a sending half, from queueing until the peer has acknowledged all their bytes.

use std::collections::VecDeque;

use super::index;
use crate::base::{Counter as _, Slots};

/// The messages in the order in which they are sent. An acknowledged message frees its bytes. Its entry stays until all
/// earlier messages are acknowledged. Each sent message has a TSN, so TSNs bound the number of entries.
#[derive(Default)]
pub(super) struct OutgoingMessages {
    messages: VecDeque<OutgoingMessage>,
    /// Number of the first of `messages`.
    first: u64,
    /// Number of the first message with unsent bytes.
    unsent: u64,
    unsent_bytes: usize,
}

/// One message.
pub(super) struct OutgoingMessage {
    pub(super) stream: u16,
    pub(super) sequence: u16,
    pub(super) protocol: u32,
    bytes: Slots,
    /// Bytes already sent.
    sent: usize,
    /// Bytes that are not acknowledged, sent or not.
    unacknowledged: usize,
}

/// The part of a message that one TSN carries.
#[derive(Clone, Copy)]
pub(super) struct MessagePart {
    /// The number of the message.
    message: u64,
    offset: usize,
    pub(super) length: usize,
    pub(super) begin: bool,
    pub(super) end: bool,
}

impl OutgoingMessages {
    /// Queues a message that is not empty.
    pub(super) fn push(&mut self, stream: u16, sequence: u16, protocol: u32, bytes: Slots) {
        let unacknowledged = bytes.len();
        self.unsent_bytes = self.unsent_bytes.saturating_add(unacknowledged);
        self.messages.push_back(OutgoingMessage { stream, sequence, protocol, bytes, sent: 0, unacknowledged });
    }

    /// Unsent bytes of all messages.
    pub(super) const fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Unsent bytes of the first message that has any.
    pub(super) fn next_unsent(&self) -> Option<usize> {
        let message = self.messages.get(index(self.first, self.unsent)?)?;
        Some(message.bytes.len().saturating_sub(message.sent))
    }

    /// Takes the next `length` unsent bytes. The caller takes at most [`Self::next_unsent`].
    pub(super) fn take(&mut self, length: usize) -> Option<MessagePart> {
        let message = self.messages.get_mut(index(self.first, self.unsent)?)?;
        let offset = message.sent;
        message.sent = offset.saturating_add(length);
        let end = message.sent >= message.bytes.len();
        let part = MessagePart { message: self.unsent, offset, length, begin: offset == 0, end };
        self.unsent = self.unsent.saturating_add(u64::from(end));
        self.unsent_bytes = self.unsent_bytes.saturating_sub(length);
        Some(part)
    }

    /// The message of a part that is not acknowledged.
    pub(super) fn message(&self, part: &MessagePart) -> Option<&OutgoingMessage> {
        self.messages.get(index(self.first, part.message)?)
    }

    /// Acknowledges a part, once.
    pub(super) fn acknowledge(&mut self, part: &MessagePart) {
        let message = index(self.first, part.message).and_then(|at| self.messages.get_mut(at));
        let Some(message) = message else { return };
        message.unacknowledged = message.unacknowledged.saturating_sub(part.length);
        if message.unacknowledged > 0 {
            return;
        }
        message.bytes = Slots::new();
        while self.messages.front().is_some_and(|message| message.unacknowledged == 0) {
            self.messages.pop_front();
            self.first.increment();
        }
    }

    /// Asserts the invariants. `parts` are those that are not acknowledged.
    #[cfg(any(test, fuzzing))]
    pub(super) fn assert_invariants<'a>(&self, parts: impl Iterator<Item = &'a MessagePart>) {
        // An acknowledged message has freed its bytes.
        let unsent = |message: &OutgoingMessage| message.bytes.len().saturating_sub(message.sent);
        let mut unacknowledged: Vec<_> = self.messages.iter().map(unsent).collect();
        assert_eq!(self.unsent_bytes, unacknowledged.iter().sum::<usize>());
        for part in parts {
            let bytes = index(self.first, part.message).and_then(|at| unacknowledged.get_mut(at));
            assert!(bytes.map(|bytes| *bytes += part.length).is_some(), "a part's message is gone");
        }
        assert!(unacknowledged.iter().eq(self.messages.iter().map(|message| &message.unacknowledged)));
        assert!(unacknowledged.first() != Some(&0), "an acknowledged message is kept");
        let freed = |message: &OutgoingMessage| message.bytes.is_empty() == (message.unacknowledged == 0);
        assert!(self.messages.iter().all(freed), "the bytes of acknowledged messages, and of no others, are freed");
    }
}

impl OutgoingMessage {
    /// The bytes of a part.
    pub(super) fn pieces(&self, part: &MessagePart) -> impl Iterator<Item = &[u8]> {
        self.bytes.pieces(part.offset..part.offset.saturating_add(part.length))
    }
}
