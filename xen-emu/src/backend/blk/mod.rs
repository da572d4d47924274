//! Block devices: the host's end of `vbd` (`public/io/blkif.h`).
//!
//! `proto` judges requests, `pins` holds the guest's pages, `queue` is a ring and `run` what its thread does with it;
//! this file is what xenbus sees: features, the nodes of a connection, resizing, and discs that are changed.

mod pins;
pub mod proto;
pub mod queue;
mod run;

use crate::backend::device::{Connection, Device, DeviceError, Disc, Fail, Frontend, Nodes};
use crate::disk::engine::EngineKind;
use crate::disk::{Disk, Options};
use crate::log::limited;
use pins::Pages;
use proto::{Abi, MAX_INDIRECT_SEGMENTS, SECTOR_SHIFT};
use queue::{Counters, Ending, Queue, RingPages, Serving, Stop};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xen_abi::io::blkif::{VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};
use xen_domain::ring::BackRing;
use xen_emu_api::device::DiskConfig;

/// 16 pages, the most that Linux uses.
const MAX_RING_PAGE_ORDER: u32 = 4;
/// Grants kept per queue; Linux's backend keeps as many.
const MOST_KEPT: usize = 1056;
/// How long a disconnect waits for the image, before it leaves a queue's thread to finish alone.
const PATIENCE: Duration = Duration::from_secs(5);

/// One disk of one domain.
pub struct Blk {
    config: DiskConfig,
    queues: u32,
    engine: EngineKind,
    disk: Option<Arc<Disk>>,
    counters: Arc<Counters>,
    running: Vec<Running>,
    rings: Vec<u32>,
    /// Of the connection.
    fail: Option<Fail>,
}

/// A queue's thread. It hands the queue back when it ends.
struct Running {
    stop: Arc<Stop>,
    queue: Receiver<Queue>,
    thread: JoinHandle<()>,
    name: String,
}

impl Blk {
    /// Opens and locks the image; up to `queues` rings are offered.
    ///
    /// # Errors
    /// The image cannot be used; see [`crate::disk::DiskError`].
    pub fn open(config: &DiskConfig, queues: u32) -> Result<Blk, DeviceError> {
        let options = options(config);
        let disk = match &config.target {
            Some(target) => Some(Arc::new(Disk::open(target, &options)?)),
            None if config.cdrom => None,
            None => return Err(DeviceError(format!("disk {}: only a CD drive can be empty", config.vdev))),
        };
        Ok(Blk {
            config: config.clone(),
            queues: queues.max(1),
            engine: EngineKind::from_env(),
            disk,
            counters: Arc::default(),
            running: Vec::new(),
            rings: Vec::new(),
            fail: None,
        })
    }

    /// Uses this engine instead of the environment's choice, from the next connection on.
    pub fn with_engine(mut self, engine: EngineKind) -> Blk {
        self.engine = engine;
        self
    }

    /// The image.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }

    fn writable(&self) -> bool {
        self.config.writable && !self.config.cdrom
    }

    fn serving(&self) -> Serving {
        Serving {
            disk: self.disk.clone(),
            writable: self.writable(),
            discard: self.config.discard,
            engine: self.engine,
        }
    }

    fn info(&self) -> u32 {
        [
            (self.config.cdrom, VDISK_CDROM),
            (self.config.cdrom || self.config.removable, VDISK_REMOVABLE),
            (!self.writable(), VDISK_READONLY),
        ]
        .into_iter()
        .map(|(is, flag)| if is { flag } else { 0 })
        .sum()
    }

    /// Nodes that tell of the image.
    fn geometry(&self) -> Nodes {
        let (sectors, (logical, physical)) = match &self.disk {
            Some(disk) => (disk.len() >> SECTOR_SHIFT, disk.sector_sizes()),
            None => (0, (self.config.sector_size.unwrap_or(512), self.config.sector_size.unwrap_or(512))),
        };
        nodes(&[
            ("sectors", sectors),
            ("info", self.info().into()),
            ("sector-size", logical.into()),
            ("physical-sector-size", physical.into()),
        ])
    }

    /// What the hotplug script `block` writes for a block device. A file is no device here, where Xen has a loop device for it.
    fn physical(&self) -> Nodes {
        let disk = self.disk.as_ref().filter(|_| !self.config.cdrom);
        let Some((disk, number)) = disk.and_then(|disk| Some((disk, disk.device()?))) else {
            return Nodes::new();
        };
        let path = disk.path().display().to_string();
        [("node", path.clone()), ("physical-device", number), ("physical-device-path", path)]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }

    /// Ends the threads; their queues, as far as the image lets go of them in time.
    fn halt(&mut self, how: Ending) -> Vec<Queue> {
        self.running.iter().for_each(|running| running.stop.ask(how));
        let until = Instant::now() + PATIENCE;
        let queues = self.running.drain(..).filter_map(|running| {
            let Ok(queue) = running.queue.recv_timeout(until.saturating_duration_since(Instant::now()))
            else {
                // It keeps its pins until the host has done its requests, and then ends by itself.
                limited!(warn, "{}: the image does not answer; its requests are abandoned", running.name);
                return None;
            };
            // It has nothing left to do, so nothing to panic about.
            let _ = running.thread.join();
            Some(queue)
        });
        queues.collect()
    }

    /// Starts threads for these queues; when one cannot be started, none runs.
    fn launch(&mut self, queues: Vec<Queue>) -> Result<(), DeviceError> {
        for queue in queues {
            let (serving, name) = (self.serving(), queue.name.clone());
            let stop = Stop::new().map_err(|e| DeviceError(format!("{name}: {e}")))?;
            let (asked, (send, receive)) = (stop.clone(), channel());
            let body = move || {
                // Nobody takes it when the device has given up waiting: then it ends here.
                let _ = send.send(queue.run(serving, &asked));
            };
            let thread = std::thread::Builder::new().name(format!("blk-{name}"));
            let thread = thread.spawn(body).map_err(|e| DeviceError(format!("{name}: no thread: {e}")))?;
            self.running.push(Running { stop, queue: receive, thread, name });
        }
        Ok(())
    }
}

fn options(config: &DiskConfig) -> Options {
    Options { writable: config.writable && !config.cdrom, ..Options::from(config) }
}

fn nodes(of: &[(&str, u64)]) -> Nodes {
    of.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
}

/// Number of rings, and whether each has its nodes in a folder of its own.
fn queues(front: &Frontend, offered: u32) -> Result<Vec<String>, DeviceError> {
    match front.get::<u32>("multi-queue-num-queues")?.unwrap_or(1) {
        1 => Ok(vec![String::new()]),
        n if n >= 1 && n <= offered => Ok((0..n).map(|n| format!("queue-{n}/")).collect()),
        n => Err(DeviceError(format!("the frontend wants {n} queues; 1 to {offered} were offered"))),
    }
}

/// Grants of a ring's pages.
fn ring_refs(front: &Frontend, below: &str) -> Result<Vec<u32>, DeviceError> {
    let order = match (front.get::<u32>("ring-page-order")?, front.get::<u32>("num-ring-pages")?) {
        (Some(order), _) => order,
        (None, Some(pages)) if pages.is_power_of_two() => pages.ilog2(),
        (None, Some(pages)) => {
            return Err(DeviceError(format!("the frontend's num-ring-pages is {pages}, not a power of two")));
        }
        (None, None) => 0,
    };
    if order > MAX_RING_PAGE_ORDER {
        let most = 1 << MAX_RING_PAGE_ORDER;
        return Err(DeviceError(format!(
            "the frontend's ring has 2^{order} pages; at most {most} were offered"
        )));
    }
    if order == 0
        && let Some(gref) = front.get(&format!("{below}ring-ref"))?
    {
        return Ok(vec![gref]);
    }
    (0..1 << order).map(|n| front.need(&format!("{below}ring-ref{n}"))).collect()
}

/// A ring attached, a channel bound.
fn queue(
    connection: &Connection,
    vdev: &str,
    below: &str,
    abi: Abi,
    persistent: bool,
    counters: &Arc<Counters>,
) -> Result<(Queue, Vec<u32>), DeviceError> {
    let refs = ring_refs(&connection.front, below)?;
    let (ring_pages, pages) = RingPages::pin(connection, &refs)?;
    let ring = BackRing::attach(&*connection.memory, &pages, abi.slot())
        .map_err(|e| DeviceError(format!("ring of {vdev}: {e}")))?;
    let channel = connection.channels.bind(connection.front.need(&format!("{below}event-channel"))?)?;
    let most = if persistent { MOST_KEPT } else { 0 };
    let number = below.trim_start_matches("queue-").trim_end_matches('/');
    let queue = Queue {
        name: format!("{vdev}{}{number}", if number.is_empty() { "" } else { "/" }),
        abi,
        ring,
        memory: connection.memory.clone(),
        pages: Pages::new(connection.grants.clone(), most),
        counters: counters.clone(),
        fail: connection.fail.clone(),
        channel,
        ring_pages,
        broken: false,
    };
    Ok((queue, refs))
}

impl Device for Blk {
    fn advertise(&self) -> Nodes {
        let mut list = nodes(&[
            ("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS.into()),
            ("feature-persistent", self.config.persistent.into()),
            ("feature-flush-cache", 1),
            ("feature-barrier", 1),
            ("multi-queue-max-queues", self.queues.into()),
            ("max-ring-page-order", MAX_RING_PAGE_ORDER.into()),
            ("max-ring-pages", 1 << MAX_RING_PAGE_ORDER),
        ]);
        let discards = self.disk.as_ref().and_then(|disk| disk.discards());
        if let Some(discard) = discards.filter(|_| self.config.discard && self.writable()) {
            list.extend(nodes(&[
                ("feature-discard", 1),
                ("discard-granularity", discard.granularity.into()),
                ("discard-alignment", discard.alignment.into()),
                ("discard-secure", discard.secure.into()),
            ]));
        }
        list.extend(self.physical());
        list
    }

    fn connect(&mut self, connection: Connection) -> Result<Nodes, DeviceError> {
        self.disconnect();
        let front = &connection.front;
        let abi = match front.nodes.get("protocol") {
            None => Abi::X64,
            Some(name) => Abi::named(name.trim())
                .ok_or_else(|| DeviceError(format!("the frontend's protocol {name:?} is not known")))?,
        };
        let persistent = self.config.persistent && front.flag("feature-persistent");
        if let Some(disk) = &self.disk {
            disk.refresh().map_err(|e| DeviceError(format!("{}: {e}", disk.path().display())))?;
        }
        let (mut ready, mut rings) = (Vec::new(), Vec::new());
        for below in queues(front, self.queues)? {
            let (queue, refs) =
                queue(&connection, &self.config.vdev, &below, abi, persistent, &self.counters)?;
            ready.push(queue);
            rings.extend(refs);
        }
        if let Err(e) = self.launch(ready) {
            self.disconnect();
            return Err(e);
        }
        (self.rings, self.fail) = (rings, Some(connection.fail.clone()));
        let engine = self.engine.choice(self.disk.as_deref());
        let (vdev, count) = (&self.config.vdev, self.running.len());
        limited!(info, "{vdev}: connected, {count} queues, {engine}, persistent grants: {persistent}");
        Ok(self.geometry())
    }

    fn finish(&mut self) {
        drop(self.halt(Ending::Finish));
    }

    fn abandon(&mut self) {
        let queues = self.halt(Ending::Now);
        (self.disk, self.config.target) = (None, None);
        if let Err(e) = self.launch(queues) {
            limited!(warn, "{e}");
        }
    }

    fn disconnect(&mut self) {
        drop(self.halt(Ending::Now));
        self.rings.clear();
        self.fail = None;
    }

    fn rings(&self) -> Vec<u32> {
        self.rings.clone()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.table()
    }

    fn resize(&mut self, bytes: Option<u64>) -> Result<Nodes, DeviceError> {
        let vdev = &self.config.vdev;
        let disk =
            self.disk.as_ref().ok_or_else(|| DeviceError(format!("{vdev}: there is no disc in it")))?;
        let resized = match bytes {
            Some(bytes) => disk.grow(bytes),
            None => disk.refresh(),
        };
        resized.map_err(|e| DeviceError(format!("{vdev}: {}: {e}", disk.path().display())))?;
        Ok(self.geometry())
    }

    fn insert(&mut self, disc: Option<&Disc>) -> Result<Nodes, DeviceError> {
        if !self.config.cdrom {
            return Err(DeviceError(format!("{}: not a CD drive", self.config.vdev)));
        }
        let (target, format) = match disc {
            Some(disc) => (Some(disc.target.clone()), disc.format),
            None => (None, self.config.format),
        };
        let config = DiskConfig { target, format, ..self.config.clone() };
        let disk = match &config.target {
            Some(target) => Some(Arc::new(Disk::open(target, &options(&config))?)),
            None => None,
        };
        let before = self.running.len();
        let queues = self.halt(Ending::Now);
        let lost = before - queues.len();
        (self.config, self.disk) = (config, disk);
        self.launch(queues)?;
        if let Some(fail) = self.fail.as_ref().filter(|_| lost > 0) {
            // Nobody serves a queue that has not come back.
            fail(DeviceError(format!(
                "{}: the old disc does not answer; the drive is closed until the guest connects to it anew",
                self.config.vdev
            )));
        }
        Ok(self.geometry())
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.disconnect();
    }
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;
