//! The codec: bytes from anybody, in pieces of any size.

use xenstored::path::{Name, Path};
use xenstored::perms::Perm;
use xenstored::wire::{HEADER_LEN, Header, args, first_arg, number, one_arg, put, split};

use super::input::Input;

/// Takes the bytes for a stream and looks at every message in every way there is.
pub fn run(data: &[u8]) -> u64 {
    let mut input = Input(data);
    let piece = input.below(64) + 1;
    let stream = if input.once_in(16) { input.0.to_vec() } else { stream(&mut input) };
    let whole = messages(&stream, usize::MAX);
    assert_eq!(messages(&stream, piece), whole, "pieces of {piece}");
    for (header, payload) in &whole {
        look_at(payload);
        let mut again = Vec::new();
        put(&mut again, header.kind, header.req_id, header.tx_id, &[payload]).expect("it was a message");
        assert_eq!(split(&again), Ok(Some((*header, &payload[..]))));
        assert_eq!(Header::decode(&header.encode()), Some(*header));
    }
    whole.len() as u64
}

/// Messages with headers that are good most of the time, and payloads of what payloads are made of.
fn stream(input: &mut Input<'_>) -> Vec<u8> {
    const WORDS: [&[u8]; 12] = [
        b"\0",
        b"\0",
        b"/",
        b"/a",
        b"/local/domain/",
        b"7",
        b"@releaseDomain",
        b"r0",
        b"b7",
        b"-1",
        b"99999",
        b"//",
    ];
    let mut stream = Vec::new();
    while !input.is_empty() {
        let mut payload = Vec::new();
        for _ in 0..input.below(8) {
            match input.byte() {
                0..=31 => payload.extend_from_slice(input.bytes(8)),
                32 => payload.resize(4000, b'x'),
                _ => payload.extend_from_slice(input.pick(&WORDS)),
            }
        }
        let len = if input.once_in(250) { input.word() } else { u32::try_from(payload.len()).unwrap_or(0) };
        let header = [u32::from(input.byte()) % 30, input.word(), u32::from(input.byte()), len];
        header.iter().for_each(|word| stream.extend_from_slice(&word.to_le_bytes()));
        stream.extend_from_slice(&payload);
    }
    stream
}

/// The messages of a stream that comes in pieces, until one is too long.
fn messages(mut stream: &[u8], piece: usize) -> Vec<(Header, Vec<u8>)> {
    let (mut found, mut buffer) = (Vec::new(), Vec::new());
    while !stream.is_empty() {
        let (now, later) = stream.split_at(stream.len().min(piece));
        buffer.extend_from_slice(now);
        stream = later;
        loop {
            match split(&buffer) {
                Ok(Some((header, payload))) => {
                    assert_eq!(header.len as usize, payload.len());
                    assert!(payload.len() <= 4096);
                    found.push((header, payload.to_vec()));
                }
                Ok(None) => break,
                Err(too_long) => {
                    assert!(too_long.0 > 4096);
                    return found;
                }
            }
            let taken = HEADER_LEN + found.last().map_or(0, |(_, payload)| payload.len());
            buffer.drain(..taken);
        }
    }
    found
}

/// All parsers of payloads.
fn look_at(payload: &[u8]) {
    let list = args(payload).unwrap_or_default();
    for arg in list.iter().copied().chain(one_arg(payload)).chain(first_arg(payload).map(|(arg, _)| arg)) {
        assert!(!arg.contains(&0));
        let _ = (number::<u16>(arg), number::<u64>(arg));
        if let Ok(perm) = Perm::parse(arg) {
            assert_eq!(Perm::parse(perm.to_string().as_bytes()), Ok(perm));
        }
        for limit in [None, Some(2048)] {
            if let Ok(path) = Path::parse(arg, 7, limit) {
                let text = path.as_bytes();
                assert!(text.starts_with(b"/") && (text == b"/" || !text.ends_with(b"/")), "{path:?}");
                assert_eq!(Path::parse(text, 0, None).as_ref(), Ok(&path));
                assert_eq!(path.components().fold(Path::root(), |path, name| path.join(name)), path);
            }
            let _ = Name::parse(arg, 7, limit);
        }
    }
}
