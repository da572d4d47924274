//! Ports that lead to backends in the host.

use xen_abi::Domid;
use xen_abi::errno::Errno;

use crate::domain::Domain;
use crate::effect::{Backend, Port};
use crate::evtchn::Kind;
use crate::evtchn::ports::FarEnd;
use crate::hypercall::Cx;

impl Domain {
    /// Opens a port of the guest with `backend` behind it.
    pub(crate) fn open_backend(&mut self, backend: Backend, cx: &mut Cx<'_>) -> Result<Port, Errno> {
        if self.ports.far_port(backend).is_some() {
            return Err(Errno::EEXIST);
        }
        let port = self.ports.allocate(Kind::Unbound { remote: Domid::DOM0 }, 0, self.width, cx.mem)?;
        self.join(port, backend, cx);
        Ok(port)
    }

    /// A backend binds to a port that the guest has left unbound for dom0.
    pub(crate) fn bind_far(&mut self, port: Port, backend: Backend, cx: &mut Cx<'_>) -> Result<(), Errno> {
        if self.ports.get(port, self.width)?.kind != (Kind::Unbound { remote: Domid::DOM0 }) {
            return Err(Errno::EINVAL);
        }
        if self.ports.far_port(backend).is_some() {
            return Err(Errno::EEXIST);
        }
        self.join(port, backend, cx);
        // What the guest sent while nobody listened was lost: let the backend look.
        cx.fx.kick(backend);
        Ok(())
    }

    /// The guest binds a port of its own to dom0's port `far` (EVTCHNOP_bind_interdomain).
    pub(crate) fn bind_near(&mut self, far: Port, cx: &mut Cx<'_>) -> Result<Port, Errno> {
        self.ports.vacant(self.width, cx.mem)?;
        let end = self.ports.far_end(far).ok_or(Errno::EINVAL)?;
        let (Some(backend), None) = (end.backend, end.near) else { return Err(Errno::EINVAL) };
        let port = self.ports.allocate(Kind::Backend(backend), 0, self.width, cx.mem)?;
        if let Some(end) = self.ports.far_end(far) {
            end.near = Some(port);
        }
        self.offload(port, cx);
        self.set_pending(port, cx);
        Ok(port)
    }

    /// A backend has gone: the guest's port, if it has not closed it, is unbound again, as when dom0 closes its end.
    pub(crate) fn leave_far(&mut self, backend: Backend, cx: &mut Cx<'_>) {
        let Some(end) = self.ports.far.iter_mut().find(|end| end.backend == Some(backend)) else { return };
        let left = std::mem::replace(end, FarEnd { backend: None, near: None });
        if let Some(port) = left.near {
            self.retract(port, cx);
            self.ports.edit(port, |channel| channel.kind = Kind::Unbound { remote: Domid::DOM0 });
        }
    }

    fn join(&mut self, port: Port, backend: Backend, cx: &mut Cx<'_>) {
        let end = FarEnd { backend: Some(backend), near: Some(port) };
        match self.ports.far.iter_mut().find(|end| end.backend.is_none()) {
            Some(free) => *free = end,
            None => self.ports.far.push(end),
        }
        self.ports.edit(port, |channel| channel.kind = Kind::Backend(backend));
        self.offload(port, cx);
    }
}
