//! Streams of one circuit at one hop: the machine at either end, origin or exit.
//!
//! Owns every stream's buffers and credit, the congestion window over their DATA cells, and the streams of late, so
//! that what was under way when one ended is no breach. Driven by the circuit (at the origin, one machine for each hop
//! spoken to) or by the relay's end of a circuit: messages go in by [`Streams::handle_message`] and are pulled by
//! [`Streams::poll_message`]; the application's side begins, writes, finishes, resets, and tells what it consumed.
//! Governed by `proto/05-relay-messages.md` and `proto/06-flow.md`. Threat addressed: a peer that sends what it may
//! not, to fill memory or to leave a trace in the pattern of cells: whatever isn't legal ends the circuit.
//!
//! | message | at the origin | at the exit |
//! |---|---|---|
//! | BEGIN, RESOLVE | breach | new stream, refused beyond the cap |
//! | CONNECTED, RESOLVED | answer to what was asked, once | breach |
//! | REQUEST | breach | new stream, open at once; refused beyond the cap |
//! | DATA | open stream, within credit | the same, also before CONNECTED |
//! | END, CREDIT | any stream, or one of late | the same |
//! | SENDME | echo of the oldest outstanding mark | the same |
//! | DROP | nothing | nothing |
//! | EXTEND, EXTENDED, GONE | breach (the circuit takes them before) | breach |
//!
//! Every end of a stream sends one last END: Done once it has sent all, when the other direction goes on; or another
//! reason, which ends both directions and is answered by such an END, unless one was sent already.
//!
//! Caps: `max_streams` open (more are refused with `ResourceLimit`), [`SEND_BUFFER`] bytes of each to send, the credit
//! granted of each to receive, 1,024 streams of late (the oldest is forgotten first), 1,024 answers waiting to be sent
//! (more end the circuit).

mod late;
mod receive;
mod send;
mod state;

use core::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{
    base::{Instant, StreamId},
    flow::{Acknowledger, CongestionWindow, FlowError, FlowParameters},
    wire::{Answer, EndReason, Host, MessageKind, RelayMessage, Service, Target},
};
use late::LateStreams;
use state::{Phase, Receiving, Sending, Stream};

/// Bytes that either end may send of a stream before any CREDIT (`proto/06-flow.md`).
pub const INITIAL_CREDIT: u32 = 128 << 10;
/// Bytes that wait to be sent of one stream at the most.
pub const SEND_BUFFER: usize = 128 << 10;

/// How long the origin waits for CONNECTED or RESOLVED.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the exit's side may take to answer; longer, so that it is the origin that gives up.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a mark may stay unanswered before the circuit counts as dead.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_CONTROL: usize = 1024;
/// A RESOLVE of this asks for nothing but an answer (`proto/05-relay-messages.md`).
const ECHO: Host = Host::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

/// Which end of the circuit this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that begins streams.
    Origin,
    /// The hop that serves them.
    Exit,
}

/// Why a call or a message could not be taken. [`Self::Full`] is the caller's to mend; all else ends the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// As many streams are open as the parameters allow, or no identifier is free.
    #[error("no more streams fit on this circuit")]
    Full,
    /// The peer sent a message that may not come from it, or not in this stream's state.
    #[error("{0:?} is not legal here")]
    Illegal(MessageKind),
    /// The peer sent more bytes than it had credit for.
    #[error("bytes beyond the stream's credit")]
    BeyondCredit,
    /// The peer broke congestion control.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// The peer asks for more answers than it takes.
    #[error("too many answers are waiting to be sent")]
    TooManyAnswers,
    /// The peer has acknowledged nothing for a minute.
    #[error("no acknowledgement in time")]
    Stalled,
}

/// What happened on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// Exit: the origin wants a stream to `target`; answer by [`Streams::connected`] or [`Streams::reset`].
    Begin {
        /// The new stream.
        stream: StreamId,
        /// Where to.
        target: Target,
    },
    /// Exit: the origin asks about `host`; answer by [`Streams::resolved`] or [`Streams::reset`].
    Resolve {
        /// Names the question.
        stream: StreamId,
        /// A name (asks for addresses) or an address (asks for names).
        host: Host,
    },
    /// Exit: the origin has opened a stream to `service`. [`Streams::reset`] refuses it.
    Request {
        /// The new stream.
        stream: StreamId,
        /// What is to be done.
        service: Service,
    },
    /// Origin: the stream is open.
    Connected {
        /// The stream.
        stream: StreamId,
        /// The address connected to, if the exit told.
        address: Option<IpAddr>,
    },
    /// Origin: the answer; nothing follows.
    Resolved {
        /// The question.
        stream: StreamId,
        /// Seconds for which the answers may be kept.
        ttl: u32,
        /// One or more.
        answers: Vec<Answer>,
    },
    /// Bytes came. Tell [`Streams::consumed`] when they have been used.
    Data {
        /// The stream.
        stream: StreamId,
        /// One cell's, or all that came before the exit was connected.
        bytes: Bytes,
    },
    /// The peer has sent all it had: a clean end of its direction.
    Finished {
        /// The stream.
        stream: StreamId,
    },
    /// The send buffer, having been more than half full, is no longer.
    Writable {
        /// The stream.
        stream: StreamId,
    },
    /// The stream failed, was refused or reset; nothing follows. Not given for a stream reset by this end.
    Closed {
        /// The stream.
        stream: StreamId,
        /// Why.
        reason: EndReason,
    },
}

/// All streams of one circuit at one hop.
///
/// Drain after every call: [`Self::poll_event`] until `None`, [`Self::poll_message`] as the channel has room.
pub struct Streams {
    role: Role,
    parameters: FlowParameters,
    streams: BTreeMap<StreamId, Stream>,
    /// Origin: the echo request that is unanswered, of which there is at most one.
    echo: Option<StreamId>,
    late: LateStreams,
    next_id: u16,
    window: CongestionWindow,
    acknowledger: Acknowledger,
    /// CONNECTED, END and the like, in order.
    control: VecDeque<RelayMessage>,
    /// Streams that owe their peer CREDIT, each once.
    owing: VecDeque<StreamId>,
    /// Streams with bytes they may send, each once, in turn.
    ready: VecDeque<StreamId>,
    /// Deadlines of the unanswered.
    deadlines: BTreeSet<(Instant, StreamId)>,
    /// Credit beyond the initial that streams have now.
    extra_credit: u64,
    events: VecDeque<StreamEvent>,
}

impl Streams {
    /// The machine for one end of a circuit.
    #[must_use]
    pub fn new(role: Role, parameters: FlowParameters) -> Self {
        Self {
            role,
            window: CongestionWindow::new(&parameters),
            parameters,
            streams: BTreeMap::new(),
            echo: None,
            late: LateStreams::default(),
            next_id: 0,
            acknowledger: Acknowledger::default(),
            control: VecDeque::new(),
            owing: VecDeque::new(),
            ready: VecDeque::new(),
            deadlines: BTreeSet::new(),
            extra_credit: 0,
            events: VecDeque::new(),
        }
    }

    /// Origin: opens a stream to `target`. [`StreamEvent::Connected`] or [`StreamEvent::Closed`] follows; what is
    /// written before goes out after CONNECTED.
    ///
    /// # Errors
    /// [`StreamError::Full`] when no more streams fit.
    pub fn begin(&mut self, now: Instant, target: Target) -> Result<StreamId, StreamError> {
        let stream = self.open(now, Phase::Beginning)?;
        self.control.push_back(RelayMessage::Begin { stream, target });
        Ok(stream)
    }

    /// Origin: asks about `host`. [`StreamEvent::Resolved`] or [`StreamEvent::Closed`] follows.
    ///
    /// # Errors
    /// [`StreamError::Full`] when no more streams fit.
    pub fn resolve(&mut self, now: Instant, host: Host) -> Result<StreamId, StreamError> {
        let stream = self.open(now, Phase::Resolving)?;
        self.control.push_back(RelayMessage::Resolve { stream, host });
        Ok(stream)
    }

    /// Origin: opens a stream to a service of the hop's own. It is open at once; a hop that doesn't have the service
    /// resets it.
    ///
    /// # Errors
    /// [`StreamError::Full`] when no more streams fit.
    pub fn request(&mut self, now: Instant, service: Service) -> Result<StreamId, StreamError> {
        let stream = self.open(now, Phase::Open)?;
        self.control.push_back(RelayMessage::Request { stream, service });
        Ok(stream)
    }

    /// Origin: asks the hop for an echo, to learn whether the circuit still reaches it, unless one is unanswered or no
    /// identifier is free. No event follows: any message that comes will tell. It counts as no stream.
    pub fn echo(&mut self) {
        if self.echo.is_none()
            && let Some(stream) = self.free_id()
        {
            self.echo = Some(stream);
            self.control.push_back(RelayMessage::Resolve { stream, host: ECHO });
        }
    }

    /// Exit: the stream is connected. Bytes that came before are given now.
    pub fn connected(&mut self, _now: Instant, id: StreamId, address: Option<IpAddr>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.phase != Phase::Serving {
            return;
        }
        stream.phase = Phase::Open;
        self.deadlines.remove(&(stream.deadline, id));
        self.control.push_back(RelayMessage::Connected { stream: id, address });
        let early = core::mem::take(&mut stream.early);
        if !early.is_empty() {
            self.events.push_back(StreamEvent::Data { stream: id, bytes: early.freeze() });
        }
        if stream.receiving == Receiving::Finished {
            self.events.push_back(StreamEvent::Finished { stream: id });
        }
        self.make_ready(id);
        self.end_if_sent(id);
    }

    /// Exit: answers a question. At most 16 answers go out; none is a failure.
    pub fn resolved(&mut self, id: StreamId, ttl: u32, mut answers: Vec<Answer>) {
        if self.streams.get(&id).is_none_or(|stream| stream.phase != Phase::Answering) {
            return;
        }
        if answers.is_empty() {
            return self.reset(id, EndReason::NotFound);
        }
        answers.truncate(16);
        self.control.push_back(RelayMessage::Resolved { stream: id, ttl, answers });
        self.forget(id, 0);
    }

    /// Takes as much of `bytes` to send as there is [`Self::room`] for, and says how much.
    pub fn write(&mut self, _now: Instant, id: StreamId, bytes: &[u8]) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let taken = bytes.get(..stream.room()).unwrap_or(bytes);
        stream.outgoing.extend_from_slice(taken);
        stream.above_mark |= stream.outgoing.len() > SEND_BUFFER / 2;
        self.make_ready(id);
        taken.len()
    }

    /// Bytes that [`Self::write`] would take now.
    #[must_use]
    pub fn room(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, Stream::room)
    }

    /// Sends no more after what was written: a half-close. The other direction goes on.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.sending == Sending::Open && stream.carries_data() {
            stream.sending = Sending::Finishing;
            self.end_if_sent(id);
        }
    }

    /// Ends both directions at once, for `reason` (`Done` is told as `Reset`). Drops what waits; no event follows.
    pub fn reset(&mut self, id: StreamId, reason: EndReason) {
        let Some(stream) = self.streams.get(&id) else { return };
        let reason = if reason == EndReason::Done { EndReason::Reset } else { reason };
        // A stream of which nothing has gone out needs no END either.
        let unsent = match self.control.back() {
            Some(
                RelayMessage::Begin { stream, .. }
                | RelayMessage::Resolve { stream, .. }
                | RelayMessage::Request { stream, .. },
            ) => *stream == id,
            _ => false,
        };
        if unsent {
            self.control.pop_back();
            self.take(id);
            return;
        }
        let may_come = stream.credit_left();
        self.control.push_back(RelayMessage::End { stream: id, reason });
        self.forget(id, may_come);
    }

    /// The application has used `bytes` of what came, so that the peer may send more.
    pub fn consumed(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.consume(bytes);
        if stream.owes_credit() && !stream.owing {
            stream.owing = true;
            self.owing.push_back(id);
        }
    }

    /// The circuit is gone: every stream ends with `reason`.
    pub fn abort(&mut self, reason: EndReason) {
        let ended = core::mem::take(&mut self.streams).into_keys();
        self.events.extend(ended.map(|stream| StreamEvent::Closed { stream, reason }));
        self.echo = None;
        self.acknowledger = Acknowledger::default();
        self.control.clear();
        self.owing.clear();
        self.ready.clear();
        self.deadlines.clear();
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    /// Ends what has waited too long for an answer.
    ///
    /// # Errors
    /// [`StreamError::Stalled`] when the peer acknowledges nothing: the circuit must end.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), StreamError> {
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.reset(id, EndReason::TimedOut);
            self.events.push_back(StreamEvent::Closed { stream: id, reason: EndReason::TimedOut });
        }
        match self.window.oldest_mark_at() {
            Some(sent_at) if sent_at.after(STALL_TIMEOUT) <= now => Err(StreamError::Stalled),
            _ => Ok(()),
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let answer = self.deadlines.first().map(|(deadline, _)| *deadline);
        let stall = self.window.oldest_mark_at().map(|sent_at| sent_at.after(STALL_TIMEOUT));
        match (answer, stall) {
            (Some(answer), Some(stall)) => Some(answer.min(stall)),
            (answer, stall) => answer.or(stall),
        }
    }

    /// Whether no stream is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether any stream or question waits for its answer.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        !self.deadlines.is_empty()
    }

    /// Streams and questions open now; an echo request is neither.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// The congestion window, to be looked at.
    #[must_use]
    pub const fn window(&self) -> &CongestionWindow {
        &self.window
    }

    fn is_full(&self) -> bool {
        self.streams.len() >= usize::try_from(self.parameters.max_streams).unwrap_or(usize::MAX)
    }

    fn open(&mut self, now: Instant, phase: Phase) -> Result<StreamId, StreamError> {
        if self.is_full() || self.control.len() >= MAX_CONTROL {
            return Err(StreamError::Full);
        }
        let id = self.free_id().ok_or(StreamError::Full)?;
        self.insert(now, id, phase);
        Ok(id)
    }

    /// The next identifier in turn that is neither open nor of late.
    fn free_id(&mut self) -> Option<StreamId> {
        for _ in 0..=u16::MAX {
            self.next_id = self.next_id.wrapping_add(1);
            if let Some(id) = StreamId::new(self.next_id)
                && !self.streams.contains_key(&id)
                && self.echo != Some(id)
                && !self.late.contains(id)
            {
                return Some(id);
            }
        }
        None
    }

    fn insert(&mut self, now: Instant, id: StreamId, phase: Phase) {
        let wait = if self.role == Role::Origin { ANSWER_TIMEOUT } else { SERVE_TIMEOUT };
        let deadline = now.after(wait);
        if phase != Phase::Open {
            self.deadlines.insert((deadline, id));
        }
        self.streams.insert(id, Stream::new(phase, deadline));
    }

    /// Takes a stream out of the open ones; the peer may still have `may_come` bytes of it under way.
    fn forget(&mut self, id: StreamId, may_come: u64) {
        if self.take(id).is_some() {
            self.late.insert(id, may_come);
        }
    }

    /// Takes a stream out of every place it stands in.
    fn take(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.extra_credit = self.extra_credit.saturating_sub(stream.extra_credit());
        self.deadlines.remove(&(stream.deadline, id));
        if stream.ready {
            self.ready.retain(|ready| *ready != id);
        }
        if stream.owing {
            self.owing.retain(|owing| *owing != id);
        }
        Some(stream)
    }
}

#[cfg(test)]
mod tests;
