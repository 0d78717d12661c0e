//! Chooses UDP ports for relays, which are configured before the start and must be free again at a restart.
//!
//! An ephemeral port can't be reserved: after its socket is closed, the system may assign it to any new socket of
//! any program. So these ports are below the ephemeral range.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::Range,
};

use rand::{CryptoRng, RngExt as _};

use crate::node::Failure;

/// Below the ephemeral range of Linux (32768 and up, `ip_local_port_range`), above the ports of common services.
const PORTS: Range<u16> = 18_000..32_000;
/// Ports tried before the search fails.
const MAX_TRIES: usize = 200;

/// Checks that relays can listen at `ip`.
///
/// # Errors
/// When `ip` isn't a single address of this machine.
pub(super) fn check(ip: IpAddr) -> Result<(), Failure> {
    // The unspecified address can't be dialled.
    if !ip.is_unspecified() && UdpSocket::bind((ip, 0)).is_ok() {
        return Ok(());
    }
    Err(Failure::usage(format!("--address {ip} is not an address of this machine; `ip address` lists them")))
}

/// The address of a free UDP port at `ip`.
///
/// # Errors
/// When no free port is found.
pub(super) fn free(ip: IpAddr, rng: &mut impl CryptoRng) -> Result<SocketAddr, Failure> {
    let mut addresses = (0..MAX_TRIES).map(|_| SocketAddr::from((ip, rng.random_range(PORTS))));
    addresses
        .find(|address| UdpSocket::bind(address).is_ok())
        .ok_or_else(|| Failure::failed(format!("found no free UDP port on {ip}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::drive::randomness;

    #[test]
    fn a_relays_port_is_outside_the_ephemeral_range() {
        let address = free([127, 0, 0, 1].into(), &mut randomness().unwrap()).unwrap();
        assert!(PORTS.contains(&address.port()));
        UdpSocket::bind(address).unwrap();
    }

    #[test]
    fn only_a_single_address_of_this_machine_is_accepted() {
        check([127, 0, 0, 1].into()).unwrap();
        // The first is the unspecified address, the second is reserved for documentation.
        for ip in [[0, 0, 0, 0], [198, 51, 100, 7]] {
            assert!(check(ip.into()).unwrap_err().to_string().contains("--address"));
        }
    }
}
