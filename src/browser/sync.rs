//! Synchronisation between the loop and futures: a one-shot channel ([`oneshot()`]), and [`Notify`] for repeated
//! events.

use core::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
};
use std::rc::Rc;

struct OneshotState<T> {
    value: Cell<Option<T>>,
    sender_dropped: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// The sending end of a one-shot channel.
pub(super) struct OneshotSender<T>(Rc<OneshotState<T>>);

/// The receiving end of a one-shot channel: a future of the value, `None` if the sending end was dropped without a
/// value.
pub(super) struct OneshotReceiver<T>(Rc<OneshotState<T>>);

/// Creates a one-shot channel and returns both ends.
pub(super) fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let shared =
        Rc::new(OneshotState { value: Cell::new(None), sender_dropped: Cell::new(false), waker: Cell::new(None) });
    (OneshotSender(Rc::clone(&shared)), OneshotReceiver(shared))
}

impl<T> OneshotSender<T> {
    /// Sends `value`, which replaces an earlier value that was not received.
    pub(super) fn send(&mut self, value: T) {
        self.0.value.set(Some(value));
        self.0.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        self.0.sender_dropped.set(true);
        self.0.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.0.value.take() {
            Some(value) => Poll::Ready(Some(value)),
            None if self.0.sender_dropped.get() => Poll::Ready(None),
            None => {
                self.0.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// Counts notifications without a value. Each notification wakes all waiting futures.
#[derive(Clone, Default)]
pub(super) struct Notify(Rc<NotifyState>);

#[derive(Default)]
struct NotifyState {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Counts a notification, and wakes all waiting futures.
    pub(super) fn notify(&self) {
        self.0.count.set(self.0.count.get().wrapping_add(1));
        let waiting = self.0.waiting.try_borrow_mut().map(|mut waiting| core::mem::take(&mut *waiting));
        waiting.unwrap_or_default().into_iter().for_each(Waker::wake);
    }

    /// The number of notifications so far.
    pub(super) fn count(&self) -> u64 {
        self.0.count.get()
    }

    /// Waits until the number of notifications differs from `seen`.
    pub(super) async fn notified_since(&self, seen: u64) {
        poll_fn(|cx| {
            if self.count() != seen {
                return Poll::Ready(());
            }
            if let Ok(mut waiting) = self.0.waiting.try_borrow_mut()
                && !waiting.iter().any(|waker| waker.will_wake(cx.waker()))
            {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
