//! What a device does may take as long as the host likes: an image on a server that is gone answers nothing. So each of its calls that
//! may wait is made on a thread beside the bus. The device is away until then, what happens to it meanwhile waits, and the bus goes on
//! with the others.

use super::entry::{Entry, Nothing};
use super::nodes::Place;
use super::renew::Halt;
use super::serve::Server;
use super::{Command, coming};
use crate::backend::device::{Device, DeviceError};
use xen_domain::xenbus::{Action, Event};

/// What a device is to do next.
pub(super) enum Todo {
    Act(Action),
    Hear(Event),
    /// Its connection of this number cannot go on.
    Fail(u64, DeviceError),
}

/// A guest may go on with its half of a device that is away; of more than this the last counts.
const MOST: usize = 32;

/// What the bus does when a device is back.
pub(super) type After = Box<dyn FnOnce(&mut Server, &Place) + Send>;

impl Server {
    /// Something has happened to a device.
    pub(super) fn on(&mut self, place: &Place, event: Event) {
        self.todo(place, Todo::Hear(event));
    }

    /// Something is to be done for a device, after what is to be done already.
    pub(super) fn todo(&mut self, place: &Place, todo: Todo) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let heard = |todo: &Todo| matches!(todo, Todo::Hear(Event::Frontend(_)));
        if entry.todo.len() >= MOST
            && let Some(oldest) = entry.todo.iter().position(heard)
        {
            entry.todo.remove(oldest);
        }
        entry.todo.push_back(todo);
        self.proceed(place);
    }

    /// Until all is done, or the device is away.
    pub(super) fn proceed(&mut self, place: &Place) {
        while let Halt::No = self.halt {
            let Some(entry) = self.entries.get_mut(place).filter(|entry| !entry.away) else { return };
            match entry.todo.pop_front() {
                None => return,
                Some(Todo::Hear(event)) => step(place, entry, event),
                Some(Todo::Act(action)) => self.act(place, action),
                Some(Todo::Fail(connection, _)) if entry.connections != connection => {}
                Some(Todo::Fail(_, e)) => {
                    self.failed(place, e);
                    self.next(place, Event::Failed);
                }
            }
        }
    }

    /// This happens to a device before anything else does.
    pub(super) fn next(&mut self, place: &Place, event: Event) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.todo.push_front(Todo::Hear(event));
        }
    }

    /// Has a device do something beside the bus, and then the bus what follows from it.
    pub(super) fn beside<T: Send + 'static>(
        &mut self,
        place: &Place,
        work: impl FnOnce(&mut dyn Device) -> T + Send + 'static,
        after: impl FnOnce(&mut Server, &Place, T) + Send + 'static,
    ) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.away = true;
        let mut device = std::mem::replace(&mut entry.device, Box::new(Nothing));
        let (line, whose) = (self.line.clone(), place.clone());
        let work = move || {
            let done = work(&mut *device);
            let after: After = Box::new(move |server, place| after(server, place, done));
            line.send(Command::Back(whose, device, after));
        };
        match coming::beside("device") {
            Ok(thread) => drop(thread.send(Box::new(work))),
            Err(e) => {
                tracing::warn!("{place}: {e}");
                work();
            }
        }
    }

    /// A device has done what it was to do.
    pub(super) fn back(&mut self, place: &Place, device: Box<dyn Device>, after: After) {
        let Some(entry) = self.entries.get_mut(place) else {
            // The domain ends.
            return self.close(place.clone(), device);
        };
        (entry.device, entry.away) = (device, false);
        after(self, place);
        if let Halt::Wanted(_) = self.halt {
            self.halt_one(place);
            self.halted();
        }
        self.proceed(place);
    }
}

fn step(place: &Place, entry: &mut Entry, event: Event) {
    let before = entry.backend;
    let (backend, actions) = before.step(event);
    entry.backend = backend;
    tracing::debug!("{place}: {event:?} in {:?}: {actions:?}", before.phase);
    actions.into_iter().rev().for_each(|action| entry.todo.push_front(Todo::Act(action)));
}
