//! Types shared by every layer: time, identifiers, links, messages, redaction.
//!
//! No I/O and no protocol logic. Every other module may depend on this one.

mod deadlines;
mod error_class;
mod id;
mod link;
mod machine;
mod redact;
mod slots;
mod time;

pub use deadlines::Deadlines;
pub use error_class::ErrorClass;
pub use id::{CircuitId, HopIndex, RelayId, StreamId};
pub use link::{
    DialError, DialTarget, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, MAX_LANES, MESSAGE_CELLS, Transmit,
};
pub use machine::LinkMachine;
pub use redact::Redacted;
pub use slots::{SLOT_LEN, Slot, Slots};
pub use time::{Instant, WallTime};
