//! The event loop that joins a protocol core with the browser's data channels.
//!
//! [`PageDrive`] owns core and data channels. A callback of the browser only records its event and posts a message to the
//! loop. The loop runs after the events that are already queued, so a burst costs one turn. Browsers throttle the timers
//! of a hidden page, but not its messages, so timers serve deadlines only. No script of the page runs during a turn, so
//! no call is re-entrant.

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
    base::Instant,
    transport::{
        Driven,
        browser::{BrowserCaps, BrowserEndpoint},
        drain, next_turn, turn,
    },
};

/// A handle of a driven machine and its transport. A drop of the last clone closes the links. [`Driven::deliver`] must
/// not call into the page.
pub(super) struct PageDrive<D>(Rc<PageDriveShared<D>>);

impl<D> Clone for PageDrive<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct PageDriveShared<D> {
    state: RefCell<PageDriveState<D>>,
    waker: Rc<LoopWaker>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
}

struct PageDriveState<D> {
    driven: D,
    endpoint: BrowserEndpoint,
    rng: StdRng,
    /// The time at which the timer fires, and the timer.
    timer: Option<(Instant, Timer)>,
    stopped: bool,
}

/// Schedules a turn of the loop by posting a message.
struct LoopWaker {
    port: MessagePort,
    receiver: MessagePort,
    /// Whether a message is posted and its turn has not begun.
    posted: Cell<bool>,
}

impl LoopWaker {
    fn wake(&self) {
        if !self.posted.replace(true) {
            // Posting fails only for a closed port, when the loop has stopped.
            let _ = self.port.post_message(&JsValue::NULL);
        }
    }
}

impl Drop for LoopWaker {
    fn drop(&mut self) {
        self.receiver.set_onmessage(None);
        self.port.close();
        self.receiver.close();
    }
}

impl<D: Driven + 'static> PageDrive<D> {
    /// Joins `driven` with a transport that presents `certificate`, or a fresh one on each dial.
    pub(super) fn start(
        driven: D,
        caps: BrowserCaps,
        certificate: Option<RtcCertificate>,
        rng: StdRng,
    ) -> Result<Self, JsValue> {
        let channel = MessageChannel::new()?;
        let waker = Rc::new(LoopWaker { port: channel.port1(), receiver: channel.port2(), posted: Cell::new(false) });
        let wake = {
            let waker = Rc::clone(&waker);
            Rc::new(move || waker.wake())
        };
        let endpoint = BrowserEndpoint::new(caps, certificate, wake);
        let shared = Rc::new_cyclic(|weak: &Weak<PageDriveShared<D>>| {
            let on_message = Closure::new({
                let weak = Weak::clone(weak);
                move |_: MessageEvent| run_turn(&weak)
            });
            waker.receiver.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
            let state = RefCell::new(PageDriveState { driven, endpoint, rng, timer: None, stopped: false });
            PageDriveShared { state, waker: Rc::clone(&waker), _on_message: on_message }
        });
        Ok(Self(shared))
    }

    /// Calls `action` with the driven machine, then schedules a turn of the loop. Returns `None` after a stop.
    pub(super) fn with<T>(&self, action: impl FnOnce(&mut D, Instant, &mut StdRng) -> T) -> Option<T> {
        let mut state = self.0.state.try_borrow_mut().ok()?;
        if state.stopped {
            return None;
        }
        let PageDriveState { driven, rng, .. } = &mut *state;
        let done = action(driven, clock::now(), rng);
        self.0.waker.wake();
        Some(done)
    }

    /// Limits the average sending rate to `bytes_per_second` bytes per second; `None` removes the limit.
    pub(super) fn set_rate(&self, bytes_per_second: Option<u64>) {
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.endpoint.set_rate(clock::now(), bytes_per_second);
            self.0.waker.wake();
        }
    }

    /// Notifies the neighbours. The browser has the output when this function returns.
    pub(super) fn shut_down(&self) {
        if let Ok(mut state) = self.0.state.try_borrow_mut()
            && !state.stopped
        {
            let now = clock::now();
            let PageDriveState { driven, endpoint, rng, .. } = &mut *state;
            driven.shut_down(now);
            drain(now, driven, endpoint, rng);
        }
    }

    /// The number of links, including dials.
    pub(super) fn links(&self) -> usize {
        self.0.state.try_borrow().map_or(0, |state| state.endpoint.len())
    }

    /// Notifies the neighbours, closes all links and stops the loop.
    pub(super) fn stop(&self) {
        self.shut_down();
        if let Ok(mut state) = self.0.state.try_borrow_mut() {
            state.stopped = true;
            state.timer = None;
            state.endpoint.close_all();
        }
    }

    /// Whether the loop has stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.0.state.try_borrow().is_ok_and(|state| state.stopped)
    }
}

/// One turn of the loop.
fn run_turn<D: Driven>(shared: &Weak<PageDriveShared<D>>) {
    let Some(shared) = shared.upgrade() else { return };
    shared.waker.posted.set(false);
    let Ok(mut state) = shared.state.try_borrow_mut() else { return };
    if state.stopped {
        return;
    }
    let now = clock::now();
    let PageDriveState { driven, endpoint, rng, timer, .. } = &mut *state;
    endpoint.take(now);
    turn(now, driven, endpoint, rng);
    // A timer that fires before the next deadline is harmless, so it is kept.
    if let Some(due) = next_turn(driven, endpoint)
        && timer.as_ref().is_none_or(|(fires, _)| due < *fires || *fires <= now)
    {
        let waker = Rc::clone(&shared.waker);
        *timer = Some((due, Timer::start(due.since(now), move || waker.wake())));
    }
}

/// A random number generator seeded by the browser.
pub(super) fn randomness() -> Result<StdRng, JsValue> {
    StdRng::try_from_rng(&mut SysRng).map_err(|_| JsValue::from_str("the browser returned no randomness"))
}
