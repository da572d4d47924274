//! How a domain ends: what the machine tells, signals, the `on_*` actions, and the cleaning up.

use super::{End, Exit, LAST_BYTES, POWER_OFF, Reactor};
use crate::log::limited;
use crate::supervise::{self, Fate, Logs, Verdict};
use crate::vm::VmEvent;
use crate::xenbus_setup;
use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};
use tracing::{error, info, warn};
use xen_emu_api::config::{Action, DomainConfig, Launch, reason};
use xen_emu_api::control::Reply;
use xen_emu_api::run_dir::{RunDir, core_path};
use xenstored::client::Client;

impl Reactor {
    pub(super) fn vm_event(&mut self, event: VmEvent) {
        match event {
            VmEvent::Shutdown(code) => self.shut_down(code),
            VmEvent::Failed(text) => {
                error!("{}", text.trim_end());
                self.console.note(text.lines().next().unwrap_or_default());
                self.shut_down(reason::CRASH);
            }
        }
    }

    /// The domain goes for good. A successor that has its directory already does not come.
    pub(super) fn destroy(&mut self) {
        if let Some(End::Restart(next)) = self.end.replace(End::Destroy) {
            supervise::discard(&next);
        }
    }

    /// The next signal that has come.
    pub(super) fn next_signal(&self) -> Option<Signal> {
        let info = self.signals.read_signal().ok()??;
        i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::SIGHUP => {
                let reopened = self.log.reopen().and_then(|()| self.console.reopen_log());
                reopened.unwrap_or_else(|e| warn!("cannot open the logs anew: {e}"));
            }
            _ if self.shutdown.is_some() || self.power_off_by.is_some() => {
                info!("{signal:?}: destroying the domain");
                self.destroy();
            }
            _ => match self.ask_power_off() {
                Ok(how) => {
                    info!("{signal:?}: {how}, and {} s to power off", POWER_OFF.as_secs());
                    self.power_off_by = Some(Instant::now() + POWER_OFF);
                }
                Err(why) => {
                    warn!(
                        "{signal:?}: the guest cannot hear the power button ({why}): destroying the domain"
                    );
                    self.destroy();
                }
            },
        }
    }

    /// By the button, else by `control/shutdown` if the guest has said that it listens there.
    fn ask_power_off(&mut self) -> Result<&'static str, String> {
        let Err(why) = self.vm.power_button() else { return Ok("power button pressed") };
        let control = format!("/local/domain/{}/control", self.launch.domid);
        let listens = self.with_store(|store| {
            let listens = store.read_opt(&format!("{control}/feature-poweroff"))?.as_deref() == Some("1");
            if listens {
                store.write(&format!("{control}/shutdown"), "poweroff")?;
            }
            Ok(listens)
        });
        if listens.unwrap_or(false) { Ok("asked through control/shutdown") } else { Err(why) }
    }

    pub(super) fn shut_down(&mut self, code: u32) {
        if self.shutdown.is_some() {
            return;
        }
        // A guest may ask for one soft reset after the other.
        limited!(info, "Domain {} has shut down, reason code {code} {code:#x}", self.launch.domid);
        if code == reason::SOFT_RESET && self.wants_soft_reset() {
            match self.soft_reset() {
                Ok(()) => return,
                Err(e) => warn!("no soft reset: {e:#}"),
            }
        }
        self.shutdown = Some(code);
        if let Err(e) = self.life_line.write_all(b"s") {
            warn!("the store does not hear of the shutdown: {e}");
        }
        for id in std::mem::take(&mut self.waiting) {
            self.control.reply(id, &Reply::Shutdown { reason: code });
        }
        if self.power_off_by.take().is_some() {
            info!("Action for shutdown reason code {code} is destroy: a signal has asked for it");
            self.destroy();
            return;
        }
        let Verdict { action, core, fate, note } =
            supervise::decide(code, &self.launch.config.actions, self.launch.supervise);
        let name = action.map_or("unknown", |action| action.name());
        info!("Action for shutdown reason code {code} is {name}");
        if let Some(note) = note {
            warn!("{note}");
        }
        match core {
            true => self.dump_core(fate),
            false => self.go_on(fate),
        }
    }

    /// Whether a guest that asks for it gets a soft reset: somebody supervises it, and nobody wants it gone.
    fn wants_soft_reset(&self) -> bool {
        let Launch { supervise, config, .. } = &self.launch;
        *supervise && config.actions.soft_reset == Action::SoftReset && self.power_off_by.is_none()
    }

    /// The guest goes on in the same memory with another kernel (kexec), for which everything else is as in a new domain: devices, store,
    /// console, events, grants.
    fn soft_reset(&mut self) -> anyhow::Result<()> {
        self.bus.halt()?;
        self.vm.soft_reset().map_err(anyhow::Error::msg)?;
        self.console.renew()?;
        let (ring, domid) = (self.lost.ring(), self.launch.domid);
        let (page, kick, notify) = (ring.page.as_fd(), ring.kick.as_fd(), ring.notify.as_fd());
        let line =
            self.with_store(|store| xenbus_setup::introduce(store, domid, &ring.facts, page, kick, notify))?;
        line.set_nonblocking(true)?;
        self.life_line = line;
        self.bus.offer()?;
        self.vm.unpause();
        limited!(info, "Domain {domid} goes on after a soft reset");
        Ok(())
    }

    /// Write a core, and go on when it is there.
    fn dump_core(&mut self, fate: Fate) {
        let path = core_path(&self.launch.config.name);
        info!("dumping core to {}", path.display());
        let (vm, stop, ping) = (self.vm.clone(), self.stop.clone(), self.dumped.clone());
        let dump = move || {
            let written = vm.dump_core(&path, &stop);
            ping.ping();
            written.with_context(|| path.display().to_string())
        };
        match std::thread::Builder::new().name("core".into()).spawn(dump) {
            Ok(thread) => self.dumping = Some((fate, thread)),
            Err(e) => {
                error!("core dump failed: {e}");
                self.go_on(fate);
            }
        }
    }

    /// The core is written, or not.
    pub(super) fn core_is_there(&mut self) {
        let Some((fate, thread)) = self.dumping.take() else { return };
        match thread.join() {
            Ok(Ok(())) => info!("core written"),
            Ok(Err(e)) => error!("core dump failed: {e:#}"),
            Err(_) => error!("core dump failed: its thread has panicked"),
        }
        if self.end.is_none() {
            self.go_on(fate);
        }
    }

    /// Now, or after a while if it would be a restart after many short lives.
    fn go_on(&mut self, fate: Fate) {
        let restart = matches!(fate, Fate::Restart | Fate::RenameRestart);
        let (quick, delay) = supervise::backoff(self.quick_lives, self.started.elapsed());
        if restart && !delay.is_zero() {
            self.quick_lives = quick;
            warn!("{quick} short lives in a row: restarting in {} s", delay.as_secs());
            self.pending = Some((Instant::now() + delay, fate));
        } else {
            self.quick_lives = quick;
            self.carry_out(fate);
        }
    }

    pub(super) fn carry_out(&mut self, fate: Fate) {
        match fate {
            Fate::Destroy => self.destroy(),
            Fate::Restart => self.prepare(fate, self.config()),
            Fate::Preserve => {}
            Fate::RenameRestart => {
                let config = self.config();
                match self.rename() {
                    Ok(()) => self.prepare(fate, config),
                    Err(e) => error!("the domain stays as it is: {e:#}"),
                }
            }
        }
    }

    /// Go on as a dead domain under another name, and without devices: they are the successor's.
    fn rename(&mut self) -> anyhow::Result<()> {
        self.bus.close();
        let (domid, uuid) = (self.launch.domid, self.launch.config.uuid.clone());
        let dead = supervise::renamed(&self.launch.config, SystemTime::now())?;
        self.with_store(|store| xenbus_setup::rename(store, domid, &uuid, &dead))?;
        info!("Domain {domid} is kept as {}", dead.name);
        self.launch.config = dead;
        supervise::record(&self.run_dir, &self.launch)
    }

    /// Have a directory reserved for the domain that comes next, with `config`; [`Reactor::prepared`] goes on.
    fn prepare(&mut self, fate: Fate, config: DomainConfig) {
        let known = self.with_store(|store| store.directory("/local/domain")).unwrap_or_default();
        let (launch, quick, ping) = (self.launch.clone(), self.quick_lives, self.prepared.clone());
        let reserve = move || {
            let taken = |domid: u16| known.iter().any(|name| *name == domid.to_string());
            let reserved = supervise::reserve(&launch, config, quick, taken);
            ping.ping();
            reserved
        };
        match std::thread::Builder::new().name("successor".into()).spawn(reserve) {
            Ok(thread) => self.preparing = Some((fate, thread)),
            Err(e) => self.not_restarted(fate, &e.into()),
        }
    }

    /// The directory is reserved: become the new domain, or start it beside this one.
    pub(super) fn prepared(&mut self) {
        let Some((fate, thread)) = self.preparing.take() else { return };
        match (fate, joined(thread)) {
            (_, Ok(next)) if self.end.is_some() => supervise::discard(&next),
            (Fate::RenameRestart, Ok(next)) => {
                let started = supervise::carry_logs(&self.run_dir, &next, Logs::Copy)
                    .map_err(Into::into)
                    .and_then(|()| supervise::spawn(&next));
                if let Err(e) = started {
                    supervise::discard(&next);
                    self.not_restarted(fate, &e);
                }
            }
            (_, Ok(next)) => self.end = Some(End::Restart(next)),
            (_, Err(e)) => self.not_restarted(fate, &e),
        }
    }

    fn not_restarted(&mut self, fate: Fate, why: &anyhow::Error) {
        error!("cannot restart the domain: {why:#}");
        if fate == Fate::Restart {
            self.destroy();
        }
    }

    /// Talk to the store, over a new connection if the old one is gone.
    fn with_store<T>(
        &mut self,
        talk: impl FnOnce(&mut Client) -> xenstored::client::Result<T>,
    ) -> xenstored::client::Result<T> {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => {
                self.look_for_store();
                xenbus_setup::connect(&self.launch)?
            }
        };
        let result = talk(&mut store);
        // Any other failure leaves the connection out of step.
        if result.as_ref().err().is_none_or(|e| e.errno().is_some()) {
            self.store = Some(store);
        }
        result
    }

    /// Free everything. The sockets close last: who sees their end finds everything clean.
    pub(super) fn finish(mut self, served: anyhow::Result<()>) -> anyhow::Result<Exit> {
        let (domid, uuid) = (self.launch.domid, self.launch.config.uuid.clone());
        if served.is_err() || self.end.is_none() {
            self.destroy();
        }
        if self.shutdown.is_some() {
            info!("Domain {domid} needs to be cleaned up: destroying the domain");
        }
        // First the vCPUs, then the devices, then the memory that these may be writing to disks from.
        self.vm.pause();
        self.stop.store(true, Ordering::Relaxed);
        self.core_is_there();
        self.cores.drain(..).for_each(|thread| drop(thread.join()));
        self.bus.close();
        self.vm.stop();
        self.console.finish(LAST_BYTES);
        if let Some((_, thread)) = self.preparing.take()
            && let Ok(unwanted) = joined(thread)
        {
            supervise::discard(&unwanted);
        }
        self.lost.stop();
        if let Err(e) = self.with_store(|store| store.forget_domain(domid, &uuid)) {
            warn!("the store keeps nodes of domain {domid}: {e}");
        }
        if let Some(End::Restart(next)) = &self.end
            && let Err(e) = supervise::carry_logs(&self.run_dir, next, Logs::Move)
        {
            warn!("the logs of domain {domid} are lost: {e}");
        }
        let removed = self.run_dir.remove().with_context(|| self.run_dir.path().display().to_string());
        if removed.is_err() {
            self.destroy();
        }
        // Whoever has asked just now gets an answer and not a reset connection.
        while self.control.accept().is_some() {}
        self.requests();
        self.pass_on();
        self.control.finish(LAST_BYTES);
        while let Some(signal) = self.next_signal() {
            if signal != Signal::SIGHUP {
                info!("{signal:?}: no domain follows");
                self.destroy();
            }
        }
        served.and(removed)?;
        Ok(match self.end {
            Some(End::Restart(next)) => {
                info!("Done. Rebooting now");
                Exit::Restart(next)
            }
            _ => {
                info!("Done. Exiting now");
                Exit::Gone
            }
        })
    }
}

fn joined(thread: JoinHandle<anyhow::Result<RunDir>>) -> anyhow::Result<RunDir> {
    thread.join().unwrap_or_else(|_| bail!("the thread that prepares it has panicked"))
}
