//! Chooses UDP ports for relays. A relay's port is configured before its start, and must be free again at a restart.
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
/// Maximum ports tried.
const MAX_TRIES: usize = 200;

/// Checks that relays can listen at `ip`.
///
/// # Errors
/// When `ip` is unspecified (0.0.0.0, ::) or not an address of this machine.
pub(super) fn check_address(ip: IpAddr) -> Result<(), Failure> {
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
pub(super) fn find_free_address(ip: IpAddr, rng: &mut impl CryptoRng) -> Result<SocketAddr, Failure> {
    let mut addresses = (0..MAX_TRIES).map(|_| SocketAddr::from((ip, rng.random_range(PORTS))));
    addresses.find(|address| UdpSocket::bind(address).is_ok()).ok_or_else(|| {
        let Range { start, end } = PORTS;
        Failure::failed(format!(
            "found no free UDP port on {ip} in {MAX_TRIES} tries from {start} to {}; try again or choose another \
             --address",
            end.saturating_sub(1)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::drive::randomness;

    #[test]
    fn a_relays_port_is_outside_the_ephemeral_range() {
        let address = find_free_address([127, 0, 0, 1].into(), &mut randomness().unwrap()).unwrap();
        assert!(PORTS.contains(&address.port()));
        UdpSocket::bind(address).unwrap();
    }

    #[test]
    fn the_unspecified_and_foreign_addresses_are_refused() {
        check_address([127, 0, 0, 1].into()).unwrap();
        // The first is the unspecified address, the second is reserved for documentation.
        for ip in [[0, 0, 0, 0], [198, 51, 100, 7]] {
            assert!(check_address(ip.into()).unwrap_err().to_string().contains("--address"));
        }
    }
}
