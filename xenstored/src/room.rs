//! Whether there is memory for more.
//!
//! An allocation that fails ends the program. So it is refused before: whenever requests may have added a mebibyte it is
//! tried whether some more could be had, and as long as they could not, what would make the store grow is ENOMEM, and
//! clients that do not read what is for them are given up.

use vm_memory::MmapRegion;

/// Bytes that may be added between two looks.
const STEP: usize = 1024 * 1024;
/// Bytes that must be left then: what one request, the buffers of all and a removal may take meanwhile.
pub(crate) const MARGIN: usize = 8 * 1024 * 1024;

/// What was freed before is looked for in pieces of so many bytes.
const PIECE: usize = 256 * 1024;

/// So much is not looked for in pieces.
const MOST: usize = 256 * 1024 * 1024;

/// What was added since the last look, and what that has shown.
#[derive(Debug, Default)]
pub(crate) struct Room {
    grown: usize,
    short: bool,
}

impl Room {
    /// So many bytes may have been added.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.grown = self.grown.saturating_add(bytes);
    }

    /// Whether nothing more can be kept. As long as it is so it is looked every time.
    pub(crate) fn is_short(&mut self, margin: usize) -> bool {
        if self.short || self.grown >= STEP {
            let short = !is_there(margin);
            if short && !self.short {
                tracing::warn!("memory runs out: what would take more is refused");
            }
            (self.grown, self.short) = (0, short);
        }
        self.short
    }

    /// What the last look has shown.
    pub(crate) fn was_short(&self) -> bool {
        self.short
    }
}

/// Whether so many bytes could be had, from the system or of what was freed before. Nothing is touched.
pub(crate) fn is_there(bytes: usize) -> bool {
    // The system is asked directly: the allocator would learn from big pieces that come and go to keep them.
    MmapRegion::<()>::new(bytes).is_ok()
        || bytes <= MOST && {
            let pieces: Vec<Vec<u8>> = (0..bytes.div_ceil(PIECE)).map_while(|_| piece()).collect();
            pieces.len() * PIECE >= bytes
        }
}

fn piece() -> Option<Vec<u8>> {
    let mut piece = Vec::new();
    piece.try_reserve_exact(PIECE).ok()?;
    // Else the compiler may leave it out.
    Some(std::hint::black_box(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_looked_for_when_some_was_used() {
        assert!(is_there(MARGIN) && !is_there(1 << 50));
        let mut room = Room::default();
        let all = 1 << 50;
        assert!(!room.is_short(all), "nothing was added");
        room.note(STEP);
        assert!(room.is_short(all) && room.was_short());
        assert!(!room.is_short(MARGIN) && !room.was_short(), "looked at anew");
    }
}
