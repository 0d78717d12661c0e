//! Counters that saturate.

/// An integer that counts in steps of one. Saturates at both ends of its range.
pub trait Counter {
    /// Adds one.
    fn increment(&mut self);

    /// Subtracts one.
    fn decrement(&mut self);
}

macro_rules! counters {
    ($($integer:ty),*) => {
        $(impl Counter for $integer {
            #[inline]
            fn increment(&mut self) {
                *self = self.saturating_add(1);
            }

            #[inline]
            fn decrement(&mut self) {
                *self = self.saturating_sub(1);
            }
        })*
    };
}

counters!(u8, u16, u32, u64, usize);

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_counter_saturates_at_both_ends() {
        let mut count = 254_u8;
        (0..3).for_each(|_| count.increment());
        assert_eq!(count, 255);
        count.decrement();
        assert_eq!(count, 254);
        let mut count = 0_usize;
        count.decrement();
        assert_eq!(count, 0);
    }
}
