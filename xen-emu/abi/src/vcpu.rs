//! `HYPERVISOR_vcpu_op(cmd, vcpuid, arg)` (`public/vcpu.h`, `public/hvm/hvm_vcpu.h`).
//!
//! `vcpu_info` and `vcpu_time_info` are in `shared_info`.

use zerocopy::little_endian::U64;

open_enum! {
    /// `VCPUOP_*`.
    pub struct VcpuOp(u32) {
        /// Set the first state of a vCPU; arg `VcpuHvmContext`.
        INITIALISE = 0,
        /// Let it run.
        UP = 1,
        /// Stop it.
        DOWN = 2,
        /// Returns 1 if it is up.
        IS_UP = 3,
        /// Out: `RunstateInfo`.
        GET_RUNSTATE_INFO = 4,
        /// Keep a copy of it at a guest virtual address; arg `RegisterArea`.
        REGISTER_RUNSTATE_MEMORY_AREA = 5,
        /// arg `SetPeriodicTimer`.
        SET_PERIODIC_TIMER = 6,
        /// arg NULL.
        STOP_PERIODIC_TIMER = 7,
        /// arg `SetSingleshotTimer`.
        SET_SINGLESHOT_TIMER = 8,
        /// arg NULL.
        STOP_SINGLESHOT_TIMER = 9,
        /// Move `vcpu_info` to a place of the guest's choice, once; arg `RegisterVcpuInfo`.
        REGISTER_VCPU_INFO = 10,
        /// arg NULL.
        SEND_NMI = 11,
        /// arg `GetPhysid`; only for pinned vCPUs.
        GET_PHYSID = 12,
        /// A second copy of `vcpu_time_info` at a guest virtual address; arg `RegisterArea`.
        REGISTER_VCPU_TIME_MEMORY_AREA = 13,
        /// As REGISTER_RUNSTATE_MEMORY_AREA, by guest-physical address.
        REGISTER_RUNSTATE_PHYS_AREA = 14,
        /// As REGISTER_VCPU_TIME_MEMORY_AREA, by guest-physical address.
        REGISTER_VCPU_TIME_PHYS_AREA = 15,
    }
}

open_enum! {
    /// `RUNSTATE_*`: what a vCPU does.
    pub struct Runstate(u32) {
        /// On a CPU.
        RUNNING = 0,
        /// Would run if there were a CPU.
        RUNNABLE = 1,
        /// Idle.
        BLOCKED = 2,
        /// Neither: down or paused.
        OFFLINE = 3,
    }
}

/// In `state_entry_time` of the guest's copy: being written now.
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;
/// Flag of `SetSingleshotTimer`: -ETIME if the time has passed, by the header; Xen has ignored it since 4.18.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1;
/// Mode of `VcpuHvmContext`: `VcpuHvmX86_32` follows.
pub const VCPU_HVM_MODE_32B: u32 = 0;
/// Mode of `VcpuHvmContext`: `VcpuHvmX86_64` follows.
pub const VCPU_HVM_MODE_64B: u32 = 1;

abi_structs! {
    /// `struct vcpu_runstate_info`.
    pub struct RunstateInfo {
        /// `Runstate`.
        pub state: Runstate,
        /// Zero.
        pub pad: u32,
        /// System time of the last change, ns; bit 63 is `XEN_RUNSTATE_UPDATE`.
        pub state_entry_time: u64,
        /// ns spent in each state; they add up to system time.
        pub time: [u64; 4],
    }

    /// `struct vcpu_runstate_info` of a 32-bit guest.
    pub struct RunstateInfoCompat {
        /// `Runstate`.
        pub state: Runstate,
        /// System time of the last change, ns; bit 63 is `XEN_RUNSTATE_UPDATE`.
        pub state_entry_time: U64,
        /// ns spent in each state; they add up to system time.
        pub time: [U64; 4],
    }

    /// `struct vcpu_register_runstate_memory_area` and `vcpu_register_time_memory_area`: a union of pointer and address.
    ///
    /// A 32-bit guest fills only the low half for the virtual forms.
    pub struct RegisterArea {
        /// Guest virtual address, or physical for the `PHYS` forms.
        pub addr: u64,
    }

    /// `struct vcpu_set_periodic_timer`.
    pub struct SetPeriodicTimer {
        /// ns, 1 ms at least.
        pub period_ns: u64,
    }

    /// `struct vcpu_set_singleshot_timer`.
    pub struct SetSingleshotTimer {
        /// Absolute system time, ns.
        pub timeout_abs_ns: u64,
        /// `VCPU_SSHOTTMR_FUTURE`.
        pub flags: u32,
        /// Zero.
        pub pad: u32,
    }

    /// `struct vcpu_set_singleshot_timer` of a 32-bit guest.
    pub struct SetSingleshotTimerCompat {
        /// Absolute system time, ns.
        pub timeout_abs_ns: U64,
        /// `VCPU_SSHOTTMR_FUTURE`.
        pub flags: u32,
    }

    /// `struct vcpu_register_vcpu_info`.
    pub struct RegisterVcpuInfo {
        /// Frame.
        pub mfn: u64,
        /// Offset in it; the 64 bytes must not cross the page.
        pub offset: u32,
        /// Zero.
        pub rsvd: u32,
    }

    /// `struct vcpu_get_physid`.
    pub struct GetPhysid {
        /// ACPI id << 32 | APIC id.
        pub phys_id: u64,
    }

    /// `struct vcpu_hvm_x86_32`: a vCPU starting in 32-bit mode. Access rights as in VMX, bits 8-11 moved down.
    pub struct VcpuHvmX86_32 {
        /// Register.
        pub eax: u32,
        /// Register.
        pub ecx: u32,
        /// Register.
        pub edx: u32,
        /// Register.
        pub ebx: u32,
        /// Register.
        pub esp: u32,
        /// Register.
        pub ebp: u32,
        /// Register.
        pub esi: u32,
        /// Register.
        pub edi: u32,
        /// Register.
        pub eip: u32,
        /// Register.
        pub eflags: u32,
        /// Control register.
        pub cr0: u32,
        /// Control register.
        pub cr3: u32,
        /// Control register.
        pub cr4: u32,
        /// Zero.
        pub pad1: u32,
        /// Only NXE, LME and LMA.
        pub efer: u64,
        /// Segment base.
        pub cs_base: u32,
        /// Segment base.
        pub ds_base: u32,
        /// Segment base.
        pub ss_base: u32,
        /// Segment base.
        pub es_base: u32,
        /// Segment base.
        pub tr_base: u32,
        /// Segment limit.
        pub cs_limit: u32,
        /// Segment limit.
        pub ds_limit: u32,
        /// Segment limit.
        pub ss_limit: u32,
        /// Segment limit.
        pub es_limit: u32,
        /// Segment limit.
        pub tr_limit: u32,
        /// type 0-3, s 4, dpl 5-6, p 7, avl 8, l 9, db 10, g 11.
        pub cs_ar: u16,
        /// As `cs_ar`.
        pub ds_ar: u16,
        /// As `cs_ar`.
        pub ss_ar: u16,
        /// As `cs_ar`.
        pub es_ar: u16,
        /// As `cs_ar`.
        pub tr_ar: u16,
        /// Zero.
        pub pad2: [u16; 3],
    }

    /// `struct vcpu_hvm_x86_64`: a vCPU starting in long mode with flat segments.
    pub struct VcpuHvmX86_64 {
        /// Register.
        pub rax: u64,
        /// Register.
        pub rcx: u64,
        /// Register.
        pub rdx: u64,
        /// Register.
        pub rbx: u64,
        /// Register.
        pub rsp: u64,
        /// Register.
        pub rbp: u64,
        /// Register.
        pub rsi: u64,
        /// Register.
        pub rdi: u64,
        /// Register.
        pub rip: u64,
        /// Register.
        pub rflags: u64,
        /// Control register.
        pub cr0: u64,
        /// Control register.
        pub cr3: u64,
        /// Control register.
        pub cr4: u64,
        /// Control register.
        pub efer: u64,
    }

    /// `struct vcpu_hvm_context`: `mode` says how to read `cpu_regs`.
    pub struct VcpuHvmContext {
        /// `VCPU_HVM_MODE_*`.
        pub mode: u32,
        /// Zero.
        pub pad: u32,
        /// `VcpuHvmX86_32` (120 bytes) or `VcpuHvmX86_64` (112 bytes).
        pub cpu_regs: [u8; 120],
    }
}

twins! { SetSingleshotTimer / SetSingleshotTimerCompat { = flags @ timeout_abs_ns } }

impl RunstateInfo {
    /// The same value as a 32-bit guest reads it.
    #[must_use]
    pub fn to_compat(self) -> RunstateInfoCompat {
        RunstateInfoCompat {
            state: self.state,
            state_entry_time: U64::new(self.state_entry_time),
            time: self.time.map(U64::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        RunstateInfo = 48 { state: 0, state_entry_time: 8, time: 16 }
        RunstateInfoCompat = 44 { state: 0, state_entry_time: 4, time: 12 }
        RegisterArea = 8 { addr: 0 }
        SetPeriodicTimer = 8 { period_ns: 0 }
        SetSingleshotTimer = 16 { timeout_abs_ns: 0, flags: 8 }
        SetSingleshotTimerCompat = 12 { timeout_abs_ns: 0, flags: 8 }
        RegisterVcpuInfo = 16 { mfn: 0, offset: 8, rsvd: 12 }
        GetPhysid = 8 { phys_id: 0 }
        VcpuHvmX86_32 = 120 {
            eax: 0, edi: 28, eip: 32, eflags: 36, cr0: 40, cr4: 48, efer: 56, cs_base: 64, tr_base: 80, cs_limit: 84,
            tr_limit: 100, cs_ar: 104, tr_ar: 112,
        }
        VcpuHvmX86_64 = 112 { rax: 0, rsp: 32, rip: 64, rflags: 72, cr0: 80, cr3: 88, cr4: 96, efer: 104 }
        VcpuHvmContext = 128 { mode: 0, cpu_regs: 8 }
    }

    #[test]
    fn twins_keep_the_values() {
        let full = SetSingleshotTimer { timeout_abs_ns: 0x1_2345_6789, flags: 1, pad: 0 };
        assert_eq!(SetSingleshotTimer::from(full.to_compat()), full);
    }
}
