//! A volunteer's exit, which performs only searches. [`VolunteerExit`] joins the relay's streams with
//! [`SearchService`], and passes queries to [`super::engines`].

use core::cell::Cell;
use std::{collections::VecDeque, rc::Rc};

use web_sys::AbortController;

use super::engines::{PendingSearch, VolunteerEngines, count};
use crate::{
    base::Instant,
    browser::sync::Notify,
    delegated::{
        SearchAnswer, SearchRequest, Service,
        limits::Rates,
        service::{SearchService, ServiceEvent, ServiceParameters},
    },
    relay::{ExitStream, Relay},
    stream::{StreamCommand, StreamEvent},
    wire::EndReason,
};

/// Rate limits of a tab. All queries come from one person's address, which an engine may block for too many queries.
///
/// A tab has few neighbours, each of which carries many clients, so one circuit owner may use half of the rate.
const RATES: Rates = Rates {
    in_total: 4,
    per_owner: 2,
    per_circuit: 1,
    concurrent: 8,
    concurrent_of_owner: 4,
    concurrent_of_circuit: 4,
};

/// The exit's state in the loop.
pub(super) struct VolunteerExit {
    service: SearchService<ExitStream>,
    /// Whether any engine is offered; if not, queries are refused.
    has_offers: Rc<Cell<bool>>,
    /// Whether new queries are refused. Queries in flight may finish.
    draining: bool,
    /// Queries that [`Self::poll_query`] has not yet returned; the service caps their number.
    queries: VecDeque<PendingSearch>,
    /// The streams of queries in flight.
    in_flight: Vec<(ExitStream, AbortController)>,
    /// Notifies after the arrival of a query.
    query_arrived: Notify,
    /// Bytes of queries and answers.
    search_bytes: Rc<Cell<u64>>,
}

impl VolunteerExit {
    pub(super) fn new(engines: &VolunteerEngines) -> Self {
        let parameters = ServiceParameters { rates: RATES, ..ServiceParameters::default() };
        let service = SearchService::new(parameters);
        let (has_offers, query_arrived, search_bytes) =
            (Rc::clone(&engines.has_offers), engines.query_arrived.clone(), Rc::clone(&engines.search_bytes));
        Self {
            service,
            has_offers,
            draining: false,
            queries: VecDeque::new(),
            in_flight: Vec::new(),
            query_arrived,
            search_bytes,
        }
    }

    /// Handles an event of a stream of `relay`.
    pub(super) fn handle_event(&mut self, now: Instant, relay: &mut Relay, stream: ExitStream, event: StreamEvent) {
        match event {
            StreamEvent::Request(Service::Search) if self.has_offers.get() && !self.draining => {
                if let Some(owner) = relay.request_owner(stream) {
                    self.service.handle_request(now, stream, owner);
                }
            }
            // The relay itself refuses BEGIN and RESOLVE; these arms are a precaution.
            StreamEvent::Request(_) | StreamEvent::Begin(_) | StreamEvent::Resolve(_) => {
                relay.handle_command(stream, StreamCommand::Reset(EndReason::Policy));
            }
            StreamEvent::Data(bytes) => {
                count(&self.search_bytes, bytes.len());
                self.service.handle_data(now, stream, &bytes);
                relay.handle_command(stream, StreamCommand::Consumed(bytes.len()));
            }
            StreamEvent::Finished => self.service.handle_finished(now, stream),
            StreamEvent::Writable => self.write(relay, stream),
            StreamEvent::Closed(_) => self.service.handle_closed(stream),
            // Events that only origins receive.
            StreamEvent::Connected(_) | StreamEvent::Resolved { .. } => {}
        }
        self.settle(now, relay);
    }

    /// Sends the answer to the query of `stream`.
    pub(super) fn answer(&mut self, now: Instant, relay: &mut Relay, stream: ExitStream, answer: &SearchAnswer) {
        self.remove_query(stream);
        self.service.handle_answer(now, stream, answer);
        self.settle(now, relay);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, relay: &mut Relay) {
        self.service.handle_timeout(now);
        self.settle(now, relay);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.service.poll_timeout()
    }

    /// Accepts no more searches.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether there are streams of searches: queries in flight, or answers that are not written yet.
    pub(super) fn is_busy(&self) -> bool {
        !self.service.is_empty()
    }

    /// The next query to perform.
    pub(super) fn poll_query(&mut self) -> Option<PendingSearch> {
        self.queries.pop_front()
    }

    fn settle(&mut self, now: Instant, relay: &mut Relay) {
        while let Some(event) = self.service.poll_event() {
            match event {
                ServiceEvent::Query { stream, request } => self.start_query(now, stream, request),
                ServiceEvent::Write { stream } => self.write(relay, stream),
                ServiceEvent::Cancel { stream } => {
                    if let Some((_, abort)) = self.remove_query(stream) {
                        abort.abort();
                    }
                    self.queries.retain(|query| query.stream != stream);
                }
                ServiceEvent::Reset { stream, reason } => {
                    relay.handle_command(stream, StreamCommand::Reset(reason));
                }
            }
        }
    }

    fn start_query(&mut self, now: Instant, stream: ExitStream, request: SearchRequest) {
        let Ok(abort) = AbortController::new() else {
            let refused = SearchAnswer::Refused(crate::delegated::SearchRefusal::EngineUnreachable);
            return self.service.handle_answer(now, stream, &refused);
        };
        self.in_flight.push((stream, abort.clone()));
        self.queries.push_back(PendingSearch { stream, request, abort });
        self.query_arrived.notify();
    }

    fn remove_query(&mut self, stream: ExitStream) -> Option<(ExitStream, AbortController)> {
        let place = self.in_flight.iter().position(|(other, _)| *other == stream)?;
        Some(self.in_flight.swap_remove(place))
    }

    /// Writes as much of an answer as the stream has room for.
    fn write(&mut self, relay: &mut Relay, stream: ExitStream) {
        loop {
            let unwritten = self.service.unwritten(stream);
            if unwritten.is_empty() {
                return;
            }
            let written = relay.write(stream, unwritten);
            if written == 0 {
                return;
            }
            count(&self.search_bytes, written);
            if self.service.handle_written(stream, written) {
                return relay.handle_command(stream, StreamCommand::Finish);
            }
        }
    }
}
