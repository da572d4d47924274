//! A daemon in a folder of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use xenstored::client::Client;

pub struct Daemon {
    folder: TempDir,
    child: Child,
    args: Vec<String>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments.
    pub fn with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(&folder, &args);
        Self { folder, child, args }
    }

    pub fn restart(&mut self) {
        self.child = spawn(&self.folder, &self.args);
    }

    pub fn command(&self) -> Command {
        command(&self.folder, &self.args)
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A number that `/proc/PID/status` tells, such as `VmRSS:` in KiB.
    pub fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }

    /// The time it has computed.
    pub fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap();
        Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
    }

    pub fn pid_file(&self) -> PathBuf {
        self.folder.path().join("pid")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        let mut client = Client::connect(self.socket()).unwrap();
        client.set_timeout(crate::LONG);
        client
    }

    pub fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(folder: &TempDir, args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenstored"));
    command.env_remove("XENSTORED_PATH").env("XENSTORED_RUNDIR", folder.path());
    command.args(["-N", "--log", "error", "--ready-fd", "1", "-F"]).arg(folder.path().join("pid")).args(args);
    command
}

fn spawn(folder: &TempDir, args: &[String]) -> Child {
    let mut child = command(folder, args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}
