//! Streams of a page's by the piece: what the TLS goes over that ends in the page (`web/src/umbel/https.ts`).
//!
//! Each leads through a circuit to a host and port that an exit's policy allows; the name is resolved there. Streams to one host may
//! share a circuit, those to two never do. What comes waits until it is read, within the stream's window.

use bytes::BytesMut;
use js_sys::Function;

use super::{
    client::PageCore,
    drive::Driver,
    failure::{Failure, Kind},
    js,
    page::Page,
    search::no_way,
};
use crate::{
    client::{ClientEvent, ClientStream, IsolationKey, StreamFailure},
    crypto::sha256,
    wire::{EndReason, Host, Target},
};

/// Bytes that are read at a time: what waits within a stream's window may be megabytes, more than its reader takes in one piece.
const MOST_READ: usize = 256 << 10;

struct Entry {
    stream: ClientStream,
    received: BytesMut,
    connected: bool,
    /// The peer has sent all it had.
    finished: bool,
    failure: Option<StreamFailure>,
    /// Called after a turn in which something has changed, and whether it will be since this end last looked.
    wake: Function,
    due: bool,
}

impl Entry {
    /// Nothing of the page may run within a turn.
    fn wake(&mut self) {
        if !core::mem::replace(&mut self.due, true) {
            js::queue_microtask(&self.wake);
        }
    }
}

/// The streams that a page has by the piece: few at a time, and capped by the client (`ClientParameters::streams`).
#[derive(Default)]
pub(super) struct Streams(Vec<Entry>);

impl Streams {
    fn entry(&mut self, stream: ClientStream) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.stream == stream)
    }

    /// Takes what is of one of these streams; false for all else.
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

    /// Ends all, for whoever waits.
    pub(super) fn clear(&mut self) {
        self.0.drain(..).for_each(|mut entry| entry.wake());
    }
}

/// What streams to `host` have in common, and with nothing else.
fn isolation(host: &str) -> IsolationKey {
    IsolationKey(sha256(&[b"fetch ", host.as_bytes()].concat()))
}

/// One of them; dropping it gives the stream up.
pub(super) struct Stream {
    driver: Driver<PageCore>,
    stream: ClientStream,
}

impl Stream {
    /// Begins one to `host`, a name or an address. Whether it opens shows when it is read. `wake` is
    /// called whenever there is something to read, or room, or an end.
    pub(super) fn open(page: &Page, host: &str, port: u16, wake: Function) -> Result<Self, Failure> {
        let unfit = |_| Failure::new(Kind::BadInput, "the address names no host that can be reached");
        let target = Target { host: Host::parse(host).map_err(unfit)?, port };
        let stream = page.driver.with(|core, now, _| {
            let stream = core.client.open(now, target, isolation(host));
            let (received, connected, finished, failure, due) = (BytesMut::new(), false, false, None, false);
            core.streams.0.push(Entry { stream, received, connected, finished, failure, wake, due });
            stream
        });
        Ok(Self { driver: page.driver.clone(), stream: stream.ok_or_else(Failure::closed)? })
    }

    /// The next of what has come, [`MOST_READ`] bytes at most: read until there is nothing, which is when none is there yet. At the
    /// end it gives no bytes.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, Failure> {
        let looked = self.driver.with(|core, _, _| {
            let entry = core.streams.entry(self.stream)?;
            entry.due = false;
            let bytes: Vec<u8> = match entry.received.len() {
                ..=MOST_READ => core::mem::take(&mut entry.received).into(),
                _ => entry.received.split_to(MOST_READ).into(),
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

    /// Takes as much of `bytes` to send as there is room for, and says how much; why it is none shows to the reader.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        self.driver.with(|core, now, _| core.client.write(now, self.stream, bytes)).unwrap_or(0)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.driver.with(|core, _, _| {
            core.client.reset(self.stream, EndReason::Reset);
            core.streams.0.retain(|entry| entry.stream != self.stream);
        });
    }
}

impl Entry {
    /// Why there is no stream, or none any more, if so.
    fn failed(&self) -> Option<Failure> {
        let failure = self.failure?;
        let words = match failure {
            StreamFailure::Ended(_) if self.connected => "the site, or the exit on the way to it, broke off",
            StreamFailure::Ended(EndReason::NotFound) => {
                "there is no such host: the exit finds no address for its name"
            }
            StreamFailure::Ended(EndReason::Refused) => "the site refused the connection",
            StreamFailure::Ended(EndReason::Unreachable) => "the exit can’t reach the site",
            StreamFailure::Ended(EndReason::TimedOut) => "the site didn’t answer in time",
            StreamFailure::NoPath(_) | StreamFailure::Ended(EndReason::Policy) => {
                return Some(Failure::new(Kind::Refused, "no exit of the network goes to this host and port"));
            }
            failure => return Some(no_way(failure)),
        };
        Some(Failure::new(Kind::Target, words))
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
            // Nor with what is searched or asked of an exit.
            assert!((0..1000).all(|number| page::isolation(number) != isolation(host)));
        }
    }
}
