//! The engine of raw images: one io_uring per queue. A turn of the queue is one system call, which hands over all new
//! requests and waits for ends and notifications.
#![expect(unsafe_code, reason = "the kernel is given addresses that it uses later")]

use super::Disk;
use super::engine::{Done, Engine, Gather, Io, Op};
use super::threads::Threads;
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use xen_emu_api::device::DiskCache;

/// Submission entries; more requests go in more calls.
const ENTRIES: u32 = 256;
/// `user_data` from here on is an index into the watched descriptors.
const WATCH: u64 = 1 << 32;

/// A ring with its requests.
pub struct Uring {
    ring: IoUring,
    disk: Arc<Disk>,
    slots: Vec<Option<Io>>,
    free: Vec<u32>,
    /// For what a ring cannot or should not do: discards, and flushes that have to wait.
    side: Threads,
    side_busy: usize,
    /// The last one is `side`'s.
    watch: Vec<OwnedFd>,
    ready: Vec<Done>,
    calls: u32,
}

impl Uring {
    /// Whether this host lets us use io_uring, and has what we need of it. Asked once.
    pub fn possible() -> bool {
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| match probe() {
            Ok(()) => true,
            Err(e) => {
                tracing::info!("disks use threads: io_uring: {e}");
                false
            }
        })
    }

    /// A ring for the calling thread.
    ///
    /// # Errors
    /// The host's.
    pub fn new(disk: Arc<Disk>, mut watch: Vec<OwnedFd>) -> io::Result<Uring> {
        let side = Threads::new(Some(disk.clone()), Vec::new())?;
        watch.push(side.ended()?);
        let mut uring = Uring {
            ring: build()?,
            disk,
            slots: Vec::new(),
            free: Vec::new(),
            side,
            side_busy: 0,
            watch,
            ready: Vec::new(),
            calls: 0,
        };
        (0..uring.watch.len()).try_for_each(|index| uring.poll(index))?;
        Ok(uring)
    }

    /// Every write to that eventfd makes a completion, from now on.
    fn poll(&mut self, index: usize) -> io::Result<()> {
        let Some(fd) = self.watch.get(index) else { return Ok(()) };
        let flags = u32::from(libc::POLLIN.unsigned_abs());
        let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), flags).multi(true).build();
        self.push(&poll.user_data(WATCH + index as u64))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: iovecs and buffers that the entry names belong to an `Io` in `slots`, which stays there until its
            // completion; `drop` waits for those.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.calls += 1;
            self.ring.submit()?;
        }
    }

    /// Hands a request, or the rest of one, to the kernel.
    fn begin(&mut self, slot: u32) -> io::Result<()> {
        let Some(Some(io)) = self.slots.get(slot as usize) else { return Ok(()) };
        // Not registered with the ring: the kernel takes rings apart at leisure, and the image would stay locked.
        let Some(file) = self.disk.image.file() else { return Err(io::ErrorKind::Unsupported.into()) };
        let fd = types::Fd(file.as_raw_fd());
        let (iov, count) = io.data.iovecs();
        let count = u32::try_from(count.min(1024)).unwrap_or(0);
        // One piece, as a page is, needs no list to be read.
        let entry = match (io.op, io.data.single()) {
            (Op::Read, Some((to, len))) => opcode::Read::new(fd, to, len).offset(io.at).build(),
            (Op::Read, None) => opcode::Readv::new(fd, iov, count).offset(io.at).build(),
            (Op::Write, Some((from, len))) => opcode::Write::new(fd, from, len).offset(io.at).build(),
            (Op::Write, None) => opcode::Writev::new(fd, iov, count).offset(io.at).build(),
            (Op::Flush, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Op::Discard { .. }, _) => return Err(io::ErrorKind::Unsupported.into()),
        };
        self.push(&entry.user_data(u64::from(slot)))
    }

    fn end(&mut self, slot: u32, result: io::Result<()>) {
        if let Some(mut io) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.free.push(slot);
            if io.op == Op::Flush {
                self.disk.flushes.end(result.is_ok());
            }
            Disk::settle(&mut io, &result);
            self.ready.push(Done { tag: io.tag, result, data: io.data });
        }
    }

    fn aside(&mut self, io: Io) {
        self.side_busy += 1;
        self.side.submit(io);
    }

    /// A completion of a request: its end, or it goes on.
    fn completed(&mut self, slot: u32, result: i32) {
        let Some(Some(io)) = self.slots.get_mut(slot as usize) else { return };
        let more = match usize::try_from(result) {
            Err(_) => match io::Error::from_raw_os_error(-result) {
                e if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Ok(true),
                e => Err(e),
            },
            Ok(_) if io.op == Op::Flush => Ok(false),
            Ok(0) if io.data.len() > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                io.data.skip(n);
                io.at += n as u64;
                Ok(io.data.len() > 0)
            }
        };
        match more.and_then(|more| if more { self.begin(slot).map(|()| true) } else { Ok(false) }) {
            Ok(true) => {}
            Ok(false) => self.end(slot, Ok(())),
            Err(e) => self.end(slot, Err(e)),
        }
    }

    /// Takes every completion there is; whether one was a notification.
    fn reap(&mut self) -> io::Result<bool> {
        let mut notified = false;
        loop {
            let Some(entry) = self.ring.completion().next() else { return Ok(notified) };
            match entry.user_data().checked_sub(WATCH).and_then(|index| usize::try_from(index).ok()) {
                Some(index) => {
                    notified = true;
                    if entry.result() < 0 {
                        return Err(io::Error::from_raw_os_error(-entry.result()));
                    }
                    if index + 1 == self.watch.len() {
                        let before = self.ready.len();
                        self.side.take(&mut self.ready);
                        self.side_busy = self.side_busy.saturating_sub(self.ready.len() - before);
                    }
                    if !cqueue::more(entry.flags()) {
                        self.poll(index)?;
                    }
                }
                None => {
                    if let Ok(slot) = u32::try_from(entry.user_data()) {
                        self.completed(slot, entry.result());
                    }
                }
            }
        }
    }

    /// Hands over what is new and waits for completions: for one as long as it takes.
    fn enter(&mut self, gather: Gather) -> io::Result<bool> {
        self.calls += 1;
        let time = types::Timespec::from(gather.patience);
        let entered = match gather.events {
            0 | 1 => self.ring.submit_and_wait(1),
            more => self.ring.submitter().submit_with_args(more, &types::SubmitArgs::new().timespec(&time)),
        };
        match entered.map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) => {}
            // Completions have to be taken first, a signal came, or that was the time.
            Err((Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME), _)) => {}
            Err((_, e)) => return Err(e),
        }
        self.reap()
    }
}

impl Engine for Uring {
    fn submit(&mut self, mut io: Io) {
        let idle = match io.op {
            Op::Flush if self.disk.cache == DiskCache::Unsafe => true,
            Op::Flush => match self.disk.flushes.try_begin() {
                Ok(true) => false,
                // Another queue's is under way: waits for that, and begins then.
                Ok(false) => return self.aside(io),
                Err(e) => return self.ready.push(Done { tag: io.tag, result: Err(e), data: io.data }),
            },
            Op::Read | Op::Write => io.data.len() == 0,
            Op::Discard { .. } => return self.aside(io),
        };
        if idle {
            return self.ready.push(Done { tag: io.tag, result: Ok(()), data: io.data });
        }
        self.disk.align(&mut io);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(io);
        }
        if let Err(e) = self.begin(slot) {
            self.end(slot, Err(e));
        }
    }

    fn wait(&mut self, mut gather: Gather, done: &mut Vec<Done>) -> io::Result<u32> {
        self.calls = 0;
        if !self.ready.is_empty() {
            // Somebody may wait for those: hand over what is new, and go on.
            self.calls += 1;
            self.ring.submit()?;
            self.reap()?;
        }
        while self.ready.is_empty() {
            if self.enter(gather)? {
                break;
            }
            gather = Gather::ONE;
        }
        done.append(&mut self.ready);
        Ok(self.calls)
    }
}

/// Waits until the kernel has let go of every buffer.
impl Drop for Uring {
    fn drop(&mut self) {
        while self.free.len() < self.slots.len() {
            if let Err(e) = self.enter(Gather::ONE) {
                tracing::error!("io_uring: {e}; memory of requests in flight is kept for ever");
                self.disk.flushes.end(false);
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}

/// A ring for this thread alone, with as much of the newer economies as the kernel has.
fn build() -> io::Result<IoUring> {
    let newest = IoUring::builder().setup_clamp().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
    let newer = newest.or_else(|_| IoUring::builder().setup_clamp().setup_coop_taskrun().build(ENTRIES));
    newer.or_else(|_| IoUring::builder().setup_clamp().build(ENTRIES))
}

fn probe() -> io::Result<()> {
    let ring = build()?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::PollAdd::CODE,
    ];
    // Polls that fire more than once came with this feature's release.
    let known =
        needed.iter().all(|code| probe.is_supported(*code)) && ring.params().is_feature_resource_tagging();
    if known { Ok(()) } else { Err(io::Error::other("too old")) }
}
