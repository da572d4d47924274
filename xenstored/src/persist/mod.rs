//! The tree on disk, for daemons that are given a folder: it survives their crash.
//!
//! A folder has snapshots and logs, each with a number. `snapshot.N` is a migration stream; `log.N` has what changed
//! since, in frames. Before a reply goes out, what its request changed is in the log; how soon the log is on the disk
//! itself is the [`Fsync`] policy. So a daemon that is killed loses nothing that it acknowledged, whatever the policy; a
//! host that crashes loses nothing with `always`, at most a second with `interval`. When a log has grown, the next
//! snapshot is written beside the daemon's work, and what it makes superfluous is removed. A transient folder is for a
//! daemon that is killed: it is emptied when the daemon is told to end, and what another boot of the host left is nothing.
//!
//! What changes is noted when it does (`journal.rs`): comparing the tree with one that is kept for it would have every
//! write copy what the two share.

mod frame;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::DomId;
use crate::dormant::Dormant;
use crate::dump::{Import, dump_nodes, record};
use crate::migration::{RECORD, Reader, Record, Stream, append};
use crate::perms::{Life, Perms};
use crate::store::Store;
use crate::tree::Tree;

/// Bytes of a log from which on the next snapshot is written; more if the last snapshot is bigger.
const LOG: u64 = 4 * 1024 * 1024;
/// How long what is written stays in the system's memory with [`Fsync::Interval`].
const INTERVAL: Duration = Duration::from_secs(1);
/// What the names of files begin with that are for domains.
const UNSENT: &str = "unsent.";
/// A log of which the end was torn.
const TORN: &str = "torn";
/// A file that takes room which a snapshot can have when the disk is full, and how much.
const SPARE: &str = "spare";
const SPARE_LEN: usize = 64 * 1024;
/// Bytes of the stacks of threads that write.
const STACK: usize = 256 * 1024;
/// How often a disk that takes longer than that is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// When what is written is made to reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Before the replies go out.
    Always,
    /// Within a second.
    #[default]
    Interval,
    /// When the system likes.
    Never,
}

impl FromStr for Fsync {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "interval" => Ok(Self::Interval),
            "never" => Ok(Self::Never),
            _ => Err("not always, interval or never".into()),
        }
    }
}

/// What a folder is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// When what is written reaches the disk.
    pub fsync: Fsync,
    /// It is for a daemon that is killed, not for one that is told to end, nor for another boot of the host.
    pub transient: bool,
}

/// What of a store was written last, besides what is noted when it changes.
#[derive(Debug, Default)]
struct Written {
    special: BTreeMap<String, Perms>,
    special_changes: u64,
}

/// An open folder.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    policy: Policy,
    number: u64,
    log: File,
    log_len: u64,
    snapshot_len: u64,
    /// Bytes of the log before, while a snapshot replaces it.
    before: u64,
    /// Bytes of the log from which on a snapshot is tried again for which there was no memory.
    put_off: u64,
    written: Written,
    /// Used again for every frame.
    frame: Vec<u8>,
    /// The log has what may not have reached the disk.
    unsynced: Option<Instant>,
    syncing: Option<JoinHandle<io::Result<()>>>,
    snapshot: Option<JoinHandle<io::Result<u64>>>,
    /// When the disk last refused, as long as it does.
    failed: Option<Instant>,
    _lock: nix::fcntl::Flock<File>,
}

impl Disk {
    /// Opens a folder, or makes one, and answers the store that it has: an empty one for a new folder. A log that ends
    /// in the middle of a frame, because the host crashed there, is taken up to that. A disk that can be read and not
    /// written ends nothing: see [`Disk::commit`].
    ///
    /// # Errors
    /// What the file system says when it is read; `AddrInUse` if another daemon has the folder; `InvalidData` for a snapshot that makes
    /// no sense, unless the folder is transient: then the daemon begins empty and says so.
    pub fn open(folder: &FilePath, policy: Policy) -> io::Result<(Self, Store)> {
        let lock = lock(folder)?;
        let (mut store, number) = match load(folder, policy.transient) {
            Err(error) if policy.transient && error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!("state folder: {error}: what was there is lost");
                (Store::new(), newest(folder)?)
            }
            loaded => loaded?,
        };
        let disk = Self::beginning(folder, policy, number + 1, &store, lock)?;
        disk.remove_unsent(|domid| store.domains.get(domid).is_none());
        store.keep_journal();
        Ok((disk, store))
    }

    /// Opens a folder for a store that is there already, after a live update; what the folder has is replaced. A disk
    /// that refuses does not end what goes on: see [`Disk::commit`]. The store must begin to keep its journal.
    ///
    /// # Errors
    /// If it is no folder that can be opened, or another daemon has it.
    pub fn replace(folder: &FilePath, policy: Policy, store: &Store) -> io::Result<Self> {
        let lock = lock(folder)?;
        Self::beginning(folder, policy, newest(folder)? + 1, store, lock)
    }

    /// Begins with a snapshot, or without one if the disk refuses: it is tried again.
    fn beginning(
        folder: &FilePath,
        policy: Policy,
        number: u64,
        store: &Store,
        lock: nix::fcntl::Flock<File>,
    ) -> io::Result<Self> {
        let begun = begin(folder, number, store, policy.fsync);
        let failed = begun.as_ref().err().map(|error| {
            tracing::error!("state folder: {error}: what changes now may be lost");
            Instant::now()
        });
        let nowhere = |_| Ok::<_, io::Error>((File::options().write(true).open("/dev/null")?, 0));
        let disk = Self::with(folder, policy, number, begun.or_else(nowhere)?, store, lock);
        Ok(Self { failed, ..disk })
    }

    /// Whether [`Disk::replace`] would find a folder, while another daemon may have it.
    ///
    /// # Errors
    /// If it is no folder in which files can be opened.
    pub fn rehearse(folder: &FilePath) -> io::Result<()> {
        open_lock(folder)?;
        newest(folder).map(drop)
    }

    fn with(
        folder: &FilePath,
        policy: Policy,
        number: u64,
        (log, snapshot_len): (File, u64),
        store: &Store,
        lock: nix::fcntl::Flock<File>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            policy,
            number,
            log,
            log_len: 0,
            snapshot_len,
            before: 0,
            put_off: 0,
            written: Written::of(store),
            frame: Vec::new(),
            unsynced: None,
            syncing: None,
            snapshot: None,
            failed: None,
            _lock: lock,
        }
    }

    /// The daemon was told to end.
    pub(crate) fn close(mut self) {
        // What is being written must not appear later.
        if let Some(thread) = self.snapshot.take() {
            let _ = thread.join();
        }
        if self.policy.transient {
            remove_before(&self.folder, u64::MAX);
            self.remove_unsent(|_| true);
        }
    }

    /// The file of what the ring of a domain has no room for.
    pub(crate) fn unsent(&self, domid: DomId) -> PathBuf {
        self.folder.join(format!("{UNSENT}{domid}"))
    }

    fn remove_unsent(&self, of: impl Fn(DomId) -> bool) {
        let domids =
            numbers(&self.folder, UNSENT).unwrap_or_default().into_iter().filter_map(|n| n.try_into().ok());
        domids.filter(|&domid| of(domid)).for_each(|domid| drop(fs::remove_file(self.unsent(domid))));
    }

    /// Writes what changed. Called before replies go out. If the disk refuses, the store goes on without, says so, and
    /// begins a new snapshot as soon as one can be written.
    pub(crate) fn commit(&mut self, store: &mut Store) {
        let done = match self.failed {
            None => self.append(store),
            Some(since) if since.elapsed() < INTERVAL => return store.drop_notes(),
            Some(_) => self.begin_anew(store),
        };
        self.failed = done.err().map(|error| {
            tracing::error!("state folder: {error}: what changes now may be lost");
            Instant::now()
        });
    }

    fn begin_anew(&mut self, store: &mut Store) -> io::Result<()> {
        store.keep_journal();
        let number = self.number + 1;
        (self.log, self.snapshot_len) = begin(&self.folder, number, store, self.policy.fsync)?;
        (self.number, self.log_len, self.written) = (number, 0, Written::of(store));
        tracing::info!("state folder: written again");
        Ok(())
    }

    fn append(&mut self, store: &mut Store) -> io::Result<()> {
        let frame = &mut self.frame;
        frame::begin(frame);
        store.take_notes(frame);
        self.written.catch_up(store, frame);
        if !frame::seal(frame) {
            return Ok(());
        }
        if let Err(error) = self.log.write_all(frame) {
            // What is there of the frame is no more than a tear.
            let _ = self.log.set_len(self.log_len);
            return Err(error);
        }
        self.log_len += frame.len() as u64;
        // One big commit must not keep its room for ever.
        frame.shrink_to(64 * 1024);
        match self.policy.fsync {
            Fsync::Always => self.log.sync_data()?,
            Fsync::Interval => self.unsynced = self.unsynced.or_else(|| Some(Instant::now())),
            Fsync::Never => {}
        }
        if self.log_len > LOG.max(self.snapshot_len).max(self.put_off) && self.snapshot.is_none() {
            self.next_snapshot(store)?;
        }
        Ok(())
    }

    /// Goes on in a new log, and has the snapshot it begins at written elsewhere.
    fn next_snapshot(&mut self, store: &Store) -> io::Result<()> {
        let (number, fsync) = (self.number + 1, self.policy.fsync);
        let source = Source::of(store);
        // Whatever there is is in the snapshot or in the log.
        let len = usize::try_from(self.snapshot_len + self.log_len).unwrap_or(usize::MAX / 2);
        let Ok(stream) = Stream::of_size(len + source.small.len() + RECORD) else {
            tracing::warn!("state folder: no memory for a snapshot: it is put off");
            self.put_off = self.log_len + LOG;
            return Ok(());
        };
        self.before = self.log_len;
        let old = std::mem::replace(&mut self.log, create_log(&self.folder, number)?);
        (self.number, self.log_len, self.put_off) = (number, 0, 0);
        let folder = self.folder.clone();
        if fsync == Fsync::Always {
            sync_folder(&folder, fsync)?;
        }
        self.snapshot =
            Some(std::thread::Builder::new().stack_size(STACK).name("snapshot".into()).spawn(move || {
                if fsync == Fsync::Interval {
                    old.sync_data()?;
                    sync_folder(&folder, fsync)?;
                }
                let len = write_snapshot(&folder, number, &source.stream(stream)?, fsync)?;
                remove_before(&folder, number);
                Ok(len)
            })?);
        Ok(())
    }

    /// When [`Disk::step`] has something to do; none if nothing.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let again = self.failed.map(|since| since + INTERVAL);
        let due = self.unsynced.map(|since| since + INTERVAL);
        let due = due.map(|due| if self.syncing.is_some() { due.max(Instant::now() + LOOK) } else { due });
        again.into_iter().chain(due).min()
    }

    /// Has what is due reach the disk, in a thread of its own, and looks what became of what was begun. A disk that refused
    /// is tried again.
    pub(crate) fn step(&mut self, store: &mut Store) {
        if self.failed.is_some_and(|since| since.elapsed() >= INTERVAL) {
            self.commit(store);
        }
        if let Some(done) = self.snapshot.take_if(|thread| thread.is_finished()) {
            match done.join() {
                Ok(Ok(len)) => (self.snapshot_len, self.before) = (len, 0),
                Ok(Err(error)) => tracing::error!("state folder: snapshot: {error}"),
                Err(_) => tracing::error!("state folder: snapshot: the thread failed"),
            }
            self.snapshot_len += std::mem::take(&mut self.before);
        }
        if let Some(done) = self.syncing.take_if(|thread| thread.is_finished())
            && !matches!(done.join(), Ok(Ok(())))
        {
            tracing::error!("state folder: the log does not reach the disk");
        }
        if self.syncing.is_none() && self.unsynced.is_some_and(|since| since.elapsed() >= INTERVAL) {
            self.unsynced = None;
            let synced = self.log.try_clone().and_then(|log| {
                std::thread::Builder::new()
                    .stack_size(STACK)
                    .name("fsync".into())
                    .spawn(move || log.sync_data())
            });
            match synced {
                Ok(thread) => self.syncing = Some(thread),
                Err(error) => tracing::error!("state folder: {error}"),
            }
        }
    }
}

impl Written {
    fn of(store: &Store) -> Self {
        Self { special: store.special.clone(), special_changes: store.special_changes }
    }

    /// Appends the records that lead from what was written of special names to what is, and is up to date then.
    fn catch_up(&mut self, store: &Store, bytes: &mut Vec<u8>) {
        if self.special_changes == store.special_changes {
            return;
        }
        let special = store.special.clone();
        for name in self.special.keys().filter(|name| !special.contains_key(*name)) {
            append(bytes, &Record::Removed { path: name.as_bytes() });
        }
        for (name, perms) in &special {
            append(bytes, &record(|domid| store.domains.life(domid), name, b"", perms));
        }
        (self.special, self.special_changes) = (special, store.special_changes);
    }
}

/// Watches of all domains that have any.
fn watches(store: &Store) -> impl Iterator<Item = (DomId, Vec<Dormant>)> {
    let all = store.domains.all().map(|domid| (domid, store.watches_of_domain(domid)));
    all.filter(|(_, watches)| !watches.is_empty())
}

/// What a snapshot is made of, wherever that is done: a reference to the tree, and all that is small.
struct Source {
    tree: Tree,
    lives: BTreeMap<DomId, Life>,
    small: Vec<u8>,
}

impl Source {
    fn of(store: &Store) -> Self {
        let mut small = Vec::new();
        append(&mut small, &Record::Lives { generation: 0, boot: boot().as_bytes() });
        store.dump_settings(|record| append(&mut small, record));
        for (domid, watches) in watches(store) {
            watches.iter().for_each(|watch| append(&mut small, &watch.record(domid)));
        }
        for (name, perms) in &store.special {
            append(&mut small, &record(|domid| store.domains.life(domid), name, b"", perms));
        }
        Self { tree: store.tree.clone(), lives: store.lives(), small }
    }

    fn stream(&self, mut stream: Stream) -> io::Result<Vec<u8>> {
        stream.put_all(&self.small);
        let life = |domid| if domid == 0 { Some(Life(0)) } else { self.lives.get(&domid).copied() };
        dump_nodes(&self.tree, life, |record| stream.put(record));
        stream.finish()
    }
}

/// What is different after every boot of the host. Domains do not survive one.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Reads the newest snapshot that is whole, and every log from there on. After another boot of the host the domains are
/// gone, and of a transient folder everything is.
fn load(folder: &FilePath, transient: bool) -> io::Result<(Store, u64)> {
    let mut import = Import::new();
    let mut same_boot = true;
    let snapshot = numbers(folder, "snapshot.")?.into_iter().max();
    if let Some(number) = snapshot {
        let invalid = |why: &dyn std::fmt::Display| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "snapshot.{number} is damaged: {why}; move the folder away to begin with an empty store"
                ),
            )
        };
        let bytes = fs::read(folder.join(format!("snapshot.{number}")))?;
        if !frame::is_whole(&bytes) {
            return Err(invalid(&"its checksum is wrong"));
        }
        let mut reader = Reader::new(&bytes).map_err(|error| invalid(&error))?;
        loop {
            let at = bytes.len() - reader.left();
            let next = reader.next().map_err(|error| invalid(&format_args!("{error}, at byte {at}")))?;
            let Some(record) = next else { break };
            if let Record::Lives { boot: then, .. } = record {
                same_boot = then == boot().as_bytes();
            }
            let what = || match &record {
                Record::Node { path, .. } => format!("node {}", path.escape_ascii()),
                other => format!("record of type {:#x}", other.kind()),
            };
            import
                .take(&record)
                .ok_or_else(|| invalid(&format_args!("impossible {}, at byte {at}", what())))?;
        }
    }
    let mut logs = numbers(folder, "log.")?;
    logs.sort_unstable();
    for number in logs.into_iter().filter(|&number| snapshot.is_none_or(|snapshot| number >= snapshot)) {
        let mut bytes = Vec::new();
        File::open(folder.join(format!("log.{number}")))?.read_to_end(&mut bytes)?;
        let rest = frame::open(&bytes, |record| import.take(record));
        if rest > 0 {
            tracing::warn!("log.{number}: {rest} bytes at the end are torn; it stays as `{TORN}`");
            let torn = folder.join(TORN);
            let _ = fs::remove_file(&torn);
            let _ = fs::hard_link(folder.join(format!("log.{number}")), torn);
            break;
        }
    }
    let mut store = import.finish();
    if !same_boot {
        store.release_all();
    }
    store.await_domains();
    Ok((if same_boot || !transient { store } else { Store::new() }, newest(folder)?))
}

/// The highest number that is in use.
fn newest(folder: &FilePath) -> io::Result<u64> {
    let used = numbers(folder, "snapshot.")?.into_iter().chain(numbers(folder, "log.")?);
    Ok(used.max().unwrap_or(0))
}

/// The numbers of the files that are named so.
fn numbers(folder: &FilePath, prefix: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u64>().ok()));
    }
    Ok(numbers)
}

/// Writes all of a store, and begins the log of what changes then. If the disk is full, perhaps with the log before, what
/// is not needed makes room.
fn begin(folder: &FilePath, number: u64, store: &Store, fsync: Fsync) -> io::Result<(File, u64)> {
    let stream = Source::of(store).stream(Stream::new())?;
    let write = || {
        let len = write_snapshot(folder, number, &stream, fsync)?;
        let log = create_log(folder, number)?;
        sync_folder(folder, fsync)?;
        remove_before(folder, number);
        Ok((log, len))
    };
    let begun = write().or_else(|_: io::Error| {
        for name in [SPARE, TORN] {
            let _ = fs::remove_file(folder.join(name));
        }
        write()
    });
    let spare = folder.join(SPARE);
    if begun.is_ok() && !spare.exists() && fs::write(&spare, [0; SPARE_LEN]).is_err() {
        let _ = fs::remove_file(spare);
    }
    begun
}

/// Nobody sees half a snapshot: it has its name when it is on the disk. Another one may be being written meanwhile.
fn write_snapshot(folder: &FilePath, number: u64, bytes: &[u8], fsync: Fsync) -> io::Result<u64> {
    let half = folder.join(format!("new.{number}"));
    let mut file = options().truncate(true).open(&half)?;
    let whole = file.write_all(bytes).and_then(|()| file.write_all(&frame::end(bytes)));
    whole.inspect_err(|_| drop(fs::remove_file(&half)))?;
    if fsync != Fsync::Never {
        file.sync_all()?;
    }
    fs::rename(&half, folder.join(format!("snapshot.{number}")))?;
    sync_folder(folder, fsync)?;
    Ok(bytes.len() as u64)
}

fn create_log(folder: &FilePath, number: u64) -> io::Result<File> {
    options().truncate(true).open(folder.join(format!("log.{number}")))
}

/// The names of files reach the disk, unless nothing has to.
fn sync_folder(folder: &FilePath, fsync: Fsync) -> io::Result<()> {
    if fsync == Fsync::Never { Ok(()) } else { File::open(folder)?.sync_all() }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).write(true).mode(0o600);
    options
}

/// Removes what a snapshot has made superfluous. What stays is in nobody's way.
fn remove_before(folder: &FilePath, number: u64) {
    for prefix in ["snapshot.", "log.", "new."] {
        for old in numbers(folder, prefix).unwrap_or_default().into_iter().filter(|&old| old < number) {
            let _ = fs::remove_file(folder.join(format!("{prefix}{old}")));
        }
    }
}

fn open_lock(folder: &FilePath) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    options().truncate(false).open(folder.join("lock"))
}

fn lock(folder: &FilePath) -> io::Result<nix::fcntl::Flock<File>> {
    nix::fcntl::Flock::lock(open_lock(folder)?, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| io::Error::new(io::ErrorKind::AddrInUse, "another daemon has this state folder"))
}

#[cfg(test)]
mod tests;
