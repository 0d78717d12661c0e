//! The exports to TypeScript (`web/src/umbel/https.ts`): thin wrappers of [`Exchange`] and [`Trust`].

use js_sys::Uint8Array;
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::{Exchange, ExchangeEvent, HttpsError, Trust};

/// The trusted certificate authorities.
#[wasm_bindgen]
pub struct HttpsTrust(Trust);

#[wasm_bindgen]
impl HttpsTrust {
    /// Mozilla's roots and `anchors`, certificates in PEM or DER.
    #[wasm_bindgen(constructor)]
    pub fn new(anchors: Vec<Uint8Array>) -> Result<Self, HttpsFailure> {
        let anchors: Vec<Vec<u8>> = anchors.iter().map(Uint8Array::to_vec).collect();
        Ok(Self(Trust::new(anchors.iter().map(Vec::as_slice))?))
    }

    /// An exchange with a request to `url`, which is serialised as by a browser's `URL`. `fields` alternates names and
    /// values.
    pub fn exchange(
        &self,
        method: &str,
        url: &str,
        fields: Vec<String>,
        body: Vec<u8>,
    ) -> Result<HttpsExchange, HttpsFailure> {
        let pairs = fields.chunks_exact(2).filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())));
        Ok(HttpsExchange(Exchange::new(&self.0, method, url, pairs, body)?))
    }
}

/// One request and its response.
#[wasm_bindgen]
pub struct HttpsExchange(Exchange);

#[wasm_bindgen]
impl HttpsExchange {
    /// The host of the stream.
    #[wasm_bindgen(getter)]
    pub fn host(&self) -> String {
        self.0.host().to_owned()
    }

    /// The port of the stream.
    #[wasm_bindgen(getter)]
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Handles bytes received from the stream. An empty slice is the end of the stream.
    pub fn received(&mut self, bytes: &[u8]) {
        match bytes {
            [] => self.0.handle_end(),
            bytes => self.0.handle_received(bytes),
        }
    }

    /// The next bytes to send over the stream, if there are any.
    pub fn outgoing(&mut self) -> Option<Vec<u8>> {
        self.0.poll_transmit()
    }

    /// The next event: an [`HttpsHead`], then pieces of the body, then `null` at the end of the body. `undefined` until
    /// further bytes are received.
    pub fn event(&mut self) -> Result<JsValue, HttpsFailure> {
        Ok(match self.0.poll_event()? {
            Some(ExchangeEvent::Head { status, fields }) => {
                // One character for each byte, as in browsers' header values.
                let text = |value: Vec<u8>| value.into_iter().map(char::from).collect();
                let fields = fields.into_iter().flat_map(|(name, value)| [name, text(value)]).collect();
                HttpsHead { status, fields }.into()
            }
            Some(ExchangeEvent::Body(piece)) => Uint8Array::from(piece.as_slice()).into(),
            Some(ExchangeEvent::End) => JsValue::NULL,
            None => JsValue::UNDEFINED,
        })
    }
}

/// The head of a response.
#[wasm_bindgen(getter_with_clone)]
pub struct HttpsHead {
    /// Status, 200 to 599.
    pub status: u16,
    /// Header fields: alternating names and values.
    pub fields: Vec<String>,
}

/// The reason why a response failed or is truncated.
#[wasm_bindgen(getter_with_clone)]
pub struct HttpsFailure {
    /// The kind of the failure ([`HttpsError::kind`]), for programs.
    pub kind: String,
    /// A sentence for the user.
    pub message: String,
}

impl From<HttpsError> for HttpsFailure {
    fn from(error: HttpsError) -> Self {
        Self { kind: error.kind().to_owned(), message: error.to_string() }
    }
}
