//! One queue of a vif: a thread that waits for the guest and for the link, and moves packets in batches.

mod ctrl;
mod rx;
mod stage;
mod tx;
mod window;

use super::counters::count;
use super::link::Link;
use super::proto::chain::Fragment;
use super::shared::Shared;
use crate::backend::device::{DeviceError, EventChannel, GuestRam};
pub use ctrl::Ctrl;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd;
pub use rx::Rx;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
pub use tx::Tx;
use xen_domain::gnttab::Grants;
use xen_domain::mem::GuestMem;

/// How often buffers are looked for that the frontend does not announce (`feature-rx-notify` missing).
const POLL: Duration = Duration::from_millis(10);

/// What a queue works with.
#[derive(Clone)]
pub struct Cx {
    /// For the log.
    pub name: String,
    /// Which queue this is.
    pub queue: usize,
    /// The guest's memory.
    pub memory: Arc<dyn GuestRam>,
    /// The guest's grants.
    pub grants: Arc<dyn Grants>,
    /// What all queues have.
    pub shared: Arc<Shared>,
}

impl Cx {
    /// The memory, as rings take it.
    pub fn mem(&self) -> &dyn GuestMem {
        &*self.memory
    }
}

/// One queue.
pub struct Queue {
    /// What it works with.
    pub cx: Cx,
    /// Transmit ring.
    pub tx: Tx,
    /// Its event channel, and the other ring's if that has none of its own.
    pub tx_channel: EventChannel,
    /// Receive ring.
    pub rx: Rx,
    /// Its event channel.
    pub rx_channel: Option<EventChannel>,
    /// The control ring, with one of the queues.
    pub ctrl: Option<Ctrl>,
    /// The other end.
    pub link: Box<dyn Link>,
}

/// Of the link in what an epoll reports; the guest's channels count from 1.
const LINK: u64 = 0;

/// What a turn has left to wait for.
struct Pause {
    again: bool,
    link: EpollFlags,
    until: Option<Instant>,
}

impl Queue {
    /// Grant references of its rings.
    pub fn grefs(&self) -> Vec<u32> {
        [self.tx.gref(), self.rx.gref()].into_iter().chain(self.ctrl.as_ref().map(Ctrl::gref)).collect()
    }

    /// Works until the vif is stopped. The link comes back, and why it ended before that.
    pub fn run(mut self) -> (Box<dyn Link>, Result<(), DeviceError>) {
        let ended = self.work();
        (self.link, ended)
    }

    fn work(&mut self) -> Result<(), DeviceError> {
        let failed = |e: Errno| DeviceError(format!("epoll: {e}"));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        for (token, fd) in (1..).zip(self.kicks()) {
            // Edge-triggered: the count does not matter, and so nobody has to read it.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(fd, EpollEvent::new(flags, token)).map_err(failed)?;
        }
        let mut watched = None;
        // Whether the link may have a packet: nobody has to ask it when only the guest has woken us.
        let mut readable = true;
        while !self.cx.shared.stopping() {
            let pause = self.turn(readable)?;
            readable = true;
            if pause.again {
                continue;
            }
            if watched != Some(pause.link) {
                watch(&epoll, self.link.fd(), watched, pause.link).map_err(failed)?;
                watched = Some(pause.link);
            }
            let told = self.wait(&epoll, pause.until).map_err(failed)?;
            readable = told || !pause.link.contains(EpollFlags::EPOLLIN);
        }
        Ok(())
    }

    /// What others wake this queue with.
    fn kicks(&self) -> Vec<BorrowedFd<'_>> {
        let channels =
            [Some(&self.tx_channel), self.rx_channel.as_ref(), self.ctrl.as_ref().map(|c| &c.channel)];
        let inbox = self.cx.shared.inbox(self.cx.queue).map(|inbox| inbox.wake.as_fd());
        channels.into_iter().flatten().map(|channel| channel.kick.as_fd()).chain(inbox).collect()
    }

    /// Waits for the guest, the link, or a time; whether the link has a packet, or is gone.
    fn wait(&self, epoll: &Epoll, until: Option<Instant>) -> Result<bool, Errno> {
        let timeout = until.map_or(EpollTimeout::NONE, |until| {
            // Rounded up: too early would be a turn for nothing.
            let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            EpollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
        });
        let mut events = [EpollEvent::empty(); 8];
        count(&self.cx.shared.counters.wakeups, 1);
        let known = match epoll.wait(&mut events, timeout) {
            Ok(known) => known,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e),
        };
        let packet = |event: &EpollEvent| event.data() == LINK && event.events() != EpollFlags::EPOLLOUT;
        Ok(events.iter().take(known).any(packet))
    }

    /// Does what can be done now.
    fn turn(&mut self, readable: bool) -> Result<Pause, DeviceError> {
        let Queue { cx, tx, rx, link, ctrl, tx_channel, rx_channel } = self;
        let mut again = false;
        if let Some(ctrl) = ctrl {
            let (more, notify) = ctrl.run(cx)?;
            again |= more;
            if notify {
                notify_guest(cx, &ctrl.channel);
            }
        }
        let held = link.flush();
        let (tx_idle, tx_notify) = tx.run(cx, link.as_mut())?;
        let (rx_idle, rx_notify) = rx.run(cx, link.as_mut(), readable)?;
        if tx_notify || (rx_notify && rx_channel.is_none()) {
            notify_guest(cx, tx_channel);
        }
        if let (true, Some(channel)) = (rx_notify, rx_channel) {
            notify_guest(cx, channel);
        }
        again |= tx_idle == tx::Idle::Turn || rx_idle == rx::Idle::Turn;
        let mut events = EpollFlags::empty();
        events.set(EpollFlags::EPOLLIN, rx_idle == rx::Idle::Empty);
        events.set(EpollFlags::EPOLLOUT, held || tx_idle == tx::Idle::Blocked);
        let poll = rx_idle == rx::Idle::Starved && !cx.shared.rx_notify;
        let until = match tx_idle {
            tx::Idle::Rate(until) => Some(until),
            _ => None,
        };
        let until = until.into_iter().chain(poll.then(|| Instant::now() + POLL)).min();
        Ok(Pause { again, link: events, until })
    }
}

fn notify_guest(cx: &Cx, channel: &EventChannel) {
    count(&cx.shared.counters.notifies, 1);
    // Fails only when the count is full, and then the guest has a notification to come.
    let _ = unistd::write(&channel.notify, &1u64.to_ne_bytes());
}

/// Changes what of the link is waited for. One that nothing is expected of is not watched at all: its hang-up would be
/// reported over and over.
fn watch(
    epoll: &Epoll,
    fd: BorrowedFd<'_>,
    before: Option<EpollFlags>,
    now: EpollFlags,
) -> Result<(), Errno> {
    let was = before.is_some_and(|flags| !flags.is_empty());
    match (was, !now.is_empty()) {
        (false, true) => epoll.add(fd, EpollEvent::new(now, LINK)),
        (true, true) => epoll.modify(fd, &mut EpollEvent::new(now, LINK)),
        (true, false) => epoll.delete(fd),
        (false, false) => Ok(()),
    }
}
