//! The bus: the xenbus life cycle of all PV devices of a domain, on one thread with a store connection of its own.
//!
//! Waiting for a guest to let go and talking to the store are done here and not on the main thread; opening and closing
//! images, and whatever else may wait for one, on threads of their own. Devices have their own threads for their rings; the bus only connects and disconnects them.

mod act;
mod again;
mod busy;
mod coming;
mod entry;
mod nodes;
mod renew;
mod requests;
mod serve;
mod watch;

use super::device::{self, Channels, DeviceError, Disc, GuestRam};
use coming::Opened;
pub use coming::with_script;
use nix::sys::eventfd::{EfdFlags, EventFd};
pub use nodes::Place;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use xen_domain::gnttab::Grants;
use xen_emu_api::control::{Reply, Request};
use xen_emu_api::device::Device;
use xenstored::client::Client;

/// Makes the backend of a configured device of this domain; on an error nothing is left.
pub type Open = dyn Fn(&Device) -> Result<Box<dyn device::Device>, DeviceError> + Send + Sync;
/// [`Wiring::grace`] of a guest: a busy one needs some of it.
pub const GRACE: Duration = Duration::from_secs(1);
/// Makes a further connection to the store.
pub type Connect = dyn Fn() -> Result<Client, xenstored::client::Error> + Send + Sync;

/// What the machine gives the bus.
pub struct Wiring {
    /// The guest.
    pub domid: u16,
    /// Its memory.
    pub memory: Arc<dyn GuestRam>,
    /// Its grants.
    pub grants: Arc<dyn Grants>,
    /// Its event channels.
    pub channels: Arc<dyn Channels>,
    /// The kinds of devices.
    pub open: Arc<Open>,
    /// The store.
    pub connect: Arc<Connect>,
    /// How long a guest that had closed a device may take to see that it is gone: it has no ports of its any more that would show it.
    pub grace: Duration,
}

/// Told the answer to a request, from the bus's thread.
pub type Answer = Box<dyn FnOnce(Reply) + Send>;

enum Command {
    Ask(Request, Answer),
    /// A device that was connected for the so-manieth time cannot go on.
    Failed(Place, u64, DeviceError),
    /// A device has been opened, or cannot be.
    Opened(Place, Result<Opened, DeviceError>),
    /// The host's end of a device is gone.
    Closed(Place),
    /// A device has done what it was to do, and this follows.
    Back(Place, Box<dyn device::Device>, busy::After),
    /// A disc has been opened, or cannot be.
    Tried(Place, Option<Disc>, Answer, Result<(), DeviceError>),
    /// The guest begins anew: all devices are disconnected, and none connects until [`Command::Offer`].
    Halt(Sender<()>),
    /// Told whether the store has the nodes of new devices.
    Offer(Sender<Result<(), DeviceError>>),
    Close,
}

/// How others speak to the thread.
#[derive(Clone)]
struct Line {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Line {
    /// Comes back with what the thread is not there to hear any more.
    fn send(&self, command: Command) -> Option<Command> {
        let unheard = self.commands.send(command).err().map(|mpsc::SendError(command)| command);
        // Full only if it was woken 2^64 - 2 times.
        let _ = self.wake.write(1);
        unheard
    }
}

/// The devices of a domain, as the main thread has them.
pub struct Bus {
    line: Line,
    configs: Arc<Mutex<Vec<Device>>>,
    thread: Option<JoinHandle<()>>,
}

impl Bus {
    /// Starts the thread, without devices. `store` is for it alone.
    ///
    /// # Errors
    /// The host's.
    pub fn start(store: Client, wiring: Wiring) -> io::Result<Bus> {
        let (commands, heard) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let line = Line { commands, wake };
        let configs = Arc::new(Mutex::new(Vec::new()));
        let server = serve::Server::new(store, wiring, (line.clone(), heard), configs.clone());
        let thread = std::thread::Builder::new().name("xenbus".into()).spawn(move || server.run())?;
        Ok(Bus { line, configs, thread: Some(thread) })
    }

    /// Has a request about devices answered, now or later.
    pub fn ask(&self, request: Request, answer: Answer) {
        if let Some(Command::Ask(request, answer)) = self.line.send(Command::Ask(request, answer)) {
            answer(match request {
                Request::Devices => Reply::Devices { devices: Vec::new() },
                Request::Describe { .. } => Reply::Text { text: String::new() },
                _ => Reply::Error { message: "the domain has no devices any more".into() },
            });
        }
    }

    /// Attaches a device and waits for that.
    ///
    /// # Errors
    /// In one line why not; nothing is left then.
    pub fn attach(&self, device: &Device) -> Result<(), String> {
        let (told, answer) = mpsc::channel();
        let request = Request::Attach { device: device.clone() };
        self.ask(request, Box::new(move |reply| drop(told.send(reply))));
        match answer.recv() {
            Ok(Reply::Error { message }) => Err(message),
            Ok(_) => Ok(()),
            Err(_) => Err("the thread of the devices has ended".into()),
        }
    }

    /// The devices as they are now, in the order in which they came: for a domain that follows this one.
    pub fn configs(&self) -> Vec<Device> {
        crate::guest::lock(&self.configs).clone()
    }

    /// Disconnects all devices, and waits for that: the guest is about to begin anew.
    ///
    /// # Errors
    /// One does not let go.
    pub fn halt(&self) -> Result<(), DeviceError> {
        let (told, done) = mpsc::channel();
        self.line.send(Command::Halt(told));
        done.recv_timeout(requests::PATIENCE)
            .map_err(|_| DeviceError("a device does not let go of the guest".into()))
    }

    /// Offers all devices to a guest that begins anew, after [`Bus::halt`].
    ///
    /// # Errors
    /// The store's.
    pub fn offer(&self) -> Result<(), DeviceError> {
        let (told, done) = mpsc::channel();
        let _ = self.line.send(Command::Offer(told));
        done.recv().unwrap_or_else(|_| Err(DeviceError("the thread of the devices has ended".into())))
    }

    /// Closes all devices, and waits for that; their nodes stay. Idempotent.
    pub fn close(&mut self) {
        let _ = self.line.send(Command::Close);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the devices has panicked");
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
pub mod tests;
