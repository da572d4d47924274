//! `HYPERVISOR_event_channel_op(cmd, arg)` and both delivery layouts (`public/event_channel.h`).
//!
//! All structs are the same for 32-bit and 64-bit guests.

use crate::xen::{Domid, Port, Width};

open_enum! {
    /// `EVTCHNOP_*`.
    pub struct EvtchnOp(u32) {
        /// Connect to a remote unbound port; arg `BindInterdomain`.
        BIND_INTERDOMAIN = 0,
        /// A port for a VIRQ; arg `BindVirq`.
        BIND_VIRQ = 1,
        /// A port for a physical IRQ; arg `BindPirq`.
        BIND_PIRQ = 2,
        /// Free a port; arg `Close`.
        CLOSE = 3,
        /// Notify the other end; arg `Send`.
        SEND = 4,
        /// State of a port; arg `Status`.
        STATUS = 5,
        /// A port waiting for a peer; arg `AllocUnbound`.
        ALLOC_UNBOUND = 6,
        /// A port for IPIs to a vCPU; arg `BindIpi`.
        BIND_IPI = 7,
        /// Choose the notified vCPU; arg `BindVcpu`.
        BIND_VCPU = 8,
        /// Unmask and deliver what is pending; arg `Unmask`.
        UNMASK = 9,
        /// Close all ports; arg `Reset`.
        RESET = 10,
        /// Switch to FIFO delivery; arg `InitControl`.
        INIT_CONTROL = 11,
        /// One more page of FIFO event words; arg `ExpandArray`.
        EXPAND_ARRAY = 12,
        /// Priority of a port; arg `SetPriority`.
        SET_PRIORITY = 13,
        /// Xen's own, by which a long reset goes on; arg `Reset`.
        RESET_CONT = 14,
    }
}

open_enum! {
    /// `EVTCHNSTAT_*`: what a port is.
    pub struct EvtchnStat(u32) {
        /// Not in use.
        CLOSED = 0,
        /// Waiting for a peer.
        UNBOUND = 1,
        /// Connected.
        INTERDOMAIN = 2,
        /// A physical IRQ.
        PIRQ = 3,
        /// A virtual IRQ.
        VIRQ = 4,
        /// An inter-processor interrupt.
        IPI = 5,
    }
}

/// Flag of `BindPirq`: the line may be shared.
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

abi_structs! {
    /// `struct evtchn_alloc_unbound`.
    pub struct AllocUnbound {
        /// In: whose port; `SELF` for an ordinary domain.
        pub dom: Domid,
        /// In: who may bind to it.
        pub remote_dom: Domid,
        /// Out: the port.
        pub port: Port,
    }

    /// `struct evtchn_bind_interdomain`.
    pub struct BindInterdomain {
        /// In: whose port to connect to.
        pub remote_dom: Domid,
        /// Zero.
        pub pad: u16,
        /// In: that port.
        pub remote_port: Port,
        /// Out: ours; it is pending at once.
        pub local_port: Port,
    }

    /// `struct evtchn_bind_virq`.
    pub struct BindVirq {
        /// In: `Virq`.
        pub virq: u32,
        /// In: vCPU.
        pub vcpu: u32,
        /// Out.
        pub port: Port,
    }

    /// `struct evtchn_bind_pirq`.
    pub struct BindPirq {
        /// In.
        pub pirq: u32,
        /// In: `BIND_PIRQ_WILL_SHARE`.
        pub flags: u32,
        /// Out.
        pub port: Port,
    }

    /// `struct evtchn_bind_ipi`.
    pub struct BindIpi {
        /// In.
        pub vcpu: u32,
        /// Out.
        pub port: Port,
    }

    /// `struct evtchn_close`.
    pub struct Close {
        /// In.
        pub port: Port,
    }

    /// `struct evtchn_send`.
    pub struct Send {
        /// In: the local port.
        pub port: Port,
    }

    /// `struct evtchn_status`.
    pub struct Status {
        /// In.
        pub dom: Domid,
        /// Zero.
        pub pad: u16,
        /// In.
        pub port: Port,
        /// Out.
        pub status: EvtchnStat,
        /// Out: notified vCPU.
        pub vcpu: u32,
        /// Out: remote domid (UNBOUND, INTERDOMAIN; low 16 bits), pirq or virq.
        pub u: u32,
        /// Out: remote port (INTERDOMAIN).
        pub u_port: Port,
    }

    /// `struct evtchn_bind_vcpu`.
    pub struct BindVcpu {
        /// In.
        pub port: Port,
        /// In.
        pub vcpu: u32,
    }

    /// `struct evtchn_unmask`.
    pub struct Unmask {
        /// In.
        pub port: Port,
    }

    /// `struct evtchn_reset`.
    pub struct Reset {
        /// In: `SELF` for an ordinary domain.
        pub dom: Domid,
    }

    /// `struct evtchn_init_control`.
    pub struct InitControl {
        /// In: frame of the control block.
        pub control_gfn: u64,
        /// In: its offset in the frame.
        pub offset: u32,
        /// In.
        pub vcpu: u32,
        /// Out: bits of a link, `fifo::LINK_BITS`.
        pub link_bits: u8,
        /// Zero.
        pub pad: [u8; 7],
    }

    /// `struct evtchn_expand_array`.
    pub struct ExpandArray {
        /// In: frame of event words.
        pub array_gfn: u64,
    }

    /// `struct evtchn_set_priority`.
    pub struct SetPriority {
        /// In.
        pub port: Port,
        /// In: 0 highest, 15 lowest.
        pub priority: u32,
    }

    /// `struct evtchn_fifo_control_block`, one per vCPU.
    pub struct FifoControlBlock {
        /// Bit n: queue of priority n has events.
        pub ready: u32,
        /// Zero.
        pub rsvd: u32,
        /// First port of each queue, 0 if empty.
        pub head: [u32; 16],
    }
}

/// Ports of the 2-level layout (`EVTCHN_2L_NR_CHANNELS`): 4096 or 1024.
#[must_use]
pub const fn nr_channels_2l(width: Width) -> u32 {
    width.bits() * width.bits()
}

/// The FIFO layout: one 32-bit event word per port, in pages the guest provides.
pub mod fifo {
    /// Highest priority.
    pub const PRIORITY_MAX: u32 = 0;
    /// Priority of a fresh port.
    pub const PRIORITY_DEFAULT: u32 = 7;
    /// Lowest priority.
    pub const PRIORITY_MIN: u32 = 15;
    /// Queues per vCPU.
    pub const MAX_QUEUES: usize = 16;
    /// Event word: pending.
    pub const PENDING: u32 = 1 << 31;
    /// Event word: masked.
    pub const MASKED: u32 = 1 << 30;
    /// Event word: on a queue.
    pub const LINKED: u32 = 1 << 29;
    /// Event word: being delivered.
    pub const BUSY: u32 = 1 << 28;
    /// Bits of the link to the next port.
    pub const LINK_BITS: u8 = 17;
    /// Mask of the link.
    pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
    /// Ports.
    pub const NR_CHANNELS: u32 = 1 << LINK_BITS;
    /// Event words in a page.
    pub const WORDS_PER_PAGE: u32 = 1024;
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        AllocUnbound = 8 { dom: 0, remote_dom: 2, port: 4 }
        BindInterdomain = 12 { remote_dom: 0, remote_port: 4, local_port: 8 }
        BindVirq = 12 { virq: 0, vcpu: 4, port: 8 }
        BindPirq = 12 { pirq: 0, flags: 4, port: 8 }
        BindIpi = 8 { vcpu: 0, port: 4 }
        Close = 4 { port: 0 }
        Send = 4 { port: 0 }
        Status = 24 { dom: 0, port: 4, status: 8, vcpu: 12, u: 16, u_port: 20 }
        BindVcpu = 8 { port: 0, vcpu: 4 }
        Unmask = 4 { port: 0 }
        Reset = 2 { dom: 0 }
        InitControl = 24 { control_gfn: 0, offset: 8, vcpu: 12, link_bits: 16 }
        ExpandArray = 8 { array_gfn: 0 }
        SetPriority = 8 { port: 0, priority: 4 }
        FifoControlBlock = 72 { ready: 0, head: 8 }
    }

    #[test]
    fn numbers_of_ports() {
        assert_eq!((nr_channels_2l(Width::W32), nr_channels_2l(Width::W64)), (1024, 4096));
        assert_eq!((fifo::NR_CHANNELS, fifo::LINK_MASK), (131_072, 0x1ffff));
    }
}
