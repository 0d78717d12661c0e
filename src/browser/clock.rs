//! Monotonic clock, wall clock and timers of a page.

use core::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use wasm_bindgen::{JsCast as _, closure::Closure};

use super::{js, sync};
use crate::base::{Instant, WallTime};

/// Maximum delay of one timer. Browsers limit a timer to 2^31 milliseconds; a later deadline takes several timers.
const MAX_TIMER_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Monotonic time since the page was loaded.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is never negative")]
pub(super) fn now() -> Instant {
    Instant::from_nanos((js::performance_now() * 1e6) as u64)
}

/// The wall-clock time of the machine.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; dates before 1970 become 1970")]
pub(super) fn wall_time() -> WallTime {
    WallTime::from_unix((js::date_now() / 1e3) as u64)
}

/// A timer of the browser; a drop stops the timer.
pub(super) struct Timer {
    id: f64,
    _callback: Closure<dyn FnMut()>,
}

impl Timer {
    /// Calls `callback` once after `delay`, at most [`MAX_TIMER_DELAY`]; in a hidden page, the call may be much later.
    pub(super) fn start(delay: Duration, callback: impl FnMut() + 'static) -> Self {
        let callback = Closure::new(callback);
        // Rounded up, because a timer that fires before the deadline must be started again.
        let milliseconds = (delay.min(MAX_TIMER_DELAY).as_secs_f64() * 1e3).ceil();
        let id = js::set_timeout(callback.as_ref().unchecked_ref(), milliseconds);
        Self { id, _callback: callback }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        js::clear_timeout(self.id);
    }
}

/// Waits for `delay`, at most [`MAX_TIMER_DELAY`].
pub(super) async fn sleep(delay: Duration) {
    let (mut reply, answer) = sync::oneshot();
    let timer = Timer::start(delay, move || reply.send(()));
    answer.await;
    drop(timer);
}

/// The output of `future`; `None` if `future` takes longer than `limit`, at most [`MAX_TIMER_DELAY`].
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut timeout) = (pin!(future), pin!(sleep(limit)));
    poll_fn(|cx| match (future.as_mut().poll(cx), timeout.as_mut().poll(cx)) {
        (Poll::Ready(value), _) => Poll::Ready(Some(value)),
        (Poll::Pending, Poll::Ready(())) => Poll::Ready(None),
        (Poll::Pending, Poll::Pending) => Poll::Pending,
    })
    .await
}
