//! Name and value of a node in one piece. Most are small: they need no memory of their own, and no look elsewhere.

/// Bytes that fit in without.
const SMALL: usize = 37;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    Small { name: u8, len: u8, bytes: [u8; SMALL] },
    // A path has at most 3072 bytes.
    Large { name: u16, bytes: Box<[u8]> },
}

impl Text {
    pub(crate) fn new(name: &[u8], value: &[u8]) -> Self {
        let len = name.len() + value.len();
        let mut bytes = [0; SMALL];
        match (bytes.get_mut(..len), u8::try_from(name.len()), u8::try_from(len)) {
            (Some(text), Ok(name_len), Ok(len)) => {
                let (to_name, to_value) = text.split_at_mut(name.len());
                to_name.copy_from_slice(name);
                to_value.copy_from_slice(value);
                Self::Small { name: name_len, len, bytes }
            }
            _ => {
                let name_len = u16::try_from(name.len()).unwrap_or(u16::MAX);
                Self::Large { name: name_len, bytes: [name, value].concat().into() }
            }
        }
    }

    fn all(&self) -> (usize, &[u8]) {
        match self {
            Self::Small { name, len, bytes } => {
                (usize::from(*name), bytes.get(..usize::from(*len)).unwrap_or_default())
            }
            Self::Large { name, bytes } => (usize::from(*name), bytes),
        }
    }

    pub(crate) fn name(&self) -> &[u8] {
        let (name, all) = self.all();
        all.get(..name).unwrap_or_default()
    }

    pub(crate) fn value(&self) -> &[u8] {
        let (name, all) = self.all();
        all.get(name..).unwrap_or_default()
    }

    pub(crate) fn set_value(&mut self, value: &[u8]) {
        match self {
            Self::Large { name, bytes } if bytes.len() == usize::from(*name) + value.len() => {
                bytes.get_mut(usize::from(*name)..).into_iter().for_each(|old| old.copy_from_slice(value));
            }
            _ => *self = Self::new(self.name(), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_all_lengths_come_back() {
        assert_eq!(size_of::<Text>(), 40);
        for name in ["", "a", "a-name-of-twenty-1-b", "a-name-that-does-not-fit-in-at-all"] {
            let mut text = Text::new(name.as_bytes(), b"");
            for len in [0, 1, 2, 21, 22, 37, 38, 38, 4096, 1, 37, 0] {
                let value = vec![b'v'; len];
                text.set_value(&value);
                assert_eq!((text.name(), text.value()), (name.as_bytes(), &*value), "{name} {len}");
                let new = Text::new(name.as_bytes(), &value);
                assert_eq!((new.name(), new.value()), (name.as_bytes(), &*value), "{name} {len}");
                assert_eq!(matches!(text, Text::Small { .. }), name.len() + len <= SMALL);
            }
        }
    }
}
