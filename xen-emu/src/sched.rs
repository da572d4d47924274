//! Where threads run, and whether one that is woken takes the CPU from another.
#![expect(unsafe_code, reason = "nobody wraps sched_setscheduler for one thread")]

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// Makes the calling thread that of vCPU `id`: bound to these host CPUs (none = wherever the process may run) and, where it
/// has but one for a domain of several vCPUs, patient. vCPUs that take that CPU from each other spin for each other's
/// locks and answers until the next tick; what one of them has begun is better ended.
pub fn vcpu(id: u32, cpus: &[usize], vcpus: u32) {
    if let Err(e) = pin(cpus) {
        tracing::warn!("vCPU {id} is not bound to host CPUs {cpus:?}: {e}");
    }
    if vcpus > 1
        && sched_getaffinity(SELF).is_ok_and(|set| count(&set) == 1)
        && let Err(e) = patient(true)
    {
        tracing::warn!("vCPU {id}: scheduling: {e}");
    }
}

fn pin(cpus: &[usize]) -> nix::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|&cpu| set.set(cpu))?;
    sched_setaffinity(SELF, &set)
}

fn count(set: &CpuSet) -> usize {
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).count()
}

/// Whether this thread, when it is woken, waits for its turn (`SCHED_BATCH`), or takes the CPU from who has it. Threads
/// that it starts are as it is at that moment.
///
/// # Errors
/// The host forbids it.
pub fn patient(is: bool) -> io::Result<()> {
    let policy = if is { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    let priority: libc::c_int = 0;
    // SAFETY: the calling thread (0), and the priority, the only member of the kernel's `sched_param`. By its number, as
    // musl has no such function for a single thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Nanoseconds that a thread has run and has waited for a CPU, by its `schedstat` (proc(5)); `most` together.
pub fn times(schedstat: &str, most: u64) -> [u64; 2] {
    let mut words = schedstat.split_whitespace().map(|word| word.parse().unwrap_or(0));
    let running = words.next().unwrap_or(0).min(most);
    [running, words.next().unwrap_or(0).min(most - running)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_thread_are_bounded() {
        assert_eq!(times("30 20 7\n", 100), [30, 20]);
        assert_eq!(times("30 20 7\n", 40), [30, 10]);
        assert_eq!(times("30 20 7\n", 10), [10, 0]);
        assert_eq!(times("", 10), [0, 0]);
    }

    /// The calling thread's policy: the field behind the name that says it.
    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap().to_owned()
    }

    #[test]
    fn patience_is_one_threads_own_and_ends() {
        let thread = std::thread::spawn(|| {
            patient(true).unwrap();
            let patient_one = policy();
            patient(false).unwrap();
            [patient_one, policy()]
        });
        assert_eq!(thread.join().unwrap(), ["3", "0"]);
        assert_eq!(policy(), "0");
    }

    #[test]
    fn vcpus_that_share_one_cpu_are_patient() {
        let allowed = sched_getaffinity(SELF).unwrap();
        let cpu = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu) == Ok(true)).unwrap();
        let as_vcpu = |cpus: Vec<usize>, vcpus| {
            let thread = std::thread::spawn(move || {
                vcpu(0, &cpus, vcpus);
                (policy(), count(&sched_getaffinity(SELF).unwrap()))
            });
            thread.join().unwrap()
        };
        assert_eq!(as_vcpu(vec![cpu], 2), ("3".to_owned(), 1));
        assert_eq!(as_vcpu(vec![cpu], 1), ("0".to_owned(), 1));
        let shared = if count(&allowed) == 1 { "3" } else { "0" };
        assert_eq!(as_vcpu(Vec::new(), 2), (shared.to_owned(), count(&allowed)));
    }
}
