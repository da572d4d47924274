//! The connection of two domains' processes.
//!
//! A process listens on a socket in its run directory, which only its own user can reach. Who connects there knows
//! whom it speaks to by the directory; who accepts has the kernel tell the other process's number, and believes what
//! domain it is when that process holds the domain's life lock.

use super::wire::{Kind, Packet, VERSION};
use nix::poll::PollFlags;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};
use rustix::net::SocketFlags;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use xen_abi::{Domid, Gref};
use xen_domain::mem::Gfn;
use xen_emu_api::run_dir::RunRoot;

/// Packets that may wait for a process that does not read: all its ports may be closed at once.
const WAITING_MAX: usize = 1 << 18;

/// A grant of ours that the other domain has mapped.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    /// Which.
    pub gref: Gref,
    /// For writing too.
    pub write: bool,
    /// The frame that it grants.
    pub frame: Gfn,
}

/// Our end of a connection.
pub struct Link {
    socket: OwnedFd,
    /// The other domain, once that is known.
    pub domid: Option<Domid>,
    /// We have made it, and ask.
    pub ours: bool,
    /// The other process, where it has made it.
    pub pid: i32,
    waiting: VecDeque<Packet>,
    /// Its pins, by the handles of its choosing.
    pub pins: BTreeMap<u32, Pin>,
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

/// A socket that other domains' processes of this user connect to. One left there by a dead process is replaced.
///
/// # Errors
/// The host's.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = seqpacket()?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(&socket, Backlog::new(64)?)?;
    Ok(socket)
}

impl Link {
    fn new(socket: OwnedFd, domid: Option<Domid>, ours: bool) -> Link {
        let pid = getsockopt(&socket, PeerCredentials).map_or(0, |who| who.pid());
        Link { socket, domid, ours, pid, waiting: VecDeque::new(), pins: BTreeMap::new() }
    }

    /// Connects to a domain's process.
    ///
    /// # Errors
    /// There is none, or it has too many who wait for it.
    pub fn connect(root: &RunRoot, me: Domid, domid: Domid) -> io::Result<Link> {
        let socket = seqpacket()?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&root.domain(domid.0).peer())?)?;
        let mut link = Link::new(socket, Some(domid), true);
        link.send(Packet::new(Kind::Hello, 0, [me.0.into(), VERSION, 0]))?;
        Ok(link)
    }

    /// The next one who has connected.
    pub fn accept(listener: &OwnedFd) -> Option<Link> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::accept_with(listener, flags).ok()?;
        Some(Link::new(socket, None, false))
    }

    /// The other process says that it is domain `domid`'s; whether that is so.
    pub fn is_from(&self, root: &RunRoot, domid: Domid) -> bool {
        self.pid != 0 && root.domain(domid.0).is_held_by(self.pid)
    }

    /// What the loop is to wait for. Who does not read our answers is not listened to.
    pub fn interest(&self) -> PollFlags {
        match (self.waiting.is_empty(), self.ours) {
            (true, _) => PollFlags::POLLIN,
            (false, true) => PollFlags::POLLIN | PollFlags::POLLOUT,
            (false, false) => PollFlags::POLLOUT,
        }
    }

    /// Sends a packet, now or when there is room.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn send(&mut self, packet: Packet) -> io::Result<()> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::other("the other process does not read"));
        }
        self.waiting.push_back(packet);
        self.flush()
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// As for [`Link::send`].
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(packet) = self.waiting.front() {
            match packet.send(&self.socket) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next packet; none has come, or the answers to those before are not read.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        if !self.ours && !self.waiting.is_empty() {
            return Ok(None);
        }
        match Packet::receive(&self.socket) {
            Ok(packet) => Ok(Some(packet)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair {
        ours: Link,
        theirs: Link,
        root: RunRoot,
        _life: fs::File,
        _dir: tempfile::TempDir,
    }

    /// Domain 1, whose life lock we hold, connects to domain 2.
    fn pair() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let root = RunRoot::at(dir.path().join("xlr")).unwrap();
        let (one, two) = (root.reserve(|_| false).unwrap(), root.reserve(|_| false).unwrap());
        let life = one.try_hold().unwrap().unwrap();
        let listener = open(&two.peer()).unwrap();
        assert_eq!(fs::metadata(two.peer()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Link::connect(&root, Domid(1), Domid(3)).is_err(), "no such domain");
        let ours = Link::connect(&root, Domid(1), Domid(2)).unwrap();
        let theirs = Link::accept(&listener).unwrap();
        assert!(Link::accept(&listener).is_none());
        Pair { ours, theirs, root, _life: life, _dir: dir }
    }

    #[test]
    fn a_domain_is_believed_when_its_process_holds_its_life_lock() {
        let Pair { ours, theirs, root, .. } = &pair();
        let hello = theirs.receive().unwrap().unwrap();
        assert_eq!(
            (hello.kind, hello.args[0], ours.domid, theirs.domid),
            (Kind::Hello, 1, Some(Domid(2)), None)
        );
        assert!(theirs.is_from(root, Domid(1)));
        assert!(!theirs.is_from(root, Domid(2)) && !theirs.is_from(root, Domid(3)), "nobody holds these");
    }

    #[test]
    fn who_does_not_read_is_not_waited_for_and_not_listened_to() {
        let Pair { mut ours, mut theirs, .. } = pair();
        theirs.receive().unwrap().unwrap();
        for number in 0..5000 {
            ours.send(Packet::new(Kind::Closed, number, [1, 2, 0])).unwrap();
        }
        assert!(ours.interest().contains(PollFlags::POLLOUT), "not all of it fits");
        for number in 0..5000 {
            let packet = theirs.receive().unwrap().unwrap();
            assert_eq!((packet.kind, packet.number), (Kind::Closed, number));
            ours.flush().unwrap();
        }
        assert_eq!(ours.interest(), PollFlags::POLLIN);
        while theirs.waiting.is_empty() {
            theirs.send(Packet { body: vec![0; 4096], ..Packet::answer(0, 0) }).unwrap();
        }
        ours.send(Packet::new(Kind::Unmap, 9, [0; 3])).unwrap();
        assert_eq!(theirs.interest(), PollFlags::POLLOUT);
        assert!(theirs.receive().unwrap().is_none(), "a question while its answers are not read");
        while ours.receive().unwrap().is_some() {
            theirs.flush().unwrap();
        }
        assert_eq!(theirs.receive().unwrap().unwrap().number, 9);
        drop(ours);
        assert_eq!(theirs.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
