//! What other domains ask of ours.

use super::link::{Link, Pin};
use super::wire::{BODY_MAX, Kind, Packet, VERSION};
use super::{Channel, LinkId, Server};
use crate::guest::{Guest, lock};
use crate::kvm::backends::BackendFds;
use crate::kvm::ioctl;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use xen_abi::errno::Errno;
use xen_abi::grant_table::GntStatus;
use xen_abi::{Domid, Gref};
use xen_domain::gnttab::Pins;
use xen_domain::mem::Gfn;

/// Grants that one domain may have mapped.
const PINS_MAX: usize = 8192;

/// Moves a frame with `act` while nobody writes to it: no vCPU, and no backend in domain 0, whose disks write to where it
/// was when they began.
fn moving(
    guest: &Guest,
    grants: &Pins,
    frame: Gfn,
    act: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
    // Nobody is stopped in vain.
    grants.unless_written(frame, || ()).ok_or_else(busy)?;
    guest.standing_still(&mut || grants.unless_written(frame, &mut *act).unwrap_or_else(|| Err(busy())))
}

/// By the name the kernel shows.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
}

impl Server {
    /// Who has connected says which domain it is.
    pub(super) fn hello(&mut self, id: LinkId, [domid, version, _]: [u32; 3]) -> io::Result<()> {
        if version != VERSION {
            return Err(io::Error::other(format!(
                "its process speaks version {version} of this, not {VERSION}"
            )));
        }
        let domid = u16::try_from(domid).map(Domid).ok().filter(|domid| domid.is_ordinary());
        let domid = domid.ok_or(io::ErrorKind::InvalidData)?;
        let here = |link: &Link| !link.ours && link.domid == Some(domid);
        if self.links.values().any(here) {
            return Err(io::Error::other(format!("domain {domid} is here already")));
        }
        let link = self.links.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        if !link.is_from(&self.guest.peers.root, domid) {
            return Err(io::Error::other(format!("it is not domain {domid}'s process")));
        }
        link.domid = Some(domid);
        Ok(())
    }

    /// A question of domain `by`.
    pub(super) fn asked(&mut self, id: LinkId, by: Domid, packet: Packet) -> io::Result<()> {
        let (number, [a, b, c]) = (packet.number, packet.args);
        let mut answer = Packet::answer(number, 0);
        answer.status = match packet.kind {
            Kind::Bind => status(self.bind(id, by, (a, b), packet.fds), |errno| -errno.0),
            Kind::Map => status(self.pin(id, by, (a, b == 1, c), &mut answer), gntst),
            Kind::Unmap => {
                let pin = self.links.get_mut(&id).and_then(|link| link.pins.remove(&c));
                if let Some(pin) = pin {
                    self.unpin(pin);
                }
                0
            }
            Kind::Read => status(self.read(by, (a, b, c), &mut answer.body), gntst),
            Kind::Write => status(self.write(by, (a, b), &packet.body), gntst),
            Kind::Hello | Kind::Closed | Kind::Answer => return Err(io::ErrorKind::InvalidData.into()),
        };
        match self.links.get_mut(&id) {
            Some(link) => link.send(answer),
            None => Ok(()),
        }
    }

    fn bind(
        &mut self,
        id: LinkId,
        by: Domid,
        (ours, theirs): (u32, u32),
        fds: Vec<OwnedFd>,
    ) -> Result<(), Errno> {
        let [kick, notify] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| Errno::EINVAL)?;
        if !is_eventfd(&kick) || !is_eventfd(&notify) {
            return Err(Errno::EINVAL);
        }
        // A guess costs our guest nothing: its other channels would wait for the kernel to take one in and out.
        lock(&self.guest.domain).waits_for(ours, by)?;
        let adopt = |fd| ioctl::adopt_eventfd(fd).map_err(|_| Errno::EINVAL);
        let fds = BackendFds { kick: adopt(kick)?, notify: adopt(notify)?, shared: true };
        let backend = self.guest.accel.add_peer(Arc::new(fds)).map_err(|e| {
            crate::log::limited!(warn, "event channel to domain {by}: {e}");
            Errno::ENOMEM
        })?;
        self.channels.insert(backend, Channel { link: id, ours, theirs, gone: false });
        let bound = self.guest.with_domain(|domain, cx| domain.bind_peer(ours, (by, theirs), backend, cx));
        bound.inspect_err(|_| {
            self.channels.remove(&backend);
            self.guest.accel.remove_device(backend);
        })
    }

    /// Pins a grant and adds its page to the answer.
    fn pin(
        &mut self,
        id: LinkId,
        by: Domid,
        (gref, write, handle): (u32, bool, u32),
        answer: &mut Packet,
    ) -> Result<(), GntStatus> {
        let guest = self.guest.clone();
        let link = self.links.get_mut(&id).ok_or(GntStatus::GENERAL_ERROR)?;
        if link.pins.len() >= PINS_MAX {
            return Err(GntStatus::NO_DEVICE_SPACE);
        }
        if link.pins.contains_key(&handle) {
            return Err(GntStatus::BAD_HANDLE);
        }
        let gref = Gref(gref);
        let granted = lock(&guest.domain).grant_to(by, gref, write, &*guest.memory)?;
        let frame = granted.frame;
        let how = (by, granted.writable);
        let shared = guest.memory.share(frame, how, |act| moving(&guest, &self.grants, frame, act));
        let file: File = shared.map_err(|e| {
            lock(&guest.domain).ungrant(gref, write, frame, &*guest.memory);
            if e.kind() == io::ErrorKind::ResourceBusy {
                return GntStatus::EAGAIN;
            }
            crate::log::limited!(warn, "frame {:#x} cannot be shared with domain {by}: {e}", frame.0);
            GntStatus::GENERAL_ERROR
        })?;
        answer.fds.push(file.into());
        link.pins.insert(handle, Pin { gref, write, frame: granted.frame });
        Ok(())
    }

    /// The page is ours alone again before the guest sees that its grant is not in use. Where that cannot be now it is
    /// tried again, and the grant stays in use; false.
    pub(super) fn unpin(&mut self, pin: Pin) -> bool {
        let (guest, frame) = (&self.guest, pin.frame);
        let back = guest.memory.unshare(frame, |act| moving(guest, &self.grants, frame, act));
        if let Err(e) = back {
            if e.kind() != io::ErrorKind::ResourceBusy {
                crate::log::limited!(warn, "frame {:#x} is still shared: {e}", frame.0);
            }
            self.late.push(pin);
            return false;
        }
        lock(&guest.domain).ungrant(pin.gref, pin.write, frame, &*guest.memory);
        true
    }

    /// Gives back what could not be before, until one cannot be again; that one has its turn after the others.
    pub(super) fn unpin_late(&mut self) {
        let mut late = std::mem::take(&mut self.late).into_iter();
        while late.next().is_some_and(|pin| self.unpin(pin)) {}
        self.late.splice(0..0, late);
    }

    fn read(
        &self,
        by: Domid,
        (gref, offset, len): (u32, u32, u32),
        to: &mut Vec<u8>,
    ) -> Result<(), GntStatus> {
        let len = usize::try_from(len).ok().filter(|len| *len <= BODY_MAX).ok_or(GntStatus::BAD_COPY_ARG)?;
        let offset = u16::try_from(offset).map_err(|_| GntStatus::BAD_COPY_ARG)?;
        let mut bytes = vec![0; len];
        let guest = &self.guest;
        let domain = lock(&guest.domain);
        domain.read_grant(by, Gref(gref), offset, &mut bytes, &*guest.memory)?;
        *to = bytes;
        Ok(())
    }

    fn write(&self, by: Domid, (gref, offset): (u32, u32), bytes: &[u8]) -> Result<(), GntStatus> {
        let offset = u16::try_from(offset).map_err(|_| GntStatus::BAD_COPY_ARG)?;
        let guest = &self.guest;
        let domain = lock(&guest.domain);
        domain.write_grant(by, Gref(gref), offset, bytes, &*guest.memory)
    }
}

fn status<E>(result: Result<(), E>, number: impl FnOnce(E) -> i32) -> i32 {
    result.map_or_else(number, |()| 0)
}

fn gntst(status: GntStatus) -> i32 {
    status.0.into()
}
