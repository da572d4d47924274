//! How vCPU threads are stopped, paused, and asked to do what only they can do.
//!
//! A vCPU's attributes can be set only while it is not in KVM_RUN: the ioctl would wait for ever on an AP that
//! waits for its start-up IPI. So work for another vCPU is posted here, the target is kicked out of KVM_RUN, and a
//! waiter serves its own mail meanwhile (two vCPUs may bring each other's state up at once).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a vCPU thread shall do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Enter the guest.
    Run,
    /// End the thread.
    Stop,
}

/// A posted piece of work: (vCPU, sequence number in its queue).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize, u64);

struct Queue<T> {
    mail: VecDeque<T>,
    posted: u64,
    done: u64,
    parked: bool,
    gone: bool,
}

struct State<T> {
    queues: Vec<Queue<T>>,
    paused: bool,
    shut_down: bool,
    stop: bool,
}

/// The mailboxes of all vCPUs of a domain.
pub struct Mailboxes<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Looked at before every KVM_RUN; set before every kick.
    attention: Vec<AtomicBool>,
}

impl<T> Mailboxes<T> {
    /// For so many vCPUs, paused.
    pub fn new(vcpus: usize) -> Self {
        let queue = || Queue { mail: VecDeque::new(), posted: 0, done: 0, parked: false, gone: false };
        Mailboxes {
            state: Mutex::new(State {
                queues: (0..vcpus).map(|_| queue()).collect(),
                paused: true,
                shut_down: false,
                stop: false,
            }),
            changed: Condvar::new(),
            attention: (0..vcpus).map(|_| AtomicBool::new(true)).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attend(&self, vcpu: usize) {
        if let Some(flag) = self.attention.get(vcpu) {
            flag.store(true, Ordering::SeqCst);
        }
    }

    fn attend_all(&self) {
        (0..self.attention.len()).for_each(|vcpu| self.attend(vcpu));
        self.changed.notify_all();
    }

    /// Whether vCPU `vcpu` must call [`Mailboxes::serve`] before it enters the guest. Clears the flag.
    pub fn wanted(&self, vcpu: usize) -> bool {
        self.attention.get(vcpu).is_some_and(|flag| flag.swap(false, Ordering::SeqCst))
    }

    /// Leave work for `vcpu`. The caller kicks it out of KVM_RUN afterwards and may [`Mailboxes::wait`].
    pub fn post(&self, vcpu: usize, mail: T) -> Option<Ticket> {
        let mut state = self.lock();
        let queue = state.queues.get_mut(vcpu).filter(|queue| !queue.gone)?;
        queue.mail.push_back(mail);
        queue.posted += 1;
        let ticket = Ticket(vcpu, queue.posted);
        drop(state);
        self.attend(vcpu);
        self.changed.notify_all();
        Some(ticket)
    }

    /// Wait until the work of `ticket` was done; `own` serves the waiter's own mail meanwhile, when the waiter is
    /// a vCPU.
    pub fn wait(&self, ticket: Ticket, own: Option<(usize, &mut dyn FnMut(T))>) {
        let (me, mut act) = own.map_or((None, None), |(me, act)| (Some(me), Some(act)));
        let mut state = self.lock();
        loop {
            let Some(target) = state.queues.get(ticket.0) else { return };
            if target.gone || target.done >= ticket.1 {
                return;
            }
            let mail = me.and_then(|me| state.queues.get_mut(me)?.mail.pop_front());
            state = match (mail, me, act.as_mut()) {
                (Some(mail), Some(me), Some(act)) => {
                    drop(state);
                    act(mail);
                    self.finish(me)
                }
                _ => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn finish(&self, vcpu: usize) -> MutexGuard<'_, State<T>> {
        let mut state = self.lock();
        if let Some(queue) = state.queues.get_mut(vcpu) {
            queue.done += 1;
        }
        self.changed.notify_all();
        state
    }

    /// On the vCPU's own thread: do its mail with `act`, stay here while paused or shut down, and say how to go
    /// on.
    pub fn serve(&self, vcpu: usize, act: &mut dyn FnMut(T)) -> Flow {
        let mut state = self.lock();
        loop {
            if let Some(mail) = state.queues.get_mut(vcpu).and_then(|queue| queue.mail.pop_front()) {
                drop(state);
                act(mail);
                state = self.finish(vcpu);
                continue;
            }
            let park = (state.paused || state.shut_down) && !state.stop;
            if let Some(queue) = state.queues.get_mut(vcpu)
                && queue.parked != park
            {
                queue.parked = park;
                self.changed.notify_all();
            }
            if !park {
                return if state.stop { Flow::Stop } else { Flow::Run };
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// On a vCPU's own thread: wait until there is something to [`Mailboxes::serve`], at most so long.
    pub fn sleep(&self, vcpu: usize, limit: Duration) {
        let state = self.lock();
        let idle = |state: &mut State<T>| {
            let mail = state.queues.get(vcpu).is_some_and(|queue| !queue.mail.is_empty());
            !(mail || state.paused || state.shut_down || state.stop)
        };
        drop(self.changed.wait_timeout_while(state, limit, idle));
    }

    /// The vCPU's thread ends: nobody must wait for it any more.
    pub fn gone(&self, vcpu: usize) {
        if let Some(queue) = self.lock().queues.get_mut(vcpu) {
            queue.gone = true;
        }
        self.changed.notify_all();
    }

    /// Ask all vCPUs to pause (true) or go on (false). The caller kicks them and may [`Mailboxes::await_parked`].
    pub fn pause(&self, paused: bool) {
        self.lock().paused = paused;
        self.attend_all();
    }

    /// Paused by [`Mailboxes::pause`].
    pub fn paused(&self) -> bool {
        self.lock().paused
    }

    /// vCPUs may be in the guest: neither paused nor shut down.
    pub fn running(&self) -> bool {
        let state = self.lock();
        !state.paused && !state.shut_down
    }

    /// The domain has shut down; true the first time. vCPUs will not enter the guest again.
    pub fn shut_down(&self) -> bool {
        let first = !std::mem::replace(&mut self.lock().shut_down, true);
        self.attend_all();
        first
    }

    /// The domain goes on after all, paused.
    pub fn revive(&self) {
        let mut state = self.lock();
        (state.paused, state.shut_down) = (true, false);
        drop(state);
        self.attend_all();
    }

    /// All vCPU threads have been asked to end.
    pub fn stopping(&self) -> bool {
        self.lock().stop
    }

    /// Ask all vCPU threads to end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.attend_all();
    }

    /// Wait until every vCPU is parked or gone.
    pub fn await_parked(&self) {
        let mut state = self.lock();
        while (state.paused || state.shut_down) && !state.queues.iter().all(|q| q.parked || q.gone) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn two_vcpus_that_wait_for_each_other_both_get_done() {
        let boxes = Arc::new(Mailboxes::<u32>::new(2));
        boxes.pause(false);
        let run = |me: usize| {
            let boxes = boxes.clone();
            thread::spawn(move || {
                let mut sum = 0;
                for n in 0..1000 {
                    let ticket = boxes.post(1 - me, n).unwrap();
                    boxes.wait(ticket, Some((me, &mut |mail| sum += mail)));
                }
                while sum < 999 * 1000 / 2 {
                    assert_eq!(boxes.serve(me, &mut |mail| sum += mail), Flow::Run);
                    thread::yield_now();
                }
                sum
            })
        };
        let threads = [run(0), run(1)];
        assert_eq!(threads.map(|t| t.join().unwrap()), [499_500; 2]);
    }

    #[test]
    fn a_paused_vcpu_still_does_its_mail_and_stops_when_told() {
        let boxes = Arc::new(Mailboxes::<u32>::new(1));
        let vcpu = {
            let boxes = boxes.clone();
            thread::spawn(move || {
                let mut mail = Vec::new();
                let flow = boxes.serve(0, &mut |m| mail.push(m));
                boxes.gone(0);
                (flow, mail)
            })
        };
        boxes.await_parked();
        let ticket = boxes.post(0, 7).unwrap();
        boxes.wait(ticket, None);
        boxes.stop();
        assert_eq!(vcpu.join().unwrap(), (Flow::Stop, vec![7]));
        assert!(boxes.post(0, 8).is_none());
        assert!(!boxes.running(), "paused");
        boxes.pause(false);
        assert!(boxes.running());
        assert!(boxes.shut_down() && !boxes.shut_down());
        assert!(!boxes.running(), "shut down");
        boxes.revive();
        assert!(boxes.paused() && !boxes.running());
        boxes.pause(false);
        assert!(boxes.running());
    }
}
