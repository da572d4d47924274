//! A guest kernel, opened: where it is entered and what goes where in guest memory.

use super::{elf, map};
use memmap2::{Mmap, MmapMut};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One piece of the image, at its place in guest memory (an ELF PT_LOAD).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address of its first byte.
    pub paddr: u64,
    /// Its bytes in the ELF image; may be empty. Never longer than `mem_size`, never outside.
    pub file: Range<usize>,
    /// Bytes it takes in guest memory; those behind the file's are zero.
    pub mem_size: u64,
    /// It holds code and nothing that is written (PF_X without PF_W).
    pub text: bool,
}

impl Segment {
    /// The first address behind it; segments that wrap around are refused on opening.
    pub fn end(&self) -> u64 {
        self.paddr.saturating_add(self.mem_size)
    }
}

/// A kernel with a PVH entry.
#[derive(Debug)]
pub struct Kernel {
    /// Where it wants to be entered: 32-bit, paging off (XEN_ELFNOTE_PHYS32_ENTRY).
    pub entry: u32,
    /// It will run 64-bit code (ELF machine x86-64; the class does not matter).
    pub long_mode: bool,
    /// It asks for a hypercall page (XEN_ELFNOTE_HYPERCALL_PAGE) and will write the MSR.
    pub hypercall_page: bool,
    /// It says that it is Linux (XEN_ELFNOTE_GUEST_OS).
    pub linux: bool,
    /// What to load, in the order of the file.
    pub segments: Vec<Segment>,
    image: Image,
}

/// Where the ELF image lives.
#[derive(Debug)]
enum Image {
    /// In the file: a plain ELF, or one stored uncompressed in a bzImage.
    Mapped(Mmap, Range<usize>),
    /// Unpacked from a bzImage; so many bytes of the memory.
    Unpacked(MmapMut, usize),
    /// Unpacked straight into guest memory: the bytes of the segments that are not in place there.
    Placed(Vec<(Range<usize>, Vec<u8>)>),
}

impl Image {
    fn get(&self, range: &Range<usize>) -> Option<&[u8]> {
        match self {
            Image::Mapped(file, image) => file.get(image.clone())?.get(range.clone()),
            Image::Unpacked(memory, length) => memory.get(..*length)?.get(range.clone()),
            Image::Placed(rest) => rest.iter().find(|(of, _)| of == range).map(|(_, bytes)| &bytes[..]),
        }
    }

    /// Unpack into guest memory where `room` gives it, so that the largest segments need no copy; else beside it.
    fn unpack<'m>(
        packed: &[u8],
        room: impl FnOnce(Range<u64>) -> Option<&'m mut [u8]>,
    ) -> Result<(Image, elf::Parsed), KernelFault> {
        let payload = bzimage::Payload::new(packed)?;
        let home = elf::home(&payload.start()).filter(|&at| at >= LOWEST);
        if let Some(at) = home
            && let Some(end) = at.checked_add(payload.size as u64)
            && let Some(target) = room(at..end)
        {
            let length = payload.unpack(target)?;
            let parsed = elf::parse(target.get(..length).unwrap_or_default())?;
            let rest = settle(target, at, &parsed.segments);
            return Ok((Image::Placed(rest), parsed));
        }
        let mut memory = map::anonymous(payload.size).map_err(KernelFault::NoMemory)?;
        let length = payload.unpack(&mut memory)?;
        let parsed = elf::parse(memory.get(..length).unwrap_or_default())?;
        Ok((Image::Unpacked(memory, length), parsed))
    }
}

/// No image is unpacked in place below this: there the boot's own pieces are put.
const LOWEST: u64 = 1 << 20;

/// The image lies at guest-physical `at`, all of it in `target`: take out the segments that belong elsewhere, and clear
/// what is no segment in its place.
fn settle(target: &mut [u8], at: u64, segments: &[Segment]) -> Vec<(Range<usize>, Vec<u8>)> {
    let in_place = |s: &&Segment| s.paddr == at + s.file.start as u64;
    let mut rest = Vec::new();
    for segment in segments.iter().filter(|s| !in_place(s)) {
        rest.push((segment.file.clone(), target.get(segment.file.clone()).unwrap_or_default().to_vec()));
    }
    let mut kept: Vec<_> = segments.iter().filter(in_place).map(|s| s.file.clone()).collect();
    kept.sort_by_key(|range| range.start);
    let mut from = 0;
    for range in kept.into_iter().chain(std::iter::once(target.len()..target.len())) {
        if let Some(gap) = target.get_mut(from..range.start.max(from)) {
            gap.fill(0);
        }
        from = from.max(range.end);
    }
    rest
}

/// Why a kernel cannot be booted; displays as one line that names the file.
#[derive(Debug, thiserror::Error)]
#[error("kernel {}: {fault}", path.display())]
pub struct KernelError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: KernelFault,
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum KernelFault {
    /// It is not there.
    #[error("no such file")]
    Missing,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// An ELF image of something else.
    #[error("not an x86 kernel: {0}")]
    NotX86(&'static str),
    /// Not bootable by PVH.
    #[error(
        "no PVH entry (XEN_ELFNOTE_PHYS32_ENTRY): Linux before 4.11 or built without CONFIG_PVH; pvshim = 1 runs PV kernels"
    )]
    NoPvhEntry,
    /// The image is shorter than it says.
    #[error("truncated: {what} reaches to byte {end}, but there are only {have}")]
    Truncated {
        /// The part that is not all there.
        what: &'static str,
        /// Where it ends by the headers.
        end: u64,
        /// Length of the image.
        have: u64,
    },
    /// Headers that contradict themselves.
    #[error("malformed: {0}")]
    Malformed(String),
    /// It is no kernel file, or cannot be unpacked.
    #[error(transparent)]
    File(#[from] bzimage::Fault),
    /// The host has no memory to unpack to.
    #[error("no memory to unpack it: {0}")]
    NoMemory(io::Error),
}

fn map_file(path: &Path) -> Result<Mmap, KernelFault> {
    map::map_file(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KernelFault::Missing,
        _ => KernelFault::Unreadable(error),
    })
}

impl Kernel {
    /// Open a kernel file: an ELF image, gzipped or not, or a bzImage that holds one. A compressed one is unpacked
    /// straight into guest memory when `room` gives the range asked for, which must be zero; no guest runs yet.
    ///
    /// # Errors
    /// [`KernelError`]: not there, not a kernel, no PVH entry, damaged, or packed in an unknown way.
    pub fn open<'m>(
        path: &Path,
        room: impl FnOnce(Range<u64>) -> Option<&'m mut [u8]>,
    ) -> Result<Kernel, KernelError> {
        Self::load(path, room).map_err(|fault| KernelError { path: path.to_owned(), fault })
    }

    /// An ELF image and nothing else: of a guest's own kernel nothing is unpacked here. `name`: for messages.
    ///
    /// # Errors
    /// As [`Kernel::open`]'s.
    pub fn of_elf(image: MmapMut, name: &Path) -> Result<Kernel, KernelError> {
        let parsed = elf::parse(&image).map_err(|fault| KernelError { path: name.to_owned(), fault })?;
        let length = image.len();
        Ok(Kernel::of(Image::Unpacked(image, length), parsed))
    }

    fn load<'m>(
        path: &Path,
        room: impl FnOnce(Range<u64>) -> Option<&'m mut [u8]>,
    ) -> Result<Kernel, KernelFault> {
        let file = map_file(path)?;
        let range = bzimage::kernel(&file)?;
        let bytes = file.get(range.clone()).unwrap_or_default();
        if bytes.starts_with(bzimage::ELF) {
            return Kernel::mapped(file, range);
        }
        let (image, parsed) = Image::unpack(bytes, room)?;
        Ok(Kernel::of(image, parsed))
    }

    /// An ELF image that lies in its file.
    fn mapped(file: Mmap, range: Range<usize>) -> Result<Kernel, KernelFault> {
        let parsed = elf::parse(file.get(range.clone()).unwrap_or_default())?;
        Ok(Kernel::of(Image::Mapped(file, range), parsed))
    }

    fn of(image: Image, parsed: elf::Parsed) -> Kernel {
        let elf::Parsed { entry, long_mode, hypercall_page, linux, segments } = parsed;
        Kernel { entry, long_mode, hypercall_page, linux, segments, image }
    }

    /// The bytes that are still to be written for one of its segments: none for one that is in place already.
    pub fn segment_bytes(&self, segment: &Segment) -> &[u8] {
        self.image.get(&segment.file).unwrap_or_default()
    }

    /// The first address behind all segments.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::elf::tests::{Elf, NOTE_ENTRY};
    use bzimage::testing::{Pack, bzimage};
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn nowhere(_: Range<u64>) -> Option<&'static mut [u8]> {
        None
    }

    fn guests(bytes: &[u8]) -> Result<Kernel, KernelError> {
        let mut image = map::anonymous(bytes.len()).unwrap();
        image.copy_from_slice(bytes);
        Kernel::of_elf(image, Path::new("xvda:/vmlinuz"))
    }

    fn elf() -> Vec<u8> {
        let text: Vec<u8> = (0..300_000u32).map(|i| (i / 7).to_le_bytes()[0]).collect();
        Elf { segments: vec![(0x100_0000, text, 0x10_0000)], notes: NOTE_ENTRY.to_vec(), ..Elf::default() }
            .bytes()
    }

    #[test]
    fn every_packing_gives_the_same_kernel() {
        let elf = elf();
        let plain = Kernel::open(file(&elf).path(), nowhere).unwrap();
        assert_eq!((plain.entry, plain.long_mode, plain.hypercall_page), (0x100_0040, true, false));
        assert_eq!(plain.segments.len(), 1);
        assert_eq!(guests(&elf).unwrap().segments, plain.segments);
        for pack in Pack::ALL {
            let packed = file(&bzimage(&elf, pack));
            let kernel = Kernel::open(packed.path(), nowhere).unwrap_or_else(|e| panic!("{pack:?}: {e}"));
            assert_eq!(kernel.segments, plain.segments, "{pack:?}");
            let said = guests(&bzimage(&elf, pack)).unwrap_err().to_string();
            assert!(said.ends_with("neither an ELF image nor a Linux bzImage"), "{pack:?}: {said}");
            assert!(
                kernel.segment_bytes(&kernel.segments[0]) == plain.segment_bytes(&plain.segments[0]),
                "{pack:?}"
            );
        }
    }

    #[test]
    fn a_gzipped_image_is_its_own_payload() {
        let elf = elf();
        let kernel = Kernel::open(file(&Pack::Gzip.stream(&elf)).path(), nowhere).unwrap();
        let plain = Kernel::open(file(&elf).path(), nowhere).unwrap();
        assert_eq!((kernel.entry, &kernel.segments), (plain.entry, &plain.segments));
        assert!(kernel.segment_bytes(&kernel.segments[0]) == plain.segment_bytes(&plain.segments[0]));
        let ramdisk = file(&Pack::Gzip.stream(b"070701 no kernel"));
        let said = Kernel::open(ramdisk.path(), nowhere).unwrap_err().to_string();
        assert!(said.ends_with("neither an ELF image nor a Linux bzImage"), "{said}");
    }

    #[test]
    fn unpacked_in_place_is_the_same_as_written() {
        let noise = |n: u32| -> Vec<u8> {
            (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
        };
        // The second segment belongs elsewhere, the third follows the first's distance again.
        let elf = Elf {
            segments: vec![
                (0x100_0000, noise(400_000), 0x8_0000),
                (0x300_0000, noise(5_000), 0x2000),
                (0x120_0000, noise(70_000), 0x2_0000),
            ],
            notes: NOTE_ENTRY.to_vec(),
            ..Elf::default()
        }
        .bytes();
        let base = 0x100_0000;
        for pack in [Pack::Zstd, Pack::Xz, Pack::Gzip, Pack::Lz4] {
            let packed = file(&bzimage(&elf, pack));
            let mut asked = None;
            let mut ram = vec![0u8; 64 << 20];
            let kernel = Kernel::open(packed.path(), |range: Range<u64>| {
                asked = Some(range.clone());
                ram.get_mut(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
            })
            .unwrap();
            assert!(asked.is_some() || matches!(pack, Pack::Lz4), "{pack:?} was not unpacked in place");
            let plain = Kernel::open(file(&elf).path(), nowhere).unwrap();
            let mut expected = vec![0u8; ram.len()];
            for (kernel, ram) in [(&plain, &mut expected), (&kernel, &mut ram)] {
                for segment in &kernel.segments {
                    let (at, bytes) =
                        (usize::try_from(segment.paddr).unwrap(), kernel.segment_bytes(segment));
                    ram[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            assert!(ram == expected, "{pack:?}");
            assert_eq!(kernel.segments[0].paddr, base);
        }
    }

    #[test]
    fn a_packed_kernel_that_wants_to_lie_at_the_end_of_all_addresses_is_refused() {
        let segments = vec![(u64::MAX - 0x1000, vec![0; 0x800], 0x800)];
        let elf = Elf { segments, notes: NOTE_ENTRY.to_vec(), ..Elf::default() }.bytes();
        let said = Kernel::open(file(&bzimage(&elf, Pack::Zstd)).path(), nowhere).unwrap_err().to_string();
        assert!(said.contains("is not below 4 GiB"), "{said}");
    }

    #[test]
    fn errors_say_what_and_where() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("vmlinuz");
        let no_note = Elf { segments: vec![(0x10_0000, vec![0; 64], 64)], ..Elf::default() }.bytes();
        let elf = elf();
        let cases: [(Vec<u8>, &str); 4] = [
            (b"#!/bin/sh\necho".to_vec(), "neither an ELF image nor a Linux bzImage"),
            (Vec::new(), "neither an ELF image nor a Linux bzImage"),
            (
                no_note,
                "no PVH entry (XEN_ELFNOTE_PHYS32_ENTRY): Linux before 4.11 or built without CONFIG_PVH; pvshim = 1 runs PV kernels",
            ),
            (elf[..elf.len() / 2].to_vec(), "truncated: "),
        ];
        assert_eq!(
            Kernel::open(&missing, nowhere).unwrap_err().to_string(),
            format!("kernel {}: no such file", missing.display())
        );
        for (bytes, expected) in cases {
            let file = file(&bytes);
            let said = Kernel::open(file.path(), nowhere).unwrap_err().to_string();
            assert!(said.contains(expected) && !said.contains('\n'), "{said}");
        }
        assert!(Kernel::open(dir.path(), nowhere).unwrap_err().to_string().contains("cannot be read"));
    }
}
