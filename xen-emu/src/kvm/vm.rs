//! The virtual machine: memory slots and the interrupt controller.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION hands host addresses to the kernel")]

use crate::memory::Memory;
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use std::collections::BTreeMap;
use std::io;

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
    Ok(vm)
}

/// Memory slots in use.
#[derive(Default)]
pub struct Slots {
    by_gfn: BTreeMap<u64, u32>,
}

impl Slots {
    /// Give the guest all regions of `memory`.
    pub fn add_regions(&mut self, vm: &VmFd, memory: &Memory) -> io::Result<()> {
        memory.regions().iter().try_for_each(|r| self.set(vm, r.base >> 12, r.size(), r.hva()))
    }

    /// Give the guest `size` bytes at host address `hva` at frame `gfn`. The memory behind `hva` lives as long as
    /// the process.
    pub fn set(&mut self, vm: &VmFd, gfn: u64, size: u64, hva: u64) -> io::Result<()> {
        self.remove(vm, gfn)?;
        let slot = (0..).find(|slot| !self.by_gfn.values().any(|used| used == slot)).unwrap_or(0);
        update(vm, slot, gfn, size, hva)?;
        self.by_gfn.insert(gfn, slot);
        Ok(())
    }

    /// Take away what [`Slots::set`] gave at `gfn`; nothing there is fine.
    pub fn remove(&mut self, vm: &VmFd, gfn: u64) -> io::Result<()> {
        match self.by_gfn.remove(&gfn) {
            Some(slot) => update(vm, slot, gfn, 0, 0),
            None => Ok(()),
        }
    }
}

fn update(vm: &VmFd, slot: u32, gfn: u64, size: u64, hva: u64) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gfn << 12,
        memory_size: size,
        userspace_addr: hva,
    };
    // SAFETY: `hva..hva + size` is a mapping of `Memory`, which lives as long as the process and is only
    // accessed as volatile memory.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}
