//! The TCP receive window of a socket whose stream is slower than its sender.
//!
//! Linux offers a sender a window of up to several megabytes. A sender that is faster than the circuit fills it, and with it
//! the queue of this machine's line, in which the cells of all circuits wait. So the window is limited to what the
//! stream takes in one and a half round trips to the sender. The limit ends when the socket becomes the slower side.
//!
//! TCP_WINDOW_CLAMP limits only bytes in flight. It causes no loss, because the kernel never withdraws an offered window
//! (RFC 9293 §3.8.6). Linux 5.15 to 6.6 never open a window again that was zero when its limit was set; so older kernels
//! than 6.7 have no limit.

use core::time::Duration;
use std::sync::LazyLock;

use nix::{errno::Errno, getsockopt_impl, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use tokio::{net::TcpStream, time::Instant};

sockopt_impl!(WindowClamp, Both, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, usize);

/// The least time from one adjustment of the limit to the next.
const INTERVAL: Duration = Duration::from_millis(250);
/// Time for which the stream is the slower side before the first limit. It doubles with each limit that made the socket
/// the slower side: then the round trip is longer than the handshake's.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// A wait of this length is a pause of the target or of the origin, and shows nothing about the window.
const PAUSE: Duration = Duration::from_secs(1);
/// Least round trip: on shorter ones the scheduler of a loaded machine delays more.
const LEAST_ROUND_TRIP: Duration = Duration::from_millis(20);
/// Least limit in bytes: about the initial window of TCP.
const LEAST: usize = 16 * 1024;
/// No limit: the greatest window of TCP (RFC 7323).
const UNLIMITED: usize = 1 << 30;

/// Whether the kernel is Linux 6.7 or later.
static SUPPORTED: LazyLock<bool> = LazyLock::new(|| {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    is_supported(&release)
});

fn is_supported(release: &str) -> bool {
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit()).map_while(|number| number.parse().ok());
    let version: Option<(u32, u32)> = numbers.next().zip(numbers.next());
    version.is_some_and(|version| version >= (6, 7))
}

/// Limits the window from the waits on both sides.
///
/// Drive it by [`Self::handle_room`] when the stream has room for bytes, then [`Self::handle_bytes`] when the socket has some.
pub(super) struct ReceiveWindow {
    /// To the sender, as the connection's handshake measured it.
    round_trip: Duration,
    /// Start of the interval, and of the current wait.
    began: Instant,
    since: Instant,
    /// Bytes read in the interval.
    bytes: usize,
    /// Time without bytes in the socket. In the rest of the interval the stream had no room.
    starved: Duration,
    /// One of the waits was a pause.
    paused: bool,
    /// Time for which the stream has been the slower side, and the time after which the window is limited.
    slower: Duration,
    delay: Duration,
    limited: bool,
}

impl ReceiveWindow {
    /// None where the kernel doesn't support the limit.
    pub(super) fn new(now: Instant, round_trip: Duration) -> Option<Self> {
        SUPPORTED.then(|| Self {
            round_trip: round_trip.max(LEAST_ROUND_TRIP),
            began: now,
            since: now,
            bytes: 0,
            starved: Duration::ZERO,
            paused: false,
            slower: Duration::ZERO,
            delay: FIRST_DELAY,
            limited: false,
        })
    }

    /// The stream had no room until now.
    pub(super) fn handle_room(&mut self, now: Instant, socket: &TcpStream) {
        self.end_wait(now);
        let elapsed = now.duration_since(self.began);
        if elapsed >= INTERVAL {
            // Best effort: without the limit only the queue is longer.
            let _ = self.end_interval(elapsed, socket);
            (self.began, self.bytes, self.starved, self.paused) = (now, 0, Duration::ZERO, false);
        }
    }

    /// The socket had no bytes until now.
    pub(super) fn handle_bytes(&mut self, now: Instant, bytes: usize) {
        let wait = self.end_wait(now);
        self.starved = self.starved.saturating_add(wait);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn end_wait(&mut self, now: Instant) -> Duration {
        let wait = now.duration_since(core::mem::replace(&mut self.since, now));
        self.paused |= wait >= PAUSE;
        wait
    }

    fn end_interval(&mut self, elapsed: Duration, socket: &TcpStream) -> Result<(), Errno> {
        if self.paused || self.starved.saturating_mul(8) > elapsed {
            self.slower = Duration::ZERO;
            if core::mem::take(&mut self.limited) {
                if !self.paused {
                    self.delay = self.delay.saturating_mul(2);
                }
                setsockopt(socket, WindowClamp, &UNLIMITED)?;
            }
            return Ok(());
        }
        self.slower = self.slower.saturating_add(elapsed);
        if self.slower < self.delay {
            return Ok(());
        }
        // What arrives in one and a half round trips.
        let product = (self.bytes as u128).saturating_mul(self.round_trip.saturating_mul(3).as_nanos());
        let limit = product.checked_div(elapsed.saturating_mul(2).as_nanos()).unwrap_or(0);
        let limit = usize::try_from(limit).unwrap_or(UNLIMITED).clamp(LEAST, UNLIMITED);
        self.limited = true;
        setsockopt(socket, WindowClamp, &limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    /// Intervals in which the stream takes `bytes` each and has no room otherwise.
    fn block(window: &mut ReceiveWindow, socket: &TcpStream, now: &mut Instant, intervals: u32, bytes: usize) {
        for _ in 0..intervals {
            window.handle_bytes(*now, bytes);
            *now += INTERVAL;
            window.handle_room(*now, socket);
        }
    }

    /// An interval in which the socket has no bytes for a quarter of the time.
    fn starve(window: &mut ReceiveWindow, socket: &TcpStream, now: &mut Instant) {
        *now += INTERVAL / 4;
        window.handle_bytes(*now, 1000);
        *now += INTERVAL * 3 / 4;
        window.handle_room(*now, socket);
    }

    #[tokio::test]
    async fn a_slow_stream_limits_the_window_until_the_socket_is_the_slower_side() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let limit = || getsockopt(&socket, WindowClamp).unwrap();
        let before = limit();
        let mut now = Instant::now();
        let Some(mut window) = ReceiveWindow::new(now, Duration::from_millis(100)) else { return };

        block(&mut window, &socket, &mut now, 3, 1000);
        assert_eq!(limit(), before, "the start of a stream is limited");
        block(&mut window, &socket, &mut now, 1, 1000);
        assert_eq!(limit(), LEAST);
        block(&mut window, &socket, &mut now, 1, 50_000);
        assert_eq!(limit(), 30_000, "the limit doesn't follow the rate");
        starve(&mut window, &socket, &mut now);
        assert_eq!(limit(), UNLIMITED);

        block(&mut window, &socket, &mut now, 7, 1000);
        assert_eq!(limit(), UNLIMITED, "a limit that was too small is reached again as soon as the first");
        block(&mut window, &socket, &mut now, 1, 1000);
        assert_eq!(limit(), LEAST);
    }

    #[tokio::test]
    async fn a_pause_of_either_side_ends_the_limit_and_does_not_delay_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let limit = || getsockopt(&socket, WindowClamp).unwrap();
        let mut now = Instant::now();
        let Some(mut window) = ReceiveWindow::new(now, Duration::from_millis(100)) else { return };
        for origin in [true, false] {
            block(&mut window, &socket, &mut now, 4, 1000);
            assert_eq!(limit(), LEAST);
            window.handle_bytes(if origin { now } else { now + PAUSE }, 1000);
            now += PAUSE;
            window.handle_room(now, &socket);
            assert_eq!(limit(), UNLIMITED);
        }
    }

    #[tokio::test]
    async fn a_window_that_was_zero_when_it_was_limited_opens_again() {
        use tokio::io::AsyncWriteExt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (socket, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async {
            listener.accept().await.unwrap()
        });
        let (socket, mut sender) = (socket.unwrap(), accepted.0);
        let mut now = Instant::now();
        let Some(mut window) = ReceiveWindow::new(now, Duration::from_millis(100)) else { return };
        let block_of_bytes = vec![0; 1 << 20];
        // Fills both buffers.
        let mut sent = 0;
        while let Ok(Ok(written)) = tokio::time::timeout(INTERVAL, sender.write(&block_of_bytes)).await {
            sent += written;
        }
        block(&mut window, &socket, &mut now, 5, 1000);
        assert!(window.limited);
        let more = 8 << 20;
        let sending = tokio::spawn(async move { sender.write_all(&vec![0; more]).await });
        let mut received = 0;
        let mut bytes = vec![0; 1 << 16];
        while received < sent + more {
            tokio::time::timeout(Duration::from_secs(20), socket.readable()).await.unwrap().unwrap();
            received += socket.try_read(&mut bytes).unwrap_or(0);
        }
        sending.await.unwrap().unwrap();
    }

    #[test]
    fn kernels_before_6_7_have_no_limit() {
        for (release, expected) in [
            ("6.18.44-fc", true),
            ("6.7", true),
            ("7.0.1", true),
            ("6.6.9", false),
            ("5.15.0-91", false),
            ("x", false),
            ("", false),
        ] {
            assert_eq!(is_supported(release), expected, "{release}");
        }
    }
}
