//! The isolation of a request: the label that keeps requests of different users or purposes on different circuits.

use core::fmt;

use crate::{crypto::sha256_parts, wire::Host};

/// The isolation of a request. Requests of different isolations never share a circuit.
///
/// The value is a digest, usually of the listener and the application's credentials, so that the credentials aren't
/// stored. Prints redacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isolation(pub(crate) [u8; 32]);

impl Isolation {
    /// The isolation of `user` and `password` at `listener`.
    #[must_use]
    pub fn new(listener: &str, user: &[u8], password: &[u8]) -> Self {
        let length = |part: &[u8]| u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes();
        let listener = listener.as_bytes();
        Self(sha256_parts(&[&length(listener), listener, &length(user), user, &length(password), password]))
    }

    /// The isolation of applications without credentials at `listener`.
    #[must_use]
    pub fn of_listener(listener: &str) -> Self {
        Self::new(listener, &[], &[])
    }

    /// An isolation that differs for each number.
    #[cfg(test)]
    pub(crate) fn numbered(number: u16) -> Self {
        Self::new("test", &number.to_be_bytes(), &[])
    }

    /// A separate isolation, derived from this one, for streams to `host` and RESOLVEs of `host`.
    #[must_use]
    pub fn for_host(&self, host: &Host) -> Self {
        let host = host.to_text().to_ascii_lowercase();
        Self(sha256_parts(&[b"host", &self.0, host.strip_suffix('.').unwrap_or(&host).as_bytes()]))
    }
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Isolation([redacted])")
    }
}
