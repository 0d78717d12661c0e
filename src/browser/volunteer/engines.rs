//! The engines that a volunteer has chosen to ask for others, and how they are asked.
//!
//! The address is built here from the engine's description and a client's words, as natively (`engine`); the request is the browser's
//! own `fetch` under CORS, without cookies, referrer or cache, and follows no redirect, for where it leads is not told. The
//! browser adds fields of its own: its name, and the site that the page is from. Engines are not trusted: time and length of what
//! they answer are capped. One that doesn't let pages read it isn't offered, and the volunteer is told. Nothing of a query is kept.

use core::{
    cell::{Cell, RefCell},
    net::IpAddr,
    time::Duration,
};
use std::rc::Rc;

use js_sys::Array;
use wasm_bindgen::{JsCast as _, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    AbortController, Headers, ReferrerPolicy, Request, RequestCache, RequestCredentials, RequestInit, RequestMode,
    RequestRedirect, Response, ResponseType,
};

use super::{Volunteer, VolunteerCore, exit::Asked};
use crate::{
    base::Instant,
    browser::{
        clock,
        directory::read_at_most,
        drive::Driver,
        failure::{Failure, Kind, object},
        js,
        slot::Bell,
    },
    delegated::{EngineName, MAX_ENGINES, SearchAnswer, SearchRefusal, SearchRequest, url::Url},
    engine::{self, Engine},
    exit::is_global,
};

/// For the engine, from the question to the end of its answer.
const LIMIT: Duration = Duration::from_secs(8);
/// Bytes of its answer. Less than natively: the page does nothing else while it reads one, and is to relay all the time.
const MOST: usize = 256 * 1024;
/// From one trial of an engine that didn't answer to the next, and of one that has failed a client at least.
const AGAIN: Duration = Duration::from_secs(10 * 60);
const AGAIN_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// What an engine is asked to see whether it lets this page read it.
const TRIAL: &str = "test";
const UNREADABLE: &str = "its answers can't be read from a web page: it doesn't allow that, or can't be reached";

/// An engine as it is chosen.
struct Chosen {
    engine: Engine,
    /// What it was made from.
    description: String,
    standing: RefCell<Standing>,
    /// When it was tried last.
    tried: Cell<Option<Instant>>,
    /// A client's question failed in a way that may be the engine's own.
    doubted: Cell<bool>,
    /// What it is being asked: no more than are let be at a time (`exit`), and a trial.
    under_way: RefCell<Vec<AbortController>>,
}

#[derive(Clone, PartialEq, Eq)]
enum Standing {
    /// Nobody has tried yet.
    Untried,
    /// It answers, so it is offered.
    Good,
    /// It doesn't, and why.
    Bad(String),
}

/// All of a volunteer's.
#[derive(Default)]
pub(super) struct Engines {
    /// In order of their names.
    chosen: RefCell<Vec<Rc<Chosen>>>,
    /// Rings when others are chosen, or one is to be tried.
    changed: Bell,
    /// The trial that is under way.
    trial: RefCell<Option<AbortController>>,
    /// Whether any is offered.
    pub(super) offers: Rc<Cell<bool>>,
    /// Rings when a client has asked something.
    pub(super) asked: Bell,
    /// Queries that had results.
    pub(super) answered: Cell<u32>,
    /// Bytes of queries and answers, and of what engines said, since the page began.
    pub(super) carried: Rc<Cell<u64>>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// The browser gives nothing of it: no CORS, no connection, no TLS, or the client has gone.
    Unreadable,
    Refused(SearchRefusal),
}

impl Miss {
    /// Whether it may be the engine's own, whatever it is asked.
    const fn casts_doubt(self) -> bool {
        use SearchRefusal::{EngineBlocked, EngineFailed, EngineTimedOut};

        matches!(self, Self::Unreadable | Self::Refused(EngineBlocked(_) | EngineTimedOut | EngineFailed))
    }
}

impl From<Miss> for SearchRefusal {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Unreadable => Self::EngineUnreachable,
            Miss::Refused(refusal) => refusal,
        }
    }
}

impl Engines {
    /// Chooses those of `descriptions`, called as `names` has it at the same place, instead of those before. One that stays is the same
    /// as before, also if it is being tried right now; what the others are being asked is given up.
    pub(super) fn choose(&self, names: &[String], descriptions: &[String]) -> Result<(), Failure> {
        let mut chosen: Vec<Rc<Chosen>> = Vec::new();
        for (name, description) in names.iter().zip(descriptions) {
            let engine = describe(name, description)?;
            let place = match chosen.binary_search_by(|other| other.engine.name().cmp(engine.name())) {
                Ok(_) => return Err(bad(format!("two search engines are called \"{name}\""))),
                Err(place) => place,
            };
            let one = Rc::new(Chosen {
                engine,
                description: description.clone(),
                standing: RefCell::new(Standing::Untried),
                tried: Cell::new(None),
                doubted: Cell::new(false),
                under_way: RefCell::default(),
            });
            chosen.insert(place, one);
        }
        if chosen.len() > MAX_ENGINES {
            return Err(bad(format!("more than {MAX_ENGINES} search engines")));
        }
        if let Ok(mut now) = self.chosen.try_borrow_mut() {
            let before = core::mem::take(&mut *now);
            for one in &mut chosen {
                // The same name may stand for another engine now.
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

    /// Those that are offered, in order of their names.
    pub(super) fn offered(&self) -> Vec<EngineName> {
        // They are kept in that order.
        self.all().iter().filter(|one| one.is_good()).map(|one| one.engine.name().clone()).collect()
    }

    /// Each with how it stands, for the page.
    pub(super) fn shown(&self) -> Array {
        let shown = self.all().into_iter().map(|one| {
            let (offered, why) = match one.standing() {
                Standing::Untried => (false, JsValue::UNDEFINED),
                Standing::Good => (true, JsValue::UNDEFINED),
                Standing::Bad(why) => (false, Failure::new(Kind::Engine, why).sentence.into()),
            };
            object(&[("name", one.engine.name().as_str().into()), ("offered", offered.into()), ("why", why)])
        });
        shown.collect()
    }

    fn all(&self) -> Vec<Rc<Chosen>> {
        self.chosen.try_borrow().map(|chosen| chosen.clone()).unwrap_or_default()
    }

    /// Whether it is chosen still.
    fn has(&self, one: &Rc<Chosen>) -> bool {
        self.all().iter().any(|other| Rc::ptr_eq(other, one))
    }

    /// Has those that failed be tried anew, as on another network they may not.
    pub(super) fn forgive(&self) {
        self.all().iter().filter(|one| !one.is_good()).for_each(|one| one.tried.set(None));
    }

    /// Gives the trial up that is under way.
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

/// Adds so many bytes.
pub(super) fn count(carried: &Cell<u64>, bytes: usize) {
    carried.set(carried.get().saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX)));
}

impl Chosen {
    fn is_good(&self) -> bool {
        self.standing() == Standing::Good
    }

    /// Gives up what it is being asked.
    fn give_up(&self) {
        self.under_way.take().iter().for_each(AbortController::abort);
    }

    /// What it says to `request`, unless that is given up before.
    async fn ask(
        &self,
        request: &SearchRequest,
        abort: &AbortController,
        carried: &Cell<u64>,
    ) -> Result<SearchAnswer, Miss> {
        if let Ok(mut under_way) = self.under_way.try_borrow_mut() {
            under_way.push(abort.clone());
        }
        let answer = ask(&self.engine, request, abort, carried).await;
        if let Ok(mut under_way) = self.under_way.try_borrow_mut() {
            under_way.retain(|other| other != abort);
        }
        answer
    }

    fn standing(&self) -> Standing {
        self.standing.try_borrow().map(|standing| standing.clone()).unwrap_or(Standing::Untried)
    }

    /// Whether it is due to be tried.
    fn is_due(&self, now: Instant) -> bool {
        let waits = match (self.is_good(), self.doubted.get()) {
            (true, false) => return false,
            (_, true) => AGAIN_AFTER_FAILURE,
            (false, false) => AGAIN,
        };
        self.tried.get().is_none_or(|tried| now.since(tried) >= waits)
    }
}

/// The engine of a description, if a page may ask it.
pub(in crate::browser) fn describe(name: &str, description: &str) -> Result<Engine, Failure> {
    let called = EngineName::parse(name)
        .ok_or_else(|| bad(format!("\"{name}\" is no name for a search engine: a-z, 0-9 and -, at most 32")))?;
    let engine = Engine::describe_for_page(description.as_bytes(), Some(called))
        .map_err(|error| bad(format!("the description of \"{name}\" can't be used: {error}")))?;
    // Or whoever describes engines to a page could have a visitor's browser ask the visitor's own network.
    if !is_local(&js::own_host()) && engine.origins().iter().any(|origin| is_local(&host(origin))) {
        return Err(bad(format!("the search engine \"{name}\" is at an address of your own machine or network")));
    }
    Ok(engine)
}

fn host(origin: &str) -> String {
    Url::parse(origin).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

/// Ends of names that networks give themselves: RFC 6761, RFC 6762 with its appendix G, RFC 8375, ICANN's `internal`, and one that
/// routers have.
const OWN_NAMES: [&str; 11] = [
    "localhost",
    "local",
    "internal",
    "home.arpa",
    "lan",
    "home",
    "intranet",
    "private",
    "corp",
    "localdomain",
    "fritz.box",
];

/// Whether `host`, as browsers write it, is of this machine or its network as far as its name tells: where a name leads, no page
/// is told.
fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches([']', '.']);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return !is_global(ip);
    }
    let within = |end: &&str| bare.strip_suffix(*end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !bare.is_empty() && !bare.contains('.') || OWN_NAMES.iter().any(within)
}

fn bad(words: String) -> Failure {
    Failure::new(Kind::BadInput, words)
}

/// Tries those that are chosen, and again those that failed, while `wanted`.
pub(super) async fn keep(volunteer: Rc<Volunteer>, wanted: impl Fn() -> bool) {
    while wanted() {
        let heard = volunteer.engines.changed.times();
        for one in volunteer.engines.all() {
            // Others may have been chosen while the one before was tried.
            if wanted() && volunteer.engines.has(&one) && one.is_due(clock::now()) {
                try_out(&volunteer, &one).await;
            }
        }
        clock::within(AGAIN_AFTER_FAILURE, volunteer.engines.changed.after(heard)).await;
    }
}

async fn try_out(volunteer: &Volunteer, one: &Chosen) {
    let before = (one.tried.replace(Some(clock::now())), one.doubted.replace(false));
    let request = SearchRequest::new(one.engine.name().clone(), TRIAL, 1, None);
    let (Ok(request), Ok(abort)) = (request, AbortController::new()) else { return };
    volunteer.engines.trial.replace(Some(abort.clone()));
    let standing = match one.ask(&request, &abort, &volunteer.engines.carried).await {
        Ok(_) => Standing::Good,
        // Given up: it says nothing of the engine.
        Err(Miss::Unreadable) if abort.signal().aborted() => {
            one.tried.set(before.0);
            return one.doubted.set(before.1);
        }
        Err(Miss::Unreadable) => Standing::Bad(UNREADABLE.to_owned()),
        Err(Miss::Refused(refusal)) => Standing::Bad(refusal.to_string()),
    };
    if one.standing.replace(standing.clone()) != standing {
        volunteer.engines.note();
        volunteer.changed.ring();
        volunteer.tell();
    }
}

/// Asks what clients ask, until `driver` stops.
pub(super) async fn serve(volunteer: Rc<Volunteer>, driver: Driver<VolunteerCore>) {
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

impl Engines {
    async fn answer(&self, asked: Asked) -> SearchAnswer {
        let Asked { request, abort, .. } = asked;
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
                // It may not let itself be read any more, or keep this exit out. A client's odd question proves nothing, so it is tried.
                let given_up = miss == Miss::Unreadable && abort.signal().aborted();
                if miss.casts_doubt() && !given_up {
                    one.doubted.set(true);
                    self.changed.ring();
                }
                SearchAnswer::Refused(miss.into())
            }
        }
    }
}

/// What `engine` says to `request`; its length is added to `carried`.
async fn ask(
    engine: &Engine,
    request: &SearchRequest,
    abort: &AbortController,
    carried: &Cell<u64>,
) -> Result<SearchAnswer, Miss> {
    if engine.lacks_page(request.page()) {
        return Ok(SearchAnswer::Results { results: Vec::new(), total: None, more: false });
    }
    let asked = clock::within(LIMIT, fetch(engine, request, abort, carried)).await;
    let (url, status, body) = asked.unwrap_or_else(|| {
        abort.abort();
        Err(Miss::Refused(SearchRefusal::EngineTimedOut))
    })?;
    match engine.read(request, &engine::Response { url: &url, status, body: &body }) {
        SearchAnswer::Refused(refusal) => Err(Miss::Refused(refusal)),
        results => Ok(results),
    }
}

/// What the engine answers, from where.
async fn fetch(
    engine: &Engine,
    request: &SearchRequest,
    abort: &AbortController,
    carried: &Cell<u64>,
) -> Result<(Url, u16, Vec<u8>), Miss> {
    let unreadable = |_| Miss::Unreadable;
    let question = engine.question(request).ok_or(Miss::Refused(SearchRefusal::BadRequest))?;
    let prepared = prepare(&question, abort).map_err(unreadable)?;
    let response = JsFuture::from(js::fetch(&prepared)).await.map_err(unreadable)?;
    let response: Response = response.dyn_into().map_err(unreadable)?;
    if response.type_() == ResponseType::Opaqueredirect {
        return Err(Miss::Refused(SearchRefusal::EngineRedirected));
    }
    let body = read_at_most(&response, MOST).await.map_err(unreadable)?;
    count(carried, body.as_ref().map_or(MOST, Vec::len));
    let body = body.ok_or(Miss::Refused(SearchRefusal::EngineTooLarge))?;
    Ok((question.url, response.status(), body))
}

fn prepare(question: &engine::Question, abort: &AbortController) -> Result<Request, JsValue> {
    let (options, headers) = (RequestInit::new(), Headers::new()?);
    // The two that any page may set without asking first.
    headers.set("accept", question.accept)?;
    headers.set("accept-language", &question.accept_language)?;
    options.set_headers(&headers);
    options.set_method("GET");
    options.set_mode(RequestMode::Cors);
    options.set_credentials(RequestCredentials::Omit);
    options.set_redirect(RequestRedirect::Manual);
    options.set_referrer_policy(ReferrerPolicy::NoReferrer);
    options.set_cache(RequestCache::NoStore);
    options.set_signal(Some(&abort.signal()));
    Request::new_with_str_and_init(question.url.as_str(), &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_asks_no_engine_of_the_visitors_own_network() {
        for host in [
            "localhost",
            "a.localhost",
            "printer.local",
            "router",
            "router.",
            "nas.lan",
            "fritz.box",
            "wiki.home.arpa",
            "search.internal",
            "local",
            "127.0.0.1",
            "192.168.1.1",
            "10.0.0.1",
            "169.254.169.254",
            "[::1]",
            "[fe80::1]",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in ["engine.example", "localhost.example", "notfritz.box", "1.1.1.1", "[2606:4700::1111]", ""] {
            assert!(!is_local(host), "{host}");
        }
        assert_eq!(host("http://127.0.0.1:8080"), "127.0.0.1");
        assert_eq!(host("https://[::1]"), "[::1]");
    }
}
