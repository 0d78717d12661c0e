//! The search engines that a volunteer has chosen to query for clients.
//!
//! The URL is built here from the engine's description and a client's terms, as in native nodes (`engine`). The
//! request is the browser's `fetch` under CORS, without cookies, referrer or cache. It follows no redirect, because a
//! page can't see its target. The browser adds its name and the origin of the page. Engines are not trusted: time and
//! length of their answers are capped. An engine that doesn't let pages read its answers isn't offered, and the page
//! shows it. Queries are not stored.

mod ask;
mod place;

use core::{
    cell::{Cell, RefCell},
    time::Duration,
};
use std::rc::Rc;

use js_sys::Array;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;
use web_sys::AbortController;

pub(super) use self::ask::count;
use self::ask::{EngineFailure, ask};
pub(in crate::browser) use self::place::describe;
use super::{BrowserVolunteer, VolunteerCore};
use crate::{
    base::Instant,
    browser::{
        clock,
        drive::Driver,
        failure::{FailureKind, PageFailure, object},
        slot::Bell,
    },
    delegated::{EngineName, MAX_ENGINES, SearchAnswer, SearchRefusal, SearchRequest},
    engine::Engine,
    relay::ExitStream,
};

/// Delay until an engine that failed a trial is tried again, and at least between trials after failed queries.
const AGAIN: Duration = Duration::from_secs(10 * 60);
const AGAIN_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// The query of a trial, which tests whether this page can read the engine's answers.
const TRIAL: &str = "test";
const UNREADABLE: &str = "web pages can't read its answers: it doesn't allow that, or can't be reached";

/// A query to perform.
pub(super) struct PendingSearch {
    pub(super) stream: ExitStream,
    pub(super) request: SearchRequest,
    /// Aborted when its stream has closed.
    pub(super) abort: AbortController,
}

/// A chosen engine.
struct Chosen {
    engine: Engine,
    /// The source of `engine`.
    description: String,
    standing: RefCell<EngineState>,
    /// The time of the last trial.
    tried: Cell<Option<Instant>>,
    /// A client's query failed, perhaps because of the engine.
    doubted: Cell<bool>,
    /// Queries in flight, including a trial; `exit` caps their number.
    under_way: RefCell<Vec<AbortController>>,
}

#[derive(Clone, PartialEq, Eq)]
enum EngineState {
    /// Not tried yet.
    Untried,
    /// It answers, so it is offered.
    Good,
    /// It failed, with the reason.
    Bad(String),
}

/// All engines of a volunteer.
#[derive(Default)]
pub(super) struct VolunteerEngines {
    /// In order of name.
    chosen: RefCell<Vec<Rc<Chosen>>>,
    /// Rings when the choice changes, or a trial is due.
    changed: Bell,
    /// The trial in flight.
    trial: RefCell<Option<AbortController>>,
    /// Whether any engine is offered.
    pub(super) offers: Rc<Cell<bool>>,
    /// Rings when a client has sent a query.
    pub(super) asked: Bell,
    /// Queries with results.
    pub(super) answered: Cell<u32>,
    /// Bytes of queries and answers, including the engines', since the page was loaded.
    pub(super) carried: Rc<Cell<u64>>,
}

impl VolunteerEngines {
    /// Replaces the engines by those of `descriptions`, named by `names` at the same index. An engine in both sets is
    /// unchanged, also during its trial. Queries in flight to removed engines are aborted.
    pub(super) fn choose(&self, names: &[String], descriptions: &[String]) -> Result<(), PageFailure> {
        let mut chosen: Vec<Rc<Chosen>> = Vec::new();
        for (name, description) in names.iter().zip(descriptions) {
            let engine = describe(name, description)?;
            let place = match chosen.binary_search_by(|other| other.engine.name().cmp(engine.name())) {
                Ok(_) => return Err(bad(format!("two search engines have the name \"{name}\""))),
                Err(place) => place,
            };
            let one = Rc::new(Chosen {
                engine,
                description: description.clone(),
                standing: RefCell::new(EngineState::Untried),
                tried: Cell::new(None),
                doubted: Cell::new(false),
                under_way: RefCell::default(),
            });
            chosen.insert(place, one);
        }
        if chosen.len() > MAX_ENGINES {
            return Err(bad(format!("the number of search engines exceeds {MAX_ENGINES}")));
        }
        if let Ok(mut now) = self.chosen.try_borrow_mut() {
            let before = core::mem::take(&mut *now);
            for one in &mut chosen {
                // The same name may denote another engine.
                let same = |other: &&Rc<Chosen>| {
                    other.engine.name() == one.engine.name() && other.description == one.description
                };
                if let Some(known) = before.iter().find(same) {
                    *one = Rc::clone(known);
                }
            }
            let gone = before.into_iter().filter(|one| !chosen.iter().any(|kept| Rc::ptr_eq(kept, one)));
            gone.for_each(|one| one.give_up());
            *now = chosen;
        }
        self.note();
        self.changed.ring();
        Ok(())
    }

    /// The offered engines, in order of name.
    pub(super) fn offered(&self) -> Vec<EngineName> {
        // They are stored in that order.
        self.all().iter().filter(|one| one.is_good()).map(|one| one.engine.name().clone()).collect()
    }

    /// Each engine with its state, for the page.
    pub(super) fn shown(&self) -> Array {
        let shown = self.all().into_iter().map(|one| {
            let (offered, why) = match one.standing() {
                EngineState::Untried => (false, JsValue::UNDEFINED),
                EngineState::Good => (true, JsValue::UNDEFINED),
                EngineState::Bad(why) => (false, PageFailure::new(FailureKind::Engine, why).sentence.into()),
            };
            object(&[("name", one.engine.name().as_str().into()), ("offered", offered.into()), ("why", why)])
        });
        shown.collect()
    }

    fn all(&self) -> Vec<Rc<Chosen>> {
        self.chosen.try_borrow().map(|chosen| chosen.clone()).unwrap_or_default()
    }

    /// Whether the engine is still chosen.
    fn has(&self, one: &Rc<Chosen>) -> bool {
        self.all().iter().any(|other| Rc::ptr_eq(other, one))
    }

    /// Schedules a new trial of failed engines, for example after a change of the network.
    pub(super) fn forgive(&self) {
        self.all().iter().filter(|one| !one.is_good()).for_each(|one| one.tried.set(None));
    }

    /// Aborts the trial in flight.
    pub(super) fn give_up_trial(&self) {
        if let Some(abort) = self.trial.take() {
            abort.abort();
        }
    }

    fn find(&self, name: &EngineName) -> Option<Rc<Chosen>> {
        self.all().into_iter().find(|one| one.engine.name() == name && one.is_good())
    }

    fn note(&self) {
        self.offers.set(self.all().iter().any(|one| one.is_good()));
    }
}

impl Chosen {
    fn is_good(&self) -> bool {
        self.standing() == EngineState::Good
    }

    /// Aborts queries in flight.
    fn give_up(&self) {
        self.under_way.take().iter().for_each(AbortController::abort);
    }

    /// The engine's answer to `request`, unless it is aborted.
    async fn ask(
        &self,
        request: &SearchRequest,
        abort: &AbortController,
        carried: &Cell<u64>,
    ) -> Result<SearchAnswer, EngineFailure> {
        if let Ok(mut under_way) = self.under_way.try_borrow_mut() {
            under_way.push(abort.clone());
        }
        let answer = ask(&self.engine, request, abort, carried).await;
        if let Ok(mut under_way) = self.under_way.try_borrow_mut() {
            under_way.retain(|other| other != abort);
        }
        answer
    }

    fn standing(&self) -> EngineState {
        self.standing.try_borrow().map(|standing| standing.clone()).unwrap_or(EngineState::Untried)
    }

    /// Whether a trial is due.
    fn is_due(&self, now: Instant) -> bool {
        let waits = match (self.is_good(), self.doubted.get()) {
            (true, false) => return false,
            (_, true) => AGAIN_AFTER_FAILURE,
            (false, false) => AGAIN,
        };
        self.tried.get().is_none_or(|tried| now.since(tried) >= waits)
    }
}

fn bad(words: String) -> PageFailure {
    PageFailure::new(FailureKind::BadInput, words)
}

/// Tries the chosen engines, and repeats failed trials, while `wanted` is true.
pub(super) async fn keep(volunteer: Rc<BrowserVolunteer>, wanted: impl Fn() -> bool) {
    while wanted() {
        let heard = volunteer.engines.changed.times();
        for one in volunteer.engines.all() {
            // The choice may have changed during the last trial.
            if wanted() && volunteer.engines.has(&one) && one.is_due(clock::now()) {
                try_out(&volunteer, &one).await;
            }
        }
        clock::within(AGAIN_AFTER_FAILURE, volunteer.engines.changed.after(heard)).await;
    }
}

async fn try_out(volunteer: &BrowserVolunteer, one: &Chosen) {
    let before = (one.tried.replace(Some(clock::now())), one.doubted.replace(false));
    let request = SearchRequest::new(one.engine.name().clone(), TRIAL, 1, None);
    let (Ok(request), Ok(abort)) = (request, AbortController::new()) else { return };
    volunteer.engines.trial.replace(Some(abort.clone()));
    let standing = match one.ask(&request, &abort, &volunteer.engines.carried).await {
        Ok(_) => EngineState::Good,
        // Aborted: no result about the engine.
        Err(EngineFailure::Unreadable) if abort.signal().aborted() => {
            one.tried.set(before.0);
            return one.doubted.set(before.1);
        }
        Err(EngineFailure::Unreadable) => EngineState::Bad(UNREADABLE.to_owned()),
        Err(EngineFailure::Refused(refusal)) => EngineState::Bad(refusal.to_string()),
    };
    if one.standing.replace(standing.clone()) != standing {
        volunteer.engines.note();
        volunteer.changed.ring();
        volunteer.tell();
    }
}

/// Performs clients' queries until `driver` stops.
pub(super) async fn serve(volunteer: Rc<BrowserVolunteer>, driver: Driver<VolunteerCore>) {
    while !driver.is_stopped() {
        let heard = volunteer.engines.asked.times();
        while let Some(asked) = driver.with(|core, _, _| core.exit.poll_asked()).flatten() {
            let (volunteer, driver) = (Rc::clone(&volunteer), driver.clone());
            spawn_local(async move {
                let stream = asked.stream;
                let answer = volunteer.engines.answer(asked).await;
                driver.with(|core, now, _| core.answer(now, stream, &answer));
            });
        }
        volunteer.engines.asked.after(heard).await;
    }
}

impl VolunteerEngines {
    async fn answer(&self, asked: PendingSearch) -> SearchAnswer {
        let PendingSearch { request, abort, .. } = asked;
        let Some(one) = self.find(request.engine()) else {
            return SearchAnswer::Refused(SearchRefusal::UnknownEngine);
        };
        match one.ask(&request, &abort, &self.carried).await {
            _ if !self.has(&one) => SearchAnswer::Refused(SearchRefusal::UnknownEngine),
            Ok(results) => {
                self.answered.set(self.answered.get().saturating_add(1));
                results
            }
            Err(miss) => {
                // The engine may no longer be readable, or may block this exit. A client's unusual query proves
                // neither, so a trial follows.
                let given_up = miss == EngineFailure::Unreadable && abort.signal().aborted();
                if miss.casts_doubt() && !given_up {
                    one.doubted.set(true);
                    self.changed.ring();
                }
                SearchAnswer::Refused(miss.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegated::Block;

    #[test]
    fn an_engine_that_is_doubted_is_tried_each_minute_and_one_that_failed_each_ten() {
        let description = include_str!("../../../deploy/engines/wikipedia.xml").to_owned();
        let one = Chosen {
            engine: Engine::describe_for_page(description.as_bytes(), None).unwrap(),
            description,
            standing: RefCell::new(EngineState::Untried),
            tried: Cell::new(None),
            doubted: Cell::new(false),
            under_way: RefCell::default(),
        };
        let after = |wait: Duration| Instant::START.after(wait);
        let second = Duration::from_secs(1);
        assert!(one.is_due(after(second)));
        one.tried.set(Some(Instant::START));
        for (standing, doubted, due) in [
            (EngineState::Good, false, None),
            (EngineState::Good, true, Some(AGAIN_AFTER_FAILURE)),
            (EngineState::Bad(String::new()), false, Some(AGAIN)),
        ] {
            one.standing.replace(standing);
            one.doubted.set(doubted);
            let due = due.unwrap_or(AGAIN * 100);
            assert!(!one.is_due(after(due.saturating_sub(second))));
            assert_eq!(one.is_due(after(due)), due != AGAIN * 100);
        }
    }

    #[test]
    fn what_may_be_the_engines_own_fault_casts_doubt_on_it() {
        use SearchRefusal::{EngineBlocked, EngineFailed, EngineTimedOut};

        for miss in [EngineBlocked(Block::Forbidden), EngineTimedOut, EngineFailed].map(EngineFailure::Refused) {
            assert!(miss.casts_doubt(), "{miss:?}");
        }
        assert!(EngineFailure::Unreadable.casts_doubt());
        assert!(!EngineFailure::Refused(SearchRefusal::BadRequest).casts_doubt());
    }
}
