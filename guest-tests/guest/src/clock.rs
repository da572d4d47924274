//! Xen's clock as a guest reads it.
#![forbid(unsafe_code)]

use crate::{cpu, page::Page};
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};
use xen_abi::shared_info::VcpuTimeInfo;

/// A copy of a `vcpu_time_info` taken while it was not being written; nothing if it always is.
#[must_use]
pub fn snapshot(page: &Page, offset: usize) -> Option<VcpuTimeInfo> {
    let version = page.u32(offset + offset_of!(VcpuTimeInfo, version));
    for _ in 0..1_000_000 {
        let before = version.load(Ordering::Acquire);
        let copy: VcpuTimeInfo = page.read(offset);
        fence(Ordering::Acquire);
        if before & 1 == 0 && version.load(Ordering::Acquire) == before {
            return Some(copy);
        }
        cpu::pause();
    }
    None
}

/// System time in ns at a TSC value, by a copy of the clock.
#[must_use]
pub fn system_time(info: &VcpuTimeInfo, tsc: u64) -> u64 {
    let ticks = tsc.wrapping_sub(info.tsc_timestamp);
    let shifted = if info.tsc_shift < 0 {
        ticks >> info.tsc_shift.unsigned_abs().min(63)
    } else {
        ticks << info.tsc_shift.unsigned_abs().min(63)
    };
    let ns = (u128::from(shifted) * u128::from(info.tsc_to_system_mul)) >> 32;
    info.system_time.wrapping_add(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// System time now; nothing if the clock is always being written.
#[must_use]
pub fn now(page: &Page, offset: usize) -> Option<u64> {
    // Read again if the clock changed between the copy and the counter.
    for _ in 0..1000 {
        let info = snapshot(page, offset)?;
        let tsc = cpu::rdtsc();
        if page.u32(offset + offset_of!(VcpuTimeInfo, version)).load(Ordering::Acquire) == info.version {
            return Some(system_time(&info, tsc));
        }
    }
    None
}
