//! Starting the processes of domains: detached from xlr, their output in a log.

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use xen_emu_api::run_dir::RunDir;

/// The program of that name beside xlr itself, else the one in PATH.
pub fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(name))
}

/// Start `name` with its output appended to `log`. xen-emu makes itself a session of its own.
pub fn detached(name: &str, log: &Path, arguments: impl FnOnce(&mut Command)) -> Result<Child> {
    let program = program(name);
    let out = OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(&program);
    command.current_dir("/");
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    arguments(&mut command);
    command
        .spawn()
        .with_context(|| format!("cannot start {}: it belongs beside xlr or into PATH", program.display()))
}

/// Start the domain's process and await its word: `ok` when the domain is built, else the reason why not. What it has to say besides
/// is shown unless `quiet`.
pub fn domain(dir: &RunDir, quiet: bool) -> Result<()> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut child = detached("xen-emu", &dir.log(), |command| {
        let fd = theirs.as_raw_fd().to_string();
        command.arg("--run-dir").arg(dir.path()).arg("--ready-fd").arg(fd);
    })?;
    drop(theirs);
    let (mut reader, mut line) = (BufReader::new(File::from(ours)), String::new());
    reader.read_line(&mut line)?;
    while let Some(note) = line.strip_prefix("note: ") {
        if !quiet {
            tell!("{}", note.trim_end());
        }
        line.clear();
        reader.read_line(&mut line)?;
    }
    match line.trim_end() {
        "ok" => Ok(()),
        "" => {
            let status = child.wait()?;
            bail!("the domain's process ended ({status}): {}", last_line(&dir.log()))
        }
        reason => {
            child.wait()?;
            bail!("{reason}")
        }
    }
}

/// The last line of a log, for an error message.
pub fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it left no word").to_owned()
}
