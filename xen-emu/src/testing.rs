//! What the tests of several modules share.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use xen_emu_api::config::{Actions, DomainConfig, Launch};
use xenstored::wire::{self, MsgType};

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
            cmdline: String::new(),
            memory_mib: 128,
            maxmem_mib: 128,
            vcpus: 1,
            max_vcpus: 1,
            cpus: Vec::new(),
            actions: Actions::default(),
            acpi: true,
            max_grant_frames: 64,
            max_event_channels: 1023,
            source: None,
        },
    }
}

/// A store that keeps nodes and nothing else: no rights, no watches, no isolation of transactions.
pub struct FakeStore {
    /// Its socket.
    pub path: PathBuf,
    nodes: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl FakeStore {
    /// Listens in `dir` until the process ends.
    pub fn start(dir: &Path) -> FakeStore {
        let store = FakeStore { path: dir.join("store.sock"), nodes: Arc::default() };
        let (listener, nodes) = (UnixListener::bind(&store.path).unwrap(), store.nodes.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, nodes) = (stream.unwrap(), nodes.clone());
                std::thread::spawn(move || {
                    let (mut input, mut chunk) = (Vec::new(), [0; 4096]);
                    while let Ok(n @ 1..) = stream.read(&mut chunk) {
                        input.extend(&chunk[..n]);
                        while let Ok(Some((header, payload))) = wire::split(&input) {
                            let (kind, reply) = answer(&mut nodes.lock().unwrap(), header.kind, payload);
                            let (done, mut out) = (wire::HEADER_LEN + payload.len(), Vec::new());
                            wire::put(&mut out, kind, header.req_id, header.tx_id, &[&reply]).unwrap();
                            stream.write_all(&out).unwrap();
                            input.drain(..done);
                        }
                    }
                });
            }
        });
        store
    }

    /// A node's value.
    pub fn get(&self, path: &str) -> Option<String> {
        self.nodes.lock().unwrap().get(path).map(|value| String::from_utf8(value.clone()).unwrap())
    }

    /// All nodes whose path contains `part`.
    pub fn matching(&self, part: &str) -> Vec<String> {
        self.nodes.lock().unwrap().keys().filter(|path| path.contains(part)).cloned().collect()
    }
}

fn answer(nodes: &mut BTreeMap<String, Vec<u8>>, kind: MsgType, payload: &[u8]) -> (MsgType, Vec<u8>) {
    let (path, value) = wire::first_arg(payload).unwrap_or((payload, &[]));
    let path = String::from_utf8(path.to_vec()).unwrap();
    let below = format!("{path}/");
    let missing = (MsgType::ERROR, b"ENOENT\0".to_vec());
    match kind {
        MsgType::READ => nodes.get(&path).map_or(missing, |value| (kind, value.clone())),
        MsgType::DIRECTORY => {
            let names = nodes.keys().filter_map(|node| node.strip_prefix(&below)?.split('/').next());
            let mut names: Vec<_> = names.map(|name| format!("{name}\0")).collect();
            names.dedup();
            if names.is_empty() { missing } else { (kind, names.concat().into_bytes()) }
        }
        MsgType::RM => {
            nodes.retain(|node, _| *node != path && !node.starts_with(&below));
            (kind, b"OK\0".to_vec())
        }
        MsgType::TRANSACTION_START => (kind, b"1\0".to_vec()),
        MsgType::WRITE => {
            nodes.insert(path, value.to_vec());
            (kind, b"OK\0".to_vec())
        }
        _ => (kind, b"OK\0".to_vec()),
    }
}
