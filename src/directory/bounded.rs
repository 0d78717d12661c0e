//! Bounded decoding: checks a Protocol Buffers message before it is decoded into allocations.
//!
//! An empty element of a repeated field is two bytes long but takes a hundred in memory. So the length of a document
//! alone does not bound the memory for decoding it.

use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Why bytes are not decoded as a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundError {
    /// Longer than the maximum of this kind.
    #[error("the document is longer than {0} bytes")]
    TooLong(usize),
    /// More elements of one field than the maximum.
    #[error("a field has more than {0} elements")]
    TooMany(usize),
    /// Not a Protocol Buffers message of this schema.
    #[error("not a document of this schema")]
    Malformed,
}

/// The bounds of a message.
pub(crate) struct Bounds {
    /// Total bytes.
    pub(crate) len: usize,
    /// Repeated fields: field number, maximum elements, maximum bytes of one element.
    pub(crate) fields: &'static [(u32, usize, usize)],
}

/// Decodes `bytes` as `M` if they are within `bounds`.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8], bounds: &Bounds) -> Result<M, BoundError> {
    if bytes.len() > bounds.len {
        return Err(BoundError::TooLong(bounds.len));
    }
    check(bytes, bounds)?;
    M::decode(bytes).map_err(|_| BoundError::Malformed)
}

fn check(mut bytes: &[u8], bounds: &Bounds) -> Result<(), BoundError> {
    let mut counts = vec![0_usize; bounds.fields.len()];
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|_| BoundError::Malformed)?;
        let bound = bounds.fields.iter().zip(&mut counts).find(|((number, ..), _)| *number == tag);
        let Some(((_, most, longest), count)) = bound else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(|_| BoundError::Malformed)?;
            continue;
        };
        *count = count.saturating_add(1);
        if *count > *most {
            return Err(BoundError::TooMany(*most));
        }
        if wire_type != WireType::LengthDelimited {
            return Err(BoundError::Malformed);
        }
        let len = decode_varint(&mut bytes).map_err(|_| BoundError::Malformed)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len()).ok_or(BoundError::Malformed)?;
        if len > *longest {
            return Err(BoundError::TooLong(*longest));
        }
        bytes.advance(len);
    }
    Ok(())
}
