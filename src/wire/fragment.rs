//! Fragments: handshake bodies split over several cells or relay messages (`proto/03-cells.md` §5).
//!
//! CREATE, CREATED, EXTEND and EXTENDED carry bodies that may be larger than a cell. The first fragment starts with
//! the body's length. A body has at most [`MAX_FRAGMENTS`] fragments.

use crate::base::{CircuitId, Counter as _, HopIndex, RelayId};

use super::{BODY_LEN, Cell, CellBody, Command, WireError, is_zero};

/// Maximum fragments of one body.
pub const MAX_FRAGMENTS: usize = 4;
/// Maximum bytes of a body: the capacity of four CREATE cells minus the length field.
pub const MAX_BODY_LEN: usize = MAX_FRAGMENTS * CREATE_CAPACITY - LENGTH_LEN;

const LENGTH_LEN: usize = 2;
const CREATE_CAPACITY: usize = BODY_LEN - 1;

/// Reassembles bodies from their fragments, one after another.
///
/// Holds at most [`MAX_BODY_LEN`] bytes. A circuit has one reassembler for each direction. Fragments have no
/// identifier, so two bodies can't be interleaved.
#[derive(Default)]
pub struct Fragments {
    body: Vec<u8>,
    /// The length of the whole body, from the first fragment.
    length: Option<usize>,
    /// The number of fragments of the body received so far.
    received: usize,
}

impl Fragments {
    /// A reassembler without a fragment.
    #[must_use]
    pub const fn new() -> Self {
        Self { body: Vec::new(), length: None, received: 0 }
    }

    /// Whether a body has started and is incomplete.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.length.is_some()
    }

    /// Takes the next fragment; returns the body when the body is complete.
    ///
    /// # Errors
    /// When the body's length is zero or exceeds [`MAX_BODY_LEN`], or a fragment has no bytes of the body. Also when
    /// the body needs more than [`MAX_FRAGMENTS`] fragments, or the bytes after the end of the body aren't zero. The
    /// caller must end the circuit.
    pub fn push(&mut self, fragment: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        let (length, part) = match self.length {
            Some(length) => (length, fragment),
            None => {
                let (length, part) = fragment.split_first_chunk().ok_or(WireError::Truncated("fragment"))?;
                (usize::from(u16::from_be_bytes(*length)), part)
            }
        };
        if length == 0 || part.is_empty() {
            return Err(WireError::Truncated("fragment"));
        }
        if length > MAX_BODY_LEN || self.received >= MAX_FRAGMENTS {
            return Err(WireError::TooLong("fragmented body"));
        }
        let missing = length.saturating_sub(self.body.len());
        let (part, padding) = part.split_at_checked(missing).unwrap_or((part, &[]));
        if !is_zero(padding) {
            return Err(WireError::TrailingBytes("fragment"));
        }
        self.length = Some(length);
        self.received.increment();
        self.body.extend_from_slice(part);
        if self.body.len() < length {
            return if self.received < MAX_FRAGMENTS { Ok(None) } else { Err(WireError::TooLong("fragmented body")) };
        }
        Ok(Some(core::mem::take(self).body))
    }
}

/// Splits `body` into fragments of at most `capacity` bytes.
///
/// # Errors
/// When the body is empty, exceeds [`MAX_BODY_LEN`] or needs more than [`MAX_FRAGMENTS`] fragments. Also when
/// `capacity` has no room after the length field.
pub fn split(body: &[u8], capacity: usize) -> Result<Vec<Vec<u8>>, WireError> {
    let length = u16::try_from(body.len()).map_err(|_| WireError::TooLong("fragmented body"))?;
    let max_len = capacity.saturating_mul(MAX_FRAGMENTS).saturating_sub(LENGTH_LEN);
    if body.len() > MAX_BODY_LEN || body.len() > max_len {
        return Err(WireError::TooLong("fragmented body"));
    }
    if body.is_empty() || capacity <= LENGTH_LEN {
        return Err(WireError::Truncated("fragmented body"));
    }
    let whole = [&length.to_be_bytes(), body].concat();
    Ok(whole.chunks(capacity).map(<[u8]>::to_vec).collect())
}

/// The CREATE cells that carry a handshake request to the hop `hop` of `circuit`.
///
/// # Errors
/// When the request is empty or doesn't fit into [`MAX_FRAGMENTS`] cells.
pub fn create_cells(circuit: CircuitId, hop: HopIndex, request: &[u8]) -> Result<Vec<Cell>, WireError> {
    let cell = |fragment: Vec<u8>| padded_cell(circuit, Command::Create, [&[hop.value()], &*fragment].concat());
    Ok(split(request, CREATE_CAPACITY)?.into_iter().map(cell).collect())
}

/// The hop number and the fragment in the body of a CREATE cell. All cells of one request must name the same hop.
///
/// # Errors
/// When the hop number is zero or too large.
pub fn decode_create(body: &[u8; BODY_LEN]) -> Result<(HopIndex, &[u8]), WireError> {
    let (hop, fragment) = body.split_first().ok_or(WireError::Truncated("create"))?;
    Ok((HopIndex::new(*hop).ok_or(WireError::Invalid("hop number"))?, fragment))
}

/// The CREATED cells that carry a handshake reply. The whole body of each is a fragment.
///
/// # Errors
/// When the reply is empty, exceeds [`MAX_BODY_LEN`], or doesn't fit into [`MAX_FRAGMENTS`] cells.
pub fn created_cells(circuit: CircuitId, reply: &[u8]) -> Result<Vec<Cell>, WireError> {
    let cell = |fragment: Vec<u8>| padded_cell(circuit, Command::Created, fragment);
    Ok(split(reply, BODY_LEN)?.into_iter().map(cell).collect())
}

fn padded_cell(circuit: CircuitId, command: Command, mut body: Vec<u8>) -> Cell {
    body.resize(BODY_LEN, 0);
    let mut padded = CellBody::zero();
    padded.copy_from_slice(&body);
    Cell::new(circuit, command, padded)
}

/// The unsplit body of an EXTEND: the relay to extend to, and the handshake request for that relay.
#[must_use]
pub fn encode_extend(relay: &RelayId, request: &[u8]) -> Vec<u8> {
    [relay.as_bytes(), request].concat()
}

/// Decodes the output of [`encode_extend`].
///
/// # Errors
/// When the body is shorter than an identity.
pub fn decode_extend(body: &[u8]) -> Result<(RelayId, &[u8]), WireError> {
    let (relay, request) = body.split_first_chunk().ok_or(WireError::Truncated("extend"))?;
    Ok((RelayId::from_bytes(*relay), request))
}
