//! The exports for `web/src/umbel.ts`, as thin wrappers. A failure is an object with a kind and a sentence.

use core::time::Duration;
use std::rc::Rc;

use js_sys::{Array, Function, Promise, Uint8Array};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};
use wasm_bindgen_futures::future_to_promise;
use web_sys::RtcCertificate;

use super::{
    client::ExchangePath,
    failure::object,
    page::Page,
    request,
    search::{self, SearchOutcome},
    store::Store,
    stream::StreamHandle,
    volunteer::{self, BrowserVolunteer},
};
use crate::delegated::{SearchResult, message::HttpResponse};

/// A client in a page.
#[wasm_bindgen]
pub struct PageClient {
    page: Rc<Page>,
}

#[wasm_bindgen]
impl PageClient {
    /// Starts a client; returns a promise of the client. `progress` is called with the name of each step.
    pub fn connect(directories: Vec<String>, authorities: Vec<String>, store: Store, progress: Function) -> Promise {
        future_to_promise(async move {
            let page = Page::start(&directories, &authorities, store, &progress).await?;
            Ok(Self { page }.into())
        })
    }

    /// Searches with an engine; returns a promise of the results.
    pub fn search(&self, terms: String, engine: Option<String>, page: u16, language: Option<String>) -> Promise {
        let client = Rc::clone(&self.page);
        future_to_promise(async move {
            let found = search::search(&client, engine.as_deref(), &terms, page, language.as_deref()).await?;
            Ok(found_object(&client, &found))
        })
    }

    /// Sends a request that an exit performs; returns a promise of the response. `url` has the form that a browser's
    /// `URL` serialises; `fields` alternates names and values.
    pub fn request(&self, method: String, url: String, fields: Vec<String>, body: Vec<u8>) -> Promise {
        let client = Rc::clone(&self.page);
        future_to_promise(async move {
            let (response, path) = request::request(&client, &method, &url, &fields, body).await?;
            Ok(response_object(&client, &response, &path))
        })
    }

    /// Opens a stream to `host`, a name or an address; `wake` is called when the stream's state has changed.
    pub fn open(&self, host: &str, port: u16, wake: Function) -> Result<PageStream, JsValue> {
        Ok(PageStream(StreamHandle::open(&self.page, host, port, wake)?))
    }

    /// The engines that exits offer.
    pub fn engines(&self) -> Array {
        let offered = search::offered(&self.page).into_iter();
        offered
            .map(|(engine, exits)| {
                object(&[("name", engine.as_str().into()), ("exits", u32::try_from(exits).unwrap_or(u32::MAX).into())])
            })
            .collect()
    }

    /// Closes all streams and links immediately.
    pub fn close(&self) {
        self.page.drive.with(|driven, _, _| driven.streams.clear());
        self.page.drive.stop();
    }
}

/// A stream through the overlay.
#[wasm_bindgen]
pub struct PageStream(StreamHandle);

#[wasm_bindgen]
impl PageStream {
    /// The next received bytes: `undefined` if there are none yet, empty at the end of the stream.
    pub fn read(&self) -> Result<Option<Vec<u8>>, JsValue> {
        Ok(self.0.read()?)
    }

    /// Accepts as many of `bytes` as the stream has room for, and returns the number.
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.0.write(bytes)
    }
}

/// A volunteer in a page.
#[wasm_bindgen]
pub struct PageVolunteer {
    volunteer: Rc<BrowserVolunteer>,
}

#[wasm_bindgen]
impl PageVolunteer {
    /// Makes a paused volunteer; returns a promise of the volunteer. `on_state` is called with each new state.
    pub fn make(
        directories: Vec<String>,
        authorities: Vec<String>,
        store: Store,
        certificate: Option<RtcCertificate>,
        on_state: Function,
    ) -> Promise {
        future_to_promise(async move {
            let volunteer = BrowserVolunteer::new(&directories, &authorities, store, certificate, on_state).await?;
            Ok(Self { volunteer }.into())
        })
    }

    /// Starts, or restarts with fresh links.
    pub fn start(&self) {
        self.volunteer.start();
    }

    /// Closes all links and stops until the next start.
    pub fn pause(&self, why: &str) {
        self.volunteer.pause(why);
    }

    /// Replaces the engines that the volunteer queries for clients. Each engine has a name and an OpenSearch description,
    /// at the same index.
    pub fn search_engines(&self, names: Vec<String>, descriptions: Vec<String>) -> Result<(), JsValue> {
        Ok(self.volunteer.set_engines(&names, &descriptions)?)
    }

    /// The origins that a page contacts for the engine of an OpenSearch description.
    ///
    /// # Errors
    /// When the name or the description is invalid, or a page may not query the engine.
    pub fn engine_origins(name: &str, description: &str) -> Result<Vec<String>, JsValue> {
        Ok(volunteer::describe(name, description)?.origins())
    }

    /// Stops after a short time in which circuits and searches in use may finish; returns a promise of the stop.
    pub fn finish(&self) -> Promise {
        let volunteer = Rc::clone(&self.volunteer);
        future_to_promise(async move {
            volunteer.finish().await;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// Limits the average sending rate in bytes per second; `undefined` removes the limit.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    pub fn limit(&self, bytes_per_second: Option<f64>) {
        self.volunteer.set_rate(bytes_per_second.map(|bytes| bytes as u64));
    }
}

fn found_object(page: &Page, found: &SearchOutcome) -> JsValue {
    let result = |result: &SearchResult| {
        object(&[
            ("title", result.title.as_str().into()),
            ("url", result.url.as_str().into()),
            ("snippet", result.snippet.as_str().into()),
        ])
    };
    let results: Array = found.results.iter().map(result).collect();
    object(&[
        ("engine", found.engine.as_str().into()),
        ("results", results.into()),
        ("more", found.more.into()),
        ("path", path_array(page, &found.path).into()),
        ("elapsedMs", milliseconds(found.duration)),
        ("sharedExit", found.path.shared_exit.into()),
    ])
}

fn response_object(page: &Page, response: &HttpResponse, path: &ExchangePath) -> JsValue {
    let field = |(name, value): &(String, Vec<u8>)| {
        // One character for each byte, as in browsers' header values.
        let value: String = value.iter().copied().map(char::from).collect();
        Array::of2(&name.as_str().into(), &value.into())
    };
    object(&[
        ("status", response.status.into()),
        ("headers", response.fields.iter().map(field).collect::<Array>().into()),
        ("body", Uint8Array::from(response.body.as_slice()).into()),
        ("path", path_array(page, path).into()),
    ])
}

fn path_array(page: &Page, path: &ExchangePath) -> Array {
    let consensus = page.consensus();
    // A relay that the consensus doesn't list is in the volunteer list.
    let is_listed = |hop: &super::client::ExchangeHop| {
        consensus.as_ref().is_none_or(|consensus| consensus.relay(&hop.relay).is_some())
    };
    path.hops
        .iter()
        .map(|hop| {
            object(&[
                ("relay", hop.relay.to_base32().into()),
                ("ms", milliseconds(hop.handshake_time)),
                ("volunteer", (!is_listed(hop)).into()),
            ])
        })
        .collect()
}

fn milliseconds(duration: Duration) -> JsValue {
    (duration.as_secs_f64() * 1e3).into()
}
