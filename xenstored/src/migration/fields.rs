//! Fields of a record, taken off the front one after the other.

/// What is left of a record or stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        self.u32().map(u32::cast_signed)
    }

    /// A string of `len` bytes, of which the last is its NUL.
    pub(super) fn string(&mut self, len: u16) -> Option<&'a [u8]> {
        match self.bytes(len.into())?.split_last() {
            Some((0, text)) => Some(text),
            _ => None,
        }
    }

    /// Type and body of a record, and its padding. The last one's may be missing.
    pub(super) fn record(&mut self) -> Option<(u32, &'a [u8])> {
        let kind = self.u32()?;
        let len = usize::try_from(self.u32()?).ok()?;
        let body = self.bytes(len)?;
        self.bytes(len.next_multiple_of(8).saturating_sub(len).min(self.0.len()));
        Some((kind, body))
    }

    /// `count` numbers, and after all of them as many strings, each with its NUL.
    pub(super) fn named(&mut self, count: u16) -> Option<Vec<(&'a [u8], u32)>> {
        let values = (0..count).map(|_| self.u32()).collect::<Option<Vec<u32>>>()?;
        values.into_iter().map(|value| Some((self.text()?, value))).collect()
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        self.bytes(end + 1)?.get(..end)
    }

    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }
}
