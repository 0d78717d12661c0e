//! The TCP receive window of a socket, limited while the stream is slower than the sender at the socket's other end.
//!
//! Linux advertises a window of up to several megabytes. A sender that is faster than the circuit fills this window and
//! the queue of this machine's line, in which the cells of all circuits wait. So the window is limited to the bytes
//! that the stream accepts in one and a half round trips. The limit ends when the socket becomes the slower side.
//!
//! TCP_WINDOW_CLAMP limits only bytes in flight. It causes no loss, since the kernel never shrinks an advertised window
//! (RFC 9293 §3.8.6). Linux 5.15 to 6.6 never reopen a window that was zero when its limit was set. So this module sets
//! no limit on kernels before 6.7.

use core::time::Duration;
use std::sync::LazyLock;

use nix::{errno::Errno, getsockopt_impl, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use tokio::{net::TcpStream, time::Instant};

sockopt_impl!(WindowClamp, Both, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, usize);

/// Shortest interval between adjustments of the limit.
const ADJUST_INTERVAL: Duration = Duration::from_millis(250);
/// Time for which the stream must be the slower side before the first limit. The time doubles when the socket is the
/// slower side under a limit, since the round trip is then longer than that of the handshake.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Shortest wait that counts as a pause of one of the two ends, and not as an effect of the window.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Smallest assumed round trip. The scheduler of a loaded machine can delay a read by more than a shorter round trip.
const MIN_ROUND_TRIP: Duration = Duration::from_millis(20);
/// Smallest limit in bytes: about the initial window of TCP.
const MIN_LIMIT: usize = 16 * 1024;
/// The value of the option that sets no limit: the largest window of TCP (RFC 7323).
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

/// Limits the window of one socket, depending on the waits for the socket and for the stream.
///
/// The splice calls [`Self::handle_room`] when the stream has room, then [`Self::handle_bytes`] when the socket has
/// bytes.
pub(super) struct ReceiveWindow {
    /// Round trip to the sender, measured by the TCP handshake.
    round_trip: Duration,
    /// Start of the interval.
    interval_start: Instant,
    /// Start of the current wait.
    wait_start: Instant,
    /// Bytes read in the interval.
    bytes: usize,
    /// The part of the interval without bytes in the socket. In the other part the stream had no room.
    starved: Duration,
    /// Whether one of the waits in the interval was a pause.
    has_paused: bool,
    /// Time for which the stream has been the slower side.
    stream_slower_for: Duration,
    /// Value of `stream_slower_for` from which the window is limited.
    delay: Duration,
    is_limited: bool,
}

impl ReceiveWindow {
    /// A window without a limit; `None` if the kernel doesn't support the limit.
    pub(super) fn new(now: Instant, round_trip: Duration) -> Option<Self> {
        SUPPORTED.then(|| Self {
            round_trip: round_trip.max(MIN_ROUND_TRIP),
            interval_start: now,
            wait_start: now,
            bytes: 0,
            starved: Duration::ZERO,
            has_paused: false,
            stream_slower_for: Duration::ZERO,
            delay: FIRST_DELAY,
            is_limited: false,
        })
    }

    /// Handles the end of a wait for room in the stream.
    pub(super) fn handle_room(&mut self, now: Instant, socket: &TcpStream) {
        self.end_wait(now);
        let elapsed = now.duration_since(self.interval_start);
        if elapsed >= ADJUST_INTERVAL {
            // An error needs no action: without the limit, only the queue is longer.
            let _ = self.end_interval(elapsed, socket);
            (self.interval_start, self.bytes, self.starved, self.has_paused) = (now, 0, Duration::ZERO, false);
        }
    }

    /// Handles the end of a wait for bytes in the socket.
    pub(super) fn handle_bytes(&mut self, now: Instant, bytes: usize) {
        let wait = self.end_wait(now);
        self.starved = self.starved.saturating_add(wait);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn end_wait(&mut self, now: Instant) -> Duration {
        let wait = now.duration_since(core::mem::replace(&mut self.wait_start, now));
        self.has_paused |= wait >= MIN_PAUSE;
        wait
    }

    /// Removes the limit if the socket was the slower side in the interval or one end paused, else adjusts the limit.
    fn end_interval(&mut self, elapsed: Duration, socket: &TcpStream) -> Result<(), Errno> {
        if self.has_paused || self.starved.saturating_mul(8) > elapsed {
            self.stream_slower_for = Duration::ZERO;
            if core::mem::take(&mut self.is_limited) {
                if !self.has_paused {
                    self.delay = self.delay.saturating_mul(2);
                }
                setsockopt(socket, WindowClamp, &UNLIMITED)?;
            }
            return Ok(());
        }
        self.stream_slower_for = self.stream_slower_for.saturating_add(elapsed);
        if self.stream_slower_for < self.delay {
            return Ok(());
        }
        // The bytes of one and a half round trips.
        let product = (self.bytes as u128).saturating_mul(self.round_trip.saturating_mul(3).as_nanos());
        let limit = product.checked_div(elapsed.saturating_mul(2).as_nanos()).unwrap_or(0);
        let limit = usize::try_from(limit).unwrap_or(UNLIMITED).clamp(MIN_LIMIT, UNLIMITED);
        self.is_limited = true;
        setsockopt(socket, WindowClamp, &limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    /// Intervals in each of which the stream accepts `bytes`, then has no room.
    fn block(window: &mut ReceiveWindow, socket: &TcpStream, now: &mut Instant, intervals: u32, bytes: usize) {
        for _ in 0..intervals {
            window.handle_bytes(*now, bytes);
            *now += ADJUST_INTERVAL;
            window.handle_room(*now, socket);
        }
    }

    /// An interval in which the socket has no bytes for a quarter of the time.
    fn starve(window: &mut ReceiveWindow, socket: &TcpStream, now: &mut Instant) {
        *now += ADJUST_INTERVAL / 4;
        window.handle_bytes(*now, 1000);
        *now += ADJUST_INTERVAL * 3 / 4;
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
        assert_eq!(limit(), MIN_LIMIT);
        block(&mut window, &socket, &mut now, 1, 50_000);
        assert_eq!(limit(), 30_000, "the limit doesn't follow the rate");
        starve(&mut window, &socket, &mut now);
        assert_eq!(limit(), UNLIMITED);

        block(&mut window, &socket, &mut now, 7, 1000);
        assert_eq!(limit(), UNLIMITED, "the delay did not double after a limit that was too small");
        block(&mut window, &socket, &mut now, 1, 1000);
        assert_eq!(limit(), MIN_LIMIT);
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
            assert_eq!(limit(), MIN_LIMIT);
            window.handle_bytes(if origin { now } else { now + MIN_PAUSE }, 1000);
            now += MIN_PAUSE;
            window.handle_room(now, &socket);
            assert_eq!(limit(), UNLIMITED);
        }
    }

    #[tokio::test]
    async fn a_window_that_is_zero_when_limited_reopens() {
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
        while let Ok(Ok(written)) = tokio::time::timeout(ADJUST_INTERVAL, sender.write(&block_of_bytes)).await {
            sent += written;
        }
        block(&mut window, &socket, &mut now, 5, 1000);
        assert!(window.is_limited);
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
