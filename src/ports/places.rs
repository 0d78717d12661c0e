//! Shares of a port's connections by isolation. No isolation can hold all connections of a port.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{base::Counter as _, connector::Isolation};

/// The numbers of held places.
#[derive(Debug, Default)]
struct HeldPlaces {
    all: usize,
    by_isolation: HashMap<Isolation, usize>,
}

/// The places of one port for connections whose isolation is known. Clones share the places.
///
/// The port's cap on connections bounds the held places. While at least three quarters of the cap are held, an
/// isolation that holds at least a quarter gets no further place.
#[derive(Clone, Debug)]
pub(super) struct ConnectionPlaces {
    cap: usize,
    held: Arc<Mutex<HeldPlaces>>,
}

impl ConnectionPlaces {
    /// The places of a port that has at most `cap` connections.
    pub(super) fn new(cap: usize) -> Self {
        Self { cap, held: Arc::default() }
    }

    /// A place for a connection of `isolation`, held until the value is dropped. `None` if the remaining places are
    /// reserved for other isolations.
    pub(super) fn take(&self, isolation: Isolation) -> Option<ConnectionPlace> {
        let quarter = self.cap.div_ceil(4);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_isolation = held.by_isolation.get(&isolation).copied().unwrap_or_default();
        if held.all >= self.cap.saturating_sub(quarter) && of_isolation >= quarter {
            return None;
        }
        held.all.increment();
        held.by_isolation.entry(isolation).or_default().increment();
        Some(ConnectionPlace { isolation, held: Arc::clone(&self.held) })
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    isolation: Isolation,
    held: Arc<Mutex<HeldPlaces>>,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all.decrement();
        if let Some(of_isolation) = held.by_isolation.get_mut(&self.isolation) {
            of_isolation.decrement();
            if *of_isolation == 0 {
                held.by_isolation.remove(&self.isolation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_isolation_holds_at_most_three_quarters_of_the_places() {
        let places = ConnectionPlaces::new(100);
        let (greedy, other) = (Isolation::of_listener("greedy"), Isolation::of_listener("other"));
        let mut held: Vec<_> = (0..200).filter_map(|_| places.take(greedy)).collect();
        assert_eq!(held.len(), 75);
        let others: Vec<_> = (0..200).filter_map(|_| places.take(other)).collect();
        assert_eq!(others.len(), 25);
        drop(others);
        held.truncate(74);
        assert!(places.take(greedy).is_some(), "fewer than three quarters are held");
        drop(held);
        assert!(places.held.lock().unwrap().by_isolation.is_empty());
    }
}
