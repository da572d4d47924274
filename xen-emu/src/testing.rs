//! What the tests of several modules share.

pub mod alloc;
pub mod fuzz;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use xen_emu_api::config::{Accel, Actions, DomainConfig, EventChannels, Launch, TscMode, Upcall};
use xenstored::client::Client;
use xenstored::out::Out;
use xenstored::store::{ConnId, Store};
use xenstored::wire;

/// A launch with xl's defaults.
pub fn launch(domid: u16) -> Launch {
    Launch {
        domid,
        run_root: PathBuf::from("/nonexistent"),
        xenstored: PathBuf::from("/nonexistent"),
        paused: false,
        supervise: true,
        config: DomainConfig {
            name: "guest".into(),
            uuid: "00000000-0000-4000-8000-000000000001".into(),
            kernel: PathBuf::from("/boot/vmlinuz"),
            ramdisk: None,
            pvshim: None,
            cmdline: String::new(),
            bootloader: None,
            memory_mib: 128,
            maxmem_mib: 128,
            vcpus: 1,
            max_vcpus: 1,
            cpus: Vec::new(),
            actions: Actions::default(),
            acpi: true,
            max_grant_frames: 64,
            max_grant_version: 2,
            event_channels: EventChannels::default(),
            max_event_channels: 1023,
            upcall: Upcall::default(),
            tsc_mode: TscMode::default(),
            accel: Accel::default(),
            hypercall_rewrite: None,
            devices: Vec::new(),
            source: None,
        },
    }
}

/// A store as xenstored's core has it, on a socket: rights, watches and transactions, but no rings.
pub struct TestStore {
    /// Its socket.
    pub path: PathBuf,
    served: Arc<Mutex<Served>>,
}

/// The core, and where its messages go.
struct Served {
    store: Store,
    streams: HashMap<ConnId, UnixStream>,
}

impl TestStore {
    /// Listens in `dir` until the process ends.
    pub fn start(dir: &Path) -> TestStore {
        let path = dir.join("store.sock");
        let served = Arc::new(Mutex::new(Served { store: Store::new(), streams: HashMap::new() }));
        let listener = UnixListener::bind(&path).unwrap();
        let whose = served.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, served) = (stream.unwrap(), whose.clone());
                std::thread::spawn(move || serve(stream, &served));
            }
        });
        TestStore { path, served }
    }

    /// All who are connected lose it.
    pub fn hang_up(&self) {
        let served = self.served.lock().unwrap();
        served.streams.values().for_each(|stream| stream.shutdown(std::net::Shutdown::Both).unwrap());
    }

    /// A connection to it.
    pub fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// A node's value.
    pub fn get(&self, path: &str) -> Option<String> {
        self.client().read_opt(path).unwrap()
    }

    /// Every node: path, value, permissions as `xenstore-ls -fp` shows them.
    pub fn listing(&self) -> Vec<String> {
        let (mut client, mut lines, mut todo) = (self.client(), Vec::new(), vec![String::new()]);
        while let Some(dir) = todo.pop() {
            for name in client.directory(if dir.is_empty() { "/" } else { &dir }).unwrap() {
                let path = format!("{dir}/{name}");
                let perms = client.get_perms(&path).unwrap();
                let perms: Vec<_> = perms.iter().map(ToString::to_string).collect();
                let value = client.read_string(&path).unwrap();
                lines.push(format!("{path} = \"{value}\"   ({})", perms.join(",")));
                todo.push(path);
            }
        }
        lines.sort();
        lines
    }
}

fn serve(mut stream: UnixStream, served: &Mutex<Served>) {
    let conn = {
        let mut served = served.lock().unwrap();
        let conn = served.store.connect();
        served.streams.insert(conn, stream.try_clone().unwrap());
        conn
    };
    let (mut input, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        input.extend(&chunk[..n]);
        while let Ok(Some((header, payload))) = wire::split(&input) {
            let (mut out, mut served) = (Out::default(), served.lock().unwrap());
            // Rings are believed to be there, and are not served.
            let ring = header.kind == wire::MsgType::INTRODUCE;
            served.store.handle(conn, header, payload, ring, &mut out);
            let done = wire::HEADER_LEN + payload.len();
            for (to, bytes, _) in out.messages() {
                // One that has left hears nothing.
                let _ = served.streams.get_mut(&to).map(|stream| stream.write_all(bytes));
            }
            input.drain(..done);
        }
    }
    let mut served = served.lock().unwrap();
    served.streams.remove(&conn);
    served.store.disconnect(conn);
}
