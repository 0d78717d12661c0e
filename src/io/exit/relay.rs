//! The exit's interface to the relay's core.

use core::net::IpAddr;

use crate::{
    base::Instant,
    io::stream::StreamKey,
    relay::{ExitRequest, ExitStream, Relay},
    wire::{Answer, EndReason},
};

use super::{Exit, ExitCore};

impl Exit {
    /// Carries out a request of `relay` for `stream`. Never blocks.
    pub(crate) fn handle(&mut self, relay: &mut Relay, stream: ExitStream, request: ExitRequest) {
        let key = stream.0;
        match request {
            ExitRequest::Connect(target) => self.connect(key, target),
            ExitRequest::Resolve(host) => self.resolve(key, host),
            ExitRequest::Delegate { service, circuit } => {
                self.delegate(key, service, circuit, relay.exit_room(stream));
            }
            ExitRequest::Data(bytes) => self.push(key, &bytes),
            ExitRequest::Finish => self.finish(key),
            ExitRequest::Writable => self.set_room(key, relay.exit_room(stream)),
            ExitRequest::Close => self.close(key),
        }
    }
}

impl ExitCore for Relay {
    fn connected(&mut self, now: Instant, key: StreamKey, address: IpAddr) {
        self.exit_connected(now, ExitStream(key), Some(address));
    }

    fn resolved(&mut self, key: StreamKey, ttl: u32, answers: Vec<Answer>) {
        self.exit_resolved(ExitStream(key), ttl, answers);
    }

    fn failed(&mut self, key: StreamKey, reason: EndReason) {
        self.exit_failed(ExitStream(key), reason);
    }

    fn write(&mut self, now: Instant, key: StreamKey, bytes: &[u8]) {
        let taken = self.exit_write(now, ExitStream(key), bytes);
        debug_assert!(taken == bytes.len() || taken == 0, "bytes were written without room");
    }

    fn room(&mut self, key: StreamKey) -> usize {
        self.exit_room(ExitStream(key))
    }

    fn finish(&mut self, key: StreamKey) {
        self.exit_finish(ExitStream(key));
    }

    fn consumed(&mut self, key: StreamKey, bytes: usize) {
        self.exit_consumed(ExitStream(key), bytes);
    }
}
