//! What our guest's hypercalls ask of other domains.

use super::link::Link;
use super::wire::{Kind, Packet};
use super::{Channel, LINKS_MAX, LinkId, Server};
use crate::kvm::backends::BackendFds;
use crate::kvm::ioctl::share;
use crate::kvm::vcpu::Mail;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen_abi::Domid;
use xen_abi::errno::Errno;
use xen_abi::grant_table::GntStatus;
use xen_domain::effect::{Backend, Port};
use xen_domain::peer::{Ask, Foreign, Question, Told};

/// How long another domain's process may think. Then it counts as dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked, for when the answer comes.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Bind { backend: Backend, ours: Port, theirs: Port },
    Map { page: Foreign, write: bool },
    Unmap,
    Read,
    Write,
}

/// A question that is not answered yet.
pub(super) struct Waiting {
    question: Question,
    pub(super) link: LinkId,
    pub(super) until: Instant,
    asked: Asked,
}

impl Server {
    pub(super) fn ask(&mut self, question: Question, dom: Domid, ask: Ask) {
        if let Ask::Unmap(page) = ask {
            return self.unmap(question, page);
        }
        let told = match self.link_to(dom) {
            None => Told::Nobody,
            Some(link) => match self.put(question, link, ask) {
                Ok(()) => return,
                Err(e) => {
                    crate::log::limited!(warn, "cannot ask domain {dom}: {e}");
                    Told::NotBound(Errno::ENOMEM)
                }
            },
        };
        self.answer(question, told);
    }

    /// The connection that we ask a domain by, made when missing.
    fn link_to(&mut self, dom: Domid) -> Option<LinkId> {
        let ours = |link: &Link| link.ours && link.domid == Some(dom);
        let known = self.links.iter().find(|(_, link)| ours(link)).map(|(&id, _)| id);
        if known.is_some() || self.links.len() >= LINKS_MAX {
            return known;
        }
        let link = Link::connect(&self.guest.peers.root, Domid(self.guest.domid), dom).ok()?;
        Some(self.add(link))
    }

    fn put(&mut self, question: Question, link: LinkId, ask: Ask) -> io::Result<()> {
        self.last_number = self.last_number.wrapping_add(1);
        let number = self.last_number;
        let (asked, packet) = match ask {
            Ask::Bind { local, remote } => {
                let fds = Arc::new(BackendFds { shared: true, ..BackendFds::new()? });
                // What we are notified by is what they kick.
                let shared = vec![share(&fds.notify)?, share(&fds.kick)?];
                let backend = self.guest.accel.add_peer(fds)?;
                let packet = Packet { fds: shared, ..Packet::new(Kind::Bind, number, [remote, local, 0]) };
                (Asked::Bind { backend, ours: local, theirs: remote }, packet)
            }
            Ask::Map { gref, write } => {
                self.last_page = self.last_page.wrapping_add(1);
                let page = Foreign(self.last_page);
                let args = [gref.0, write.into(), page.0];
                (Asked::Map { page, write }, Packet::new(Kind::Map, number, args))
            }
            Ask::Unmap(page) => (Asked::Unmap, Packet::new(Kind::Unmap, number, [0, 0, page.0])),
            // Who can be reached does.
            Ask::Lives => {
                self.answer(question, Told::Done);
                return Ok(());
            }
            Ask::Read { gref, offset, len } => {
                (Asked::Read, Packet::new(Kind::Read, number, [gref.0, offset.into(), len.into()]))
            }
            Ask::Write { gref, offset, bytes } => {
                let packet = Packet::new(Kind::Write, number, [gref.0, offset.into(), 0]);
                (Asked::Write, Packet { body: bytes, ..packet })
            }
        };
        self.waiting.insert(number, Waiting { question, link, until: Instant::now() + PATIENCE, asked });
        self.tell(link, packet);
        Ok(())
    }

    /// A page goes back, and the guest waits until it is there. A domain that has died has no use for it.
    fn unmap(&mut self, question: Question, page: Foreign) {
        self.guest.memory.let_go(page);
        let alive = self.pages.remove(&page).filter(|link| self.links.contains_key(link));
        let asked = alive.is_some_and(|link| self.put(question, link, Ask::Unmap(page)).is_ok());
        if !asked {
            self.answer(question, Told::Done);
        }
    }

    /// A page goes back, and nobody waits for that.
    pub(super) fn release(&mut self, page: Foreign) {
        self.guest.memory.let_go(page);
        if let Some(link) = self.pages.remove(&page) {
            self.tell(link, Packet::new(Kind::Unmap, 0, [0, 0, page.0]));
        }
    }

    /// Tells the vCPU, and lets it go on.
    fn answer(&self, question: Question, told: Told) {
        self.guest.with_domain(|domain, cx| domain.answer(question, told, cx));
        let _ = self.guest.post(question.vcpu, Mail::Wake);
    }

    /// An answer has come. One to nothing, or to a page that nobody waited for, is no news.
    pub(super) fn answered(&mut self, link: LinkId, packet: Packet) -> io::Result<()> {
        let Some(waiting) = self.waiting.get(&packet.number) else { return Ok(()) };
        if waiting.link != link {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(Waiting { question, asked, .. }) = self.waiting.remove(&packet.number) else {
            return Ok(());
        };
        let told = match (asked, packet.status) {
            (Asked::Bind { backend, ours, theirs }, 0) => {
                self.channels.insert(backend, Channel { link, ours, theirs, gone: false });
                Told::Bound(backend)
            }
            (Asked::Bind { backend, .. }, errno) => {
                self.guest.accel.remove_device(backend);
                Told::NotBound(Errno(if (-133..0).contains(&errno) { -errno } else { Errno::EINVAL.0 }))
            }
            (Asked::Map { page, write }, 0) => self.mapped(link, page, write, packet),
            (Asked::Read, 0) => Told::Bytes(packet.body),
            (Asked::Unmap, _) | (Asked::Write, 0) => Told::Done,
            (Asked::Map { .. } | Asked::Read | Asked::Write, status) => {
                Told::NotGranted(i16::try_from(status).map_or(GntStatus::GENERAL_ERROR, GntStatus))
            }
        };
        self.answer(question, told);
        Ok(())
    }

    fn mapped(&mut self, link: LinkId, page: Foreign, write: bool, mut packet: Packet) -> Told {
        let taken = packet.fds.pop().ok_or_else(|| io::Error::other("no page comes with it"));
        let taken = taken.and_then(|fd| self.guest.memory.take_in(page, fd, write));
        self.pages.insert(page, link);
        match taken {
            Ok(()) => Told::Mapped(page),
            Err(e) => {
                crate::log::limited!(warn, "a page of another domain: {e}");
                self.release(page);
                Told::NotGranted(GntStatus::GENERAL_ERROR)
            }
        }
    }

    /// Those who wait for nothing any more hear that nobody is there.
    pub(super) fn nobody(&mut self, which: impl Fn(&Waiting) -> bool) {
        let gone: Vec<u32> = self.waiting.iter().filter(|(_, w)| which(w)).map(|(&n, _)| n).collect();
        let gone: Vec<Waiting> = gone.into_iter().filter_map(|n| self.waiting.remove(&n)).collect();
        for Waiting { question, asked, .. } in gone {
            if let Asked::Bind { backend, .. } = asked {
                self.guest.accel.remove_device(backend);
            }
            self.answer(question, Told::Nobody);
        }
    }

    /// A process that does not answer is given up.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<LinkId> = self.waiting.values().filter(|w| w.until <= now).map(|w| w.link).collect();
        for link in late {
            self.lose(link, &io::Error::other("it does not answer"));
            // The connection was gone before.
            self.nobody(|waiting| waiting.link == link);
        }
    }
}
