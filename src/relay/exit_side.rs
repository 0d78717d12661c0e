//! The state of a circuit that ends at this relay: its streams, and those that the node has open.

use std::collections::BTreeMap;

use super::ExitStream;
use crate::{
    base::StreamId,
    flow::FlowParameters,
    stream::{StreamRole, Streams},
};

/// The streams of a circuit that ends here.
pub(super) struct ExitSide {
    pub(super) streams: Streams,
    pub(super) open: BTreeMap<StreamId, Open>,
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
    pub(super) fn new(parameters: FlowParameters) -> Self {
        Self { streams: Streams::new(StreamRole::Exit, parameters), open: BTreeMap::new() }
    }
}
