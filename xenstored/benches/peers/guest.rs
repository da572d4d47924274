//! Guests with a ring, introduced as each daemon wants it: with descriptors, or by the files of the stand-in for Xen.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use xenstored::client::RingFds;
use xenstored::wire::{HEADER_LEN, Header, MsgType, put};

use crate::conn::Conn;
use crate::peer::Peer;

const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;

/// How the store and a guest wake one another.
enum Bell {
    Eventfds { kick: EventFd, notify: EventFd },
    Datagrams { socket: UnixDatagram, own: PathBuf, daemon: PathBuf, port: u32 },
}

pub struct Guest {
    domid: u16,
    page: File,
    bell: Bell,
}

impl Guest {
    /// Makes a guest and introduces it.
    pub fn introduce(peer: &Peer, host: &mut Conn, domid: u16) -> Self {
        match &peer.shim {
            None => {
                let page = File::from(
                    memfd_create(c"ring", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap(),
                );
                page.set_len(4096).unwrap();
                let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
                let (kick, notify) = (eventfd(), eventfd());
                let fds = RingFds {
                    page: page.as_fd(),
                    kick: kick.as_fd(),
                    notify: notify.as_fd(),
                    lifeline: None,
                };
                // A connection of the library's own: descriptors go along.
                peer.client().introduce(domid, 1, 5, fds).unwrap();
                Self { domid, page, bell: Bell::Eventfds { kick, notify } }
            }
            Some(folder) => {
                host.ask(MsgType::INTRODUCE, format!("{domid}\x001\x005\0").as_bytes());
                let page = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(folder.join(format!("ring.{domid}")))
                    .unwrap();
                let own = folder.join(format!("guest.{domid}.sock"));
                let socket = UnixDatagram::bind(&own).unwrap();
                let bell = Bell::Datagrams {
                    socket,
                    own,
                    daemon: folder.join("evtchn.sock"),
                    port: 100 + u32::from(domid),
                };
                Self { domid, page, bell }
            }
        }
    }

    pub fn release(self, host: &mut Conn) {
        host.ask(MsgType::RELEASE, format!("{}\0", self.domid).as_bytes());
        if let Bell::Datagrams { own, .. } = &self.bell {
            let _ = fs::remove_file(own);
        }
    }

    fn kick(&self) {
        match &self.bell {
            Bell::Eventfds { kick, .. } => drop(kick.write(1)),
            Bell::Datagrams { socket, daemon, port, .. } => drop(socket.send_to(&port.to_le_bytes(), daemon)),
        }
    }

    fn wait(&self) {
        let fd = match &self.bell {
            Bell::Eventfds { notify, .. } => notify.as_fd(),
            Bell::Datagrams { socket, .. } => socket.as_fd(),
        };
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(500u16)).unwrap();
        match &self.bell {
            Bell::Eventfds { notify, .. } => drop(notify.read()),
            Bell::Datagrams { socket, .. } => {
                socket.set_nonblocking(true).unwrap();
                let _ = socket.recv(&mut [0; 4]);
            }
        }
    }

    fn words<const N: usize>(&self, at: u64) -> [u32; N] {
        let mut bytes = [0; 16];
        self.page.read_exact_at(&mut bytes[..4 * N], at).unwrap();
        std::array::from_fn(|n| u32::from_le_bytes(bytes[4 * n..4 * n + 4].try_into().unwrap()))
    }

    /// Sends a small request and waits for its small reply; either may lie around a ring's end.
    pub fn ask(&self, kind: MsgType, payload: &[u8]) {
        let mut request = Vec::new();
        put(&mut request, kind, 1, 0, &[payload]).unwrap();
        let [prod] = self.words(REQ_PROD);
        let offset = prod as usize % 1024;
        let (head, tail) = request.split_at(request.len().min(1024 - offset));
        self.page.write_all_at(head, offset as u64).unwrap();
        self.page.write_all_at(tail, 0).unwrap();
        let prod = prod.wrapping_add(u32::try_from(request.len()).unwrap());
        self.page.write_all_at(&prod.to_le_bytes(), REQ_PROD).unwrap();
        self.kick();
        let (mut reply, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        loop {
            let [cons, prod] = self.words(RSP_CONS);
            let waiting = prod.wrapping_sub(cons) as usize;
            if waiting == 0 {
                assert!(Instant::now() < deadline, "a guest gets no reply");
                self.wait();
                continue;
            }
            let mut bytes = vec![0; waiting];
            let (head, tail) = bytes.split_at_mut(waiting.min(1024 - cons as usize % 1024));
            self.page.read_exact_at(head, 1024 + u64::from(cons % 1024)).unwrap();
            self.page.read_exact_at(tail, 1024).unwrap();
            self.page.write_all_at(&prod.to_le_bytes(), RSP_CONS).unwrap();
            reply.extend_from_slice(&bytes);
            let complete =
                Header::decode(&reply).is_some_and(|header| reply.len() >= HEADER_LEN + header.len as usize);
            if complete {
                assert!(reply[0] != 16, "{}", String::from_utf8_lossy(&reply[16..]));
                return;
            }
        }
    }
}
