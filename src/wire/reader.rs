//! A reader of fields from untrusted bytes.

use bytes::Bytes;

use super::WireError;

/// Reads fields from the front of a slice.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// The name of the value, for errors.
    value: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8], value: &'static str) -> Self {
        Self { bytes, value }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (field, remaining) = self.bytes.split_at_checked(length).ok_or(WireError::Truncated(self.value))?;
        self.bytes = remaining;
        Ok(field)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (field, remaining) = self.bytes.split_first_chunk().ok_or(WireError::Truncated(self.value))?;
        self.bytes = remaining;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// All remaining bytes, at least one, as a slice of `whole`'s buffer.
    pub(super) fn remaining(&mut self, whole: &Bytes) -> Result<Bytes, WireError> {
        if self.bytes.is_empty() {
            return Err(WireError::Truncated(self.value));
        }
        Ok(whole.slice_ref(core::mem::take(&mut self.bytes)))
    }

    pub(super) const fn finish(&self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError::TrailingBytes(self.value)) }
    }
}
