//! The exit's side of searches over streams: decodes queries, encodes and sends answers.
//!
//! For a node whose core and edges run in one loop, as in a page. Where each stream has a task, that task does it
//! (`io::delegated`). Driven like every machine: inputs go to `handle_…`, then the owner calls
//! [`SearchService::poll_event`] until `None`. Governed by `proto/09-delegated.md` §3 and §8. Clients are not
//! trusted: caps bound the length of a query, the time to receive it and to send its answer, the rate and concurrency
//! of queries, and the number of streams.

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::VecDeque;

use super::{
    SearchAnswer, SearchRefusal, SearchRequest,
    frame::{REQUEST_BUCKETS, longest},
    limits::{Limits, Rates},
};
use crate::{base::Instant, wire::EndReason};

/// Limits of the service.
#[derive(Clone, Copy, Debug)]
pub struct ServiceParameters {
    /// Rates and concurrency of answered queries.
    pub rates: Rates,
    /// Cap on streams, including those whose query will be refused. Default 64, each of at most 4 KiB until the query
    /// is complete and 256 KiB afterwards.
    pub streams: usize,
    /// Cap on streams of one circuit, so that it can't use up all of them. Default 8.
    pub streams_of_circuit: usize,
    /// Time limit of receiving a query. Default 15 s.
    pub query: Duration,
    /// Time limit of the engine's answer. Default 20 s; the code that queries the engine has a shorter limit.
    pub engine: Duration,
    /// Time limit of sending the answer. Default 60 s.
    pub stall: Duration,
}

impl Default for ServiceParameters {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            streams: 64,
            streams_of_circuit: 8,
            query: Duration::from_secs(15),
            engine: Duration::from_secs(20),
            stall: Duration::from_secs(60),
        }
    }
}

/// An action for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEvent {
    /// Query the engine, and pass the result to [`SearchService::handle_answer`].
    Query {
        /// The stream.
        stream: u64,
        /// The query.
        request: SearchRequest,
    },
    /// There are bytes to send ([`SearchService::unsent`]).
    Unsent {
        /// The stream.
        stream: u64,
    },
    /// The answer to this stream's query is no longer needed.
    Dropped {
        /// The stream.
        stream: u64,
    },
    /// End the stream with an error; the service has removed it.
    Failed {
        /// The stream.
        stream: u64,
        /// The reason for the other end.
        reason: EndReason,
    },
}

/// The search service of an exit. Stream numbers are never reused.
#[derive(Debug)]
pub struct SearchService {
    parameters: ServiceParameters,
    limits: Limits,
    /// Unordered; few enough for a linear search.
    streams: Vec<Serving>,
    /// At most two for each stream, because the owner drains them after each input.
    events: VecDeque<ServiceEvent>,
}

#[derive(Debug)]
struct Serving {
    stream: u64,
    circuit: u64,
    /// Whether its query counts as in progress: from its complete arrival to its answer. So slow senders and readers
    /// don't block others.
    admitted: bool,
    /// The deadline of its state.
    due: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The received part of the query.
    Reading(Vec<u8>),
    /// The engine is queried.
    Asking,
    /// The answer, and the number of bytes sent.
    Writing(Vec<u8>, usize),
}

impl SearchService {
    /// Without streams.
    #[must_use]
    pub const fn new(parameters: ServiceParameters) -> Self {
        let limits = Limits::new(parameters.rates);
        Self { parameters, limits, streams: Vec::new(), events: VecDeque::new() }
    }

    /// Begins the stream `stream` of the circuit `circuit`.
    pub fn handle_begin(&mut self, now: Instant, stream: u64, circuit: u64) {
        let of_circuit = self.streams.iter().filter(|serving| serving.circuit == circuit).count();
        if self.streams.len() >= self.parameters.streams || of_circuit >= self.parameters.streams_of_circuit {
            return self.events.push_back(ServiceEvent::Failed { stream, reason: EndReason::ResourceLimit });
        }
        let due = now.after(self.parameters.query);
        self.streams.push(Serving { stream, circuit, admitted: false, due, state: State::Reading(Vec::new()) });
    }

    /// Handles `bytes` from the client.
    pub fn handle_data(&mut self, now: Instant, stream: u64, bytes: &[u8]) {
        let Some(Serving { state: State::Reading(query), .. }) = self.serving_mut(stream) else { return };
        if query.len().saturating_add(bytes.len()) > longest(REQUEST_BUCKETS) {
            return self.refuse(now, stream, SearchRefusal::BadRequest);
        }
        query.extend_from_slice(bytes);
    }

    /// The client has finished its direction.
    pub fn handle_finish(&mut self, now: Instant, stream: u64) {
        let until = now.after(self.parameters.engine);
        let Some(serving) = self.streams.iter_mut().find(|serving| serving.stream == stream) else { return };
        let State::Reading(query) = &serving.state else { return };
        if query.is_empty() {
            return self.fail(stream, EndReason::Failed);
        }
        let query = SearchRequest::decode(query);
        match (self.limits.admit(now, serving.circuit), query) {
            (Err(_), _) => self.refuse(now, stream, SearchRefusal::RateLimited),
            (Ok(()), Err(_)) => {
                self.limits.release(serving.circuit);
                self.refuse(now, stream, SearchRefusal::BadRequest);
            }
            (Ok(()), Ok(request)) => {
                (serving.state, serving.due, serving.admitted) = (State::Asking, until, true);
                self.events.push_back(ServiceEvent::Query { stream, request });
            }
        }
    }

    /// Handles the answer to the query of `stream`; ignored if it is no longer needed.
    pub fn handle_answer(&mut self, now: Instant, stream: u64, answer: &SearchAnswer) {
        let asked = self.serving(stream).is_some_and(|serving| matches!(serving.state, State::Asking));
        if asked {
            self.write(now, stream, answer);
        }
    }

    /// The unsent bytes of the answer.
    #[must_use]
    pub fn unsent(&self, stream: u64) -> &[u8] {
        match self.serving(stream).map(|serving| &serving.state) {
            Some(State::Writing(answer, sent)) => answer.get(*sent..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// `bytes` more of the answer were sent. Returns true at the end of the answer: the owner finishes the stream,
    /// which is removed here.
    pub fn handle_sent(&mut self, stream: u64, bytes: usize) -> bool {
        let Some(Serving { state: State::Writing(answer, sent), .. }) = self.serving_mut(stream) else {
            return false;
        };
        *sent = sent.saturating_add(bytes);
        let over = *sent >= answer.len();
        if over {
            self.remove(stream);
        }
        over
    }

    /// The stream is void.
    pub fn handle_closed(&mut self, stream: u64) {
        if let Some(Serving { state: State::Asking, .. }) = self.remove(stream) {
            self.events.push_back(ServiceEvent::Dropped { stream });
        }
    }

    /// Ends streams beyond their deadlines.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late: Vec<u64> =
            self.streams.iter().filter(|serving| serving.due <= now).map(|serving| serving.stream).collect();
        for stream in late {
            match self.serving(stream).map(|serving| &serving.state) {
                Some(State::Asking) => {
                    self.events.push_back(ServiceEvent::Dropped { stream });
                    self.refuse(now, stream, SearchRefusal::EngineTimedOut);
                }
                _ => self.fail(stream, EndReason::TimedOut),
            }
        }
    }

    /// The next deadline for [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.streams.iter().map(|serving| serving.due).min()
    }

    /// Whether there are no streams.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The next action.
    pub fn poll_event(&mut self) -> Option<ServiceEvent> {
        self.events.pop_front()
    }

    fn serving(&self, stream: u64) -> Option<&Serving> {
        self.streams.iter().find(|serving| serving.stream == stream)
    }

    fn serving_mut(&mut self, stream: u64) -> Option<&mut Serving> {
        self.streams.iter_mut().find(|serving| serving.stream == stream)
    }

    fn refuse(&mut self, now: Instant, stream: u64, refusal: SearchRefusal) {
        self.write(now, stream, &SearchAnswer::Refused(refusal));
    }

    fn write(&mut self, now: Instant, stream: u64, answer: &SearchAnswer) {
        let Ok(framed) = answer.encode() else { return self.fail(stream, EndReason::Failed) };
        let until = now.after(self.parameters.stall);
        if let Some(serving) = self.streams.iter_mut().find(|serving| serving.stream == stream) {
            if core::mem::take(&mut serving.admitted) {
                self.limits.release(serving.circuit);
            }
            (serving.state, serving.due) = (State::Writing(framed, 0), until);
            self.events.push_back(ServiceEvent::Unsent { stream });
        }
    }

    fn fail(&mut self, stream: u64, reason: EndReason) {
        self.remove(stream);
        self.events.push_back(ServiceEvent::Failed { stream, reason });
    }

    fn remove(&mut self, stream: u64) -> Option<Serving> {
        let place = self.streams.iter().position(|serving| serving.stream == stream)?;
        let serving = self.streams.swap_remove(place);
        if serving.admitted {
            self.limits.release(serving.circuit);
        }
        Some(serving)
    }
}
