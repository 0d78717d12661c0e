//! Streams of a page, read and written in pieces. They carry the TLS that ends in the page
//! (`web/src/umbel/https.ts`).
//!
//! Each stream leads to a host and port that the exit's policy allows; the exit resolves the name. Streams to one host
//! may share a circuit; streams to different hosts never do. The stream's credit bounds the unread data.

use bytes::BytesMut;
use js_sys::Function;

use super::{
    client::DrivenPageClient,
    drive::PageDrive,
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

/// Largest result of one read, in bytes. A stream's credit may be megabytes, too much for one piece.
const MAX_READ: usize = 256 << 10;

/// The isolation of streams to `host`.
fn isolation(host: &str) -> Isolation {
    Isolation(sha256(&[b"fetch ", host.as_bytes()].concat()))
}

/// A handle of a stream. A drop resets the stream.
pub(super) struct StreamHandle {
    drive: PageDrive<DrivenPageClient>,
    stream: ClientStream,
}

impl StreamHandle {
    /// Opens a stream to `host`, a name or an address. If the stream fails later, [`Self::read`] returns the failure.
    /// `wake` is called after the connection, new data, new room, the end or a failure, at most once between two reads.
    pub(super) fn open(page: &Page, host: &str, port: u16, wake: Function) -> Result<Self, PageFailure> {
        let invalid = |_| PageFailure::new(FailureKind::BadInput, "the URL's host is invalid");
        let target = Target { host: Host::parse(host).map_err(invalid)?, port };
        let stream = page.drive.with(|driven, now, _| {
            let stream = driven.client.open(now, target, isolation(host));
            let (received, connected, peer_finished) = (BytesMut::new(), false, false);
            let (failure, wake_scheduled) = (None, false);
            driven.streams.0.push(OpenStream {
                stream,
                received,
                connected,
                peer_finished,
                failure,
                wake,
                wake_scheduled,
            });
            stream
        });
        Ok(Self { drive: page.drive.clone(), stream: stream.ok_or_else(PageFailure::closed)? })
    }

    /// The next received bytes, at most [`MAX_READ`]: `None` if there are none yet, empty at the end of the stream. The
    /// caller reads until `None`, because only a read permits the next call of `wake`.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, PageFailure> {
        let state = self.drive.with(|driven, _, _| {
            let entry = driven.streams.entry(self.stream)?;
            entry.wake_scheduled = false;
            let bytes: Vec<u8> = match entry.received.len() {
                ..=MAX_READ => core::mem::take(&mut entry.received).into(),
                _ => entry.received.split_to(MAX_READ).into(),
            };
            driven.client.handle_command(self.stream, StreamCommand::Consumed(bytes.len()));
            Some((bytes, entry.peer_finished, entry.page_failure()))
        });
        match state.flatten().ok_or_else(PageFailure::closed)? {
            (bytes, finished, _) if finished || !bytes.is_empty() => Ok(Some(bytes)),
            (_, _, Some(failure)) => Err(failure),
            _ => Ok(None),
        }
    }

    /// Queues as many of `bytes` as there is room for, and returns their number. [`Self::read`] returns the failure of
    /// a failed stream.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        self.drive.with(|driven, _, _| driven.client.write(self.stream, bytes)).unwrap_or(0)
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.drive.with(|driven, _, _| {
            driven.client.handle_command(self.stream, StreamCommand::Reset(EndReason::Reset));
            driven.streams.0.retain(|entry| entry.stream != self.stream);
        });
    }
}

impl OpenStream {
    /// The failure of the stream, if it failed.
    fn page_failure(&self) -> Option<PageFailure> {
        let failure = self.failure?;
        Some(match failure {
            StreamFailure::Ended(_) if self.connected => PageFailure::new(
                FailureKind::Target,
                "the site, the exit or another relay of the path closed the stream early",
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
    fn streams_share_an_isolation_only_with_streams_to_the_same_host() {
        let hosts = ["site.example", "a.site.example", "site.example.", "127.0.0.1", "::1", "ab"];
        for (at, host) in hosts.iter().enumerate() {
            assert_eq!(isolation(host), isolation(host));
            assert!(hosts.iter().skip(at + 1).all(|other| isolation(other) != isolation(host)));
            // Delegated requests have other isolations.
            assert!((0..1000).all(|number| page::isolation(number) != isolation(host)));
        }
    }
}
