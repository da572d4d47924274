//! The eventfds between a domain and its backends, and who brings to the guest what backends signal.

use super::ioctl;
use crate::forward::Forward;
use crate::log::limited;
use crate::machine::IOAPIC_PINS;
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use xen_domain::effect::Backend;

/// Event channels of devices at once: KVM has 4096 interrupt routes.
const DEVICES: u32 = 4000;

/// The eventfds of one backend.
#[derive(Debug)]
pub struct BackendFds {
    /// Signalled when the guest notifies the backend.
    pub kick: EventFd,
    /// Signalled by the backend to notify the guest.
    pub notify: EventFd,
    /// Another domain's process has them too.
    pub shared: bool,
}

impl BackendFds {
    /// Two new ones.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<BackendFds> {
        let flags = EFD_NONBLOCK | EFD_CLOEXEC;
        Ok(BackendFds { kick: EventFd::new(flags)?, notify: EventFd::new(flags)?, shared: false })
    }

    /// Signals the backend. One whose eventfd is full has been signalled. The process of another domain may fill its own, and
    /// have it waited for, in the very moment in between: `watch(true)` is called before such a write and `watch(false)` after it, and
    /// a signal to the thread ends it; then it has been signalled enough. One of our own never fills up.
    pub fn signal(&self, watch: impl Fn(bool)) {
        if !self.shared {
            return self.add_one();
        }
        if ioctl::has_room(&self.kick) {
            watch(true);
            self.add_one();
            watch(false);
        }
    }

    fn add_one(&self) {
        match ioctl::add_one(&self.kick) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => limited!(warn, "kick: {e}"),
            _ => {}
        }
    }
}

/// Who listens to the notify eventfds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// What is signalled waits for another carrier.
    Nobody,
    /// KVM, by irqfds and the routes of [`gsi`].
    Kvm,
    /// The thread of [`crate::forward`].
    Forward,
}

/// The GSI of a backend: those below [`IOAPIC_PINS`] are the pins'.
pub fn gsi(backend: Backend) -> u32 {
    IOAPIC_PINS
        + match backend {
            Backend::Store => 0,
            Backend::Console => 1,
            Backend::Device(n) => 2 + n,
        }
}

/// The backends of a domain.
pub struct Backends {
    vm: Arc<VmFd>,
    forward: Arc<Forward>,
    state: Mutex<State>,
}

struct State {
    wired: BTreeMap<Backend, Wired>,
    carrier: Carrier,
}

struct Wired {
    fds: Arc<BackendFds>,
    /// The carrier listens.
    heard: bool,
}

impl Backends {
    /// Those that every domain has: store and console.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(vm: Arc<VmFd>, forward: Arc<Forward>, carrier: Carrier) -> io::Result<Backends> {
        let state = State { wired: BTreeMap::new(), carrier };
        let backends = Backends { vm, forward, state: Mutex::new(state) };
        for backend in [Backend::Store, Backend::Console] {
            backends.insert(&mut backends.state(), backend, Arc::new(BackendFds::new()?))?;
        }
        Ok(backends)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, state: &mut State, backend: Backend, fds: Arc<BackendFds>) -> io::Result<()> {
        self.listen(state.carrier, backend, &fds.notify)?;
        state.wired.insert(backend, Wired { fds, heard: true });
        Ok(())
    }

    /// The eventfds of a backend.
    pub fn get(&self, backend: Backend) -> Option<Arc<BackendFds>> {
        self.state().wired.get(&backend).map(|wired| wired.fds.clone())
    }

    /// Make room for one more event channel with these eventfds.
    ///
    /// # Errors
    /// The host has no interrupt routes left, or an eventfd is in use already.
    pub fn add(&self, fds: Arc<BackendFds>) -> io::Result<Backend> {
        let mut state = self.state();
        let free = |n: &u32| !state.wired.contains_key(&Backend::Device(*n));
        let backend = (0..DEVICES).find(free).map(Backend::Device);
        let backend = backend.ok_or_else(|| io::Error::other(format!("more than {DEVICES} in use")))?;
        self.insert(&mut state, backend, fds)?;
        Ok(backend)
    }

    /// Forget a device's event channel.
    pub fn remove(&self, backend: Backend) {
        self.hush(backend);
        self.state().wired.remove(&backend);
    }

    /// Listen to a backend no longer: what it has signalled has come to the guest by then, or counts in its eventfd.
    pub fn hush(&self, backend: Backend) {
        let mut state = self.state();
        let carrier = state.carrier;
        if let Some(wired) = state.wired.get_mut(&backend)
            && std::mem::take(&mut wired.heard)
            && let Err(e) = self.leave(carrier, backend, &wired.fds.notify)
        {
            limited!(warn, "{backend:?} is still listened to: {e}");
        }
    }

    /// From now on this one listens; what was signalled before counts. An error keeps no other backend from it.
    ///
    /// # Errors
    /// The host's.
    pub fn carry(&self, carrier: Carrier) -> io::Result<()> {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.carrier, carrier);
        if before == carrier {
            return Ok(());
        }
        let heard = state.wired.iter().filter(|(_, wired)| wired.heard);
        let moved = heard.map(|(&backend, wired)| {
            let left = self.leave(before, backend, &wired.fds.notify);
            left.and(self.listen(carrier, backend, &wired.fds.notify))
        });
        moved.fold(Ok(()), io::Result::and)
    }

    fn listen(&self, carrier: Carrier, backend: Backend, notify: &EventFd) -> io::Result<()> {
        match carrier {
            Carrier::Nobody => Ok(()),
            Carrier::Kvm => self.vm.register_irqfd(notify, gsi(backend)).map_err(io::Error::from),
            Carrier::Forward => self.forward.add(backend, notify),
        }
    }

    fn leave(&self, carrier: Carrier, backend: Backend, notify: &EventFd) -> io::Result<()> {
        match carrier {
            Carrier::Nobody => Ok(()),
            Carrier::Kvm => self.vm.unregister_irqfd(notify, gsi(backend)).map_err(io::Error::from),
            Carrier::Forward => self.forward.remove(backend, notify),
        }
    }
}
