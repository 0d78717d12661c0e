//! The exit's side of searches over streams: decodes queries, encodes and sends answers.
//!
//! [`PartialQuery`] receives, admits and decodes one query. [`SearchService`] serves all streams of a node whose core
//! and edges run in one loop, as in a page. In a native program, each stream has a task instead (`exit::delegated`).
//! The owner drives the service like every machine: it passes inputs to `handle_…`, then calls
//! [`SearchService::poll_event`] until `None`. The inputs of a stream are the events of
//! [`StreamEvent`](crate::stream::StreamEvent).
//!
//! Governed by `proto/09-delegated.md` §3 and §8. Clients are not trusted: caps bound the length of a query, the time
//! to receive it and to send its answer, the rate and concurrency of queries, and the number of streams.

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::VecDeque;

use super::{
    Refusal, SearchAnswer, SearchRefusal, SearchRequest,
    frame::{REQUEST_BUCKETS, max_frame_len},
    limits::{Rates, RequestLimits, RequestOwner, SLOW_AFTER},
};
use crate::{
    base::{Instant, Owner},
    wire::EndReason,
};

/// Time limit of receiving a query.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit of the engine, from the first request to the end of the answer, redirects included.
pub const ENGINE_TIMEOUT: Duration = Duration::from_secs(8);
/// Time limit of sending the answer to the client.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The reason why a query has no results, in two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The form that is sent to the client.
    pub answer: SearchRefusal,
    /// The form for the operator's statistics.
    pub cause: Refusal,
}

/// The received part of a query.
#[derive(Default)]
pub struct PartialQuery(Vec<u8>);

impl PartialQuery {
    const MALFORMED: Refused = Refused { answer: SearchRefusal::BadRequest, cause: Refusal::Malformed };

    /// Handles `bytes` from the client.
    ///
    /// # Errors
    /// When the query exceeds the longest frame. The caller must admit the query before refusing it, so that the query
    /// counts towards the limits.
    pub fn handle_data(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        if self.0.len().saturating_add(bytes.len()) > max_frame_len(REQUEST_BUCKETS) {
            return Err(Self::MALFORMED);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// Handles the end of the client's direction. Returns the query and the value of `admit`; `None` if the client sent
    /// no bytes. A malformed query is admitted before it is refused, so that it counts towards the limits.
    ///
    /// # Errors
    /// The inner result fails if `admit` fails, or the query is malformed.
    pub fn handle_finished<A>(
        self,
        admit: impl FnOnce() -> Result<A, Refusal>,
    ) -> Option<Result<(SearchRequest, A), Refused>> {
        if self.0.is_empty() {
            return None;
        }
        let admitted = admit().map_err(|cause| Refused { answer: SearchRefusal::RateLimited, cause });
        Some(admitted.and_then(|admitted| {
            let request = SearchRequest::decode(&self.0).map_err(|_| Self::MALFORMED)?;
            Ok((request, admitted))
        }))
    }
}

impl core::fmt::Debug for PartialQuery {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PartialQuery([redacted])")
    }
}

/// Limits of the service.
#[derive(Clone, Copy, Debug)]
pub struct ServiceParameters {
    /// Rates and concurrency of answered queries.
    pub rates: Rates,
    /// Cap on streams, including those whose query will be refused. Default 64, each of at most 4 KiB until the query
    /// is complete and 256 KiB afterwards.
    pub streams: usize,
    /// Cap on streams of one circuit, so that one circuit can't occupy all streams. Default 8.
    pub streams_of_circuit: usize,
    /// Cap on streams of one circuit owner. Default 32: a page has few neighbours, each of which carries many clients.
    pub streams_of_owner: usize,
    /// Time limit of receiving a query. Default [`QUERY_TIMEOUT`].
    pub query_timeout: Duration,
    /// Time limit of the owner's answer. Default 20 s. The owner applies [`ENGINE_TIMEOUT`] to the engine itself.
    pub answer_timeout: Duration,
    /// Time limit of sending the answer. Default [`STALL_TIMEOUT`].
    pub stall_timeout: Duration,
}

impl Default for ServiceParameters {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            streams: 64,
            streams_of_circuit: 8,
            streams_of_owner: 32,
            query_timeout: QUERY_TIMEOUT,
            answer_timeout: Duration::from_secs(20),
            stall_timeout: STALL_TIMEOUT,
        }
    }
}

/// An action that the owner must take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEvent<Id> {
    /// Query the engine, and pass the result to [`SearchService::handle_answer`].
    Query {
        /// The stream.
        stream: Id,
        /// The query.
        request: SearchRequest,
    },
    /// Write the bytes of [`SearchService::unwritten`].
    Write {
        /// The stream.
        stream: Id,
    },
    /// Cancel the query of this stream: its answer is no longer needed.
    Cancel {
        /// The stream.
        stream: Id,
    },
    /// Reset the stream with `reason`; the service has removed it.
    Reset {
        /// The stream.
        stream: Id,
        /// The reason in the END message.
        reason: EndReason,
    },
}

/// The search service of an exit. `Id` is the exit's identifier of a stream, which is never reused.
#[derive(Debug)]
pub struct SearchService<Id> {
    parameters: ServiceParameters,
    limits: RequestLimits<Id>,
    /// Unordered. The cap on streams is low enough for a linear search.
    streams: Vec<Serving<Id>>,
    /// At most two for each stream, because the owner drains them after each input.
    events: VecDeque<ServiceEvent<Id>>,
}

#[derive(Debug)]
struct Serving<Id> {
    stream: Id,
    owner: RequestOwner,
    since: Instant,
    /// The number of the query in the limits while it counts as in progress: from its last byte to its answer. A slow
    /// sender or reader therefore does not count towards the concurrency limit.
    admitted: Option<u64>,
    /// The deadline of the state.
    deadline: Instant,
    state: ServingState,
}

#[derive(Debug)]
enum ServingState {
    /// The received part of the query.
    Reading(PartialQuery),
    /// The owner queries the engine.
    Querying,
    /// The framed answer, and the number of bytes written.
    Writing(Vec<u8>, usize),
}

impl<Id: Copy + PartialEq> SearchService<Id> {
    /// A service without streams.
    #[must_use]
    pub const fn new(parameters: ServiceParameters) -> Self {
        let limits = RequestLimits::new(parameters.rates);
        Self { parameters, limits, streams: Vec::new(), events: VecDeque::new() }
    }

    /// Handles a new stream of `owner`. At the caps on streams, emits [`ServiceEvent::Reset`] for it or for the stream
    /// that it displaces.
    pub fn handle_request(&mut self, now: Instant, stream: Id, owner: RequestOwner) {
        match self.victim(now, owner) {
            Ok(None) => {}
            Ok(Some(victim)) => {
                self.handle_closed(victim);
                self.events.push_back(ServiceEvent::Reset { stream: victim, reason: EndReason::ResourceLimit });
            }
            Err(reason) => return self.events.push_back(ServiceEvent::Reset { stream, reason }),
        }
        let deadline = now.after(self.parameters.query_timeout);
        self.streams.push(Serving {
            stream,
            owner,
            since: now,
            admitted: None,
            deadline,
            state: ServingState::Reading(PartialQuery::default()),
        });
    }

    /// The stream that ends so that `owner` can have another one; `None` if no cap is reached. The rule is that of
    /// [`RequestLimits`] for concurrent requests, with the only stream of a circuit as its first try. Since the streams of
    /// a circuit have a high rate, such a stream also takes the place of any stream of a circuit with several.
    fn victim(&self, now: Instant, owner: RequestOwner) -> Result<Option<Id>, EndReason> {
        let of_circuit = self.streams.iter().filter(|serving| serving.owner.circuit == owner.circuit).count();
        let of_circuit_of =
            |of: &Serving<Id>| self.streams.iter().filter(|serving| serving.owner.circuit == of.owner.circuit).count();
        let held = |of: Owner| self.streams.iter().filter(|serving| serving.owner.circuit_owner == of).count();
        let (own, of_owner) = (owner.circuit_owner, held(owner.circuit_owner));
        if of_circuit >= self.parameters.streams_of_circuit {
            return Err(EndReason::ResourceLimit);
        }
        let is_at_part = of_owner >= self.parameters.streams_of_owner;
        if !is_at_part && self.streams.len() < self.parameters.streams {
            return Ok(None);
        }
        let owners =
            self.streams.iter().map(|serving| (held(serving.owner.circuit_owner), serving.owner.circuit_owner));
        let fullest = owners.max().filter(|(most, _)| !is_at_part && *most > of_owner.saturating_add(1));
        let is_first = of_circuit == 0;
        let slow_after = if is_first { self.parameters.rates.slow_at_cap() } else { SLOW_AFTER };
        let may_end = |serving: &&Serving<Id>| {
            let of = serving.owner.circuit_owner;
            if let Some((_, fullest)) = fullest {
                return of == fullest;
            }
            (of == own || (!is_at_part && held(of) > of_owner))
                && (serving.since.after(slow_after) <= now || (is_first && of_circuit_of(serving) > 1))
        };
        let victim = self.streams.iter().filter(may_end).min_by_key(|serving| serving.since);
        victim.map(|serving| Some(serving.stream)).ok_or(EndReason::ResourceLimit)
    }

    /// Handles `bytes` from the client.
    pub fn handle_data(&mut self, now: Instant, stream: Id, bytes: &[u8]) {
        let Some(Serving { state: ServingState::Reading(query), owner, .. }) = self.serving_mut(stream) else {
            return;
        };
        let Err(refused) = query.handle_data(bytes) else { return };
        let owner = *owner;
        // The query is admitted before it is refused, so that it counts towards the limits.
        let refusal = match self.limits.admit(now, owner, stream) {
            Ok(admitted) => {
                self.limits.release(admitted.number);
                self.displace(now, admitted.displaced);
                refused.answer
            }
            Err(_) => SearchRefusal::RateLimited,
        };
        self.refuse(now, stream, refusal);
    }

    /// Handles the end of the client's direction.
    pub fn handle_finished(&mut self, now: Instant, stream: Id) {
        let deadline = now.after(self.parameters.answer_timeout);
        let Some(serving) = self.streams.iter_mut().find(|serving| serving.stream == stream) else { return };
        let ServingState::Reading(query) = &mut serving.state else { return };
        let (limits, owner, admitted) = (&mut self.limits, serving.owner, &mut serving.admitted);
        let mut displaced = None;
        let received = core::mem::take(query).handle_finished(|| {
            let admission = limits.admit(now, owner, stream)?;
            (*admitted, displaced) = (Some(admission.number), admission.displaced);
            Ok(())
        });
        match received {
            None => self.fail(stream, EndReason::Failed),
            Some(Err(refused)) => self.refuse(now, stream, refused.answer),
            Some(Ok((request, ()))) => {
                (serving.state, serving.deadline) = (ServingState::Querying, deadline);
                self.events.push_back(ServiceEvent::Query { stream, request });
            }
        }
        self.displace(now, displaced);
    }

    /// Refuses a query in progress that another has displaced.
    fn displace(&mut self, now: Instant, stream: Option<Id>) {
        if let Some(stream) = stream {
            self.events.push_back(ServiceEvent::Cancel { stream });
            self.refuse(now, stream, SearchRefusal::RateLimited);
        }
    }

    /// Handles the answer to the query of `stream`. Ignores an answer for which the stream does not wait.
    pub fn handle_answer(&mut self, now: Instant, stream: Id, answer: &SearchAnswer) {
        let is_querying = self.serving(stream).is_some_and(|serving| matches!(serving.state, ServingState::Querying));
        if is_querying {
            self.write(now, stream, answer);
        }
    }

    /// The bytes of the answer that are not written yet.
    #[must_use]
    pub fn unwritten(&self, stream: Id) -> &[u8] {
        match self.serving(stream).map(|serving| &serving.state) {
            Some(ServingState::Writing(answer, written)) => answer.get(*written..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Handles the writing of `bytes` more bytes of the answer. Returns true at the end of the answer: the service has
    /// removed the stream, and the owner must finish it.
    pub fn handle_written(&mut self, stream: Id, bytes: usize) -> bool {
        let Some(Serving { state: ServingState::Writing(answer, written), .. }) = self.serving_mut(stream) else {
            return false;
        };
        *written = written.saturating_add(bytes);
        let is_complete = *written >= answer.len();
        if is_complete {
            self.remove(stream);
        }
        is_complete
    }

    /// Handles the failure of the stream or its circuit: removes the stream.
    pub fn handle_closed(&mut self, stream: Id) {
        if let Some(Serving { state: ServingState::Querying, .. }) = self.remove(stream) {
            self.events.push_back(ServiceEvent::Cancel { stream });
        }
    }

    /// Ends streams past their deadlines.
    pub fn handle_timeout(&mut self, now: Instant) {
        let expired: Vec<Id> =
            self.streams.iter().filter(|serving| serving.deadline <= now).map(|serving| serving.stream).collect();
        for stream in expired {
            match self.serving(stream).map(|serving| &serving.state) {
                Some(ServingState::Querying) => {
                    self.events.push_back(ServiceEvent::Cancel { stream });
                    self.refuse(now, stream, SearchRefusal::EngineTimedOut);
                }
                _ => self.fail(stream, EndReason::TimedOut),
            }
        }
    }

    /// The next deadline for [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.streams.iter().map(|serving| serving.deadline).min()
    }

    /// Whether there are no streams.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The next action.
    pub fn poll_event(&mut self) -> Option<ServiceEvent<Id>> {
        self.events.pop_front()
    }

    fn serving(&self, stream: Id) -> Option<&Serving<Id>> {
        self.streams.iter().find(|serving| serving.stream == stream)
    }

    fn serving_mut(&mut self, stream: Id) -> Option<&mut Serving<Id>> {
        self.streams.iter_mut().find(|serving| serving.stream == stream)
    }

    fn refuse(&mut self, now: Instant, stream: Id, refusal: SearchRefusal) {
        self.write(now, stream, &SearchAnswer::Refused(refusal));
    }

    fn write(&mut self, now: Instant, stream: Id, answer: &SearchAnswer) {
        let Ok(framed) = answer.encode() else { return self.fail(stream, EndReason::Failed) };
        let deadline = now.after(self.parameters.stall_timeout);
        if let Some(serving) = self.streams.iter_mut().find(|serving| serving.stream == stream) {
            if let Some(admitted) = serving.admitted.take() {
                self.limits.release(admitted);
            }
            (serving.state, serving.deadline) = (ServingState::Writing(framed, 0), deadline);
            self.events.push_back(ServiceEvent::Write { stream });
        }
    }

    fn fail(&mut self, stream: Id, reason: EndReason) {
        self.remove(stream);
        self.events.push_back(ServiceEvent::Reset { stream, reason });
    }

    fn remove(&mut self, stream: Id) -> Option<Serving<Id>> {
        let index = self.streams.iter().position(|serving| serving.stream == stream)?;
        let serving = self.streams.swap_remove(index);
        if let Some(admitted) = serving.admitted {
            self.limits.release(admitted);
        }
        Some(serving)
    }
}
