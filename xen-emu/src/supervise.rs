//! What happens when a domain has shut down: the `on_*` actions, and how a domain is built anew.

use anyhow::{Context, bail};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xen_emu_api::config::{Action, Actions, DomainConfig, Launch, reason};
use xen_emu_api::run_dir::{RunDir, RunRoot};

/// What is done with the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Free everything.
    Destroy,
    /// Free everything and build it anew with the next domid.
    Restart,
    /// Build it anew and keep the dead one under another name.
    RenameRestart,
    /// Keep the dead one.
    Preserve,
}

/// A decision and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The configured action; `None` when nothing is configured for this.
    pub action: Option<Action>,
    /// Whether a core is written first.
    pub core: bool,
    /// What is done.
    pub fate: Fate,
    /// Why that is not what was configured.
    pub note: Option<&'static str>,
}

/// Decide by shutdown reason. Without `supervise` (`create -e`) a dead domain just stays.
pub fn decide(code: u32, actions: &Actions, supervise: bool) -> Verdict {
    let Some(action) = actions.after(code) else {
        let (fate, note) = match code {
            reason::SUSPEND => (Fate::Preserve, None),
            _ => (Fate::Destroy, Some("unknown reason code")),
        };
        return Verdict { action: None, core: false, fate, note };
    };
    if !supervise {
        return Verdict {
            action: Some(action),
            core: false,
            fate: Fate::Preserve,
            note: Some("not supervised"),
        };
    }
    let (fate, note) = match action {
        Action::Destroy => (Fate::Destroy, None),
        Action::Restart => (Fate::Restart, None),
        Action::RenameRestart => (Fate::RenameRestart, None),
        Action::Preserve => (Fate::Preserve, None),
        Action::CoredumpDestroy => (Fate::Destroy, None),
        Action::CoredumpRestart => (Fate::Restart, None),
        Action::SoftReset => (Fate::Restart, Some("a soft reset was not possible: restarting")),
    };
    let core = matches!(action, Action::CoredumpDestroy | Action::CoredumpRestart);
    Verdict { action: Some(action), core, fate, note }
}

/// A life shorter than this is a quick one.
const QUICK: Duration = Duration::from_secs(10);
/// Seconds to wait before a restart, by the number of quick lives in a row; the last entry for all beyond.
const DELAYS: [u64; 9] = [0, 0, 1, 2, 4, 8, 16, 32, 60];

/// Against a crash loop: how many quick lives in a row there are after one of length `life`, and how long to wait.
pub fn backoff(earlier: usize, life: Duration) -> (usize, Duration) {
    let quick = if life < QUICK { earlier.saturating_add(1) } else { 0 };
    let seconds = DELAYS.get(quick).or(DELAYS.last()).copied().unwrap_or(0);
    (quick, Duration::from_secs(seconds))
}

/// The file in a run directory that carries the number of quick lives over to the next one.
const QUICK_LIVES: &str = "quick-lives";

/// Quick lives in a row before this one.
pub fn quick_lives(dir: &RunDir) -> usize {
    let text = fs::read_to_string(dir.path().join(QUICK_LIVES));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// How the logs get from the old run directory to the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// Moved: the old domain goes, and its process becomes the new one with stderr where it was.
    Move,
    /// The console's is copied: the old domain stays.
    Copy,
}

/// Reserve the run directory of the domain that comes after that of `launch`, with `config`: a fresh domid (not one
/// that `taken` knows) and its `launch.json`. Waits for the lock of the run directory, which `xlr create` may hold
/// for seconds.
///
/// # Errors
/// The host's. Nothing is left behind then.
pub fn reserve(
    launch: &Launch,
    config: DomainConfig,
    quick: usize,
    taken: impl Fn(u16) -> bool,
) -> anyhow::Result<RunDir> {
    let root = RunRoot::at(&launch.run_root)?;
    let _lock = root.lock()?;
    let next = root.reserve(taken)?;
    let launch = Launch { domid: next.domid, paused: false, config, ..launch.clone() };
    let made = write_launch(&next, &launch)
        .and_then(|()| fs::write(next.path().join(QUICK_LIVES), quick.to_string()));
    if let Err(e) = made {
        next.remove()?;
        return Err(e).context(format!("cannot prepare {}", next.path().display()));
    }
    Ok(next)
}

fn write_launch(dir: &RunDir, launch: &Launch) -> io::Result<()> {
    fs::write(dir.launch(), serde_json::to_vec_pretty(launch)?)
}

/// Hand the logs of a domain to its successor.
pub fn carry_logs(from: &RunDir, to: &RunDir, logs: Logs) -> io::Result<()> {
    let carry = |from: &Path, to: &Path| match logs {
        Logs::Move => fs::rename(from, to),
        Logs::Copy => fs::copy(from, to).map(drop),
    };
    let mut pairs = vec![(from.console_log(), to.console_log())];
    if logs == Logs::Move {
        pairs.push((from.log(), to.log()));
    }
    for (from, to) in pairs {
        for (from, to) in [(crate::log::old(&from), crate::log::old(&to)), (from, to)] {
            match carry(&from, &to) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Become the process of the domain in `dir`. Comes back only with the reason why not; `dir` is gone then.
pub fn exec(dir: &RunDir) -> anyhow::Error {
    let failed = Command::new("/proc/self/exe").arg("--run-dir").arg(dir.path()).exec();
    discard(dir);
    anyhow::Error::new(failed).context(format!("cannot restart the domain as {}", dir.domid))
}

/// Remove the directory of a domain that does not come.
pub fn discard(dir: &RunDir) {
    if let Err(e) = dir.remove() {
        tracing::warn!("{}: {e}", dir.path().display());
    }
}

/// Start a process for the domain in `dir`, beside this one.
pub fn spawn(dir: &RunDir) -> anyhow::Result<()> {
    let log = crate::log::append(&dir.log())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--run-dir").arg(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.process_group(0).spawn().context("cannot start a process")?;
    // We may live on for long, whatever becomes of it.
    let _ = dir.set_maker(child.id());
    // The thread ends with the child, or with us.
    std::thread::Builder::new().name("reaper".into()).spawn(move || child.wait())?;
    Ok(())
}

/// The configuration under which a dead domain is kept by rename-restart: `NAME-YYYYMMDDTHHMMZ`, a uuid of its own.
pub fn renamed(config: &DomainConfig, now: SystemTime) -> anyhow::Result<DomainConfig> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("no random uuid")?;
    let seconds = now.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    Ok(DomainConfig {
        name: format!("{}-{}", config.name, stamp(seconds)),
        uuid: uuid.trim().to_owned(),
        ..config.clone()
    })
}

/// Record the configuration of a domain that goes on under another name.
pub fn record(dir: &RunDir, launch: &Launch) -> anyhow::Result<()> {
    if dir.domid != launch.domid {
        bail!("launch of domain {} for the directory of {}", launch.domid, dir.domid);
    }
    write_launch(dir, launch).context("cannot record the new name")
}

/// Seconds since 1970 as `YYYYMMDDTHHMMZ`.
fn stamp(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    // Years counted from 1 March of year 0, so that the leap day is the last of a year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) =
        if month < 10 { (era * 400 + year, month + 3) } else { (era * 400 + year + 1, month - 9) };
    format!("{year:04}{month:02}{day:02}T{:02}{:02}Z", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_action() {
        let actions = Actions {
            poweroff: Action::Preserve,
            reboot: Action::RenameRestart,
            crash: Action::CoredumpRestart,
            watchdog: Action::CoredumpDestroy,
            soft_reset: Action::SoftReset,
        };
        let fates: Vec<_> = (0..7).map(|code| decide(code, &actions, true).fate).collect();
        use Fate::{Destroy, Preserve, RenameRestart, Restart};
        assert_eq!(fates, [Preserve, RenameRestart, Preserve, Restart, Destroy, Restart, Destroy]);
        let noted: Vec<_> = (0..7).filter(|&code| decide(code, &actions, true).note.is_some()).collect();
        assert_eq!(noted, [5, 6]);
        assert!((0..6).all(|code| decide(code, &actions, false).fate == Preserve));
        let fates: Vec<_> = (0..5).map(|code| decide(code, &Actions::default(), true).fate).collect();
        assert_eq!(fates, [Destroy, Restart, Preserve, Destroy, Destroy], "xl's defaults");
    }

    #[test]
    fn quick_lives_in_a_row_slow_the_restarts() {
        let mut quick = 0;
        let delays: Vec<_> = (0..10)
            .map(|_| {
                let (now, delay) = backoff(quick, Duration::from_secs(1));
                quick = now;
                delay.as_secs()
            })
            .collect();
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff(quick, Duration::from_secs(60)), (0, Duration::ZERO));
    }

    #[test]
    fn stamps_know_the_calendar() {
        assert_eq!(stamp(0), "19700101T0000Z");
        assert_eq!(stamp(951_782_399), "20000228T2359Z");
        assert_eq!(stamp(951_782_400), "20000229T0000Z");
        assert_eq!(stamp(1_795_163_407), "20261120T0830Z");
        assert_eq!(stamp(4_107_542_399), "21000228T2359Z");
        assert_eq!(stamp(4_107_542_400), "21000301T0000Z");
    }
}
