//! A daemon for those who find none: xlr starts one, and the processes of domains start it again when it was killed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Client, Error, Result};

/// Between two looks whether it serves.
const LOOK: Duration = Duration::from_millis(5);

/// Which daemon, and where it leaves what.
#[derive(Clone, Debug)]
pub struct Autostart {
    /// Its socket.
    pub socket: PathBuf,
    /// The folder of its log, its pid file and its state: `xenstored.log`, `xenstored.pid`, `xenstored.state`.
    pub folder: PathBuf,
    /// The program.
    pub program: PathBuf,
}

impl Autostart {
    /// With the program beside the caller's own, else the one in PATH.
    #[must_use]
    pub fn new(socket: &Path, folder: &Path) -> Self {
        Self { socket: socket.to_owned(), folder: folder.to_owned(), program: program() }
    }

    /// Its log; every daemon appends to it.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("xenstored.log")
    }

    /// There while it runs, and after it was killed: one that is told to end takes it away.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.folder.join("xenstored.pid")
    }

    /// What it knows, for the next one if it is killed.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("xenstored.state")
    }

    /// Whether one was killed, or serves.
    #[must_use]
    pub fn was_not_told_to_end(&self) -> bool {
        self.pid_file().exists()
    }

    /// A connection; none where nobody serves.
    ///
    /// # Errors
    /// What else connecting says.
    pub fn connect(&self) -> Result<Option<Client>> {
        match Client::connect(&self.socket) {
            Ok(client) => Ok(Some(client)),
            Err(Error::Connect { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Starts the daemon, in a process group of its own: what ends the caller or its terminal is not meant for it. It
    /// begins with what one that was killed knew, else with nothing.
    ///
    /// # Errors
    /// What the system says about the log or the program.
    pub fn start(&self) -> io::Result<Child> {
        self.socket.parent().map_or(Ok(()), fs::create_dir_all)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        command.arg("-F").arg(self.pid_file()).env("XENSTORED_PATH", &self.socket).current_dir("/");
        // The host's crash ends the domains too, so nothing has to reach the disk.
        command.args(["--transient", "--fsync", "never", "--state-dir"]).arg(self.state());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn()
    }

    /// Starts the daemon again if one was started here and was killed, not told to end, and waits until it serves.
    /// `false` if there is nothing to do, or somebody else has the lock and does it.
    ///
    /// # Errors
    /// What [`Autostart::start`] says, or that it does not serve.
    pub fn again(&self, lock: &Path, patience: Duration) -> io::Result<bool> {
        if !self.was_not_told_to_end() {
            return Ok(false);
        }
        let lock = File::options().create(true).truncate(false).write(true).open(lock)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Somebody may have been faster.
        if self.connect().map_err(io::Error::other)?.is_some() {
            return Ok(false);
        }
        let mut daemon = self.start()?;
        let limit = Instant::now() + patience;
        while self.connect().map_err(io::Error::other)?.is_none() {
            if let Some(status) = daemon.try_wait()? {
                return Err(io::Error::other(format!("xenstored ended ({status})")));
            }
            if Instant::now() > limit {
                return Err(io::Error::other("xenstored does not serve"));
            }
            std::thread::sleep(LOOK);
        }
        // Whoever started it may live on for long, whatever becomes of it.
        std::thread::Builder::new().name("reaper".into()).spawn(move || daemon.wait())?;
        Ok(true)
    }
}

fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("xenstored")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("xenstored"))
}
