//! The core task's side of its streams.

use core::task::{Context, Poll, Waker};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::wire::EndReason;

use super::{Reader, Shared, State, Stream, Writer};

/// How the core names a stream.
pub(crate) type StreamKey = u64;

/// What a stream's holder wants of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamCommand {
    /// Send these; never more than the core had told room for.
    Write {
        /// The stream.
        key: StreamKey,
        /// The bytes, never empty.
        bytes: Bytes,
    },
    /// This many bytes were read.
    Consumed {
        /// The stream.
        key: StreamKey,
        /// Bytes, never zero.
        bytes: usize,
    },
    /// Nothing more will be written.
    Finish {
        /// The stream.
        key: StreamKey,
    },
    /// The stream was given up before its end; the hub has forgotten it.
    Reset {
        /// The stream.
        key: StreamKey,
        /// What to tell the other end.
        reason: EndReason,
    },
}

/// All open streams of one core; owned by the core's task.
///
/// The loop of that task: take commands until there are none and do what they say, tell the streams what the core's
/// events say, then wait for commands ([`Hub::poll_command`], which first wakes the readers of what was pushed; so a
/// batch of cells wakes a reader once). A stream that the hub doesn't know any more is ignored everywhere.
pub(crate) struct Hub {
    streams: HashMap<StreamKey, Arc<Shared>>,
    bell: mpsc::UnboundedSender<Arc<Shared>>,
    rung: mpsc::UnboundedReceiver<Arc<Shared>>,
    /// What the stream answered last had to say, three commands at the most.
    commands: VecDeque<StreamCommand>,
    /// Readers to be woken, each once.
    readers: Vec<Waker>,
}

impl Hub {
    /// A hub without streams.
    #[must_use]
    pub(crate) fn new() -> Self {
        let (bell, rung) = mpsc::unbounded_channel();
        Self { streams: HashMap::new(), bell, rung, commands: VecDeque::new(), readers: Vec::new() }
    }

    /// Opens the stream `key`, into which `room` bytes may be written at first. One of the same name fails.
    #[must_use]
    pub(crate) fn open(&mut self, key: StreamKey, room: usize) -> Stream {
        self.fail(key, EndReason::Failed);
        let state = Mutex::new(State { room, ..State::default() });
        let shared = Arc::new(Shared { key, bell: self.bell.clone(), state });
        self.streams.insert(key, Arc::clone(&shared));
        Stream {
            reader: Reader { shared: Arc::clone(&shared), chunks: VecDeque::new(), untold: 0 },
            writer: Writer { shared: Arc::clone(&shared) },
            shared,
        }
    }

    /// How many streams are open.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Bytes that came from the other end, in order. The reader is woken by [`Self::flush`].
    pub(crate) fn push(&mut self, key: StreamKey, bytes: &[u8]) {
        if let Some(shared) = self.streams.get(&key) {
            let mut state = shared.lock();
            if state.abandoned.is_none() {
                state.append(bytes);
                self.readers.extend(state.reader.take());
            }
        }
    }

    /// The other end finished cleanly.
    pub(crate) fn finish(&mut self, key: StreamKey) {
        if let Some(shared) = self.streams.get(&key) {
            let mut state = shared.lock();
            state.peer_finished = true;
            self.readers.extend(state.reader.take());
        }
    }

    /// The stream is over for `reason`; both directions fail, and the hub forgets it.
    pub(crate) fn fail(&mut self, key: StreamKey, reason: EndReason) {
        if let Some(shared) = self.streams.remove(&key) {
            fail(&shared, reason);
        }
    }

    /// The core takes `room` bytes of this stream now. To be told after each [`StreamCommand::Write`], and when the
    /// core says that the stream is writable again.
    pub(crate) fn set_room(&mut self, key: StreamKey, room: usize) {
        if let Some(shared) = self.streams.get(&key) {
            let mut state = shared.lock();
            state.room = room;
            let writer = if room > state.outbound.len() { state.writer.take() } else { None };
            drop(state);
            writer.into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes the readers of what was pushed.
    pub(crate) fn flush(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
    }

    /// The next command, when there is one. Wakes the readers of what was pushed. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn command(&mut self) -> StreamCommand {
        core::future::poll_fn(|cx| self.poll_command(cx)).await
    }

    /// As [`Self::command`].
    pub(crate) fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<StreamCommand> {
        self.flush();
        loop {
            if let Some(command) = self.commands.pop_front() {
                return Poll::Ready(command);
            }
            match core::task::ready!(self.rung.poll_recv(cx)) {
                Some(shared) => self.answer(&shared),
                // Can't be while the hub holds a sender itself.
                None => return Poll::Pending,
            }
        }
    }

    /// Takes all a stream has to say.
    fn answer(&mut self, shared: &Arc<Shared>) {
        let key = shared.key;
        // Not one that has failed, nor a later one of the same name.
        let known = self.streams.get(&key).is_some_and(|known| Arc::ptr_eq(known, shared));
        let mut state = shared.lock();
        state.rung = false;
        if !known {
            return;
        }
        let over = state.finished && state.peer_finished;
        if let (Some(reason), false) = (state.abandoned, over) {
            drop(state);
            self.streams.remove(&key);
            self.commands.push_back(StreamCommand::Reset { key, reason });
            return;
        }
        let bytes = core::mem::take(&mut state.outbound).freeze();
        if !bytes.is_empty() {
            state.room = state.room.saturating_sub(bytes.len());
            self.commands.push_back(StreamCommand::Write { key, bytes });
        }
        let consumed = core::mem::take(&mut state.consumed);
        if consumed > 0 {
            self.commands.push_back(StreamCommand::Consumed { key, bytes: consumed });
        }
        if state.finished && !state.finish_told {
            state.finish_told = true;
            self.commands.push_back(StreamCommand::Finish { key });
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

fn fail(shared: &Shared, reason: EndReason) {
    let mut state = shared.lock();
    state.failed.get_or_insert(reason);
    state.outbound.clear();
    let wakers = [state.reader.take(), state.writer.take(), state.watcher.take()];
    drop(state);
    wakers.into_iter().flatten().for_each(Waker::wake);
}
