#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| umbel::fuzz::run("circuit_of_hostile_hop", input));
