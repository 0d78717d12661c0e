//! The kernel's receive buffer of a socket whose sender is faster than the stream.
//!
//! Linux lets a receive buffer grow to several megabytes. A sender that is faster than the circuit fills it, and the queue of
//! this machine's line beside it, in which the cells of all circuits wait. So the buffer of such a socket is bounded to the
//! bytes that the stream takes in [`HELD`]. A socket whose sender is the slower side has the buffer that the kernel chose.
//!
//! The kernel enlarges a buffer only when more bytes are read in a round trip than ever before. A buffer that became
//! smaller would stay so for ever. So a bound ends with the buffer at its old size, and none is set if the kernel would refuse that.

use core::time::Duration;
use std::sync::LazyLock;

use nix::{
    errno::Errno,
    setsockopt_impl, sockopt_impl,
    sys::socket::{getsockopt, setsockopt, sockopt::RcvBuf},
};
use tokio::{net::TcpStream, time::Instant};

// Which buffer sizes are fixed; zero lets the kernel choose them. Since Linux 5.15.
sockopt_impl!(FixedBuffers, SetOnly, libc::SOL_SOCKET, libc::SO_BUF_LOCK, usize);

/// How often the bound is adjusted.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// The time whose bytes a bounded buffer holds, in intervals.
const HELD: usize = 2;
/// Successive intervals in which the stream is the slower side before the buffer is bounded.
const PATIENCE: u32 = 4;
/// Intervals without room after which nothing is left to adjust.
pub(super) const SETTLED: u32 = PATIENCE + 2;
/// Least bound in bytes: the size with which the kernel begins.
const LEAST: usize = 64 * 1024;

/// The largest buffer in bytes to which the kernel lets a program return.
static LARGEST: LazyLock<usize> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
});

/// Decides from the waits of an interval how large the buffer may be.
pub(super) struct ReceiveBuffer {
    /// Start of the interval, and of the current wait.
    began: Instant,
    since: Instant,
    /// Bytes read in the interval.
    bytes: usize,
    /// How long bytes waited for room in the stream, and the stream for bytes.
    blocked: Duration,
    starved: Duration,
    /// Successive intervals in which the stream was the slower side.
    slower: u32,
    bound: Option<Bound>,
}

/// Sizes in bytes. Those of the kernel count its own overhead, which it takes to be as much again.
#[derive(Clone, Copy)]
struct Bound {
    /// What the buffer holds.
    bytes: usize,
    /// What it held before.
    before: usize,
}

impl ReceiveBuffer {
    pub(super) const fn new(now: Instant) -> Self {
        let (blocked, starved) = (Duration::ZERO, Duration::ZERO);
        Self { began: now, since: now, bytes: 0, blocked, starved, slower: 0, bound: None }
    }

    /// The stream had no room until now.
    pub(super) fn handle_room(&mut self, now: Instant, socket: &TcpStream) {
        self.blocked = self.blocked.saturating_add(now.duration_since(self.since));
        self.since = now;
        let elapsed = now.duration_since(self.began);
        if elapsed >= INTERVAL {
            // Best effort: without the bound all works as well, behind a longer queue.
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
        if self.starved.saturating_mul(2) > elapsed {
            self.slower = 0;
            return self.bound.take().map_or(Ok(()), |bound| release(socket, bound.before));
        }
        if self.blocked.saturating_mul(2) <= elapsed {
            return Ok(());
        }
        self.slower = self.slower.saturating_add(1);
        if self.slower < PATIENCE {
            return Ok(());
        }
        let intervals = elapsed.as_millis().checked_div(INTERVAL.as_millis()).unwrap_or(1).max(1);
        let read = self.bytes.checked_div(usize::try_from(intervals).unwrap_or(usize::MAX)).unwrap_or(0);
        let bytes = read.saturating_mul(HELD).max(LEAST);
        match self.bound {
            // A change by less is not worth a system call.
            Some(bound) if bytes.abs_diff(bound.bytes) <= bound.bytes / 4 => Ok(()),
            Some(bound) if bytes < bound.before => self.set(socket, Bound { bytes, ..bound }),
            Some(bound) => {
                self.bound = None;
                release(socket, bound.before)
            }
            None => {
                let before = getsockopt(socket, RcvBuf)? / 2;
                if bytes >= before / 2 || before > *LARGEST {
                    return Ok(());
                }
                // First, so that a kernel that doesn't know it never bounds a buffer.
                setsockopt(socket, FixedBuffers, &0)?;
                self.set(socket, Bound { bytes, before })
            }
        }
    }

    fn set(&mut self, socket: &TcpStream, bound: Bound) -> Result<(), Errno> {
        setsockopt(socket, RcvBuf, &bound.bytes)?;
        self.bound = Some(bound);
        Ok(())
    }
}

/// Gives the buffer its old size, from which the kernel may enlarge it.
fn release(socket: &TcpStream, before: usize) -> Result<(), Errno> {
    setsockopt(socket, RcvBuf, &before)?;
    setsockopt(socket, FixedBuffers, &0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Intervals in which the stream takes `bytes` each and has no room otherwise.
    fn block(buffer: &mut ReceiveBuffer, socket: &TcpStream, now: &mut Instant, intervals: u32, bytes: usize) {
        for _ in 0..intervals {
            buffer.handle_bytes(*now, bytes);
            *now += INTERVAL;
            buffer.handle_room(*now, socket);
        }
    }

    #[tokio::test]
    async fn a_slow_stream_bounds_the_buffer_and_a_slow_sender_ends_the_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        setsockopt(&socket, RcvBuf, &*LARGEST).unwrap();
        setsockopt(&socket, FixedBuffers, &0).unwrap();
        let size = || getsockopt(&socket, RcvBuf).unwrap() / 2;
        let before = size();
        let mut now = Instant::now();
        let mut buffer = ReceiveBuffer::new(now);

        block(&mut buffer, &socket, &mut now, PATIENCE - 1, 1000);
        assert_eq!(size(), before, "the start of a stream is bounded");
        block(&mut buffer, &socket, &mut now, 1, 1000);
        assert_eq!(size(), LEAST);
        block(&mut buffer, &socket, &mut now, 1, 50_000);
        assert_eq!(size(), 100_000, "the bound doesn't follow the rate");
        block(&mut buffer, &socket, &mut now, 1, before);
        assert_eq!(size(), before, "a fast stream is bounded");

        block(&mut buffer, &socket, &mut now, 1, 1000);
        assert_eq!(size(), LEAST);
        now += INTERVAL;
        buffer.handle_bytes(now, 1000);
        buffer.handle_room(now, &socket);
        assert_eq!(size(), before, "a slow sender is bounded");
        block(&mut buffer, &socket, &mut now, PATIENCE - 1, 1000);
        assert_eq!(size(), before);
    }
}
