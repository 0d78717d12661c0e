//! The TCP receive window of a socket whose stream is slower than its sender.
//!
//! Linux offers a sender a window of up to several megabytes. A sender that is faster than the circuit fills it, and with it
//! the queue of this machine's line, in which the cells of all circuits wait. So the window is limited to what the
//! stream takes in one and a half round trips to the sender. The limit ends when the socket becomes the slower side.
//!
//! TCP_WINDOW_CLAMP limits only bytes in flight. It causes no loss, because the kernel never withdraws an offered window
//! (RFC 9293 §3.8.6).

use core::time::Duration;

use nix::{errno::Errno, getsockopt_impl, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use tokio::{net::TcpStream, time::Instant};

sockopt_impl!(WindowClamp, Both, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, usize);

/// How often the limit is adjusted.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// Successive intervals in which the stream is the slower side before the first limit. Doubles with each limit that
/// made the socket the slower side, since then the round trip is longer than it was measured.
const FIRST_DELAY: u32 = 4;
/// Intervals without room after which nothing is left to adjust.
pub(super) const SETTLED: u32 = 2 * FIRST_DELAY;
/// Least round trip: on shorter ones the scheduler of a loaded machine delays more.
const LEAST_ROUND_TRIP: Duration = Duration::from_millis(20);
/// Least limit in bytes: about the initial window of TCP.
const LEAST: usize = 16 * 1024;
/// No limit: the greatest window of TCP (RFC 7323).
const UNLIMITED: usize = 1 << 30;

/// Decides from the waits of an interval how large the window may be.
pub(super) struct ReceiveWindow {
    /// To the sender, as the connection's handshake measured it.
    round_trip: Duration,
    /// Start of the interval, and of the current wait.
    began: Instant,
    since: Instant,
    /// Bytes read in the interval.
    bytes: usize,
    /// How long bytes waited for room in the stream, and the stream for bytes.
    blocked: Duration,
    starved: Duration,
    /// Successive intervals in which the stream was the slower side, and those before a limit.
    slower: u32,
    delay: u32,
    limited: bool,
}

impl ReceiveWindow {
    pub(super) fn new(now: Instant, round_trip: Duration) -> Self {
        Self {
            round_trip: round_trip.max(LEAST_ROUND_TRIP),
            began: now,
            since: now,
            bytes: 0,
            blocked: Duration::ZERO,
            starved: Duration::ZERO,
            slower: 0,
            delay: FIRST_DELAY,
            limited: false,
        }
    }

    /// The stream had no room until now.
    pub(super) fn handle_room(&mut self, now: Instant, socket: &TcpStream) {
        self.blocked = self.blocked.saturating_add(now.duration_since(self.since));
        self.since = now;
        let elapsed = now.duration_since(self.began);
        if elapsed >= INTERVAL {
            // Best effort: without the limit the queue is longer, and all else as before.
            let _ = self.end_interval(elapsed, socket);
            (self.began, self.bytes) = (now, 0);
            (self.blocked, self.starved) = (Duration::ZERO, Duration::ZERO);
        }
    }

    /// The socket had no bytes until now.
    pub(super) fn handle_bytes(&mut self, now: Instant, bytes: usize) {
        self.starved = self.starved.saturating_add(now.duration_since(self.since));
        self.since = now;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn end_interval(&mut self, elapsed: Duration, socket: &TcpStream) -> Result<(), Errno> {
        if self.starved.saturating_mul(8) > elapsed {
            self.slower = 0;
            if core::mem::take(&mut self.limited) {
                self.delay = self.delay.saturating_mul(2);
                setsockopt(socket, WindowClamp, &UNLIMITED)?;
            }
            return Ok(());
        }
        if self.blocked.saturating_mul(2) <= elapsed {
            return Ok(());
        }
        self.slower = self.slower.saturating_add(1);
        if self.slower < self.delay {
            return Ok(());
        }
        let time = self.round_trip.saturating_mul(3) / 2;
        let limit = (self.bytes as u128).saturating_mul(time.as_nanos()).checked_div(elapsed.as_nanos()).unwrap_or(0);
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
        let mut window = ReceiveWindow::new(now, Duration::from_millis(100));

        block(&mut window, &socket, &mut now, FIRST_DELAY - 1, 1000);
        assert_eq!(limit(), before, "the start of a stream is limited");
        block(&mut window, &socket, &mut now, 1, 1000);
        assert_eq!(limit(), LEAST);
        block(&mut window, &socket, &mut now, 1, 50_000);
        assert_eq!(limit(), 30_000, "the limit doesn't follow the rate");
        starve(&mut window, &socket, &mut now);
        assert_eq!(limit(), UNLIMITED);

        block(&mut window, &socket, &mut now, 2 * FIRST_DELAY - 1, 1000);
        assert_eq!(limit(), UNLIMITED, "a limit that was too small comes back as soon as the first");
        block(&mut window, &socket, &mut now, 1, 1000);
        assert_eq!(limit(), LEAST);
    }
}
