//! Streams whose two directions have ended at an exit, while their targets still read the last bytes.

use core::cmp::Reverse;
use std::collections::BTreeMap;

use crate::{
    base::{Activity, Counter as _, Instant, Owner},
    delegated::limits::RequestOwner,
    relay::ExitStream,
};

/// The ended streams of an exit, up to a cap. At the cap, one of the circuit owner with the most is cut: the one whose
/// target reads least ([`Activity`]). So neither many circuits nor targets that read nothing cut the streams of others.
pub(super) struct EndingStreams {
    cap: usize,
    streams: BTreeMap<ExitStream, EndingStream>,
}

struct EndingStream {
    owner: Option<RequestOwner>,
    /// Unread bytes at the last check.
    unread: usize,
    /// The bytes that the target has read since the end of the stream.
    activity: Activity,
}

impl EndingStreams {
    pub(super) const fn new(cap: usize) -> Self {
        Self { cap, streams: BTreeMap::new() }
    }

    /// Adds a stream that has ended, unless it is known.
    pub(super) fn insert(&mut self, now: Instant, stream: ExitStream, owner: Option<RequestOwner>, unread: usize) {
        self.streams.entry(stream).or_insert_with(|| EndingStream { owner, unread, activity: Activity::new(now) });
    }

    /// The next stream to cut, while there are more than the cap. `unread` returns the bytes that the target of a
    /// stream has not read; `None` if it has read all.
    pub(super) fn poll_cut(
        &mut self,
        now: Instant,
        unread: impl Fn(ExitStream) -> Option<usize>,
    ) -> Option<ExitStream> {
        if self.streams.len() <= self.cap {
            return None;
        }
        self.streams.retain(|stream, _| unread(*stream).is_some());
        if self.streams.len() <= self.cap {
            return None;
        }
        let (mut of_owner, mut of_circuit) = (BTreeMap::<Option<Owner>, usize>::new(), BTreeMap::new());
        for ending in self.streams.values() {
            of_owner.entry(ending.circuit_owner()).or_default().increment();
            of_circuit.entry(ending.owner).or_insert(0_usize).increment();
        }
        for (stream, ending) in &mut self.streams {
            let left = unread(*stream).unwrap_or_default();
            let read = core::mem::replace(&mut ending.unread, left).saturating_sub(left);
            ending.activity.carry(now, read, of_circuit.get(&ending.owner).copied().unwrap_or(1));
        }
        let order = |ending: &EndingStream| (Reverse(of_owner.get(&ending.circuit_owner())), ending.activity);
        let (stream, _) = self.streams.iter().min_by_key(|(_, ending)| order(ending))?;
        let stream = *stream;
        self.streams.remove(&stream);
        Some(stream)
    }
}

impl EndingStream {
    /// The circuit owner. All sources of a network count as one.
    fn circuit_owner(&self) -> Option<Owner> {
        self.owner.map(|owner| owner.circuit_owner.of_network())
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::base::RelayId;

    fn owner(relay: u8, circuit: u64) -> Option<RequestOwner> {
        Some(RequestOwner { circuit_owner: Owner::Relay(RelayId::from_bytes([relay; 32])), circuit })
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
        fn end(&mut self, stream: u64, owner: Option<RequestOwner>) -> Vec<u64> {
            self.unread.insert(ExitStream(stream), 1 << 20);
            self.ending.insert(self.now, ExitStream(stream), owner, 1 << 20);
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
        assert!(bench.end(1, owner(1, 1)).is_empty());
        for circuit in 2..100 {
            // The honest target reads 8 KiB a second, the others a byte.
            bench.now = bench.now.after(Duration::from_secs(1));
            bench.read(1, 8 << 10);
            let known: Vec<u64> = bench.unread.keys().map(|stream| stream.0).filter(|stream| *stream > 1).collect();
            known.into_iter().for_each(|stream| bench.read(stream, 1));
            let cut = bench.end(circuit, owner(1, circuit));
            assert!(!cut.contains(&1), "stream {circuit}");
        }
        assert_eq!(bench.unread.len(), 16);
    }

    #[test]
    fn the_owner_with_the_most_ended_streams_loses_one() {
        let mut bench = Bench::new(4);
        for (stream, owner) in [(1, owner(1, 1)), (2, owner(2, 2)), (3, owner(2, 3)), (4, None)] {
            assert!(bench.end(stream, owner).is_empty());
        }
        bench.now = bench.now.after(Duration::from_secs(60));
        bench.read(2, 30_000);
        bench.read(3, 20_000);
        assert_eq!(bench.end(5, owner(3, 4)), [3], "both were read, the second one less");
        bench.unread.remove(&ExitStream(1));
        assert!(bench.end(6, owner(3, 5)).is_empty(), "the target of another has read all");
    }

    #[test]
    fn ended_streams_of_one_network_count_together() {
        let mut bench = Bench::new(4);
        let source = |host: u8| {
            let circuit_owner = Owner::of_address([192, 0, 2, host].into());
            Some(RequestOwner { circuit_owner, circuit: host.into() })
        };
        for (stream, owner) in [(1, owner(1, 1)), (2, owner(1, 1)), (3, source(1)), (4, source(2))] {
            assert!(bench.end(stream, owner).is_empty());
        }
        assert_eq!(bench.end(5, source(3)), [3]);
    }
}
