//! Where everything of a PVH boot lies in guest memory (pure), and the writing of it.
//!
//! RAM starts at 0 and leaves out 0xf0000000 to 4 GiB, where the tables, the special pages and the APICs are. The
//! kernel goes where its headers say, the ramdisk as high below the hole as it can, and what `hvm_start_info` points
//! to into conventional memory. Everything lies below 4 GiB, as the entry's 32 bits demand.

use super::acpi::AcpiTables;
use super::kernel::Kernel;
use std::borrow::Cow;
use std::ops::Range;
use xen_abi::hvm::start_info::{
    HvmMemmapTableEntry, HvmModlistEntry, HvmStartInfo, MemmapType, XEN_HVM_START_MAGIC_VALUE,
};
use xen_domain::domain::MemmapEntry;
use xen_domain::mem::{Fault, Gfn, Gpa, GuestMem};
use zerocopy::IntoBytes;

/// The console ring's frame: the last of the special pages (libxenguest).
pub const CONSOLE_GFN: Gfn = Gfn(0xf_efff);
/// The store ring's frame.
pub const STORE_GFN: Gfn = Gfn(0xf_effc);
/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_MAX: u64 = 0xf000_0000;
/// RAM goes on here.
pub const HIGH_RAM_BASE: u64 = 1 << 32;

/// The eight special pages, reserved in the memory map (libxenguest: they end at X86_HVM_END_SPECIAL_REGION).
const SPECIAL_PAGES: Range<u64> = 0xfeff_8000..0xff00_0000;
/// Video memory and ROMs of a PC: RAM here too, but nothing is placed where guests expect none.
const ISA_HOLE: Range<u64> = 0xa_0000..0x10_0000;
/// Where a copy of the RSDP is, among those addresses at which PCs have it: a PVH guest's Linux does not tell the kernel that it starts by
/// kexec where it was told it is, and that one looks there.
const RSDP_COPY: u64 = 0xf_0000;
const PAGE: u64 = 4096;

/// How `ram` bytes split: from 0 up, and from [`HIGH_RAM_BASE`] up.
pub const fn ram_split(ram: u64) -> (u64, u64) {
    if ram <= LOW_RAM_MAX { (ram, 0) } else { (LOW_RAM_MAX, ram - LOW_RAM_MAX) }
}

/// The memory map as libxl gives it to a PVH guest, in address order.
pub fn memory_map(ram: u64, acpi: &AcpiTables) -> Vec<MemmapEntry> {
    let (low, high) = ram_split(ram);
    let rows = [
        (0, low, MemmapType::RAM),
        (acpi.base, acpi.image.len() as u64, MemmapType::ACPI),
        (SPECIAL_PAGES.start, SPECIAL_PAGES.end - SPECIAL_PAGES.start, MemmapType::RESERVED),
        (HIGH_RAM_BASE, high, MemmapType::RAM),
    ];
    let present = rows.into_iter().filter(|row| row.1 > 0);
    present.map(|(addr, size, kind)| MemmapEntry { addr, size, kind: kind.0 }).collect()
}

/// Guest memory is too small for what shall be booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The kernel alone does not fit.
    #[error("the kernel needs {} MiB (it loads up to {end:#x}), memory = {}", mib(*end), ram >> 20)]
    Kernel {
        /// The first address behind it.
        end: u64,
        /// Guest RAM in bytes.
        ram: u64,
    },
    /// The kernel fits, something beside it does not.
    #[error("kernel and {what} need about {} MiB (the {what} takes {size} bytes), memory = {}", mib(*needs), ram >> 20)]
    Beside {
        /// What found no room.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// RAM in bytes that would do.
        needs: u64,
        /// Guest RAM in bytes.
        ram: u64,
    },
}

/// MiB, rounded up.
const fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What is handed to the kernel beside its command line.
#[derive(Debug)]
pub struct Module<'a> {
    /// What messages call it.
    pub what: &'static str,
    /// All of it.
    pub bytes: &'a [u8],
    /// Its own command line; empty for none.
    pub cmdline: &'a str,
}

/// A boot laid out.
#[derive(Debug)]
pub struct Layout<'a> {
    /// What the guest is told of its memory.
    pub memory_map: Vec<MemmapEntry>,
    /// Address of `hvm_start_info`: EBX at the entry.
    pub start_info: u32,
    writes: Vec<(Gpa, Cow<'a, [u8]>)>,
}

impl Layout<'_> {
    /// Write everything: kernel, ramdisk, start info, firmware tables. Memory must be zero before, for the parts of
    /// the kernel that the file leaves out are.
    ///
    /// # Errors
    /// [`Fault`]: the memory is not what [`memory_map`] says.
    pub fn write(&self, mem: &dyn GuestMem) -> Result<(), Fault> {
        self.writes.iter().try_for_each(|(gpa, bytes)| mem.write(*gpa, bytes))
    }

    /// What goes where: address and bytes.
    #[cfg(test)]
    fn pieces(&self) -> impl Iterator<Item = (Gpa, &[u8])> {
        self.writes.iter().map(|(gpa, bytes)| (*gpa, &**bytes))
    }
}

/// Unless the kernel is there.
fn rsdp_copy<'a>(acpi: &'a AcpiTables, kernel: &Kernel) -> Option<(Gpa, Cow<'a, [u8]>)> {
    let rsdp = acpi.rsdp();
    let end = RSDP_COPY + rsdp.len() as u64;
    let free = kernel.segments.iter().all(|s| s.end() <= RSDP_COPY || end <= s.paddr);
    free.then_some((Gpa(RSDP_COPY), Cow::Borrowed(rsdp)))
}

/// Lay out a boot in `ram` bytes of guest memory (whole pages).
///
/// # Errors
/// [`LayoutError`]: too little memory, with the numbers.
pub fn layout<'a>(
    kernel: &'a Kernel,
    modules: &[Module<'a>],
    cmdline: &str,
    ram: u64,
    acpi: &'a AcpiTables,
) -> Result<Layout<'a>, LayoutError> {
    let (low, _) = ram_split(ram);
    if kernel.end() > low {
        return Err(LayoutError::Kernel { end: kernel.end(), ram });
    }
    let mut busy = Busy(vec![0..PAGE, ISA_HOLE]);
    busy.0.extend(kernel.segments.iter().map(|s| s.paddr..s.end()));
    let mut writes: Vec<(Gpa, Cow<[u8]>)> = vec![(Gpa(acpi.base), Cow::Borrowed(&acpi.image))];
    writes.extend(rsdp_copy(acpi, kernel));
    writes.extend(kernel.segments.iter().map(|s| (Gpa(s.paddr), Cow::Borrowed(kernel.segment_bytes(s)))));
    let beside = |what, size| LayoutError::Beside { what, size, needs: kernel.end() + size + (1 << 20), ram };

    let mut placed = Vec::new();
    for module in modules {
        let size = module.bytes.len() as u64;
        let paddr = busy.take_below(low, size).ok_or_else(|| beside(module.what, size))?;
        writes.push((Gpa(paddr), Cow::Borrowed(module.bytes)));
        placed.push((paddr, module));
    }

    let memory_map = memory_map(ram, acpi);
    let block = |base| start_block(base, &placed, &memory_map, cmdline, acpi.rsdp);
    let size = block(0).len() as u64;
    let paddr = busy.take_below(low.min(ISA_HOLE.start), size).or_else(|| busy.take_below(low, size));
    let paddr = paddr.ok_or_else(|| beside("start info", size))?;
    writes.push((Gpa(paddr), Cow::Owned(block(paddr))));
    let start_info = u32::try_from(paddr).map_err(|_| beside("start info", size))?;
    Ok(Layout { memory_map, start_info, writes })
}

/// Ranges that are taken.
struct Busy(Vec<Range<u64>>);

impl Busy {
    /// Take the highest free pages for `size` bytes that end at `top` or lower.
    fn take_below(&mut self, top: u64, size: u64) -> Option<u64> {
        let fit = |end: u64| end.checked_sub(size).map(|start| start / PAGE * PAGE);
        let mut start = fit(top)?;
        while let Some(taken) = self.0.iter().find(|r| r.start < start + size && start < r.end) {
            start = fit(taken.start)?;
        }
        self.0.push(start..start + size);
        Some(start)
    }
}

/// `hvm_start_info` and what it points to, in one block for address `base`: start info, modules, memory map, command
/// lines. Its size does not depend on the address.
fn start_block(
    base: u64,
    modules: &[(u64, &Module<'_>)],
    memory_map: &[MemmapEntry],
    cmdline: &str,
    rsdp: u64,
) -> Vec<u8> {
    let entry = |e: &MemmapEntry| HvmMemmapTableEntry {
        addr: e.addr,
        size: e.size,
        r#type: MemmapType(e.kind),
        reserved: 0,
    };
    let memmap: Vec<u8> = memory_map.iter().flat_map(|e| entry(e).as_bytes().to_vec()).collect();
    let modlist_paddr = base + size_of::<HvmStartInfo>() as u64;
    let memmap_paddr = modlist_paddr + (modules.len() * size_of::<HvmModlistEntry>()) as u64;
    let cmdline_paddr = memmap_paddr + memmap.len() as u64;
    let mut cmdlines = [cmdline.as_bytes(), &[0]].concat();
    let mut modlist = Vec::new();
    for (paddr, module) in modules {
        let own = if module.cmdline.is_empty() { 0 } else { cmdline_paddr + cmdlines.len() as u64 };
        let size = module.bytes.len() as u64;
        modlist.extend_from_slice(
            HvmModlistEntry { paddr: *paddr, size, cmdline_paddr: own, reserved: 0 }.as_bytes(),
        );
        if own != 0 {
            cmdlines.extend_from_slice(module.cmdline.as_bytes());
            cmdlines.push(0);
        }
    }
    let start_info = HvmStartInfo {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        flags: 0,
        nr_modules: u32::try_from(modules.len()).unwrap_or(0),
        modlist_paddr: if modules.is_empty() { 0 } else { modlist_paddr },
        cmdline_paddr,
        rsdp_paddr: rsdp,
        memmap_paddr,
        memmap_entries: u32::try_from(memory_map.len()).unwrap_or(0),
        reserved: 0,
    };
    [start_info.as_bytes(), &modlist, &memmap, &cmdlines].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::acpi;
    use crate::boot::elf::tests::{Elf, NOTE_ENTRY};
    use proptest::prelude::*;
    use std::io::Write;

    const MIB: u64 = 1 << 20;

    fn kernel(segments: &[(u64, u64)]) -> Kernel {
        let mut segments: Vec<_> =
            segments.iter().map(|&(paddr, size)| (paddr, vec![0xf4; 100], size)).collect();
        segments.push((0x100_0000, vec![0x90; 0x1000], 0x1000)); // where the note's entry is
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&Elf { segments, notes: NOTE_ENTRY.to_vec(), ..Elf::default() }.bytes()).unwrap();
        Kernel::open(file.path(), |_| None).unwrap()
    }

    fn ramdisks(bytes: Option<&[u8]>) -> Vec<Module<'_>> {
        bytes.into_iter().map(|bytes| Module { what: "ramdisk", bytes, cmdline: "" }).collect()
    }

    #[test]
    fn memory_map_below_and_above_the_hole() {
        let acpi = acpi::build(true, 1, 1);
        let map = |mib: u64| -> Vec<_> {
            memory_map(mib * MIB, &acpi).iter().map(|e| (e.addr, e.addr + e.size, e.kind)).collect()
        };
        let reserved = [(0xfc00_0000, 0xfc00_1000, 3), (0xfeff_8000, 0xff00_0000, 2)];
        assert_eq!(map(32), [&[(0, 0x200_0000, 1)], &reserved[..]].concat());
        assert_eq!(map(3840), [&[(0, 0xf000_0000, 1)], &reserved[..]].concat());
        let above = (0x1_0000_0000, 0x1_5000_0000, 1);
        assert_eq!(map(5120), [&[(0, 0xf000_0000, 1)], &reserved[..], &[above]].concat());
    }

    /// What a guest reads, following the pointers.
    #[test]
    fn a_guest_finds_everything() {
        let kernel = kernel(&[(0x110_0000, 0x20_0000)]);
        let acpi = acpi::build(true, 1, 1);
        let ramdisk: Vec<u8> = (0..70_001u32).map(|i| i.to_le_bytes()[1]).collect();
        let modules = [("ramdisk", &ramdisk[..], ""), ("kernel", &[0x7f; 100], "root=/dev/xvda")]
            .map(|(what, bytes, cmdline)| Module { what, bytes, cmdline });
        let layout = layout(&kernel, &modules, "console=hvc0 quiet", 32 * MIB, &acpi).unwrap();
        let mut ram = vec![0u8; 32 << 20];
        for (gpa, bytes) in layout.pieces().filter(|(gpa, _)| gpa.0 < 32 * MIB) {
            ram[usize::try_from(gpa.0).unwrap()..][..bytes.len()].copy_from_slice(bytes);
        }
        let word = |at: u64| u64::from_le_bytes(ram[usize::try_from(at).unwrap()..][..8].try_into().unwrap());
        let info = u64::from(layout.start_info);
        assert_eq!((info, word(info)), (0x9_f000, 1 << 32 | 0x336e_c578));
        assert_eq!(word(info + 8), 2 << 32, "two modules");
        assert_eq!(word(info + 32), acpi.rsdp);
        assert_eq!(&ram[0xf_0000..][..8], b"RSD PTR ");
        let checksum = |of: &[u8]| of.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((checksum(&ram[0xf_0000..][..20]), checksum(&ram[0xf_0000..][..36])), (0, 0));
        let module = word(info + 16);
        let (paddr, size) = (word(module), word(module + 8));
        assert_eq!((paddr, size), (32 * MIB - 0x1_2000, 70_001), "as high as it goes");
        assert!(ram[usize::try_from(paddr).unwrap()..][..ramdisk.len()] == ramdisk);
        assert_eq!((word(module + 16), word(module + 24)), (0, 0), "no command line of its own");
        assert_eq!((word(module + 32), word(module + 40)), (32 * MIB - 0x1_3000, 100));
        assert!(ram[usize::try_from(word(module + 48)).unwrap()..].starts_with(b"root=/dev/xvda\0"));
        let cmdline = usize::try_from(word(info + 24)).unwrap();
        assert!(ram[cmdline..].starts_with(b"console=hvc0 quiet\0"));
        let (memmap, entries) = (word(info + 40), word(info + 48));
        assert_eq!(entries, 3);
        assert_eq!([0, 8, 16].map(|at| word(memmap + at)), [0, 32 * MIB, 1]);
        assert_eq!([24, 32, 40].map(|at| word(memmap + at)), [0xfc00_0000, 0x1000, 3]);
        assert_eq!(ram[0x110_0000..][..100], [0xf4; 100]);
    }

    #[test]
    fn too_little_memory_says_the_numbers() {
        let big = kernel(&[(0x110_0000, 60 * MIB)]);
        let acpi = acpi::build(true, 1, 1);
        let said = |ramdisk: Option<&[u8]>, mib: u64| {
            layout(&big, &ramdisks(ramdisk), "", mib * MIB, &acpi).map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(said(None, 64), "the kernel needs 77 MiB (it loads up to 0x4d00000), memory = 64");
        let ramdisk = vec![0; 80 << 20];
        assert_eq!(
            said(Some(&ramdisk), 96),
            "kernel and ramdisk need about 158 MiB (the ramdisk takes 83886080 bytes), memory = 96"
        );
        assert!(layout(&big, &[], "", 77 * MIB, &acpi).is_ok());
        assert!(layout(&big, &ramdisks(Some(&ramdisk)), "", 158 * MIB, &acpi).is_ok());
    }

    #[test]
    fn start_info_evades_a_kernel_in_low_memory() {
        let low = kernel(&[(0, 17 * MIB)]);
        let acpi = acpi::build(false, 1, 1);
        let layout = layout(&low, &ramdisks(Some(&[1; 5000])), "x", 32 * MIB, &acpi).unwrap();
        assert_eq!(u64::from(layout.start_info), 32 * MIB - 0x3000, "below the ramdisk");
    }

    proptest! {
        #[test]
        fn pieces_never_overlap(
            segments in prop::collection::vec((0u64..64 * MIB, 1u64..8 * MIB), 0..5),
            ramdisk in 0usize..(4 << 20),
            cmdline in 0usize..3000,
            mib in 16u64..80,
        ) {
            let segments: Vec<_> = segments.iter().map(|&(at, size)| (at, size.max(100))).collect();
            let kernel = kernel(&segments);
            let (ramdisk, cmdline) = (vec![7; ramdisk], "c".repeat(cmdline));
            let acpi = acpi::build(true, 1, 1);
            if let Ok(layout) = layout(&kernel, &ramdisks(Some(&ramdisk)), &cmdline, mib * MIB, &acpi) {
                let taken: Vec<_> = kernel.segments.iter().map(|s| s.paddr..s.end()).collect();
                let copy = layout.pieces().any(|(gpa, _)| gpa.0 == RSDP_COPY);
                prop_assert_eq!(copy, taken.iter().all(|t| t.end <= RSDP_COPY || RSDP_COPY + 36 <= t.start));
                let placed: Vec<_> = layout.pieces().skip(1 + usize::from(copy) + taken.len()).collect();
                prop_assert_eq!(placed.len(), 2);
                for (index, (gpa, bytes)) in placed.iter().enumerate() {
                    let end = gpa.0 + bytes.len() as u64;
                    prop_assert!(gpa.0 % PAGE == 0 && gpa.0 >= PAGE && end <= mib * MIB);
                    prop_assert!(taken.iter().all(|t| end <= t.start || t.end <= gpa.0) || bytes.is_empty());
                    let other = placed[1 - index];
                    prop_assert!(end <= other.0.0 || other.0.0 + other.1.len() as u64 <= gpa.0);
                }
            }
        }
    }
}
