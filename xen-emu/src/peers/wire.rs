//! What two domains' processes tell each other: packets of a head of six words and bytes, and descriptors with them.
//!
//! The process that has made the connection asks, the other one answers; both tell of ports that have been closed.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Descriptors in a packet at most.
const FDS: usize = 2;
/// Bytes beside the head: what one page holds.
pub const BODY_MAX: usize = 4096;

/// Of what is said here: processes may be of different ages.
pub const VERSION: u32 = 1;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first one: `a` is the domain that speaks, and `b` the version it speaks.
    Hello,
    /// Join your port `a` to my port `b`. Descriptors: the eventfd you signal, and the one you are signalled by.
    Bind,
    /// Pin your grant `a`, for writing if `b` is 1, under the handle `c`.
    Map,
    /// Take the pin `c` back.
    Unmap,
    /// Bytes `b..b + c` of your grant `a`.
    Read,
    /// To be written to your grant `a` from byte `b` on.
    Write,
    /// My port `b`, which your port `a` was joined to, is closed.
    Closed,
    /// To the packet of this number: `status` is 0, or an errno or GNTST_* below 0. A page that was mapped comes with it.
    Answer,
}

const KINDS: [Kind; 8] =
    [Kind::Hello, Kind::Bind, Kind::Map, Kind::Unmap, Kind::Read, Kind::Write, Kind::Closed, Kind::Answer];

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    kind: u32,
    number: u32,
    args: [u32; 3],
    status: i32,
}

/// One packet.
#[derive(Debug)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Which question, counted by who asks.
    pub number: u32,
    /// Arguments a, b and c.
    pub args: [u32; 3],
    /// Of an answer.
    pub status: i32,
    /// Bytes.
    pub body: Vec<u8>,
    /// Descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    /// Without status, bytes and descriptors.
    pub fn new(kind: Kind, number: u32, args: [u32; 3]) -> Packet {
        Packet { kind, number, args, status: 0, body: Vec::new(), fds: Vec::new() }
    }

    /// The answer to a question.
    pub fn answer(number: u32, status: i32) -> Packet {
        Packet { status, ..Packet::new(Kind::Answer, number, [0; 3]) }
    }

    /// Sends it without waiting.
    ///
    /// # Errors
    /// `WouldBlock`, and then nothing of it has been sent; the host's.
    pub fn send(&self, socket: impl AsFd) -> io::Result<()> {
        let kind = KINDS.iter().position(|&kind| kind == self.kind).unwrap_or(0);
        let kind = u32::try_from(kind).unwrap_or(0);
        let head = Head { kind, number: self.number, args: self.args, status: self.status };
        let parts = [IoSlice::new(head.as_bytes()), IoSlice::new(&self.body)];
        let raw: Vec<_> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, rights, flags, None)?;
        Ok(())
    }

    /// The next one that has come, without waiting.
    ///
    /// # Errors
    /// `WouldBlock`; `UnexpectedEof` at the end; `InvalidData` for what is no packet; the host's.
    pub fn receive(socket: impl AsFd) -> io::Result<Packet> {
        let mut bytes = [0; size_of::<Head>() + BODY_MAX + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let whole = !got.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
        match bytes.get(..got.bytes) {
            Some([]) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(bytes) if whole => parse(bytes, fds).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Packet> {
    let (head, body) = Head::read_from_prefix(bytes).ok()?;
    let kind = *KINDS.get(usize::try_from(head.kind).ok()?)?;
    let fits = body.len() <= BODY_MAX && fds.len() <= FDS;
    let packet = Packet { kind, body: body.to_vec(), fds, ..Packet::new(kind, head.number, head.args) };
    fits.then_some(Packet { status: head.status, ..packet })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};

    #[test]
    fn packets_come_whole_with_their_descriptors_and_nonsense_does_not() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let fds = vec![tempfile::tempfile().unwrap().into(), tempfile::tempfile().unwrap().into()];
        let bind = Packet { fds, ..Packet::new(Kind::Bind, 7, [3, 4, 0]) };
        bind.send(&a).unwrap();
        Packet { body: vec![9; BODY_MAX], ..Packet::answer(7, -22) }.send(&a).unwrap();
        let got = Packet::receive(&b).unwrap();
        assert_eq!((got.kind, got.number, got.args, got.fds.len()), (Kind::Bind, 7, [3, 4, 0], 2));
        let got = Packet::receive(&b).unwrap();
        assert_eq!((got.kind, got.status, got.body), (Kind::Answer, -22, vec![9; BODY_MAX]));
        let kind = |result: io::Result<Packet>| result.unwrap_err().kind();
        assert_eq!(kind(Packet::receive(&b)), io::ErrorKind::WouldBlock);
        for nonsense in [&[1u8; 23][..], &[0xff; 24], &[0; 25 + BODY_MAX]] {
            send(a.as_raw_fd(), nonsense, MsgFlags::empty()).unwrap();
            assert_eq!(kind(Packet::receive(&b)), io::ErrorKind::InvalidData);
        }
        let fds: Vec<OwnedFd> = (0..3).map(|_| tempfile::tempfile().unwrap().into()).collect();
        Packet { fds, ..Packet::answer(1, 0) }.send(&a).unwrap();
        assert_eq!(kind(Packet::receive(&b)), io::ErrorKind::InvalidData);
        drop(a);
        assert_eq!(kind(Packet::receive(&b)), io::ErrorKind::UnexpectedEof);
    }
}
