//! The order in which an exit ends streams whose targets read too slowly.

use core::cmp::Reverse;
use std::collections::BTreeMap;

use crate::{base::Owner, delegated::limits::RequestOwner, relay::ExitStream};

/// Streams by their unread bytes: first those of the circuit owner with the most, among them those of its circuit with
/// the most, and among these the one with the most. All sources of a network count as one circuit owner, and so do streams
/// without an owner.
pub(super) fn by_fullest_owner(mut streams: Vec<(Option<RequestOwner>, usize, ExitStream)>) -> Vec<ExitStream> {
    let mut of_owner = BTreeMap::<Option<Owner>, usize>::new();
    let mut of_circuit = BTreeMap::<Option<RequestOwner>, usize>::new();
    let circuit_owner = |owner: Option<RequestOwner>| owner.map(|owner| owner.circuit_owner.of_network());
    for (owner, bytes, _) in &streams {
        for sum in [of_owner.entry(circuit_owner(*owner)).or_default(), of_circuit.entry(*owner).or_default()] {
            *sum = sum.saturating_add(*bytes);
        }
    }
    streams.sort_by_cached_key(|(owner, bytes, _)| {
        Reverse((of_owner.get(&circuit_owner(*owner)), circuit_owner(*owner), of_circuit.get(owner), *owner, *bytes))
    });
    streams.into_iter().map(|(_, _, stream)| stream).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::RelayId;

    fn owner(relay: u8, circuit: u64) -> Option<RequestOwner> {
        Some(RequestOwner { circuit_owner: Owner::Relay(RelayId::from_bytes([relay; 32])), circuit })
    }

    #[test]
    fn the_fullest_stream_of_the_fullest_circuit_of_the_fullest_owner_is_first() {
        let unread = [
            (owner(1, 1), 100, 1),
            (owner(2, 2), 30, 2),
            (owner(2, 2), 31, 3),
            (owner(2, 3), 60, 4),
            (None, 90, 5),
            (owner(3, 4), 90, 6),
        ];
        let order = by_fullest_owner(unread.map(|(owner, bytes, stream)| (owner, bytes, ExitStream(stream))).to_vec());
        assert_eq!(order.iter().map(|stream| stream.0).collect::<Vec<_>>(), [3, 2, 4, 1, 6, 5]);
    }
}
