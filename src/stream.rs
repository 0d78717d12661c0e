//! Stream multiplexing over one circuit: the state machine of one end, for all streams between the origin and one hop.
//!
//! Owns the streams' buffers and credit, and the congestion window over their DATA cells. Also stores recently closed
//! streams, so that messages in flight at the end of a stream are no breach. Driven at the origin by the circuit, which
//! has one machine for each hop with streams, and at an exit by the relay's end of the circuit.
//! [`Streams::handle_message`] handles messages of the peer, [`Streams::poll_message`] returns messages to send.
//! [`Streams::handle_command`] handles commands of the application, [`Streams::poll_event`] returns events for the
//! application. Governed by `proto/05-relay-messages.md` and `proto/06-flow.md`. Threat: a peer that sends illegal
//! messages to fill memory or to leave a trace in the pattern of cells. Any illegal message ends the circuit.
//!
//! | message | at the origin | at the exit |
//! |---|---|---|
//! | BEGIN, RESOLVE | breach | new stream, refused beyond the cap |
//! | RESOLVE as an echo request | breach | answered immediately, without a stream |
//! | CONNECTED, RESOLVED | answer to BEGIN or RESOLVE, once; also for a recently closed stream | breach |
//! | REQUEST | breach | new stream, open without an answer; refused beyond the cap |
//! | DATA | open stream, or a recently closed one, within credit | as at the origin, also before CONNECTED |
//! | END (Done) | open stream or a recently closed one, once | as at the origin, also before CONNECTED |
//! | END (other) | open or unanswered stream or a recently closed one, once | as at the origin |
//! | CREDIT | open stream or a recently closed one, as much as an honest reader of the sent bytes grants | as at the origin |
//! | SENDME | echo of the oldest outstanding tag | as at the origin |
//! | DROP | breach | breach |
//! | EXTEND, EXTENDED, GONE | breach (the circuit handles legal ones before) | breach |
//!
//! All layers from this module to the sockets use the same events and commands. The layers above change only the
//! identifier, from [`StreamId`] to `client::ClientStream` or `relay::ExitStream`.
//!
//! | relay message | sent for | emits at the peer |
//! |---|---|---|
//! | BEGIN | [`Streams::open`] | [`StreamEvent::Begin`] |
//! | RESOLVE | [`Streams::resolve`] | [`StreamEvent::Resolve`] |
//! | REQUEST | [`Streams::request`] | [`StreamEvent::Request`] |
//! | CONNECTED | [`StreamCommand::Connected`] | [`StreamEvent::Connected`] |
//! | RESOLVED | [`StreamCommand::Resolved`] | [`StreamEvent::Resolved`] |
//! | DATA | [`StreamCommand::Write`] | [`StreamEvent::Data`] |
//! | CREDIT | [`StreamCommand::Consumed`] | no event |
//! | END (Done) | [`StreamCommand::Finish`] | [`StreamEvent::Finished`] |
//! | END (other) | [`StreamCommand::Reset`], [`StreamCommand::Fail`] | [`StreamEvent::Closed`] |
//!
//! [`StreamEvent::Writable`] is emitted at the end that sends DATA, when its send buffer was more than half full and at
//! least half of it is free again.
//!
//! END with the reason Done follows the last byte of a direction; the other direction stays open. END with any other
//! reason ends both directions. The peer answers such an END with END (Reset), unless the peer has already ended the
//! stream.
//!
//! | resource | cap | at the cap |
//! |---|---|---|
//! | open streams | [`FlowParameters::max_streams`] | refuse with `ResourceLimit` |
//! | unsent bytes of a stream | [`SEND_BUFFER`] | accept no more |
//! | received bytes of a stream | the granted credit | end the circuit |
//! | recently closed streams | 1,024 | evict the oldest |
//! | queued control messages | 1,024 | for an answer, end the circuit; refuse a request of the application |

mod closed;
mod command;
mod credit;
mod receive;
mod send;
mod state;

use core::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::{
    base::{Deadlines, ErrorClass, Instant, ReadyQueue, StreamId},
    flow::{Acknowledger, CongestionWindow, FlowError, FlowParameters},
    wire::{EndReason, Host, MessageKind, RelayMessage, ResolvedAnswer, Service, Target},
};
use closed::ClosedStreams;
pub use command::StreamCommand;
use state::{Receiving, Sending, StreamPhase, StreamState};

/// Bytes that either end may send of a stream before any CREDIT (`proto/06-flow.md`).
pub const INITIAL_CREDIT: u32 = 128 << 10;
/// Maximum unsent bytes of one stream.
pub const SEND_BUFFER: usize = 128 << 10;

/// Timeout of CONNECTED and RESOLVED at the origin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of an answer at the exit; longer than [`ANSWER_TIMEOUT`], so that the origin's timeout expires first.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a SENDME, after which the circuit must end.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum queued control messages: all except SENDME, CREDIT and DATA.
const MAX_CONTROL: usize = 1024;
/// The host whose RESOLVE is an echo request (`proto/05-relay-messages.md` §4).
const ECHO: Host = Host::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

/// The end of the circuit that this machine serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRole {
    /// The end that opens streams.
    Origin,
    /// The hop that serves streams.
    Exit,
}

/// The error of a call or of a message. [`Self::Full`] and [`Self::NotOpen`] concern only the caller; all others end
/// the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The number of open streams or of queued control messages is at its maximum, or no identifier is free.
    #[error("the circuit has the maximum number of streams")]
    Full,
    /// The circuit is not built yet, or has ended.
    #[error("the circuit is not open")]
    NotOpen,
    /// The peer sent a message that is illegal from its end or in this stream's state.
    #[error("{0:?} is illegal from this end or in this state of the stream")]
    Illegal(MessageKind),
    /// The peer sent more bytes of a stream than the granted credit.
    #[error("the peer sent more bytes than the stream's credit")]
    BeyondCredit,
    /// The peer sent more CREDIT than a reader of the sent bytes can grant.
    #[error("the peer sent more CREDIT than the stream's bytes allow")]
    SurplusCredit,
    /// The peer violated congestion control.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// The queued answers to messages of the peer are at their maximum.
    #[error("too many answers to the peer are queued")]
    TooManyAnswers,
    /// The oldest tag has had no SENDME for a minute.
    #[error("no acknowledgement within {} s", STALL_TIMEOUT.as_secs())]
    Stalled,
}

impl StreamError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Full => ErrorClass::Limit,
            Self::NotOpen => ErrorClass::Local,
            Self::Illegal(_) | Self::BeyondCredit | Self::SurplusCredit | Self::Flow(_) | Self::TooManyAnswers => {
                ErrorClass::Peer
            }
            Self::Stalled => ErrorClass::Network,
        }
    }
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// Exit: the origin requests a stream to this target. Answered by [`StreamCommand::Connected`] or
    /// [`StreamCommand::Reset`].
    Begin(Target),
    /// Exit: the origin requests the addresses of a name, or the names of an address. Answered by
    /// [`StreamCommand::Resolved`] or [`StreamCommand::Reset`].
    Resolve(Host),
    /// Exit: the origin has opened a stream to this service. [`StreamCommand::Reset`] refuses it.
    Request(Service),
    /// Origin: the stream is open. Contains the target's address, if the exit discloses the address.
    Connected(Option<IpAddr>),
    /// Origin: the answer to RESOLVE. No further event follows.
    Resolved {
        /// Seconds for which the answers may be cached.
        ttl: u32,
        /// The answers, at least one.
        answers: Vec<ResolvedAnswer>,
    },
    /// Received bytes of one cell. At an exit, the event can precede [`StreamCommand::Connected`]. The owner reports
    /// the bytes that it has used by [`StreamCommand::Consumed`].
    Data(Bytes),
    /// The peer has sent all its bytes and ended its direction cleanly.
    Finished,
    /// The send buffer was more than half full, and now at least half of it is free.
    Writable,
    /// The stream failed, the peer refused or reset the stream, or the bytes before [`StreamCommand::Fail`] are sent. No
    /// further event follows. Not emitted after [`StreamCommand::Reset`].
    Closed(EndReason),
}

/// All streams of one circuit at one hop.
///
/// Drain after every call: [`Self::poll_event`] until `None`, then [`Self::poll_message`] while the channel has room.
pub struct Streams {
    role: StreamRole,
    parameters: FlowParameters,
    streams: BTreeMap<StreamId, StreamState>,
    /// Origin: the unanswered echo request; at most one.
    echo: Option<StreamId>,
    closed: ClosedStreams,
    /// Origin: the last assigned identifier.
    last_id: u16,
    window: CongestionWindow,
    acknowledger: Acknowledger,
    /// CONNECTED, END and other control messages to send, in order.
    control: VecDeque<RelayMessage>,
    /// The answers in the queued RESOLVEDs.
    queued_answers: usize,
    /// Streams with a CREDIT to send.
    credit_queue: ReadyQueue<StreamId>,
    /// Streams that may send bytes, in round-robin order.
    send_queue: ReadyQueue<StreamId>,
    /// Deadlines of unanswered BEGINs and RESOLVEs.
    deadlines: Deadlines<StreamId>,
    /// The credit of all streams beyond their initial credit, in bytes.
    extra_credit: u64,
    events: VecDeque<(StreamId, StreamEvent)>,
}

impl Streams {
    /// The machine for one end of a circuit.
    #[must_use]
    pub fn new(role: StreamRole, parameters: FlowParameters) -> Self {
        Self {
            role,
            window: CongestionWindow::new(&parameters),
            parameters,
            streams: BTreeMap::new(),
            echo: None,
            closed: ClosedStreams::default(),
            last_id: 0,
            acknowledger: Acknowledger::default(),
            control: VecDeque::new(),
            queued_answers: 0,
            credit_queue: ReadyQueue::new(),
            send_queue: ReadyQueue::new(),
            deadlines: Deadlines::default(),
            extra_credit: 0,
            events: VecDeque::new(),
        }
    }

    /// Origin: opens a stream to `target`. [`StreamEvent::Connected`] or [`StreamEvent::Closed`] follows. Bytes
    /// written before CONNECTED are sent after CONNECTED.
    ///
    /// # Errors
    /// [`StreamError::Full`].
    pub fn open(&mut self, now: Instant, target: Target) -> Result<StreamId, StreamError> {
        let stream = self.add(now, StreamPhase::Beginning)?;
        self.control.push_back(RelayMessage::Begin { stream, target });
        Ok(stream)
    }

    /// Origin: resolves `host`. [`StreamEvent::Resolved`] or [`StreamEvent::Closed`] follows.
    ///
    /// # Errors
    /// [`StreamError::Full`].
    pub fn resolve(&mut self, now: Instant, host: Host) -> Result<StreamId, StreamError> {
        let stream = self.add(now, StreamPhase::Resolving)?;
        self.control.push_back(RelayMessage::Resolve { stream, host });
        Ok(stream)
    }

    /// Origin: opens a stream to a service of the hop itself. The stream is open without an answer. A hop without the
    /// service resets the stream.
    ///
    /// # Errors
    /// [`StreamError::Full`].
    pub fn request(&mut self, now: Instant, service: Service) -> Result<StreamId, StreamError> {
        let stream = self.add(now, StreamPhase::Open)?;
        self.control.push_back(RelayMessage::Request { stream, service });
        Ok(stream)
    }

    /// Origin: sends an echo request to the hop, to test whether the circuit still works. Does nothing if an echo
    /// request is unanswered or no identifier is free. No event follows; any received message shows that the circuit
    /// works. An echo request does not count as a stream.
    pub fn echo(&mut self) {
        if self.echo.is_none()
            && let Some(stream) = self.free_id()
        {
            self.echo = Some(stream);
            self.control.push_back(RelayMessage::Resolve { stream, host: ECHO });
        }
    }

    /// Closes every stream with `reason`, because the circuit has ended.
    pub fn abort(&mut self, reason: EndReason) {
        let aborted = core::mem::take(&mut self.streams).into_keys();
        self.events.extend(aborted.map(|id| (id, StreamEvent::Closed(reason))));
        self.echo = None;
        self.acknowledger = Acknowledger::default();
        self.control.clear();
        self.queued_answers = 0;
        self.credit_queue.clear();
        self.send_queue.clear();
        self.deadlines.clear();
    }

    /// The next event, with its stream.
    pub fn poll_event(&mut self) -> Option<(StreamId, StreamEvent)> {
        self.events.pop_front()
    }

    /// Closes streams whose BEGIN or RESOLVE has reached its timeout.
    ///
    /// # Errors
    /// [`StreamError::Stalled`] when a tag has had no SENDME for a minute: the circuit must end.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), StreamError> {
        while let Some(id) = self.deadlines.pop_due(now) {
            self.reset(id, EndReason::TimedOut);
            self.events.push_back((id, StreamEvent::Closed(EndReason::TimedOut)));
        }
        match self.window.oldest_tag_at() {
            Some(sent_at) if sent_at.after(STALL_TIMEOUT) <= now => Err(StreamError::Stalled),
            _ => Ok(()),
        }
    }

    /// The deadline for [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let answer = self.deadlines.earliest();
        let stall = self.window.oldest_tag_at().map(|sent_at| sent_at.after(STALL_TIMEOUT));
        match (answer, stall) {
            (Some(answer), Some(stall)) => Some(answer.min(stall)),
            (answer, stall) => answer.or(stall),
        }
    }

    /// Whether there is no stream, neither open nor unanswered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether any BEGIN or RESOLVE is unanswered.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        !self.deadlines.is_empty()
    }

    /// The number of open and unanswered streams, RESOLVEs included and the echo request excluded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// The stored records that aren't open streams, of about 100 bytes each: recently closed streams, messages and tags
    /// to send.
    #[must_use]
    pub fn records(&self) -> usize {
        let queued = self.control.len().saturating_add(self.queued_answers / 2);
        self.closed.len().saturating_add(queued).saturating_add(self.acknowledger.len() / 8)
    }

    /// Forgets the older half of the recently closed streams. From now on, late messages on these streams are breaches.
    pub fn forget_closed(&mut self) {
        self.closed.keep_newest(self.closed.len() / 2);
    }

    /// The congestion window.
    #[must_use]
    pub const fn window(&self) -> &CongestionWindow {
        &self.window
    }

    fn is_full(&self) -> bool {
        self.streams.len() >= usize::try_from(self.parameters.max_streams).unwrap_or(usize::MAX)
    }

    /// Origin: adds a stream under a free identifier.
    fn add(&mut self, now: Instant, phase: StreamPhase) -> Result<StreamId, StreamError> {
        if self.is_full() || self.control.len() >= MAX_CONTROL {
            return Err(StreamError::Full);
        }
        let id = self.free_id().ok_or(StreamError::Full)?;
        self.insert(now, id, phase);
        Ok(id)
    }

    /// The next identifier of no open and no recently closed stream.
    fn free_id(&mut self) -> Option<StreamId> {
        for _ in 0..=u16::MAX {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) = StreamId::new(self.last_id)
                && !self.streams.contains_key(&id)
                && self.echo != Some(id)
                && !self.closed.contains(id)
            {
                return Some(id);
            }
        }
        None
    }

    fn insert(&mut self, now: Instant, id: StreamId, phase: StreamPhase) {
        let timeout = if self.role == StreamRole::Origin { ANSWER_TIMEOUT } else { SERVE_TIMEOUT };
        if phase != StreamPhase::Open {
            self.deadlines.set(id, now.after(timeout));
        }
        self.streams.insert(id, StreamState::new(phase));
    }

    /// Closes a stream. `late_bytes` is the number of bytes that the peer may still send on it.
    fn close(&mut self, id: StreamId, late_bytes: u64) {
        if let Some(stream) = self.take(id) {
            self.closed.insert(id, &stream, late_bytes);
        }
    }

    /// Removes a stream from every collection, and returns its state.
    fn take(&mut self, id: StreamId) -> Option<StreamState> {
        let mut stream = self.streams.remove(&id)?;
        self.extra_credit = self.extra_credit.saturating_sub(stream.extra_credit());
        self.deadlines.remove(id);
        self.send_queue.remove(&mut stream.send_ticket);
        self.credit_queue.remove(&mut stream.credit_ticket);
        Some(stream)
    }
}

#[cfg(test)]
mod tests;
