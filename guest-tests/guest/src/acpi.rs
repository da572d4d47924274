//! The CPUs in the ACPI tables.
#![forbid(unsafe_code)]

use crate::{boot, page::read_phys};

/// A CPU of the MADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Processor UID: the Xen vCPU id.
    pub uid: u32,
    /// APIC id.
    pub apic_id: u32,
    /// Usable now.
    pub enabled: bool,
}

/// Address and length of the table with this signature.
#[must_use]
pub fn table(signature: [u8; 4]) -> Option<(u64, u32)> {
    let rsdp = boot::start_info().rsdp_paddr;
    if rsdp == 0 || read_phys::<[u8; 8]>(rsdp) != *b"RSD PTR " {
        return None;
    }
    // Version 0 has a table of 32-bit addresses only.
    let (root, size) = if read_u8(rsdp + 15) < 2 {
        (u64::from(read_u32(rsdp + 16)), 4)
    } else {
        (u64::from_le_bytes(read_phys(rsdp + 24)), 8)
    };
    let length = read_u32(root + 4).clamp(36, 4096);
    (0..u64::from(length - 36) / size)
        .map(|i| root + 36 + size * i)
        .map(|at| u64::from(read_u32(at)) | if size == 8 { u64::from(read_u32(at + 4)) << 32 } else { 0 })
        .find(|&table| read_phys::<[u8; 4]>(table) == signature)
        .map(|table| (table, read_u32(table + 4)))
}

fn read_u32(addr: u64) -> u32 {
    u32::from_le_bytes(read_phys(addr))
}

fn read_u8(addr: u64) -> u8 {
    let [byte] = read_phys::<[u8; 1]>(addr);
    byte
}

/// The usable CPUs in order.
pub fn cpus() -> impl Iterator<Item = Cpu> {
    let (madt, length) = table(*b"APIC").unwrap_or((0, 0));
    let end = madt + u64::from(length.min(0x1_0000));
    let mut at = madt + 44;
    core::iter::from_fn(move || {
        while at + 2 <= end {
            let (entry, size) = (at, read_u8(at + 1));
            at += u64::from(size.max(2));
            match read_u8(entry) {
                0 => {
                    let (uid, apic_id) = (read_u8(entry + 2).into(), read_u8(entry + 3).into());
                    return Some(Cpu { uid, apic_id, enabled: read_u32(entry + 4) & 1 != 0 });
                }
                9 => {
                    let (apic_id, flags, uid) =
                        (read_u32(entry + 4), read_u32(entry + 8), read_u32(entry + 12));
                    return Some(Cpu { uid, apic_id, enabled: flags & 1 != 0 });
                }
                _ => {}
            }
        }
        None
    })
    .filter(|cpu| cpu.enabled)
}
