//! HTTPS of a page: one request and its response over a stream through the overlay, without I/O.
//!
//! The input of an [`Exchange`] is the bytes that the stream receives; its output is the bytes to send over the stream.
//! An exchange consists of TLS (rustls, with ring's primitives) and HTTP/1.1 (hyper), so the exit carries only
//! ciphertext. The code is built as a separate WebAssembly module, which `web/src/umbel/https.ts` loads at the first
//! `fetch()` and drives. The streams are those of the first module (`browser::stream`). Certificates are verified
//! against Mozilla's roots and the anchors that the page adds ([`Trust`]). No state is kept between exchanges: a resumed
//! TLS session or a persistent connection would link two requests. `proto/09-delegated.md` §6 specifies the header
//! fields. Threats addressed: an exit that reads or modifies data, and a site that sends an endless head, truncates
//! responses, or has an invalid certificate. No byte of a request is sent before the certificate is verified.

mod exchange;
#[cfg(feature = "browser-tls")]
mod exports;
mod failure;
mod tls;
mod trust;

#[cfg(test)]
mod tests;

pub use exchange::{Exchange, ExchangeEvent};
pub use failure::HttpsError;
pub use trust::Trust;
