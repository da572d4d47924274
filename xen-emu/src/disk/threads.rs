//! The engine for qcow2 and for hosts without io_uring: a few threads that block, made as they are needed.

use super::Disk;
use super::engine::{Done, Engine, Gather, Io};
use crate::sched::patient;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Requests of one queue that block at the same time.
const MOST: usize = 16;

/// Threads of one queue.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    epoll: Epoll,
    _watch: Vec<OwnedFd>,
}

struct Shared {
    disk: Option<Arc<Disk>>,
    state: Mutex<State>,
    work: Condvar,
    /// Written to when `done` is no longer empty.
    ended: EventFd,
}

#[derive(Default)]
struct State {
    todo: VecDeque<Io>,
    done: Vec<Done>,
    idle: usize,
    stop: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out one request.
    fn perform(&self, mut io: Io) {
        let result = match &self.disk {
            Some(disk) => {
                disk.align(&mut io);
                let result = disk.perform(&mut io);
                Disk::settle(&mut io, &result);
                result
            }
            None => Err(io::Error::from_raw_os_error(libc::ENOMEDIUM)),
        };
        let mut state = self.state();
        state.done.push(Done { tag: io.tag, result, data: io.data });
        if state.done.len() == 1 {
            // Nobody reads it, and 2^64 requests do not happen.
            let _ = self.ended.write(1);
        }
    }

    fn work(&self) {
        // The thread that has started this one may have been a patient one. Where that may not be changed, it was not.
        let _ = patient(false);
        loop {
            let mut state = self.state();
            let io = loop {
                if let Some(io) = state.todo.pop_front() {
                    break io;
                }
                if state.stop {
                    return;
                }
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            };
            drop(state);
            self.perform(io);
        }
    }
}

impl Threads {
    /// No threads yet.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(disk: Option<Arc<Disk>>, watch: Vec<OwnedFd>) -> io::Result<Threads> {
        let ended = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Edges only, so that nothing needs to be read.
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        for fd in &watch {
            epoll.add(fd, edge)?;
        }
        let shared = Arc::new(Shared { disk, state: Mutex::default(), work: Condvar::new(), ended });
        epoll.add(shared.ended(), edge)?;
        Ok(Threads { shared, workers: Vec::new(), epoll, _watch: watch })
    }

    /// Written to when requests have ended.
    pub fn ended(&self) -> io::Result<OwnedFd> {
        self.shared.ended().try_clone_to_owned()
    }

    /// What has ended since the last time.
    pub fn take(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.shared.state().done);
    }

    /// One more, if all are busy; without any the request is carried out here.
    fn hire(&mut self) {
        if self.workers.len() == MOST {
            return;
        }
        let shared = self.shared.clone();
        match std::thread::Builder::new().name("blk-io".into()).spawn(move || shared.work()) {
            Ok(worker) => self.workers.push(worker),
            Err(_) if !self.workers.is_empty() => {}
            Err(_) => {
                let todo = std::mem::take(&mut self.shared.state().todo);
                todo.into_iter().for_each(|io| self.shared.perform(io));
            }
        }
    }
}

impl Shared {
    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Engine for Threads {
    fn submit(&mut self, io: Io) {
        let mut state = self.shared.state();
        state.todo.push_back(io);
        let enough = state.idle >= state.todo.len();
        drop(state);
        if enough {
            self.shared.work.notify_one();
        } else {
            self.hire();
        }
    }

    fn wait(&mut self, _gather: Gather, done: &mut Vec<Done>) -> io::Result<u32> {
        self.take(done);
        if !done.is_empty() {
            return Ok(0);
        }
        let mut events = [EpollEvent::empty(); 4];
        match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        self.take(done);
        Ok(1)
    }
}

/// Finishes what has begun and forgets the rest.
impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stop = true;
        state.todo.clear();
        drop(state);
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // It panics only by a defect of ours, which the panic hook has told.
            let _ = worker.join();
        }
    }
}
