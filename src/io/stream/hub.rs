//! The hub: the side of the core's task of all its streams.

use core::task::{Context, Poll, Waker};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::sync::mpsc;

use crate::{stream::StreamCommand, wire::EndReason};

use super::{DuplexState, Stream, StreamReader, StreamShared, StreamWriter};

/// The core's identifier of a stream.
pub(crate) type StreamKey = u64;

/// All open streams of one core; owned by the core's task.
///
/// The loop of that task has three steps: apply commands until there are none, pass the core's events to the streams,
/// wait for commands ([`Hub::poll_command`]). The wait first wakes the readers of pushed bytes, so that a batch of
/// cells wakes a reader once. All methods ignore a key without an open stream.
pub(crate) struct Hub {
    streams: HashMap<StreamKey, Arc<StreamShared>>,
    /// Sending end of the queue of streams with pending output.
    bell: mpsc::UnboundedSender<Arc<StreamShared>>,
    /// Receiving end of that queue.
    rung: mpsc::UnboundedReceiver<Arc<StreamShared>>,
    /// Commands of the last dequeued stream, at most three.
    commands: VecDeque<(StreamKey, StreamCommand)>,
    /// Readers to wake, each once.
    readers: Vec<Waker>,
}

impl Hub {
    /// A hub without streams.
    #[must_use]
    pub(crate) fn new() -> Self {
        let (bell, rung) = mpsc::unbounded_channel();
        Self { streams: HashMap::new(), bell, rung, commands: VecDeque::new(), readers: Vec::new() }
    }

    /// Opens the stream `key` with an initial room of `room` bytes. An open stream of the same key fails.
    #[must_use]
    pub(crate) fn open(&mut self, key: StreamKey, room: usize) -> Stream {
        self.fail(key, EndReason::Failed);
        let state = Mutex::new(DuplexState { room, ..DuplexState::default() });
        let shared = Arc::new(StreamShared { key, bell: self.bell.clone(), state });
        self.streams.insert(key, Arc::clone(&shared));
        Stream {
            reader: StreamReader { shared: Arc::clone(&shared), chunks: VecDeque::new(), untold: 0 },
            writer: StreamWriter { shared: Arc::clone(&shared) },
            shared,
        }
    }

    /// The number of open streams.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Appends bytes from the other end, in order. [`Self::flush`] wakes the reader.
    pub(crate) fn push(&mut self, key: StreamKey, bytes: &[u8]) {
        if let Some(shared) = self.streams.get(&key) {
            let mut state = shared.lock();
            if state.abandoned.is_none() {
                state.append(bytes);
                self.readers.extend(state.reader.take());
            }
        }
    }

    /// Marks the clean end of the bytes from the other end.
    pub(crate) fn finish(&mut self, key: StreamKey) {
        if let Some(shared) = self.streams.get(&key) {
            let mut state = shared.lock();
            state.peer_finished = true;
            self.readers.extend(state.reader.take());
        }
    }

    /// Fails both directions for `reason` and removes the stream.
    pub(crate) fn fail(&mut self, key: StreamKey, reason: EndReason) {
        if let Some(shared) = self.streams.remove(&key) {
            fail(&shared, reason);
        }
    }

    /// Sets the room: the bytes that the core accepts from this stream. Called after each [`StreamCommand::Write`], and
    /// when the stream becomes writable again.
    pub(crate) fn set_room(&mut self, key: StreamKey, room: usize) {
        if let Some(shared) = self.streams.get(&key) {
            let mut state = shared.lock();
            state.room = room;
            let writer = if room > state.outbound.len() { state.writer.take() } else { None };
            drop(state);
            writer.into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes the readers of pushed bytes.
    pub(crate) fn flush(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
    }

    /// The next command of a stream. Wakes the readers of pushed bytes first.
    ///
    /// Commands are [`StreamCommand::Write`] (within the room, never empty), [`StreamCommand::Consumed`],
    /// [`StreamCommand::Finish`] and [`StreamCommand::Reset`], which removes the stream.
    pub(crate) fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<(StreamKey, StreamCommand)> {
        self.flush();
        loop {
            if let Some(command) = self.commands.pop_front() {
                return Poll::Ready(command);
            }
            match core::task::ready!(self.rung.poll_recv(cx)) {
                Some(shared) => self.collect_commands(&shared),
                // Impossible, since the hub holds a sender.
                None => return Poll::Pending,
            }
        }
    }

    /// Turns the pending output of a dequeued stream into commands.
    fn collect_commands(&mut self, shared: &Arc<StreamShared>) {
        let key = shared.key;
        // The stream may have failed, and another may have its key.
        let known = self.streams.get(&key).is_some_and(|known| Arc::ptr_eq(known, shared));
        let mut state = shared.lock();
        state.rung = false;
        if !known {
            return;
        }
        let complete = state.finished && state.peer_finished;
        if let (Some(reason), false) = (state.abandoned, complete) {
            drop(state);
            self.streams.remove(&key);
            self.commands.push_back((key, StreamCommand::Reset(reason)));
            return;
        }
        let bytes = core::mem::take(&mut state.outbound).freeze();
        if !bytes.is_empty() {
            state.room = state.room.saturating_sub(bytes.len());
            self.commands.push_back((key, StreamCommand::Write(bytes)));
        }
        let consumed = core::mem::take(&mut state.consumed);
        if consumed > 0 {
            self.commands.push_back((key, StreamCommand::Consumed(consumed)));
        }
        if state.finished && !state.finish_told {
            state.finish_told = true;
            self.commands.push_back((key, StreamCommand::Finish));
        }
        if state.abandoned.is_some() {
            drop(state);
            self.streams.remove(&key);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.flush();
        for shared in self.streams.values() {
            fail(shared, EndReason::Failed);
        }
    }
}

fn fail(shared: &StreamShared, reason: EndReason) {
    let mut state = shared.lock();
    state.failed.get_or_insert(reason);
    state.outbound.clear();
    let wakers = [state.reader.take(), state.writer.take(), state.watcher.take()];
    drop(state);
    wakers.into_iter().flatten().for_each(Waker::wake);
}
