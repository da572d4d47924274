//! A domain without a machine: it holds its lock, serves its sockets, and obeys.

use super::FakeStore;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use xen_emu_api::config::Launch;
use xen_emu_api::control::{self, DeviceStatus, Reply, Request, Status, VcpuStatus};
use xen_emu_api::device::{ChannelConnection, Device};
use xen_emu_api::run_dir::RunDir;

struct State {
    status: Status,
    lock: Option<File>,
    /// Connections, to be closed at the end.
    clients: Vec<UnixStream>,
    /// Who asked to be told of the shutdown.
    waiting: Vec<UnixStream>,
    consoles: Vec<UnixStream>,
    devices: Vec<DeviceStatus>,
    /// What was asked, in order.
    log: Vec<Request>,
    button: bool,
    /// The directory of the domain that it restarts as when somebody wants to destroy it.
    next: Option<RunDir>,
    gone: bool,
}

/// Lives in threads of the test.
#[derive(Clone)]
pub struct FakeDomain {
    pub dir: RunDir,
    launch: Arc<Launch>,
    store: FakeStore,
    state: Arc<Mutex<State>>,
}

impl FakeDomain {
    pub fn start(dir: RunDir, store: FakeStore) -> Self {
        let launch: Launch = serde_json::from_slice(&fs::read(dir.launch()).unwrap()).unwrap();
        let state = State {
            status: status(&launch),
            lock: Some(dir.try_hold().unwrap().expect("nobody else has it")),
            clients: Vec::new(),
            waiting: Vec::new(),
            consoles: Vec::new(),
            devices: launch.config.devices.iter().cloned().map(connected).collect(),
            log: Vec::new(),
            button: false,
            next: None,
            gone: false,
        };
        let domain = FakeDomain { dir, launch: Arc::new(launch), store, state: Arc::new(Mutex::new(state)) };
        domain.write_nodes();
        domain.listen(domain.dir.console(), FakeDomain::serve_console);
        domain.listen(domain.dir.control(), FakeDomain::serve_control);
        domain
    }

    fn write_nodes(&self) {
        let (domid, uuid) = (self.dir.domid, &self.launch.config.uuid);
        let home = format!("/local/domain/{domid}");
        for (path, value) in [
            (format!("{home}/name"), self.launch.config.name.as_str()),
            (format!("{home}/vm"), &format!("/vm/{uuid}")),
            (format!("{home}/control/shutdown"), ""),
            (format!("{home}/control/feature-poweroff"), ""),
            (format!("/vm/{uuid}/name"), &self.launch.config.name),
            (format!("/libxl/{domid}/type"), "pvh"),
            (format!("/local/domain/0/backend/console/{domid}/0/state"), "1"),
        ] {
            self.store.set(&path, value);
        }
    }

    /// A kernel that listens to control/shutdown: takes the request and powers off, once somebody waits for that.
    pub fn listen_to_the_store(&self) {
        let node = format!("/local/domain/{}/control/shutdown", self.dir.domid);
        self.store.set(&format!("/local/domain/{}/control/feature-poweroff", self.dir.domid), "1");
        let domain = self.clone();
        thread::spawn(move || {
            super::wait_until(|| domain.store.get(&node).as_deref() == Some("poweroff"));
            domain.store.set(&node, "");
            super::wait_until(|| domain.requests().contains(&Request::Wait));
            domain.shut_down(0);
            domain.vanish();
        });
    }

    /// Is about to restart: who would destroy it finds that it is gone, and has not been told.
    pub fn restart_when_destroyed_as(&self, next: RunDir) {
        let launch = Launch { domid: next.domid, ..(*self.launch).clone() };
        fs::write(next.launch(), serde_json::to_vec(&launch).unwrap()).unwrap();
        self.state.lock().unwrap().next = Some(next);
    }

    /// A guest whose init hears the button.
    pub fn hear_the_button(&self) {
        self.state.lock().unwrap().button = true;
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// Output of the guest.
    pub fn print(&self, text: &str) {
        super::wait_until(|| !self.state.lock().unwrap().consoles.is_empty());
        for console in &self.state.lock().unwrap().consoles {
            (&mut &*console).write_all(text.as_bytes()).unwrap();
        }
    }

    pub fn shut_down(&self, reason: u32) {
        let mut state = self.state.lock().unwrap();
        state.status.shutdown = Some(reason);
        for waiting in state.waiting.drain(..) {
            // Who has stopped waiting is no error.
            let _ = control::send(&waiting, &Reply::Shutdown { reason });
        }
    }

    /// Clean up and end, as a domain's process does.
    pub fn vanish(&self) {
        let (domid, uuid) = (self.dir.domid, &self.launch.config.uuid);
        for path in [
            format!("/local/domain/{domid}"),
            format!("/local/domain/0/backend/console/{domid}"),
            format!("/libxl/{domid}"),
            format!("/vm/{uuid}"),
        ] {
            self.store.remove(&path);
        }
        self.close_sockets();
        self.dir.remove().unwrap();
        self.let_go();
    }

    /// The process is killed: nothing is cleaned up.
    pub fn end(&self) {
        self.close_sockets();
        self.let_go();
        // A child that another thread is just starting has the lock until it executes.
        super::wait_until(|| !self.dir.is_alive());
    }

    /// The files stay, but nobody listens any more.
    fn close_sockets(&self) {
        self.state.lock().unwrap().gone = true;
        for path in [self.dir.control(), self.dir.console()] {
            super::wait_until(|| UnixStream::connect(&path).is_err());
        }
    }

    fn let_go(&self) {
        let mut state = self.state.lock().unwrap();
        state.lock = None;
        for stream in state.clients.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn listen(&self, path: std::path::PathBuf, serve: fn(&FakeDomain, UnixStream) -> Option<()>) {
        let listener = UnixListener::bind(path).unwrap();
        let domain = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let domain = domain.clone();
                let mut state = domain.state.lock().unwrap();
                if state.gone {
                    break;
                }
                state.clients.push(stream.try_clone().unwrap());
                drop(state);
                thread::spawn(move || serve(&domain, stream));
            }
        });
    }

    /// First the log, then an echo of every line.
    fn serve_console(&self, mut stream: UnixStream) -> Option<()> {
        stream.write_all(format!("log of domain {}\r\n", self.dir.domid).as_bytes()).ok()?;
        self.state.lock().unwrap().consoles.push(stream.try_clone().ok()?);
        let mut bytes = [0; 4096];
        loop {
            let read = stream.read(&mut bytes).ok().filter(|&read| read > 0)?;
            stream.write_all(&bytes[..read]).ok()?;
        }
    }

    fn serve_control(&self, stream: UnixStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        loop {
            let request: Request = serde_json::from_str(&lines.next()?.ok()?).unwrap();
            let reply = self.answer(&request, &stream);
            self.state.lock().unwrap().log.push(request.clone());
            let next = self.state.lock().unwrap().next.take_if(|_| request == Request::Destroy);
            if let Some(next) = next {
                self.vanish();
                FakeDomain::start(next, self.store.clone());
                return None;
            }
            if let Some(reply) = reply {
                control::send(&stream, &reply).ok()?;
            }
            if request == Request::Destroy {
                self.vanish();
            }
        }
    }

    fn answer(&self, request: &Request, stream: &UnixStream) -> Option<Reply> {
        let mut state = self.state.lock().unwrap();
        Some(match request {
            Request::Status => Reply::Status(Box::new(state.status.clone())),
            Request::Config => Reply::Config(Box::new(self.launch.config.clone())),
            Request::Pause | Request::Unpause => {
                state.status.paused = *request == Request::Pause;
                Reply::Ok
            }
            Request::Wait => match state.status.shutdown {
                Some(reason) => Reply::Shutdown { reason },
                None => {
                    state.waiting.push(stream.try_clone().unwrap());
                    return None;
                }
            },
            Request::PowerButton if !state.button => {
                Reply::Error { message: "the guest does not listen".into() }
            }
            Request::Attach { device: Device::Disk(disk) } if disk.vdev == "xvdz" => {
                Reply::Error { message: "xvdz: its image is locked by domain 'db' (id 7)".into() }
            }
            Request::Attach { device } => {
                state.devices.push(connected(device.clone()));
                Reply::Ok
            }
            Request::Detach { kind, devid, .. } => {
                state.devices.retain(|d| d.device.kind() != kind || d.device.devid() != *devid);
                Reply::Ok
            }
            Request::Devices => Reply::Devices { devices: state.devices.clone() },
            Request::Dmesg => Reply::Text { text: "one\ntwo\n".into() },
            _ => Reply::Ok,
        })
    }
}

/// A device that the guest uses.
fn connected(device: Device) -> DeviceStatus {
    let (port, rings, path) = match &device {
        Device::Disk(_) => (Some(8), vec![8], None),
        Device::Vif(_) => (None, vec![522, 523], None),
        Device::Channel(channel) => {
            let path = match &channel.connection {
                ChannelConnection::Pty => "/dev/pts/7".into(),
                ChannelConnection::Socket { path } => path.display().to_string(),
            };
            (Some(13), vec![9], Some(path))
        }
    };
    DeviceStatus { device, state: 4, port, rings, path, counters: [("requests".to_owned(), 7)].into() }
}

fn status(launch: &Launch) -> Status {
    let vcpu = |id| VcpuStatus {
        id,
        online: id == 0,
        running: false,
        cpu: Some(0),
        time_ns: if id == 0 { 38_900_000_000 } else { 0 },
        affinity: vec![],
    };
    Status {
        domid: launch.domid,
        name: launch.config.name.clone(),
        uuid: launch.config.uuid.clone(),
        pid: std::process::id(),
        paused: launch.paused,
        shutdown: None,
        dying: false,
        memory_kib: launch.config.memory_mib << 10,
        max_memory_kib: launch.config.maxmem_mib << 10,
        start_time: 0.0,
        backend: "kernel".into(),
        tty: None,
        vcpus: (0..launch.config.max_vcpus).map(vcpu).collect(),
    }
}
