//! Channels and further consoles (`device/console/N`, N from 1 on): the byte rings of public/io/console.h in a page
//! that the guest grants, and a pty or a listening Unix socket.
//!
//! A socket serves one client at a time, the next one when that has left; others wait to be accepted. What the guest
//! writes while nobody is there is kept for the next one, its newest [`KEEP`] bytes; a client that does not read holds
//! the guest back.

mod link;
mod outlet;

use super::device::{Connection, Device, DeviceError, Nodes};
use crate::backend::console::ring::Ring;
use link::Link;
use nix::sys::eventfd::{EfdFlags, EventFd};
use outlet::Outlet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use xen_abi::Gref;
use xen_domain::gnttab::Grants;
use xen_domain::mem::GuestMem;
use xen_emu_api::device::ChannelConfig;

/// Bytes of the guest's output that are kept while nobody reads: the `limit` node.
pub const KEEP: usize = 1 << 20;

/// One channel.
pub struct Channel {
    devid: u32,
    outlet: Arc<Outlet>,
    carried: Arc<Carried>,
    running: Option<Running>,
}

/// Bytes carried since the channel was made.
#[derive(Debug, Default)]
struct Carried {
    to_guest: AtomicU64,
    from_guest: AtomicU64,
}

/// What there is while the frontend is connected.
struct Running {
    gref: Gref,
    grants: Arc<dyn Grants>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// Our end of the event channel.
    _end: Box<dyn Send + Sync>,
}

impl Channel {
    /// Opens the pty or binds the socket.
    ///
    /// # Errors
    /// No pty to be had, or no socket at that path.
    pub fn open(config: &ChannelConfig) -> Result<Channel, DeviceError> {
        let outlet = Outlet::open(&config.connection)
            .map_err(|e| DeviceError(format!("channel {}: {e}", config.name)))?;
        Ok(Channel { devid: config.devid, outlet: Arc::new(outlet), carried: Arc::default(), running: None })
    }

    fn start(&mut self, connection: Connection) -> Result<(), DeviceError> {
        let failed = |e: &dyn std::fmt::Display| DeviceError(format!("channel: {e}"));
        let Connection { domid, front, memory, grants, channels, fail } = connection;
        let gref = Gref(front.need("ring-ref")?);
        let port = front.need("port")?;
        let stop =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| failed(&e))?;
        let pinned = grants.pin(gref, true).map_err(|e| failed(&e))?;
        // From here on dropping it undoes everything.
        let mut running = Running { gref, grants, stop: Arc::new(stop), thread: None, _end: Box::new(()) };
        if pinned.len < 4096 {
            return Err(failed(&"the ring needs a whole page"));
        }
        let page: Arc<dyn GuestMem + Send + Sync> = memory;
        let ring = Ring::new(page, pinned.gpa).map_err(|e| failed(&e))?;
        let channel = channels.bind(port)?;
        running._end = channel.end;
        let link = Link::new(
            ring,
            (File::from(channel.kick), File::from(channel.notify)),
            (self.outlet.clone(), self.carried.clone()),
            running.stop.clone(),
        )
        .map_err(|e| failed(&e))?;
        let name = format!("channel{}-{domid}", self.devid);
        let run = move || {
            if let Err(e) = link.run() {
                fail(DeviceError(format!("channel: {e}")));
            }
        };
        running.thread = Some(std::thread::Builder::new().name(name).spawn(run).map_err(|e| failed(&e))?);
        self.running = Some(running);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Full only if written 2^64 - 2 times.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.grants.unpin(self.gref, true);
    }
}

impl Device for Channel {
    fn advertise(&self) -> Nodes {
        Vec::new()
    }

    fn connect(&mut self, connection: Connection) -> Result<Nodes, DeviceError> {
        self.disconnect();
        self.start(connection).map(|()| Vec::new())
    }

    fn disconnect(&mut self) {
        self.running = None;
    }

    fn rings(&self) -> Vec<u32> {
        self.running.iter().map(|running| running.gref.0).collect()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let all =
            [("bytes-to-guest", &self.carried.to_guest), ("bytes-from-guest", &self.carried.from_guest)];
        all.into_iter().map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect()
    }

    fn path(&self) -> Option<String> {
        Some(self.outlet.path())
    }
}

#[cfg(test)]
mod tests;
