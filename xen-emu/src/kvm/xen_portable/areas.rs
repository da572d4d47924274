//! What a vCPU has registered, and how it is kept: the clock in vcpu_info by KVM's own paravirtual clock, of which the
//! secondary vcpu_time_info is a copy, and the runstate by the scheduler's statistics.

use crate::kvm::pvclock;
use crate::kvm::regs::set_msr;
use crate::memory::Memory;
use crate::sched;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use xen_abi::Width;
use xen_abi::shared_info::{VCPU_TIME, VcpuTimeInfo};
use xen_abi::vcpu::{Runstate, RunstateInfo, XEN_RUNSTATE_UPDATE};
use xen_domain::mem::{Fault, Gpa, GuestMem};
use zerocopy::IntoBytes;

/// MSR_KVM_SYSTEM_TIME_NEW: where KVM keeps the clock; bit 0 turns it on.
const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// XEN_PVCLOCK_TSC_STABLE_BIT: one clock for all vCPUs.
const TSC_STABLE: u8 = 1;
/// How often a vCPU that makes hypercalls is looked at: once in a tick of Linux.
const EVERY: Duration = Duration::from_millis(4);
/// Where state_entry_time lies in the runstate area of 64- and 32-bit guests.
const ENTRY_TIME: [u64; 2] = [8, 4];

/// The areas of one vCPU.
#[derive(Default)]
pub struct Areas {
    /// vcpu_info, where the guest sees it.
    pub info: Option<Gpa>,
    time: Option<Gpa>,
    /// The version of the clock that was copied last.
    mirrored: u32,
    runstate: Option<Gpa>,
    /// The thread's scheduler statistics.
    schedstat: Option<File>,
    looked: Option<Instant>,
    /// When the runstate was written last.
    written: Option<Instant>,
}

impl Areas {
    /// Whether it is time for another look, which is taken then.
    pub fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = long_ago(self.looked, now);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// The guest has a runstate area, and what it says is old.
    pub fn stale(&self) -> bool {
        self.runstate.is_some() && long_ago(self.written, Instant::now())
    }

    fn clock(&self) -> Option<Gpa> {
        self.info.map(|info| info.offset(VCPU_TIME as u64))
    }

    /// Have KVM keep the clock in vcpu_info. An INIT ends that without a word: true if one had.
    pub fn restore_clock(&self, fd: &VcpuFd) -> io::Result<bool> {
        let wanted = self.clock().map_or(0, |gpa| gpa.0 | 1);
        let found = Msrs::from_entries(&[kvm_msr_entry { index: SYSTEM_TIME, ..Default::default() }]);
        let mut found = found.map_err(|e| io::Error::other(format!("{e:?}")))?;
        fd.get_msrs(&mut found)?;
        let found = found.as_slice().first().map_or(0, |msr| msr.data);
        if found == wanted {
            return Ok(false);
        }
        set_msr(fd, SYSTEM_TIME, wanted)?;
        Ok(found == 0)
    }

    /// Until KVM writes it, the clock of another vCPU tells the same time where all have one: a vCPU that starts by INIT
    /// would have none up to its first hypercall.
    pub fn borrow_time(&self, memory: &Memory, from: Option<Gpa>) {
        let (Some(to), Some(from)) = (self.clock(), from.map(|info| info.offset(VCPU_TIME as u64))) else {
            return;
        };
        if to != from
            && let Some(time) = read_time(memory, from)
        {
            // Where the guest has given back the page there is nobody to miss the time.
            let _ = memory.write(to, time.as_bytes());
        }
    }

    /// Whether the secondary time info can be kept: a copy holds only as long as the clock runs evenly.
    pub fn has_stable_time(&self, memory: &Memory) -> bool {
        self.clock().is_some_and(|clock| read_time(memory, clock).is_some())
    }

    /// Where the secondary time info lies.
    pub fn set_time(&mut self, gpa: Option<Gpa>) {
        (self.time, self.mirrored) = (gpa, 0);
    }

    /// Copy the clock to the secondary time info, if it has changed.
    pub fn mirror_time(&mut self, memory: &Memory) {
        let (Some(to), Some(from)) = (self.time, self.clock()) else { return };
        if memory.load_u32(from) == Ok(self.mirrored) {
            return;
        }
        if let Some(time) = read_time(memory, from)
            && write_time(memory, to, &time).is_ok()
        {
            self.mirrored = time.version;
        }
    }

    /// The clock has been set to `now` at the TSC's value `tsc`. The copy tells that already when the vCPU runs again.
    pub fn clock_set(&mut self, memory: &Memory, tsc: u64, now: u64) {
        let (Some(to), Some(from)) = (self.time, self.clock()) else { return };
        if let Some(time) = read_time(memory, from) {
            let version = time.version.wrapping_add(2);
            let time = VcpuTimeInfo { version, tsc_timestamp: tsc, system_time: now, ..time };
            // Where the guest has given back the page there is nobody to miss the time.
            let _ = write_time(memory, to, &time);
        }
        self.mirrored = 0;
    }

    /// Where the runstate lies. Called on the vCPU's own thread.
    pub fn set_runstate(&mut self, gpa: Option<Gpa>) {
        self.runstate = gpa;
        self.schedstat = gpa.and_then(|_| File::open("/proc/thread-self/schedstat").ok());
    }

    /// Write the runstate: the vCPU runs, and its times are what the scheduler counts.
    pub fn write_runstate(&mut self, memory: &Memory, width: Width, flagged: bool, now: u64) {
        let (Some(at), Some(schedstat)) = (self.runstate, &self.schedstat) else { return };
        self.written = Some(Instant::now());
        let mut text = [0; 64];
        let length = schedstat.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
        let [running, runnable] = sched::times(&text, now);
        let info = RunstateInfo {
            state: Runstate::RUNNING,
            pad: 0,
            state_entry_time: now,
            time: [running, runnable, now - running - runnable, 0],
        };
        // A guest that has given back the page has no use for it.
        let _ = match width {
            Width::W64 => write_runstate(memory, at, info.as_bytes(), ENTRY_TIME[0], flagged, now),
            Width::W32 => {
                write_runstate(memory, at, info.to_compat().as_bytes(), ENTRY_TIME[1], flagged, now)
            }
        };
    }
}

fn long_ago(then: Option<Instant>, now: Instant) -> bool {
    then.is_none_or(|then| now.duration_since(then) >= EVERY)
}

/// A whole and stable time info.
fn read_time(memory: &Memory, at: Gpa) -> Option<VcpuTimeInfo> {
    pvclock::read(memory, at).filter(|time| time.flags & TSC_STABLE != 0)
}

/// The version is odd while the rest changes.
fn write_time(memory: &Memory, at: Gpa, time: &VcpuTimeInfo) -> Result<(), Fault> {
    memory.store_u32(at, time.version.wrapping_sub(1))?;
    memory.write(at.offset(8), time.as_bytes().get(8..).unwrap_or_default())?;
    memory.store_u32(at, time.version)
}

/// With VMASST_TYPE_runstate_update_flag the entry time says while the rest changes that it does.
fn write_runstate(
    memory: &Memory,
    at: Gpa,
    bytes: &[u8],
    entry_time: u64,
    flagged: bool,
    now: u64,
) -> Result<(), Fault> {
    if !flagged {
        return memory.write(at, bytes);
    }
    let entry = at.offset(entry_time);
    memory.write(entry, (now | XEN_RUNSTATE_UPDATE).as_bytes())?;
    let times = usize::try_from(entry_time).map_or(0, |at| at + 8);
    memory.write(entry.offset(8), bytes.get(times..).unwrap_or_default())?;
    memory.write(at, Runstate::RUNNING.0.as_bytes())?;
    memory.write(entry, now.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: VcpuTimeInfo = VcpuTimeInfo {
        version: 6,
        pad0: 0,
        tsc_timestamp: 1000,
        system_time: 77,
        tsc_to_system_mul: 1 << 31,
        tsc_shift: 1,
        flags: TSC_STABLE,
        pad1: [0; 2],
    };

    fn areas(memory: &Memory, time: &VcpuTimeInfo) -> Areas {
        memory.write(Gpa(0x1000 + VCPU_TIME as u64), time.as_bytes()).unwrap();
        Areas { info: Some(Gpa(0x1000)), ..Areas::default() }
    }

    #[test]
    fn the_secondary_time_follows_a_stable_clock_only() {
        let memory = Memory::new(&[(0, 1 << 20)]).unwrap();
        let mut vcpu = areas(&memory, &TIME);
        assert!(vcpu.has_stable_time(&memory));
        vcpu.set_time(Some(Gpa(0x2000)));
        vcpu.mirror_time(&memory);
        assert_eq!(read_time(&memory, Gpa(0x2000)), Some(TIME));
        let later = VcpuTimeInfo { version: 8, system_time: 99, ..TIME };
        memory.write(Gpa(0x1020), later.as_bytes()).unwrap();
        vcpu.mirror_time(&memory);
        assert_eq!(read_time(&memory, Gpa(0x2000)), Some(later));
        for bad in [
            VcpuTimeInfo { version: 9, ..TIME },
            VcpuTimeInfo { version: 10, flags: 0, ..TIME },
            VcpuTimeInfo { version: 10, tsc_to_system_mul: 0, ..TIME },
        ] {
            memory.write(Gpa(0x1020), bad.as_bytes()).unwrap();
            assert!(!vcpu.has_stable_time(&memory));
            vcpu.mirror_time(&memory);
            assert_eq!(read_time(&memory, Gpa(0x2000)), Some(later), "kept");
        }
    }

    #[test]
    fn the_secondary_time_knows_first_that_the_clock_was_set() {
        let memory = Memory::new(&[(0, 1 << 20)]).unwrap();
        let mut vcpu = areas(&memory, &TIME);
        vcpu.clock_set(&memory, 5, 5);
        vcpu.set_time(Some(Gpa(0x2000)));
        vcpu.mirror_time(&memory);
        vcpu.clock_set(&memory, 2000, 88);
        let set = VcpuTimeInfo { version: 8, tsc_timestamp: 2000, system_time: 88, ..TIME };
        assert_eq!(read_time(&memory, Gpa(0x2000)), Some(set));
        vcpu.mirror_time(&memory);
        assert_eq!(read_time(&memory, Gpa(0x2000)), Some(TIME), "what KVM has written since");
    }

    #[test]
    fn another_vcpu_borrows_the_clock() {
        let memory = Memory::new(&[(0, 1 << 20)]).unwrap();
        let first = areas(&memory, &TIME);
        let second = Areas { info: Some(Gpa(0x3000)), ..Areas::default() };
        second.borrow_time(&memory, first.info);
        assert_eq!(read_time(&memory, Gpa(0x3020)), Some(TIME));
    }

    #[test]
    fn runstate_times_add_up_in_both_layouts() {
        let memory = Memory::new(&[(0, 1 << 20)]).unwrap();
        let mut vcpu = Areas::default();
        vcpu.set_runstate(Some(Gpa(0xffc)));
        let now = 1 << 50;
        for (width, entry, flagged) in [(Width::W64, 8, true), (Width::W32, 4, true), (Width::W32, 4, false)]
        {
            memory.write(Gpa(0xffc), &[0xaa; 64]).unwrap();
            vcpu.write_runstate(&memory, width, flagged, now);
            let word = |at: u64| {
                let mut bytes = [0; 8];
                memory.read(Gpa(0xffc + at), &mut bytes).unwrap();
                u64::from_le_bytes(bytes)
            };
            assert_eq!(word(entry), now);
            let sum: u64 = (1..5).map(|n| word(entry + 8 * n)).sum();
            assert_eq!(sum, now);
            assert_eq!(word(0) & 0xffff_ffff, 0, "running");
            assert_eq!(word(entry + 40), 0xaaaa_aaaa_aaaa_aaaa, "nothing beyond");
        }
    }
}
