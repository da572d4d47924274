//! Lives of devices against a store without rings: the guest's half and other tools are played by the tests.

use super::*;
use crate::backend::console::ring::fake::Page;
use crate::backend::device::{Connection, Disc, EventChannel, Fail, Nodes};
use crate::backend::kinds;
use crate::testing::{TestStore, launch};
use crate::xenbus_setup::{self, Facts};
use std::path::Path;
use std::time::Duration;
use xen_abi::Gref;
use xen_domain::gnttab::{GrantError, Pinned};
use xen_emu_api::control::DeviceStatus;
use xen_emu_api::device::{
    ChannelConfig, ChannelConnection, DiskCache, DiskConfig, DiskFormat, VifAttach, VifConfig,
};

/// No grants and no channels: for devices that use none.
struct Bare;

impl Grants for Bare {
    fn pin(&self, gref: Gref, _: bool) -> Result<Pinned, GrantError> {
        Err(GrantError::BadRef(gref.0))
    }
    fn unpin(&self, _: Gref, _: bool) {}
}

impl Channels for Bare {
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError> {
        Err(DeviceError(format!("event channel {port} is unknown")))
    }
}

/// A machine with nothing in it, and the real kinds of devices.
pub fn wiring(domid: u16) -> Wiring {
    let memory = Arc::new(Page::default());
    let open = Arc::new(move |config: &Device| kinds::open(config, kinds::Facts { domid, vcpus: 1 }));
    let connect = Arc::new(|| Client::connect("/nonexistent"));
    let grace = Duration::from_millis(2);
    Wiring { domid, memory, grants: Arc::new(Bare), channels: Arc::new(Bare), open, connect, grace }
}

/// Channels of a guest that has these ports.
struct Ports(Arc<World>);

impl Channels for Ports {
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError> {
        Bare.bind(port)
    }
    fn is_open(&self, port: u32) -> bool {
        self.0.ports.lock().unwrap().contains(&port)
    }
}

/// What the fake devices of a test have in common.
#[derive(Default)]
struct World {
    /// What was done to them, in order.
    log: Mutex<Vec<String>>,
    /// The guest's ports.
    ports: Mutex<Vec<u32>>,
    /// Opening /slow waits for this, and so does ending what a disk with that image has under way.
    gate: Mutex<()>,
    /// Connecting to the store anew waits for this.
    away: Mutex<()>,
    /// The next connect fails so.
    refuse: Mutex<Option<String>>,
    /// How the connected one reports a failure.
    fail: Mutex<Option<Fail>>,
}

impl World {
    fn note(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
    }
}

struct Fake {
    world: Arc<World>,
    slow: bool,
    ring: Option<u32>,
}

impl Fake {
    fn wait(&self) {
        if self.slow {
            drop(self.world.gate.lock().unwrap());
        }
    }
}

impl device::Device for Fake {
    fn advertise(&self) -> Nodes {
        vec![("feature-persistent".into(), "1".into())]
    }
    fn tells(&self) -> Nodes {
        vec![("told".into(), "yes".into())]
    }
    fn connect(&mut self, connection: Connection) -> Result<Nodes, DeviceError> {
        if let Some(why) = self.world.refuse.lock().unwrap().take() {
            return Err(DeviceError(why));
        }
        let (ring, depth) =
            (connection.front.need("ring-ref")?, connection.front.get::<u32>("queue-0/depth")?);
        self.world.note(format!("connect {ring} {}", depth.unwrap_or(0)));
        *self.world.fail.lock().unwrap() = Some(connection.fail);
        self.ring = Some(ring);
        Ok(vec![("sectors".into(), "2048".into())])
    }
    fn listens(&self) -> &'static [&'static str] {
        &["wish"]
    }
    fn heard(&mut self, path: &str, value: &str) {
        // A new watch fires once.
        if !value.is_empty() {
            self.world.note(format!("{path} {value}"));
        }
    }
    fn abandon(&mut self) {
        self.wait();
        self.world.note("abandon");
    }
    fn finish(&mut self) {
        self.wait();
        self.world.note("finish");
    }
    fn disconnect(&mut self) {
        if self.ring.take().is_some() {
            self.world.note("disconnect");
        }
    }
    fn rings(&self) -> Vec<u32> {
        self.ring.into_iter().collect()
    }
    fn resize(&mut self, bytes: Option<u64>) -> Result<Nodes, DeviceError> {
        Ok(vec![("sectors".into(), (bytes.unwrap_or(1 << 20) / 512).to_string())])
    }
    fn insert(&mut self, disc: Option<&Disc>) -> Result<Nodes, DeviceError> {
        match disc {
            Some(disc) if disc.target == Path::new("/bad") => Err(DeviceError("no such disc".into())),
            Some(disc) if disc.target == Path::new("/late") => {
                let fail = self.world.fail.lock().unwrap().clone().unwrap();
                fail(DeviceError("the old disc does not answer".into()));
                Ok(vec![("sectors".into(), "9".into())])
            }
            _ => Ok(vec![("sectors".into(), if disc.is_some() { "7" } else { "0" }.into())]),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.world.note("drop");
    }
}

fn disk() -> Device {
    Device::Disk(DiskConfig {
        vdev: "xvda".into(),
        devid: 51712,
        target: Some("/images/a.img".into()),
        format: DiskFormat::Raw,
        writable: true,
        cdrom: false,
        removable: false,
        discard: true,
        cache: DiskCache::None,
        sector_size: None,
        persistent: true,
        force: false,
        script: None,
        backendtype: None,
        trusted: true,
    })
}

const FRONT: &str = "/local/domain/7/device/vbd/51712";
const BACK: &str = "/local/domain/0/backend/vbd/7/51712";

/// A domain 7 with a bus, and what plays the guest and other tools.
struct Stage {
    world: Arc<World>,
    store: TestStore,
    client: Client,
    bus: Bus,
    _dir: tempfile::TempDir,
}

fn stage() -> Stage {
    patient(wiring(7).grace)
}

/// With another [`Wiring::grace`].
fn patient(grace: Duration) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let store = TestStore::start(dir.path());
    let mut client = store.client();
    let facts =
        Facts { console_gfn: 1, console_port: 2, store_gfn: 3, store_port: 1, tty: None, start_time: 1.0 };
    xenbus_setup::setup(&mut client, &launch(7), &facts).unwrap();
    let world = Arc::new(World::default());
    let made = world.clone();
    let open = move |config: &Device| match config {
        Device::Disk(disk) if disk.target == Some("/missing".into()) => {
            Err(DeviceError("/missing: No such file or directory".into()))
        }
        Device::Disk(disk) => {
            let slow = disk.target == Some("/slow".into());
            let fake = Fake { world: made.clone(), slow, ring: None };
            fake.wait();
            made.note("open");
            Ok(Box::new(fake) as Box<dyn device::Device>)
        }
        other => kinds::open(other, kinds::Facts { domid: 7, vcpus: 1 }),
    };
    let (path, there) = (store.path.clone(), world.clone());
    let connect = Arc::new(move || {
        drop(there.away.lock().unwrap());
        Client::connect(&path)
    });
    let channels = Arc::new(Ports(world.clone()));
    let wiring = Wiring { open: Arc::new(open), connect, channels, grace, ..wiring(7) };
    let bus = Bus::start(store.client(), wiring).unwrap();
    Stage { world, store, client, bus, _dir: dir }
}

impl Stage {
    fn write(&mut self, path: &str, value: &str) {
        self.client.write(path, value).unwrap();
    }

    fn read(&mut self, path: &str) -> Option<String> {
        self.client.read_opt(path).unwrap()
    }

    /// Until a node of ours reads so; a test that hangs has failed.
    fn becomes(&mut self, node: &str, value: &str) {
        let path = format!("{BACK}/{node}");
        for _ in 0..10_000 {
            if self.read(&path).as_deref() == Some(value) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{node} never became {value}, it is {:?}", self.read(&path));
    }

    /// What a frontend does: its state, and then ours.
    fn front(&mut self, state: u32, back: u32) {
        self.write(&format!("{FRONT}/state"), &state.to_string());
        self.becomes("state", &back.to_string());
    }

    fn connect(&mut self) {
        for (node, value) in [("ring-ref", "8"), ("event-channel", "14"), ("queue-0/depth", "32")] {
            self.write(&format!("{FRONT}/{node}"), value);
        }
        self.front(3, 4);
        self.front(4, 4);
        // The bus has seen it too.
        while self.devices().iter().any(|one| one.device.kind() == "vbd" && one.state != 4) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn asked(&self, request: Request) -> mpsc::Receiver<Reply> {
        let (told, answer) = mpsc::channel();
        self.bus.ask(request, Box::new(move |reply| drop(told.send(reply))));
        answer
    }

    fn ask(&self, request: Request) -> Reply {
        self.asked(request).recv().unwrap()
    }

    fn refused(&self, request: Request) -> String {
        match self.ask(request) {
            Reply::Error { message } => message,
            other => panic!("{other:?}"),
        }
    }

    fn detach(&self, force: bool) -> Request {
        Request::Detach { kind: "vbd".into(), devid: 51712, force }
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        match self.ask(Request::Devices) {
            Reply::Devices { devices } => devices,
            other => panic!("{other:?}"),
        }
    }

    fn becomes_logged(&self, what: &str) {
        while self.log() != what {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn log(&self) -> String {
        std::mem::take(&mut *self.world.log.lock().unwrap()).join(", ")
    }
}

#[test]
fn a_device_has_the_nodes_that_libxl_gives_it() {
    let stage = stage();
    let before = stage.store.listing();
    stage.bus.attach(&disk()).unwrap();
    let listing = stage.store.listing();
    let new: Vec<&str> = listing.iter().filter(|line| !before.contains(line)).map(String::as_str).collect();
    assert_eq!(new, include_str!("tests_golden.txt").lines().collect::<Vec<_>>());
}

#[test]
fn a_vif_names_its_script_and_an_untrusted_disk_says_so() {
    let mut stage = stage();
    let vif = Device::Vif(VifConfig {
        attach: VifAttach::Bridge { bridge: "xenbr0".into(), create: false },
        ..crate::backend::net::tests::config()
    });
    let Device::Vif(plain) = &vif else { panic!() };
    let own = VifConfig { devid: 1, script: Some("vif-lab".into()), vlan: Some("5".into()), ..plain.clone() };
    let user = VifConfig {
        devid: 2,
        attach: VifAttach::User { forwards: Vec::new(), map_gw: false },
        ..plain.clone()
    };
    for config in [&vif, &Device::Vif(own), &Device::Vif(user)] {
        let made = super::nodes::made(&super::nodes::Place::of(7, config), config, &super::entry::Nothing);
        stage.client.run(&made).unwrap();
    }
    let mut back = |devid, name: &str| stage.read(&format!("/local/domain/0/backend/vif/7/{devid}/{name}"));
    assert_eq!(back(0, "script").as_deref(), Some("/etc/xen/scripts/vif-bridge"));
    assert_eq!(back(1, "script").as_deref(), Some("/etc/xen/scripts/vif-lab"));
    assert_eq!((back(1, "vlan").as_deref(), back(2, "script")), (Some("5"), None));
    let Device::Disk(usual) = disk() else { panic!() };
    let disk = DiskConfig { trusted: false, format: DiskFormat::Qcow2, ..usual };
    stage.bus.attach(&Device::Disk(disk)).unwrap();
    assert_eq!(stage.read(&format!("{FRONT}/trusted")).as_deref(), Some("0"));
    assert!(stage.read(&format!("{BACK}/script")).is_none());
}

#[test]
fn a_device_connects_closes_connects_again_survives_a_kexec_and_is_detached() {
    let mut stage = stage();
    let before = stage.store.listing();
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    assert_eq!(stage.read(&format!("{BACK}/sectors")).as_deref(), Some("2048"));
    let shown = stage.devices();
    assert_eq!((shown[0].state, shown[0].port, shown[0].rings.as_slice()), (4, Some(14), &[8][..]));
    assert_eq!((stage.bus.configs(), &shown[0].device), (vec![disk()], &disk()));

    // The module is unloaded and loaded again.
    stage.front(5, 5);
    assert_eq!(stage.log(), "open, connect 8 32", "still at work for what the guest has open");
    stage.front(6, 6);
    assert_eq!(stage.log(), "finish, disconnect");
    stage.front(1, 2);
    stage.connect();

    // Another kernel begins, and then a third without a word.
    stage.front(1, 2);
    stage.connect();
    stage.write(&format!("{FRONT}/ring-ref"), "9");
    stage.write(&format!("{FRONT}/state"), "3");
    stage.becomes("state", "4");
    while stage.devices()[0].rings != [9] {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stage.log(), "connect 8 32, disconnect, connect 8 32, disconnect, connect 9 32");

    // The frontend wishes for something.
    stage.write(&format!("{FRONT}/wish"), "1");
    stage.becomes_logged("wish 1");

    // A larger disk, another disc.
    stage.ask(Request::Resize { devid: 51712, bytes: Some(1 << 21) });
    stage.becomes("sectors", "4096");
    let insert = |target: &str| Request::Media {
        devid: 51712,
        target: Some(target.into()),
        format: DiskFormat::Qcow2,
    };
    assert_eq!(stage.refused(insert("/bad")), "disk xvda: no such disc");
    assert_eq!(stage.bus.configs(), [disk()]);
    assert_eq!(stage.ask(insert("/other")), Reply::Ok);
    assert_eq!(stage.read(&format!("{BACK}/params")).as_deref(), Some("qcow2:/other"));
    assert_eq!(stage.read(&format!("{BACK}/state")).as_deref(), Some("4"));
    assert!(matches!(&stage.bus.configs()[0], Device::Disk(disk) if disk.format == DiskFormat::Qcow2));

    // The disc is changed, but the drive cannot go on until the guest connects to it again.
    assert_eq!(stage.refused(insert("/late")), "the old disc does not answer");
    stage.becomes("params", "qcow2:/late");
    stage.becomes("error", "the old disc does not answer");
    stage.becomes("state", "5");
    stage.becomes_logged("disconnect");
    stage.front(6, 6);
    stage.front(1, 2);
    stage.connect();
    stage.becomes_logged("connect 8 32");

    let gone = stage.asked(stage.detach(false));
    stage.becomes("online", "0");
    stage.becomes("state", "5");
    assert!(stage.bus.attach(&disk()).unwrap_err().contains("still being detached"));
    stage.front(5, 5);
    assert!(gone.try_recv().is_err());
    stage.write(&format!("{FRONT}/state"), "6");
    assert_eq!(gone.recv().unwrap(), Reply::Ok);
    assert_eq!(stage.log(), "finish, disconnect, drop");
    assert_eq!(stage.store.listing(), before);
    assert!(stage.devices().is_empty() && stage.bus.configs().is_empty());
}

#[test]
fn who_cannot_connect_or_go_on_closes_with_a_reason_and_may_try_again() {
    let mut stage = stage();
    stage.bus.attach(&disk()).unwrap();
    *stage.world.refuse.lock().unwrap() = Some("ring-ref makes no sense".into());
    stage.write(&format!("{FRONT}/ring-ref"), "8");
    stage.front(3, 5);
    stage.becomes("error", "ring-ref makes no sense");
    stage.front(6, 6);
    stage.front(1, 2);
    stage.connect();
    assert_eq!(stage.read(&format!("{BACK}/error")), None);

    let fail = stage.world.fail.lock().unwrap().clone().unwrap();
    fail(DeviceError("the ring is broken".into()));
    stage.becomes("error", "the ring is broken");
    stage.becomes("state", "5");
    stage.front(5, 5);
    stage.front(6, 6);
    stage.front(1, 2);
    stage.connect();
    // An earlier connection's failure is not this one's.
    fail(DeviceError("late".into()));
    stage.devices();
    assert_eq!(stage.read(&format!("{BACK}/state")).as_deref(), Some("4"));
    assert_eq!(stage.log(), "open, connect 8 32, disconnect, connect 8 32");
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let stage = stage();
    let before = stage.store.listing();
    let with = |target: String| match disk() {
        Device::Disk(disk) => Device::Disk(DiskConfig { target: Some(target.into()), ..disk }),
        other => other,
    };
    let missing = stage.bus.attach(&with("/missing".into())).unwrap_err();
    assert_eq!(missing, "disk xvda: /missing: No such file or directory");
    let long = stage.bus.attach(&with(format!("/{}", "x".repeat(5000)))).unwrap_err();
    assert!(long.starts_with("disk xvda: store: "), "{long}");
    assert_eq!(stage.log(), "open, drop");
    assert_eq!(stage.store.listing(), before);
    assert!(stage.bus.configs().is_empty());

    stage.bus.attach(&disk()).unwrap();
    assert_eq!(stage.bus.attach(&disk()).unwrap_err(), "disk xvda exists already");
    let unknown = Request::Detach { kind: "vif".into(), devid: 0, force: true };
    assert_eq!(stage.refused(unknown), "the domain has no vif 0");
    // Nobody has it open: nobody is waited for.
    assert_eq!(stage.ask(stage.detach(false)), Reply::Ok);
    assert_eq!(stage.store.listing(), before);
    let channel = ChannelConfig {
        devid: 1,
        name: "agent".into(),
        connection: ChannelConnection::Socket { path: "/nonexistent/agent".into() },
    };
    let refused = stage.bus.attach(&Device::Channel(channel)).unwrap_err();
    assert!(refused.contains("/nonexistent/agent: No such file"), "{refused}");
    assert_eq!(stage.store.listing(), before);
}

/// One that hangs is the only one that does.
#[test]
fn an_image_that_takes_its_time_holds_up_nobody() {
    let mut stage = stage();
    let before = stage.store.listing();
    let Device::Disk(usual) = disk() else { panic!() };
    let slow = DiskConfig { vdev: "xvdb".into(), devid: 51728, target: Some("/slow".into()), ..usual };
    let world = stage.world.clone();
    let shut = world.gate.lock().unwrap();
    let opened = stage.asked(Request::Attach { device: Device::Disk(slow.clone()) });
    let again = stage.bus.attach(&Device::Disk(slow.clone())).unwrap_err();
    assert_eq!(again, "disk xvdb is being attached already");
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    assert!(opened.try_recv().is_err());
    assert_eq!(stage.devices().len(), 1);
    drop(shut);
    assert_eq!(opened.recv().unwrap(), Reply::Ok);
    assert_eq!(stage.devices().len(), 2);
    assert_eq!(stage.ask(stage.detach(true)), Reply::Ok);
    stage.write(&format!("{FRONT}/state"), "6");
    let rest = Request::Detach { kind: "vbd".into(), devid: 51728, force: false };
    assert_eq!(stage.ask(rest), Reply::Ok);
    while stage.read(BACK).is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stage.store.listing(), before);
    // The domain ends, and the image is still not there.
    let shut = world.gate.lock().unwrap();
    let opened = stage.asked(Request::Attach { device: Device::Disk(slow) });
    stage.devices();
    stage.bus.close();
    assert!(matches!(opened.recv().unwrap(), Reply::Error { .. }));
    drop(shut);
}

#[test]
fn an_image_that_answers_no_more_holds_up_nobody() {
    let mut stage = stage();
    let before = stage.store.listing();
    let Device::Disk(usual) = disk() else { panic!() };
    let slow = Device::Disk(DiskConfig { target: Some("/slow".into()), ..usual.clone() });
    let other = Device::Disk(DiskConfig { vdev: "xvdb".into(), devid: 51728, ..usual });
    for force in [false, true] {
        stage.bus.attach(&slow).unwrap();
        stage.connect();
        let world = stage.world.clone();
        let shut = world.gate.lock().unwrap();
        let gone = stage.asked(stage.detach(force));
        if !force {
            stage.becomes("state", "5");
            stage.write(&format!("{FRONT}/state"), "6");
            std::thread::sleep(Duration::from_millis(150));
        }
        // It is waited for, and it alone.
        stage.bus.attach(&other).unwrap();
        let rest = Request::Detach { kind: "vbd".into(), devid: 51728, force };
        assert_eq!(stage.ask(rest), Reply::Ok);
        let shown = stage.devices();
        assert_eq!((shown.len(), &shown[0].device, gone.try_recv().is_err()), (1, &slow, true));
        let busy = stage.refused(Request::Resize { devid: 51712, bytes: None });
        assert_eq!(busy, "disk xvda is busy: its image does not answer yet");
        // What happens meanwhile waits for it, as far as it counts.
        (0..200).for_each(|n| stage.write(&format!("{FRONT}/state"), if n % 2 == 0 { "5" } else { "4" }));
        stage.write(&format!("{FRONT}/state"), "6");
        drop(shut);
        assert_eq!(gone.recv().unwrap(), Reply::Ok);
        while stage.read(BACK).is_some() || !stage.devices().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(stage.store.listing(), before);
    }
    let one = "open, connect 8 32, open, drop";
    assert_eq!(
        stage.log(),
        format!("{one}, finish, disconnect, drop, {one}, abandon, finish, disconnect, drop")
    );

    // With the domain.
    stage.bus.attach(&slow).unwrap();
    stage.connect();
    let world = stage.world.clone();
    let shut = world.gate.lock().unwrap();
    let gone = stage.asked(stage.detach(true));
    stage.devices();
    let closing = std::thread::spawn(move || {
        let mut stage = stage;
        stage.bus.close();
        stage.log()
    });
    assert!(matches!(gone.recv().unwrap(), Reply::Error { .. }));
    drop(shut);
    assert_eq!(closing.join().unwrap(), "open, connect 8 32, abandon, disconnect, drop");
}

/// Or it would take the new device for the old one.
#[test]
fn a_device_comes_again_when_the_guest_has_noticed_that_it_was_gone() {
    let mut stage = stage();
    stage.bus.attach(&disk()).unwrap();
    *stage.world.ports.lock().unwrap() = vec![13, 14];
    stage.connect();
    let gone = stage.asked(stage.detach(false));
    stage.becomes("state", "5");
    stage.write(&format!("{FRONT}/state"), "6");
    assert_eq!(gone.recv().unwrap(), Reply::Ok);
    let again = stage.asked(Request::Attach { device: disk() });
    assert!(again.recv_timeout(Duration::from_millis(100)).is_err());
    assert_eq!(stage.read(BACK), None);
    assert!(stage.bus.attach(&disk()).unwrap_err().contains("still being detached"), "one waits at most");
    stage.world.ports.lock().unwrap().pop();
    assert_eq!(again.recv().unwrap(), Reply::Ok);
    stage.becomes("state", "2");
}

/// As Linux's disk does when its module is unloaded: nothing shows whether it has seen the device go.
#[test]
fn a_guest_that_had_closed_a_device_is_given_time_before_it_comes_again() {
    let grace = Duration::from_millis(300);
    let mut stage = patient(grace);
    stage.bus.attach(&disk()).unwrap();
    *stage.world.ports.lock().unwrap() = vec![14];
    stage.connect();
    stage.world.ports.lock().unwrap().clear();
    stage.front(6, 6);
    // Another device's now.
    stage.world.ports.lock().unwrap().push(14);
    assert_eq!(stage.ask(stage.detach(false)), Reply::Ok);
    let begun = std::time::Instant::now();
    stage.bus.attach(&disk()).unwrap();
    assert!(begun.elapsed() >= grace / 2, "it came at once");
    stage.becomes("state", "2");
}

/// Linux looks for a driver, and it writes, while the state is still Initialising.
#[test]
fn a_guest_that_may_just_have_begun_with_a_device_is_given_time_before_it_comes_again() {
    let grace = Duration::from_millis(300);
    let stage = patient(grace);
    stage.bus.attach(&disk()).unwrap();
    assert_eq!(stage.ask(stage.detach(false)), Reply::Ok);
    let begun = std::time::Instant::now();
    stage.bus.attach(&disk()).unwrap();
    assert!(begun.elapsed() >= grace / 2, "it came at once");
}

/// Its kernel is another one after a soft reset.
#[test]
fn a_guest_that_begins_anew_is_offered_its_devices() {
    let mut stage = stage();
    let before = stage.store.listing();
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    stage.bus.halt().unwrap();
    assert_eq!(stage.log(), "open, connect 8 32, disconnect");
    // What the old kernel has written last connects nothing.
    stage.write(&format!("{FRONT}/state"), "3");
    stage.devices();
    stage.bus.offer().unwrap();
    stage.becomes("state", "2");
    assert_eq!(stage.read(&format!("{FRONT}/state")).as_deref(), Some("1"));
    assert_eq!(stage.read(&format!("{FRONT}/ring-ref")), None);
    stage.connect();
    assert_eq!(stage.log(), "connect 8 32");
    // One that was about to go goes.
    let gone = stage.asked(stage.detach(false));
    stage.becomes("state", "5");
    stage.bus.halt().unwrap();
    stage.bus.offer().unwrap();
    assert_eq!(gone.recv().unwrap(), Reply::Ok);
    assert!(stage.devices().is_empty());
    assert_eq!(stage.store.listing(), before);
}

#[test]
fn a_store_that_comes_back_finds_the_devices_as_they_are() {
    let mut stage = stage();
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    let before = stage.store.listing();
    // It has kept everything.
    stage.store.hang_up();
    stage.client = stage.store.client();
    stage.write(&format!("{FRONT}/state"), "5");
    stage.becomes("state", "5");
    stage.write(&format!("{FRONT}/state"), "6");
    stage.becomes("state", "6");
    stage.front(1, 2);
    stage.connect();
    // It has lost the device's nodes; the device does not go with them.
    let world = stage.world.clone();
    let away = world.away.lock().unwrap();
    stage.store.hang_up();
    stage.client = stage.store.client();
    for path in [FRONT, BACK, "/libxl/7/device/vbd/51712"] {
        stage.client.rm(path).unwrap();
    }
    drop(away);
    stage.becomes("state", "4");
    assert_eq!(stage.store.listing(), before);
    assert_eq!(stage.log(), "open, connect 8 32, finish, disconnect, connect 8 32");
    // What changes while it is away it hears later.
    stage.store.hang_up();
    stage.client = stage.store.client();
    assert_eq!(stage.ask(Request::Resize { devid: 51712, bytes: Some(1 << 21) }), Reply::Ok);
    stage.becomes("sectors", "4096");
    stage.front(5, 5);
}

#[test]
fn a_device_that_went_while_the_store_was_away_is_not_left_in_it() {
    let mut stage = stage();
    let before = stage.store.listing();
    stage.bus.attach(&disk()).unwrap();
    stage.store.hang_up();
    stage.client = stage.store.client();
    assert_eq!(stage.ask(stage.detach(true)), Reply::Ok);
    while stage.read(BACK).is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stage.store.listing(), before);
}

/// The script finds the backend's nodes; what it makes is opened, and undone when the device has gone.
#[test]
fn a_script_makes_the_block_device_of_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (said, image, script) =
        (dir.path().join("said"), dir.path().join("image"), dir.path().join("block-x"));
    std::fs::write(&image, [0; 4096]).unwrap();
    let text = format!(
        "#!/bin/sh\necho $1 $XENBUS_TYPE $XENBUS_PATH >>{}\ntest ! -e {}/refuse\n",
        said.display(),
        dir.path().display()
    );
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let mut stage = stage();
    let before = stage.store.listing();
    let with = |script: &Path| match disk() {
        Device::Disk(disk) => {
            let script = Some(script.display().to_string());
            Device::Disk(DiskConfig { script, target: Some("resource".into()), ..disk })
        }
        other => other,
    };
    let refused = stage.bus.attach(&with(Path::new("/nonexistent/block-x"))).unwrap_err();
    assert!(refused.starts_with("disk xvda: hotplug script /nonexistent/block-x add: No such"), "{refused}");
    let refused = stage.bus.attach(&with(&script)).unwrap_err();
    assert!(refused.ends_with("block-x add: it has written no physical-device"), "{refused}");
    assert_eq!(stage.store.listing(), before);
    let all = |what: &str| format!("{what} vbd backend/vbd/7/51712\n");
    assert_eq!(std::fs::read_to_string(&said).unwrap(), all("add") + &all("remove"));

    // This one writes what it has made, as the test does for it.
    let waits =
        format!("#!/bin/sh\necho $1 >>{0}\nuntil [ -e {0}.go ]; do sleep 0.01; done\n", said.display());
    std::fs::write(&script, waits).unwrap();
    let attached = stage.asked(Request::Attach { device: with(&script) });
    stage.becomes("params", "resource");
    stage.becomes("script", &script.display().to_string());
    assert!(stage.read(FRONT).is_none(), "nothing for the guest yet");
    stage.write(&format!("{BACK}/physical-device-path"), &image.display().to_string());
    std::fs::write(dir.path().join("said.go"), "").unwrap();
    assert_eq!(attached.recv().unwrap(), Reply::Ok);
    stage.becomes("state", "2");
    stage.becomes("physical-device-path", &image.display().to_string());
    assert_eq!(stage.log(), "open");
    assert!(matches!(&stage.bus.configs()[0], Device::Disk(disk) if disk.script.is_some()));
    assert_eq!(stage.ask(stage.detach(false)), Reply::Ok);
    assert_eq!(stage.log(), "drop");
    assert_eq!(stage.store.listing(), before);
    let ran = std::fs::read_to_string(&said).unwrap();
    assert!(ran.ends_with("add\nremove\n"), "{ran}");

    // Who reads the disk before there are devices has it made for that alone.
    std::fs::remove_file(dir.path().join("said.go")).unwrap();
    let Device::Disk(scripted) = with(&script) else { panic!() };
    let (mut store, seen) = (stage.store.client(), image.clone());
    let reader = std::thread::spawn(move || {
        with_script(&mut store, 7, &scripted, |disk| {
            assert_eq!((disk.target.as_ref(), disk.format), (Some(&seen), DiskFormat::Raw));
        })
    });
    stage.becomes("params", "resource");
    assert!(stage.read(FRONT).is_none(), "nothing for the guest");
    stage.write(&format!("{BACK}/physical-device-path"), &image.display().to_string());
    std::fs::write(dir.path().join("said.go"), "").unwrap();
    reader.join().unwrap().unwrap();
    assert_eq!(stage.store.listing(), before);
    let ran = std::fs::read_to_string(&said).unwrap();
    assert!(ran.ends_with("add\nremove\nadd\nremove\n"), "{ran}");
}

#[test]
fn by_force_a_device_goes_at_once_and_other_tools_may_take_it_away() {
    let mut stage = stage();
    let before = stage.store.listing();
    let gone = |stage: &mut Stage| {
        while !stage.devices().is_empty() || stage.read(&format!("{FRONT}/state")).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(stage.store.listing(), before);
    };
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    let waiting = stage.asked(stage.detach(false));
    assert_eq!(stage.ask(stage.detach(true)), Reply::Ok);
    assert_eq!(waiting.recv().unwrap(), Reply::Ok, "who has waited hears of it");
    assert!(stage.devices().is_empty() && stage.bus.configs().is_empty(), "gone for the toolstack");
    assert_eq!(stage.log(), "open, connect 8 32, abandon");
    // What is to come in its place waits until the guest has noticed.
    let next = stage.asked(Request::Attach { device: disk() });
    stage.becomes("state", "5");
    assert!(next.try_recv().is_err());
    stage.write(&format!("{FRONT}/state"), "6");
    assert_eq!(next.recv().unwrap(), Reply::Ok);
    assert_eq!(stage.log(), "finish, disconnect, drop, open");
    assert_eq!(stage.ask(stage.detach(true)), Reply::Ok);
    gone(&mut stage);

    // As libxl does it.
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    stage.write(&format!("{BACK}/online"), "0");
    stage.write(&format!("{BACK}/state"), "5");
    stage.front(5, 5);
    stage.write(&format!("{FRONT}/state"), "6");
    gone(&mut stage);

    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    stage.client.rm(BACK).unwrap();
    gone(&mut stage);

    // With the domain.
    stage.bus.attach(&disk()).unwrap();
    stage.connect();
    stage.log();
    let waiting = stage.asked(stage.detach(false));
    stage.bus.close();
    stage.bus.close();
    assert!(matches!(waiting.recv().unwrap(), Reply::Error { .. }));
    assert_eq!(stage.log(), "disconnect, drop");
    assert_eq!((stage.bus.configs(), stage.devices()), (vec![disk()], Vec::new()));
    assert_eq!(stage.refused(stage.detach(true)), "the domain has no devices any more");
}

/// In a process of its own, where no other test opens files.
#[test]
fn two_hundred_cycles_leave_descriptors_and_nodes_as_before() {
    const NAME: &str = "backend::bus::tests::two_hundred_cycles_leave_descriptors_and_nodes_as_before";
    if std::env::var_os("XLR_TEST_ALONE").is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let status = child.args(["--exact", NAME]).env("XLR_TEST_ALONE", "1").status().unwrap();
        assert!(status.success());
        return;
    }
    let mut stage = stage();
    let channel = Device::Channel(ChannelConfig {
        devid: 1,
        name: "agent".into(),
        connection: ChannelConnection::Socket { path: stage.store.path.with_file_name("agent.sock") },
    });
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (nodes, descriptors) = (stage.store.listing(), open());
    for cycle in 0..200 {
        stage.bus.attach(&disk()).unwrap();
        stage.bus.attach(&channel).unwrap();
        stage.connect();
        let force = cycle % 2 == 0;
        let gone = stage.asked(stage.detach(force));
        stage.becomes("state", "5");
        stage.write(&format!("{FRONT}/state"), "6");
        assert_eq!(gone.recv().unwrap(), Reply::Ok);
        stage.ask(Request::Detach { kind: "console".into(), devid: 1, force });
    }
    assert_eq!(stage.store.listing(), nodes);
    for _ in 0..10_000 {
        if open() <= descriptors {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} descriptors, {descriptors} before", open());
}
