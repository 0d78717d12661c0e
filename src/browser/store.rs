//! What a page keeps: `web/src/umbel.ts` has the storage, this names what is in it.
//!
//! Whatever comes from storage is judged like what comes from strangers. When it is denied or full the page goes on with what it
//! has in memory; the wrapper says so.

use js_sys::{Promise, Uint8Array};
use wasm_bindgen::{JsCast as _, JsValue, prelude::wasm_bindgen};
use wasm_bindgen_futures::{JsFuture, spawn_local};

/// Bytes of one entry that are read at the most.
const MAX_LEN: u32 = 8 << 20;

#[wasm_bindgen]
extern "C" {
    /// The wrapper's storage: both give promises, which never reject.
    #[derive(Clone)]
    pub type Store;

    #[wasm_bindgen(method)]
    fn get(this: &Store, key: &str) -> Promise;

    #[wasm_bindgen(method)]
    fn put(this: &Store, key: &str, value: Uint8Array) -> Promise;
}

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// The client's guard sample.
    Guards,
    /// The last consensus, as published.
    Consensus,
    /// The volunteer's long-term key.
    Identity,
    /// The volunteer's onion keys, and since when.
    Onion,
}

impl Entry {
    const fn key(self) -> &'static str {
        match self {
            Self::Guards => "guards",
            Self::Consensus => "consensus",
            Self::Identity => "identity",
            Self::Onion => "onion",
        }
    }
}

impl Store {
    /// What is kept under `entry`, if anything.
    pub(super) async fn read(&self, entry: Entry) -> Option<Vec<u8>> {
        let value: JsValue = JsFuture::from(self.get(entry.key())).await.ok()?;
        let bytes = value.dyn_into::<Uint8Array>().ok()?;
        (bytes.length() <= MAX_LEN).then(|| bytes.to_vec())
    }

    /// Keeps `bytes` under `entry`, at some time soon.
    pub(super) fn keep(&self, entry: Entry, bytes: &[u8]) {
        let kept = self.put(entry.key(), Uint8Array::from(bytes));
        spawn_local(async move { drop(JsFuture::from(kept).await) });
    }
}
