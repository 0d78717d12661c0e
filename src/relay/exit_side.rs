//! The state of a circuit that ends at this relay: its streams, and those that the node has open.

use std::collections::BTreeMap;

use super::ExitStream;
use crate::{
    base::{Instant, Rate, StreamId, TokenBucket},
    flow::FlowParameters,
    stream::{StreamRole, Streams},
};

/// BEGINs and REQUESTs of a circuit; as many at once as it may have streams.
const BEGINS: Rate = Rate { a_second: 20, burst: 256 };
/// RESOLVEs of a circuit.
const RESOLVES: Rate = Rate { a_second: 10, burst: 64 };

/// The streams of a circuit that ends here.
pub(super) struct ExitSide {
    pub(super) streams: Streams,
    pub(super) open: BTreeMap<StreamId, Open>,
    /// Time of the origin's last stream message.
    pub(super) received_at: Instant,
    begins: TokenBucket,
    resolves: TokenBucket,
}

/// A stream or RESOLVE that the node has open.
pub(super) struct Open {
    pub(super) exit: ExitStream,
    /// The origin has finished its direction.
    pub(super) origin_finished: bool,
    /// The target has finished its direction.
    pub(super) target_finished: bool,
}

impl ExitSide {
    pub(super) fn new(now: Instant, parameters: FlowParameters) -> Self {
        Self {
            streams: Streams::new(StreamRole::Exit, parameters),
            open: BTreeMap::new(),
            received_at: now,
            begins: TokenBucket::new(),
            resolves: TokenBucket::new(),
        }
    }

    /// Whether a request is within the circuit's rate (`proto/08-paths.md` §6). Otherwise one client could scan ports
    /// and flood name servers in the exit's name as fast as cells arrive.
    pub(super) fn takes(&mut self, is_resolve: bool) -> bool {
        match is_resolve {
            true => self.resolves.take(self.received_at, RESOLVES),
            false => self.begins.take(self.received_at, BEGINS),
        }
    }
}
