//! A vCPU's clock as its guest reads it: vcpu_time_info and the TSC. KVM_GET_CLOCK drifts from it, by less than a thousandth of
//! the time since the start, but a timer must not fire before its time by the guest's clock.

use crate::memory::Memory;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use xen_abi::shared_info::VcpuTimeInfo;
use xen_domain::mem::{Gpa, GuestMem};
use zerocopy::FromBytes;

const IA32_TSC: u32 = 0x10;

/// A whole and working vcpu_time_info.
pub fn read(memory: &Memory, at: Gpa) -> Option<VcpuTimeInfo> {
    for _ in 0..8 {
        let mut bytes = [0; size_of::<VcpuTimeInfo>()];
        memory.read(at, &mut bytes).ok()?;
        let time = VcpuTimeInfo::read_from_bytes(&bytes).ok()?;
        if time.version.is_multiple_of(2) && memory.load_u32(at) == Ok(time.version) {
            return (time.tsc_to_system_mul != 0).then_some(time);
        }
    }
    None
}

/// A vCPU's TSC. On its own thread.
pub fn tsc(fd: &VcpuFd) -> Option<u64> {
    let mut tsc = Msrs::from_entries(&[kvm_msr_entry { index: IA32_TSC, ..Default::default() }]).ok()?;
    fd.get_msrs(&mut tsc).ok()?;
    tsc.as_slice().first().map(|msr| msr.data)
}

/// System time, nanoseconds, by the vcpu_time_info at `at`. On the vCPU's own thread.
pub fn system_ns(fd: &VcpuFd, memory: &Memory, at: Gpa) -> Option<u64> {
    let tsc = tsc(fd)?;
    at_tsc(&read(memory, at)?, tsc)
}

fn at_tsc(time: &VcpuTimeInfo, tsc: u64) -> Option<u64> {
    let delta = u128::from(tsc.checked_sub(time.tsc_timestamp)?);
    let shift = u32::from(time.tsc_shift.unsigned_abs()).min(63);
    let delta = if time.tsc_shift < 0 { delta >> shift } else { delta << shift };
    let since = delta.checked_mul(u128::from(time.tsc_to_system_mul))? >> 32;
    time.system_time.checked_add(u64::try_from(since).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time_as_the_header_says() {
        let time = |tsc_shift, tsc_to_system_mul| VcpuTimeInfo {
            version: 2,
            pad0: 0,
            tsc_timestamp: 1000,
            system_time: 77,
            tsc_to_system_mul,
            tsc_shift,
            flags: 0,
            pad1: [0; 2],
        };
        assert_eq!(at_tsc(&time(0, 1 << 31), 3000), Some(1077));
        assert_eq!(at_tsc(&time(1, 1 << 31), 3000), Some(2077));
        assert_eq!(at_tsc(&time(-1, 1 << 31), 3000), Some(577));
        assert_eq!(at_tsc(&time(0, 1 << 31), 999), None, "before the clock was set");
        assert_eq!(at_tsc(&time(127, u32::MAX), u64::MAX), None);
    }
}
