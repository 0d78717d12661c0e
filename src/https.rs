//! HTTPS that ends in a page: one request and its response over a stream through the overlay, without I/O.
//!
//! An [`Exchange`] takes the bytes that a stream receives and returns the bytes to send over it. It has TLS (rustls,
//! with ring's primitives) and HTTP/1.1 (hyper), so the exit carries only ciphertext. `web/src/umbel/https.ts` drives
//! it, as a separate WebAssembly module that pages load at first use; the stream is the first module's
//! (`browser::stream`). Certificates are verified against Mozilla's roots and anchors that the page names
//! ([`Trust`]). No state is kept between exchanges: a resumed TLS session or a persistent connection would link two
//! requests. Fields are specified in `proto/09-delegated.md` §6. Threats addressed: an exit that reads or modifies
//! data, and a site that sends endless heads, breaks off, or has an invalid certificate. No byte of a request is sent
//! before the certificate is verified.

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
