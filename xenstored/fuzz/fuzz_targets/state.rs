#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    xenstored_fuzz::state::run(data);
});
