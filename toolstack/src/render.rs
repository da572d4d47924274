//! xl's tables, column by column.

use crate::{cpus, proc};
use xen_emu_api::control::{Status, VcpuStatus};

/// Headers of `list`.
pub const LIST: &str = "Name                                        ID   Mem VCPUs\tState\tTime(s)";
/// What `list -v` adds.
pub const LIST_VERBOSE: &str = "   UUID                            Reason-Code\tSecurity Label";
/// Header of `vcpu-list`.
pub const VCPUS: &str =
    "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)";
/// Header of `vm-list`.
pub const VMS: &str = "UUID                                  ID    name";

/// One line of `list`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name.
    pub name: String,
    /// Domain id.
    pub domid: u16,
    /// MiB.
    pub memory: u64,
    /// vCPUs that are online.
    pub vcpus: usize,
    /// The six letters.
    pub state: String,
    /// Seconds.
    pub time: f64,
    /// UUID.
    pub uuid: String,
    /// Reason of its shutdown.
    pub reason: Option<u32>,
}

impl Row {
    /// Domain-0: the host itself.
    pub fn host() -> Self {
        Row {
            name: "Domain-0".into(),
            domid: 0,
            memory: proc::meminfo().get("MemTotal").copied().unwrap_or(0) >> 10,
            vcpus: cpus::online().map_or(1, |cpus| cpus.len()),
            state: "r-----".into(),
            time: proc::busy_seconds(),
            uuid: uuid::Uuid::nil().to_string(),
            reason: None,
        }
    }

    /// A guest.
    pub fn guest(status: &Status) -> Self {
        Row {
            name: status.name.clone(),
            domid: status.domid,
            memory: status.memory_kib >> 10,
            vcpus: status.vcpus.iter().filter(|v| v.online).count(),
            state: state(status),
            time: seconds(status.time_ns()),
            uuid: status.uuid.clone(),
            reason: status.shutdown,
        }
    }

    /// As `list` prints it.
    pub fn line(&self) -> String {
        let Row { name, domid, memory, vcpus, state, time, .. } = self;
        format!("{name:<40} {domid:>5} {memory:>5} {vcpus:>5}     {state}  {time:>8.1}")
    }

    /// What `list -v` adds.
    pub fn verbose(&self) -> String {
        let reason = self.reason.map_or_else(|| "-".into(), |reason| format!("{reason:x}"));
        format!(" {} {reason:>8} {:>16}", self.uuid, "-")
    }
}

/// Running, blocked, paused, shut down, why, dying.
fn state(status: &Status) -> String {
    let running = status.vcpus.iter().any(|v| v.online && v.running);
    let idle = !running && !status.paused && status.shutdown.is_none() && !status.dying;
    let letter = |set: bool, letter: char| if set { letter } else { '-' };
    [
        letter(running && !status.paused && status.shutdown.is_none(), 'r'),
        letter(idle, 'b'),
        letter(status.paused, 'p'),
        letter(status.shutdown.is_some(), 's'),
        status.shutdown.map_or('-', reason_letter),
        letter(status.dying, 'd'),
    ]
    .iter()
    .collect()
}

/// SHUTDOWN_* of public/sched.h.
fn reason_letter(reason: u32) -> char {
    match reason {
        0 => '-',
        1 => 'r',
        2 => 's',
        3 => 'c',
        4 => 'w',
        5 => 'S',
        _ => '?',
    }
}

/// One line of `vcpu-list`.
pub fn vcpu(status: &Status, vcpu: &VcpuStatus, host: &[usize]) -> String {
    let place = match (vcpu.online, vcpu.cpu) {
        (true, cpu) => {
            let cpu = cpu.map_or_else(|| "-".into(), |cpu| cpu.to_string());
            let state = match (vcpu.running, status.paused || status.shutdown.is_some()) {
                (_, true) => "--",
                (true, _) => "r-",
                (false, _) => "-b",
            };
            format!("{cpu:>5}   {state}- ")
        }
        (false, _) => "    -   --p ".into(),
    };
    let hard = cpus::show(&vcpu.affinity, host);
    let time = seconds(vcpu.time_ns);
    format!("{:<32} {:>5} {:>5}{place}{time:>9.1}  {hard} / all", status.name, status.domid, vcpu.id)
}

/// Nanoseconds as seconds, for showing.
#[expect(clippy::cast_precision_loss, reason = "tenths of seconds are shown")]
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A span of seconds as `uptime` shows it.
pub fn span(seconds: u64, short: bool) -> String {
    let (days, hours, minutes, rest) =
        (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let days = match days {
        0 => String::new(),
        1 => "1 day, ".into(),
        n => format!("{n} days, "),
    };
    let seconds = if short { String::new() } else { format!(":{rest:02}") };
    format!("{days}{hours:>2}:{minutes:02}{seconds}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(running: bool, paused: bool, shutdown: Option<u32>, dying: bool) -> Status {
        let vcpu = |id, online| VcpuStatus {
            id,
            online,
            running: running && online,
            cpu: online.then_some(0),
            time_ns: if online { 38_900_000_000 } else { 0 },
            affinity: vec![],
        };
        Status {
            domid: 2,
            name: "pvh1".into(),
            uuid: "5e97030b-8027-4d53-bfb1-d08b8c9dd98f".into(),
            pid: 1,
            paused,
            shutdown,
            dying,
            memory_kib: 262_144,
            max_memory_kib: 393_216,
            start_time: 0.0,
            backend: "kernel".into(),
            tty: None,
            vcpus: vec![vcpu(0, true), vcpu(1, false)],
        }
    }

    #[test]
    fn rows_are_xl_s_to_the_byte() {
        let blocked = status(false, false, None, false);
        let row = Row::guest(&blocked);
        assert_eq!(
            row.line(),
            "pvh1                                         2   256     1     -b----      38.9"
        );
        assert_eq!(row.verbose(), " 5e97030b-8027-4d53-bfb1-d08b8c9dd98f        -                -");
        assert_eq!(
            vcpu(&blocked, &blocked.vcpus[0], &[0, 1]),
            "pvh1                                 2     0    0   -b-      38.9  all / all"
        );
        assert_eq!(
            vcpu(&blocked, &blocked.vcpus[1], &[0, 1]),
            "pvh1                                 2     1    -   --p       0.0  all / all"
        );
    }

    #[test]
    fn six_letters() {
        for (state_of, letters) in [
            (status(true, false, None, false), "r-----"),
            (status(false, false, None, false), "-b----"),
            (status(false, true, None, false), "--p---"),
            (status(false, false, Some(0), false), "---s--"),
            (status(false, true, Some(1), false), "--psr-"),
            (status(true, false, Some(3), true), "---scd"),
        ] {
            assert_eq!(state(&state_of), letters);
        }
    }

    #[test]
    fn spans() {
        for (seconds, short, text) in [
            (128, false, " 0:02:08"),
            (128, true, " 0:02"),
            (45_296, false, "12:34:56"),
            (90_000, false, "1 day,  1:00:00"),
            (200_000, true, "2 days,  7:33"),
        ] {
            assert_eq!(span(seconds, short), text);
        }
    }
}
