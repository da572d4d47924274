//! What the user sees of long work: one line per finished step, on a terminal a moving line meanwhile.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs `work` under a moving line and leaves one line with its name and time behind.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    let result = work();
    bar.finish_and_clear();
    let verdict = if result.is_ok() { "" } else { ": failed" };
    eprintln!("lab: {what}{verdict} ({:.1} s)", start.elapsed().as_secs_f64());
    result
}

/// Waits for a command that fills `folder` with about `total` bytes, showing how far it is.
pub fn watch_download(command: &mut Command, folder: &Path, total: u64) -> Result<ExitStatus> {
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template("lab: {bytes}/{total_bytes} [{bar:30}] {bytes_per_sec}")?);
    let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        bar.set_position(bytes_below(folder));
        sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    Ok(status)
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|e| e.metadata().map_or(0, |m| if m.is_dir() { bytes_below(&e.path()) } else { m.len() }))
        .sum()
}
