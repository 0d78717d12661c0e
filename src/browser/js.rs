//! Bindings to single functions of the browser.

use js_sys::{Function, Promise, Reflect};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};
use web_sys::Request;

#[wasm_bindgen]
extern "C" {
    /// Milliseconds since the page was loaded, with a fraction; monotonic.
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    pub(super) fn performance_now() -> f64;

    /// Milliseconds since the Unix epoch by the machine's clock.
    #[wasm_bindgen(js_namespace = Date, js_name = now)]
    pub(super) fn date_now() -> f64;

    #[wasm_bindgen(js_name = setTimeout)]
    pub(super) fn set_timeout(callback: &Function, milliseconds: f64) -> f64;

    #[wasm_bindgen(js_name = queueMicrotask)]
    pub(super) fn queue_microtask(callback: &Function);

    #[wasm_bindgen(js_name = clearTimeout)]
    pub(super) fn clear_timeout(timer: f64);

    #[wasm_bindgen(js_name = fetch)]
    pub(super) fn fetch(request: &Request) -> Promise;
}

/// The host of this page; empty for a file.
pub(super) fn own_host() -> String {
    let get = |of: &JsValue, key: &str| Reflect::get(of, &key.into()).ok();
    let host = get(&js_sys::global(), "location").and_then(|location| get(&location, "hostname"));
    host.and_then(|host| host.as_string()).unwrap_or_default()
}
