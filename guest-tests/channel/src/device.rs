//! Linux's devices for programs that talk to other domains: `/dev/xen/{evtchn,gntalloc,gntdev}`
//! (`include/uapi/xen/{evtchn,gntalloc,gntdev}.h`).
#![expect(unsafe_code, reason = "ioctls, and a page that another domain writes to")]

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// UNMAP_NOTIFY_CLEAR_BYTE and UNMAP_NOTIFY_SEND_EVENT.
const CLEAR_AND_SEND: u32 = 1 | 2;
const GNTALLOC_FLAG_WRITABLE: u16 = 1;

/// `_IOC(_IOC_NONE, kind, number, size)`, as these devices have them all.
const fn code(kind: u8, number: u64, size: u64) -> u64 {
    size << 16 | (kind as u64) << 8 | number
}

#[repr(C)]
struct AllocGref {
    domid: u16,
    flags: u16,
    count: u32,
    index: u64,
    gref: u32,
}

#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    index: u64,
    domid: u32,
    gref: u32,
}

#[repr(C)]
struct UnmapNotify {
    index: u64,
    action: u32,
    port: u32,
}

#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

nix::ioctl_readwrite_bad!(gntalloc_alloc_gref, code(b'G', 5, 24), AllocGref);
nix::ioctl_write_ptr_bad!(set_unmap_notify, code(b'G', 7, 16), UnmapNotify);
nix::ioctl_readwrite_bad!(gntdev_map_grant_ref, code(b'G', 0, 24), MapGrantRef);
nix::ioctl_write_ptr_bad!(evtchn_bind_interdomain, code(b'E', 1, 8), BindInterdomain);
nix::ioctl_write_ptr_bad!(evtchn_bind_unbound_port, code(b'E', 2, 4), u32);
nix::ioctl_write_ptr_bad!(evtchn_notify, code(b'E', 4, 4), u32);

fn open(name: &str) -> Result<File> {
    let path = format!("/dev/xen/{name}");
    File::options().read(true).write(true).open(&path).with_context(|| format!("cannot open {path}"))
}

/// A page of two domains.
#[derive(Debug)]
pub struct Page {
    at: NonNull<u8>,
    /// What keeps it granted or mapped, and its place in that.
    held: Option<(File, u64)>,
}

impl Page {
    /// A fresh page, granted to a domain for writing too, and its grant.
    pub fn grant(domid: u16) -> Result<(Page, u32)> {
        let device = open("gntalloc")?;
        let mut ask = AllocGref { domid, flags: GNTALLOC_FLAG_WRITABLE, count: 1, index: 0, gref: 0 };
        // SAFETY: the argument is the one of this ioctl, and lives as long as the call.
        unsafe { gntalloc_alloc_gref(device.as_raw_fd(), &raw mut ask) }.context("allocating a grant")?;
        Ok((Page::map(device, ask.index)?, ask.gref))
    }

    /// A page that another domain has granted.
    pub fn of(domid: u16, gref: u32) -> Result<Page> {
        let device = open("gntdev")?;
        let mut ask = MapGrantRef { count: 1, pad: 0, index: 0, domid: domid.into(), gref };
        // SAFETY: as above.
        unsafe { gntdev_map_grant_ref(device.as_raw_fd(), &raw mut ask) }
            .with_context(|| format!("taking grant {gref} of domain {domid}"))?;
        Page::map(device, ask.index)
    }

    fn map(device: File, index: u64) -> Result<Page> {
        let length = NonZeroUsize::new(PAGE).context("a page")?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, &device, index.cast_signed()) };
        Ok(Page { at: at.context("mapping the page")?.cast(), held: Some((device, index)) })
    }

    /// Has the kernel clear a byte of the page, and send an event, when this process lets go of it.
    pub fn notify_at_end(&self, offset: u64, port: u32) -> Result<()> {
        let (device, index) = self.held.as_ref().context("a page of nobody")?;
        let ask = UnmapNotify { index: index + offset, action: CLEAR_AND_SEND, port };
        // SAFETY: as above; both devices have this ioctl.
        unsafe { set_unmap_notify(device.as_raw_fd(), &raw const ask) }.context("asking for a farewell")?;
        Ok(())
    }

    /// A byte of it.
    pub fn u8(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < PAGE, "beyond the page");
        // SAFETY: within the page, which is mapped as long as `self` lives; others change it only as atomics do.
        unsafe { AtomicU8::from_ptr(self.at.as_ptr().add(offset)) }
    }

    /// An aligned word of it.
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset < PAGE && offset.is_multiple_of(4), "no word of the page");
        // SAFETY: as above, and aligned.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(offset).cast()) }
    }

    /// One of nobody else.
    #[cfg(test)]
    pub fn alone() -> Page {
        let length = NonZeroUsize::new(PAGE).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { nix::sys::mman::mmap_anonymous(None, length, prot, MapFlags::MAP_SHARED) };
        Page { at: at.unwrap().cast(), held: None }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: what `map` has mapped, and nothing refers to it any more.
        let _ = unsafe { munmap(self.at.cast(), PAGE) };
    }
}

/// An event channel.
#[derive(Debug)]
pub struct Port {
    device: File,
    /// Its number here.
    pub number: u32,
}

impl Port {
    /// One that waits for a domain.
    pub fn unbound(domid: u16) -> Result<Port> {
        let device = open("evtchn")?;
        let domid = u32::from(domid);
        // SAFETY: the argument is the one of this ioctl, and lives as long as the call.
        let number = unsafe { evtchn_bind_unbound_port(device.as_raw_fd(), &raw const domid) };
        let number = number.context("opening a port")?.cast_unsigned();
        Ok(Port { device, number })
    }

    /// One bound to a port of a domain that waits for us.
    pub fn bound(domid: u16, port: u32) -> Result<Port> {
        let device = open("evtchn")?;
        let ask = BindInterdomain { remote_domain: domid.into(), remote_port: port };
        // SAFETY: as above.
        let number = unsafe { evtchn_bind_interdomain(device.as_raw_fd(), &raw const ask) };
        let number = number.with_context(|| format!("binding to port {port} of domain {domid}"))?;
        Ok(Port { device, number: number.cast_unsigned() })
    }

    /// Tells the other domain.
    pub fn notify(&self) -> Result<()> {
        // SAFETY: as above.
        unsafe { evtchn_notify(self.device.as_raw_fd(), &raw const self.number) }.context("notifying")?;
        Ok(())
    }

    /// Waits for an event, and for the next one from then on.
    pub fn wait(&mut self, patience: Duration) -> Result<()> {
        let timeout = PollTimeout::try_from(patience)?;
        let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut fds, timeout)? == 1, "no event for {} s", patience.as_secs());
        let mut port = [0; 4];
        self.device.read_exact(&mut port).context("reading an event")?;
        ensure!(u32::from_ne_bytes(port) == self.number, "an event of another port");
        self.device.write_all(&port).context("unmasking the port")
    }
}
