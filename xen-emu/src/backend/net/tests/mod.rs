//! A fake frontend on the real rings, grants and threads, with a socket in the place of the TAP.

mod attach;
mod fuzz;
mod hostile;
mod packets;
mod steering;

use super::Vif;
use super::link::{Attachment, Link};
use super::proto::offload::{Accepts, VnetHeader};
use super::tap::TapLink;
use crate::backend::device::{Channels, Connection, Device, DeviceError, EventChannel, Frontend};
use crate::memory::Memory;
use crate::testing::alloc::allocations;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use xen_abi::Gref;
use xen_abi::io::netif::{
    CTRL_SLOT, ExtraGso, ExtraInfo, ExtraType, NetifRsp, RX_SLOT, RxRequest, RxResponse, TX_SLOT, TxRequest,
    TxResponse, rxf, txf,
};
use xen_domain::gnttab::Pins;
use xen_domain::mem::{Gfn, GuestMem};
use xen_domain::testing::{FrontRing, grant, revoke};
use xen_emu_api::device::{VifAttach, VifConfig};
use zerocopy::{FromBytes, IntoBytes};

/// What RAM is filled with.
const FILL: u8 = 0xa5;
const RAM: u64 = 16 << 20;

pub fn config() -> VifConfig {
    VifConfig {
        devid: 0,
        mac: [0, 0x16, 0x3e, 0, 0, 1],
        attach: VifAttach::Tap,
        ifname: None,
        mtu: None,
        rate: None,
        script: None,
        gatewaydev: None,
        ip: Vec::new(),
        vlan: None,
        queues: Some(4),
        trusted: true,
    }
}

/// Sockets in the place of TAP queues.
struct Sockets {
    ends: Vec<File>,
    offloads: bool,
    accepts: Arc<Mutex<Accepts>>,
    allocations: Arc<AtomicU64>,
}

/// As the TAP, but it may say that it does no offloads, and counts what its thread has allocated when it was called.
struct Counted {
    link: TapLink,
    offloads: bool,
    allocations: Arc<AtomicU64>,
}

impl Link for Counted {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.link.fd()
    }
    fn send(
        &mut self,
        header: &VnetHeader,
        head: &mut [u8],
        rest: &[super::link::Slice<'_>],
    ) -> std::io::Result<()> {
        self.allocations.store(allocations(), Ordering::SeqCst);
        self.link.send(header, head, rest)
    }
    fn receive(
        &mut self,
        header: &mut VnetHeader,
        into: &[super::link::Slice<'_>],
    ) -> std::io::Result<usize> {
        self.allocations.store(allocations(), Ordering::SeqCst);
        self.link.receive(header, into)
    }
    fn longest(&self) -> usize {
        self.link.longest()
    }
    fn offloads(&self) -> bool {
        self.offloads
    }
}

impl Attachment for Sockets {
    fn links(&mut self, queues: usize, accepts: Accepts) -> Result<Vec<Box<dyn Link>>, DeviceError> {
        *self.accepts.lock().unwrap() = accepts;
        let link = |end: &File| {
            let (link, allocations) = (TapLink { tun: end.try_clone().unwrap() }, self.allocations.clone());
            Box::new(Counted { link, offloads: self.offloads, allocations }) as Box<dyn Link>
        };
        Ok(self.ends.iter().take(queues).map(link).collect())
    }
    fn release(&mut self, _: Vec<Box<dyn Link>>) {}
    fn queues(&self) -> u32 {
        4
    }
    fn offloads(&self) -> bool {
        self.offloads
    }
    fn mtu(&self) -> Option<u16> {
        None
    }
}

/// The guest's ends of event channels, by port.
#[derive(Default)]
struct Ports {
    ends: Mutex<BTreeMap<u32, (EventFd, EventFd)>>,
    open: Arc<AtomicUsize>,
}

struct End(Arc<AtomicUsize>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Channels for Ports {
    fn bind(&self, port: u32) -> Result<EventChannel, DeviceError> {
        let eventfd = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        let dup = |fd: &EventFd| fd.as_fd().try_clone_to_owned().unwrap();
        let (kick, notify) = (eventfd(), eventfd());
        let channel =
            EventChannel { kick: dup(&kick), notify: dup(&notify), end: Box::new(End(self.open.clone())) };
        self.open.fetch_add(1, Ordering::SeqCst);
        self.ends.lock().unwrap().insert(port, (kick, notify));
        Ok(channel)
    }
}

/// Waits until one of these is readable; false after half a minute, when something hangs.
fn ready(fds: &[&dyn AsFd]) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut fds, PollTimeout::from(30_000u16)).unwrap() > 0
}

/// The guest's end of a queue.
struct Rings {
    tx: FrontRing,
    rx: FrontRing,
    /// Requests to be answered, in the order of the ring: grants of data, none for extra descriptors.
    sent: VecDeque<(u16, Option<Gref>)>,
    posted: VecDeque<(u16, Gref, Gfn)>,
    next_id: u16,
}

/// A packet as the guest got it.
#[derive(Debug, PartialEq, Eq)]
pub struct Got {
    pub data: Vec<u8>,
    pub flags: u16,
    pub gso: Option<ExtraGso>,
    pub hash: Option<[u8; 6]>,
}

/// Host and guest.
pub struct Rig {
    memory: Arc<Memory>,
    pins: Pins,
    ports: Arc<Ports>,
    failed: Arc<Mutex<Vec<String>>>,
    pub vif: Vif,
    pub peers: Vec<File>,
    pub accepts: Arc<Mutex<Accepts>>,
    /// Of a queue's thread, up to its last call to the other end.
    pub allocations: Arc<AtomicU64>,
    queues: Vec<Rings>,
    nodes: BTreeMap<String, String>,
    free_gfns: Vec<Gfn>,
    free_grefs: Vec<Gref>,
    split: bool,
}

const OFFLOADS: [&str; 5] = [
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
    "feature-rx-notify",
];

impl Rig {
    pub fn new(queues: usize, offloads: bool) -> Rig {
        let memory = Arc::new(Memory::new(&[(0, RAM)]).unwrap());
        for gfn in 0..RAM >> 12 {
            memory.write(Gfn(gfn).gpa(), &[FILL; 4096]).unwrap();
        }
        let pair = || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
            (File::from(a), File::from(b))
        };
        let (ends, peers) = (0..queues).map(|_| pair()).unzip();
        let (accepts, allocations) = (Arc::default(), Arc::default());
        let sockets =
            Sockets { ends, offloads, accepts: Arc::clone(&accepts), allocations: Arc::clone(&allocations) };
        let vif = Vif::with("vif7.0".into(), config(), Box::new(sockets), 4);
        let pins = Pins::alone(memory.clone(), 4);
        Rig {
            memory,
            pins,
            ports: Arc::default(),
            failed: Arc::default(),
            vif,
            peers,
            accepts,
            allocations,
            queues: Vec::new(),
            nodes: OFFLOADS.into_iter().chain(["request-rx-copy"]).map(|n| (n.into(), "1".into())).collect(),
            free_gfns: (16..RAM >> 12).rev().map(Gfn).collect(),
            free_grefs: (8..2000).rev().map(Gref).collect(),
            split: true,
        }
    }

    pub fn set(&mut self, node: &str, value: impl ToString) {
        self.nodes.insert(node.into(), value.to_string());
    }

    pub fn page(&mut self, readonly: bool) -> (Gref, Gfn) {
        let (gref, gfn) = (self.free_grefs.pop().unwrap(), self.free_gfns.pop().unwrap());
        grant(&*self.memory, gref, gfn, readonly).unwrap();
        (gref, gfn)
    }

    /// Ends a grant, which nobody may use any more.
    fn done(&mut self, gref: Gref, gfn: Option<Gfn>) {
        assert!(!revoke(&*self.memory, gref).unwrap(), "{gref:?} is answered and still in use");
        self.free_grefs.push(gref);
        self.free_gfns.extend(gfn);
    }

    /// A control ring for the next connection.
    pub fn with_ctrl(&mut self) -> FrontRing {
        let (gref, gfn) = self.page(false);
        self.set("ctrl-ring-ref", gref.0);
        self.set("event-channel-ctrl", 99);
        FrontRing::init(&*self.memory, &[gfn.gpa()], CTRL_SLOT).unwrap()
    }

    pub fn connect(&mut self) -> Result<(), DeviceError> {
        let queues = self.peers.len();
        self.queues.clear();
        if queues > 1 {
            self.set("multi-queue-num-queues", queues);
        }
        for queue in 0..queues {
            let prefix = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            let ((tx_ref, tx), (rx_ref, rx)) = (self.page(false), self.page(false));
            self.set(&format!("{prefix}tx-ring-ref"), tx_ref.0);
            self.set(&format!("{prefix}rx-ring-ref"), rx_ref.0);
            let names: &[&str] =
                if self.split { &["event-channel-tx", "event-channel-rx"] } else { &["event-channel"] };
            for (i, name) in names.iter().enumerate() {
                self.set(&format!("{prefix}{name}"), 10 * queue + i);
            }
            self.queues.push(Rings {
                tx: FrontRing::init(&*self.memory, &[tx.gpa()], TX_SLOT).unwrap(),
                rx: FrontRing::init(&*self.memory, &[rx.gpa()], RX_SLOT).unwrap(),
                sent: VecDeque::new(),
                posted: VecDeque::new(),
                next_id: 0,
            });
        }
        let failed = self.failed.clone();
        self.vif.connect(Connection {
            domid: 7,
            front: Frontend { nodes: self.nodes.clone() },
            memory: self.memory.clone(),
            grants: Arc::new(self.pins.clone()),
            channels: self.ports.clone(),
            fail: Arc::new(move |e| failed.lock().unwrap().push(e.to_string())),
        })?;
        Ok(())
    }

    /// Disconnects, and looks whether anything is left.
    pub fn disconnect(&mut self) {
        self.vif.disconnect();
        assert_eq!(self.pins.in_use(), 0, "pins left");
        assert_eq!(self.ports.open.load(Ordering::SeqCst), 0, "event channels left");
    }

    pub fn failures(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }

    fn port(&self, queue: usize, rx: bool) -> u32 {
        u32::try_from(10 * queue + usize::from(rx && self.split)).unwrap()
    }

    pub fn kick(&self, port: u32) {
        self.ports.ends.lock().unwrap()[&port].0.write(1).unwrap();
    }

    fn notified(&self, port: u32) -> bool {
        let end = self.ports.ends.lock().unwrap()[&port].1.as_fd().try_clone_to_owned().unwrap();
        let ready = ready(&[&end]);
        let _ = nix::unistd::read(&end, &mut [0; 8]);
        ready
    }

    /// Puts a raw slot on a transmit ring, to be answered as this.
    pub fn put_tx(&mut self, queue: usize, slot: &[u8; TX_SLOT], answered: (u16, Option<Gref>)) -> bool {
        let rings = &mut self.queues[queue];
        let put = rings.tx.put(&*self.memory, slot).unwrap();
        if put {
            rings.sent.push_back(answered);
        }
        put
    }

    pub fn publish_tx(&mut self, queue: usize) {
        if self.queues[queue].tx.publish(&*self.memory).unwrap() {
            self.kick(self.port(queue, false));
        }
    }

    /// Sends a packet in these pieces (length and offset in a page each); false when the ring is full.
    pub fn send(
        &mut self,
        queue: usize,
        data: &[u8],
        pieces: &[(usize, usize)],
        flags: u16,
        gso: Option<ExtraGso>,
    ) {
        let mut rest = data;
        for (i, (len, offset)) in pieces.iter().enumerate() {
            let (gref, gfn) = self.page(true);
            let (piece, behind) = rest.split_at(*len);
            rest = behind;
            self.memory.write(gfn.gpa().offset(*offset as u64), piece).unwrap();
            let first = i == 0;
            let id = self.queues[queue].next_id;
            self.queues[queue].next_id = id.wrapping_add(1);
            let more = if i + 1 < pieces.len() { txf::MORE_DATA } else { 0 };
            let extra = if first && gso.is_some() { txf::EXTRA_INFO } else { 0 };
            let request = TxRequest {
                gref,
                offset: u16::try_from(*offset).unwrap(),
                flags: more | extra | if first { flags } else { 0 },
                id,
                size: u16::try_from(if first { data.len() } else { *len }).unwrap(),
            };
            assert!(self.put_tx(queue, &request.as_bytes().try_into().unwrap(), (id, Some(gref))));
            if let (true, Some(gso)) = (first, gso) {
                let u = gso.as_bytes().try_into().unwrap();
                let extra = ExtraInfo { r#type: ExtraType::GSO, flags: 0, u };
                let mut slot = [0; TX_SLOT];
                slot[..8].copy_from_slice(extra.as_bytes());
                assert!(self.put_tx(queue, &slot, (0, None)));
            }
        }
        assert!(rest.is_empty(), "the pieces are not the packet");
        self.publish_tx(queue);
    }

    /// Waits until all of a queue's transmit requests are answered; their statuses, without extra descriptors.
    pub fn answers(&mut self, queue: usize) -> Vec<NetifRsp> {
        let mut statuses = Vec::new();
        let mut slot = [0; TX_SLOT];
        while !self.queues[queue].sent.is_empty() {
            if !self.queues[queue].tx.take(&*self.memory, &mut slot).unwrap() {
                let waiting = !self.queues[queue].tx.final_check_for_responses(&*self.memory).unwrap();
                assert!(
                    !waiting || self.notified(self.port(queue, false)),
                    "no answer; {:?}",
                    self.failures()
                );
                continue;
            }
            let (id, gref) = self.queues[queue].sent.pop_front().unwrap();
            let (response, _) = TxResponse::read_from_prefix(&slot).unwrap();
            match gref {
                None => assert_eq!(response.status, NetifRsp::NULL),
                Some(gref) => {
                    assert_eq!(response.id, id);
                    statuses.push(response.status);
                    self.done(gref, None);
                }
            }
        }
        statuses
    }

    /// Posts receive buffers.
    pub fn post(&mut self, queue: usize, count: usize) {
        for _ in 0..count {
            let (gref, gfn) = self.page(false);
            let rings = &mut self.queues[queue];
            let id = rings.next_id;
            rings.next_id = id.wrapping_add(1);
            assert!(rings.rx.put(&*self.memory, RxRequest { id, pad: 0, gref }.as_bytes()).unwrap(), "full");
            rings.posted.push_back((id, gref, gfn));
        }
        self.publish_rx(queue);
    }

    pub fn publish_rx(&mut self, queue: usize) {
        if self.queues[queue].rx.publish(&*self.memory).unwrap() {
            self.kick(self.port(queue, true));
        }
    }

    /// Waits for the next slot of the receive ring: it, and the page of its request.
    fn slot(&mut self, queue: usize) -> ([u8; RX_SLOT], u16, Gfn) {
        let mut slot = [0; RX_SLOT];
        while !self.queues[queue].rx.take(&*self.memory, &mut slot).unwrap() {
            let waiting = !self.queues[queue].rx.final_check_for_responses(&*self.memory).unwrap();
            assert!(!waiting || self.notified(self.port(queue, true)), "no packet; {:?}", self.failures());
        }
        let (id, gref, gfn) = self.queues[queue].posted.pop_front().unwrap();
        self.done(gref, Some(gfn));
        (slot, id, gfn)
    }

    /// Waits for the next packet, as Linux's netfront takes it.
    pub fn receive(&mut self, queue: usize) -> Result<Got, NetifRsp> {
        let mut got = Got { data: Vec::new(), flags: 0, gso: None, hash: None };
        let mut more = true;
        while more {
            let (slot, id, gfn) = self.slot(queue);
            let response = RxResponse::read_from_bytes(&slot).unwrap();
            assert_eq!((response.id, response.offset), (id, 0));
            if response.status.0 < 0 {
                assert!(got.data.is_empty(), "an error inside a packet");
                return Err(response.status);
            }
            let start = got.data.len();
            got.data.resize(start + usize::try_from(response.status.0).unwrap(), 0);
            self.memory.read(gfn.gpa(), &mut got.data[start..]).unwrap();
            more = response.flags & rxf::MORE_DATA != 0;
            if start == 0 {
                got.flags = response.flags & !(rxf::MORE_DATA | rxf::EXTRA_INFO);
            }
            let mut extra = response.flags & rxf::EXTRA_INFO != 0;
            while extra {
                let info = ExtraInfo::read_from_bytes(&self.slot(queue).0).unwrap();
                match info.r#type {
                    ExtraType::GSO => got.gso = Some(ExtraGso::read_from_bytes(&info.u).unwrap()),
                    ExtraType::HASH => got.hash = Some(info.u),
                    other => panic!("extra descriptor {other:?}"),
                }
                extra = info.flags & 1 != 0;
            }
        }
        Ok(got)
    }

    /// What the peer of a queue gets next.
    pub fn peer_receive(&self, queue: usize) -> (VnetHeader, Vec<u8>) {
        let mut bytes = vec![0; 70_000];
        assert!(ready(&[&self.peers[queue]]), "nothing was sent; {:?}", self.failures());
        let n = (&self.peers[queue]).read(&mut bytes).unwrap();
        let (header, data) = VnetHeader::read_from_prefix(&bytes[..n]).unwrap();
        (header, data.to_vec())
    }

    /// The peer of a queue sends.
    pub fn peer_send(&self, queue: usize, header: VnetHeader, data: &[u8]) {
        let bytes = [header.as_bytes(), data].concat();
        assert_eq!((&self.peers[queue]).write(&bytes).unwrap(), bytes.len());
    }

    /// The frames of RAM that hold anything but what they were filled with.
    pub fn changed(&self) -> Vec<u64> {
        let mut page = [0; 4096];
        let mut differs = |gfn: &u64| {
            self.memory.read(Gfn(*gfn).gpa(), &mut page).unwrap();
            page != [FILL; 4096]
        };
        (0..RAM >> 12).filter(|gfn| differs(gfn)).collect()
    }
}
