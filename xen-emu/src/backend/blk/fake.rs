//! A frontend for tests and the bench: the same rings, grants and event channels, in this process.

use super::Blk;
use super::proto::Abi;
use crate::backend::device::{Channels, Connection, Device, DeviceError, EventChannel, Frontend, Nodes};
use crate::memory::Memory;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use xen_abi::Gref;
use xen_abi::io::blkif::{
    BlkifOp, BlkifRsp, Request, RequestDiscard, RequestIndirect, Response, ResponseCompat, Segment,
};
use xen_domain::gnttab::Pins;
use xen_domain::mem::{Gfn, Gpa, GuestMem};
use xen_domain::testing::{FrontRing, grant};
use xen_emu_api::device::{DiskCache, DiskConfig, DiskFormat};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Frames of RAM; those from 8 on are granted by the grant of the same number.
pub const FRAMES: u64 = 4096;
/// The first frame that is no ring's.
pub const DATA: u32 = 128;

/// A `disk=` entry.
pub fn config(target: &Path, format: DiskFormat, cache: DiskCache) -> DiskConfig {
    DiskConfig {
        vdev: "xvda".into(),
        devid: 51712,
        target: Some(target.to_owned()),
        format,
        writable: true,
        cdrom: false,
        removable: false,
        discard: true,
        cache,
        sector_size: None,
        persistent: true,
        force: false,
        script: None,
        backendtype: None,
        trusted: true,
    }
}

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub abi: Abi,
    pub queues: u32,
    pub order: u32,
    pub persistent: bool,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish { abi: Abi::X64, queues: 1, order: 0, persistent: false }
    }
}

/// A guest with one disk.
pub struct Guest {
    pub ram: Arc<Memory>,
    pub pins: Pins,
    pub blk: Blk,
    pub rings: Vec<Ring>,
    /// Why the device had to be closed.
    pub failures: Arc<Mutex<Vec<String>>>,
}

/// One queue's frontend.
pub struct Ring {
    pub ring: FrontRing,
    pub abi: Abi,
    ram: Arc<Memory>,
    kick: EventFd,
    notify: EventFd,
}

struct Ports(Vec<(OwnedFd, OwnedFd)>);

fn dup(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

impl Channels for Ports {
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError> {
        let (kick, notify) =
            self.0.get(port as usize).ok_or_else(|| DeviceError(format!("no port {port}")))?;
        Ok(EventChannel { kick: dup(kick), notify: dup(notify), end: Box::new(()) })
    }
}

impl Guest {
    /// Not connected yet; all frames are filled with `fill` and granted from 8 on.
    pub fn new(blk: Blk, fill: u8) -> Guest {
        let ram = Arc::new(Memory::new(&[(0, FRAMES << 12)]).unwrap());
        ram.write(Gpa(0), &vec![fill; 4096 * 4096]).unwrap();
        let pins = Pins::alone(ram.clone(), 8);
        (8..FRAMES).for_each(|n| grant(&*ram, Gref(u32::try_from(n).unwrap()), Gfn(n), false).unwrap());
        Guest { ram, pins, blk, rings: Vec::new(), failures: Arc::default() }
    }

    /// The frontend's nodes and rings, and the backend's answer.
    pub fn connect(&mut self, wish: Wish) -> Result<Nodes, DeviceError> {
        let mut front = Frontend::default();
        let mut put = |path: String, value: String| front.nodes.insert(path, value);
        let protocol = if wish.abi == Abi::X64 { "x86_64-abi" } else { "x86_32-abi" };
        put("protocol".into(), protocol.into());
        put("feature-persistent".into(), u8::from(wish.persistent).to_string());
        if wish.queues > 1 {
            put("multi-queue-num-queues".into(), wish.queues.to_string());
        }
        if wish.order > 0 {
            put("ring-page-order".into(), wish.order.to_string());
        }
        let mut ports = Vec::new();
        self.rings.clear();
        for queue in 0..wish.queues {
            let below = if wish.queues > 1 { format!("queue-{queue}/") } else { String::new() };
            // In descending order, so that a ring's pages do not follow each other.
            let frames: Vec<u32> = (0..1u32 << wish.order).rev().map(|n| 8 + queue * 16 + n).collect();
            for (n, frame) in frames.iter().enumerate() {
                let name =
                    if wish.order > 0 { format!("{below}ring-ref{n}") } else { format!("{below}ring-ref") };
                put(name, frame.to_string());
            }
            put(format!("{below}event-channel"), queue.to_string());
            let pages: Vec<Gpa> = frames.iter().map(|frame| Gfn((*frame).into()).gpa()).collect();
            let ring = FrontRing::init(&*self.ram, &pages, wish.abi.slot()).unwrap();
            let (kick, notify) = (EventFd::new().unwrap(), EventFd::new().unwrap());
            ports.push((dup(&kick), dup(&notify)));
            self.rings.push(Ring { ring, abi: wish.abi, ram: self.ram.clone(), kick, notify });
        }
        let failures = self.failures.clone();
        self.blk.connect(Connection {
            domid: 1,
            front,
            memory: self.ram.clone(),
            grants: Arc::new(self.pins.clone()),
            channels: Arc::new(Ports(ports)),
            fail: Arc::new(move |e| failures.lock().unwrap().push(e.0)),
        })
    }

    /// Bytes of a data frame.
    pub fn page(&self, gref: u32) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.ram.read(Gfn(gref.into()).gpa(), &mut bytes).unwrap();
        bytes
    }

    /// Fills a data frame.
    pub fn fill(&self, gref: u32, bytes: &[u8]) {
        self.ram.write(Gfn(gref.into()).gpa(), bytes).unwrap();
    }
}

/// `(gref, first sector, last sector)`
pub fn segments(of: &[(u32, u8, u8)]) -> Vec<Segment> {
    let one = |(gref, first_sect, last_sect): &(u32, u8, u8)| Segment {
        gref: Gref(*gref),
        first_sect: *first_sect,
        last_sect: *last_sect,
        pad: 0,
    };
    of.iter().map(one).collect()
}

impl Ring {
    /// Puts the bytes of a request; [`Ring::publish`] shows it.
    pub fn put(&mut self, bytes: &[u8]) {
        assert!(self.ring.put(&*self.ram, bytes).unwrap(), "the ring is full");
    }

    pub fn direct(&mut self, operation: BlkifOp, id: u64, sector_number: u64, segments: &[Segment]) {
        let mut request = Request::new_zeroed();
        (request.operation, request.id, request.sector_number) = (operation, id, sector_number);
        request.nr_segments = u8::try_from(segments.len()).unwrap();
        request.seg[..segments.len()].copy_from_slice(segments);
        match self.abi {
            Abi::X64 => self.put(request.as_bytes()),
            Abi::X32 => self.put(request.to_compat().as_bytes()),
        }
    }

    /// The segments go into frame `page`.
    pub fn indirect(
        &mut self,
        operation: BlkifOp,
        id: u64,
        sector_number: u64,
        segments: &[Segment],
        page: u32,
    ) {
        self.ram.write(Gfn(page.into()).gpa(), segments.as_bytes()).unwrap();
        let mut request = RequestIndirect::new_zeroed();
        (request.operation, request.indirect_op) = (BlkifOp::INDIRECT, operation);
        (request.id, request.sector_number) = (id, sector_number);
        request.nr_segments = u16::try_from(segments.len()).unwrap();
        request.indirect_grefs[0] = Gref(page);
        match self.abi {
            Abi::X64 => self.put(request.as_bytes()),
            Abi::X32 => self.put(request.to_compat().as_bytes()),
        }
    }

    pub fn discard(&mut self, id: u64, sector_number: u64, nr_sectors: u64) {
        self.flagged_discard(id, sector_number, nr_sectors, 0);
    }

    pub fn flagged_discard(&mut self, id: u64, sector_number: u64, nr_sectors: u64, flag: u8) {
        let mut request = RequestDiscard::new_zeroed();
        (request.operation, request.flag, request.id) = (BlkifOp::DISCARD, flag, id);
        (request.sector_number, request.nr_sectors) = (sector_number, nr_sectors);
        match self.abi {
            Abi::X64 => self.put(request.as_bytes()),
            Abi::X32 => self.put(request.to_compat().as_bytes()),
        }
    }

    /// Shows what was put, and kicks if the backend wants it.
    pub fn publish(&mut self) {
        if self.ring.publish(&*self.ram).unwrap() {
            self.kick();
        }
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    pub fn lie(&mut self, req_prod: u32) {
        self.ring.lie(&*self.ram, req_prod).unwrap();
        self.kick();
    }

    /// The next response if there is one.
    pub fn take(&mut self) -> Option<(u64, BlkifOp, BlkifRsp)> {
        let mut bytes = [0; 16];
        if !self.ring.take(&*self.ram, &mut bytes).unwrap() {
            return None;
        }
        let response = match self.abi {
            Abi::X64 => Response::read_from_bytes(&bytes).unwrap(),
            Abi::X32 => ResponseCompat::read_from_prefix(&bytes).unwrap().0.into(),
        };
        Some((response.id, response.operation, response.status))
    }

    /// Waits for a response to be notified of; false after 20 s.
    pub fn wait(&mut self) -> bool {
        if self.ring.final_check_for_responses(&*self.ram).unwrap() {
            return true;
        }
        let mut fds = [PollFd::new(self.notify.as_fd(), PollFlags::POLLIN)];
        let some = poll(&mut fds, PollTimeout::from(20_000u16)).unwrap() > 0;
        if some {
            self.notify.read().unwrap();
        }
        some
    }

    /// Exactly so many responses, ordered by id.
    pub fn responses(&mut self, count: usize) -> Vec<(u64, BlkifOp, BlkifRsp)> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.take() {
                Some(response) => all.push(response),
                None => assert!(self.wait(), "{} of {count} responses came", all.len()),
            }
        }
        assert!(self.take().is_none(), "more responses than requests");
        all.sort_unstable_by_key(|(id, ..)| *id);
        all
    }

    /// The statuses of so many requests.
    pub fn statuses(&mut self, count: usize) -> Vec<BlkifRsp> {
        self.publish();
        self.responses(count).into_iter().map(|(.., status)| status).collect()
    }
}
