//! The least of a store: a map of paths behind the wire protocol of public/io/xs_wire.h.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const RELEASE: u32 = 9;
const WRITE: u32 = 11;
const RM: u32 = 13;
const ERROR: u32 = 16;

/// Shared by the test and by the store's threads.
#[derive(Clone, Default)]
pub struct FakeStore(Arc<Mutex<BTreeMap<String, String>>>);

impl FakeStore {
    pub fn serve(socket: &Path) -> Self {
        let store = FakeStore::default();
        let listener = UnixListener::bind(socket).unwrap();
        let shared = store.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = shared.clone();
                thread::spawn(move || store.talk(stream));
            }
        });
        store
    }

    pub fn set(&self, path: &str, value: &str) {
        self.0.lock().unwrap().insert(path.to_owned(), value.to_owned());
    }

    pub fn get(&self, path: &str) -> Option<String> {
        self.0.lock().unwrap().get(path).cloned()
    }

    pub fn paths(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }

    pub fn remove(&self, path: &str) {
        let below = format!("{path}/");
        self.0.lock().unwrap().retain(|node, _| node != path && !node.starts_with(&below));
    }

    fn talk(&self, mut stream: UnixStream) -> Option<()> {
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header).ok()?;
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let mut payload = vec![0; word(12) as usize];
            stream.read_exact(&mut payload).ok()?;
            let text = String::from_utf8_lossy(&payload).into_owned();
            let (path, rest) = text.split_once('\0').unwrap_or((&text, ""));
            let (kind, reply) = match self.answer(word(0), path, rest) {
                Some(reply) => (word(0), reply),
                None => (ERROR, "ENOENT\0".into()),
            };
            let mut message = Vec::new();
            for field in [kind, word(4), word(8), u32::try_from(reply.len()).unwrap()] {
                message.extend(field.to_le_bytes());
            }
            message.extend(reply.as_bytes());
            stream.write_all(&message).ok()?;
        }
    }

    fn answer(&self, kind: u32, path: &str, rest: &str) -> Option<String> {
        let below = format!("{path}/");
        let exists = || self.paths().iter().any(|node| node == path || node.starts_with(&below));
        match kind {
            READ if exists() => Some(self.get(path).unwrap_or_default()),
            WRITE => {
                self.set(path, rest);
                Some("OK\0".into())
            }
            RM if exists() => {
                self.remove(path);
                Some("OK\0".into())
            }
            DIRECTORY if exists() => {
                let paths = self.paths();
                let children = paths.iter().filter_map(|node| node.strip_prefix(&below)?.split('/').next());
                let mut children: Vec<_> = children.map(|name| format!("{name}\0")).collect();
                children.dedup();
                Some(children.concat())
            }
            TRANSACTION_START => Some("1\0".into()),
            TRANSACTION_END => Some("OK\0".into()),
            RELEASE => None,
            _ => None,
        }
    }
}
