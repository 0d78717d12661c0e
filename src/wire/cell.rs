//! Cells: the units of 1,024 bytes that a channel carries (`proto/03-cells.md`).

use core::{
    fmt,
    ops::{Deref, DerefMut},
};

use bytes::Bytes;

use crate::base::{CircuitId, SLOT_LEN, Slot};

use super::WireError;

/// Bytes of a cell.
pub const CELL_LEN: usize = SLOT_LEN;
/// Bytes of a cell's body.
pub const BODY_LEN: usize = CELL_LEN - HEADER_LEN;
const HEADER_LEN: usize = 5;

/// The command of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Has no content; the receiver drops it. The only command without a circuit.
    Padding = 0,
    /// Opens a circuit: a handshake request, or a fragment of a request.
    Create = 1,
    /// Answers [`Command::Create`]: a handshake reply, or a fragment of a reply.
    Created = 2,
    /// Carries onion layers.
    Relay = 3,
    /// Ends a circuit. The sender fills the body with zeros: no reason is sent.
    Destroy = 4,
}

impl Command {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Padding,
            1 => Self::Create,
            2 => Self::Created,
            3 => Self::Relay,
            4 => Self::Destroy,
            _ => return None,
        })
    }
}

/// A cell's body, in the slot of its cell.
#[derive(Clone)]
pub struct CellBody(Slot);

impl CellBody {
    /// A body of zeros.
    #[must_use]
    pub fn zero() -> Self {
        Self(Slot::zero())
    }
}

impl PartialEq for CellBody {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for CellBody {}

impl From<[u8; BODY_LEN]> for CellBody {
    fn from(bytes: [u8; BODY_LEN]) -> Self {
        let mut body = Self::zero();
        *body = bytes;
        body
    }
}

impl From<CellBody> for Bytes {
    fn from(body: CellBody) -> Self {
        Self::from_owner(body)
    }
}

impl AsRef<[u8]> for CellBody {
    fn as_ref(&self) -> &[u8] {
        &**self
    }
}

impl Deref for CellBody {
    type Target = [u8; BODY_LEN];

    fn deref(&self) -> &[u8; BODY_LEN] {
        let [_, _, _, _, _, body @ ..] = &*self.0;
        body
    }
}

impl DerefMut for CellBody {
    fn deref_mut(&mut self) -> &mut [u8; BODY_LEN] {
        let [_, _, _, _, _, body @ ..] = &mut *self.0;
        body
    }
}

/// One cell: circuit identifier (4 bytes, big endian), command (1), body (1,019).
#[derive(Clone, PartialEq, Eq)]
pub struct Cell {
    circuit: Option<CircuitId>,
    command: Command,
    body: CellBody,
}

impl Cell {
    /// A padding cell.
    #[must_use]
    pub fn padding() -> Self {
        Self { circuit: None, command: Command::Padding, body: CellBody::zero() }
    }

    /// A cell of `circuit` with the given body.
    #[must_use]
    pub const fn new(circuit: CircuitId, command: Command, body: CellBody) -> Self {
        Self { circuit: Some(circuit), command, body }
    }

    /// A cell that ends `circuit`.
    #[must_use]
    pub fn destroy(circuit: CircuitId) -> Self {
        Self::new(circuit, Command::Destroy, CellBody::zero())
    }

    /// Decodes the cell in a slot.
    ///
    /// # Errors
    /// When the command is unknown, padding has a circuit identifier, or another cell has no circuit identifier.
    pub fn decode(slot: Slot) -> Result<Self, WireError> {
        let [a, b, c, d, command, ..] = *slot;
        let command = Command::from_code(command).ok_or(WireError::Invalid("cell command"))?;
        let circuit = CircuitId::new(u32::from_be_bytes([a, b, c, d]));
        if circuit.is_none() != (command == Command::Padding) {
            return Err(WireError::Invalid("cell circuit identifier"));
        }
        Ok(Self { circuit, command, body: CellBody(slot) })
    }

    /// The encoded cell, in its slot.
    #[must_use]
    pub fn encode(self) -> Slot {
        let [a, b, c, d] = self.circuit.map_or(0, CircuitId::value).to_be_bytes();
        let CellBody(mut slot) = self.body;
        let [h0, h1, h2, h3, h4, ..] = &mut *slot;
        (*h0, *h1, *h2, *h3, *h4) = (a, b, c, d, self.command as u8);
        slot
    }

    /// The circuit of the cell; `None` only for padding.
    #[must_use]
    pub const fn circuit(&self) -> Option<CircuitId> {
        self.circuit
    }

    /// The command.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.command
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8; BODY_LEN] {
        &self.body
    }

    /// The body in its slot, so that a relay forwards it without a copy.
    #[must_use]
    pub fn into_body(self) -> CellBody {
        self.body
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("command", &self.command).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn an_encoded_cell_decodes_to_an_equal_cell() {
        let mut body = CellBody::from([7; BODY_LEN]);
        body[0] = 1;
        let cell = Cell::new(CircuitId::new(0x8000_0001).unwrap(), Command::Relay, body);
        let slot = cell.clone().encode();
        assert_eq!(&slot[..7], &[0x80, 0, 0, 1, 3, 1, 7]);
        assert_eq!(Cell::decode(slot).unwrap(), cell);
    }

    #[test]
    fn a_cell_with_an_unknown_command_is_refused() {
        let mut slot = Cell::padding().encode();
        slot[4] = 9;
        assert_eq!(Cell::decode(slot), Err(WireError::Invalid("cell command")));
    }

    #[test]
    fn only_padding_has_no_circuit() {
        let mut slot = Cell::padding().encode();
        slot[4] = Command::Relay as u8;
        assert!(Cell::decode(slot.clone()).is_err());
        slot[3] = 1;
        assert!(Cell::decode(slot.clone()).is_ok());
        slot[4] = Command::Padding as u8;
        assert!(Cell::decode(slot).is_err());
    }
}
