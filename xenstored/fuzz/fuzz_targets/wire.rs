#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    xenstored_fuzz::wire::run(data);
});
