//! Streams to targets that wait for the next request of the same application's connection.
//!
//! A stream is reused only for the target and the isolation for which it was opened.

use core::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use tokio::{
    io::{AsyncBufRead as _, AsyncWriteExt as _},
    time::{Instant, sleep_until, timeout},
};

use crate::{connector::Isolation, io::stream::Stream, wire::Target};

/// Cap on waiting streams of one application's connection.
const MAX_WAITING: usize = 4;
/// Time after which a waiting stream is closed. The next request opens another.
const WAITING_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait after which a request that can't be sent twice is sent over the stream. A target that closes the stream
/// simultaneously would lose the request.
const SURELY_OPEN: Duration = Duration::from_secs(1);
/// Time limit for the end of the target's bytes once this end has finished a stream.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

struct WaitingStream {
    target: Target,
    isolation: Isolation,
    stream: Stream,
    since: Instant,
}

/// The waiting streams of one application's connection, oldest first.
#[derive(Default)]
pub(super) struct WaitingStreams(Vec<WaitingStream>);

impl WaitingStreams {
    /// Keeps a stream whose last response is complete. Beyond the cap, finishes the oldest.
    pub(super) fn insert(&mut self, target: Target, isolation: Isolation, stream: Stream) {
        if self.0.len() >= MAX_WAITING {
            finish(self.0.remove(0).stream);
        }
        self.0.push(WaitingStream { target, isolation, stream, since: Instant::now() });
    }

    /// Takes the stream to `target`. A request that `is_repeatable` can be sent again if the target has closed the stream.
    pub(super) fn take(&mut self, target: &Target, isolation: Isolation, is_repeatable: bool) -> Option<Stream> {
        let index = self.0.iter().position(|waiting| waiting.target == *target && waiting.isolation == isolation)?;
        let waiting = self.0.remove(index);
        if is_repeatable || waiting.since.elapsed() <= SURELY_OPEN {
            return Some(waiting.stream);
        }
        finish(waiting.stream);
        None
    }

    /// Waits until a stream is useless, because it has ended, has bytes without a request or has waited too long, and
    /// removes it. Never completes without streams.
    pub(super) async fn remove_useless(&mut self) {
        let Some(oldest) = self.0.first() else { return core::future::pending().await };
        let deadline = oldest.since.checked_add(WAITING_TIMEOUT).unwrap_or(oldest.since);
        let useless = poll_fn(|cx| {
            let index =
                self.0.iter_mut().position(|waiting| Pin::new(&mut waiting.stream).poll_fill_buf(cx).is_ready());
            index.map_or(Poll::Pending, Poll::Ready)
        });
        let index = tokio::select! {
            index = useless => index,
            () = sleep_until(deadline) => 0,
        };
        finish(self.0.remove(index).stream);
    }

    /// Finishes all streams.
    pub(super) fn finish(self) {
        self.0.into_iter().for_each(|waiting| finish(waiting.stream));
    }
}

/// Ends a stream without a reset, unless the target doesn't end it too within [`FINISH_TIMEOUT`]. Discards further bytes
/// of the target.
pub(super) fn finish(mut stream: Stream) {
    tokio::spawn(async move {
        // An error means that the stream has ended.
        let _ = stream.shutdown().await;
        let _ = timeout(FINISH_TIMEOUT, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
    });
}
