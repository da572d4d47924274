//! A guest's ring page with anything in it, and the store behind it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use xenstored::out::Out;
use xenstored::ring::Ring;
use xenstored::store::Store;
use xenstored::wire::{HEADER_LEN, split};

use super::input::Input;

/// Offsets of `req_cons`, `req_prod`, `rsp_cons`, `rsp_prod`, features, connection and error.
const WORDS: [u64; 7] = [2048, 2052, 2056, 2060, 2064, 2068, 2072];

thread_local! {
    /// One page for all runs: what one leaves in it is what the next one begins with.
    static PAGE: (Ring, File) = {
        let file = File::from(memfd_create(c"ring", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(4096).expect("a page");
        (Ring::new(file.try_clone().expect("a descriptor").into()).expect("a ring"), file)
    };
}

/// Plays the bytes.
pub fn run(data: &[u8]) -> u64 {
    PAGE.with(|(ring, file)| play(ring, file, Input(data)))
}

fn play(ring: &Ring, file: &File, mut input: Input<'_>) -> u64 {
    let mut store = Store::new();
    let host = store.connect();
    let (mut inbox, mut outbox, mut out) = (Vec::new(), Vec::new(), Out::default());
    let mut requests = 0;
    let start = input.pick(&[0, 0, 1023, 0xffff_fff0]);
    WORDS[..4].iter().for_each(|at| set(file, *at, start));
    ring.start(0xf, false).expect("the page is there");
    while !input.is_empty() {
        match input.byte() {
            // A word of its own choice.
            0..=15 => {
                let (at, value) = (input.pick(&WORDS), input.word());
                let value = if input.once_in(2) { value } else { start.wrapping_add(value % 2048) };
                set(file, at, value);
            }
            // Anything anywhere in the page.
            16..=31 => {
                let at = u64::from(input.word()) % 4000;
                file.write_all_at(input.bytes(64), at).expect("within the page");
            }
            // Bytes as a good guest sends them: requests, or the beginning of some.
            32..=159 => {
                let bytes = message(&mut input);
                let prod = word(file, 2052);
                for (byte, at) in bytes.iter().zip(0..) {
                    file.write_all_at(&[*byte], u64::from(prod.wrapping_add(at) % 1024))
                        .expect("within the page");
                }
                set(file, 2052, prod.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0)));
            }
            // It reads, or says so.
            160..=191 => set(file, 2056, word(file, 2060)),
            192..=195 => {
                if ring.wants_reconnect().expect("the page is there") {
                    ring.start(0xf, true).expect("the page is there");
                    (inbox, outbox) = (Vec::new(), Vec::new());
                    store.reset(host);
                }
            }
            // The store's turn.
            _ => {
                let before = inbox.len();
                let Ok(taken) = ring.receive(&mut inbox) else { return requests };
                assert!(taken <= 1024 && inbox.len() == before + taken);
                loop {
                    let Ok(message) = split(&inbox) else { return requests };
                    let Some((header, payload)) = message else { break };
                    store.handle(host, header, payload, false, &mut out);
                    let used = HEADER_LEN + payload.len();
                    inbox.drain(..used);
                    requests += 1;
                    out.messages().for_each(|(_, bytes, _)| outbox.extend_from_slice(bytes));
                    assert!(out.messages().any(|(_, _, event)| !event), "no reply");
                    out.clear();
                }
                let Ok(sent) = ring.send(&outbox) else { return requests };
                assert!(sent <= 1024);
                outbox.drain(..sent);
                // As the server, which takes nothing more while so much waits.
                if outbox.len() > 1 << 16 {
                    return requests;
                }
            }
        }
    }
    store.check().expect("the books are right");
    requests
}

fn message(input: &mut Input<'_>) -> Vec<u8> {
    let path = input.pick(&["/a", "/a/b", "/", "@x", "/a b"]);
    let kind = u32::from(input.byte()) % 28;
    let mut payload = format!("{path}\0").into_bytes();
    payload.extend_from_slice(input.bytes(usize::from(input.0.first().copied().unwrap_or(0)) % 16));
    let len = if input.once_in(16) { input.word() } else { u32::try_from(payload.len()).unwrap_or(0) };
    let header = [kind, 1, 0, len].map(u32::to_le_bytes).concat();
    [header, payload].concat()
}

fn word(file: &File, at: u64) -> u32 {
    let mut word = [0; 4];
    file.read_exact_at(&mut word, at).expect("within the page");
    u32::from_le_bytes(word)
}

fn set(file: &File, at: u64, value: u32) {
    file.write_all_at(&value.to_le_bytes(), at).expect("within the page");
}
