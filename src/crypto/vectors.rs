//! Readers of `proto/vectors/*.json` for tests.

use data_encoding::HEXLOWER;
use serde_json::Value;

/// The content of a file of vectors.
pub(crate) fn read(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

/// The cases of a section; fails if there are none.
pub(crate) fn cases<'a>(vectors: &'a Value, section: &str) -> &'a [Value] {
    let cases = vectors[section].as_array().unwrap_or_else(|| panic!("the vectors have no \"{section}\""));
    assert!(!cases.is_empty(), "the vectors have no case of \"{section}\"");
    cases
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex(value.as_str().unwrap())
}

pub(crate) fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

pub(crate) fn number(value: &Value) -> u8 {
    u8::try_from(value.as_u64().unwrap()).unwrap()
}
