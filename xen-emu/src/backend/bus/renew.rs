//! A guest that begins anew in the same domain (soft reset): its devices are offered to it as to a new one.

use super::nodes::{self, Place};
use super::serve::Server;
use crate::backend::device::DeviceError;
use std::sync::mpsc::Sender;
use xen_abi::io::xenbus::XenbusState;
use xen_domain::xenbus::{Backend, Event};
use xen_emu_api::control::Reply;
use xenstored::client::Batch;

/// Whether devices do what they are to do.
pub(super) enum Halt {
    /// They do.
    No,
    /// They come back and are disconnected; this one waits for it.
    Wanted(Sender<()>),
    /// None is connected, and none connects.
    Done,
}

impl Server {
    /// Disconnects all devices, and tells when nothing of the guest's is in use any more. What its frontends have written
    /// meanwhile connects nothing.
    pub(super) fn halt(&mut self, told: Sender<()>) {
        self.halt = Halt::Wanted(told);
        self.going.values_mut().for_each(|entry| entry.ports.clear());
        for place in self.entries.keys().cloned().collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&place) {
                entry.halted = false;
                self.halt_one(&place);
            }
        }
        self.halted();
    }

    /// Once it is back.
    pub(super) fn halt_one(&mut self, place: &Place) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.todo.clear();
        let anew = Reply::Error { message: "the guest has begun anew".into() };
        entry.discs.drain(..).for_each(|(_, answer)| answer(anew.clone()));
        if entry.away || entry.halted {
            return;
        }
        entry.halted = true;
        self.beside(
            place,
            |device| device.disconnect(),
            |server, place, ()| {
                if let Some(entry) = server.entries.get_mut(place) {
                    (entry.front, entry.lingers) = (None, None);
                    entry.ports.clear();
                }
            },
        );
    }

    /// All are, perhaps.
    pub(super) fn halted(&mut self) {
        let all = self.entries.values().all(|entry| entry.halted && !entry.away);
        if let (true, Halt::Wanted(told)) = (all, &self.halt) {
            // Who has given up waiting is not there to hear it.
            let _ = told.send(());
            self.halt = Halt::Done;
        }
    }

    /// All devices are new ones, but for those that were about to go.
    pub(super) fn offer(&mut self) -> Result<(), DeviceError> {
        self.halt = Halt::No;
        for place in self.entries.keys().cloned().collect::<Vec<_>>() {
            let Some(entry) = self.entries.get_mut(&place) else { continue };
            entry.todo.clear();
            if !entry.backend.online || entry.abandoned.is_some() {
                self.on(&place, Event::Removed);
                continue;
            }
            (entry.backend, entry.state) = (Backend::default(), XenbusState::INITIALISING);
            let mut anew = Batch::default();
            anew.rm(&place.front());
            let made = nodes::made(&place, &entry.config, &*entry.device);
            self.talk(|store| {
                store.transaction(|store| {
                    store.run(&anew)?;
                    store.run(&made)
                })
            })?;
            self.on(&place, Event::Start);
        }
        Ok(())
    }
}
