//! Notifications of backends that the kernel does not carry to the guest: a thread reads their eventfds and raises the
//! ports. Idle where KVM has routes for them.

use crate::guest::Guest;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use xen_domain::effect::Backend;

/// The eventfds that are listened to.
pub struct Forward {
    epoll: Epoll,
    stop: EventFd,
}

/// Numbers in the epoll set: those of devices follow.
const STOP: u64 = 0;
const STORE: u64 = 1;
const CONSOLE: u64 = 2;
const DEVICES: u64 = 3;

fn number(backend: Backend) -> u64 {
    match backend {
        Backend::Store => STORE,
        Backend::Console => CONSOLE,
        Backend::Device(n) => DEVICES + u64::from(n),
    }
}

fn backend(number: u64) -> Option<Backend> {
    match number {
        STOP => None,
        STORE => Some(Backend::Store),
        CONSOLE => Some(Backend::Console),
        n => u32::try_from(n - DEVICES).ok().map(Backend::Device),
    }
}

impl Forward {
    /// Listening to none.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<Forward> {
        let forward = Forward { epoll: Epoll::new()?, stop: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? };
        forward.control(ControlOperation::Add, &forward.stop, STOP)?;
        Ok(forward)
    }

    fn control(&self, operation: ControlOperation, fd: &EventFd, number: u64) -> io::Result<()> {
        self.epoll.ctl(operation, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, number))
    }

    /// Listen to `notify` of a backend; what was signalled before counts.
    ///
    /// # Errors
    /// The host's, among them that it is listened to already.
    pub fn add(&self, from: Backend, notify: &EventFd) -> io::Result<()> {
        self.control(ControlOperation::Add, notify, number(from))
    }

    /// Listen no longer.
    ///
    /// # Errors
    /// The host's, among them that it was not listened to.
    pub fn remove(&self, from: Backend, notify: &EventFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, notify, number(from))
    }

    /// End the thread in [`run`].
    pub fn stop(&self) {
        // Fails only when it was told more often than can be counted.
        let _ = self.stop.write(1);
    }
}

/// The forwarding thread of a domain; returns after [`Forward::stop`].
pub fn run(guest: &Arc<Guest>) {
    let mut ready = [EpollEvent::default(); 32];
    loop {
        let count = match guest.forward.epoll.wait(-1, &mut ready) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return tracing::error!("events of backends no longer reach the guest: {e}"),
        };
        for event in ready.iter().take(count) {
            let Some(from) = backend(event.data()) else { return };
            guest.with_domain(|domain, cx| guest.take_signal(from, domain, cx));
        }
    }
}
