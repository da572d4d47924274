//! Domains: their rings, kicks and life lines.

use std::io;
use std::os::fd::OwnedFd;

use calloop::generic::Generic;
use calloop::{Interest, Mode, PostAction, RegistrationToken};
use nix::errno::Errno as Sys;
use xen_abi::io::xs_wire::{XENSTORE_ERROR_COMM, XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX};

use super::Server;
use super::fds::RingSet;
use super::link::{Broken, Carrier, DomainRing, Link};
use crate::DomId;
use crate::ring::Fault;
use crate::store::ConnId;

/// The byte on a life line that says that the domain has shut down.
const SHUT_DOWN: u8 = b's';

impl Server {
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
        let RingSet { ring, kick, notify, lifeline } = set;
        if let Err(fault) = ring.start(features, again) {
            self.log.warn(format_args!("domain {domid}: {fault}"));
        }
        let mut domain = DomainRing { domid, ring, notify, features, tokens: Vec::new(), faulty: false };
        let lines = lifeline.map(|fd| self.watch_lifeline(domid, fd));
        for registered in [Some(self.watch_kick(conn, kick)), lines].into_iter().flatten() {
            match registered {
                Ok(token) => domain.tokens.push(token),
                Err(error) => self.log.warn(format_args!("domain {domid}: {error}")),
            }
        }
        let mut link = Link::new(Carrier::Ring(domain));
        link.notify = true;
        self.links.insert(conn, link);
        self.enqueue(conn);
    }

    fn watch_kick(&self, conn: ConnId, kick: OwnedFd) -> io::Result<RegistrationToken> {
        let source = Generic::new(kick, Interest::READ, Mode::Level);
        let kicked = move |_, kick: &mut calloop::generic::NoIoDrop<OwnedFd>, server: &mut Self| {
            // Takes the count off; what was kicked for is looked at afterwards.
            let _ = nix::unistd::read(&**kick, &mut [0; 8]);
            server.enqueue(conn);
            Ok(PostAction::Continue)
        };
        self.handle.insert_source(source, kicked).map_err(|error| io::Error::other(error.error))
    }

    fn watch_lifeline(&self, domid: DomId, lifeline: OwnedFd) -> io::Result<RegistrationToken> {
        let source = Generic::new(lifeline, Interest::READ, Mode::Level);
        let heard = move |_, lifeline: &mut calloop::generic::NoIoDrop<OwnedFd>, server: &mut Self| {
            let mut bytes = [0; 64];
            match nix::unistd::read(&**lifeline, &mut bytes) {
                Err(Sys::EAGAIN | Sys::EINTR) => {}
                Ok(0) | Err(_) => server.domain_died(domid),
                Ok(count) if bytes.iter().take(count).any(|&byte| byte == SHUT_DOWN) => {
                    server.store.domain_shut_down(domid, &mut server.out);
                    server.deliver(None);
                    server.flush_written();
                }
                Ok(_) => {}
            }
            Ok(PostAction::Continue)
        };
        self.handle.insert_source(source, heard).map_err(|error| io::Error::other(error.error))
    }

    fn domain_died(&mut self, domid: DomId) {
        tracing::info!("domain {domid} died");
        self.store.release(domid, &mut self.out);
        self.deliver(None);
        self.flush_written();
    }

    /// Answers a domain that asks to reconnect. `false` for a ring that is not to be served.
    pub(super) fn check_ring(&mut self, conn: ConnId) -> Result<bool, Broken> {
        let Some(link) = self.links.get_mut(&conn) else { return Ok(false) };
        let Carrier::Ring(domain) = &mut link.carrier else { return Ok(true) };
        if domain.ring.wants_reconnect()? {
            domain.ring.start(domain.features, true)?;
            domain.faulty = false;
            link.inbox.clear();
            link.outbox.clear();
            link.notify = true;
            self.store.reset(conn);
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
        link.notify = true;
        let _ = link.flush();
        self.store.reset(conn);
        self.log.warn(format_args!("domain {domid} is not served any more: {broken}"));
    }
}
