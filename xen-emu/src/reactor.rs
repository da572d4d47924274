//! The main thread: one loop over control socket, console, store, signals and what the machine tells, until the
//! domain is gone.

mod again;
mod answer;
mod end;

use crate::backend::bus::Bus;
use crate::backend::console::{self, Console};
use crate::control::Server;
use crate::log::Dmesg;
use crate::socket::ClientId;
use crate::store_again::StoreRing;
use crate::supervise::{self, Fate};
use crate::vm::{Vm, VmEvent};
use again::LostStore;
use anyhow::Context;
use calloop::channel::{self, Channel};
use calloop::generic::Generic;
use calloop::ping::{self, Ping};
use calloop::{EventLoop, Interest, LoopHandle, Mode, PostAction, RegistrationToken};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};
use xen_emu_api::config::Launch;
use xen_emu_api::control::Reply;
use xen_emu_api::run_dir::RunDir;
use xenstored::client::Client;

/// How long a guest may take to power off when a signal has asked for it.
const POWER_OFF: Duration = Duration::from_secs(60);
/// How long readers of a socket may take for the last bytes.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// Control requests dealt with before anything else has its turn.
const REQUESTS: usize = 64;

/// What a turn of a part of the loop comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// There is more to do at once.
    pub again: bool,
    /// There will be something to do then, whatever happens.
    pub deadline: Option<Instant>,
}

/// Everything that is served. The nodes are in the store, the machine is built and paused.
pub struct Parts {
    /// What was asked for.
    pub launch: Launch,
    /// The domain's directory, whose lock the caller holds.
    pub run_dir: RunDir,
    /// The machine.
    pub vm: Arc<dyn Vm>,
    /// What it tells.
    pub events: Channel<VmEvent>,
    /// The primary console.
    pub console: Console,
    /// The PV devices.
    pub bus: Bus,
    /// The connection that has introduced the domain.
    pub store: Client,
    /// Its ring, for a store that comes back.
    pub ring: StoreRing,
    /// Our end of the life line.
    pub life_line: UnixStream,
    /// Told `ok` once everything is served, or in one line why it is not.
    pub ready: Option<File>,
    /// The process's log.
    pub log: Dmesg,
    /// Unix time of the build, seconds.
    pub start_time: f64,
}

/// How a domain has ended. Its nodes, its run directory and its sockets are gone.
#[derive(Clone, Debug)]
pub enum Exit {
    /// For good.
    Gone,
    /// This directory is for the domain that follows it: [`supervise::exec`].
    Restart(RunDir),
}

/// The signals the loop takes.
fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Block the signals the loop takes, before any thread is made that could take them instead. They stay blocked: one
/// that comes when the loop has ended waits for the successor, which is this same process.
pub fn block_signals() -> io::Result<()> {
    Ok(signals().thread_block()?)
}

/// Serve the domain until it is gone, and clean up. After [`block_signals`].
///
/// # Errors
/// The host's, before anything was served (nodes and run directory are the caller's to remove then) or at the end
/// (everything is cleaned up as far as possible).
pub fn run(mut parts: Parts) -> anyhow::Result<Exit> {
    let mut ready = parts.ready.take();
    let begun = EventLoop::try_new().context("event loop").and_then(|events| {
        let reactor = Reactor::new(parts, events.handle())?;
        Ok((reactor, events))
    });
    let (mut reactor, mut events) = begun.inspect_err(|e| {
        if let Some(ready) = &mut ready {
            // Who has left needs no reason.
            let _ = writeln!(ready, "{}", format!("{e:#}").replace('\n', " "));
        }
    })?;
    reactor.ready = ready;
    let served = reactor.serve(&mut events);
    reactor.finish(served)
}

/// What the loop can be woken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Console(console::Source),
    ConsoleListener,
    Control(ClientId),
    ControlListener,
    Signals,
    Store,
}

/// How the serving ends.
#[derive(Debug)]
enum End {
    Destroy,
    /// The successor's directory is reserved.
    Restart(RunDir),
}

/// Whom the bus answers, and what.
type Answer = (ClientId, Reply);

struct Reactor {
    handle: LoopHandle<'static, Reactor>,
    watches: HashMap<Source, RegistrationToken>,
    signals: Rc<SignalFd>,
    launch: Launch,
    run_dir: RunDir,
    vm: Arc<dyn Vm>,
    console: Console,
    bus: Bus,
    /// What the bus has answered, and how that is asked for.
    answers: (Sender<Answer>, Receiver<Answer>),
    answered: Ping,
    control: Server,
    store: Option<Client>,
    /// To find the store again when it is gone.
    lost: LostStore,
    life_line: UnixStream,
    ready: Option<File>,
    log: Dmesg,
    start_time: f64,
    started: Instant,
    quick_lives: usize,
    /// SHUTDOWN_* once the guest has shut down.
    shutdown: Option<u32>,
    /// Clients to be told when it does.
    waiting: Vec<ClientId>,
    /// A signal has asked for power-off: the domain is destroyed then.
    power_off_by: Option<Instant>,
    /// A restart is put off until then.
    pending: Option<(Instant, Fate)>,
    /// A thread that reserves the successor's directory: the lock that this takes may be held by somebody who
    /// awaits an answer of ours.
    preparing: Option<(Fate, JoinHandle<anyhow::Result<RunDir>>)>,
    prepared: Ping,
    /// Threads that write cores for clients; they are joined when the domain ends.
    cores: Vec<JoinHandle<()>>,
    /// A thread that writes a core of the dead domain, and what comes then.
    dumping: Option<(Fate, JoinHandle<anyhow::Result<()>>)>,
    dumped: Ping,
    /// Tells all that write cores to give up.
    stop: Arc<AtomicBool>,
    end: Option<End>,
}

impl Reactor {
    fn new(parts: Parts, handle: LoopHandle<'static, Reactor>) -> anyhow::Result<Reactor> {
        let Parts {
            launch,
            run_dir,
            vm,
            events,
            console,
            bus,
            store,
            ring,
            life_line,
            ready,
            log,
            start_time,
        } = parts;
        let path = run_dir.control();
        let control = Server::open(&path).with_context(|| path.display().to_string())?;
        life_line.set_nonblocking(true)?;
        let store_fd = store.as_fd().try_clone_to_owned()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = Rc::new(SignalFd::with_flags(&signals(), flags).context("signals")?);
        let (prepared, when_prepared) = ping::make_ping().context("ping")?;
        let (dumped, when_dumped) = ping::make_ping().context("ping")?;
        let (answered, when_answered) = ping::make_ping().context("ping")?;
        let (back, when_back) = ping::make_ping().context("ping")?;
        let mut reactor = Reactor {
            handle,
            watches: HashMap::new(),
            signals,
            quick_lives: supervise::quick_lives(&run_dir),
            launch,
            run_dir,
            vm,
            console,
            bus,
            answers: mpsc::channel(),
            answered,
            control,
            store: Some(store),
            lost: LostStore::new(ring, back),
            life_line,
            ready,
            log,
            start_time,
            started: Instant::now(),
            shutdown: None,
            waiting: Vec::new(),
            power_off_by: None,
            pending: None,
            preparing: None,
            prepared,
            cores: Vec::new(),
            dumping: None,
            dumped,
            stop: Arc::default(),
            end: None,
        };
        let handle = reactor.handle.clone();
        let tell = |event, _: &mut (), r: &mut Reactor| {
            if let channel::Event::Msg(event) = event {
                r.vm_event(event);
            }
        };
        handle.insert_source(events, tell).map_err(|e| e.error)?;
        handle.insert_source(when_prepared, |(), (), r| r.prepared()).map_err(|e| e.error)?;
        handle.insert_source(when_dumped, |(), (), r| r.core_is_there()).map_err(|e| e.error)?;
        handle.insert_source(when_back, |(), (), r| r.store_is_back()).map_err(|e| e.error)?;
        handle.insert_source(when_answered, |(), (), r| r.pass_on()).map_err(|e| e.error)?;
        for (source, fd) in reactor.console.sources() {
            let on = if source == console::Source::Kick { Interest::READ } else { Interest::BOTH };
            reactor.watch(fd, on, Source::Console(source))?;
        }
        reactor.watch(reactor.signals.clone(), Interest::READ, Source::Signals)?;
        reactor.watch(reactor.console.listener(), Interest::READ, Source::ConsoleListener)?;
        reactor.watch(reactor.control.listener(), Interest::READ, Source::ControlListener)?;
        reactor.watch(store_fd, Interest::READ, Source::Store)?;
        Ok(reactor)
    }

    /// Edge-triggered: whoever is told reads or writes until it would block, or remembers that it has not.
    fn watch(&mut self, fd: impl AsFd + 'static, on: Interest, source: Source) -> anyhow::Result<()> {
        let watched = Generic::new(fd, on, Mode::Edge);
        let told = move |_, _: &mut _, reactor: &mut Reactor| {
            reactor.ready(source);
            Ok(PostAction::Continue)
        };
        let token = self.handle.insert_source(watched, told).map_err(|e| e.error)?;
        self.watches.insert(source, token);
        Ok(())
    }

    fn forget(&mut self, source: Source) {
        if let Some(token) = self.watches.remove(&source) {
            self.handle.remove(token);
        }
    }

    /// Until `end` is set.
    fn serve(&mut self, events: &mut EventLoop<'static, Reactor>) -> anyhow::Result<()> {
        let (name, domid) = (&self.launch.config.name, self.launch.domid);
        info!("Waiting for domain {name} (domid {domid}) to die [pid {}]", std::process::id());
        if !self.launch.paused {
            self.vm.unpause();
        }
        if let Some(mut ready) = self.ready.take() {
            ready.write_all(b"ok\n").context("nobody waits for the domain to be ready")?;
        }
        if let Err(e) = crate::memory::forget_code() {
            debug!("the code of the start stays in memory: {e}");
        }
        loop {
            let turn = self.turn(Instant::now());
            if self.end.is_some() {
                return Ok(());
            }
            let until = turn.deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = if turn.again { Some(Duration::ZERO) } else { until };
            events.dispatch(timeout, self).context("event loop")?;
        }
    }

    fn ready(&mut self, source: Source) {
        match source {
            Source::Console(source) => self.console.ready(source),
            Source::Control(id) => self.control.ready(id),
            Source::ConsoleListener => {
                while let Some((id, stream)) = self.console.accept() {
                    self.watch_client(stream, Source::Console(console::Source::Client(id)));
                }
            }
            Source::ControlListener => {
                while let Some((id, stream)) = self.control.accept() {
                    self.watch_client(stream, Source::Control(id));
                }
            }
            Source::Signals => {
                while let Some(signal) = self.next_signal() {
                    self.signal(signal);
                }
            }
            Source::Store => {
                let polled = self.store.as_mut().map(|store| store.next_event(Some(Duration::ZERO)));
                match polled {
                    Some(Ok(_)) => {}
                    Some(Err(e)) => self.store_is_gone(&e),
                    None => self.store_is_gone(&"the connection is lost"),
                }
            }
        }
    }

    fn watch_client(&mut self, stream: impl AsFd + 'static, source: Source) {
        if let Err(e) = self.watch(stream, Interest::BOTH, source) {
            crate::log::limited!(warn, "cannot serve a client: {e}");
        }
    }

    fn turn(&mut self, now: Instant) -> Turn {
        let console = self.console.turn(now);
        let requests = self.requests();
        for id in self.console.take_gone() {
            self.forget(Source::Console(console::Source::Client(id)));
        }
        for id in self.control.take_gone() {
            self.forget(Source::Control(id));
            self.waiting.retain(|&waiting| waiting != id);
        }
        self.expire(now);
        let pending = self.pending.map(|(at, _)| at);
        let deadline = [console.deadline, self.power_off_by, pending].into_iter().flatten().min();
        Turn { again: console.again || requests == REQUESTS, deadline }
    }

    fn expire(&mut self, now: Instant) {
        if self.power_off_by.is_some_and(|by| by <= now) {
            warn!("the guest has not powered off within {} s: destroying the domain", POWER_OFF.as_secs());
            self.destroy();
        }
        if let Some((_, fate)) = self.pending.take_if(|(at, _)| *at <= now) {
            self.carry_out(fate);
        }
    }
}

#[cfg(test)]
mod tests;
