//! JSON by `serde_json`.

use serde_json::Value;

use crate::engine::json_value::Json;

/// A parsed answer.
pub(in crate::engine) struct Tree(Value);

impl Tree {
    /// Parses `body`; `None` if it is not JSON. `serde_json` bounds the depth.
    pub(in crate::engine) fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok().map(Self)
    }

    /// The root value.
    pub(in crate::engine) const fn root(&self) -> &Value {
        &self.0
    }
}

impl Json for &Value {
    fn at(&self, pointer: &str) -> Option<Self> {
        self.pointer(pointer)
    }

    fn items(&self) -> Option<Vec<Self>> {
        Some(self.as_array()?.iter().collect())
    }

    fn text(&self) -> Option<String> {
        self.as_str().map(str::to_owned)
    }

    fn number(&self) -> Option<f64> {
        self.as_f64()
    }

    fn scalar_text(&self) -> Option<String> {
        match self {
            Value::Number(number) => Some(number.to_string()),
            value => value.text(),
        }
    }
}
