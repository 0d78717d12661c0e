#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| umbel::fuzz::run("signed_volunteer_list", input));
