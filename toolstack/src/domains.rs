//! The domains of this host: who lives, who died without cleaning up, and who is meant by a name.

use crate::failure::Failure;
use crate::host::Host;
use crate::store;
use anyhow::{Context, Result};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use xen_emu_api::config::{DomainConfig, Launch, reason};
use xen_emu_api::control::{Connection, Reply, Request, Status, send};
use xen_emu_api::device::{ChannelConfig, ChannelConnection, Device};
use xen_emu_api::run_dir::RunDir;

/// From its directory to its process at the longest: a crash loop waits a minute before the next life.
const BIRTH: Duration = Duration::from_secs(120);
/// How long a command waits for a domain that is being made anew.
const PATIENCE: Duration = Duration::from_secs(10);
/// From making the lock file to holding it.
const GRASP: Duration = Duration::from_millis(250);

/// One domain.
#[derive(Debug)]
pub struct Domain {
    /// Its directory.
    pub dir: RunDir,
    /// As its process says; for one that is being built or has died, as far as its launch tells.
    pub status: Status,
}

/// All domains.
#[derive(Debug)]
pub struct Survey {
    /// By domid.
    pub living: Vec<Domain>,
    /// Whose process died, cleaned up just now.
    pub reaped: Vec<Domain>,
}

enum Probe {
    Living(Box<Status>),
    Dead,
}

impl Host {
    /// Every domain; those whose process died are cleaned up, with a line about each on stderr.
    pub fn survey(&self) -> Result<Survey> {
        let (living, dead) = self.probe()?;
        let mut survey = Survey { living, reaped: Vec::new() };
        for domain in dead {
            self.reap(domain, &mut survey)?;
        }
        survey.living.sort_by_key(|domain| domain.dir.domid);
        Ok(survey)
    }

    /// Living and dead domains, nothing touched.
    pub fn probe(&self) -> Result<(Vec<Domain>, Vec<Domain>)> {
        let (mut living, mut dead) = (Vec::new(), Vec::new());
        let dirs =
            self.root.domains().with_context(|| format!("cannot read {}", self.root.path().display()))?;
        for dir in dirs {
            match probe(&dir) {
                Probe::Living(status) => living.push(Domain { dir, status: *status }),
                Probe::Dead => {
                    let status = assumed(&dir, Some(reason::CRASH));
                    dead.push(Domain { dir, status });
                }
            }
        }
        Ok((living, dead))
    }

    /// Under the lock that creation holds, so that a domain in the making is not taken for a dead one.
    fn reap(&self, domain: Domain, survey: &mut Survey) -> Result<()> {
        let _creation = self.root.lock()?;
        if !domain.dir.path().exists() {
            return Ok(());
        }
        if let Probe::Living(status) = probe(&domain.dir) {
            survey.living.push(Domain { dir: domain.dir, status: *status });
            return Ok(());
        }
        let Status { name, domid, uuid, .. } = &domain.status;
        remove_sockets(&domain.dir);
        let cleaned = store::forget(self, *domid, uuid);
        domain.dir.remove().with_context(|| format!("cannot remove {}", domain.dir.path().display()))?;
        match cleaned {
            Ok(()) => tell!("domain '{name}' (id {domid}): its process died; cleaned up"),
            Err(error) => tell!("domain '{name}' (id {domid}): its process died; its nodes stay: {error:#}"),
        }
        survey.reaped.push(domain);
        Ok(())
    }

    /// The living domain of that name or domid; a number is a domid.
    pub fn find(&self, word: &str) -> Result<Domain> {
        self.survey()?.take(word)
    }

    /// Await the domain that follows `domid` under the same name, as a restart makes it.
    pub fn successor(&self, name: &str, domid: u16, limit: Duration) -> Result<Option<Domain>> {
        let end = Instant::now() + limit;
        loop {
            let (living, _) = self.probe()?;
            let next =
                living.into_iter().find(|d| d.status.name == name && d.dir.domid != domid && d.serves());
            if next.is_some() || Instant::now() >= end {
                return Ok(next);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Survey {
    /// The living domain of that name or domid.
    pub fn take(self, word: &str) -> Result<Domain> {
        if is_host(word) {
            return Err(Failure::error(1, "Domain-0 is this host, not a guest"));
        }
        let meant = |domain: &Domain| names(word, &domain.status);
        self.living.into_iter().rev().find(meant).ok_or_else(|| unknown(word))
    }
}

/// `word` names the domain: by domid when it is a number, else by name.
pub fn names(word: &str, status: &Status) -> bool {
    if word.bytes().all(|b| b.is_ascii_digit()) {
        word.parse() == Ok(status.domid)
    } else {
        word == status.name
    }
}

/// `word` means Domain-0.
pub fn is_host(word: &str) -> bool {
    word == "0" || word == "Domain-0"
}

/// xl's words for a domain that is not there.
pub fn unknown(word: &str) -> anyhow::Error {
    Failure::error(1, format!("{word} is an invalid domain identifier (rc=-6)"))
}

impl Domain {
    /// Its control socket is there.
    pub fn serves(&self) -> bool {
        self.dir.control().exists()
    }

    /// Its process has died and left everything behind.
    pub fn is_dead(&self) -> bool {
        matches!(probe(&self.dir), Probe::Dead)
    }

    /// A connection of its own. A domain that is in the making, as at a restart, has none for a moment.
    pub fn connect(&self) -> Result<Connection> {
        let end = Instant::now() + PATIENCE;
        loop {
            let connection = Connection::open(&self.dir.control());
            let early = connection.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
                && !self.is_dead()
                && self.dir.path().exists();
            if !early || Instant::now() >= end {
                return connection.with_context(|| format!("{self}: its process does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ask its process.
    pub fn ask(&self, request: &Request) -> Result<Reply> {
        self.connect()?.ask(request).map_err(|error| match error.kind() {
            io::ErrorKind::Other => anyhow::anyhow!("{self}: {error}"),
            io::ErrorKind::UnexpectedEof => anyhow::anyhow!("{self}: its process has ended"),
            _ => anyhow::anyhow!("{self}: its process does not answer: {error}"),
        })
    }

    /// Whether it shuts down within `limit`. Asking for its status again and again would stop its vCPUs each time.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.dir.control()) else { return true };
        let asked = stream.set_read_timeout(Some(limit)).and_then(|()| send(&stream, &Request::Wait));
        asked.is_err() || stream.read(&mut [0]).is_ok()
    }

    /// Its configuration.
    pub fn config(&self) -> Result<DomainConfig> {
        match self.ask(&Request::Config) {
            Ok(Reply::Config(config)) => Ok(*config),
            _ => Ok(launch(&self.dir).with_context(|| format!("{self}: no configuration"))?.config),
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "domain '{}' (id {})", self.status.name, self.dir.domid)
    }
}

/// The control socket answers for nearly all; the life lock is asked only where it does not.
fn probe(dir: &RunDir) -> Probe {
    let reply = Connection::open(&dir.control()).and_then(|mut c| c.ask(&Request::Status));
    match reply {
        Ok(Reply::Status(status)) => Probe::Living(status),
        _ if !unborn(dir) && !dir.is_alive() => Probe::Dead,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            tell!("domain '{}' (id {}): its process does not answer", assumed(dir, None).name, dir.domid);
            Probe::Living(Box::new(assumed(dir, None)))
        }
        // It is being built, or on its way out.
        _ => Probe::Living(Box::new(assumed(dir, None))),
    }
}

/// No process holds the directory yet, but one is on its way: xlr has just started it, or at a restart the old one
/// becomes it. A lock file that
/// has just been made is not tried, since that would keep its process from taking it.
fn unborn(dir: &RunDir) -> bool {
    let younger = |path: &Path, limit: Duration| {
        let made = fs::metadata(path).and_then(|meta| meta.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age < limit))
    };
    let lock = dir.path().join("lock");
    if lock.exists() {
        younger(&lock, GRASP) && !dir.control().exists()
    } else {
        dir.maker_lives() != Some(false) && younger(dir.path(), BIRTH)
    }
}

fn launch(dir: &RunDir) -> Result<Launch> {
    let text = fs::read(dir.launch())?;
    Ok(serde_json::from_slice(&text)?)
}

/// Take away the sockets of its channels, which nobody listens at any more. A connection to what is no socket is refused too.
fn remove_sockets(dir: &RunDir) {
    let Ok(Launch { config, .. }) = launch(dir) else { return };
    let left = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
            && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    for device in config.devices {
        if let Device::Channel(ChannelConfig { connection: ChannelConnection::Socket { path }, .. }) = device
            && left(&path)
            && let Err(error) = fs::remove_file(&path)
        {
            tell!("cannot remove {}: {error}", path.display());
        }
    }
}

/// What can be said of a domain whose process does not speak.
fn assumed(dir: &RunDir, shutdown: Option<u32>) -> Status {
    let config = launch(dir).ok().map(|launch| launch.config);
    Status {
        domid: dir.domid,
        name: config.as_ref().map_or_else(|| "(null)".into(), |c| c.name.clone()),
        uuid: config.as_ref().map_or_else(|| uuid::Uuid::nil().to_string(), |c| c.uuid.clone()),
        pid: 0,
        paused: shutdown.is_none(),
        shutdown,
        dying: false,
        memory_kib: 0,
        max_memory_kib: config.map_or(0, |c| c.maxmem_mib << 10),
        start_time: 0.0,
        backend: String::new(),
        tty: None,
        vcpus: Vec::new(),
    }
}
