//! The search engines that a volunteer queries for clients, as chosen by the user.
//!
//! The URL is built from the engine's description and a client's terms, as in native nodes (`engine`). The request is
//! the browser's `fetch` under CORS, without cookies, referrer or cache. Redirects are not followed, because a page
//! can't see their target. The browser adds its name and the origin of the page. Engines are not trusted: time and
//! length of their answers are capped. An engine whose answers pages can't read is not offered, and the page shows
//! the reason. Queries are not stored.

mod address_check;
mod query;

use core::{
    cell::{Cell, RefCell},
    time::Duration,
};
use std::rc::Rc;

use js_sys::Array;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;
use web_sys::AbortController;

pub(in crate::browser) use self::address_check::describe;
pub(super) use self::query::count;
use self::query::{EngineFailure, query};
use super::{BrowserVolunteer, DrivenVolunteer};
use crate::{
    base::Instant,
    browser::{
        clock,
        drive::PageDrive,
        failure::{FailureKind, PageFailure, object},
        sync::Notify,
    },
    delegated::{EngineName, MAX_ENGINES, SearchAnswer, SearchRefusal, SearchRequest},
    engine::Engine,
    relay::ExitStream,
};

/// Delay between trials of an engine that failed its last trial.
const RETRY_DELAY: Duration = Duration::from_secs(10 * 60);
/// Delay between trials of an engine after failed queries of clients, and between checks for due trials.
const SUSPECTED_RETRY_DELAY: Duration = Duration::from_secs(60);
/// The query of a trial, which tests whether this page can read the engine's answers.
const TRIAL_TERMS: &str = "test";
/// The reason that a page shows for an engine whose answers it can't read.
const UNREADABLE: &str = "web pages can't read the engine's answers: the engine forbids this, or can't be reached";

/// A query to perform.
pub(super) struct PendingSearch {
    pub(super) stream: ExitStream,
    pub(super) request: SearchRequest,
    /// Aborts the query after the end of its stream.
    pub(super) abort: AbortController,
}

/// A chosen engine.
struct ChosenEngine {
    engine: Engine,
    /// The source of `engine`.
    description: String,
    state: RefCell<EngineState>,
    /// The time of the last trial.
    tried_at: Cell<Option<Instant>>,
    /// Whether a client's query has failed since the last trial, perhaps because of the engine.
    suspected: Cell<bool>,
    /// The abort controllers of queries in flight, including a trial; `exit` caps their number.
    in_flight: RefCell<Vec<AbortController>>,
}

#[derive(Clone, PartialEq, Eq)]
enum EngineState {
    /// No trial has ended yet.
    Untried,
    /// The last trial succeeded, so the engine is offered.
    Working,
    /// The last trial failed, with the reason.
    Failed(String),
}

/// All engines of a volunteer.
#[derive(Default)]
pub(super) struct VolunteerEngines {
    /// Sorted by name.
    chosen: RefCell<Vec<Rc<ChosenEngine>>>,
    /// Notifies when the choice changes, or a trial is due.
    changed: Notify,
    /// The trial in flight.
    trial: RefCell<Option<AbortController>>,
    /// Whether any engine is offered.
    pub(super) has_offers: Rc<Cell<bool>>,
    /// Notifies after the arrival of a client's query.
    pub(super) query_arrived: Notify,
    /// Queries with results.
    pub(super) answered: Cell<u32>,
    /// Bytes of queries and answers, including the engines', since the page was loaded.
    pub(super) search_bytes: Rc<Cell<u64>>,
}

impl VolunteerEngines {
    /// Replaces the engines by those of `descriptions`, named by `names` at the same index. An engine that is in both
    /// the old and the new set keeps its state, even during a trial. Queries in flight to removed engines are aborted.
    pub(super) fn choose(&self, names: &[String], descriptions: &[String]) -> Result<(), PageFailure> {
        let mut chosen: Vec<Rc<ChosenEngine>> = Vec::new();
        for (name, description) in names.iter().zip(descriptions) {
            let engine = describe(name, description)?;
            let place = match chosen.binary_search_by(|other| other.engine.name().cmp(engine.name())) {
                Ok(_) => return Err(bad(format!("two search engines have the name \"{name}\""))),
                Err(place) => place,
            };
            let entry = Rc::new(ChosenEngine {
                engine,
                description: description.clone(),
                state: RefCell::new(EngineState::Untried),
                tried_at: Cell::new(None),
                suspected: Cell::new(false),
                in_flight: RefCell::default(),
            });
            chosen.insert(place, entry);
        }
        if chosen.len() > MAX_ENGINES {
            return Err(bad(format!("the number of search engines exceeds {MAX_ENGINES}")));
        }
        if let Ok(mut in_use) = self.chosen.try_borrow_mut() {
            let before = core::mem::take(&mut *in_use);
            for entry in &mut chosen {
                // The same name may denote another engine.
                let same = |other: &&Rc<ChosenEngine>| {
                    other.engine.name() == entry.engine.name() && other.description == entry.description
                };
                if let Some(known) = before.iter().find(same) {
                    *entry = Rc::clone(known);
                }
            }
            let removed =
                before.into_iter().filter(|entry| !chosen.iter().any(|chosen_entry| Rc::ptr_eq(chosen_entry, entry)));
            removed.for_each(|entry| entry.abort_queries());
            *in_use = chosen;
        }
        self.update_has_offers();
        self.changed.notify();
        Ok(())
    }

    /// The offered engines, sorted by name.
    pub(super) fn offered(&self) -> Vec<EngineName> {
        self.all().iter().filter(|entry| entry.is_working()).map(|entry| entry.engine.name().clone()).collect()
    }

    /// Each engine with its state, for the page.
    pub(super) fn shown(&self) -> Array {
        let shown = self.all().into_iter().map(|entry| {
            let (offered, why) = match entry.state() {
                EngineState::Untried => (false, JsValue::UNDEFINED),
                EngineState::Working => (true, JsValue::UNDEFINED),
                EngineState::Failed(why) => (false, PageFailure::new(FailureKind::Engine, why).sentence.into()),
            };
            object(&[("name", entry.engine.name().as_str().into()), ("offered", offered.into()), ("why", why)])
        });
        shown.collect()
    }

    fn all(&self) -> Vec<Rc<ChosenEngine>> {
        self.chosen.try_borrow().map(|chosen| chosen.clone()).unwrap_or_default()
    }

    /// Whether the engine is still chosen.
    fn has(&self, entry: &Rc<ChosenEngine>) -> bool {
        self.all().iter().any(|other| Rc::ptr_eq(other, entry))
    }

    /// Schedules an immediate trial of failed engines, for example after a change of the network.
    pub(super) fn reset_failed(&self) {
        self.all().iter().filter(|entry| !entry.is_working()).for_each(|entry| entry.tried_at.set(None));
    }

    /// Aborts the trial in flight.
    pub(super) fn abort_trial(&self) {
        if let Some(abort) = self.trial.take() {
            abort.abort();
        }
    }

    fn find(&self, name: &EngineName) -> Option<Rc<ChosenEngine>> {
        self.all().into_iter().find(|entry| entry.engine.name() == name && entry.is_working())
    }

    fn update_has_offers(&self) {
        self.has_offers.set(self.all().iter().any(|entry| entry.is_working()));
    }
}

impl ChosenEngine {
    fn is_working(&self) -> bool {
        self.state() == EngineState::Working
    }

    /// Aborts the queries in flight to this engine.
    fn abort_queries(&self) {
        self.in_flight.take().iter().for_each(AbortController::abort);
    }

    /// The engine's answer to `request`; a failure if `abort` aborts the query.
    async fn query(
        &self,
        request: &SearchRequest,
        abort: &AbortController,
        search_bytes: &Cell<u64>,
    ) -> Result<SearchAnswer, EngineFailure> {
        if let Ok(mut in_flight) = self.in_flight.try_borrow_mut() {
            in_flight.push(abort.clone());
        }
        let answer = query(&self.engine, request, abort, search_bytes).await;
        if let Ok(mut in_flight) = self.in_flight.try_borrow_mut() {
            in_flight.retain(|other| other != abort);
        }
        answer
    }

    fn state(&self) -> EngineState {
        self.state.try_borrow().map(|state| state.clone()).unwrap_or(EngineState::Untried)
    }

    /// Whether a trial is due.
    fn is_due(&self, now: Instant) -> bool {
        let delay = match (self.is_working(), self.suspected.get()) {
            (true, false) => return false,
            (_, true) => SUSPECTED_RETRY_DELAY,
            (false, false) => RETRY_DELAY,
        };
        self.tried_at.get().is_none_or(|tried_at| now.since(tried_at) >= delay)
    }
}

fn bad(message: String) -> PageFailure {
    PageFailure::new(FailureKind::BadInput, message)
}

/// Tests the chosen engines, and repeats failed trials, while `wanted` returns true.
pub(super) async fn run_trials(volunteer: Rc<BrowserVolunteer>, wanted: impl Fn() -> bool) {
    while wanted() {
        let seen = volunteer.engines.changed.count();
        for entry in volunteer.engines.all() {
            // The user may have removed the engine during the last trial.
            if wanted() && volunteer.engines.has(&entry) && entry.is_due(clock::now()) {
                run_trial(&volunteer, &entry).await;
            }
        }
        clock::within(SUSPECTED_RETRY_DELAY, volunteer.engines.changed.notified_since(seen)).await;
    }
}

async fn run_trial(volunteer: &BrowserVolunteer, entry: &ChosenEngine) {
    let before = (entry.tried_at.replace(Some(clock::now())), entry.suspected.replace(false));
    let request = SearchRequest::new(entry.engine.name().clone(), TRIAL_TERMS, 1, None);
    let (Ok(request), Ok(abort)) = (request, AbortController::new()) else { return };
    volunteer.engines.trial.replace(Some(abort.clone()));
    let state = match entry.query(&request, &abort, &volunteer.engines.search_bytes).await {
        Ok(_) => EngineState::Working,
        // An aborted trial has no result.
        Err(EngineFailure::Unreadable) if abort.signal().aborted() => {
            entry.tried_at.set(before.0);
            return entry.suspected.set(before.1);
        }
        Err(EngineFailure::Unreadable) => EngineState::Failed(UNREADABLE.to_owned()),
        Err(EngineFailure::Refused(refusal)) => EngineState::Failed(refusal.to_string()),
    };
    if entry.state.replace(state.clone()) != state {
        volunteer.engines.update_has_offers();
        volunteer.changed.notify();
        volunteer.report_state();
    }
}

/// Performs clients' queries until `drive` stops.
pub(super) async fn serve(volunteer: Rc<BrowserVolunteer>, drive: PageDrive<DrivenVolunteer>) {
    while !drive.is_stopped() {
        let seen = volunteer.engines.query_arrived.count();
        while let Some(search) = drive.with(|driven, _, _| driven.exit.poll_query()).flatten() {
            let (volunteer, drive) = (Rc::clone(&volunteer), drive.clone());
            spawn_local(async move {
                let stream = search.stream;
                let answer = volunteer.engines.answer(search).await;
                drive.with(|driven, now, _| driven.answer(now, stream, &answer));
            });
        }
        volunteer.engines.query_arrived.notified_since(seen).await;
    }
}

impl VolunteerEngines {
    async fn answer(&self, search: PendingSearch) -> SearchAnswer {
        let PendingSearch { request, abort, .. } = search;
        let Some(entry) = self.find(request.engine()) else {
            return SearchAnswer::Refused(SearchRefusal::UnknownEngine);
        };
        match entry.query(&request, &abort, &self.search_bytes).await {
            _ if !self.has(&entry) => SearchAnswer::Refused(SearchRefusal::UnknownEngine),
            Ok(results) => {
                self.answered.set(self.answered.get().saturating_add(1));
                results
            }
            Err(failure) => {
                // The engine may block this exit or forbid pages to read answers. The query may also be unusual, so
                // the next trial decides.
                let aborted = failure == EngineFailure::Unreadable && abort.signal().aborted();
                if failure.suspects_engine() && !aborted {
                    entry.suspected.set(true);
                    self.changed.notify();
                }
                SearchAnswer::Refused(failure.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegated::Block;

    #[test]
    fn a_suspected_engine_is_tried_each_minute_and_a_failed_one_each_ten_minutes() {
        let description = include_str!("../../../deploy/engines/wikipedia.xml").to_owned();
        let entry = ChosenEngine {
            engine: Engine::describe_for_page(description.as_bytes(), None).unwrap(),
            description,
            state: RefCell::new(EngineState::Untried),
            tried_at: Cell::new(None),
            suspected: Cell::new(false),
            in_flight: RefCell::default(),
        };
        let after = |wait: Duration| Instant::START.after(wait);
        let second = Duration::from_secs(1);
        assert!(entry.is_due(after(second)));
        entry.tried_at.set(Some(Instant::START));
        for (state, suspected, due) in [
            (EngineState::Working, false, None),
            (EngineState::Working, true, Some(SUSPECTED_RETRY_DELAY)),
            (EngineState::Failed(String::new()), false, Some(RETRY_DELAY)),
        ] {
            entry.state.replace(state);
            entry.suspected.set(suspected);
            let due = due.unwrap_or(RETRY_DELAY * 100);
            assert!(!entry.is_due(after(due.saturating_sub(second))));
            assert_eq!(entry.is_due(after(due)), due != RETRY_DELAY * 100);
        }
    }

    #[test]
    fn only_a_failure_that_the_engine_may_have_caused_makes_the_engine_suspected() {
        use SearchRefusal::{EngineBlocked, EngineFailed, EngineTimedOut};

        for failure in [EngineBlocked(Block::Forbidden), EngineTimedOut, EngineFailed].map(EngineFailure::Refused) {
            assert!(failure.suspects_engine(), "{failure:?}");
        }
        assert!(EngineFailure::Unreadable.suspects_engine());
        assert!(!EngineFailure::Refused(SearchRefusal::BadRequest).suspects_engine());
    }
}
