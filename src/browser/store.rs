//! Entries of a page's persistent storage, which the TypeScript wrapper provides (`web/src/umbel/storage.ts`).
//!
//! Callers decode the bytes as untrusted input: an entry that is invalid counts as missing. If storage is denied or
//! full, the page continues with the state in memory, and the wrapper reports the failure.

use js_sys::{Promise, Uint8Array};
use wasm_bindgen::{JsCast as _, JsValue, prelude::wasm_bindgen};
use wasm_bindgen_futures::{JsFuture, spawn_local};

/// Largest entry that is read, in bytes.
const MAX_ENTRY_LEN: u32 = 8 << 20;

#[wasm_bindgen]
extern "C" {
    /// The wrapper's storage. Both functions return promises that never reject.
    #[derive(Clone)]
    pub type Store;

    #[wasm_bindgen(method)]
    fn get(this: &Store, key: &str) -> Promise;

    #[wasm_bindgen(method)]
    fn put(this: &Store, key: &str, value: Uint8Array) -> Promise;
}

/// An entry of the storage.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoreEntry {
    /// The client's guard sample.
    Guards,
    /// The last consensus, as published.
    Consensus,
    /// The volunteer's long-term key.
    Identity,
    /// The volunteer's current and previous onion keys, and the creation time of the current key.
    Onion,
}

impl StoreEntry {
    const fn name(self) -> &'static str {
        match self {
            Self::Guards => "guards",
            Self::Consensus => "consensus",
            Self::Identity => "identity",
            Self::Onion => "onion",
        }
    }
}

impl Store {
    /// The bytes of `entry`; `None` if the entry is missing, is not a byte array, or is longer than [`MAX_ENTRY_LEN`].
    pub(super) async fn read(&self, entry: StoreEntry) -> Option<Vec<u8>> {
        let value: JsValue = JsFuture::from(self.get(entry.name())).await.ok()?;
        let bytes = value.dyn_into::<Uint8Array>().ok()?;
        (bytes.length() <= MAX_ENTRY_LEN).then(|| bytes.to_vec())
    }

    /// Stores `bytes` as `entry`, asynchronously.
    pub(super) fn write(&self, entry: StoreEntry, bytes: &[u8]) {
        let written = self.put(entry.name(), Uint8Array::from(bytes));
        spawn_local(async move { drop(JsFuture::from(written).await) });
    }
}
