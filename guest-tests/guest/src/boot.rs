//! What the loader handed over.
#![forbid(unsafe_code)]

use crate::page::read_phys;
use core::sync::atomic::{AtomicU64, Ordering};
use xen_abi::hvm::start_info::{HvmMemmapTableEntry, HvmStartInfo, MemmapType};
use xen_abi::xen::PAGE_SHIFT;

pub(crate) static START_INFO: AtomicU64 = AtomicU64::new(0);

/// Address of the start info.
#[must_use]
pub fn start_info_addr() -> u64 {
    START_INFO.load(Ordering::Relaxed)
}

/// The start info.
#[must_use]
pub fn start_info() -> HvmStartInfo {
    read_phys(start_info_addr())
}

/// The memory map of the start info; empty before version 1.
pub fn memmap() -> impl Iterator<Item = HvmMemmapTableEntry> {
    let info = start_info();
    let entries = if info.version > 0 { info.memmap_entries.min(128) } else { 0 };
    (0..u64::from(entries)).map(move |i| read_phys(info.memmap_paddr + 24 * i))
}

/// A frame below 4 GiB that no entry of the memory map covers: room for special pages outside RAM.
///
/// `n` picks one of several neighbours.
#[must_use]
pub fn hole_gfn(n: u64) -> Option<u64> {
    let taken =
        |addr: u64| memmap().any(|e| addr < e.addr.saturating_add(e.size) && e.addr < addr + 0x10_0000);
    let base = (0x20..0xfe0).rev().map(|mib| mib << 20).find(|&addr| !taken(addr))?;
    Some((base >> PAGE_SHIFT) + n)
}

/// Pages of RAM in the memory map.
#[must_use]
pub fn ram_pages() -> u64 {
    memmap().filter(|e| e.r#type == MemmapType::RAM).map(|e| e.size >> PAGE_SHIFT).sum()
}

/// The command line, in words.
pub struct Words([u8; 256]);

impl Words {
    /// As the loader handed it over.
    #[must_use]
    pub fn read() -> Words {
        let at = start_info().cmdline_paddr;
        Words(if at == 0 { [0; 256] } else { read_phys(at) })
    }

    fn all(&self) -> impl Iterator<Item = &[u8]> {
        let line = self.0.split(|&byte| byte == 0).next().unwrap_or_default();
        line.split(|&byte| byte == b' ')
    }

    /// Whether it has this word.
    #[must_use]
    pub fn has(&self, word: &str) -> bool {
        self.all().any(|found| found == word.as_bytes())
    }

    /// The rest of the word that begins like this.
    #[must_use]
    pub fn text(&self, prefix: &str) -> Option<&[u8]> {
        self.all().find_map(|word| word.strip_prefix(prefix.as_bytes()))
    }

    /// The decimal number of the word that begins like this.
    #[must_use]
    pub fn number(&self, prefix: &str) -> Option<u32> {
        core::str::from_utf8(self.text(prefix)?).ok()?.parse().ok()
    }
}
