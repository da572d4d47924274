//! TAP interfaces: `vifDOMID.DEVID`, a port of a bridge or alone.

use super::link::{Attachment, Link, Slice};
use super::proto::offload::{Accepts, VnetHeader};
use super::sys::{self, iff};
use crate::backend::device::DeviceError;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use xen_emu_api::device::VifAttach;
use zerocopy::IntoBytes;

/// Address of the host's end, which a bridge does not take for its own.
const ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
/// Longest packet that is not segmented yet, with its Ethernet header and two VLAN tags.
const LONGEST: usize = 65536 + 22;
/// Most queues of one TAP (`MAX_TAP_QUEUES` of Linux).
const QUEUES_MAX: u32 = 256;

/// `TUN_F_*`, by what the frontend takes.
fn offloads(accepts: Accepts) -> i32 {
    let table = [(accepts.csum_v4, 1), (accepts.gso_v4, 2), (accepts.gso_v6, 4)];
    table.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum()
}

/// A TAP interface. It goes away with the last of its descriptors, unless somebody else has made it.
pub struct Tap {
    name: String,
    attach: VifAttach,
    /// Keeps the interface, and is the first queue.
    first: File,
    multi_queue: bool,
    mtu: u16,
    /// Goes after the interface.
    bridge: Option<Made>,
}

/// A bridge that was made for a vif. It stays when a guest has connected to the vif or it has other ports, and else
/// goes with the vif: nothing is left of an attach, or of a domain, that has failed.
struct Made {
    bridge: String,
    stays: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let gone = sys::control().and_then(|control| match sys::has_ports(&control, &self.bridge)? {
            true => Ok(()),
            false => sys::remove_bridge(&control, &self.bridge),
        });
        if let Err(e) = gone {
            tracing::warn!("the bridge {} stays: {e}", self.bridge);
        }
    }
}

impl Tap {
    /// Makes the interface and attaches it. `mtu`: to be set, else that of the bridge or of the interface.
    ///
    /// # Errors
    /// One line that says what would be right.
    pub fn open(name: &str, attach: &VifAttach, mtu: Option<u16>) -> Result<Tap, DeviceError> {
        let control = sys::control().map_err(|e| DeviceError(format!("no socket for ioctls: {e}")))?;
        let bridge = match attach {
            VifAttach::Bridge { bridge, create } => Some((bridge.as_str(), *create)),
            VifAttach::Tap | VifAttach::User { .. } => None,
        };
        let made =
            bridge.map(|(bridge, create)| need_bridge(&control, bridge, create)).transpose()?.flatten();
        let existed = sys::index(&control, name).is_ok();
        let (first, multi_queue) = open_first(name)?;
        let of = bridge.map_or(name, |(bridge, _)| bridge);
        let found = sys::mtu(&control, of).ok().and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(1500);
        let mtu = mtu.unwrap_or(found);
        let (name, attach) = (name.to_owned(), attach.clone());
        let tap = Tap { name, attach, first, multi_queue, mtu, bridge: made };
        let _ = sys::carrier(&tap.first, false);
        match tap.configure(&control, bridge.map(|(bridge, _)| bridge)) {
            // One that was made for us beforehand is as its maker wants it.
            Err(_) if existed && bridge.is_none() => Ok(tap),
            done => done.map(|()| tap),
        }
    }

    /// Made anew if somebody has deleted it.
    fn renew(&mut self) -> Result<(), DeviceError> {
        if sys::flags(&self.first).is_ok() {
            return Ok(());
        }
        if !matches!(self.attach, VifAttach::Bridge { .. }) {
            // What else belongs to it was somebody else's doing.
            return Err(DeviceError(format!("the interface {} is gone; attach the card anew", self.name)));
        }
        let mut new = Tap::open(&self.name, &self.attach, Some(self.mtu))?;
        new.bridge = new.bridge.or(self.bridge.take());
        *self = new;
        Ok(())
    }

    fn configure(&self, control: &impl AsFd, bridge: Option<&str>) -> Result<(), DeviceError> {
        let name = self.name.as_str();
        let failed = |what: &str, e: &io::Error| DeviceError(format!("cannot {what} of {name}: {e}"));
        sys::change_address(control, name, ADDRESS).map_err(|e| failed("set the address", &e))?;
        sys::change_mtu(control, name, self.mtu).map_err(|e| failed("set the MTU", &e))?;
        if let Some(bridge) = bridge {
            sys::add_port(control, bridge, name).map_err(|e| refused_port(bridge, name, &e))?;
        }
        sys::up(control, name).map_err(|e| failed("change the state", &e))
    }
}

/// The bridge is there, or is made now.
fn need_bridge(control: &impl AsFd, bridge: &str, create: bool) -> Result<Option<Made>, DeviceError> {
    if sys::index(control, bridge).is_ok() {
        return Ok(None);
    }
    if !create {
        return Err(DeviceError(format!(
            "bridge {bridge} does not exist; make it with `ip link add {bridge} type bridge`, or name another by bridge="
        )));
    }
    let failed = |e| DeviceError(format!("cannot make the bridge {bridge}: {}", hint(&e)));
    sys::add_bridge(control, bridge).map_err(failed)?;
    let made = Made { bridge: bridge.to_owned(), stays: false };
    sys::up(control, bridge).map_err(failed)?;
    Ok(Some(made))
}

fn refused_port(bridge: &str, name: &str, e: &io::Error) -> DeviceError {
    DeviceError(match e.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => format!("{bridge} is a network interface, but no bridge"),
        _ => format!("cannot make {name} a port of {bridge}: {}", hint(e)),
    })
}

/// The error, and what would be right.
fn hint(e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::PermissionDenied => {
            format!("{e}; it takes root or CAP_NET_ADMIN, while vif = ['type=user'] takes neither")
        }
        _ => e.to_string(),
    }
}

fn open_tun() -> Result<File, DeviceError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open("/dev/net/tun").map_err(|e| DeviceError(format!("/dev/net/tun: {}", hint(&e))))
}

const FLAGS: u16 = iff::TAP | iff::NO_PI | iff::VNET_HDR;

/// The first queue; whether there can be more.
fn open_first(name: &str) -> Result<(File, bool), DeviceError> {
    let tun = open_tun()?;
    let attached = match sys::attach(&tun, name, FLAGS | iff::MULTI_QUEUE | iff::EXCLUSIVE) {
        Err(e) if e.kind() == ErrorKind::ResourceBusy => open_existing(&tun, name),
        attached => attached.map(|()| true),
    };
    let multi_queue = attached.map_err(|e| refused_tap(name, &e))?;
    prepare(&tun)?;
    Ok((tun, multi_queue))
}

/// Attaches to an interface that exists; whether there can be more queues.
fn open_existing(tun: &File, name: &str) -> io::Result<bool> {
    match sys::attach(tun, name, FLAGS | iff::MULTI_QUEUE) {
        // It was made with one queue, and the kernel knows whether that is free.
        Err(e) if e.kind() == ErrorKind::InvalidInput => {
            return sys::attach(tun, name, FLAGS).map(|()| false);
        }
        attached => attached?,
    }
    // We are one of its queues now, whoever has the others: there must be none.
    let made_beforehand = sys::flags(tun)? & iff::PERSIST != 0;
    let shared = Path::new("/sys/class/net").join(name).join("queues/rx-1").exists();
    if made_beforehand && !shared { Ok(true) } else { Err(ErrorKind::ResourceBusy.into()) }
}

fn refused_tap(name: &str, e: &io::Error) -> DeviceError {
    DeviceError(match e.raw_os_error() {
        _ if e.kind() == ErrorKind::ResourceBusy => {
            format!("TAP interface {name} is in use by somebody else; name another by vifname=")
        }
        Some(libc::EINVAL) => {
            format!(
                "{name} cannot be a TAP interface: another kind of interface or no valid name; see vifname="
            )
        }
        _ => format!("cannot make the TAP interface {name}: {}", hint(e)),
    })
}

fn prepare(tun: &File) -> Result<(), DeviceError> {
    sys::vnet_hdr_size(tun, size_of::<VnetHeader>())
        .map_err(|e| DeviceError(format!("the TAP driver refuses its header: {e}")))
}

impl Attachment for Tap {
    fn links(&mut self, queues: usize, accepts: Accepts) -> Result<Vec<Box<dyn Link>>, DeviceError> {
        self.renew()?;
        let failed = |e: io::Error| DeviceError(format!("{}: {e}", self.name));
        let mut links = vec![boxed(self.first.try_clone().map_err(failed)?)];
        while links.len() < queues {
            let tun = open_tun()?;
            sys::attach(&tun, &self.name, FLAGS | iff::MULTI_QUEUE).map_err(failed)?;
            prepare(&tun)?;
            links.push(boxed(tun));
        }
        sys::offload(&self.first, offloads(accepts)).map_err(failed)?;
        let _ = sys::carrier(&self.first, true);
        self.bridge.iter_mut().for_each(|made| made.stays = true);
        Ok(links)
    }

    fn release(&mut self, _links: Vec<Box<dyn Link>>) {
        let _ = sys::carrier(&self.first, false);
    }

    fn queues(&self) -> u32 {
        if self.multi_queue { QUEUES_MAX } else { 1 }
    }

    fn offloads(&self) -> bool {
        true
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }
}

fn boxed(tun: File) -> Box<dyn Link> {
    Box::new(TapLink { tun })
}

/// One queue of a TAP, or anything else with packets behind a [`VnetHeader`] each, that does not block.
pub struct TapLink {
    /// The descriptor.
    pub tun: File,
}

impl Link for TapLink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    fn send(&mut self, header: &VnetHeader, head: &mut [u8], rest: &[Slice<'_>]) -> io::Result<()> {
        let mut header = *header;
        let first = [Slice::from(header.as_mut_bytes()), Slice::from(head)];
        sys::write_from(&self.tun, first.iter().chain(rest)).map(drop)
    }

    fn receive(&mut self, header: &mut VnetHeader, into: &[Slice<'_>]) -> io::Result<usize> {
        let first = Slice::from(header.as_mut_bytes());
        let read = sys::read_into(&self.tun, std::iter::once(&first).chain(into))?;
        read.checked_sub(size_of::<VnetHeader>()).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    fn longest(&self) -> usize {
        LONGEST
    }

    fn offloads(&self) -> bool {
        true
    }
}
