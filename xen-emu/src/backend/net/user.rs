//! User-mode networking by passt: frames on a stream socket, each behind its length (32 bits, big-endian), without
//! offloads. passt ends when our end of the socket is closed, so it never outlives the domain.

use super::link::{Attachment, Link, Slice, Slices, behind, gather, scatter};
use super::proto::offload::{Accepts, VnetHeader};
use super::sys;
use crate::backend::device::DeviceError;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use xen_emu_api::device::Forward;

/// Longest frame.
const FRAME_MAX: usize = 65535;
/// How passt begins what it says beside the reason that it ends for.
const ASIDES: [&str; 3] = ["Don't run as root", "Failed to send", "No external routable interface"];
/// The socket is passt's descriptor 3, and of no other program that is started at the same time: a descriptor that passt
/// inherits directly would be theirs too.
const EXEC: &str = "exec passt \"$@\" 3<&0 </dev/null";
/// The shell's status when there is no such program.
const NOT_FOUND: i32 = 127;
/// Bytes before each frame.
const PREFIX: usize = 4;

/// A guest's own passt.
pub struct Passt {
    forwards: Vec<Forward>,
    map_gw: bool,
    mtu: u16,
    /// While no frontend has it.
    link: Option<Box<dyn Link>>,
}

/// `ADDR/HOSTPORT:GUESTPORT`, as passt wants it.
fn spec(forward: &Forward) -> (&'static str, String) {
    let option = if forward.udp { "-u" } else { "-t" };
    let address = forward.address.map(|address: IpAddr| format!("{address}/")).unwrap_or_default();
    (option, format!("{address}{}:{}", forward.host_port, forward.guest_port))
}

/// The host's name servers, and those behind the one that systemd-resolved puts there at 127.0.0.53.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// As many as a resolver asks.
const SERVERS_MAX: usize = 3;

/// The name servers in a resolv.conf.
fn servers(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok()).collect()
}

/// Whom a guest asks that has no way to the host's 127.0.0.1, where the host asks there: passt tells it of no such server.
fn instead(own: &str, upstream: &str) -> Vec<IpAddr> {
    if !servers(own).iter().any(IpAddr::is_loopback) {
        return Vec::new();
    }
    servers(upstream).into_iter().filter(|server| !server.is_loopback()).take(SERVERS_MAX).collect()
}

impl Passt {
    /// Starts passt. `map_gw`: the guest reaches the host's own 127.0.0.1 as its gateway. So it does where a UDP port is forwarded: a datagram of
    /// the host's to 127.0.0.1 comes to the guest from the gateway's address, and the answer finds its way back by this mapping alone.
    ///
    /// # Errors
    /// It is not installed, or refuses: its own words.
    pub fn start(forwards: &[Forward], map_gw: bool, mtu: u16) -> Result<Passt, DeviceError> {
        let map_gw = map_gw || forwards.iter().any(|forward| forward.udp);
        let mut passt = Passt { forwards: forwards.to_vec(), map_gw, mtu, link: None };
        passt.link = Some(passt.launch()?);
        Ok(passt)
    }

    /// A new passt at the other end of a new link. It goes to the background when it is ready.
    fn launch(&self) -> Result<Box<dyn Link>, DeviceError> {
        let failed = |e: io::Error| DeviceError(format!("cannot start passt: {e}"));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", EXEC, "passt", "-q", "--fd", "3", "-m", &self.mtu.to_string()]);
        if !self.map_gw {
            command.arg("--no-map-gw");
            let text = |path| fs::read_to_string(path).unwrap_or_default();
            for server in instead(&text(RESOLV_CONF), &text(UPSTREAM)) {
                command.args(["-D", &server.to_string()]);
            }
        }
        for (option, spec) in self.forwards.iter().map(spec) {
            command.args([option, &spec]);
        }
        command.current_dir("/").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.output().map_err(failed)?;
        match output.status.code() {
            Some(0) => return Ok(Box::new(Stream::new(ours))),
            Some(NOT_FOUND) => {
                return Err(DeviceError(
                    "vif type=user needs passt, which is not installed (Debian: apt install passt)".into(),
                ));
            }
            _ => {}
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let said = words.lines().map(str::trim).filter(|line| !line.is_empty());
        let words: Vec<&str> =
            said.filter(|line| !ASIDES.iter().any(|aside| line.starts_with(aside))).collect();
        Err(DeviceError(format!("passt refuses: {}", words.join("; "))))
    }
}

impl Attachment for Passt {
    fn links(&mut self, _queues: usize, _accepts: Accepts) -> Result<Vec<Box<dyn Link>>, DeviceError> {
        let kept = self.link.take().filter(|link| !hung_up(link.as_ref()));
        Ok(vec![kept.map_or_else(|| self.launch(), Ok)?])
    }

    fn release(&mut self, mut links: Vec<Box<dyn Link>>) {
        self.link = links.pop();
    }

    fn queues(&self) -> u32 {
        1
    }

    fn offloads(&self) -> bool {
        false
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }
}

fn hung_up(link: &dyn Link) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(link.fd(), PollFlags::empty())];
    let ready = poll(&mut fds, PollTimeout::ZERO);
    ready.is_ok() && fds[0].revents().is_some_and(|got| got.contains(PollFlags::POLLHUP))
}

/// Frames on a stream.
pub struct Stream {
    socket: UnixStream,
    /// What was read and not yet taken lies from `taken` to `filled`.
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
    /// The end of a frame of which the beginning was sent.
    unsent: Vec<u8>,
}

impl Stream {
    /// On a socket that does not block.
    pub fn new(socket: UnixStream) -> Stream {
        Stream { socket, buffer: vec![0; 4 * (PREFIX + FRAME_MAX)], taken: 0, filled: 0, unsent: Vec::new() }
    }

    /// The next whole frame that was read, if there is one.
    fn frame(&self) -> io::Result<Option<std::ops::Range<usize>>> {
        let begun = self.buffer.get(self.taken..self.filled).unwrap_or_default();
        let Some((prefix, rest)) = begun.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let size = u32::from_be_bytes(*prefix) as usize;
        if size > FRAME_MAX {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "passt has sent a frame that is too long"));
        }
        let start = self.taken + PREFIX;
        Ok((rest.len() >= size).then_some(start..start + size))
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        (self.filled, self.taken) = (self.filled - self.taken, 0);
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        match self.socket.read(room)? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "passt has ended")),
            n => {
                self.filled += n;
                Ok(())
            }
        }
    }
}

impl Link for Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, _header: &VnetHeader, head: &mut [u8], rest: &[Slice<'_>]) -> io::Result<()> {
        if self.flush() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let size = head.len() + rest.iter().map(|slice| slice.len()).sum::<usize>();
        let mut prefix = u32::try_from(size).map_err(io::Error::other)?.to_be_bytes();
        let first = [Slice::from(prefix.as_mut_slice()), Slice::from(head)];
        let slices: Slices<'_> = first.into_iter().chain(rest.iter().cloned()).collect();
        let sent = sys::write_from(&self.socket, &slices)?;
        let left = behind(&slices, sent);
        self.unsent.resize(PREFIX + size - sent, 0);
        gather(&left, &mut self.unsent);
        Ok(())
    }

    fn receive(&mut self, header: &mut VnetHeader, into: &[Slice<'_>]) -> io::Result<usize> {
        loop {
            if let Some(frame) = self.frame()? {
                *header = VnetHeader::default();
                self.taken = frame.end;
                let bytes = self.buffer.get(frame).unwrap_or_default();
                scatter(bytes, into);
                return Ok(bytes.len());
            }
            self.fill()?;
        }
    }

    fn longest(&self) -> usize {
        FRAME_MAX
    }

    fn offloads(&self) -> bool {
        false
    }

    fn flush(&mut self) -> bool {
        if self.unsent.is_empty() {
            return false;
        }
        match self.socket.write(&self.unsent) {
            Ok(sent) => {
                self.unsent.drain(..sent);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            // There is nobody to send it to.
            Err(_) => self.unsent.clear(),
        }
        !self.unsent.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_that_only_the_host_reaches_is_replaced() {
        let upstream = "# by systemd-resolved\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch lan\n";
        let both: [IpAddr; 2] = ["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()];
        assert_eq!(instead("nameserver 127.0.0.53\noptions edns0\n", upstream), both);
        assert_eq!(instead("nameserver\t::1\n", "nameserver 127.0.0.1\n"), [] as [IpAddr; 0]);
        assert_eq!(instead("nameserver 192.0.2.1\n", upstream), [] as [IpAddr; 0], "passt reads it itself");
    }
}
