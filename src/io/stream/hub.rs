//! The hub: all streams of one core, at the core's task.

use core::{
    hash::Hash,
    task::{Context, Poll, Waker},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::mpsc;

use crate::{stream::StreamCommand, wire::EndReason};

use super::{DuplexState, Stream, StreamReader, StreamShared, StreamWriter};

/// All open streams of one core; owned by the core's task. `Id` is the core's identifier of a stream:
/// `client::ClientStream` or `relay::ExitStream`.
///
/// The loop of that task has three steps: apply commands until there are none, pass the core's events to the streams,
/// wait for commands ([`Hub::poll_command`]). Each call first wakes the readers of pushed bytes, so that a batch of
/// cells wakes a reader once. All methods ignore an identifier without an open stream.
pub(crate) struct Hub<Id> {
    streams: HashMap<Id, Arc<StreamShared>>,
    /// Sending end of the queue of streams with pending output.
    queue: mpsc::UnboundedSender<Arc<StreamShared>>,
    /// Receiving end of that queue.
    queue_receiver: mpsc::UnboundedReceiver<Arc<StreamShared>>,
    /// Commands of the stream that was dequeued last; at most three.
    commands: VecDeque<(Id, StreamCommand)>,
    /// The wakers of readers of pushed bytes, each once.
    readers: Vec<Waker>,
    /// Pushed bytes of all streams that are not read.
    unread: Arc<AtomicUsize>,
}

impl<Id: Copy + Eq + Hash + From<u64> + Into<u64>> Hub<Id> {
    /// A hub without streams.
    #[must_use]
    pub(crate) fn new() -> Self {
        let (queue, queue_receiver) = mpsc::unbounded_channel();
        Self {
            streams: HashMap::new(),
            queue,
            queue_receiver,
            commands: VecDeque::new(),
            readers: Vec::new(),
            unread: Arc::default(),
        }
    }

    /// Opens the stream `id` with an initial room of `room` bytes. An open stream of the same identifier fails.
    #[must_use]
    pub(crate) fn open(&mut self, id: Id, room: usize) -> Stream {
        self.fail(id, EndReason::Failed);
        let state = Mutex::new(DuplexState { room, ..DuplexState::default() });
        let shared = Arc::new(StreamShared {
            id: id.into(),
            queue: self.queue.clone(),
            all_unread: Arc::clone(&self.unread),
            state,
        });
        self.streams.insert(id, Arc::clone(&shared));
        Stream {
            reader: StreamReader { shared: Arc::clone(&shared), chunks: VecDeque::new(), unreported: 0 },
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
    pub(crate) fn push(&mut self, id: Id, bytes: &[u8]) {
        if let Some(shared) = self.streams.get(&id) {
            let mut state = shared.lock();
            if state.dropped.is_none() {
                state.append(bytes);
                shared.add_unread(&mut state, bytes.len());
                self.readers.extend(state.reader_waker.take());
            }
        }
    }

    /// The pushed bytes of all streams that are not read.
    #[must_use]
    pub(crate) fn unread(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    /// The pushed bytes of a stream that are not read; `None` without the stream.
    #[must_use]
    pub(crate) fn unread_of(&self, id: Id) -> Option<usize> {
        self.streams.get(&id).map(|shared| shared.lock().unread)
    }

    /// The streams with unread bytes, and their number.
    pub(crate) fn unread_streams(&self) -> impl Iterator<Item = (Id, usize)> + '_ {
        let unread = self.streams.iter().map(|(id, shared)| (*id, shared.lock().unread));
        unread.filter(|(_, unread)| *unread > 0)
    }

    /// Marks the clean end of the bytes from the other end.
    pub(crate) fn finish(&mut self, id: Id) {
        if let Some(shared) = self.streams.get(&id) {
            let mut state = shared.lock();
            state.peer_finished = true;
            self.readers.extend(state.reader_waker.take());
        }
    }

    /// Fails both directions for `reason` and removes the stream.
    pub(crate) fn fail(&mut self, id: Id, reason: EndReason) {
        if let Some(shared) = self.streams.remove(&id) {
            fail(&shared, reason);
        }
    }

    /// As [`Self::fail`], but keeps the stream until its task drops it. Such a stream has no commands.
    pub(crate) fn end(&mut self, id: Id, reason: EndReason) {
        if let Some(shared) = self.streams.get(&id) {
            fail(shared, reason);
        }
    }

    /// As [`Self::fail`], and discards the bytes that the reader has not read.
    pub(crate) fn discard(&mut self, id: Id, reason: EndReason) {
        if let Some(shared) = self.streams.remove(&id) {
            {
                let mut state = shared.lock();
                state.discarded = true;
                state.received.clear();
                shared.forget_unread(&mut state, usize::MAX);
            }
            fail(&shared, reason);
        }
    }

    /// Sets the room: the bytes that the core accepts from this stream. Called after each [`StreamCommand::Write`], when
    /// the stream becomes writable again, and at an exit once the target is connected.
    pub(crate) fn set_room(&mut self, id: Id, room: usize) {
        if let Some(shared) = self.streams.get(&id) {
            let mut state = shared.lock();
            state.room = room;
            let writer = if room > state.outgoing.len() { state.writer_waker.take() } else { None };
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
    /// [`StreamCommand::Finish`], [`StreamCommand::Fail`], and [`StreamCommand::Reset`], which removes the stream.
    pub(crate) fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<(Id, StreamCommand)> {
        self.flush();
        loop {
            if let Some(command) = self.commands.pop_front() {
                return Poll::Ready(command);
            }
            match core::task::ready!(self.queue_receiver.poll_recv(cx)) {
                Some(shared) => self.collect_commands(&shared),
                // Impossible, since the hub holds a sender.
                None => return Poll::Pending,
            }
        }
    }

    /// Turns the pending output of a dequeued stream into commands.
    fn collect_commands(&mut self, shared: &Arc<StreamShared>) {
        let id = Id::from(shared.id);
        // The stream may have failed, and another stream may have the identifier.
        let is_open = self.streams.get(&id).is_some_and(|open| Arc::ptr_eq(open, shared));
        let mut state = shared.lock();
        state.queued = false;
        if !is_open {
            return;
        }
        if state.failed.is_some() {
            if state.dropped.is_some() {
                drop(state);
                self.streams.remove(&id);
            }
            return;
        }
        let complete = state.finished && state.peer_finished;
        if let (Some(reason), false) = (state.dropped, complete) {
            drop(state);
            self.streams.remove(&id);
            self.commands.push_back((id, StreamCommand::Reset(reason)));
            return;
        }
        let bytes = core::mem::take(&mut state.outgoing).freeze();
        if !bytes.is_empty() {
            state.room = state.room.saturating_sub(bytes.len());
            self.commands.push_back((id, StreamCommand::Write(bytes)));
        }
        let consumed = core::mem::take(&mut state.consumed);
        if consumed > 0 {
            self.commands.push_back((id, StreamCommand::Consumed(consumed)));
        }
        if let Some(reason) = state.failing.take() {
            state.finish_reported = true;
            self.commands.push_back((id, StreamCommand::Fail(reason)));
        } else if state.finished && !state.finish_reported {
            state.finish_reported = true;
            self.commands.push_back((id, StreamCommand::Finish));
        }
        if state.dropped.is_some() {
            drop(state);
            self.streams.remove(&id);
        }
    }
}

impl<Id> Drop for Hub<Id> {
    fn drop(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
        for shared in self.streams.values() {
            fail(shared, EndReason::Failed);
        }
    }
}

fn fail(shared: &StreamShared, reason: EndReason) {
    let mut state = shared.lock();
    state.failed.get_or_insert(reason);
    state.outgoing.clear();
    let wakers = [state.reader_waker.take(), state.writer_waker.take(), state.failure_waker.take()];
    drop(state);
    wakers.into_iter().flatten().for_each(Waker::wake);
}
