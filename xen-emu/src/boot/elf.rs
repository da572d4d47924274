//! The ELF image of a kernel: its PVH entry note and its loadable segments. Class and machine are judged apart, and
//! notes are found by file offset, because real kernels come in every mixture.

use super::kernel::{KernelFault, Segment};
use std::ops::Range;
use xen_abi::elfnote::{self, ElfNote};

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// A segment's rights: code that is not written.
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PT_NOTE: u32 = 4;
const SHT_NOTE: u32 = 7;

/// What the boot needs of an image.
#[derive(Debug)]
pub struct Parsed {
    /// XEN_ELFNOTE_PHYS32_ENTRY.
    pub entry: u32,
    /// The machine is x86-64.
    pub long_mode: bool,
    /// XEN_ELFNOTE_HYPERCALL_PAGE is there.
    pub hypercall_page: bool,
    /// XEN_ELFNOTE_GUEST_OS is `linux`.
    pub linux: bool,
    /// Every PT_LOAD that takes memory.
    pub segments: Vec<Segment>,
}

/// Little-endian numbers out of untrusted bytes.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    /// ELFCLASS64.
    wide: bool,
}

/// One row of the program or section header table, as far as it matters here.
struct Header {
    kind: u32,
    text: bool,
    offset: u64,
    paddr: u64,
    file_size: u64,
    mem_size: u64,
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(self, at: u64, what: &'static str) -> Result<[u8; N], KernelFault> {
        let bytes = self.slice(at, N as u64, what)?;
        bytes.try_into().map_err(|_| KernelFault::Malformed(what.to_owned()))
    }

    fn u16(self, at: u64, what: &'static str) -> Result<u16, KernelFault> {
        self.array(at, what).map(u16::from_le_bytes)
    }

    fn u32(self, at: u64, what: &'static str) -> Result<u32, KernelFault> {
        self.array(at, what).map(u32::from_le_bytes)
    }

    fn u64(self, at: u64, what: &'static str) -> Result<u64, KernelFault> {
        self.array(at, what).map(u64::from_le_bytes)
    }

    /// A number of the class's width: at `narrow` in ELFCLASS32, at `wide` in ELFCLASS64.
    fn word(self, base: u64, narrow: u64, wide: u64, what: &'static str) -> Result<u64, KernelFault> {
        if self.wide {
            self.u64(base.saturating_add(wide), what)
        } else {
            self.u32(base.saturating_add(narrow), what).map(u64::from)
        }
    }

    fn range(self, at: u64, len: u64, what: &'static str) -> Result<Range<usize>, KernelFault> {
        let end = at.saturating_add(len);
        let have = self.bytes.len() as u64;
        match (usize::try_from(at), usize::try_from(end)) {
            (Ok(from), Ok(to)) if end <= have => Ok(from..to),
            _ => Err(KernelFault::Truncated { what, end, have }),
        }
    }

    fn slice(self, at: u64, len: u64, what: &'static str) -> Result<&'a [u8], KernelFault> {
        let range = self.range(at, len, what)?;
        Ok(self.bytes.get(range).unwrap_or_default())
    }

    /// The rows of the program header table.
    fn program_headers(self) -> Result<Vec<Header>, KernelFault> {
        const WHAT: &str = "the program header table";
        let (count_at, size_at, smallest) = if self.wide { (56, 54, 56) } else { (44, 42, 32) };
        self.rows(self.word(0, 28, 32, WHAT)?, (count_at, size_at, smallest), WHAT, |base| {
            let rights = self.u32(base.saturating_add(if self.wide { 4 } else { 24 }), WHAT)?;
            Ok(Header {
                kind: self.u32(base, WHAT)?,
                text: rights & (PF_X | PF_W) == PF_X,
                offset: self.word(base, 4, 8, WHAT)?,
                paddr: self.word(base, 12, 24, WHAT)?,
                file_size: self.word(base, 16, 32, WHAT)?,
                mem_size: self.word(base, 20, 40, WHAT)?,
            })
        })
    }

    /// The rows of the section header table; of interest only where there are no PT_NOTEs.
    fn section_headers(self) -> Result<Vec<Header>, KernelFault> {
        const WHAT: &str = "the section header table";
        let (count_at, size_at, smallest) = if self.wide { (60, 58, 64) } else { (48, 46, 40) };
        self.rows(self.word(0, 32, 40, WHAT)?, (count_at, size_at, smallest), WHAT, |base| {
            Ok(Header {
                kind: self.u32(base.saturating_add(4), WHAT)?,
                text: false,
                offset: self.word(base, 16, 24, WHAT)?,
                paddr: self.word(base, 12, 16, WHAT)?,
                file_size: self.word(base, 20, 32, WHAT)?,
                mem_size: 0,
            })
        })
    }

    /// Every row of a header table; `shape` = where its count and its row size stand, and the smallest row.
    fn rows(
        self,
        table: u64,
        shape: (u64, u64, u64),
        what: &'static str,
        row: impl Fn(u64) -> Result<Header, KernelFault>,
    ) -> Result<Vec<Header>, KernelFault> {
        let count = u64::from(self.u16(shape.0, what)?);
        let size = u64::from(self.u16(shape.1, what)?);
        if count == 0 {
            return Ok(Vec::new());
        }
        if size < shape.2 {
            return Err(KernelFault::Malformed(format!(
                "{what} has rows of {size} bytes, {} needed",
                shape.2
            )));
        }
        self.range(table, count * size, what)?;
        (0..count).map(|index| row(table + index * size)).collect()
    }
}

/// Read an ELF image.
///
/// # Errors
/// Not for x86, no PVH entry, or headers that point outside the image.
pub fn parse(bytes: &[u8]) -> Result<Parsed, KernelFault> {
    let reader = Reader { bytes, wide: bytes.get(4) == Some(&2) };
    let long_mode = machine(reader)?;
    let headers = reader.program_headers()?;
    let segments = segments(reader, &headers)?;
    let notes = notes(reader, &headers)?;
    let entry = notes.entry.ok_or(KernelFault::NoPvhEntry)?;
    if !segments.iter().any(|s| (s.paddr..s.end()).contains(&u64::from(entry))) {
        return Err(KernelFault::Malformed(format!("the PVH entry {entry:#x} lies in none of its segments")));
    }
    Ok(Parsed { entry, long_mode, hypercall_page: notes.hypercall_page, linux: notes.linux, segments })
}

/// Where the first byte of the image would have to be for its first segment to be in place; from the headers alone.
pub fn home(start: &[u8]) -> Option<u64> {
    let reader = Reader { bytes: start, wide: start.get(4) == Some(&2) };
    machine(reader).ok()?;
    let headers = reader.program_headers().ok()?;
    let first = headers.iter().find(|h| h.kind == PT_LOAD && h.file_size > 0)?;
    first.paddr.checked_sub(first.offset)
}

/// Whether the machine is x86-64, after all that makes it no x86 ELF at all.
fn machine(reader: Reader) -> Result<bool, KernelFault> {
    let ident: [u8; 6] = reader.array(0, "the ELF header")?;
    match ident {
        [0x7f, b'E', b'L', b'F', 1 | 2, 1] => {}
        [0x7f, b'E', b'L', b'F', 1 | 2, _] => return Err(KernelFault::NotX86("a big-endian ELF image")),
        [0x7f, b'E', b'L', b'F', ..] => return Err(KernelFault::NotX86("an ELF image of unknown class")),
        _ => return Err(bzimage::Fault::Unknown.into()),
    }
    match reader.u16(18, "the ELF header")? {
        EM_386 => Ok(false),
        EM_X86_64 => Ok(true),
        _ => Err(KernelFault::NotX86("an ELF image for another machine")),
    }
}

fn segments(reader: Reader, headers: &[Header]) -> Result<Vec<Segment>, KernelFault> {
    let loads = headers.iter().filter(|h| h.kind == PT_LOAD && h.mem_size > 0);
    let segments = loads.map(|h| segment(reader, h)).collect::<Result<Vec<_>, _>>()?;
    if segments.is_empty() {
        return Err(KernelFault::Malformed("nothing to load (no PT_LOAD)".to_owned()));
    }
    Ok(segments)
}

fn segment(reader: Reader, header: &Header) -> Result<Segment, KernelFault> {
    let &Header { text, offset, paddr, file_size, mem_size, .. } = header;
    if file_size > mem_size {
        let said = format!("the segment at {paddr:#x} has {file_size} bytes for {mem_size} of memory");
        return Err(KernelFault::Malformed(said));
    }
    if paddr.checked_add(mem_size).is_none_or(|end| end > 1 << 32) {
        let said = format!("the segment at {paddr:#x} of {mem_size:#x} bytes is not below 4 GiB");
        return Err(KernelFault::Malformed(said));
    }
    // An empty segment (.bss alone) may name any offset.
    let file = if file_size == 0 { 0..0 } else { reader.range(offset, file_size, "a segment")? };
    Ok(Segment { paddr, file, mem_size, text })
}

/// The Xen notes that matter to the boot.
#[derive(Default)]
struct Notes {
    entry: Option<u32>,
    hypercall_page: bool,
    linux: bool,
}

/// All Xen notes: of the PT_NOTE segments, or of the SHT_NOTE sections where there is no such segment.
fn notes(reader: Reader, headers: &[Header]) -> Result<Notes, KernelFault> {
    let mut found = Notes::default();
    let mut segments = headers.iter().filter(|h| h.kind == PT_NOTE).peekable();
    if segments.peek().is_some() {
        for header in segments {
            read_notes(reader.slice(header.offset, header.file_size, "a note segment")?, &mut found)?;
        }
    } else {
        for header in reader.section_headers()?.iter().filter(|h| h.kind == SHT_NOTE) {
            read_notes(reader.slice(header.offset, header.file_size, "a note section")?, &mut found)?;
        }
    }
    Ok(found)
}

/// One run of notes: {name size, descriptor size, type, name, descriptor}, the last two padded to 4 bytes.
fn read_notes(bytes: &[u8], found: &mut Notes) -> Result<(), KernelFault> {
    const WHAT: &str = "a note";
    let reader = Reader { bytes, wide: false };
    let mut at = 0;
    while at + 12 <= bytes.len() as u64 {
        let name_size = u64::from(reader.u32(at, WHAT)?);
        let size = u64::from(reader.u32(at + 4, WHAT)?);
        let kind = ElfNote(reader.u32(at + 8, WHAT)?);
        let name = reader.slice(at + 12, name_size, WHAT)?;
        let descriptor_at = at + 12 + name_size.next_multiple_of(4);
        let descriptor = reader.slice(descriptor_at, size, WHAT)?;
        match kind {
            ElfNote::PHYS32_ENTRY if name == elfnote::NAME => found.entry = Some(entry(descriptor)?),
            ElfNote::HYPERCALL_PAGE if name == elfnote::NAME => found.hypercall_page = true,
            ElfNote::GUEST_OS if name == elfnote::NAME => found.linux = descriptor == b"linux\0",
            _ => {}
        }
        at = descriptor_at + size.next_multiple_of(4);
    }
    Ok(())
}

/// The entry point of the note: 4 or 8 bytes.
fn entry(descriptor: &[u8]) -> Result<u32, KernelFault> {
    let value = match descriptor.len() {
        4 => descriptor.try_into().ok().map(u32::from_le_bytes),
        8 => descriptor.try_into().ok().map(u64::from_le_bytes).and_then(|v| u32::try_from(v).ok()),
        _ => None,
    };
    value.ok_or_else(|| {
        KernelFault::Malformed("the PVH entry note is not an address below 4 GiB in 4 or 8 bytes".to_owned())
    })
}

#[cfg(test)]
pub(crate) mod tests {
    //! Parsing of images made here in every shape, and of damaged ones.
    use super::*;
    use proptest::prelude::*;

    /// XEN_ELFNOTE_PHYS32_ENTRY 0x1000040 in 8 bytes, as Linux writes it.
    pub const NOTE_ENTRY: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01\0\0\0\0";
    /// The same in 4 bytes, behind a foreign note and the hypercall page's.
    const NOTES_32: &[u8] = b"\x04\0\0\0\x05\0\0\0\x12\0\0\0GNU\0abcde\0\0\0\
        \x04\0\0\0\x04\0\0\0\x02\0\0\0Xen\0\0\x10\0\x01\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01";

    /// An image to be made.
    pub struct Elf {
        /// ELFCLASS64.
        pub wide: bool,
        /// e_machine.
        pub machine: u16,
        /// (paddr, file bytes, memory size)
        pub segments: Vec<(u64, Vec<u8>, u64)>,
        /// Note bytes.
        pub notes: Vec<u8>,
        /// The notes are a section, not a segment.
        pub note_section: bool,
    }

    impl Default for Elf {
        fn default() -> Self {
            Elf { wide: true, machine: EM_X86_64, segments: vec![], notes: vec![], note_section: false }
        }
    }

    impl Elf {
        fn word(&self, out: &mut Vec<u8>, value: u64) {
            let size = if self.wide { 8 } else { 4 };
            out.extend(&value.to_le_bytes()[..size]);
        }

        fn program_header(
            &self,
            out: &mut Vec<u8>,
            kind: u32,
            offset: usize,
            paddr: u64,
            size: (usize, u64),
        ) {
            out.extend(kind.to_le_bytes());
            if self.wide {
                out.extend(7u32.to_le_bytes());
            }
            for value in [offset as u64, paddr, paddr, size.0 as u64, size.1] {
                self.word(out, value);
            }
            if !self.wide {
                out.extend(7u32.to_le_bytes());
            }
            self.word(out, 4);
        }

        fn section_header(&self, out: &mut Vec<u8>, offset: usize) {
            out.extend(0u32.to_le_bytes());
            out.extend(SHT_NOTE.to_le_bytes());
            for value in [0, 0, offset as u64, self.notes.len() as u64] {
                self.word(out, value);
            }
            out.extend([0; 8]);
            self.word(out, 4);
            self.word(out, 0);
        }

        /// The file.
        pub fn bytes(&self) -> Vec<u8> {
            let (header, program, section) = if self.wide { (64, 56, 64) } else { (52, 32, 40) };
            let note_segment = !self.note_section && !self.notes.is_empty();
            let programs = self.segments.len() + usize::from(note_segment);
            let sections = usize::from(self.note_section);
            let section_table = header + programs * program;
            let notes_at = section_table + sections * section;
            let mut out = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
            out[4] = 1 + u8::from(self.wide);
            out.extend(2u16.to_le_bytes());
            out.extend(self.machine.to_le_bytes());
            out.extend(1u32.to_le_bytes());
            for value in [0, header, section_table] {
                self.word(&mut out, value as u64);
            }
            out.extend(0u32.to_le_bytes());
            for value in [header, program, programs, section, sections, 0] {
                out.extend(u16::try_from(value).unwrap().to_le_bytes());
            }
            let mut data_at = notes_at + self.notes.len();
            for (paddr, data, mem) in &self.segments {
                self.program_header(&mut out, PT_LOAD, data_at, *paddr, (data.len(), *mem));
                data_at += data.len();
            }
            if note_segment {
                self.program_header(&mut out, PT_NOTE, notes_at, 0, (self.notes.len(), 0));
            }
            if self.note_section {
                self.section_header(&mut out, notes_at);
            }
            out.extend(&self.notes);
            for (_, data, _) in &self.segments {
                out.extend(data);
            }
            out
        }
    }

    #[test]
    fn every_shape_of_image() {
        let data = b"\xf4 the code".to_vec();
        for (wide, machine, notes, note_section) in [
            (true, EM_X86_64, NOTE_ENTRY, false),
            (true, EM_X86_64, NOTES_32, true),
            (false, EM_X86_64, NOTES_32, false),
            (false, EM_386, NOTE_ENTRY, true),
        ] {
            let segments =
                vec![(0x100_0000, data.clone(), 0x2000), (0x100_3000, vec![], 0x1000), (0, vec![], 0)];
            let bytes = Elf { wide, machine, segments, notes: notes.to_vec(), note_section }.bytes();
            let parsed = parse(&bytes).unwrap();
            assert_eq!(parsed.entry, 0x100_0040);
            assert_eq!(parsed.long_mode, machine == EM_X86_64);
            assert_eq!(parsed.hypercall_page, notes == NOTES_32);
            assert_eq!(parsed.segments.len(), 2, "an empty segment is none");
            assert_eq!(bytes[parsed.segments[0].file.clone()], data);
            assert_eq!((parsed.segments[1].paddr, parsed.segments[1].end()), (0x100_3000, 0x100_4000));
        }
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let good = || Elf {
            segments: vec![(0x100_0000, vec![0xf4; 64], 64)],
            notes: NOTE_ENTRY.to_vec(),
            ..Elf::default()
        };
        let patch = |at: usize, bytes: &[u8]| {
            let mut image = good().bytes();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            image
        };
        let cases = [
            (patch(18, &[183]), "another machine"),
            (patch(5, &[2]), "big-endian"),
            (patch(4, &[9]), "unknown class"),
            (patch(32, &[0xff; 8]), "the program header table reaches to byte"),
            (patch(54, &[8, 0]), "rows of 8 bytes"),
            (patch(64 + 8, &[0xff; 8]), "a segment reaches to byte"),
            (patch(64 + 24, &[0xff; 8]), "not below 4 GiB"),
            (patch(64 + 40, &[1, 0]), "64 bytes for 1 of memory"),
            (patch(64 + 56 + 8, &[0xff; 8]), "a note segment reaches to byte"),
            (patch(64 + 112 + 4, &[0xff; 4]), "a note reaches to byte"),
            (patch(64 + 112 + 4, &[6]), "in 4 or 8 bytes"),
            (patch(64 + 112 + 20, &[1]), "below 4 GiB in 4 or 8 bytes"),
            (patch(64 + 112 + 16, &[0xff]), "lies in none of its segments"),
            (patch(64 + 112 + 8, &[17]), "no PVH entry"),
        ];
        for (image, expected) in cases {
            let said = parse(&image).map(|_| ()).unwrap_err().to_string();
            assert!(said.contains(expected), "{expected:?} expected: {said}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in prop::collection::vec((0usize..400, any::<u8>()), 1..6), cut in 0usize..400) {
            let mut image = Elf {
                segments: vec![(0x100_0000, vec![0xf4; 64], 64)],
                notes: NOTES_32.to_vec(),
                note_section: cut % 2 == 0,
                ..Elf::default()
            }.bytes();
            for (at, byte) in at {
                let len = image.len();
                image[at % len] = byte;
            }
            let len = image.len();
            if let Ok(parsed) = parse(&image[..len.saturating_sub(cut / 8)]) {
                for segment in parsed.segments {
                    prop_assert!(image.get(segment.file.clone()).is_some());
                    prop_assert!(segment.file.len() as u64 <= segment.mem_size && segment.end() <= 1 << 32);
                }
            }
        }

        #[test]
        fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), as_elf: bool) {
            if as_elf && bytes.len() >= 20 {
                bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
                bytes[18..20].copy_from_slice(&[62, 0]);
            }
            let _ = parse(&bytes);
        }
    }
}
