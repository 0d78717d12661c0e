//! Fuzz targets for each decoder and state machine that processes bytes of a peer.
//!
//! A [`FuzzTarget`] is a function of bytes that must not panic, hang or grow without bound, and that checks invariants
//! of the decoded value. `fuzz/` passes each target to libFuzzer. The tests below replay the corpora, with a limited
//! number of mutations, on the stable compiler. Compiled only for tests and fuzzers.
//!
//! `cargo test --lib fuzz::tests::write_seeds -- --ignored` rewrites the seeds of all targets after a change to the
//! wire format.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a fuzz target fails by panicking"
)]

mod channel;
mod circuit;
mod delegated;
mod directory;
#[cfg(feature = "native")]
mod engine;
#[cfg(feature = "native")]
mod io;
mod relay;
#[cfg(feature = "native")]
mod sctp;
mod stream;
// The corpora are files, which WebAssembly can't read.
#[cfg(not(target_arch = "wasm32"))]
#[cfg(test)]
mod tests;
#[cfg(feature = "native")]
mod transport;
mod wire;

use crate::base::Instant;

/// A fuzz target.
pub struct FuzzTarget {
    /// Its name, also that of its program in `fuzz/fuzz_targets` and its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Processes one input.
    pub run: fn(&[u8]),
    /// Inputs that reach deep code paths.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[&[FuzzTarget]] = &[
    wire::TARGETS,
    circuit::TARGETS,
    stream::TARGETS,
    channel::TARGETS,
    relay::TARGETS,
    directory::TARGETS,
    delegated::TARGETS,
    #[cfg(feature = "native")]
    engine::TARGETS,
    #[cfg(feature = "native")]
    transport::TARGETS,
    #[cfg(feature = "native")]
    sctp::TARGETS,
    #[cfg(feature = "native")]
    io::TARGETS,
];

/// Runs the target `name` on one input.
///
/// # Panics
/// When there is no such target, or an invariant is violated.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().copied().flatten().find(|target| target.name == name).expect("the target exists");
    (target.run)(bytes);
}

/// An input read as choices, which determine a sequence of operations. All choices after its end are zero.
struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn u8(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().unwrap_or((&0, &[]));
        self.rest = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// Bytes, prefixed by their length.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16()).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        bytes
    }
}

/// A clock advanced by choices.
struct FuzzClock(Instant);

impl FuzzClock {
    const fn new() -> Self {
        Self(Instant::START)
    }

    /// Advances by 2^(`choice` mod 17) − 1 milliseconds: 0 to 65.5 s.
    fn advance(&mut self, choice: u8) -> Instant {
        let milliseconds = 1_u64 << (choice % 17);
        self.0 = self.0.after(core::time::Duration::from_millis(milliseconds - 1));
        self.0
    }
}
