//! A kernel's hypercall instructions, written over for a host that does not report them.
//!
//! Linux without a hypercall page has two stubs: `xen_hypercall_amd` with VMMCALL and `xen_hypercall_intel` with VMCALL,
//! 16-aligned, with an ENDBR64 in front or not, and a return behind. The same instructions stand in many other places
//! that are none of ours, so exactly one stub of each is wanted, or nothing is touched.

const LENGTH: usize = 3;
const ALIGNMENT: usize = 16;

/// Why a kernel's calls cannot be rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{vmmcall} stubs with VMMCALL and {vmcall} with VMCALL where exactly one of each is wanted: only the two of Linux \
     from 6.1.121 and 6.12.6 on can be told from other code"
)]
pub struct Refusal {
    vmmcall: usize,
    vmcall: usize,
}

impl Refusal {
    /// There are no such stubs: a kernel that has a hypercall page, or none of Xen's at all.
    pub fn is_none_at_all(&self) -> bool {
        (self.vmmcall, self.vmcall) == (0, 0)
    }
}

/// The stubs in the code that has been looked at, by the addresses of their instructions.
#[derive(Default)]
pub struct Stubs {
    vmmcall: Vec<u64>,
    vmcall: Vec<u64>,
}

impl Stubs {
    /// Look at a piece of a kernel's code at its guest-physical address.
    pub fn look(&mut self, at: u64, code: &[u8]) {
        // A piece that begins between two multiples: from the next one on.
        let Some(first) = at.checked_next_multiple_of(ALIGNMENT as u64) else { return };
        let code = usize::try_from(first - at).ok().and_then(|skip| code.get(skip..)).unwrap_or_default();
        let (whole, rest) = code.as_chunks::<ALIGNMENT>();
        // 28 MB are looked at before a Linux starts: hardly anything is compared for nearly all of them.
        for (index, stub) in whole.iter().enumerate().filter(|(_, stub)| may_be_stub(stub)) {
            self.compare(first + (index * ALIGNMENT) as u64, stub);
        }
        self.compare(first + (whole.len() * ALIGNMENT) as u64, rest);
    }

    fn compare(&mut self, at: u64, stub: &[u8]) {
        let (skip, rest) = match stub {
            [0xf3, 0x0f, 0x1e, 0xfa, rest @ ..] => (4, rest),
            rest => (0, rest),
        };
        // VMMCALL or VMCALL, and JMP rel32 to a return thunk or RET.
        match rest {
            [0x0f, 0x01, 0xd9, 0xe9 | 0xc3, ..] => self.vmmcall.push(at + skip),
            [0x0f, 0x01, 0xc1, 0xe9 | 0xc3, ..] => self.vmcall.push(at + skip),
            _ => {}
        }
    }

    /// The two call sites.
    ///
    /// # Errors
    /// [`Refusal`] unless there is exactly one of each.
    pub fn both(&self) -> Result<[u64; 2], Refusal> {
        match (self.vmmcall.as_slice(), self.vmcall.as_slice()) {
            ([amd], [intel]) => Ok([*amd, *intel]),
            _ => Err(Refusal { vmmcall: self.vmmcall.len(), vmcall: self.vmcall.len() }),
        }
    }
}

/// Whether it begins with the first bytes of VMMCALL and VMCALL, or with ENDBR64 and those.
fn may_be_stub(stub: &[u8; ALIGNMENT]) -> bool {
    const ENDBR64: u32 = u32::from_le_bytes([0xf3, 0x0f, 0x1e, 0xfa]);
    const CALL: u16 = u16::from_le_bytes([0x0f, 0x01]);
    let [a, b, c, d, e, f, ..] = *stub;
    u16::from_le_bytes([a, b]) == CALL
        || u32::from_le_bytes([a, b, c, d]) == ENDBR64 && u16::from_le_bytes([e, f]) == CALL
}

/// What to write at each of the sites: OUT %al,$port and a NOP.
pub fn call_by(port: u8) -> [u8; LENGTH] {
    [0xe6, port, 0x90]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut text = vec![0x90; 0x200];
        for (at, bytes) in pieces {
            text[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        text
    }

    const AMD: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x01, 0xd9, 0xe9];
    const INTEL: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x01, 0xc1, 0xe9];
    const OLD_AMD: &[u8] = &[0x0f, 0x01, 0xd9, 0xe9];
    const OLD_INTEL: &[u8] = &[0x0f, 0x01, 0xc1, 0xc3];
    /// VMMCALL in the middle of a function.
    const INLINE: &[u8] = &[0x0f, 0x01, 0xd9, 0x48, 0x85, 0xc0];

    fn find<'a>(pieces: impl Iterator<Item = (u64, &'a [u8])>) -> Result<[u64; 2], Refusal> {
        let mut stubs = Stubs::default();
        pieces.for_each(|(at, code)| stubs.look(at, code));
        stubs.both()
    }

    #[test]
    fn exactly_one_stub_of_each_kind() {
        let find_in = |pieces: &[(usize, &[u8])]| find([(0x100_0000, &text(pieces)[..])].into_iter());
        assert_eq!(find_in(&[(0x40, AMD), (0x60, INTEL), (0x80, INLINE)]), Ok([0x100_0044, 0x100_0064]));
        assert_eq!(find_in(&[(0x40, OLD_AMD), (0x50, OLD_INTEL)]), Ok([0x100_0040, 0x100_0050]));
        let refused = |vmmcall, vmcall| Err(Refusal { vmmcall, vmcall });
        assert_eq!(find_in(&[(0x48, AMD), (0x60, INTEL)]), refused(0, 1), "not aligned");
        assert_eq!(find_in(&[(0x40, AMD), (0x60, AMD), (0x80, INTEL)]), refused(2, 1));
        assert_eq!(find_in(&[(0x40, INLINE)]), refused(0, 0));
    }

    #[test]
    fn pieces_are_taken_by_their_addresses() {
        let (first, second) = (text(&[(0x38, AMD)]), text(&[(0x20, INTEL)]));
        let pieces = [(0x1000_0008, &first[..]), (0x2000_0000, &second[..])];
        assert_eq!(find(pieces.into_iter()), Ok([0x1000_0044, 0x2000_0024]));
        // The last one may end with the code.
        let end = [&text(&[(0x40, INTEL)])[..], AMD].concat();
        assert_eq!(find([(0x1000, &end[..])].into_iter()), Ok([0x1204, 0x1044]));
        assert!(find([(8, &[][..]), (u64::MAX, &[1][..])].into_iter()).is_err());
    }
}
