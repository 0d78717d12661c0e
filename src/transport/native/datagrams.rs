//! Datagrams waiting to be sent, laid out so that a run of them can go to the kernel in one call.

use std::collections::VecDeque;

use super::Route;

/// Room kept behind the written bytes: more than any datagram of ours, or record of a peer's, needs.
const TAIL: usize = 4 << 10;

/// Datagrams for one destination, all but the last of the same size.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Where from and to.
    pub route: Route,
    /// The datagrams, one after the other.
    pub bytes: &'a [u8],
    /// Size of each but the last.
    pub segment: usize,
}

/// The queue. One flat buffer, reused once all of it is sent; what may stand in it is bounded by what the links'
/// congestion windows let them send in one round.
#[derive(Default)]
pub(super) struct Datagrams {
    bytes: Vec<u8>,
    written: usize,
    taken: usize,
    runs: VecDeque<Run>,
}

/// Consecutive datagrams of one route.
struct Run {
    route: Route,
    segment: usize,
    length: usize,
    count: usize,
    /// Its last datagram is shorter than the others, so it takes no more.
    ended: bool,
}

impl Datagrams {
    /// Space to write the next datagram into, at least `size` bytes.
    pub(super) fn tail(&mut self, size: usize) -> &mut [u8] {
        if self.written == 0 && self.bytes.len() > KEPT {
            self.bytes = Vec::new(); // A burst must not pin its memory.
        }
        let end = self.written.saturating_add(size.max(TAIL));
        if self.bytes.len() < end {
            self.bytes.resize(end.saturating_add(self.bytes.len() / 2), 0);
        }
        self.bytes.get_mut(self.written..).unwrap_or_default()
    }

    /// The first `length` bytes of [`Self::tail`] are a datagram for `route`.
    pub(super) fn commit(&mut self, route: Route, length: usize, segments: usize) {
        self.written = self.written.saturating_add(length);
        if let Some(run) = self.runs.back_mut()
            && run.route == route
            && !run.ended
            && length <= run.segment
            && run.count < segments
            && run.length.saturating_add(length) <= MAX_BATCH
        {
            run.length = run.length.saturating_add(length);
            run.count = run.count.saturating_add(1);
            run.ended = length < run.segment;
            return;
        }
        self.runs.push_back(Run { route, segment: length, length, count: 1, ended: false });
    }

    /// Queues a datagram that is written already.
    pub(super) fn push(&mut self, route: Route, datagram: &[u8], segments: usize) {
        if let Some(space) = self.tail(datagram.len()).get_mut(..datagram.len()) {
            space.copy_from_slice(datagram);
            self.commit(route, datagram.len(), segments);
        }
    }

    /// Bytes waiting.
    pub(super) fn waiting(&self) -> usize {
        self.written.saturating_sub(self.taken)
    }

    /// The next run, taken off the queue.
    pub(super) fn pop(&mut self) -> Option<Batch<'_>> {
        let run = self.runs.pop_front()?;
        let start = self.taken;
        self.taken = start.saturating_add(run.length);
        if self.runs.is_empty() {
            self.written = 0;
            self.taken = 0;
        }
        let bytes = self.bytes.get(start..start.saturating_add(run.length))?;
        Some(Batch { route: run.route, bytes, segment: run.segment })
    }
}

/// The kernel takes no more in one call (a UDP payload's limit, with headroom for headers).
const MAX_BATCH: usize = 65_000;

/// Buffer kept between rounds.
const KEPT: usize = 1 << 20;
