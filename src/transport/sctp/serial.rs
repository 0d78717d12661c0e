//! TSNs as 64-bit numbers, so that wrap-around (RFC 1982) is confined to this module.

/// The 64-bit number closest to `reference` whose lowest 32 bits are `tsn`.
pub(super) const fn expand(reference: u64, tsn: u32) -> u64 {
    #[allow(clippy::cast_possible_truncation, reason = "truncation to the lowest bits is intended")]
    let distance = tsn.wrapping_sub(reference as u32).cast_signed();
    reference.saturating_add_signed(distance as i64)
}

/// The TSN of a 64-bit number, as in a packet.
#[allow(clippy::cast_possible_truncation, reason = "truncation to the lowest bits is intended")]
pub(super) const fn wire(tsn: u64) -> u32 {
    tsn as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_number_is_found_on_both_sides_of_a_wrap() {
        let reference = (5 << 32) | 0xffff_fff0;
        assert_eq!(expand(reference, 0xffff_fff1), reference + 1);
        assert_eq!(expand(reference, 4), reference + 20);
        assert_eq!(expand(reference + 32, 0xffff_fff0), reference);
        assert_eq!(wire(reference + 20), 4);
    }
}
