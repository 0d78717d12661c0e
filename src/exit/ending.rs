//! Streams that a relay's core has removed, while their tasks at the exit still write the last bytes to the targets.

use std::collections::HashMap;

use crate::{
    base::{Activity, Counter as _, Instant, Owned},
    delegated::limits::RequestOwner,
    relay::ExitStream,
};

/// The ended streams of an exit, up to a cap. At the cap, one of the circuit owner closest to its share is cut: a failed
/// one before a finished one, a finished one before one without unread bytes, and of these the one whose target reads
/// least ([`Activity`]). So neither many circuits nor
/// targets that read nothing cut the streams of others.
pub(super) struct EndingStreams {
    cap: usize,
    /// An eviction updates the order, as in [`Owned`].
    order: Owned<Rank, ExitStream>,
    streams: HashMap<ExitStream, EndingStream>,
    /// The number of streams of each circuit.
    circuits: HashMap<u64, usize>,
}

/// How a stream has ended. The lower kind is cut first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EndKind {
    /// The origin has reset the stream, or its circuit has ended.
    Failed,
    /// Both directions have finished.
    Finished,
    /// As [`Self::Finished`], and the target has read all bytes. Its task only has to end the connection.
    Drained,
}

type Rank = (EndKind, Activity);

struct EndingStream {
    owner: RequestOwner,
    /// Unread bytes at the last check.
    unread: usize,
    /// The bytes that the target has read since the end of the stream.
    rank: Rank,
}

impl EndingStreams {
    pub(super) fn new(cap: usize) -> Self {
        Self { cap, order: Owned::new(cap), streams: HashMap::new(), circuits: HashMap::new() }
    }

    /// Adds a stream that has ended, unless it is known.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        stream: ExitStream,
        owner: RequestOwner,
        kind: EndKind,
        unread: usize,
    ) {
        if self.streams.contains_key(&stream) {
            return;
        }
        let rank = (kind, Activity::new(now));
        self.streams.insert(stream, EndingStream { owner, unread, rank });
        self.order.add(owner.circuit_owner, rank, stream);
        self.circuits.entry(owner.circuit).or_default().increment();
    }

    /// Removes a stream whose task has ended.
    pub(super) fn remove(&mut self, stream: ExitStream) {
        let Some(EndingStream { owner, rank, .. }) = self.streams.remove(&stream) else { return };
        self.order.remove(&owner.circuit_owner, rank, stream);
        if let Some(count) = self.circuits.get_mut(&owner.circuit) {
            count.decrement();
            if *count == 0 {
                self.circuits.remove(&owner.circuit);
            }
        }
    }

    /// The next stream to cut, while there are more than the cap. `unread` returns the bytes that the target of a stream
    /// has not read; `None` if the task has dropped the stream.
    pub(super) fn poll_cut(
        &mut self,
        now: Instant,
        unread: impl Fn(ExitStream) -> Option<usize>,
    ) -> Option<ExitStream> {
        while self.streams.len() > self.cap {
            let (_, stream) = self.order.lowest()?;
            let ending = self.streams.get_mut(&stream)?;
            let Some(left) = unread(stream) else {
                self.remove(stream);
                continue;
            };
            let read = core::mem::replace(&mut ending.unread, left).saturating_sub(left);
            let before = ending.rank;
            if left == 0 && before.0 == EndKind::Finished {
                ending.rank.0 = EndKind::Drained;
            } else if read == 0 {
                self.remove(stream);
                return Some(stream);
            }
            ending.rank.1.carry(now, read, self.circuits.get(&ending.owner.circuit).copied().unwrap_or(1));
            self.order.set_rank(&ending.owner.circuit_owner, before, ending.rank, stream);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::collections::BTreeMap;

    use super::{EndKind::*, *};
    use crate::base::{Owner, RelayId};

    fn owner(relay: u8, circuit: u64) -> RequestOwner {
        RequestOwner { circuit_owner: Owner::Relay(RelayId::from_bytes([relay; 32])), circuit }
    }

    /// Ending streams with their unread bytes, and the streams that were cut.
    struct Bench {
        now: Instant,
        ending: EndingStreams,
        unread: BTreeMap<ExitStream, usize>,
    }

    impl Bench {
        fn new(cap: usize) -> Self {
            Self { now: Instant::START, ending: EndingStreams::new(cap), unread: BTreeMap::new() }
        }

        /// Ends a stream with a MiB that its target has not read. Returns the streams that are cut.
        fn end(&mut self, stream: u64, owner: RequestOwner, kind: EndKind) -> Vec<u64> {
            self.unread.insert(ExitStream(stream), 1 << 20);
            self.ending.insert(self.now, ExitStream(stream), owner, kind, 1 << 20);
            let mut cut = Vec::new();
            while let Some(stream) = self.ending.poll_cut(self.now, |stream| self.unread.get(&stream).copied()) {
                self.unread.remove(&stream);
                cut.push(stream.0);
            }
            cut
        }

        fn read(&mut self, stream: u64, bytes: usize) {
            *self.unread.get_mut(&ExitStream(stream)).unwrap() -= bytes;
        }
    }

    #[test]
    fn ended_streams_of_many_circuits_cut_no_stream_whose_target_reads() {
        let mut bench = Bench::new(16);
        assert!(bench.end(1, owner(1, 1), Finished).is_empty());
        for circuit in 2..100 {
            // The honest target reads 8 KiB a second, the others a byte.
            bench.now = bench.now.after(Duration::from_secs(1));
            bench.read(1, 8 << 10);
            let known: Vec<u64> = bench.unread.keys().map(|stream| stream.0).filter(|stream| *stream > 1).collect();
            known.into_iter().for_each(|stream| bench.read(stream, 1));
            let cut = bench.end(circuit, owner(1, circuit), Finished);
            assert!(!cut.contains(&1), "stream {circuit}");
        }
        assert_eq!(bench.unread.len(), 16);
    }

    #[test]
    fn a_finished_stream_without_unread_bytes_is_cut_after_all_others_of_its_owner() {
        let mut bench = Bench::new(3);
        assert!(bench.end(1, owner(1, 1), Finished).is_empty());
        bench.read(1, 1 << 20);
        assert!(bench.end(2, owner(1, 2), Finished).is_empty());
        assert!(bench.end(3, owner(1, 3), Finished).is_empty());
        for stream in 4..20 {
            // The targets of the others read, and the first one has nothing left to read.
            bench.now = bench.now.after(Duration::from_secs(3600));
            let others: Vec<u64> = bench.unread.keys().map(|stream| stream.0).filter(|stream| *stream > 1).collect();
            others.into_iter().for_each(|stream| bench.read(stream, 1_000));
            let cut = bench.end(stream, owner(1, stream), Finished);
            assert!(cut.len() == 1 && !cut.contains(&1), "stream {stream}: {cut:?}");
        }
        let mut drained = Bench::new(1);
        assert!(drained.end(1, owner(1, 1), Finished).is_empty());
        drained.read(1, 1 << 20);
        assert_eq!(drained.end(2, owner(1, 2), Finished), [2]);
        assert_eq!(drained.end(3, owner(2, 3), Failed), [1], "of owners with as many, the one unchanged for longest");
    }

    #[test]
    fn the_owner_with_the_most_ended_streams_loses_one() {
        let mut bench = Bench::new(4);
        for (stream, owner) in [(1, owner(1, 1)), (2, owner(2, 2)), (3, owner(2, 3)), (4, owner(4, 6))] {
            assert!(bench.end(stream, owner, Finished).is_empty());
        }
        bench.now = bench.now.after(Duration::from_secs(60));
        bench.read(2, 30_000);
        bench.read(3, 20_000);
        assert_eq!(bench.end(5, owner(3, 4), Finished), [3], "both were read, the second one less");
        bench.ending.remove(ExitStream(1));
        assert!(bench.end(6, owner(3, 5), Finished).is_empty(), "the target of another has read all");
        assert_eq!(bench.ending.order.counts(), (4, 4, 3));
        assert_eq!((bench.ending.streams.len(), bench.ending.circuits.len()), (4, 4));
    }

    #[test]
    fn streams_that_their_origins_reset_cut_no_finished_stream_and_none_of_other_owners() {
        let mut bench = Bench::new(16);
        assert!(bench.end(1, owner(1, 1), Finished).is_empty());
        assert!(bench.end(2, owner(2, 2), Failed).is_empty());
        bench.now = bench.now.after(Duration::from_secs(60));
        // Each reset stream is newer, and its target has read more.
        for stream in 3..100 {
            let cut = bench.end(stream, owner(1, stream), Failed);
            assert!(!cut.contains(&1) && !cut.contains(&2), "stream {stream}");
            let read = bench.unread.keys().map(|stream| stream.0).filter(|stream| *stream > 2).collect::<Vec<_>>();
            read.into_iter().for_each(|stream| bench.read(stream, 1_000));
        }
        assert_eq!(bench.unread.len(), 16);
    }

    #[test]
    fn ended_streams_of_one_network_count_together() {
        let mut bench = Bench::new(5);
        let source = |host: u8| {
            let circuit_owner = Owner::of_address([192, 0, 2, host].into());
            RequestOwner { circuit_owner, circuit: host.into() }
        };
        // Five sources of a network are closer to its share, a quarter, than a source to a sixteenth.
        let other = RequestOwner { circuit_owner: Owner::of_address([198, 51, 100, 1].into()), circuit: 1000 };
        assert!(bench.end(1, other, Finished).is_empty());
        let cut: Vec<u64> = (2..=7).flat_map(|host| bench.end(host.into(), source(host), Finished)).collect();
        assert_eq!(cut, [2, 3]);
    }
}
