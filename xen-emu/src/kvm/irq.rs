//! The GSI routing table: IOAPIC pins (so that KVM knows level-triggered vectors) and {port, vcpu} routes of
//! backends, raised by irqfd.

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQ_ROUTING_XEN_EVTCHN, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
    kvm_irq_routing_xen_evtchn,
};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::io;

/// What a GSI raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A message: address and data.
    Msi(u64, u32),
    /// A 2-level port on the vCPU with this KVM id.
    Evtchn {
        /// Guest port.
        port: u32,
        /// KVM vCPU id.
        kvm_vcpu: u32,
    },
}

/// The whole table; KVM takes it only as a whole.
#[derive(Debug, Default)]
pub struct Routes(BTreeMap<u32, Route>);

impl Routes {
    /// Set or clear one GSI and tell KVM.
    pub fn set(&mut self, vm: &VmFd, gsi: u32, route: Option<Route>) -> io::Result<()> {
        let old = match route {
            Some(route) => self.0.insert(gsi, route),
            None => self.0.remove(&gsi),
        };
        if old == route {
            return Ok(());
        }
        let entries: Vec<_> = self.0.iter().map(|(&gsi, &route)| entry(gsi, route)).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low and high half")]
fn entry(gsi: u32, route: Route) -> kvm_irq_routing_entry {
    let (type_, u) = match route {
        Route::Msi(address, data) => (
            KVM_IRQ_ROUTING_MSI,
            kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: address as u32,
                    address_hi: (address >> 32) as u32,
                    data,
                    __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
                },
            },
        ),
        Route::Evtchn { port, kvm_vcpu } => (
            KVM_IRQ_ROUTING_XEN_EVTCHN,
            kvm_irq_routing_entry__bindgen_ty_1 {
                xen_evtchn: kvm_irq_routing_xen_evtchn {
                    port,
                    vcpu: kvm_vcpu,
                    priority: super::ioctl::PRIORITY_2L,
                },
            },
        ),
    };
    kvm_irq_routing_entry { gsi, type_, u, ..Default::default() }
}
