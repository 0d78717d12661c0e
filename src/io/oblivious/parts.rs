//! Counts the parts of a Binary HTTP response (RFC 9292 §3) without allocating memory.

/// The number of fields, trailers included, and informational responses of `message`, up to its end or first error.
pub(super) fn count(message: &[u8]) -> usize {
    let mut walk = Walk { rest: message, parts: 0 };
    // The decoder reports errors.
    let _ = walk.message();
    walk.parts
}

/// A position in a message.
struct Walk<'a> {
    rest: &'a [u8],
    parts: usize,
}

impl<'a> Walk<'a> {
    /// Walks the whole message. This and the functions below return `None` where the message ends early.
    fn message(&mut self) -> Option<()> {
        const KNOWN_LENGTH: u64 = 1;
        let known = self.varint()? == KNOWN_LENGTH;
        while (100..200).contains(&self.varint()?) {
            self.parts = self.parts.saturating_add(1);
            self.fields(known)?;
        }
        self.fields(known)?;
        if known {
            self.vector()?;
        } else {
            while !self.vector()?.is_empty() {}
        }
        self.fields(known)
    }

    /// A field section: with a length prefix, or ended by an empty name.
    fn fields(&mut self, known: bool) -> Option<()> {
        if known {
            let mut section = Walk { rest: self.vector()?, parts: 0 };
            let _ = section.fields(false);
            self.parts = self.parts.saturating_add(section.parts);
            return Some(());
        }
        while !self.vector()?.is_empty() {
            self.parts = self.parts.saturating_add(1);
            self.vector()?;
        }
        Some(())
    }

    /// A length and as many bytes.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        let (vector, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(vector)
    }

    /// A variable-length integer (RFC 9000 §16).
    fn varint(&mut self) -> Option<u64> {
        let (first, rest) = self.rest.split_first()?;
        let (more, rest) = rest.split_at_checked((1_usize << (first >> 6)).saturating_sub(1))?;
        self.rest = rest;
        Some(more.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte)))
    }
}
