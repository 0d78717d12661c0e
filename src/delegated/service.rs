//! The exit's side of searches, as bytes of streams: which query a stream brings, and what is to be written there.
//!
//! For a node whose core and edges run in one loop, as in a page; where each stream has a task of its own (`io::delegated`)
//! that task does it. Drive it as every machine: what happens goes in by `handle_…`, then [`SearchService::poll_event`] until it is
//! empty. Governed by `proto/09-delegated.md` §3 and §8. Clients are not trusted: the length of a query, the time until it
//! has come and until its answer has gone, queries by rate and at a time, and streams in all are bounded.

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

/// How much and how long.
#[derive(Clone, Copy, Debug)]
pub struct ServiceParameters {
    /// Queries that are answered.
    pub rates: Rates,
    /// Streams at a time, those included whose query will be refused. Default 64, of 4 KiB until the query is there and 256 KiB
    /// from then on at the most.
    pub streams: usize,
    /// The same of one circuit, so that none takes all there are. Default 8.
    pub streams_of_circuit: usize,
    /// For a query to come. Default 15 s.
    pub query: Duration,
    /// For the engine to be asked and its answer to be read. Default 20 s; whoever asks it has a shorter limit.
    pub engine: Duration,
    /// For the client to take the answer. Default 60 s.
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

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEvent {
    /// Ask the engine; [`SearchService::handle_answer`] takes what it comes to.
    Query {
        /// Names the stream.
        stream: u64,
        /// The query.
        request: SearchRequest,
    },
    /// There are bytes to write ([`SearchService::unsent`]).
    Unsent {
        /// Names the stream.
        stream: u64,
    },
    /// Nobody waits for the answer to this stream's query any more.
    Dropped {
        /// Names the stream.
        stream: u64,
    },
    /// End the stream so; it is forgotten here.
    Failed {
        /// Names the stream.
        stream: u64,
        /// What the other end is told.
        reason: EndReason,
    },
}

/// The service; streams have numbers that are never used again.
#[derive(Debug)]
pub struct SearchService {
    parameters: ServiceParameters,
    limits: Limits,
    /// In no order; so few that a look at each is soon done.
    streams: Vec<Serving>,
    /// One for each stream at the most, and one for each that is over.
    events: VecDeque<ServiceEvent>,
}

#[derive(Debug)]
struct Serving {
    stream: u64,
    circuit: u64,
    /// Its query counts as under way: from when it has come until its answer is there. Who sends or takes slowly holds up nobody.
    admitted: bool,
    /// When its state has lasted too long.
    due: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// What has come of the query.
    Reading(Vec<u8>),
    /// The engine is asked.
    Asking,
    /// The answer, and how much of it has gone.
    Writing(Vec<u8>, usize),
}

impl SearchService {
    /// Without streams.
    #[must_use]
    pub fn new(parameters: ServiceParameters, now: Instant) -> Self {
        let limits = Limits::new(parameters.rates, now);
        Self { parameters, limits, streams: Vec::new(), events: VecDeque::new() }
    }

    /// The stream numbered `stream` begins, one of those of the circuit numbered `circuit`.
    pub fn handle_begin(&mut self, now: Instant, stream: u64, circuit: u64) {
        let of_circuit = self.streams.iter().filter(|serving| serving.circuit == circuit).count();
        if self.streams.len() >= self.parameters.streams || of_circuit >= self.parameters.streams_of_circuit {
            return self.events.push_back(ServiceEvent::Failed { stream, reason: EndReason::ResourceLimit });
        }
        let due = now.after(self.parameters.query);
        self.streams.push(Serving { stream, circuit, admitted: false, due, state: State::Reading(Vec::new()) });
    }

    /// The client sent `bytes`.
    pub fn handle_data(&mut self, now: Instant, stream: u64, bytes: &[u8]) {
        let Some(Serving { state: State::Reading(query), .. }) = self.serving_mut(stream) else { return };
        if query.len().saturating_add(bytes.len()) > longest(REQUEST_BUCKETS) {
            return self.refuse(now, stream, SearchRefusal::BadRequest);
        }
        query.extend_from_slice(bytes);
    }

    /// The client has sent all it had.
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

    /// What the query of `stream` came to; ignored when nobody waits for it any more.
    pub fn handle_answer(&mut self, now: Instant, stream: u64, answer: &SearchAnswer) {
        let asked = self.serving(stream).is_some_and(|serving| matches!(serving.state, State::Asking));
        if asked {
            self.write(now, stream, answer);
        }
    }

    /// What of the answer has not been written yet.
    #[must_use]
    pub fn unsent(&self, stream: u64) -> &[u8] {
        match self.serving(stream).map(|serving| &serving.state) {
            Some(State::Writing(answer, sent)) => answer.get(*sent..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// So many bytes more of the answer were written. True when that was all of it: then the stream is to be finished, and is
    /// forgotten here.
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

    /// Ends what lasts too long.
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

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.streams.iter().map(|serving| serving.due).min()
    }

    /// Whether there are no streams.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// What is to be done next.
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
