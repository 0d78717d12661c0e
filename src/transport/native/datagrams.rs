//! The queue of outgoing datagrams, laid out so that one system call can send a batch.

use std::collections::VecDeque;

use super::SocketRoute;
use crate::base::Counter as _;

/// Smallest free space after the written bytes, in bytes. `dimpl` seldom needs more.
const MIN_TAIL: usize = 4 << 10;

/// Datagrams for one destination. All have the same size; the last may be shorter.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Source port and destination.
    pub route: SocketRoute,
    /// The datagrams, one after the other.
    pub bytes: &'a [u8],
    /// Size of each datagram except the last, in bytes.
    pub segment: usize,
}

/// The queue: one flat buffer, reused once all of it is sent. Links add SCTP packets only while few bytes are queued.
/// Other datagrams answer received ones, or belong to handshakes.
#[derive(Default)]
pub(super) struct Datagrams {
    bytes: Vec<u8>,
    /// Bytes written since the queue was last empty.
    written: usize,
    /// Bytes of batches already popped.
    popped: usize,
    batches: VecDeque<QueuedBatch>,
}

/// A batch in the queue: consecutive datagrams of one route.
struct QueuedBatch {
    route: SocketRoute,
    segment: usize,
    length: usize,
    count: usize,
    /// The last datagram is shorter than the others, so no datagram may follow.
    ended: bool,
}

impl Datagrams {
    /// Space to write the next datagram into, at least `size` bytes.
    pub(super) fn tail(&mut self, size: usize) -> &mut [u8] {
        if self.written == 0 && self.bytes.len() > MAX_KEPT_BUFFER {
            self.bytes = Vec::new(); // Frees the memory of a burst.
        }
        let end = self.written.saturating_add(size.max(MIN_TAIL));
        if self.bytes.len() < end {
            self.bytes.resize(end.saturating_add(self.bytes.len() / 2), 0);
        }
        self.bytes.get_mut(self.written..).unwrap_or_default()
    }

    /// Queues the first `length` bytes of [`Self::tail`] as a datagram for `route`. A batch has at most `max_segments`
    /// datagrams.
    pub(super) fn commit(&mut self, route: SocketRoute, length: usize, max_segments: usize) {
        self.written = self.written.saturating_add(length);
        if let Some(batch) = self.batches.back_mut()
            && batch.route == route
            && !batch.ended
            && length <= batch.segment
            && batch.count < max_segments
            && batch.length.saturating_add(length) <= MAX_BATCH
        {
            batch.length = batch.length.saturating_add(length);
            batch.count.increment();
            batch.ended = length < batch.segment;
            return;
        }
        self.batches.push_back(QueuedBatch { route, segment: length, length, count: 1, ended: false });
    }

    /// Queues a complete datagram.
    pub(super) fn push(&mut self, route: SocketRoute, datagram: &[u8], max_segments: usize) {
        if let Some(space) = self.tail(datagram.len()).get_mut(..datagram.len()) {
            space.copy_from_slice(datagram);
            self.commit(route, datagram.len(), max_segments);
        }
    }

    /// Queued bytes.
    pub(super) fn queued_bytes(&self) -> usize {
        self.written.saturating_sub(self.popped)
    }

    /// Removes the next batch from the queue.
    pub(super) fn pop(&mut self) -> Option<Batch<'_>> {
        let batch = self.batches.pop_front()?;
        let start = self.popped;
        self.popped = start.saturating_add(batch.length);
        if self.batches.is_empty() {
            self.written = 0;
            self.popped = 0;
        }
        let bytes = self.bytes.get(start..start.saturating_add(batch.length))?;
        Some(Batch { route: batch.route, bytes, segment: batch.segment })
    }
}

/// Most bytes in one system call: the largest UDP payload, with headroom for headers.
const MAX_BATCH: usize = 65_000;

/// Largest buffer kept after all of it is sent, in bytes.
const MAX_KEPT_BUFFER: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes datagrams of these (last byte of the address, size); returns the sizes (batch, datagram) of the batches.
    fn batches(datagrams: &[(u8, usize)], max_segments: usize) -> Vec<(usize, usize)> {
        let mut queue = Datagrams::default();
        for (number, (host, size)) in (0..).zip(datagrams) {
            let route = SocketRoute { port: 0, remote: ([192, 0, 2, *host], 9).into() };
            queue.push(route, &vec![number; *size], max_segments);
        }
        let (mut batches, mut popped) = (Vec::new(), Vec::new());
        while let Some(batch) = queue.pop() {
            batches.push((batch.bytes.len(), batch.segment));
            popped.extend(batch.bytes.chunks(batch.segment).map(|datagram| (datagram[0], datagram.len())));
        }
        let sent: Vec<_> = (0..).zip(datagrams).map(|(number, (_, size))| (number, *size)).collect();
        assert_eq!(popped, sent, "all datagrams, in order");
        assert_eq!(queue.queued_bytes(), 0);
        batches
    }

    #[test]
    fn a_batch_ends_with_a_shorter_datagram_another_route_or_its_limit() {
        assert_eq!(batches(&[(1, 100), (1, 100), (1, 40), (1, 40)], 64), [(240, 100), (40, 40)]);
        assert_eq!(batches(&[(1, 100), (2, 100), (1, 100)], 64), [(100, 100), (100, 100), (100, 100)]);
        assert_eq!(batches(&[(1, 40), (1, 100)], 64), [(40, 40), (100, 100)]);
        assert_eq!(batches(&[(1, 10); 5], 2), [(20, 10), (20, 10), (10, 10)]);
        assert_eq!(batches(&[(1, 1_200); 60], 64), [(64_800, 1_200), (7_200, 1_200)]);
    }
}
