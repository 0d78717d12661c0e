//! The loop that joins a protocol core with the browser's data channels.
//!
//! [`Driver`] owns both. What the browser calls back is noted and the loop woken by a message to itself: that comes after
//! what else has arrived meanwhile, so a burst costs one turn, and unlike a timer it isn't slowed in a hidden page. Timers
//! are set only for deadlines. Nothing outside runs during a turn, so nothing can call back into it.

use core::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use rand::{
    SeedableRng as _,
    rngs::{StdRng, SysRng},
};
use wasm_bindgen::{JsCast as _, JsValue, closure::Closure};
use web_sys::{MessageChannel, MessageEvent, MessagePort, RtcCertificate};

use super::clock::{self, Timer};
use crate::{
    base::{Instant, LinkMachine},
    transport::{
        Transport as _,
        browser::{Caps, Endpoint},
        settle,
    },
};

/// A protocol core with what it tells the page.
pub(super) trait Core: LinkMachine + 'static {
    /// Hands on what the core has to tell; says whether there was anything. Must not call into the page.
    fn deliver(&mut self, now: Instant) -> bool;

    /// Says what its neighbours should know before its links close.
    fn hang_up(&mut self, _now: Instant) {}
}

/// A core and its transport. Cheap to clone; when the last clone goes, its links close.
pub(super) struct Driver<C>(Rc<Shared<C>>);

impl<C> Clone for Driver<C> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Shared<C> {
    state: RefCell<State<C>>,
    ticker: Rc<Ticker>,
    _on_tick: Closure<dyn FnMut(MessageEvent)>,
}

struct State<C> {
    core: C,
    endpoint: Endpoint,
    rng: StdRng,
    /// When it fires, and the timer.
    timer: Option<(Instant, Timer)>,
    stopped: bool,
}

/// A message to ourselves.
struct Ticker {
    port: MessagePort,
    other: MessagePort,
    due: Cell<bool>,
}

impl Ticker {
    fn wake(&self) {
        if !self.due.replace(true) {
            // It fails for a closed port only: then nothing runs any more.
            let _ = self.port.post_message(&JsValue::NULL);
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.other.set_onmessage(None);
        self.port.close();
        self.other.close();
    }
}

impl<C: Core> Driver<C> {
    /// Joins `core` with a transport that shows `certificate`, or a fresh one on each dial.
    pub(super) fn start(
        core: C,
        caps: Caps,
        certificate: Option<RtcCertificate>,
        rng: StdRng,
    ) -> Result<Self, JsValue> {
        let channel = MessageChannel::new()?;
        let ticker = Rc::new(Ticker { port: channel.port1(), other: channel.port2(), due: Cell::new(false) });
        let wake = {
            let ticker = Rc::clone(&ticker);
            Rc::new(move || ticker.wake())
        };
        let endpoint = Endpoint::new(caps, certificate, wake);
        let shared = Rc::new_cyclic(|weak: &Weak<Shared<C>>| {
            let on_tick = Closure::new({
                let weak = Weak::clone(weak);
                move |_: MessageEvent| turn(&weak)
            });
            ticker.other.set_onmessage(Some(on_tick.as_ref().unchecked_ref()));
            let state = RefCell::new(State { core, endpoint, rng, timer: None, stopped: false });
            Shared { state, ticker: Rc::clone(&ticker), _on_tick: on_tick }
        });
        Ok(Self(shared))
    }

    /// Does something with the core, after which the loop has a turn. `None` if it has stopped.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut C, Instant, &mut StdRng) -> T) -> Option<T> {
        let mut state = self.0.state.try_borrow_mut().ok()?;
        if state.stopped {
            return None;
        }
        let State { core, rng, .. } = &mut *state;
        let done = act(core, clock::now(), rng);
        self.0.ticker.wake();
        Some(done)
    }

    /// Sends no more than so many bytes a second in the long run, or as much as there is.
    pub(super) fn set_rate(&self, a_second: Option<u64>) {
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.endpoint.set_rate(clock::now(), a_second);
            self.0.ticker.wake();
        }
    }

    /// Has the core say what its neighbours should know, and hands that to the browser before it returns.
    pub(super) fn hang_up(&self) {
        if let Ok(mut state) = self.0.state.try_borrow_mut()
            && !state.stopped
        {
            let now = clock::now();
            state.core.hang_up(now);
            state.settle(now);
        }
    }

    /// How many links there are, dials included.
    pub(super) fn links(&self) -> usize {
        self.0.state.try_borrow().map_or(0, |state| state.endpoint.len())
    }

    /// Hangs up, closes all links at once and does nothing more.
    pub(super) fn stop(&self) {
        self.hang_up();
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.stopped = true;
            state.timer = None;
            state.endpoint.close_all();
        }
    }

    /// Whether it has been stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.0.state.try_borrow().is_ok_and(|state| state.stopped)
    }
}

/// A turn of the loop.
fn turn<C: Core>(shared: &Weak<Shared<C>>) {
    let Some(shared) = shared.upgrade() else { return };
    shared.ticker.due.set(false);
    let Ok(mut state) = shared.state.try_borrow_mut() else { return };
    if state.stopped {
        return;
    }
    let now = clock::now();
    state.do_what_is_due(now);
    state.settle(now);
    let State { core, endpoint, timer, .. } = &mut *state;
    let due = [core.poll_timeout(), endpoint.poll_timeout()].into_iter().flatten().min();
    // One that is set too early does no harm.
    if let Some(due) = due
        && timer.as_ref().is_none_or(|(fires, _)| due < *fires || *fires <= now)
    {
        let ticker = Rc::clone(&shared.ticker);
        *timer = Some((due, Timer::start(due.since(now), move || ticker.wake())));
    }
}

impl<C: Core> State<C> {
    fn do_what_is_due(&mut self, now: Instant) {
        self.endpoint.take(now);
        if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now);
        }
        if self.core.poll_timeout().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now, &mut self.rng);
        }
    }

    /// Lets core and transport talk until neither has anything more to say.
    fn settle(&mut self, now: Instant) {
        loop {
            settle(now, &mut self.core, &mut self.endpoint, &mut self.rng);
            if !self.core.deliver(now) {
                return;
            }
        }
    }
}

/// A generator seeded by the browser.
pub(super) fn randomness() -> Result<StdRng, JsValue> {
    StdRng::try_from_rng(&mut SysRng).map_err(|_| JsValue::from_str("the browser gives no randomness"))
}
