//! Cells: the fixed 1,024 bytes in which everything crosses a channel (`proto/03-cells.md`).

use core::fmt;

use crate::base::CircuitId;

use super::WireError;

/// Bytes of a cell.
pub const CELL_LEN: usize = 1024;
/// Bytes of a cell's body.
pub const BODY_LEN: usize = CELL_LEN - HEADER_LEN;
const HEADER_LEN: usize = 5;

/// What a cell is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Nothing; dropped by the receiver. The only command without a circuit.
    Padding = 0,
    /// Opens a circuit: (a fragment of) a handshake request.
    Create = 1,
    /// Answers [`Command::Create`]: (a fragment of) a handshake reply.
    Created = 2,
    /// Carries onion layers.
    Relay = 3,
    /// Ends a circuit. The body is zero: no reason crosses the wire.
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

/// One cell: circuit identifier (4 bytes, big endian), command (1), body (1,019).
#[derive(Clone, PartialEq, Eq)]
pub struct Cell {
    circuit: Option<CircuitId>,
    command: Command,
    body: Box<[u8; BODY_LEN]>,
}

impl Cell {
    /// A padding cell.
    #[must_use]
    pub fn padding() -> Self {
        Self { circuit: None, command: Command::Padding, body: Box::new([0; BODY_LEN]) }
    }

    /// A cell of `circuit` with the given body.
    #[must_use]
    pub const fn new(circuit: CircuitId, command: Command, body: Box<[u8; BODY_LEN]>) -> Self {
        Self { circuit: Some(circuit), command, body }
    }

    /// A cell that ends `circuit`.
    #[must_use]
    pub fn destroy(circuit: CircuitId) -> Self {
        Self::new(circuit, Command::Destroy, Box::new([0; BODY_LEN]))
    }

    /// Reads one cell from exactly [`CELL_LEN`] bytes.
    ///
    /// # Errors
    /// When the length is another, the command is unknown, or a circuit stands where none may or lacks where one must.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bytes: &[u8; CELL_LEN] = bytes.try_into().map_err(|_| WireError::Truncated("cell"))?;
        let [a, b, c, d, command, body @ ..] = bytes;
        let command = Command::from_code(*command).ok_or(WireError::Invalid("cell command"))?;
        let circuit = CircuitId::new(u32::from_be_bytes([*a, *b, *c, *d]));
        if circuit.is_none() != (command == Command::Padding) {
            return Err(WireError::Invalid("cell circuit identifier"));
        }
        Ok(Self { circuit, command, body: Box::new(*body) })
    }

    /// Appends the cell's [`CELL_LEN`] bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.circuit.map_or(0, CircuitId::value).to_be_bytes());
        out.push(self.command as u8);
        out.extend_from_slice(self.body.as_slice());
    }

    /// The circuit it belongs to; `None` for padding alone.
    #[must_use]
    pub const fn circuit(&self) -> Option<CircuitId> {
        self.circuit
    }

    /// What it is for.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.command
    }

    /// Its body.
    #[must_use]
    pub const fn body(&self) -> &[u8; BODY_LEN] {
        &self.body
    }

    /// Its body, taken out: what a relay switches without copying.
    #[must_use]
    pub fn into_body(self) -> Box<[u8; BODY_LEN]> {
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
    fn a_cell_survives_the_wire() {
        let mut body = Box::new([7; BODY_LEN]);
        body[0] = 1;
        let cell = Cell::new(CircuitId::new(0x8000_0001).unwrap(), Command::Relay, body);
        let mut bytes = Vec::new();
        cell.encode(&mut bytes);
        assert_eq!(bytes.len(), CELL_LEN);
        assert_eq!(&bytes[..6], &[0x80, 0, 0, 1, 3, 1]);
        assert_eq!(Cell::decode(&bytes).unwrap(), cell);
    }

    #[test]
    fn a_cell_of_another_length_or_command_is_refused() {
        let mut bytes = Vec::new();
        Cell::padding().encode(&mut bytes);
        assert!(Cell::decode(&bytes[1..]).is_err());
        bytes[4] = 9;
        assert_eq!(Cell::decode(&bytes), Err(WireError::Invalid("cell command")));
    }

    #[test]
    fn only_padding_has_no_circuit() {
        let mut bytes = Vec::new();
        Cell::padding().encode(&mut bytes);
        bytes[4] = Command::Relay as u8;
        assert!(Cell::decode(&bytes).is_err());
        bytes[3] = 1;
        assert!(Cell::decode(&bytes).is_ok());
        bytes[4] = Command::Padding as u8;
        assert!(Cell::decode(&bytes).is_err());
    }
}
