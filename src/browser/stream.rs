//! Streams of a page, read and written in pieces. They carry the TLS that ends in the page
//! (`web/src/umbel/https.ts`).
//!
//! Each stream uses a circuit to a host and port that an exit's policy allows; the exit resolves the name. Streams to
//! one host may share a circuit; streams to different hosts never do. Received data waits until it is read, within
//! the stream's window.

use bytes::BytesMut;
use js_sys::Function;

use super::{
    client::PageCore,
    drive::Driver,
    failure::{FailureKind, PageFailure},
    open_streams::OpenStream,
    page::Page,
};
use crate::{
    client::{ClientStream, Isolation, StreamFailure},
    crypto::sha256,
    stream::StreamCommand,
    wire::{EndReason, Host, Target},
};

/// Bytes returned by one read. The data within a stream's window may be megabytes, too much for one piece.
const MAX_READ: usize = 256 << 10;

/// The isolation of streams to `host`.
fn isolation(host: &str) -> Isolation {
    Isolation(sha256(&[b"fetch ", host.as_bytes()].concat()))
}

/// A stream; dropping it resets it.
pub(super) struct StreamHandle {
    driver: Driver<PageCore>,
    stream: ClientStream,
}

impl StreamHandle {
    /// Opens a stream to `host`, a name or an address. A failure is returned by `read`. `wake` is called when there
    /// is data, room or an end.
    pub(super) fn open(page: &Page, host: &str, port: u16, wake: Function) -> Result<Self, PageFailure> {
        let unfit = |_| PageFailure::new(FailureKind::BadInput, "the URL's host is invalid");
        let target = Target { host: Host::parse(host).map_err(unfit)?, port };
        let stream = page.driver.with(|core, now, _| {
            let stream = core.client.open(now, target, isolation(host));
            let (received, connected, finished, failure, due) = (BytesMut::new(), false, false, None, false);
            core.streams.0.push(OpenStream { stream, received, connected, finished, failure, wake, due });
            stream
        });
        Ok(Self { driver: page.driver.clone(), stream: stream.ok_or_else(PageFailure::closed)? })
    }

    /// The next received bytes, at most [`MAX_READ`]; call it until it returns `None`, which means none yet. At the
    /// end it returns no bytes.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, PageFailure> {
        let looked = self.driver.with(|core, _, _| {
            let entry = core.streams.entry(self.stream)?;
            entry.due = false;
            let bytes: Vec<u8> = match entry.received.len() {
                ..=MAX_READ => core::mem::take(&mut entry.received).into(),
                _ => entry.received.split_to(MAX_READ).into(),
            };
            core.client.handle_command(self.stream, StreamCommand::Consumed(bytes.len()));
            Some((bytes, entry.finished, entry.failed()))
        });
        match looked.flatten().ok_or_else(PageFailure::closed)? {
            (bytes, finished, _) if finished || !bytes.is_empty() => Ok(Some(bytes)),
            (_, _, Some(failure)) => Err(failure),
            _ => Ok(None),
        }
    }

    /// Accepts as many of `bytes` as there is room for, and returns the number; [`Self::read`] returns the reason if
    /// the stream has failed.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        self.driver.with(|core, _, _| core.client.write(self.stream, bytes)).unwrap_or(0)
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.driver.with(|core, _, _| {
            core.client.handle_command(self.stream, StreamCommand::Reset(EndReason::Reset));
            core.streams.0.retain(|entry| entry.stream != self.stream);
        });
    }
}

impl OpenStream {
    /// Why the stream failed to open or ended, if it did.
    fn failed(&self) -> Option<PageFailure> {
        let failure = self.failure?;
        Some(match failure {
            StreamFailure::Ended(_) if self.connected => PageFailure::new(
                FailureKind::Target,
                "the site, or the exit on the path to it, closed the stream early",
            ),
            failure => failure.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::browser::page;

    #[test]
    fn streams_share_a_circuit_with_those_to_the_same_host_alone() {
        let hosts = ["site.example", "a.site.example", "site.example.", "127.0.0.1", "::1", "ab"];
        for (at, host) in hosts.iter().enumerate() {
            assert_eq!(isolation(host), isolation(host));
            assert!(hosts.iter().skip(at + 1).all(|other| isolation(other) != isolation(host)));
            // Nor with searches and delegated requests.
            assert!((0..1000).all(|number| page::isolation(number) != isolation(host)));
        }
    }
}
