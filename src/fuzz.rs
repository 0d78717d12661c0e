//! Fuzz targets for each decoder and state machine that processes bytes of a peer.
//!
//! A [`FuzzTarget`] runs a decoder or machine on an input, and panics if an invariant is violated. No input may cause a
//! panic, a hang or unbounded memory. `cargo xtask fuzz` passes the targets to libFuzzer (`docs/fuzzing.md`). The tests
//! in `fuzz/tests.rs` replay the corpora, with a limited number of mutations. Compiled only for tests and fuzzers.
//!
//! After a change of the wire format or a new target, run `cargo test --lib fuzz::tests::write_seeds -- --ignored`. It
//! writes the seeds.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fuzz target fails by panicking"
)]

mod channel;
mod circuit;
mod client_sequence;
#[cfg(feature = "native")]
mod congestion;
mod delegated;
mod directory;
mod directory_sequence;
#[cfg(feature = "native")]
mod engine;
#[cfg(feature = "native")]
mod io;
mod relay;
mod relay_sequence;
#[cfg(feature = "native")]
mod sctp;
#[cfg(feature = "native")]
mod sctp_handshake;
mod stream;
#[cfg(feature = "native")]
mod takeover;
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
    /// The name of the target, and of its folder in `fuzz/corpus`.
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
    relay_sequence::TARGETS,
    client_sequence::TARGETS,
    directory::TARGETS,
    directory_sequence::TARGETS,
    delegated::TARGETS,
    #[cfg(feature = "native")]
    engine::TARGETS,
    #[cfg(feature = "native")]
    transport::TARGETS,
    #[cfg(feature = "native")]
    congestion::TARGETS,
    #[cfg(feature = "native")]
    sctp::TARGETS,
    #[cfg(feature = "native")]
    sctp_handshake::TARGETS,
    #[cfg(feature = "native")]
    takeover::TARGETS,
    #[cfg(feature = "native")]
    io::TARGETS,
];

/// The target `name`.
///
/// # Panics
/// When no target has this name.
#[must_use]
pub fn target(name: &str) -> &'static FuzzTarget {
    let target = TARGETS.iter().copied().flatten().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("no fuzz target is named {name}; see TARGETS"))
}

/// An input, read as a sequence of choices of operations. Choices after the end of the input are zero.
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

    /// A byte string, prefixed by its length; shorter if the input ends before.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16()).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        bytes
    }
}

/// A virtual clock. Choices of the input advance it.
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
