//! The Xen ioctls of KVM and the Xen part of `kvm_run`, which kvm-ioctls lacks (Linux api.rst 4.126-4.135).
#![expect(unsafe_code, reason = "raw ioctls and the kvm_run union")]

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_EXIT_X86_WRMSR, KVM_EXIT_XEN, KVM_EXIT_XEN_HCALL,
    KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_FILTER_WRITE, KVMIO, kvm_enable_cap, kvm_irq_routing_xen_evtchn,
    kvm_msr_filter, kvm_xen_hvm_attr, kvm_xen_hvm_config, kvm_xen_vcpu_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};
use xen_domain::hypercall::{Call, Width};

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
ioctl_iow_nr!(KVM_XEN_HVM_SET_ATTR, KVMIO, 0xc9, kvm_xen_hvm_attr);
ioctl_iowr_nr!(KVM_XEN_VCPU_GET_ATTR, KVMIO, 0xca, kvm_xen_vcpu_attr);
ioctl_iow_nr!(KVM_XEN_VCPU_SET_ATTR, KVMIO, 0xcb, kvm_xen_vcpu_attr);
ioctl_iow_nr!(KVM_X86_SET_MSR_FILTER, KVMIO, 0xc6, kvm_msr_filter);
ioctl_iow_nr!(KVM_XEN_HVM_EVTCHN_SEND, KVMIO, 0xd0, kvm_irq_routing_xen_evtchn);

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// KVM_XEN_HVM_CONFIG.
pub fn hvm_config(vm: &VmFd, config: &kvm_xen_hvm_config) -> io::Result<()> {
    // SAFETY: the fd is a VM's and the kernel reads one struct of this type.
    check(unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_CONFIG(), config) })
}

/// KVM_XEN_HVM_SET_ATTR.
pub fn hvm_set_attr(vm: &VmFd, attr: &kvm_xen_hvm_attr) -> io::Result<()> {
    // SAFETY: the fd is a VM's and the kernel reads one struct of this type; addresses in it come from
    // `Memory`, whose mappings live as long as the process.
    check(unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_SET_ATTR(), attr) })
}

/// KVM_XEN_VCPU_SET_ATTR. Blocks while the vCPU is in KVM_RUN: call on its own thread only.
pub fn vcpu_set_attr(vcpu: &VcpuFd, attr: &kvm_xen_vcpu_attr) -> io::Result<()> {
    // SAFETY: as above, for a vCPU.
    check(unsafe { ioctl_with_ref(vcpu, KVM_XEN_VCPU_SET_ATTR(), attr) })
}

/// KVM_XEN_VCPU_GET_ATTR. Blocks while the vCPU is in KVM_RUN: call on its own thread only.
pub fn vcpu_get_attr(vcpu: &VcpuFd, attr: &mut kvm_xen_vcpu_attr) -> io::Result<()> {
    // SAFETY: the fd is a vCPU's and the kernel reads and writes one struct of this type.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_XEN_VCPU_GET_ATTR(), attr) })
}

/// KVM_XEN_VCPU_GET_ATTR of the runstate times: state, entry time, running, runnable, blocked, offline.
pub fn vcpu_runstate(vcpu: &VcpuFd) -> io::Result<[u64; 6]> {
    let mut attr = kvm_xen_vcpu_attr { type_: RUNSTATE_DATA, ..Default::default() };
    vcpu_get_attr(vcpu, &mut attr)?;
    // SAFETY: the kernel has filled the runstate member for this type of attribute; all bit patterns are valid.
    let r = unsafe { attr.u.runstate };
    Ok([r.state, r.state_entry_time, r.time_running, r.time_runnable, r.time_blocked, r.time_offline])
}

#[expect(clippy::cast_possible_truncation, reason = "the constant is 4")]
const RUNSTATE_DATA: u16 = kvm_bindings::KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA as u16;

/// KVM_XEN_HVM_EVTCHN_SEND: raise a 2-level port on the vCPU with this KVM id.
pub fn evtchn_send(vm: &VmFd, port: u32, kvm_vcpu: u32) -> io::Result<()> {
    let event = kvm_irq_routing_xen_evtchn { port, vcpu: kvm_vcpu, priority: PRIORITY_2L };
    // SAFETY: the fd is a VM's and the kernel reads one struct of this type.
    check(unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_EVTCHN_SEND(), &event) })
}

/// When the timer of a KVM_XEN_VCPU_ATTR_TYPE_TIMER that the kernel has filled in runs out; 0 = never.
pub fn timer_expiry(attr: &kvm_xen_vcpu_attr) -> u64 {
    // SAFETY: plain old data inside the union.
    unsafe { attr.u.timer.expires_ns }
}

/// KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL.
pub const PRIORITY_2L: u32 = u32::MAX;

/// The hypercall that the last KVM_RUN came back with, for the vCPU with this Xen vcpu_id; `None` when the exit
/// was none.
pub fn hypercall(fd: &mut VcpuFd, vcpu: u32) -> Option<Call> {
    let run = fd.get_kvm_run();
    if run.exit_reason != KVM_EXIT_XEN {
        return None;
    }
    // SAFETY: for this exit reason the kernel has filled the `xen` member; all bit patterns are valid.
    let xen = unsafe { &run.__bindgen_anon_1.xen };
    if xen.type_ != KVM_EXIT_XEN_HCALL {
        return None;
    }
    // SAFETY: for this type the kernel has filled `hcall`.
    let hcall = unsafe { &xen.u.hcall };
    Some(Call {
        vcpu,
        nr: hcall.input,
        args: hcall.params,
        width: if hcall.longmode == 0 { Width::Bits32 } else { Width::Bits64 },
        cpl: u8::try_from(hcall.cpl).unwrap_or(3),
    })
}

/// What the guest finds in RAX after the next KVM_RUN.
pub fn complete_hypercall(fd: &mut VcpuFd, result: i64) {
    let run = fd.get_kvm_run();
    // SAFETY: plain old data inside the union; the kernel reads it when it completes the KVM_EXIT_XEN.
    let hcall = unsafe { &mut run.__bindgen_anon_1.xen.u.hcall };
    hcall.result = result.cast_unsigned();
}

/// KVM_X86_SET_MSR_FILTER: guests' writes to these MSRs, 16 at most, end in KVM_EXIT_X86_WRMSR; all else is as it was.
pub fn trap_writes(vm: &VmFd, msrs: &[u32]) -> io::Result<()> {
    let mut exits = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    exits.args[0] = KVM_MSR_EXIT_REASON_FILTER.into();
    vm.enable_cap(&exits)?;
    let mut denied = 0u8;
    let mut filter = kvm_msr_filter::default();
    for (range, msr) in filter.ranges.iter_mut().zip(msrs) {
        (range.flags, range.nmsrs, range.base) = (KVM_MSR_FILTER_WRITE, 1, *msr);
        range.bitmap = &raw mut denied;
    }
    // SAFETY: the fd is a VM's; the kernel reads one struct of this type and copies the one byte of the bitmap, which
    // lives beyond the call.
    check(unsafe { ioctl_with_ref(vm, KVM_X86_SET_MSR_FILTER(), &filter) })
}

/// The WRMSR that the last KVM_RUN came back with raises #GP.
pub fn refuse_msr(fd: &mut VcpuFd) {
    let run = fd.get_kvm_run();
    if run.exit_reason == KVM_EXIT_X86_WRMSR {
        run.__bindgen_anon_1.msr.error = 1;
    }
}

/// Another descriptor of the same eventfd, for code that does not know KVM.
pub fn share(fd: &EventFd) -> io::Result<OwnedFd> {
    let raw = fd.try_clone()?.into_raw_fd();
    // SAFETY: just duplicated, and given up by its EventFd.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Whether a write to an eventfd would not wait. Flags and counter of one that another process holds too are in its
/// hands; one whose counter is full has been signalled.
pub fn has_room(fd: &EventFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // SAFETY: borrowed for no longer than `fd` is.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(1)
}

/// Adds 1 to an eventfd. Where that waits a signal to the thread ends it, while [`EventFd::write`] would begin anew.
///
/// # Errors
/// `Interrupted`, and nothing was added; the host's.
pub fn add_one(fd: &EventFd) -> io::Result<()> {
    // SAFETY: borrowed for no longer than `fd` is.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    rustix::io::write(borrowed, &1u64.to_ne_bytes())?;
    Ok(())
}

/// Takes what an eventfd has counted; false where that is nothing. Never waits, whatever another process that holds it
/// has made of its flags and its counter.
pub fn take(fd: &EventFd) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let mut count = [0; 8];
    // SAFETY: borrowed for no longer than `fd` is.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    // All ones: a read where the file is.
    match preadv2(borrowed, &mut [io::IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT) {
        // A kernel before 5.8.
        Err(Errno::OPNOTSUPP) => fd.read().is_ok(),
        taken => taken.is_ok(),
    }
}

/// An eventfd that another process has made. Nobody waits in a read or a write of it.
///
/// # Errors
/// The host's.
pub fn adopt_eventfd(fd: OwnedFd) -> io::Result<EventFd> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: the descriptor is ours, and given up here.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eventfd_of_another_process_is_never_waited_for() {
        use vmm_sys_util::eventfd::EFD_NONBLOCK;
        for flags in [0, EFD_NONBLOCK] {
            let fd = EventFd::new(flags).unwrap();
            assert!(!take(&fd));
            fd.write(3).unwrap();
            assert_eq!((take(&fd), take(&fd)), (true, false));
            assert!(has_room(&fd));
            add_one(&fd).unwrap();
            assert_eq!(fd.read().unwrap(), 1);
            fd.write(u64::MAX - 1).unwrap();
            assert!(!has_room(&fd));
        }
    }

    #[test]
    fn numbers_are_those_of_linux_kvm_h() {
        assert_eq!(KVM_XEN_HVM_CONFIG(), 0x4038_ae7a);
        assert_eq!(KVM_XEN_HVM_SET_ATTR(), 0x4048_aec9);
        assert_eq!(KVM_XEN_VCPU_GET_ATTR(), 0xc048_aeca);
        assert_eq!(KVM_XEN_VCPU_SET_ATTR(), 0x4048_aecb);
        assert_eq!(KVM_XEN_HVM_EVTCHN_SEND(), 0x400c_aed0);
        assert_eq!(KVM_X86_SET_MSR_FILTER(), 0x4188_aec6);
    }
}
