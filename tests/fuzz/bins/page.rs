#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smolstore_fuzz::page::run(bytes));
