//! What a console session has shown. A domain built anew begins its console with the log of its earlier life; a
//! session that follows it there does not show that part twice.

/// As much as a console keeps for readers yet to come: its `limit` node.
const KEEP: usize = 1 << 20;

/// The newest output, and how much of it has come again.
#[derive(Default)]
pub struct Shown {
    bytes: Vec<u8>,
    /// So much of `bytes` the new stream has repeated; `None` once it says something new.
    repeated: Option<usize>,
}

impl Shown {
    /// The next stream may begin with what has been shown.
    pub fn expect_repetition(&mut self) {
        self.trim();
        self.repeated = (!self.bytes.is_empty()).then_some(0);
    }

    /// What of `read` is to be shown.
    pub fn news(&mut self, read: &[u8]) -> Vec<u8> {
        let (mut news, mut rest) = (Vec::new(), read);
        if let Some(at) = self.repeated {
            let expected = self.bytes.get(at..).unwrap_or_default();
            let same = expected.iter().zip(read).take_while(|(a, b)| a == b).count();
            rest = read.get(same..).unwrap_or_default();
            if rest.is_empty() && same < expected.len() {
                self.repeated = Some(at + same);
                return news;
            }
            if same < expected.len() {
                // Only alike so far: it is new from its first byte.
                news.extend_from_slice(self.bytes.get(..at + same).unwrap_or_default());
            }
            self.repeated = None;
        }
        news.extend_from_slice(rest);
        self.bytes.extend_from_slice(&news);
        if self.bytes.len() > 2 * KEEP {
            self.trim();
        }
        news
    }

    fn trim(&mut self) {
        self.bytes.drain(..self.bytes.len().saturating_sub(KEEP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repetition_is_swallowed_and_nothing_else() {
        for (stream, expected) in [
            (vec!["one\ntwo\n", "three\n"], "three\n"),
            (vec!["on", "e\ntw", "o\nthree\n", "one\n"], "three\none\n"),
            (vec!["one\ntwo\n"], ""),
            (vec!["one\ntw", "elve\n"], "one\ntwelve\n"),
            (vec!["other\n"], "other\n"),
        ] {
            let mut shown = Shown::default();
            assert_eq!(shown.news(b"one\ntwo\n"), b"one\ntwo\n");
            shown.expect_repetition();
            let news: Vec<u8> = stream.iter().flat_map(|part| shown.news(part.as_bytes())).collect();
            assert_eq!(String::from_utf8_lossy(&news), expected, "{stream:?}");
        }
        let mut shown = Shown::default();
        let flood: Vec<u8> = (0..5 * KEEP / 2).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect();
        flood.chunks(10_000).for_each(|part| drop(shown.news(part)));
        shown.expect_repetition();
        assert_eq!(shown.news(&flood[flood.len() - KEEP..]), b"", "a console repeats its newest part");
        assert_eq!(shown.news(b"next"), b"next");
    }
}
