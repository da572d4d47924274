//! Event channels in the 2-level layout, as a guest with per-vCPU upcall vectors uses them.
#![forbid(unsafe_code)]

use crate::{apic, cpu, hypercall, page::Page, smp, traps};
use core::sync::atomic::{AtomicU32, Ordering};
use xen_abi::Errno;
use xen_abi::event_channel::{BindIpi, BindVirq, EvtchnOp, EvtchnStat, Send, Status, Unmask};
use xen_abi::hvm::op::{EvtchnUpcallVector, HvmOp};
use xen_abi::hvm::params::{HvmParam, callback};
use xen_abi::hypercall::Hypercall;
use xen_abi::memory::{AddToPhysmap, MapSpace, MemoryOp, RemoveFromPhysmap};
use xen_abi::shared_info::{Layout, VCPU_INFO_SIZE, VCPU_UPCALL_PENDING};
use xen_abi::vcpu::{RegisterVcpuInfo, VcpuOp};
use xen_abi::xen::{Domid, Port, Virq, Width};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const LAYOUT: Layout = Layout::of(WIDTH);

/// That of this microkernel.
pub const WIDTH: Width = if cfg!(target_pointer_width = "32") { Width::W32 } else { Width::W64 };

static SHARED: Page = Page::zero();
static AP_PORT: AtomicU32 = AtomicU32::new(0);

/// The page that [`Events::map`] makes the shared info page.
#[must_use]
pub fn shared() -> &'static Page {
    &SHARED
}

/// `XENMEM_add_to_physmap` of one special page.
///
/// # Errors
/// What the hypervisor answers.
pub fn add_to_physmap(space: MapSpace, idx: u64, gpfn: u64) -> Result<(), Errno> {
    let arg = AddToPhysmap { domid: Domid::SELF, size: 0, space, idx, gpfn };
    #[cfg(target_pointer_width = "32")]
    let arg = arg.to_compat();
    let mut arg = arg;
    hypercall::op(Hypercall::MEMORY_OP, MemoryOp::ADD_TO_PHYSMAP.0, &mut arg).map(drop)
}

/// `XENMEM_remove_from_physmap`.
///
/// # Errors
/// What the hypervisor answers.
pub fn remove_from_physmap(gpfn: u64) -> Result<(), Errno> {
    let arg = RemoveFromPhysmap { domid: Domid::SELF, pad: [0; 3], gpfn };
    #[cfg(target_pointer_width = "32")]
    let arg = arg.to_compat();
    let mut arg = arg;
    hypercall::op(Hypercall::MEMORY_OP, MemoryOp::REMOVE_FROM_PHYSMAP.0, &mut arg).map(drop)
}

/// `HYPERVISOR_event_channel_op`.
///
/// # Errors
/// What the hypervisor answers.
pub fn evtchn_op<T: FromBytes + IntoBytes>(cmd: EvtchnOp, arg: &mut T) -> Result<i64, Errno> {
    hypercall::op(Hypercall::EVENT_CHANNEL_OP, cmd.0, arg)
}

/// The shared info page, in a page of the kernel's own, and where a vCPU's `vcpu_info` is.
#[derive(Clone, Copy)]
pub struct Events {
    /// The shared info page.
    pub shared: &'static Page,
    /// The page with the `vcpu_info`.
    pub info: &'static Page,
    /// Its offset there.
    pub offset: usize,
    /// Its vCPU.
    pub vcpu: u32,
}

impl Events {
    /// Maps the shared info page and masks every port; vCPU 0's `vcpu_info` is the first in it.
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub fn map() -> Result<Self, Errno> {
        add_to_physmap(MapSpace::SHARED_INFO, 0, SHARED.gfn())?;
        // Else the console's back-end, which answers what is printed, is heard among the events of a test.
        for word in (LAYOUT.mask..LAYOUT.wc_version).step_by(8) {
            SHARED.u64(word).store(u64::MAX, Ordering::SeqCst);
        }
        Ok(Self { shared: &SHARED, info: &SHARED, offset: 0, vcpu: 0 })
    }

    /// Maps it, switches the APIC on and has upcalls of vCPU 0 come as `vector`, in Linux' order.
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub fn init(vector: u8) -> Result<Self, Errno> {
        let events = Self::map()?;
        apic::enable();
        events.set_vector(vector)?;
        hypercall::hvm_set_param(HvmParam::CALLBACK_IRQ, 1)?;
        events.forget();
        Ok(events)
    }

    /// Maps it and has upcalls of every vCPU come as `vector`, which needs no EOI.
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub fn init_global(vector: u8) -> Result<Self, Errno> {
        let events = Self::map()?;
        apic::enable();
        traps::set_no_eoi(vector);
        let via = callback::TYPE_VECTOR << callback::TYPE_SHIFT | u64::from(vector);
        hypercall::hvm_set_param(HvmParam::CALLBACK_IRQ, via)?;
        events.forget();
        Ok(events)
    }

    /// Takes what is pending, and lets interrupts in for a moment.
    fn forget(&self) {
        // Setting a vector interrupts where something is pending already: that is to come now, and to be forgotten.
        cpu::sti();
        (0..1000).for_each(|_| cpu::pause());
        cpu::cli();
        self.take_selector();
    }

    /// Has this vCPU's upcalls come as `vector`.
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub fn set_vector(&self, vector: u8) -> Result<(), Errno> {
        let mut arg = EvtchnUpcallVector { vcpu: self.vcpu, vector, pad: [0; 3] };
        hypercall::op(Hypercall::HVM_OP, HvmOp::SET_EVTCHN_UPCALL_VECTOR.0, &mut arg).map(drop)
    }

    /// Registers a place for the `vcpu_info` of any vCPU.
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub fn register(self, vcpu: u32, info: &'static Page, offset: usize) -> Result<Self, Errno> {
        let mut arg =
            RegisterVcpuInfo { mfn: info.gfn(), offset: u32::try_from(offset).unwrap_or(u32::MAX), rsvd: 0 };
        hypercall::vcpu_op(VcpuOp::REGISTER_VCPU_INFO.0, vcpu, &mut arg)?;
        Ok(Self { info, offset, vcpu, ..self })
    }

    /// The `vcpu_info` slot of a vCPU in the shared info page.
    #[must_use]
    pub fn slot(vcpu: usize) -> usize {
        vcpu * VCPU_INFO_SIZE
    }

    /// Whether a port is pending.
    #[must_use]
    pub fn is_pending(&self, port: Port) -> bool {
        self.word(LAYOUT.pending, port) & bit(port) != 0
    }

    /// Whether a port is masked.
    #[must_use]
    pub fn is_masked(&self, port: Port) -> bool {
        self.word(LAYOUT.mask, port) & bit(port) != 0
    }

    fn word(&self, table: usize, port: Port) -> u64 {
        self.shared.u64(table + word_offset(port)).load(Ordering::SeqCst)
    }

    /// Masks a port.
    pub fn mask(&self, port: Port) {
        self.shared.u64(LAYOUT.mask + word_offset(port)).fetch_or(bit(port), Ordering::SeqCst);
    }

    /// Clears a port's mask without asking the hypervisor.
    pub fn clear_mask(&self, port: Port) {
        self.shared.u64(LAYOUT.mask + word_offset(port)).fetch_and(!bit(port), Ordering::SeqCst);
    }

    /// Clears a port's pending bit; returns whether it was set.
    pub fn clear_pending(&self, port: Port) -> bool {
        let word = self.shared.u64(LAYOUT.pending + word_offset(port));
        word.fetch_and(!bit(port), Ordering::SeqCst) & bit(port) != 0
    }

    /// `evtchn_upcall_pending`.
    #[must_use]
    pub fn upcall_pending(&self) -> u8 {
        self.info.u8(self.offset + VCPU_UPCALL_PENDING).load(Ordering::SeqCst)
    }

    /// `evtchn_pending_sel`.
    #[must_use]
    pub fn selector(&self) -> u64 {
        let at = self.offset + LAYOUT.vcpu_pending_sel;
        match WIDTH {
            Width::W64 => self.info.u64(at).load(Ordering::SeqCst),
            Width::W32 => self.info.u32(at).load(Ordering::SeqCst).into(),
        }
    }

    /// What a guest does in an upcall: take the flag, then the selector.
    pub fn take_selector(&self) -> u64 {
        self.info.u8(self.offset + VCPU_UPCALL_PENDING).swap(0, Ordering::SeqCst);
        let at = self.offset + LAYOUT.vcpu_pending_sel;
        match WIDTH {
            Width::W64 => self.info.u64(at).swap(0, Ordering::SeqCst),
            Width::W32 => self.info.u32(at).swap(0, Ordering::SeqCst).into(),
        }
    }
}

/// Takes vCPU 0's flag in the shared info page.
pub fn take_flag() {
    SHARED.u8(VCPU_UPCALL_PENDING).store(0, Ordering::SeqCst);
}

/// Both widths have the same bits in the same bytes, whatever they call a word.
const fn word_offset(port: Port) -> usize {
    (port.0 / 64 * 8) as usize
}

const fn bit(port: Port) -> u64 {
    1 << (port.0 % 64)
}

/// The bit of the selector that stands for a port.
#[must_use]
pub const fn selector_bit(port: Port) -> u64 {
    1 << (port.0 / WIDTH.bits())
}

/// A port for IPIs to a vCPU.
///
/// # Errors
/// What the hypervisor answers.
pub fn bind_ipi(vcpu: u32) -> Result<Port, Errno> {
    let mut arg = BindIpi { vcpu, port: Port(0) };
    evtchn_op(EvtchnOp::BIND_IPI, &mut arg)?;
    Ok(arg.port)
}

/// A port for a VIRQ of a vCPU.
///
/// # Errors
/// What the hypervisor answers.
pub fn bind_virq(virq: Virq, vcpu: u32) -> Result<Port, Errno> {
    let mut arg = BindVirq { virq: virq.0, vcpu, port: Port(0) };
    evtchn_op(EvtchnOp::BIND_VIRQ, &mut arg)?;
    Ok(arg.port)
}

/// `EVTCHNOP_send`.
///
/// # Errors
/// What the hypervisor answers.
pub fn send(port: Port) -> Result<(), Errno> {
    evtchn_op(EvtchnOp::SEND, &mut Send { port }).map(drop)
}

/// `EVTCHNOP_unmask`.
///
/// # Errors
/// What the hypervisor answers.
pub fn unmask(port: Port) -> Result<(), Errno> {
    evtchn_op(EvtchnOp::UNMASK, &mut Unmask { port }).map(drop)
}

/// `EVTCHNOP_status` of an own port.
///
/// # Errors
/// What the hypervisor answers.
pub fn status(port: Port) -> Result<Status, Errno> {
    let mut arg = Status { dom: Domid::SELF, port, status: EvtchnStat::CLOSED, ..Status::new_zeroed() };
    evtchn_op(EvtchnOp::STATUS, &mut arg)?;
    Ok(arg)
}

/// Waits, interrupts let in, until an interrupt has come `count` times; gives up after a long while.
#[must_use]
pub fn wait_count(vector: u8, count: u32) -> bool {
    cpu::sti();
    let came = smp::spin_until(|| traps::count(vector) >= count);
    cpu::cli();
    came
}

/// The port that the other CPU sends to when it is asked to.
pub fn set_ap_port(port: Port) {
    AP_PORT.store(port.0, Ordering::SeqCst);
}

pub(crate) fn send_by_ap() {
    let _ = send(Port(AP_PORT.load(Ordering::SeqCst)));
}
