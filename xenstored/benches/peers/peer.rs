//! A daemon under load.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::str::FromStr;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use xenstored::client::Client;

use crate::conn::Conn;

#[derive(Clone)]
pub struct Peer {
    pub label: String,
    pub socket: PathBuf,
    /// The folder of the stand-in for Xen's libraries.
    pub shim: Option<PathBuf>,
    /// It only answers, see [`crate::floor`].
    pub floor: bool,
    pid: i32,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (label, place) = text.split_once('=').ok_or("LABEL=SOCKET")?;
        let (socket, shim) =
            place.split_once(',').map_or((place, None), |(socket, shim)| (socket, Some(shim.into())));
        Ok(Self { label: label.into(), socket: socket.into(), shim, floor: false, pid: 0 })
    }
}

/// The daemon of [`crate::floor`], a process of its own that ends with this.
pub struct Floor {
    child: Child,
    folder: tempfile::TempDir,
}

impl Floor {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let child =
            Command::new(std::env::current_exe().unwrap()).arg("--be-floor").arg(&socket).spawn().unwrap();
        while UnixStream::connect(&socket).is_err() {
            std::thread::yield_now();
        }
        Self { child, folder }
    }

    pub fn peer(&self) -> Peer {
        Peer {
            label: "floor".into(),
            socket: self.folder.path().join("socket"),
            shim: None,
            floor: true,
            pid: 0,
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Learns which process it is.
    pub fn find(&mut self) {
        let socket = UnixStream::connect(&self.socket)
            .unwrap_or_else(|error| panic!("{}: {error}", self.socket.display()));
        self.pid = getsockopt(&socket, PeerCredentials).unwrap().pid();
    }

    pub fn conn(&self) -> Conn {
        Conn::new(&self.socket)
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    /// Microseconds of CPU that its main thread has used.
    pub fn cpu(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid)).unwrap();
        text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e3
    }

    /// A line of its status in KiB.
    pub fn memory(&self, key: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
