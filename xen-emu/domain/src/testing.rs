//! A domain's surroundings for tests: memory with holes, page tables, a machine that writes down what it is asked,
//! and a script runner that puts arguments in guest memory and makes calls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xen_abi::Domid;
use xen_abi::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::domain::{Domain, MemmapEntry, Params};
use crate::effect::{Backend, Effects, Offload, Port, Processor, Runstate, StartState, VcpuId};
use crate::hypercall::{Call, Cx, Outcome, Width};
use crate::mem::{Fault, Gfn, Gpa, GuestMem, SpecialPage, Translate};
use crate::peer::{Ask, Foreign, Question, Told};
use crate::time::Now;

mod events;
mod front;

pub use events::{GuestEvents, Unmasked};
pub use front::{FrontRing, entry_v1, grant, revoke};

type Page = [u8; 4096];

/// Guest memory: frames that exist, special pages at their homes, all else a hole.
#[derive(Debug, Default)]
pub struct FakeRam {
    pages: Mutex<BTreeMap<u64, Page>>,
}

impl FakeRam {
    /// RAM at these frames, filled with `fill`.
    #[must_use]
    pub fn new(frames: impl IntoIterator<Item = u64>, fill: u8) -> FakeRam {
        FakeRam { pages: Mutex::new(frames.into_iter().map(|gfn| (gfn, [fill; 4096])).collect()) }
    }

    /// The frames in RAM that hold anything but `fill`.
    #[must_use]
    pub fn changed(&self, fill: u8) -> BTreeSet<u64> {
        let pages = self.pages();
        let homes = SpecialPage::SharedInfo.home().gfn().0;
        pages
            .iter()
            .filter(|(gfn, page)| **gfn < homes && page.iter().any(|byte| *byte != fill))
            .map(|(gfn, _)| *gfn)
            .collect()
    }

    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at<R>(&self, gpa: Gpa, size: usize, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, Fault> {
        let mut pages = self.pages();
        if SpecialPage::at_home(gpa).is_some() {
            pages.entry(gpa.gfn().0).or_insert([0; 4096]);
        }
        let page = pages.get_mut(&gpa.gfn().0).ok_or(Fault)?;
        let start = usize::try_from(gpa.0 % 4096).map_err(|_| Fault)?;
        page.get_mut(start..start + size).map(f).ok_or(Fault)
    }

    fn word<T, const N: usize>(&self, gpa: Gpa, f: impl FnOnce(T) -> Option<T>) -> Result<T, Fault>
    where
        T: FromBytes + IntoBytes + Immutable + Copy,
    {
        if !gpa.0.is_multiple_of(N as u64) {
            return Err(Fault);
        }
        self.at(gpa, N, |bytes| {
            let old = T::read_from_bytes(bytes).map_err(|_| Fault)?;
            if let Some(new) = f(old) {
                bytes.copy_from_slice(new.as_bytes());
            }
            Ok(old)
        })?
    }

    fn pieces(gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = gpa.offset(done as u64);
            let room = usize::try_from(4096 - at.0 % 4096).ok()?;
            let start = done;
            done = len.min(start + room);
            (start < len).then_some((at, start..done))
        })
    }
}

impl GuestMem for FakeRam {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        Self::pieces(gpa, buf.len()).try_for_each(|(at, range)| {
            let part = buf.get_mut(range).ok_or(Fault)?;
            self.at(at, part.len(), |bytes| part.copy_from_slice(bytes))
        })
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), Fault> {
        Self::pieces(gpa, buf.len()).try_for_each(|(at, range)| {
            let part = buf.get(range).ok_or(Fault)?;
            self.at(at, part.len(), |bytes| bytes.copy_from_slice(part))
        })
    }

    fn load_u32(&self, gpa: Gpa) -> Result<u32, Fault> {
        self.word::<u32, 4>(gpa, |_| None)
    }

    fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), Fault> {
        self.word::<u32, 4>(gpa, |_| Some(value)).map(drop)
    }

    fn load_u64(&self, gpa: Gpa) -> Result<u64, Fault> {
        self.word::<u64, 8>(gpa, |_| None)
    }

    fn fetch_or_u8(&self, gpa: Gpa, bits: u8) -> Result<u8, Fault> {
        self.word::<u8, 1>(gpa, |old| Some(old | bits))
    }

    fn fetch_or_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault> {
        self.word::<u32, 4>(gpa, |old| Some(old | bits))
    }

    fn fetch_and_u32(&self, gpa: Gpa, bits: u32) -> Result<u32, Fault> {
        self.word::<u32, 4>(gpa, |old| Some(old & bits))
    }

    fn fetch_or_u64(&self, gpa: Gpa, bits: u64) -> Result<u64, Fault> {
        self.word::<u64, 8>(gpa, |old| Some(old | bits))
    }

    fn fetch_and_u64(&self, gpa: Gpa, bits: u64) -> Result<u64, Fault> {
        self.word::<u64, 8>(gpa, |old| Some(old & bits))
    }

    fn cas_u32(&self, gpa: Gpa, old: u32, new: u32) -> Result<Result<u32, u32>, Fault> {
        let found = self.word::<u32, 4>(gpa, |found| (found == old).then_some(new))?;
        Ok(if found == old { Ok(found) } else { Err(found) })
    }
}

/// Page tables that map some frames to themselves.
#[derive(Clone, Debug)]
pub struct Identity(pub std::ops::Range<u64>);

impl Translate for Identity {
    fn translate(&self, gva: u64) -> Result<Gpa, Fault> {
        if self.0.contains(&(gva >> 12)) { Ok(Gpa(gva)) } else { Err(Fault) }
    }
}

/// What the core asked of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "one per method of Effects, with its arguments")]
pub enum Effect {
    MapSpecial(SpecialPage, Option<Gfn>),
    MapGrant(Gfn, Option<(Gfn, bool)>),
    ReleaseRam(Gfn, u64),
    PopulateRam(Gfn, u64),
    LatchLongMode(bool),
    Callback(u8),
    UpcallVector(VcpuId, u8),
    VcpuInfo(VcpuId, Option<Gpa>),
    TimeInfo(VcpuId, Option<Gpa>),
    Runstate(VcpuId, Option<Gpa>),
    RunstateUpdateFlag(bool),
    TimerPort(VcpuId, Option<Port>),
    Singleshot(VcpuId, Option<u64>),
    Periodic(VcpuId, Option<u64>),
    Offload(Port, Offload),
    Retract(Port),
    RetractAll,
    Fifo(bool),
    Raise(Port, VcpuId),
    Upcall(VcpuId),
    Kick(Backend),
    Ask(VcpuId, Domid, Ask),
    LeavePeer(Backend),
    MapForeign(Gfn, Option<(Foreign, bool)>),
    ReleaseForeign(Foreign),
    Wake(VcpuId),
    VcpuUp(VcpuId, Option<u64>),
    VcpuDown(VcpuId),
    Nmi(VcpuId),
    Console(Vec<u8>),
    Log(String),
    Watchdog(u32, u32),
}

/// A machine that only writes down.
#[derive(Debug, Default)]
pub struct Recorder {
    /// In order.
    pub effects: Vec<Effect>,
    /// Whether it handles 2-level ports by itself (and then really does not).
    pub accelerated: bool,
    /// Whether it cannot tell of an update of the runstate under way.
    pub no_update_flag: bool,
    /// Whether the host has run out of memory.
    pub out_of_memory: bool,
    /// What other domains answer, in order; when there is no more, nobody is there.
    pub answers: VecDeque<Told>,
    /// The last question.
    pub asked: Option<Question>,
}

impl Recorder {
    fn note(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

impl Effects for Recorder {
    fn map_special(&mut self, page: SpecialPage, gfn: Option<Gfn>) -> Result<(), Errno> {
        self.note(Effect::MapSpecial(page, gfn));
        Ok(())
    }
    fn map_grant(&mut self, at: Gfn, frame: Option<(Gfn, bool)>) -> Result<(), Errno> {
        self.note(Effect::MapGrant(at, frame));
        if self.out_of_memory { Err(Errno::ENOMEM) } else { Ok(()) }
    }
    fn release_ram(&mut self, first: Gfn, frames: u64) {
        self.note(Effect::ReleaseRam(first, frames));
    }
    fn populate_ram(&mut self, first: Gfn, frames: u64) -> Result<(), Errno> {
        self.note(Effect::PopulateRam(first, frames));
        if self.out_of_memory { Err(Errno::ENOMEM) } else { Ok(()) }
    }
    fn latch_long_mode(&mut self, long_mode: bool) {
        self.note(Effect::LatchLongMode(long_mode));
    }
    fn set_callback(&mut self, vector: u8) {
        self.note(Effect::Callback(vector));
    }
    fn set_upcall_vector(&mut self, vcpu: VcpuId, vector: u8) {
        self.note(Effect::UpcallVector(vcpu, vector));
    }
    fn set_vcpu_info(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) {
        self.note(Effect::VcpuInfo(vcpu, gpa));
    }
    fn set_vcpu_time_info(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) -> bool {
        self.note(Effect::TimeInfo(vcpu, gpa));
        true
    }
    fn set_runstate(&mut self, vcpu: VcpuId, gpa: Option<Gpa>) {
        self.note(Effect::Runstate(vcpu, gpa));
    }
    fn set_runstate_update_flag(&mut self, on: bool) -> bool {
        self.note(Effect::RunstateUpdateFlag(on));
        !self.no_update_flag
    }
    fn runstate(&mut self, vcpu: VcpuId) -> Runstate {
        Runstate { state: 0, entry_time: 100 + u64::from(vcpu), time: [1, 2, 3, 4] }
    }
    fn set_timer_port(&mut self, vcpu: VcpuId, port: Option<Port>) {
        self.note(Effect::TimerPort(vcpu, port));
    }
    fn set_singleshot(&mut self, vcpu: VcpuId, at: Option<u64>) {
        self.note(Effect::Singleshot(vcpu, at));
    }
    fn set_periodic(&mut self, vcpu: VcpuId, period: Option<u64>) {
        self.note(Effect::Periodic(vcpu, period));
    }
    fn offload(&mut self, port: Port, how: Offload) -> bool {
        self.note(Effect::Offload(port, how));
        self.accelerated
    }
    fn retract(&mut self, port: Port) {
        self.note(Effect::Retract(port));
    }
    fn retract_all(&mut self) {
        self.note(Effect::RetractAll);
    }
    fn set_fifo(&mut self, on: bool) {
        self.note(Effect::Fifo(on));
    }
    fn raise(&mut self, port: Port, vcpu: VcpuId) -> bool {
        if self.accelerated {
            self.note(Effect::Raise(port, vcpu));
        }
        self.accelerated
    }
    fn upcall(&mut self, vcpu: VcpuId) {
        self.note(Effect::Upcall(vcpu));
    }
    fn kick(&mut self, backend: Backend) {
        self.note(Effect::Kick(backend));
    }
    fn ask(&mut self, question: Question, dom: Domid, ask: Ask) {
        self.asked = Some(question);
        self.note(Effect::Ask(question.vcpu, dom, ask));
    }
    fn leave_peer(&mut self, backend: Backend) {
        self.note(Effect::LeavePeer(backend));
    }
    fn map_foreign(&mut self, at: Gfn, page: Option<(Foreign, bool)>) -> Result<(), Errno> {
        self.note(Effect::MapForeign(at, page));
        if self.out_of_memory { Err(Errno::ENOMEM) } else { Ok(()) }
    }
    fn release_foreign(&mut self, page: Foreign) {
        self.note(Effect::ReleaseForeign(page));
    }
    fn wake(&mut self, vcpu: VcpuId) {
        self.note(Effect::Wake(vcpu));
    }
    fn vcpu_up(&mut self, vcpu: VcpuId, start: Option<&StartState>) {
        self.note(Effect::VcpuUp(vcpu, start.map(|start| start.rip)));
    }
    fn vcpu_down(&mut self, vcpu: VcpuId) {
        self.note(Effect::VcpuDown(vcpu));
    }
    fn nmi(&mut self, vcpu: VcpuId) {
        self.note(Effect::Nmi(vcpu));
    }
    fn console_write(&mut self, bytes: &[u8]) {
        self.note(Effect::Console(bytes.to_vec()));
    }
    fn log_once(&mut self, what: &str) {
        self.note(Effect::Log(what.to_owned()));
    }
    fn set_watchdog(&mut self, id: u32, seconds: u32) {
        self.note(Effect::Watchdog(id, seconds));
    }
}

/// A domain in these surroundings: frames 0..64 of RAM, of which 8..16 are mapped for the caller.
#[derive(Debug)]
pub struct Bench {
    /// The domain.
    pub domain: Domain,
    /// Its memory, filled with [`Bench::FILL`].
    pub ram: FakeRam,
    /// What the caller has mapped.
    pub gva: Identity,
    /// Its machine.
    pub fx: Recorder,
    /// Its clocks.
    pub now: Now,
    /// The layouts of the calls it makes.
    pub width: Width,
    /// The vCPU that makes them.
    pub vcpu: VcpuId,
}

impl Bench {
    /// What RAM is filled with.
    pub const FILL: u8 = 0xa5;
    /// RAM frames.
    pub const FRAMES: u64 = 64;
    /// Where arguments are put.
    pub const ARG: u64 = 0x8000;

    /// Four vCPUs, domain 7.
    #[must_use]
    pub fn new(width: Width) -> Bench {
        let ram = MemmapEntry { addr: 0, size: Self::FRAMES << 12, kind: 1 };
        let hole = MemmapEntry { addr: 0xfef0_0000, size: 0x10_0000, kind: 2 };
        let domain = Domain::new(Params {
            domid: 7,
            uuid: *b"0123456789abcdef",
            max_vcpus: 4,
            pages: Self::FRAMES,
            max_pages: Self::FRAMES,
            memory_map: vec![ram, hole],
            max_grant_frames: 4,
            max_grant_version: 2,
            max_ports: 1023,
            fifo: false,
            commandline: "none".to_owned(),
            long_mode: width == Width::Bits64,
            // 48 bits of physical address; what CR4 has up to SMAP; SYSCALL, long mode, no-execute.
            processor: Processor { cr3: (1 << 48) - 1, cr4: 0x3f_07ff & !(1 << 13), efer: 0xd01 },
            console_gfn: Gfn(0xfeff0),
            store_gfn: Gfn(0xfeff1),
        });
        Bench {
            domain,
            ram: FakeRam::new(0..Self::FRAMES, Self::FILL),
            gva: Identity(8..16),
            fx: Recorder::default(),
            now: Now { system_ns: 5_000_000_000, wall_ns: 1_700_000_005_000_000_123 },
            width,
            vcpu: 0,
        }
    }

    /// Anything with the domain and a context.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut Domain, &mut Cx<'_>) -> R) -> R {
        let now = self.now;
        let mut cx = Cx { mem: &self.ram, gva: &self.gva, fx: &mut self.fx, now: &|| now };
        f(&mut self.domain, &mut cx)
    }

    /// A call as it is.
    pub fn raw(&mut self, call: Call) -> Outcome {
        self.with(|domain, cx| domain.hypercall(&call, cx))
    }

    /// A call with these first arguments, continued until it ends.
    pub fn call<const N: usize>(&mut self, nr: u64, first: [u64; N]) -> Outcome {
        let call = Call { vcpu: self.vcpu, nr, args: [0; 6], width: self.width, cpl: 0 };
        let mut outcome = self.raw(call.with_args(first));
        loop {
            outcome = match outcome {
                Outcome::Again(rest) => self.raw(rest),
                Outcome::Ask(rest) => self.answered(rest),
                done => return done,
            };
        }
    }

    /// Goes on with a call when another domain has answered.
    pub fn answered(&mut self, rest: Call) -> Outcome {
        let told = self.fx.answers.pop_front().unwrap_or(Told::Nobody);
        self.tell(told);
        self.raw(rest)
    }

    /// The last question is answered.
    pub fn tell(&mut self, told: Told) {
        if let Some(question) = self.fx.asked {
            self.with(|domain, cx| domain.answer(question, told, cx));
        }
    }

    /// Puts bytes where arguments go.
    pub fn put<T: IntoBytes + Immutable>(&mut self, at: u64, value: &T) {
        assert_eq!(self.ram.write(Gpa(at), value.as_bytes()), Ok(()), "{at:#x} is no memory");
    }

    /// Reads them back.
    #[must_use]
    pub fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        assert_eq!(self.ram.read(Gpa(at), value.as_mut_bytes()), Ok(()), "{at:#x} is no memory");
        value
    }

    /// `nr(cmd, arg)` with a struct as argument: the result, and the struct as the call left it.
    pub fn op<T>(&mut self, nr: u64, cmd: u32, arg: &T) -> (Result<i64, Errno>, T)
    where
        T: IntoBytes + FromBytes + Immutable,
    {
        self.put(Self::ARG, arg);
        let outcome = self.call(nr, [cmd.into(), Self::ARG]);
        (result(outcome), self.get(Self::ARG))
    }

    /// What the machine was asked since the last time.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.fx.effects)
    }
}

/// The result register of a call that is done.
///
/// # Panics
/// When the call is not done.
#[track_caller]
pub fn result(outcome: Outcome) -> Result<i64, Errno> {
    match outcome {
        Outcome::Done(value) => Errno::from_ret(value),
        other => panic!("not done: {other:?}"),
    }
}
