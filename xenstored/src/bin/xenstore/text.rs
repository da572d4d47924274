//! Values as text: what is not printable is escaped.

use std::error::Error;
use std::fmt::Write;

/// A value as it is shown.
#[must_use]
pub fn escape(value: &[u8]) -> String {
    let mut text = String::new();
    for &byte in value {
        // Writing to a string cannot fail.
        let _ = match byte {
            b'\t' => text.write_str("\\t"),
            b'\n' => text.write_str("\\n"),
            b'\r' => text.write_str("\\r"),
            b'\\' => text.write_str("\\\\"),
            b' '..=b'~' => text.write_char(char::from(byte)),
            0..=7 => write!(text, "\\{byte:03o}"),
            _ => write!(text, "\\x{byte:02x}"),
        };
    }
    text
}

/// A value as it is typed: `\t \n \r \\`, `\xHH`, up to three octal digits; any other character stands for itself.
#[must_use]
pub fn unescape(text: &str) -> Vec<u8> {
    let mut value = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        let (letter, after) = rest.split_first().map_or((0, rest), |(&letter, after)| (letter, after));
        let (byte, after) = match letter {
            b't' => (b'\t', after),
            b'n' => (b'\n', after),
            b'r' => (b'\r', after),
            b'x' => digits(after, 16, 2).unwrap_or((b'x', after)),
            b'0'..=b'7' => digits(rest, 8, 3).unwrap_or((letter, after)),
            _ => (letter, after),
        };
        value.push(byte);
        rest = after;
    }
    value
}

/// The number of up to `most` digits at the front, cut to a byte, and what is behind it.
fn digits(text: &[u8], radix: u32, most: usize) -> Option<(u8, &[u8])> {
    let digit = |byte: &u8| char::from(*byte).to_digit(radix);
    let count = text.iter().take(most).take_while(|byte| digit(byte).is_some()).count();
    let number = text.iter().take(count).filter_map(digit).fold(0, |number, digit| number * radix + digit);
    let low = number.to_le_bytes()[0];
    (count > 0).then_some((low, text.get(count..).unwrap_or_default()))
}

/// An error with its causes in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_xenstore_utils() {
        for (value, text) in [
            (&b"a b~"[..], "a b~"),
            (b"a\t\n\r\\", "a\\t\\n\\r\\\\"),
            (b"\x00\x07\x087\x7f\xff", "\\000\\007\\x087\\x7f\\xff"),
        ] {
            assert_eq!(escape(value), text);
            assert_eq!(unescape(text), value);
        }
        for (text, value) in [
            ("\\x4", &b"\x04"[..]),
            ("\\x414", b"A4"),
            ("\\xzz\\x", b"xzzx"),
            ("\\101\\1\\18", b"A\x01\x018"),
            ("\\777\\400", b"\xff\x00"),
            ("\\q\\\"", b"q\""),
            ("a\\", b"a\0"),
        ] {
            assert_eq!(unescape(text), value, "{text}");
        }
    }
}
