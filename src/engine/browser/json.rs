//! JSON by the browser's parser.

use js_sys::{Array, JSON, Number, Reflect};
use wasm_bindgen::{JsCast as _, JsValue};

use crate::engine::json_value::Json;

/// A parsed answer.
pub(in crate::engine) struct Tree(JsValue);

impl Tree {
    /// Parses `body`; `None` if it is not JSON.
    pub(in crate::engine) fn parse(body: &[u8]) -> Option<Self> {
        JSON::parse(str::from_utf8(body).ok()?).ok().map(Self)
    }

    /// The root value.
    pub(in crate::engine) fn root(&self) -> JsValue {
        self.0.clone()
    }
}

impl Json for JsValue {
    fn at(&self, pointer: &str) -> Option<Self> {
        let mut value = self.clone();
        for key in pointer.split('/').skip(1) {
            // A lookup in a primitive value would return properties of its prototype.
            value.is_object().then_some(())?;
            let key = key.replace("~1", "/").replace("~0", "~");
            value = Reflect::get(&value, &key.into()).ok().filter(|value| !value.is_undefined())?;
        }
        Some(value)
    }

    fn items(&self) -> Option<Vec<Self>> {
        Some(self.dyn_ref::<Array>()?.iter().collect())
    }

    fn text(&self) -> Option<String> {
        self.as_string()
    }

    fn number(&self) -> Option<f64> {
        self.as_f64()
    }

    fn scalar_text(&self) -> Option<String> {
        self.as_string().or_else(|| self.dyn_ref::<Number>()?.to_string_with_radix(10).ok()?.as_string())
    }
}
