//! Other domains of this host, each served by a process of its own: what a hypercall asks of them, and what they ask.
//!
//! A hypercall that needs another domain notes what it is about with its vCPU, has the machine ask
//! ([`Effects::ask`](crate::effect::Effects::ask)) and is made again ([`Outcome::Ask`](crate::hypercall::Outcome))
//! when the answer has come to [`Domain::answer`]. It goes on with what it noted: the guest may have changed its
//! arguments meanwhile.

use xen_abi::errno::Errno;
use xen_abi::grant_table::{Copy, GntStatus, MapGrantRef};
use xen_abi::{Domid, Gref};

use crate::domain::Domain;
use crate::effect::{Backend, Port, VcpuId};
use crate::evtchn::Kind;
use crate::gnttab::{GrantError, Use};
use crate::hypercall::Cx;
use crate::mem::{Gfn, GuestMem};

/// A page of another domain that the machine holds, by a number of its choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Foreign(pub u32);

/// A question: the vCPU whose hypercall waits, and a number that its last question did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Of this domain's questions, modulo 2^32.
    pub number: u32,
}

/// What a hypercall asks of another domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Join a port of ours to one that it has left unbound for us.
    Bind {
        /// Ours.
        local: Port,
        /// Theirs.
        remote: Port,
    },
    /// Pin a grant and hand over its page.
    Map {
        /// Theirs.
        gref: Gref,
        /// For writing too.
        write: bool,
    },
    /// Take a page back.
    Unmap(Foreign),
    /// Copy out of a grant.
    Read {
        /// Theirs.
        gref: Gref,
        /// First byte in its page.
        offset: u16,
        /// Bytes, within the page.
        len: u16,
    },
    /// Copy into a grant.
    Write {
        /// Theirs.
        gref: Gref,
        /// First byte in its page.
        offset: u16,
        /// Bytes, within the page.
        bytes: Vec<u8>,
    },
    /// Nothing but to be there.
    Lives,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The ports are joined; our end is this.
    Bound(Backend),
    /// The page is here.
    Mapped(Foreign),
    /// What the grant held.
    Bytes(Vec<u8>),
    /// Done.
    Done,
    /// The port cannot be bound.
    NotBound(Errno),
    /// The grant cannot be used.
    NotGranted(GntStatus),
    /// There is no such domain, or it has died, or it does not answer.
    Nobody,
}

/// A port of ours that is held for the answer to a question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// The question's number: after a reset another one may hold the port.
    pub question: u32,
    pub local: Port,
}

/// A port of another domain's that one of ours is to be bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerBind {
    pub remote: Domid,
    pub far: Port,
    pub held: Held,
}

/// What a vCPU's hypercall is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum About {
    /// EVTCHNOP_bind_interdomain.
    Bind(PeerBind),
    /// GNTTABOP_map_grant_ref.
    Map(MapGrantRef),
    /// GNTTABOP_unmap_grant_ref, which is done here already.
    Unmap,
    /// GNTTABOP_copy.
    Copy(Copy),
    /// Whether a domain lives whose ports the guest may not use.
    Lives,
}

/// A question of a vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    number: u32,
    about: About,
    told: Option<Told>,
}

/// What a domain's process may do with a grant of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The granted frame, in RAM.
    pub frame: Gfn,
    /// Whether the grant is for writing, whatever was asked for.
    pub writable: bool,
}

/// A port's other end in another domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FarPort {
    pub domid: Domid,
    pub port: Port,
    /// By which the machine knows the channel.
    pub backend: Backend,
}

impl Domain {
    /// Has the machine ask `dom` for this vCPU.
    ///
    /// # Errors
    /// -ENOENT if there is no such vCPU.
    pub(crate) fn ask(
        &mut self,
        vcpu: VcpuId,
        dom: Domid,
        ask: Ask,
        about: About,
        cx: &mut Cx<'_>,
    ) -> Result<(), Errno> {
        let number = self.questions;
        let state = self.vcpu_mut(vcpu)?;
        state.asked = Some(Asked { number, about, told: None });
        self.questions = number.wrapping_add(1);
        cx.fx.ask(Question { vcpu, number }, dom, ask);
        Ok(())
    }

    /// The answer to a question. One that nobody waits for any more is undone.
    pub fn answer(&mut self, question: Question, told: Told, cx: &mut Cx<'_>) {
        let asked = self.vcpus.get_mut(question.vcpu as usize).and_then(|vcpu| vcpu.asked.as_mut());
        match asked.filter(|asked| asked.number == question.number && asked.told.is_none()) {
            Some(asked) => asked.told = Some(told),
            None => undo(&told, cx),
        }
    }

    /// Whether a vCPU in `Outcome::Ask` can go on.
    #[must_use]
    pub fn answered(&self, vcpu: VcpuId) -> bool {
        let asked = self.vcpus.get(vcpu as usize).and_then(|vcpu| vcpu.asked.as_ref());
        asked.is_none_or(|asked| asked.told.is_some())
    }

    /// Takes the answer to a question of the kind that `mine` recognises. Another one, which only a guest gets that
    /// changes a multicall's list under our hands, is undone, or when it comes if it has not.
    pub(crate) fn told<T>(
        &mut self,
        vcpu: VcpuId,
        mine: impl FnOnce(About) -> Option<T>,
        cx: &mut Cx<'_>,
    ) -> Option<(T, Told)> {
        let Asked { about, told, .. } = self.vcpus.get_mut(vcpu as usize)?.asked.take()?;
        match (mine(about), told) {
            (Some(mine), Some(told)) => return Some((mine, told)),
            (_, told) => told.iter().for_each(|told| undo(told, cx)),
        }
        if let About::Bind(bind) = about {
            self.let_go_of(bind.held);
        }
        None
    }

    /// Frees a port that was held for a binding that comes to nothing.
    pub(crate) fn let_go_of(&mut self, held: Held) {
        if self.is_held(held) {
            self.ports.free(held.local);
        }
    }

    /// Whether a port is still held for a binding: an EVTCHNOP_reset may have closed it.
    pub(crate) fn is_held(&self, held: Held) -> bool {
        let channel = self.ports.known(held.local);
        channel.is_some_and(|channel| channel.kind == Kind::Held(held.question))
    }

    /// Whether our port `ours` may be bound by the domain `remote`: to be asked before anything is made for it.
    ///
    /// # Errors
    /// -EINVAL unless it is unbound and for that domain.
    pub fn waits_for(&self, ours: Port, remote: Domid) -> Result<(), Errno> {
        let waits = self.ports.get(ours, self.width)?.kind == Kind::Unbound { remote };
        if waits { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The domain `remote` binds its port `theirs` to our port `ours`, and `backend` is the channel.
    ///
    /// # Errors
    /// As for [`Domain::waits_for`].
    pub fn bind_peer(
        &mut self,
        ours: Port,
        (remote, theirs): (Domid, Port),
        backend: Backend,
        cx: &mut Cx<'_>,
    ) -> Result<(), Errno> {
        self.waits_for(ours, remote)?;
        self.join_peer(ours, FarPort { domid: remote, port: theirs, backend }, cx);
        Ok(())
    }

    /// A port of ours has another domain's at its far end from now on.
    pub(crate) fn join_peer(&mut self, ours: Port, far: FarPort, cx: &mut Cx<'_>) {
        self.ports.peers.insert(far.backend, ours);
        self.ports.edit(ours, |channel| channel.kind = Kind::Peer(far));
        self.offload(ours, cx);
    }

    /// The far end of a channel has been closed, or its domain has died: our port waits for that domain again, and a
    /// binding that the guest has not seen yet has failed. False where the guest has closed our end before: then the
    /// machine is told so ([`Effects::leave_peer`](crate::effect::Effects::leave_peer)), or has been.
    pub fn peer_left(&mut self, backend: Backend, cx: &mut Cx<'_>) -> bool {
        let Some(port) = self.ports.peers.remove(&backend) else { return self.unbind(backend) };
        let Some(Kind::Peer(far)) = self.ports.known(port).map(|channel| channel.kind) else { return true };
        self.retract(port, cx);
        self.ports.edit(port, |channel| channel.kind = Kind::Unbound { remote: far.domid });
        true
    }

    /// Takes the good news from the vCPU that has not read it yet.
    fn unbind(&mut self, backend: Backend) -> bool {
        let mut told = self.vcpus.iter_mut().filter_map(|vcpu| vcpu.asked.as_mut()?.told.as_mut());
        let found = told.find(|told| **told == Told::Bound(backend));
        found.map(|told| *told = Told::NotBound(Errno::EINVAL)).is_some()
    }

    /// Another domain maps a grant of ours: pins it, and keeps special pages away from its frame.
    ///
    /// # Errors
    /// As the other guest is to hear it: not granted to it, not so, or not a page of RAM.
    pub fn grant_to(
        &mut self,
        by: Domid,
        gref: Gref,
        write: bool,
        mem: &dyn GuestMem,
    ) -> Result<Shared, GntStatus> {
        let pinned = self.grants.active.pin(mem, gref, Use { by, write, whole: true })?;
        let frame = pinned.gpa.gfn();
        if !self.physmap.is_present(frame) {
            self.grants.active.unpin(mem, gref, write);
            return Err(GntStatus::GENERAL_ERROR);
        }
        *self.grants.away.entry(frame).or_default() += 1;
        let writable = write || !self.grants.active.is_read_only(mem, gref);
        Ok(Shared { frame, writable })
    }

    /// Gives back what [`Domain::grant_to`] has pinned.
    pub fn ungrant(&mut self, gref: Gref, write: bool, frame: Gfn, mem: &dyn GuestMem) {
        self.grants.active.unpin(mem, gref, write);
        if let Some(users) = self.grants.away.get_mut(&frame) {
            *users -= 1;
            if *users == 0 {
                self.grants.away.remove(&frame);
            }
        }
    }

    /// Another domain copies out of a grant of ours.
    ///
    /// # Errors
    /// As for [`Domain::grant_to`], or beyond what is granted.
    pub fn read_grant(
        &self,
        by: Domid,
        gref: Gref,
        offset: u16,
        bytes: &mut [u8],
        mem: &dyn GuestMem,
    ) -> Result<(), GntStatus> {
        self.with_grant(by, gref, (offset, bytes.len(), false), mem, |gpa| mem.read(gpa, bytes))
    }

    /// Another domain copies into a grant of ours.
    ///
    /// # Errors
    /// As for [`Domain::read_grant`].
    pub fn write_grant(
        &self,
        by: Domid,
        gref: Gref,
        offset: u16,
        bytes: &[u8],
        mem: &dyn GuestMem,
    ) -> Result<(), GntStatus> {
        self.with_grant(by, gref, (offset, bytes.len(), true), mem, |gpa| mem.write(gpa, bytes))
    }

    fn with_grant(
        &self,
        by: Domid,
        gref: Gref,
        (offset, len, write): (u16, usize, bool),
        mem: &dyn GuestMem,
        act: impl FnOnce(crate::mem::Gpa) -> Result<(), crate::mem::Fault>,
    ) -> Result<(), GntStatus> {
        let pinned = self.grants.active.pin(mem, gref, Use { by, write, whole: false })?;
        let first = pinned.gpa.0 % 4096;
        let (from, to) = (u64::from(offset), u64::from(offset) + len as u64);
        let inside = first <= from && to <= first + u64::from(pinned.len);
        let page = pinned.gpa.gfn().gpa();
        let done = match inside {
            true => act(page.offset(from)).map_err(|_| GntStatus::BAD_PAGE),
            false => Err(GntStatus::GENERAL_ERROR),
        };
        self.grants.active.unpin(mem, gref, write);
        done
    }
}

/// Gives back what an answer has brought.
fn undo(told: &Told, cx: &mut Cx<'_>) {
    match told {
        Told::Bound(backend) => cx.fx.leave_peer(*backend),
        Told::Mapped(page) => cx.fx.release_foreign(*page),
        _ => {}
    }
}

impl Told {
    /// Why there is no binding.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Told::NotBound(errno) => *errno,
            Told::Nobody => Errno::ESRCH,
            _ => Errno::EINVAL,
        }
    }

    /// Why the grant cannot be used.
    pub(crate) fn status(&self) -> GntStatus {
        match self {
            Told::NotGranted(status) if *status != GntStatus::OKAY => *status,
            Told::Nobody => GntStatus::BAD_DOMAIN,
            _ => GntStatus::GENERAL_ERROR,
        }
    }
}

impl From<GrantError> for Told {
    fn from(error: GrantError) -> Told {
        Told::NotGranted(error.into())
    }
}
