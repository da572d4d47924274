//! Domains: their rings, kicks and life lines.

use std::io;

use nix::errno::Errno as Sys;
use xen_abi::io::xs_wire::{XENSTORE_ERROR_COMM, XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX};

use super::Server;
use super::fds::RingSet;
use super::link::{Broken, Carrier, DomainRing, Link};
use super::poll::Token;
use crate::DomId;
use crate::ring::Fault;
use crate::store::ConnId;

/// The byte on a life line that says that the domain has shut down.
const SHUT_DOWN: u8 = b's';

impl Server {
    /// A ring that can be served: what may fail is tried before its domain is introduced.
    pub(super) fn would_serve(&self, set: RingSet) -> io::Result<RingSet> {
        set.ring.touch().map_err(io::Error::other)?;
        [Some(&set.kick), set.lifeline.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|fd| self.poller.would_add(fd))?;
        Ok(set)
    }

    /// Serves a ring as a domain's connection from now on.
    pub(super) fn serve_ring(
        &mut self,
        conn: ConnId,
        domid: DomId,
        features: u32,
        again: bool,
        set: RingSet,
    ) {
        self.drop_link(conn);
        if let Err(fault) = set.ring.start(features, again) {
            self.log.warn(format_args!("domain {domid}: {fault}"));
        }
        let RingSet { ring, kick, notify, lifeline } = set;
        let domain = DomainRing { domid, ring, kick, notify, lifeline, features, faulty: false };
        let mut link = Link::new(Carrier::Ring(domain));
        if let Carrier::Ring(domain) = &link.carrier
            && let Ok(beginning) = domain.ring.kept()
        {
            link.inbox = beginning;
            let kept = domain.ring.room().ok().and_then(|(at, _)| self.kept_unsent(domid, at));
            link.outbox = kept.unwrap_or_default();
        }
        link.notify = true;
        self.add_ring(conn, link);
    }

    /// Watches the descriptors of a ring.
    pub(super) fn add_ring(&mut self, conn: ConnId, link: Link) {
        if let Carrier::Ring(domain) = &link.carrier {
            let kick = self.poller.add_kick(&domain.kick, Token::Kick(conn));
            let line = domain.lifeline.as_ref().map(|fd| self.poller.add(fd, Token::Lifeline(conn)));
            for error in [Some(kick), line].into_iter().flatten().filter_map(Result::err) {
                self.log.warn(format_args!("domain {}: {error}", domain.domid));
            }
        }
        self.rings += 1;
        self.links.insert(conn, link);
        self.enqueue(conn);
    }

    /// Something came on a life line.
    pub(super) fn hear(&mut self, conn: ConnId) {
        let Some(Carrier::Ring(domain)) = self.links.get(&conn).map(|link| &link.carrier) else { return };
        let (domid, Some(lifeline)) = (domain.domid, &domain.lifeline) else { return };
        let mut bytes = [0; 64];
        match nix::unistd::read(lifeline, &mut bytes) {
            Err(Sys::EAGAIN | Sys::EINTR) => return,
            Ok(0) | Err(_) => {
                tracing::info!("domain {domid} died");
                self.store.release(domid, &mut self.out);
            }
            Ok(count) if bytes.iter().take(count).any(|&byte| byte == SHUT_DOWN) => {
                self.store.domain_shut_down(domid, &mut self.out);
            }
            Ok(_) => return,
        }
        self.deliver(None);
        self.flush_written();
        // Also if nobody was told of it.
        if let Some(disk) = &mut self.disk {
            disk.commit(&mut self.store);
        }
    }

    /// Answers a domain that asks to reconnect. `false` for a ring that is not to be served.
    pub(super) fn check_ring(&mut self, conn: ConnId) -> Result<bool, Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(false) };
        let Carrier::Ring(domain) = &mut link.carrier else { return Ok(true) };
        if domain.ring.wants_reconnect()? {
            domain.ring.start(domain.features, true)?;
            domain.faulty = false;
            link.inbox = Vec::new();
            link.outbox.clear();
            link.kept = None;
            let domid = domain.domid;
            (link.held, link.overflowed) = (false, false);
            link.handled = 0;
            link.notify = true;
            self.forget_unsent(domid);
            self.store.reset(conn);
            self.mark_written(conn);
            return Ok(true);
        }
        Ok(!domain.faulty)
    }

    /// A ring is not served any more. The domain stays introduced: its end is still announced.
    pub(super) fn ring_failed(&mut self, conn: ConnId, broken: &Broken) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        let Carrier::Ring(domain) = &mut link.carrier else { return };
        if std::mem::replace(&mut domain.faulty, true) {
            return;
        }
        let error = match broken {
            Broken::Ring(Fault::Index(_)) => XENSTORE_ERROR_RINGIDX,
            Broken::Protocol(_) => XENSTORE_ERROR_PROTO,
            _ => XENSTORE_ERROR_COMM,
        };
        let _ = domain.ring.fail(error);
        let domid = domain.domid;
        link.inbox = Vec::new();
        link.outbox.clear();
        link.kept = None;
        link.overflowed = false;
        link.handled = 0;
        link.notify = true;
        link.signal();
        self.forget_unsent(domid);
        self.store.reset(conn);
        self.log.warn(format_args!("domain {domid} is not served any more: {broken}"));
    }
}
