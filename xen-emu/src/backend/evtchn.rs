//! The machine's event channels as devices use them.

use super::device::{Channels, DeviceError, EventChannel};
use crate::guest::Guest;
use crate::kvm::ioctl::share;
use std::io;
use std::sync::Arc;
use xen_domain::effect::Backend;

/// Channels of one domain.
pub struct GuestChannels(pub Arc<Guest>);

/// Our end of one channel.
struct End {
    guest: Arc<Guest>,
    backend: Backend,
}

impl Drop for End {
    fn drop(&mut self) {
        self.guest.with_domain(|domain, cx| domain.disconnect_backend(self.backend, cx));
        self.guest.accel.remove_device(self.backend);
    }
}

impl Channels for GuestChannels {
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError> {
        let host = |e: io::Error| DeviceError(format!("event channel {port}: {e}"));
        let (backend, fds) = self.0.accel.add_device().map_err(host)?;
        // From here on dropping it undoes everything.
        let end = End { guest: self.0.clone(), backend };
        let (kick, notify) = (share(&fds.kick).map_err(host)?, share(&fds.notify).map_err(host)?);
        let bound = self.0.with_domain(|domain, cx| domain.bind_backend(port, backend, cx));
        bound.map_err(|_| DeviceError(format!("event channel {port} is not one that waits for domain 0")))?;
        Ok(EventChannel { kick, notify, end: Box::new(end) })
    }

    fn is_open(&self, port: u32) -> bool {
        self.0.with_domain(|domain, _| domain.has_port(port))
    }
}
