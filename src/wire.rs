//! Encoding and decoding of cells, relay messages and fragments.
//!
//! Codecs without keys and time; only [`Fragments`] has state. Every decoder takes untrusted bytes and returns a value
//! or a [`WireError`]. No decoder panics, and the length of the input bounds all allocations. Governed by
//! `proto/03-cells.md` and `proto/05-relay-messages.md`. The messages of the channel handshake are in `channel`.

mod cell;
mod fragment;
mod host;
mod message;
mod reader;

#[cfg(test)]
mod tests;

pub use cell::{BODY_LEN, CELL_LEN, Cell, CellBody, Command};
pub use fragment::{
    Fragments, MAX_BODY_LEN, MAX_FRAGMENTS, create_cells, created_cells, decode_create, decode_extend, encode_extend,
    split,
};
pub use host::{Host, ResolvedAnswer, Target};
pub use message::{EndReason, MESSAGE_HEADER_LEN, MessageKind, RelayMessage, SENDME_TAG_LEN, Service};

/// The reason that bytes are not a valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends before the value does.
    #[error("{0}: the input is truncated")]
    Truncated(&'static str),
    /// The input has bytes after the value.
    #[error("{0}: the input has trailing bytes")]
    TrailingBytes(&'static str),
    /// A field has a value that is not allowed.
    #[error("{0}: the value is not valid")]
    Invalid(&'static str),
    /// A length is beyond the specified maximum.
    #[error("{0}: the length exceeds its maximum")]
    TooLong(&'static str),
}

/// Whether all of `bytes` are zero. Reads every byte, which compiles to a few wide instructions.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}
