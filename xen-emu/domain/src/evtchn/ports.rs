//! The port table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use xen_abi::errno::Errno;
use xen_abi::xen::Virq;
use xen_abi::{Domid, Width};

use crate::effect::{Backend, Port, VcpuId};
use crate::evtchn::abi::PortOps;
use crate::evtchn::abi_2l::TwoLevel;
use crate::mem::GuestMem;
use crate::peer::FarPort;

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not allocated.
    Free,
    /// Port 0, which no guest ever gets.
    Reserved,
    /// Held until another domain has answered the question of this number.
    Held(u32),
    /// Waits for `remote` to bind to it.
    Unbound {
        /// The domain that may.
        remote: Domid,
    },
    /// Bound to dom0, where this backend sits.
    Backend(Backend),
    /// Bound to a port of another domain.
    Peer(FarPort),
    /// Bound to another port of this domain.
    Loopback(Port),
    /// A virtual interrupt.
    Virq(Virq),
    /// A physical interrupt, which never comes.
    Pirq(u32),
    /// Between vCPUs of this domain.
    Ipi,
}

impl Kind {
    /// The guest may use such a port: it has been given it, and has not closed it.
    pub(crate) fn is_open(self) -> bool {
        !matches!(self, Kind::Free | Kind::Reserved | Kind::Held(_))
    }
}

/// One port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    /// What it is.
    pub kind: Kind,
    /// The vCPU it notifies.
    pub vcpu: VcpuId,
    /// The machine handles sends on it.
    pub offloaded: bool,
}

impl Channel {
    const FREE: Channel = Channel { kind: Kind::Free, vcpu: 0, offloaded: false };
}

/// dom0's end of an interdomain channel. Its port number is its place in the table + 1 and stays for good, so that
/// a guest that closes its end can find the backend again (EVTCHNOP_bind_interdomain after a reset).
#[derive(Clone, Copy, Debug)]
pub(crate) struct FarEnd {
    /// Who listens there; `None` once it has gone away.
    pub backend: Option<Backend>,
    /// The guest's port, if bound.
    pub near: Option<Port>,
}

/// All ports.
#[derive(Debug)]
pub(crate) struct Ports {
    channels: Vec<Channel>,
    pub(crate) far: Vec<FarEnd>,
    /// The ports with another domain at their far end.
    pub(crate) peers: BTreeMap<Backend, Port>,
    pub(crate) abi: Box<dyn PortOps>,
    /// Ports the configuration allows.
    pub(crate) limit: u32,
    /// No free port below this one.
    first_free: Port,
    /// Ports that have been made: a multiple of [`BUCKET`], which never shrinks.
    made: u32,
}

/// Ports are made by so many, as Xen's fit into a page (`EVTCHNS_PER_BUCKET`).
const BUCKET: u32 = 64;

impl Ports {
    pub(crate) fn new(limit: u32) -> Ports {
        let reserved = Channel { kind: Kind::Reserved, ..Channel::FREE };
        Ports {
            channels: vec![reserved],
            far: Vec::new(),
            peers: BTreeMap::new(),
            abi: Box::new(TwoLevel),
            limit,
            first_free: 1,
            made: BUCKET,
        }
    }

    /// Port + 1 of the highest port that could be valid now.
    fn max_ports(&self, width: Width) -> u32 {
        self.limit.min(self.abi.max_ports(width))
    }

    /// The port; -EINVAL for numbers beyond the ports made so far (Xen's `port_is_valid`), and beyond what the ABI or the
    /// configuration allow.
    pub(crate) fn get(&self, port: Port, width: Width) -> Result<Channel, Errno> {
        if port >= self.made.min(self.max_ports(width)) {
            return Err(Errno::EINVAL);
        }
        Ok(self.channels.get(port as usize).copied().unwrap_or(Channel::FREE))
    }

    /// The port, if it is not free.
    pub(crate) fn known(&self, port: Port) -> Option<Channel> {
        self.channels.get(port as usize).copied().filter(|channel| channel.kind != Kind::Free)
    }

    /// Changes a port that was allocated; nothing happens to one that was not.
    pub(crate) fn edit(&mut self, port: Port, change: impl FnOnce(&mut Channel)) {
        if let Some(channel) = self.channels.get_mut(port as usize) {
            change(channel);
        }
    }

    /// The lowest free port that is not busy, which the next one that is allocated will be.
    ///
    /// # Errors
    /// -ENOSPC when all are in use or busy.
    pub(crate) fn vacant(&mut self, width: Width, mem: &dyn GuestMem) -> Result<Port, Errno> {
        let max = self.max_ports(width);
        let free =
            |port: &Port| self.channels.get(*port as usize).is_none_or(|channel| channel.kind == Kind::Free);
        let lowest = (self.first_free..max).find(free).unwrap_or(max);
        let idle = (lowest..max).filter(free).find(|&port| !self.abi.is_busy(mem, port));
        // One that is busy is free all the same.
        self.first_free = lowest;
        idle.ok_or(Errno::ENOSPC)
    }

    /// Takes that port.
    ///
    /// # Errors
    /// -ENOSPC where there is none.
    pub(crate) fn allocate(
        &mut self,
        kind: Kind,
        vcpu: VcpuId,
        width: Width,
        mem: &dyn GuestMem,
    ) -> Result<Port, Errno> {
        let port = self.vacant(width, mem)?;
        if port == self.first_free {
            self.first_free += 1;
        }
        if self.channels.len() <= port as usize {
            self.channels.resize(port as usize + 1, Channel::FREE);
        }
        self.made = self.made.max(port - port % BUCKET + BUCKET);
        self.edit(port, |channel| *channel = Channel { kind, vcpu, offloaded: false });
        self.abi.init(port);
        Ok(port)
    }

    /// Gives a port back.
    pub(crate) fn free(&mut self, port: Port) {
        self.edit(port, |channel| *channel = Channel::FREE);
        self.first_free = self.first_free.min(port).max(1);
    }

    /// The highest port in use.
    pub(crate) fn last_in_use(&mut self) -> Option<Port> {
        while self.channels.last().is_some_and(|channel| channel.kind == Kind::Free) {
            self.channels.pop();
        }
        let last = self.channels.len().checked_sub(1)?;
        Port::try_from(last).ok().filter(|port| *port > 0)
    }

    /// Changes every port.
    pub(crate) fn edit_all(&mut self, change: impl FnMut(&mut Channel)) {
        self.channels.iter_mut().for_each(change);
    }

    /// The guest's port that leads to a backend or, by way of it, to another domain.
    pub(crate) fn near_port(&self, backend: Backend) -> Option<Port> {
        let far = self.far.iter().find(|end| end.backend == Some(backend));
        far.map_or_else(|| self.peers.get(&backend).copied(), |end| end.near)
    }

    /// The ports in use, port 0 not among them.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = (Port, Channel)> + '_ {
        (0..).zip(self.channels.iter().copied()).filter(|(_, channel)| channel.kind.is_open())
    }

    /// dom0's port number of a backend.
    pub(crate) fn far_port(&self, backend: Backend) -> Option<Port> {
        (1..).zip(&self.far).find(|(_, end)| end.backend == Some(backend)).map(|(port, _)| port)
    }

    /// dom0's end by its port number.
    pub(crate) fn far_end(&mut self, far: Port) -> Option<&mut FarEnd> {
        self.far.get_mut((far as usize).checked_sub(1)?)
    }

    pub(crate) fn describe(&self, out: &mut String, only: Option<Port>) {
        if only.is_none() {
            let used = self.in_use().count();
            let _ = writeln!(out, "abi {}, {used} of {} ports in use", self.abi.name(), self.limit);
        }
        for (port, channel) in self.in_use().filter(|(port, _)| only.is_none_or(|only| only == *port)) {
            let offload = if channel.offloaded { ", offloaded" } else { "" };
            let _ = writeln!(out, "{port}: {} on vcpu {}{offload}", KindText(channel.kind), channel.vcpu);
        }
    }
}

/// A kind for people.
struct KindText(Kind);

impl std::fmt::Display for KindText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Kind::Free => f.write_str("free"),
            Kind::Reserved | Kind::Held(_) => f.write_str("reserved"),
            Kind::Unbound { remote } => write!(f, "unbound for domain {remote}"),
            Kind::Backend(backend) => write!(f, "interdomain with {backend:?}"),
            Kind::Peer(far) => write!(f, "interdomain with port {} of domain {}", far.port, far.domid),
            Kind::Loopback(port) => write!(f, "interdomain with own port {port}"),
            Kind::Virq(virq) => write!(f, "virq {virq}"),
            Kind::Pirq(pirq) => write!(f, "pirq {pirq}"),
            Kind::Ipi => f.write_str("ipi"),
        }
    }
}
