//! The open streams of a page, with their received bytes, ends and failures until the page reads them.

use bytes::BytesMut;
use js_sys::Function;

use super::js;
use crate::{
    client::{ClientEvent, ClientStream, StreamFailure},
    stream::StreamEvent,
};

/// A stream of the page.
pub(super) struct OpenStream {
    pub(super) stream: ClientStream,
    pub(super) received: BytesMut,
    pub(super) connected: bool,
    /// The peer has ended its direction.
    pub(super) peer_finished: bool,
    pub(super) failure: Option<StreamFailure>,
    /// Called after a turn with changes.
    pub(super) wake: Function,
    /// Whether a call of `wake` was scheduled since the page last read.
    pub(super) wake_scheduled: bool,
}

impl OpenStream {
    /// Schedules a call of `wake` after the turn, because no script of the page may run during a turn.
    fn wake(&mut self) {
        if !core::mem::replace(&mut self.wake_scheduled, true) {
            js::queue_microtask(&self.wake);
        }
    }
}

/// The streams of a page. The client's core caps those that have not ended (`ClientParameters::max_streams`). A stream that
/// has ended stays until the page drops its handle.
#[derive(Default)]
pub(super) struct OpenStreams(pub(super) Vec<OpenStream>);

impl OpenStreams {
    pub(super) fn entry(&mut self, stream: ClientStream) -> Option<&mut OpenStream> {
        self.0.iter_mut().find(|entry| entry.stream == stream)
    }

    /// Handles an event of one of these streams; returns false for other events.
    pub(super) fn handle_event(&mut self, event: &ClientEvent) -> bool {
        let (ClientEvent::Stream(stream, _) | ClientEvent::Failed(stream, _)) = event else { return false };
        let Some(entry) = self.entry(*stream) else { return false };
        match event {
            ClientEvent::Stream(_, StreamEvent::Connected(_)) => entry.connected = true,
            ClientEvent::Stream(_, StreamEvent::Data(bytes)) => entry.received.extend_from_slice(bytes),
            ClientEvent::Stream(_, StreamEvent::Finished) => entry.peer_finished = true,
            ClientEvent::Stream(_, StreamEvent::Closed(reason)) => entry.failure = Some(StreamFailure::Ended(*reason)),
            ClientEvent::Failed(_, failure) => entry.failure = Some(*failure),
            _ => {}
        }
        entry.wake();
        true
    }

    /// Removes all streams, and wakes their readers.
    pub(super) fn clear(&mut self) {
        self.0.drain(..).for_each(|mut entry| entry.wake());
    }
}
