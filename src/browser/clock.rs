//! The page's two clocks, and waiting by them.

use core::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use wasm_bindgen::{JsCast as _, closure::Closure};

use super::{js, slot};
use crate::base::{Instant, WallTime};

/// A browser's timers hold 31 bits of milliseconds; what is later than this is waited for in steps.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Monotonic time since the page began.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is never negative")]
pub(super) fn now() -> Instant {
    Instant::from_nanos((js::performance_now() * 1e6) as u64)
}

/// The time of the machine's clock.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates; before 1970 gives 1970")]
pub(super) fn wall_time() -> WallTime {
    WallTime::from_unix((js::date_now() / 1e3) as u64)
}

/// A timer of the browser's; dropping it stops it.
pub(super) struct Timer {
    id: f64,
    _callback: Closure<dyn FnMut()>,
}

impl Timer {
    /// Calls `callback` once after `delay`, a hidden page's perhaps much later.
    pub(super) fn start(delay: Duration, callback: impl FnMut() + 'static) -> Self {
        let callback = Closure::new(callback);
        // Rounded up, or it would fire before the time and again.
        let milliseconds = (delay.min(LONGEST).as_secs_f64() * 1e3).ceil();
        let id = js::set_timeout(callback.as_ref().unchecked_ref(), milliseconds);
        Self { id, _callback: callback }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        js::clear_timeout(self.id);
    }
}

/// Waits for `delay`.
pub(super) async fn sleep(delay: Duration) {
    let (mut reply, answer) = slot::slot();
    let timer = Timer::start(delay, move || reply.give(()));
    answer.await;
    drop(timer);
}

/// What `future` gives, or `None` if it takes longer than `limit`.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut over) = (pin!(future), pin!(sleep(limit)));
    poll_fn(|cx| match (future.as_mut().poll(cx), over.as_mut().poll(cx)) {
        (Poll::Ready(value), _) => Poll::Ready(Some(value)),
        (Poll::Pending, Poll::Ready(())) => Poll::Ready(None),
        (Poll::Pending, Poll::Pending) => Poll::Pending,
    })
    .await
}
