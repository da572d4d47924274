//! Whole lives of a domain that has no machine: real sockets, real signals, a store without rings.

use super::*;
use crate::backend::bus::tests as fake;
use crate::backend::console::Wiring;
use crate::backend::console::ring::fake::Page;
use crate::testing::{TestStore, launch};
use crate::xenbus_setup;
use nix::sys::eventfd::EventFd;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};
use std::thread::JoinHandle;
use xen_domain::mem::Gpa;
use xen_emu_api::config::{Action, reason};
use xen_emu_api::control::{Connection, Reply, Request, Status, VcpuStatus};
use xen_emu_api::run_dir::RunRoot;

/// Says yes to everything but the power button.
struct FakeVm {
    paused: AtomicBool,
    stopped: AtomicBool,
    button: Result<(), String>,
    reset: Mutex<Result<(), String>>,
}

impl Vm for FakeVm {
    fn pause(&self) {
        self.paused.store(true, SeqCst);
    }
    fn unpause(&self) {
        self.paused.store(false, SeqCst);
    }
    fn paused(&self) -> bool {
        self.paused.load(SeqCst)
    }
    fn power_button(&self) -> Result<(), String> {
        self.button.clone()
    }
    fn nmi(&self, vcpu: u32) -> Result<(), String> {
        if vcpu == 0 { Ok(()) } else { Err(format!("no vcpu {vcpu}")) }
    }
    fn vcpus(&self) -> Vec<VcpuStatus> {
        Vec::new()
    }
    fn memory_kib(&self) -> u64 {
        131_072
    }
    fn backend(&self) -> &'static str {
        "kernel"
    }
    fn describe(&self, path: &str) -> String {
        format!("vm {path}\n")
    }
    fn dump_core(&self, path: &Path, _stop: &AtomicBool) -> io::Result<()> {
        std::fs::write(path, "core")
    }
    fn soft_reset(&self) -> Result<(), String> {
        self.pause();
        self.reset.lock().unwrap().clone()
    }
    fn stop(&self) {
        self.stopped.store(true, SeqCst);
    }
}

/// A domain that is being served by a thread.
struct Life {
    stage: Stage,
    thread: Pthread,
    exit: JoinHandle<anyhow::Result<Exit>>,
}

impl std::ops::Deref for Life {
    type Target = Stage;
    fn deref(&self) -> &Stage {
        &self.stage
    }
}

/// What a domain without a machine is served from, and the other ends of it.
struct Stage {
    root: tempfile::TempDir,
    dir: RunDir,
    store: TestStore,
    vm: Arc<FakeVm>,
    page: Arc<Page>,
    events: channel::Sender<VmEvent>,
    log: Dmesg,
    life_line: UnixStream,
}

impl Stage {
    /// And how to make the parts, in the thread that serves them.
    fn set(
        adjust: impl FnOnce(&mut Launch),
    ) -> (Stage, impl FnOnce() -> anyhow::Result<Parts> + Send + 'static) {
        let root = tempfile::tempdir().unwrap();
        let store = TestStore::start(root.path());
        let dir = RunRoot::at(root.path().join("run")).unwrap().reserve(|_| false).unwrap();
        let mut launch =
            Launch { run_root: root.path().join("run"), xenstored: store.path.clone(), ..launch(dir.domid) };
        adjust(&mut launch);
        let button = if launch.config.acpi { Ok(()) } else { Err("acpi=0".to_owned()) };
        let vm = Arc::new(FakeVm {
            paused: true.into(),
            stopped: false.into(),
            button,
            reset: Mutex::new(Ok(())),
        });
        let (page, (sender, events)) = (Arc::new(Page::default()), channel::channel());
        let (life_line, line) = UnixStream::pair().unwrap();
        let ready_path = root.path().join("ready");
        let log = Dmesg::default();
        let told = log.clone();
        let (machine, ring, run_dir) = (vm.clone(), page.clone(), dir.clone());
        let parts = move || {
            block_signals()?;
            let (kick, notify) = (EventFd::new()?.into(), EventFd::new()?.into());
            let console = Console::open(&run_dir, Wiring { page: ring, at: Gpa(0), kick, notify })?;
            let mut store = xenbus_setup::connect(&launch)?;
            let facts = xenbus_setup::Facts {
                console_gfn: 1,
                console_port: 2,
                store_gfn: 3,
                store_port: 1,
                tty: console.tty().map(str::to_owned),
                start_time: 1.0,
            };
            xenbus_setup::setup(&mut store, &launch, &facts)?;
            let bus = Bus::start(xenbus_setup::connect(&launch)?, fake::wiring(launch.domid))?;
            let page = File::open("/dev/null")?.into();
            let (kick, notify) = (EventFd::new()?.into(), EventFd::new()?.into());
            let ring = StoreRing { page, kick, notify, facts };
            Ok(Parts {
                launch,
                run_dir,
                vm: machine,
                events,
                console,
                bus,
                store,
                ring,
                life_line: line,
                ready: Some(File::create(ready_path)?),
                log: told,
                start_time: 1.0,
            })
        };
        (Stage { root, dir, store, vm, page, events: sender, log, life_line }, parts)
    }

    fn ready(&self) -> String {
        std::fs::read_to_string(self.root.path().join("ready")).unwrap_or_default()
    }
}

fn begin(adjust: impl FnOnce(&mut Launch)) -> Life {
    let (stage, parts) = Stage::set(adjust);
    let (begun, has_begun) = mpsc::channel();
    let exit = std::thread::spawn(move || {
        let parts = parts()?;
        begun.send(pthread_self())?;
        run(parts)
    });
    let thread = has_begun.recv().unwrap();
    wait_for("ready", || stage.ready() == "ok\n");
    Life { stage, thread, exit }
}

/// Served by the test's own thread, with a successor that has its directory.
fn restarting() -> (Stage, EventLoop<'static, Reactor>, Reactor, RunDir) {
    let (stage, parts) = Stage::set(|_| {});
    let events = EventLoop::try_new().unwrap();
    let mut reactor = Reactor::new(parts().unwrap(), events.handle()).unwrap();
    let next = RunRoot::at(stage.root.path().join("run")).unwrap().reserve(|_| false).unwrap();
    reactor.shutdown = Some(reason::REBOOT);
    reactor.end = Some(End::Restart(next.clone()));
    (stage, events, reactor, next)
}

/// Until `condition` holds; a test that hangs has failed.
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("never came: {what}");
}

impl Life {
    fn connect(&self) -> Connection {
        Connection::open(&self.dir.control()).unwrap()
    }

    fn status(&self) -> Status {
        match self.connect().ask(&Request::Status).unwrap() {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn signal(&self, signal: Signal) {
        pthread_kill(self.thread, signal).unwrap();
    }

    /// The end: everything of the domain is gone.
    fn end(self) -> (Exit, tempfile::TempDir) {
        let exit = self.exit.join().unwrap().unwrap();
        let stage = self.stage;
        assert!(stage.vm.stopped.load(SeqCst));
        assert!(!stage.dir.path().exists());
        let left = stage.store.listing();
        let of_it = [format!("/{}/", stage.dir.domid), format!("/{} ", stage.dir.domid), "/vm/".into()];
        assert!(!left.iter().any(|line| of_it.iter().any(|part| line.contains(part))), "{left:#?}");
        assert_eq!(stage.store.get("/local/domain/0/name").as_deref(), Some("Domain-0"));
        (exit, stage.root)
    }
}

fn launch_of(dir: &Path) -> Launch {
    serde_json::from_slice(&std::fs::read(dir.join("launch.json")).unwrap()).unwrap()
}

#[test]
fn a_domain_lives_powers_off_and_leaves_nothing() {
    let life = begin(|_| {});
    let status = life.status();
    assert_eq!((status.name.as_str(), status.paused, status.shutdown), ("guest", false, None));
    let mut control = life.connect();
    control.ask(&Request::Pause).unwrap();
    assert!(life.status().paused);
    control.ask(&Request::Unpause).unwrap();
    assert_eq!(control.ask(&Request::Nmi { vcpu: 7 }).unwrap_err().to_string(), "no vcpu 7");
    life.log.guest(1, b"hello\n");
    wait_for("the guest's line", || {
        life.connect().ask(&Request::Dmesg).unwrap() == Reply::Text { text: "(d1) hello\n".into() }
    });
    life.page.guest_writes(b"last words");
    let mut console = UnixStream::connect(life.dir.console()).unwrap();
    let mut first = [0; 4];
    console.read_exact(&mut first).unwrap();
    let mut gone = life.connect();
    let mut waiter = UnixStream::connect(life.dir.control()).unwrap();
    xen_emu_api::control::send(&waiter, &Request::Wait).unwrap();
    life.status();
    life.events.send(VmEvent::Shutdown(0)).unwrap();
    gone.wait_gone().unwrap();
    assert!(!life.dir.path().exists(), "what closes last is the sockets");
    let mut told = String::new();
    waiter.read_to_string(&mut told).unwrap();
    assert_eq!(told, "{\"reply\":\"shutdown\",\"reason\":0}\n");
    let mut rest = String::new();
    console.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, " words");
    let mut line = String::new();
    (&life.life_line).read_to_string(&mut line).unwrap();
    assert_eq!(line, "s");
    assert!(matches!(life.end().0, Exit::Gone));
}

#[test]
fn a_preserved_domain_stays_dead_until_destroyed() {
    let life = begin(|launch| launch.config.actions.crash = Action::Preserve);
    life.events.send(VmEvent::Failed("triple fault".into())).unwrap();
    let mut control = life.connect();
    assert_eq!(control.ask(&Request::Wait).unwrap(), Reply::Shutdown { reason: 3 });
    let refused = control.ask(&Request::Unpause).unwrap_err().to_string();
    assert!(refused.contains("has shut down already"), "{refused}");
    assert_eq!(life.status().shutdown, Some(3));
    control.ask(&Request::Destroy).unwrap();
    control.wait_gone().unwrap();
    assert!(matches!(life.end().0, Exit::Gone));
}

#[test]
fn a_core_is_written_of_the_living_and_of_the_dead() {
    let life = begin(|launch| launch.config.actions.crash = Action::Preserve);
    let path = life.root.path().join("core");
    life.connect().ask(&Request::DumpCore { path: path.clone() }).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"core");
    life.events.send(VmEvent::Shutdown(reason::CRASH)).unwrap();
    wait_for("the crash", || life.status().shutdown == Some(reason::CRASH));
    let nowhere = life.root.path().join("launch.json/core");
    let refused = life.connect().ask(&Request::DumpCore { path: nowhere.clone() }).unwrap_err().to_string();
    assert!(
        refused.contains("core dump failed: ") && refused.contains(nowhere.to_str().unwrap()),
        "{refused}"
    );
    life.connect().ask(&Request::DumpCore { path }).unwrap();
    life.connect().ask(&Request::Destroy).unwrap();
    assert!(matches!(life.end().0, Exit::Gone));
}

#[test]
fn a_reset_restarts_with_a_new_domid_and_the_same_console_log() {
    let life = begin(|launch| launch.paused = true);
    assert!(life.status().paused);
    life.page.guest_writes(b"before the reset");
    life.connect().ask(&Request::Reset).unwrap();
    let (exit, _root) = life.end();
    let Exit::Restart(next) = exit else { panic!("{exit:?}") };
    let after = launch_of(next.path());
    assert_eq!((next.domid, after.domid, after.paused), (2, 2, false));
    assert_eq!(after.config, launch(1).config);
    assert_eq!(std::fs::read(next.console_log()).unwrap(), b"before the reset");
    assert_eq!(supervise::quick_lives(&next), 1);
}

/// A kernel that has started another by kexec.
#[test]
fn a_soft_reset_lets_a_domain_go_on_and_where_there_can_be_none_it_restarts() {
    let life = begin(|_| {});
    wait_for("the first kernel", || !life.vm.paused());
    life.page.guest_writes(b"of the first kernel, ");
    let introduced = || life.store.client().is_introduced(1).unwrap();
    assert!(!introduced());
    life.events.send(VmEvent::Shutdown(reason::SOFT_RESET)).unwrap();
    wait_for("the second kernel", introduced);
    wait_for("the second kernel", || !life.vm.paused());
    assert_eq!(life.status().shutdown, None);
    life.page.guest_writes(b"of the second");
    let mut console = UnixStream::connect(life.dir.console()).unwrap();
    let mut all = [0; 34];
    console.read_exact(&mut all).unwrap();
    assert_eq!(all, *b"of the first kernel, of the second");

    *life.vm.reset.lock().unwrap() = Err("there is nothing to reset".into());
    life.events.send(VmEvent::Shutdown(reason::SOFT_RESET)).unwrap();
    assert!(matches!(life.end().0, Exit::Restart(_)));
    let other = begin(|launch| launch.config.actions.soft_reset = Action::Destroy);
    other.events.send(VmEvent::Shutdown(reason::SOFT_RESET)).unwrap();
    assert!(matches!(other.end().0, Exit::Gone));
}

#[test]
fn a_restart_that_waits_for_the_lock_can_still_be_asked_and_destroyed() {
    let life = begin(|_| {});
    let root = RunRoot::at(life.root.path().join("run")).unwrap();
    let lock = root.lock().unwrap();
    life.events.send(VmEvent::Shutdown(reason::REBOOT)).unwrap();
    wait_for("the shutdown", || life.status().shutdown == Some(reason::REBOOT));
    life.connect().ask(&Request::Destroy).unwrap();
    drop(lock);
    let (exit, _root) = life.end();
    assert!(matches!(exit, Exit::Gone));
    assert!(root.domains().unwrap().is_empty(), "the successor's directory is gone too");
}

#[test]
fn rename_restart_keeps_the_dead_beside_its_successor() {
    let life = begin(|launch| launch.config.actions.watchdog = Action::RenameRestart);
    life.events.send(VmEvent::Shutdown(reason::WATCHDOG)).unwrap();
    wait_for("the successor", || life.dir.path().with_file_name("2").join("xen-emu.log").exists());
    let (dead, next) = (launch_of(life.dir.path()), launch_of(&life.dir.path().with_file_name("2")));
    assert!(dead.config.name.starts_with("guest-2") && dead.config.name.ends_with('Z'));
    assert_eq!((next.config.name.as_str(), &next.config.uuid), ("guest", &launch(1).config.uuid));
    assert_ne!(dead.config.uuid, next.config.uuid);
    assert_eq!(life.status().name, dead.config.name);
    assert_eq!(life.store.get("/local/domain/1/vm"), Some(format!("/vm/{}", dead.config.uuid)));
    assert_eq!(life.store.get(&format!("/vm/{}/name", dead.config.uuid)), Some(dead.config.name));
    assert_eq!(life.store.get(&format!("/vm/{}", next.config.uuid)), None);
    life.signal(Signal::SIGTERM);
    assert!(matches!(life.end().0, Exit::Gone), "a dead domain hears no button");
}

#[test]
fn signals_press_the_button_or_ask_the_store_or_destroy() {
    let pressed = begin(|launch| launch.config.actions.poweroff = Action::Restart);
    pressed.signal(Signal::SIGTERM);
    pressed.status();
    pressed.events.send(VmEvent::Shutdown(0)).unwrap();
    assert!(matches!(pressed.end().0, Exit::Gone), "who asks a process to end wants no restart");

    let asked = begin(|launch| launch.config.acpi = false);
    asked.store.client().write("/local/domain/1/control/feature-poweroff", "1").unwrap();
    asked.signal(Signal::SIGINT);
    wait_for("the request", || {
        asked.store.get("/local/domain/1/control/shutdown").as_deref() == Some("poweroff")
    });
    asked.signal(Signal::SIGINT);
    assert!(matches!(asked.end().0, Exit::Gone));

    let deaf = begin(|launch| launch.config.acpi = false);
    deaf.signal(Signal::SIGTERM);
    assert!(matches!(deaf.end().0, Exit::Gone));
}

#[test]
fn whoever_ends_a_restarting_domain_ends_its_successor_too() {
    // Between the decision and the end of the loop.
    let (_stage, _events, mut reactor, next) = restarting();
    reactor.signal(Signal::SIGTERM);
    assert!(!next.path().exists());
    assert!(matches!(reactor.finish(Ok(())).unwrap(), Exit::Gone));

    // A request that comes with the clean-up.
    let (stage, _events, reactor, next) = restarting();
    let asker = UnixStream::connect(stage.dir.control()).unwrap();
    xen_emu_api::control::send(&asker, &Request::Destroy).unwrap();
    assert!(matches!(reactor.finish(Ok(())).unwrap(), Exit::Gone));
    assert!(!next.path().exists());
    let mut told = String::new();
    (&asker).read_to_string(&mut told).unwrap();
    assert_eq!(told, "{\"reply\":\"ok\"}\n");

    // A signal that comes with the clean-up.
    let (_stage, events, reactor, next) = restarting();
    pthread_kill(pthread_self(), Signal::SIGTERM).unwrap();
    assert!(matches!(reactor.finish(Ok(())).unwrap(), Exit::Gone));
    assert!(!next.path().exists());

    // A signal that comes still later waits for the successor, and nobody ends the restart by mere log rotation.
    let (_stage, again, reactor, next) = restarting();
    pthread_kill(pthread_self(), Signal::SIGHUP).unwrap();
    assert!(matches!(reactor.finish(Ok(())).unwrap(), Exit::Restart(_)));
    assert!(next.path().exists());
    drop((events, again));
    pthread_kill(pthread_self(), Signal::SIGINT).unwrap();
    let successor = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK).unwrap();
    let waits = successor.read_signal().unwrap().unwrap();
    assert_eq!(waits.ssi_signo, Signal::SIGINT as u32);
}

#[test]
fn a_successor_prepared_too_late_does_not_come() {
    let (_stage, _events, mut reactor, next) = restarting();
    reactor.end = Some(End::Destroy);
    let unwanted = next.clone();
    reactor.preparing = Some((Fate::Restart, std::thread::spawn(|| Ok(unwanted))));
    reactor.prepared();
    assert!(matches!(reactor.end, Some(End::Destroy)) && !next.path().exists());
}

#[test]
fn whoever_waits_hears_why_nothing_is_served() {
    let (stage, parts) = Stage::set(|_| {});
    std::fs::create_dir(stage.dir.control()).unwrap();
    let why = format!("{:#}", run(parts().unwrap()).unwrap_err());
    assert!(why.contains("control.sock: "), "{why}");
    assert_eq!(stage.ready(), why + "\n");
}
