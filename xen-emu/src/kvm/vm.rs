//! The virtual machine: memory slots and the interrupt controller.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION hands host addresses to the kernel")]

use crate::machine::pio::IGNORED_WRITES;
use crate::memory::Memory;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_READONLY, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use std::collections::BTreeMap;
use std::io;
use vmm_sys_util::eventfd::EventFd;

/// Three pages that Intel's KVM needs below 4 GiB, away from every special page and the ACPI region.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// Make a VM with a LAPIC per vCPU and `ioapic_pins` interrupt routes that end with an EOI exit.
pub fn create(kvm: &Kvm, ioapic_pins: u32) -> io::Result<VmFd> {
    let vm = kvm.create_vm()?;
    vm.set_identity_map_address(IDENTITY_MAP)?;
    vm.set_tss_address(TSS_ADDRESS)?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = ioapic_pins.into();
    vm.enable_cap(&split)?;
    if kvm.check_extension(Cap::IoeventfdNoLength) {
        // An event that nobody waits for ends each of these writes in the kernel.
        let nobody = EventFd::new(0)?;
        for &port in IGNORED_WRITES {
            vm.register_ioevent(&nobody, &IoEventAddress::Pio(port.into()), NoDatamatch)?;
        }
    }
    Ok(vm)
}

/// Memory slots in use, and numbers of those that were.
#[derive(Default)]
pub struct Slots {
    by_gfn: BTreeMap<u64, u32>,
    free: Vec<u32>,
}

impl Slots {
    /// Give the guest all regions of `memory`.
    pub fn add_regions(&mut self, vm: &VmFd, memory: &Memory) -> io::Result<()> {
        memory.regions().iter().try_for_each(|r| self.set(vm, r.base >> 12, r.size(), r.hva()))
    }

    /// Give the guest `size` bytes at host address `hva` at frame `gfn`. The memory behind `hva` lives as long as
    /// the process.
    pub fn set(&mut self, vm: &VmFd, gfn: u64, size: u64, hva: u64) -> io::Result<()> {
        self.place(vm, gfn, Piece { size, hva, flags: 0 })
    }

    /// Show the guest the page at host address `hva` at frame `gfn` too, to be written or not.
    pub fn alias(&mut self, vm: &VmFd, gfn: u64, hva: u64, write: bool) -> io::Result<()> {
        let flags = if write { 0 } else { KVM_MEM_READONLY };
        self.place(vm, gfn, Piece { size: 4096, hva, flags })
    }

    fn place(&mut self, vm: &VmFd, gfn: u64, piece: Piece) -> io::Result<()> {
        self.remove(vm, gfn)?;
        // Every number below these is in use or in `free`.
        let fresh = u32::try_from(self.by_gfn.len() + self.free.len()).map_err(io::Error::other)?;
        let slot = self.free.pop().unwrap_or(fresh);
        let placed = update(vm, slot, gfn, piece);
        if placed.is_ok() {
            self.by_gfn.insert(gfn, slot);
        } else {
            self.free.push(slot);
        }
        placed
    }

    /// Take away what [`Slots::set`] or [`Slots::alias`] gave at `gfn`; nothing there is fine.
    pub fn remove(&mut self, vm: &VmFd, gfn: u64) -> io::Result<()> {
        let Some(slot) = self.by_gfn.get(&gfn).copied() else { return Ok(()) };
        update(vm, slot, gfn, Piece { size: 0, hva: 0, flags: 0 })?;
        self.by_gfn.remove(&gfn);
        self.free.push(slot);
        Ok(())
    }
}

/// What is behind a slot.
struct Piece {
    size: u64,
    hva: u64,
    flags: u32,
}

fn update(vm: &VmFd, slot: u32, gfn: u64, piece: Piece) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: piece.flags,
        guest_phys_addr: gfn << 12,
        memory_size: piece.size,
        userspace_addr: piece.hva,
    };
    // SAFETY: the piece is in a mapping of `Memory`, which lives as long as the process and is only accessed as
    // volatile memory.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_slots_are_used_again() {
        let Ok(kvm) = Kvm::new() else { return eprintln!("SKIP: no /dev/kvm") };
        let vm = kvm.create_vm().unwrap();
        let memory = Memory::new(&[(0, 1 << 20)]).unwrap();
        let mut slots = Slots::default();
        slots.add_regions(&vm, &memory).unwrap();
        let hva = memory.regions()[0].hva();
        for gfn in 0x1000..0x1800 {
            slots.alias(&vm, gfn, hva, gfn % 2 == 0).unwrap();
        }
        assert!(slots.alias(&vm, 5, hva, true).is_err(), "RAM is there");
        assert!(slots.alias(&vm, 0x2000, hva + 1, true).is_err(), "no page");
        for gfn in (0x1000..0x1800).rev() {
            slots.remove(&vm, gfn).unwrap();
        }
        slots.remove(&vm, 0x1000).unwrap();
        slots.alias(&vm, 0x1000, hva, false).unwrap();
        slots.alias(&vm, 0x1000, hva, true).unwrap();
        assert_eq!((slots.by_gfn.len(), slots.free.len()), (2, 0x800), "and one that was refused");
    }
}
