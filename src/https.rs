//! HTTPS that ends in a page: one request and its response over a stream through the overlay, without I/O.
//!
//! An [`Exchange`] is handed what a stream brings and hands out what goes over it; TLS (rustls, with ring's primitives) and HTTP/1.1
//! (hyper) are in it, so the exit at the stream's end carries what it can't read. It is driven by `web/src/umbel/https.ts`, as
//! WebAssembly of its own that pages load when they first need it; the stream is the other module’s (`browser::stream`). Certificates
//! count by Mozilla's roots and by anchors that the page names ([`Trust`]). Nothing is remembered from one exchange to the next: a
//! resumed session or an open connection would tie two requests together. Governed by `proto/09-delegated.md` §6 as to fields.
//! Threats addressed: an exit that reads or changes what it carries, and a site that sends heads without end, breaks off, or
//! isn't the one it should be. Nothing of a request is written before the certificate has been checked.

mod exchange;
#[cfg(feature = "browser-tls")]
mod exports;
mod failure;
mod tls;
mod trust;

#[cfg(test)]
mod tests;

pub use exchange::{Event, Exchange};
pub use failure::HttpsError;
pub use trust::Trust;
