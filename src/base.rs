//! Types shared by every layer: time, identifiers, links, message buffers, error classes, redaction, deadlines, ready
//! queues, rate limits, address prefixes, shares of caps and rates, turns of owners, activity of streams, counters,
//! memory of queues.
//!
//! No I/O and no protocol logic. Every other module may depend on this one.

mod activity;
mod address_prefix;
mod allowances;
mod counter;
mod deadlines;
mod error_class;
mod id;
mod link;
mod machine;
mod owned;
mod owner_turns;
mod queue;
mod ready_queue;
mod recent_use;
mod redact;
mod shares;
mod slots;
mod time;
mod token_bucket;
mod turn_queue;

pub use activity::Activity;
pub use address_prefix::AddressPrefix;
pub use allowances::Allowances;
pub use counter::Counter;
pub use deadlines::Deadlines;
pub use error_class::ErrorClass;
pub use id::{CircuitId, HopIndex, RelayId, StreamId};
pub use link::{
    DialError, DialTarget, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, MAX_LANES, MESSAGE_CELLS, Transmit,
};
pub use machine::LinkMachine;
pub use owned::Owned;
pub use owner_turns::{OwnerTurns, TURN_OF_RELAY};
pub use queue::shrink_queue;
pub use ready_queue::{ReadyQueue, Ticket};
pub use recent_use::RecentUse;
pub use redact::Redacted;
pub use shares::{AtCap, Owner, Shares};
pub use slots::{SLOT_LEN, Slot, Slots};
pub use time::{Instant, WallTime};
pub use token_bucket::{Rate, TokenBucket};
pub use turn_queue::TurnQueue;
