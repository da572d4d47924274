//! What all of Xen shares: domain ids, VIRQs, console and VM-assist commands, multicalls (`public/xen.h`).

ids! {
    /// `domid_t`.
    pub struct Domid(u16);
    /// `evtchn_port_t`. 0 is never a valid port.
    pub struct Port(u32);
    /// `grant_ref_t`: an index into the granting domain's table.
    pub struct Gref(u32);
}

impl Domid {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// Ids from here on are no ordinary domains.
    pub const FIRST_RESERVED: Self = Self(0x7FF0);
    /// The caller itself.
    pub const SELF: Self = Self(0x7FF0);
    /// Owner of I/O memory.
    pub const IO: Self = Self(0x7FF1);
    /// Owner of Xen's own shared pages.
    pub const XEN: Self = Self(0x7FF2);
    /// Owner of pages shared copy-on-write.
    pub const COW: Self = Self(0x7FF3);
    /// No domain.
    pub const INVALID: Self = Self(0x7FF4);
    /// No certain domain: in permissions of the store, all of them.
    pub const ANY: Self = Self(0x7FF5);
    /// The idle domain.
    pub const IDLE: Self = Self(0x7FFF);
    /// Bits of a valid id.
    pub const MASK: u16 = 0x7FFF;

    /// Whether this names an ordinary domain.
    #[must_use]
    pub const fn is_ordinary(self) -> bool {
        self.0 < Self::FIRST_RESERVED.0
    }
}

/// Width of the guest's words in shared structures and hypercall arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32-bit guest (compat): `long` and handles have 4 bytes, 64-bit integers are 4-byte aligned.
    W32,
    /// 64-bit guest.
    W64,
}

impl Width {
    /// Bytes in a guest `long`, `xen_pfn_t` or guest handle.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::W32 => 4,
            Self::W64 => 8,
        }
    }

    /// Bits in one word of the event bitmaps.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::W32 => 32,
            Self::W64 => 64,
        }
    }
}

/// Bytes in a page of every interface, and the shift to a frame number.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Bits of offset in a page.
pub const PAGE_SHIFT: u32 = 12;

open_enum! {
    /// `enum virq`: virtual interrupts. TIMER, DEBUG, XENOPROF and XENPMU are per vCPU, the others global.
    pub struct Virq(u32) {
        /// Per vCPU: a requested timeout.
        TIMER = 0,
        /// Per vCPU: the guest should dump its state.
        DEBUG = 1,
        /// Bytes on the emergency console (dom0).
        CONSOLE = 2,
        /// Something happened to some domain (dom0).
        DOM_EXC = 3,
        /// Trace buffer has records (dom0).
        TBUF = 4,
        /// A domain paused for debugging (dom0).
        DEBUGGER = 6,
        /// Per vCPU: profiler sample.
        XENOPROF = 7,
        /// Bytes on the console (dom0).
        CON_RING = 8,
        /// A physical CPU changed state (dom0).
        PCPU_STATE = 9,
        /// A memory event (dom0).
        MEM_EVENT = 10,
        /// Argo message.
        ARGO = 11,
        /// Low on memory (dom0).
        ENOMEM = 12,
        /// Per vCPU: performance counter interrupt.
        XENPMU = 13,
    }
}

impl Virq {
    /// Numbers from here on are invalid.
    pub const NR_VIRQS: u32 = 24;

    /// Whether each vCPU has its own (else it is global and first bound on vCPU 0).
    #[must_use]
    pub const fn is_per_vcpu(self) -> bool {
        matches!(self, Self::TIMER | Self::DEBUG | Self::XENOPROF | Self::XENPMU)
    }
}

open_enum! {
    /// Commands of `HYPERVISOR_console_io(cmd, count, buffer)`.
    pub struct ConsoleIo(u32) {
        /// Write `count` bytes to the hypervisor's console.
        WRITE = 0,
        /// Read up to `count` bytes.
        READ = 1,
    }
}

/// I/O port whose bytes appear on the hypervisor's console (`XEN_HVM_DEBUGCONS_IOPORT`, `arch-x86/xen.h`).
pub const DEBUGCONS_IOPORT: u16 = 0xe9;

open_enum! {
    /// Commands of `HYPERVISOR_vm_assist(cmd, type)`.
    pub struct VmAssistCmd(u32) {
        /// Switch the assist on.
        ENABLE = 0,
        /// Switch the assist off.
        DISABLE = 1,
    }
}

open_enum! {
    /// `VMASST_TYPE_*`: what to assist with.
    pub struct VmAssistType(u32) {
        /// PV: 4 GiB segments.
        SEGMENTS_4GB = 0,
        /// PV: trap when the above is used.
        SEGMENTS_4GB_NOTIFY = 1,
        /// PV: writable page tables.
        WRITABLE_PAGETABLES = 2,
        /// PV: page directories above 4 GiB.
        PAE_EXTENDED_CR3 = 3,
        /// PV: architectural I/O privilege.
        ARCHITECTURAL_IOPL = 4,
        /// Set `XEN_RUNSTATE_UPDATE` while the guest's runstate copy is being written.
        RUNSTATE_UPDATE_FLAG = 5,
        /// PV: strict machine-to-physical map.
        M2P_STRICT = 32,
    }
}

abi_structs! {
    /// `struct multicall_entry`: one call of a batch.
    pub struct MulticallEntry {
        /// Hypercall number.
        pub op: u64,
        /// Its result, written back.
        pub result: u64,
        /// Its arguments.
        pub args: [u64; 6],
    }

    /// `struct multicall_entry` of a 32-bit guest.
    pub struct MulticallEntryCompat {
        /// Hypercall number.
        pub op: u32,
        /// Its result, written back.
        pub result: u32,
        /// Its arguments.
        pub args: [u32; 6],
    }
}

impl From<MulticallEntryCompat> for MulticallEntry {
    fn from(c: MulticallEntryCompat) -> Self {
        Self { op: c.op.into(), result: c.result.into(), args: c.args.map(u64::from) }
    }
}

/// `start_info.flags` of a PVH guest: it has control rights.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// `start_info.flags`: it is the initial control domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        MulticallEntry = 64 { op: 0, result: 8, args: 16 }
        MulticallEntryCompat = 32 { op: 0, result: 4, args: 8 }
    }

    #[test]
    fn ids_print_as_numbers_and_names_as_names() {
        assert_eq!(format!("{} {} {:?}", Domid(7), Port(3), Virq::TIMER), "7 3 TIMER");
        assert!(Domid(0x7FEF).is_ordinary() && !Domid::SELF.is_ordinary());
        assert!(Virq::XENPMU.is_per_vcpu() && !Virq::CON_RING.is_per_vcpu());
    }
}
