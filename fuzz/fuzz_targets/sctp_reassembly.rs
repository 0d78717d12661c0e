#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| umbel::fuzz::run("sctp_reassembly", input));
