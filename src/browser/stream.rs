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
    failure::{Failure, Kind},
    js,
    page::Page,
};
use crate::{
    client::{ClientEvent, ClientStream, IsolationKey, StreamFailure},
    crypto::sha256,
    wire::{EndReason, Host, Target},
};

/// Bytes returned by one read. The data within a stream's window may be megabytes, too much for one piece.
const MAX_READ: usize = 256 << 10;

struct Entry {
    stream: ClientStream,
    received: BytesMut,
    connected: bool,
    /// The peer has ended its direction.
    finished: bool,
    failure: Option<StreamFailure>,
    /// Called after a turn with changes; `due` is whether a call is pending since the page last read.
    wake: Function,
    due: bool,
}

impl Entry {
    /// Deferred, because no script of the page may run within a turn.
    fn wake(&mut self) {
        if !core::mem::replace(&mut self.due, true) {
            js::queue_microtask(&self.wake);
        }
    }
}

/// The piecewise streams of a page. Few at a time; the client caps them (`ClientParameters::streams`).
#[derive(Default)]
pub(super) struct OpenStreams(Vec<Entry>);

impl OpenStreams {
    fn entry(&mut self, stream: ClientStream) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.stream == stream)
    }

    /// Handles an event of one of these streams; returns false for other events.
    pub(super) fn take(&mut self, event: &ClientEvent) -> bool {
        let (ClientEvent::Connected { stream, .. }
        | ClientEvent::Data { stream, .. }
        | ClientEvent::Finished { stream }
        | ClientEvent::Writable { stream }
        | ClientEvent::Closed { stream, .. }) = event
        else {
            return false;
        };
        let Some(entry) = self.entry(*stream) else { return false };
        match event {
            ClientEvent::Connected { .. } => entry.connected = true,
            ClientEvent::Data { bytes, .. } => entry.received.extend_from_slice(bytes),
            ClientEvent::Finished { .. } => entry.finished = true,
            ClientEvent::Closed { reason, .. } => entry.failure = Some(*reason),
            _ => {}
        }
        entry.wake();
        true
    }

    /// Ends all streams, and wakes their readers.
    pub(super) fn clear(&mut self) {
        self.0.drain(..).for_each(|mut entry| entry.wake());
    }
}

/// The isolation of streams to `host`.
fn isolation(host: &str) -> IsolationKey {
    IsolationKey(sha256(&[b"fetch ", host.as_bytes()].concat()))
}

/// A stream; dropping it resets it.
pub(super) struct StreamHandle {
    driver: Driver<PageCore>,
    stream: ClientStream,
}

impl StreamHandle {
    /// Opens a stream to `host`, a name or an address. A failure is returned by `read`. `wake` is called when there
    /// is data, room or an end.
    pub(super) fn open(page: &Page, host: &str, port: u16, wake: Function) -> Result<Self, Failure> {
        let unfit = |_| Failure::new(Kind::BadInput, "the URL's host is invalid");
        let target = Target { host: Host::parse(host).map_err(unfit)?, port };
        let stream = page.driver.with(|core, now, _| {
            let stream = core.client.open(now, target, isolation(host));
            let (received, connected, finished, failure, due) = (BytesMut::new(), false, false, None, false);
            core.streams.0.push(Entry { stream, received, connected, finished, failure, wake, due });
            stream
        });
        Ok(Self { driver: page.driver.clone(), stream: stream.ok_or_else(Failure::closed)? })
    }

    /// The next received bytes, at most [`MAX_READ`]; call it until it returns `None`, which means none yet. At the
    /// end it returns no bytes.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, Failure> {
        let looked = self.driver.with(|core, _, _| {
            let entry = core.streams.entry(self.stream)?;
            entry.due = false;
            let bytes: Vec<u8> = match entry.received.len() {
                ..=MAX_READ => core::mem::take(&mut entry.received).into(),
                _ => entry.received.split_to(MAX_READ).into(),
            };
            core.client.consumed(self.stream, bytes.len());
            Some((bytes, entry.finished, entry.failed()))
        });
        match looked.flatten().ok_or_else(Failure::closed)? {
            (bytes, finished, _) if finished || !bytes.is_empty() => Ok(Some(bytes)),
            (_, _, Some(failure)) => Err(failure),
            _ => Ok(None),
        }
    }

    /// Accepts as many of `bytes` as there is room for, and returns the number; [`Self::read`] returns the reason if
    /// the stream has failed.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        self.driver.with(|core, now, _| core.client.write(now, self.stream, bytes)).unwrap_or(0)
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.driver.with(|core, _, _| {
            core.client.reset(self.stream, EndReason::Reset);
            core.streams.0.retain(|entry| entry.stream != self.stream);
        });
    }
}

impl Entry {
    /// Why the stream failed to open or ended, if it did.
    fn failed(&self) -> Option<Failure> {
        let failure = self.failure?;
        Some(match failure {
            StreamFailure::Ended(_) if self.connected => {
                Failure::new(Kind::Target, "the site, or the exit on the path to it, closed the stream early")
            }
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
