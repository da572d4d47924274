//! Other domains of this host: event channels to them, and pages shared with them.
//!
//! Each domain is a process of its own, and the processes meet over sockets in the run directory ([`link`]). An event
//! channel between two domains is a pair of eventfds that both processes hold, one's kick being the other's notify:
//! what a guest sends is a signal that KVM itself delivers to the other guest where it can. A granted page is handed
//! over as a file of its own ([`crate::memory`]).
//!
//! All is done by one thread, which hears of what guests want by [`Peers::post`]. What comes from another process is
//! believed no more than what comes from its guest: it can use what was granted to its domain, and send events on
//! channels that both have agreed on.

mod asking;
mod link;
mod serving;
mod wire;

use crate::guest::{Guest, lock};
use asking::Waiting;
use link::{Link, Pin};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wire::{Kind, Packet};
use xen_abi::Domid;
use xen_domain::effect::{Backend, Port};
use xen_domain::gnttab::Pins;
use xen_domain::peer::{Ask, Foreign, Question};
use xen_emu_api::run_dir::RunRoot;

/// Connections at once, in both directions.
const LINKS_MAX: usize = 256;
/// How soon what could not be done is tried again.
const LATE: Duration = Duration::from_millis(20);
/// Packets of one connection dealt with before the others have their turn.
const PACKETS: usize = 64;

/// What the guest wants.
#[derive(Debug)]
pub enum Order {
    /// A hypercall asks.
    Ask(Question, Domid, Ask),
    /// Our end of a channel is closed.
    Leave(Backend),
    /// A page is not used.
    Release(Foreign),
    /// The domain ends.
    Stop,
}

/// The thread's letter box, and what it begins with.
pub struct Peers {
    root: RunRoot,
    listener: OwnedFd,
    orders: Mutex<VecDeque<Order>>,
    wake: EventFd,
}

impl Peers {
    /// Listens for other domains' processes.
    ///
    /// # Errors
    /// The host's.
    pub fn open(root: RunRoot, domid: u16) -> io::Result<Peers> {
        let listener = link::open(&root.domain(domid).peer())?;
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Peers { root, listener, orders: Mutex::default(), wake })
    }

    /// Has the thread do something; never waits.
    pub fn post(&self, order: Order) {
        lock(&self.orders).push_back(order);
        // Fails only when it was told more often than can be counted.
        let _ = self.wake.write(1);
    }
}

/// A connection's number, never used twice.
type LinkId = u64;

/// An event channel to another domain.
#[derive(Clone, Copy, Debug)]
struct Channel {
    link: LinkId,
    ours: Port,
    theirs: Port,
    /// The other end has gone, and so has ours: [`Order::Leave`] is on its way, and the number is not free before.
    gone: bool,
}

/// The thread's state.
struct Server {
    guest: Arc<Guest>,
    links: BTreeMap<LinkId, Link>,
    channels: BTreeMap<Backend, Channel>,
    waiting: BTreeMap<u32, Waiting>,
    /// Pages of other domains that we hold, and where they are from.
    pages: BTreeMap<Foreign, LinkId>,
    /// The guest's grants.
    grants: Pins,
    /// Grants that could not be given back yet.
    late: Vec<Pin>,
    last_link: LinkId,
    last_number: u32,
    last_page: u32,
}

/// The thread; returns after [`Order::Stop`].
pub fn run(guest: &Arc<Guest>) {
    let mut server = Server {
        guest: guest.clone(),
        links: BTreeMap::new(),
        channels: BTreeMap::new(),
        waiting: BTreeMap::new(),
        pages: BTreeMap::new(),
        grants: lock(&guest.domain).pins(guest.memory.clone()),
        late: Vec::new(),
        last_link: 0,
        last_number: 0,
        last_page: 0,
    };
    loop {
        match server.ready() {
            Ok(ready) => {
                if server.turn(&ready).is_break() {
                    return;
                }
            }
            Err(e) => return tracing::error!("other domains are not heard any more: {e}"),
        }
    }
}

impl Server {
    /// Waits for something to do: the connections that have something.
    fn ready(&self) -> io::Result<Vec<LinkId>> {
        let peers = &self.guest.peers;
        let mut fds: Vec<_> =
            [peers.wake.as_fd(), peers.listener.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into();
        fds.extend(self.links.values().map(|link| PollFd::new(link.as_fd(), link.interest())));
        let until = self.waiting.values().map(|waiting| waiting.until).min();
        let until =
            if self.late.is_empty() { until } else { until.into_iter().chain([Instant::now() + LATE]).min() };
        let left =
            until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = fds.iter().skip(2).zip(self.links.keys());
        Ok(ready.filter(|(fd, _)| fd.any().unwrap_or(true)).map(|(_, &id)| id).collect())
    }

    fn turn(&mut self, ready: &[LinkId]) -> std::ops::ControlFlow<()> {
        let guest = self.guest.clone();
        // Empty when a connection was what woke us.
        let _ = guest.peers.wake.read();
        let orders = std::mem::take(&mut *lock(&guest.peers.orders));
        for order in orders {
            match order {
                Order::Ask(question, dom, ask) => self.ask(question, dom, ask),
                Order::Leave(backend) => self.leave(backend),
                Order::Release(page) => self.release(page),
                Order::Stop => return std::ops::ControlFlow::Break(()),
            }
        }
        for &id in ready {
            if let Err(e) = self.serve(id) {
                self.lose(id, &e);
            }
        }
        // After those that have hung up, and may be back.
        self.accept();
        self.expire();
        self.unpin_late();
        std::ops::ControlFlow::Continue(())
    }

    /// Takes in who has connected. A process that has not said yet who it is comes once: it cannot keep the others out.
    fn accept(&mut self) {
        let guest = self.guest.clone();
        for link in std::iter::from_fn(|| Link::accept(&guest.peers.listener)).take(PACKETS) {
            let here = |other: &Link| !other.ours && other.domid.is_none() && other.pid == link.pid;
            if self.links.len() < LINKS_MAX && !self.links.values().any(here) {
                self.add(link);
            }
        }
    }

    fn add(&mut self, link: Link) -> LinkId {
        self.last_link += 1;
        self.links.insert(self.last_link, link);
        self.last_link
    }

    /// Reads and writes what is possible.
    fn serve(&mut self, id: LinkId) -> io::Result<()> {
        for _ in 0..PACKETS {
            let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
            link.flush()?;
            let Some(packet) = link.receive()? else { return Ok(()) };
            match (packet.kind, link.ours, link.domid) {
                (Kind::Closed, _, Some(_)) => self.closed(id, packet.args),
                (Kind::Answer, true, _) => self.answered(id, packet)?,
                (Kind::Hello, false, None) => self.hello(id, packet.args)?,
                (_, false, Some(domid)) => self.asked(id, domid, packet)?,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(())
    }

    /// A connection is gone: its domain has died, or its process breaks the rules.
    fn lose(&mut self, id: LinkId, why: &io::Error) {
        let Some(link) = self.links.remove(&id) else { return };
        if let Some(domid) = link.domid.filter(|_| why.kind() != io::ErrorKind::UnexpectedEof) {
            crate::log::limited!(warn, "domain {domid} is not heard any more: {why}");
        }
        let of_it = |channel: &Channel| channel.link == id && !channel.gone;
        let gone: Vec<_> = self.channels.iter().filter(|(_, c)| of_it(c)).map(|(&b, _)| b).collect();
        gone.into_iter().for_each(|backend| self.left(backend));
        self.nobody(|waiting| waiting.link == id);
        self.late.extend(link.pins.into_values());
    }

    /// The other end of a channel has gone: our port waits again, with what was sent before it went. Where the guest has just
    /// closed it the channel stays until we are told.
    fn left(&mut self, backend: Backend) {
        let guest = &self.guest;
        guest.accel.backends().hush(backend);
        let gone = guest.with_domain(|domain, cx| {
            guest.take_signal(backend, domain, cx);
            domain.peer_left(backend, cx)
        });
        if gone {
            self.channels.remove(&backend);
            self.guest.accel.remove_device(backend);
        } else if let Some(channel) = self.channels.get_mut(&backend) {
            channel.gone = true;
        }
    }

    /// The guest has closed our end.
    fn leave(&mut self, backend: Backend) {
        let Some(Channel { link, ours, theirs, gone }) = self.channels.remove(&backend) else { return };
        self.guest.accel.remove_device(backend);
        // Its port may be another channel's by now.
        if !gone {
            self.tell(link, Packet::new(Kind::Closed, 0, [theirs, ours, 0]));
        }
    }

    fn closed(&mut self, id: LinkId, [ours, theirs, _]: [u32; 3]) {
        let meant = |c: &Channel| (c.link, c.ours, c.theirs, c.gone) == (id, ours, theirs, false);
        let found = self.channels.iter().find(|(_, channel)| meant(channel)).map(|(&backend, _)| backend);
        if let Some(backend) = found {
            self.left(backend);
        }
    }

    /// Sends to a connection that may be gone.
    fn tell(&mut self, id: LinkId, packet: Packet) {
        if let Some(Err(e)) = self.links.get_mut(&id).map(|link| link.send(packet)) {
            self.lose(id, &e);
        }
    }
}
