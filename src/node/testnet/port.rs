//! Ports for relays, which must be told theirs before they start and find it free when they start again.
//!
//! A port that the system gave out by itself can't be kept: once let go, it may be given to the next socket that anybody
//! opens, and every dial opens some. So these are chosen below the range it gives out from.

use std::{
    net::{SocketAddr, UdpSocket},
    ops::Range,
};

use rand::{CryptoRng, RngExt as _};

use crate::node::Failure;

/// Below what Linux gives out by itself (32768 and up, `ip_local_port_range`), above what services use.
const RANGE: Range<u16> = 18_000..32_000;
/// Ports tried before the search is given up.
const TRIES: usize = 200;

/// A free UDP port on loopback.
///
/// # Errors
/// When none is found.
pub(super) fn free(rng: &mut impl CryptoRng) -> Result<SocketAddr, Failure> {
    let mut addresses = (0..TRIES).map(|_| SocketAddr::from(([127, 0, 0, 1], rng.random_range(RANGE))));
    addresses
        .find(|address| UdpSocket::bind(address).is_ok())
        .ok_or_else(|| Failure::Failed("no free UDP port on 127.0.0.1".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::drive::randomness;

    #[test]
    fn a_relay_gets_a_port_that_the_system_gives_to_nobody_by_itself() {
        let address = free(&mut randomness().unwrap()).unwrap();
        assert!(RANGE.contains(&address.port()));
        UdpSocket::bind(address).unwrap();
    }
}
