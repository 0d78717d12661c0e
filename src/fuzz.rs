//! What the fuzzers do with each decoder and each machine that a peer's bytes reach.
//!
//! A [`Target`] is one plain function from bytes to nothing that must not panic, hang or grow without bound, and that
//! checks what must hold of what it decodes. `fuzz/` gives each to libFuzzer; the tests below replay the corpora that
//! stand there, and as many mutations of them as a test has time for, on the stable compiler. Compiled for tests and
//! fuzzers alone.
//!
//! `cargo test --lib fuzz::tests::write_seeds -- --ignored` writes each target's seeds anew after a change to the wire.
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
// A browser has no corpora.
#[cfg(not(target_arch = "wasm32"))]
#[cfg(test)]
mod tests;
#[cfg(feature = "native")]
mod transport;
mod wire;

use crate::base::Instant;

/// One thing to throw bytes at.
pub struct Target {
    /// Its name, also that of its program in `fuzz/fuzz_targets` and its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Does everything with one input.
    pub run: fn(&[u8]),
    /// Inputs that reach far into it.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[&[Target]] = &[
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
/// When there is no such target, or when what must hold doesn't.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().copied().flatten().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}

/// An input read as choices: what a sequence of operations is made from. Zeros follow its end.
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

    /// Bytes, with their length before them.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16()).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        bytes
    }
}

/// A clock that choices move forward.
struct Clock(Instant);

impl Clock {
    const fn new() -> Self {
        Self(Instant::START)
    }

    /// Moves on by 0 to 65 s, most often by little.
    fn pass(&mut self, choice: u8) -> Instant {
        let milliseconds = 1_u64 << (choice % 17);
        self.0 = self.0.after(core::time::Duration::from_millis(milliseconds - 1));
        self.0
    }
}
