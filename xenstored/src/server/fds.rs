//! Descriptors that come with INTRODUCE, or from whoever ran this program.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno as Sys;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, sendmsg, socketpair, sockopt,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::ring::Ring;

/// Descriptors that INTRODUCE carries at most.
pub(super) const RING_FDS: usize = 4;
/// Inherited descriptors adopted at a time; a message carries 253 at most.
const ADOPTED: usize = 64;

/// What came with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// No descriptors.
    None,
    /// Those that were sent.
    All,
    /// More than INTRODUCE has, which are dropped.
    TooMany,
    /// Less than were sent, because this process cannot have more. They are dropped.
    TooFew,
}

/// A ring that can be served, made of what came with an INTRODUCE.
pub(super) struct RingSet {
    pub(super) ring: Ring,
    pub(super) kick: OwnedFd,
    pub(super) notify: Notify,
    pub(super) lifeline: Option<OwnedFd>,
}

impl RingSet {
    /// Ring page, kick, notify, and the life line if there is one.
    ///
    /// # Errors
    /// If one is missing or is not what it should be.
    pub(super) fn new(mut fds: VecDeque<OwnedFd>) -> io::Result<Self> {
        let mut next = || fds.pop_front();
        let (Some(page), Some(kick), Some(notify)) = (next(), next(), next()) else {
            return Err(invalid("ring page, kick and notify descriptors must come with it"));
        };
        let lifeline = next();
        for fd in [&kick, &notify] {
            if !is_eventfd(fd) {
                return Err(invalid("kick and notify must be eventfds"));
            }
        }
        // The eventfds' flags are their makers' too, who may wait in a read of theirs: they stay as they are.
        if let Some(fd) = &lifeline {
            if getsockopt(fd, sockopt::SockType) != Ok(SockType::Stream) {
                return Err(invalid("the life line must be a stream socket"));
            }
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        let flags = OFlag::from_bits_retain(fcntl(&notify, FcntlArg::F_GETFL)?);
        let notify = Notify { fd: notify, blocks: !flags.contains(OFlag::O_NONBLOCK) };
        let ring =
            Ring::new(page).map_err(|error| io::Error::new(error.kind(), format!("ring page: {error}")))?;
        Ok(Self { ring, kick, notify, lifeline })
    }
}

/// The eventfd by which a domain is notified.
pub(super) struct Notify {
    fd: OwnedFd,
    /// A write to it waits while its counter is full.
    blocks: bool,
}

impl Notify {
    /// Signals it. One whose counter is full has been signalled.
    pub(super) fn signal(&self) {
        let mut room = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        if !self.blocks || poll(&mut room, PollTimeout::ZERO) == Ok(1) {
            let _ = nix::unistd::write(&self.fd, &1u64.to_ne_bytes());
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// By the name the kernel shows; where /proc is missing it is believed.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or(true, |link| link.as_os_str() == "anon_inode:[eventfd]")
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Reads what has come, descriptors with it; never blocks. More descriptors than INTRODUCE has are dropped. Answers how
/// many bytes came, and whether descriptors did: the kernel does not read on behind them.
pub(super) fn receive(
    fd: impl AsFd,
    chunk: &mut [u8],
    fds: &mut VecDeque<OwnedFd>,
) -> nix::Result<(usize, Came)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RING_FDS))];
    let before = fds.len();
    let (bytes, complete) = receive_with(fd, chunk, &mut space, fds)?;
    let came = match (complete, fds.len() - before) {
        // The kernel stops at the first one that it cannot give.
        (false, count) if count < RING_FDS => Came::TooFew,
        (true, 0) => Came::None,
        _ if !complete || fds.len() > RING_FDS => Came::TooMany,
        _ => Came::All,
    };
    if matches!(came, Came::TooMany | Came::TooFew) {
        fds.clear();
    }
    Ok((bytes, came))
}

fn receive_with(
    fd: impl AsFd,
    chunk: &mut [u8],
    space: &mut [MaybeUninit<u8>],
    fds: &mut VecDeque<OwnedFd>,
) -> nix::Result<(usize, bool)> {
    let mut control = RecvAncillaryBuffer::new(space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(fd, &mut [IoSliceMut::new(chunk)], &mut control, flags)
        .map_err(|errno| Sys::from_raw(errno.raw_os_error()))?;
    for rights in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = rights {
            fds.extend(rights);
        }
    }
    Ok((message.bytes, !message.flags.contains(ReturnFlags::CTRUNC)))
}

/// Takes descriptors over that this process inherited by number. They are closed under those numbers, and have others.
///
/// # Errors
/// `EBADF` if one of them is not open; what the system says about too many.
pub(super) fn adopt(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    let (from, to) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    let mut adopted = VecDeque::new();
    for some in numbers.chunks(ADOPTED) {
        let rights = [ControlMessage::ScmRights(some)];
        sendmsg::<()>(from.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ADOPTED))];
        let before = adopted.len();
        receive_with(&to, &mut [0], &mut space, &mut adopted)?;
        if adopted.len() != before + some.len() {
            return Err(io::Error::other("not all inherited descriptors came over"));
        }
        for &number in some {
            let _ = nix::unistd::close(number);
        }
    }
    Ok(adopted.into())
}

/// Whether a descriptor survives the execution of another program.
pub(super) fn set_inherited(fd: impl AsFd, inherited: bool) -> nix::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::io::Read;
    use std::os::fd::IntoRawFd;

    #[test]
    fn inherited_descriptors_are_taken_over_by_number() {
        let numbers: Vec<RawFd> =
            (0..150).map(|_| File::open("/proc/self/comm").unwrap().into_raw_fd()).collect();
        let adopted = adopt(&numbers).unwrap();
        assert_eq!(adopted.len(), numbers.len());
        for fd in adopted {
            let mut text = String::new();
            File::from(fd).read_to_string(&mut text).unwrap();
            assert!(!text.is_empty());
        }
        assert!(adopt(&[1 << 29]).is_err());
    }
}
