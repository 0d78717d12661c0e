#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| umbel::fuzz::run("clean_url", input));
