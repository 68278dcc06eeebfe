#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smolstore_fuzz::walk::run(bytes));
