//! `xen-emu`: one Xen domain on Linux KVM, one process.
//!
//! Started by `xlr create` (and by itself for a reboot) as `xen-emu --run-dir DIR`; DIR holds `launch.json`. The
//! order of things is in [`start`]; design and map of the code are in docs/design.md.

mod args;
mod backend;
mod boot;
mod build;
mod clock;
mod control;
mod core_dump;
mod disk;
mod forward;
mod fx;
mod guest;
mod kvm;
mod log;
mod machine;
mod memory;
mod peers;
mod reactor;
mod sched;
mod socket;
mod store_again;
mod supervise;
#[cfg(test)]
mod testing;
mod timers;
mod vm;
mod xenbus_setup;

use anyhow::{Context, bail};
use args::Call;
use backend::bus::{self, Bus};
use backend::console::{Console, Wiring};
use backend::evtchn::GuestChannels;
use backend::kinds;
use build::Built;
use log::Dmesg;
use reactor::{Exit, Parts};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store_again::StoreRing;
use vm::Vm;
use xen_domain::effect::Backend;
use xen_domain::mem::SpecialPage;
use xen_emu_api::config::Launch;
use xen_emu_api::run_dir::{RunDir, RunRoot};

/// Descriptors that a domain may need at most: two for each of its channels and one for each page it shares.
const DESCRIPTORS: u64 = 16 << 10;

/// Shells and service managers give 1024.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(DESCRIPTORS)), hard));
    // With fewer some devices or channels do not come, and say so.
    let _ = raised;
}

fn main() -> ExitCode {
    let (path, mut ready) = match args::parse(lexopt::Parser::from_env()) {
        Ok(Call::Run { run_dir, ready_fd }) => (run_dir, ready_fd.and_then(take_fd)),
        Ok(Call::Say(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Call::Probe) => {
            println!("{}", kvm::probe());
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("xen-emu: {e}; try `xen-emu --help`");
            return ExitCode::from(2);
        }
    };
    // Fails when we are a session's leader already.
    let _ = nix::unistd::setsid();
    raise_descriptor_limit();
    let error = match start(&path, &mut ready) {
        Ok(Exit::Gone) => return ExitCode::SUCCESS,
        Ok(Exit::Restart(dir)) => supervise::exec(&dir),
        Err(e) => e,
    };
    let line = format!("{error:#}").replace('\n', " ");
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{line}");
    } else {
        eprintln!("xen-emu: {line}");
    }
    if let Some(mut ready) = ready {
        let _ = writeln!(ready, "{line}");
    } else if let Ok((launch, dir)) = read_launch(&path) {
        // Nobody waits for us: a domain that could not be rebuilt must not stay in the run directory.
        abandon(&launch, &dir);
    }
    ExitCode::FAILURE
}

/// Take over an inherited descriptor.
fn take_fd(fd: i32) -> Option<File> {
    let file = File::options().write(true).open(format!("/proc/self/fd/{fd}")).ok();
    // Ours is the reopened one; closing fails only if there was none.
    let _ = nix::unistd::close(fd);
    file
}

fn read_launch(path: &Path) -> anyhow::Result<(Launch, RunDir)> {
    let file = path.join("launch.json");
    let text = std::fs::read(&file).with_context(|| format!("{}", file.display()))?;
    let launch: Launch = serde_json::from_slice(&text).with_context(|| format!("{}", file.display()))?;
    let dir = RunRoot::at(&launch.run_root)?.domain(launch.domid);
    Ok((launch, dir))
}

fn abandon(launch: &Launch, dir: &RunDir) {
    if let Ok(mut store) = xenbus_setup::connect(launch)
        && let Err(e) = store.forget_domain(launch.domid, &launch.config.uuid)
    {
        tracing::warn!("store nodes of domain {}: {e}", launch.domid);
    }
    if let Err(e) = dir.remove() {
        tracing::warn!("{}: {e}", dir.path().display());
    }
}

/// Hold the domain's life lock, build the machine, connect it, and serve it until it is gone.
fn start(path: &Path, ready: &mut Option<File>) -> anyhow::Result<Exit> {
    let (launch, run_dir) = read_launch(path)?;
    let log = log::init(Some(run_dir.log()));
    tracing::debug!("started");
    reactor::block_signals()?;
    let _life = hold(&run_dir)?;
    let (sender, events) = calloop::channel::channel();
    let built = build::build(&launch, sender, log.clone())?;
    let parts = connect(launch, run_dir, &built, events, log)?;
    if let (Some(notice), Some(ready)) = (&built.notice, ready.as_mut()) {
        // Nobody waits, nobody is told.
        let _ = writeln!(ready, "note: {notice}");
    }
    drop(built);
    let exit = reactor::run(Parts { ready: ready.take(), ..parts })?;
    Ok(exit)
}

/// Take the domain's life lock. A command that looks whether the domain lives has it for an instant, so try for a
/// little while.
fn hold(run_dir: &RunDir) -> anyhow::Result<File> {
    for _ in 0..50 {
        if let Some(life) = run_dir.try_hold()? {
            return Ok(life);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("domain {} has a process already", run_dir.domid)
}

/// Console, store nodes, devices and store ring. On an error nothing of it is left.
fn connect(
    launch: Launch,
    run_dir: RunDir,
    built: &Built,
    events: calloop::channel::Channel<vm::VmEvent>,
    log: Dmesg,
) -> anyhow::Result<Parts> {
    let (kick, notify) = built.fds(Backend::Console)?;
    let at = SpecialPage::Console.home();
    let console = Console::open(&run_dir, Wiring { page: built.guest.memory.clone(), at, kick, notify })?;
    let start_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let facts = xenbus_setup::Facts {
        console_gfn: boot::pvh::CONSOLE_GFN.0,
        console_port: built.console_port,
        store_gfn: boot::pvh::STORE_GFN.0,
        store_port: built.store_port,
        tty: console.tty().map(str::to_owned),
        start_time,
    };
    let mut store = xenbus_setup::connect(&launch)
        .with_context(|| format!("xenstored at {}", launch.xenstored.display()))?;
    let (kick, notify) = built.fds(Backend::Store)?;
    let ring = StoreRing { page: built.store_page.try_clone()?.into(), kick, notify, facts };
    let connected = (|| {
        xenbus_setup::setup(&mut store, &launch, &ring.facts).context("xenstored")?;
        let bus = devices(&launch, built)?;
        let (page, kick, notify) = (ring.page.as_fd(), ring.kick.as_fd(), ring.notify.as_fd());
        let introduced = xenbus_setup::introduce(&mut store, launch.domid, &ring.facts, page, kick, notify);
        Ok((bus, introduced.context("xenstored")?))
    })();
    let (bus, life_line) = connected.inspect_err(|_: &anyhow::Error| {
        let _ = store.forget_domain(launch.domid, &launch.config.uuid);
    })?;
    tracing::debug!("store, console and devices connected");
    let vm: Arc<dyn Vm> = built.guest.clone();
    Ok(Parts {
        launch,
        run_dir,
        vm,
        events,
        console,
        bus,
        store,
        ring,
        life_line,
        ready: None,
        log,
        start_time,
    })
}

/// The configured devices, which wait for the guest then.
fn devices(launch: &Launch, built: &Built) -> anyhow::Result<Bus> {
    let guest = &built.guest;
    let facts = kinds::Facts { domid: launch.domid, vcpus: launch.config.max_vcpus };
    let whose = launch.clone();
    let wiring = bus::Wiring {
        domid: launch.domid,
        memory: guest.memory.clone(),
        grants: Arc::new(guest::lock(&guest.domain).pins(guest.memory.clone())),
        channels: Arc::new(GuestChannels(guest.clone())),
        open: Arc::new(move |config| kinds::open(config, facts)),
        connect: Arc::new(move || xenbus_setup::connect(&whose)),
        grace: bus::GRACE,
    };
    let bus = Bus::start(xenbus_setup::connect(launch).context("xenstored")?, wiring).context("devices")?;
    launch.config.devices.iter().try_for_each(|device| bus.attach(device)).map_err(anyhow::Error::msg)?;
    Ok(bus)
}
