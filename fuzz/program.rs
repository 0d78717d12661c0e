//! Passes libFuzzer's inputs to the fuzz target that the environment variable `UMBEL_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use umbel::fuzz::{FuzzTarget, target};

static TARGET: LazyLock<&FuzzTarget> =
    LazyLock::new(|| target(&std::env::var("UMBEL_FUZZ_TARGET").expect("UMBEL_FUZZ_TARGET must name a fuzz target")));

fuzz_target!(|input: &[u8]| (TARGET.run)(input));
