//! Identifiers of circuits, streams, hops and relays. Zero is not a valid numeric identifier.

use core::{
    fmt,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
};

use data_encoding::BASE32_NOPAD;

/// The identifier of a circuit on one channel. The end that creates the circuit chooses the identifier: the dialler
/// from the upper half of the range, the listener from the lower half (`proto/02-channel.md`).
///
/// Prints redacted, because the logs of two neighbours, compared by identifier and time, would show the path of a
/// circuit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId(NonZeroU32);

impl CircuitId {
    /// The lowest identifier.
    pub const LOWEST: Self = Self(NonZeroU32::MIN);
    /// The highest identifier.
    pub const HIGHEST: Self = Self(NonZeroU32::MAX);

    /// The identifier `value`; `None` for zero.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The identifier as encoded in a cell.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0.get()
    }

    /// Whether the identifier is in the upper half, from which the dialler of a channel chooses.
    #[must_use]
    pub const fn is_in_upper_half(self) -> bool {
        self.0.get() >= 1 << 31
    }
}

impl fmt::Debug for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CircuitId([redacted])")
    }
}

/// The identifier of a stream of one circuit at one hop. The origin chooses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(NonZeroU16);

impl StreamId {
    /// The identifier `value`; `None` for zero.
    #[must_use]
    pub const fn new(value: u16) -> Option<Self> {
        match NonZeroU16::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The identifier as encoded in a relay message.
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({})", self.0)
    }
}

/// A position on a circuit, counted from 1 (the hop next to the origin) to [`HopIndex::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopIndex(NonZeroU8);

impl HopIndex {
    /// The hop next to the origin.
    pub const FIRST: Self = Self(NonZeroU8::MIN);
    /// The maximum number of hops of a circuit.
    pub const MAX: u8 = 8;

    /// The hop at `value`; `None` for zero or beyond [`Self::MAX`].
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        match NonZeroU8::new(value) {
            Some(value) if value.get() <= Self::MAX => Some(Self(value)),
            _ => None,
        }
    }

    /// The position, counted from 1.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0.get()
    }

    /// The hop after this one; `None` after [`Self::MAX`].
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        Self::new(self.0.get().saturating_add(1))
    }
}

/// A relay's identity: its long-term ed25519 public key (RFC 8032), 32 bytes.
///
/// Prints the first eight base-32 characters. Relays are public but paths are not, so a log line never has two hops of
/// one circuit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId([u8; 32]);

impl RelayId {
    /// The identity with these key bytes. An invalid key is detected only when a signature is verified.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The whole identity in base 32, lower case without padding: 52 characters.
    #[must_use]
    pub fn to_base32(&self) -> String {
        BASE32_NOPAD.encode(&self.0).to_ascii_lowercase()
    }

    /// Decodes the output of [`Self::to_base32`], in either case. `None` if `text` isn't the base 32 of 32 bytes.
    #[must_use]
    pub fn from_base32(text: &str) -> Option<Self> {
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_base32();
        f.write_str(text.get(..8).unwrap_or(&text))
    }
}

impl fmt::Debug for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayId({self})")
    }
}
