//! Bounded decoding of Protocol Buffers: checks lengths and counts of elements before any allocation
//! (`proto/07-directory.md` §1).
//!
//! An empty element of a repeated field has two bytes in the encoding but about a hundred in memory. Therefore a cap on
//! the encoded length alone would not bound the memory.

use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// The reason for which bytes are not decoded as a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// The document or an element of a repeated field is longer than this maximum, in bytes.
    #[error("the document or one of its elements is longer than {0} bytes")]
    TooLong(usize),
    /// A repeated field has more elements than this maximum.
    #[error("a field has more than {0} elements")]
    TooMany(usize),
    /// The bytes are not a Protocol Buffers message of this schema.
    #[error("not a document of this schema")]
    Malformed,
}

/// The bounds of a message.
pub(crate) struct Bounds {
    /// Maximum bytes of the message.
    pub(crate) len: usize,
    /// Repeated fields: field number, maximum elements, maximum bytes of one element.
    pub(crate) fields: &'static [(u32, usize, usize)],
}

/// Decodes `bytes` as an `M` within `bounds`.
///
/// # Errors
/// When `bytes` exceed the bounds, or are not an `M`.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8], bounds: &Bounds) -> Result<M, BoundError> {
    if bytes.len() > bounds.len {
        return Err(BoundError::TooLong(bounds.len));
    }
    check(bytes, bounds)?;
    M::decode(bytes).map_err(|_| BoundError::Malformed)
}

/// Checks the counts and lengths of repeated fields without decoding the elements.
fn check(mut bytes: &[u8], bounds: &Bounds) -> Result<(), BoundError> {
    let mut counts = vec![0_usize; bounds.fields.len()];
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| BoundError::Malformed)?;
        let bound = bounds.fields.iter().zip(&mut counts).find(|((number, ..), _)| *number == tag);
        let Some(((_, max_count, max_len), count)) = bound else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(|_| BoundError::Malformed)?;
            continue;
        };
        *count = count.saturating_add(1);
        if *count > *max_count {
            return Err(BoundError::TooMany(*max_count));
        }
        if wire_type != WireType::LengthDelimited {
            return Err(BoundError::Malformed);
        }
        let len = decode_varint(&mut bytes).map_err(|_| BoundError::Malformed)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(BoundError::Malformed)?;
        if len > *max_len {
            return Err(BoundError::TooLong(*max_len));
        }
        bytes.advance(len);
    }
    Ok(())
}
