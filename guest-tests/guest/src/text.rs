//! Text without an allocator.
#![forbid(unsafe_code)]

use core::fmt;

/// At most `N` bytes of text; what does not fit is cut.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: u16,
}

/// Why a test did not succeed: small, since every step of a test may return it.
pub type Why = Text<120>;

impl<const N: usize> Text<N> {
    /// Formatted arguments as text of one line.
    #[must_use]
    pub fn of(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; N], len: 0 };
        // Writing to a Text never fails.
        let _ = fmt::write(&mut text, args);
        text
    }

    /// The text; a cut character at the end is dropped.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (to, from) in self.bytes.iter_mut().skip(usize::from(self.len)).zip(s.bytes()) {
            // One line stays one line: it is read by a harness.
            *to = if from == b'\n' { b' ' } else { from };
            self.len += 1;
        }
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
