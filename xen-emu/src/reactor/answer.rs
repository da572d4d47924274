//! What the control socket may ask, and the answers.

use super::{REQUESTS, Reactor};
use crate::socket::ClientId;
use std::path::PathBuf;
use tracing::info;
use xen_emu_api::config::{DomainConfig, reason};
use xen_emu_api::control::{Reply, Request, Status};

impl Reactor {
    /// Answer what is asked; how many requests.
    pub(super) fn requests(&mut self) -> usize {
        let mut requests = 0;
        while requests < REQUESTS
            && let Some((id, request)) = self.control.next_request()
        {
            requests += 1;
            match request {
                Request::Attach { .. }
                | Request::Detach { .. }
                | Request::Devices
                | Request::Resize { .. }
                | Request::Media { .. } => self.ask_bus(id, request),
                Request::Describe { path } => self.describe(id, &path),
                Request::DumpCore { path } => self.dump_for(id, path),
                request => match self.answer(&request) {
                    Some(reply) => self.control.reply(id, &reply),
                    None => self.waiting.push(id),
                },
            }
        }
        requests
    }

    /// Have a request about devices answered by the bus, which may take its time.
    fn ask_bus(&mut self, id: ClientId, request: Request) {
        if request != Request::Devices
            && let Err(message) = self.living()
        {
            return self.control.reply(id, &Reply::Error { message });
        }
        let answer = self.later(id);
        self.bus.ask(request, Box::new(answer));
    }

    /// Write a core for a client, which waits for it.
    fn dump_for(&mut self, id: ClientId, path: PathBuf) {
        if self.end.is_some() {
            let message = "the domain is being destroyed".into();
            return self.control.reply(id, &Reply::Error { message });
        }
        info!("dumping core to {}", path.display());
        let (vm, stop, answer) = (self.vm.clone(), self.stop.clone(), self.later(id));
        let dump = move || {
            answer(match vm.dump_core(&path, &stop) {
                Ok(()) => Reply::Ok,
                Err(e) => Reply::Error { message: format!("core dump failed: {}: {e}", path.display()) },
            });
        };
        match std::thread::Builder::new().name("core".into()).spawn(dump) {
            Ok(thread) => self.cores.push(thread),
            Err(e) => self.control.reply(id, &Reply::Error { message: format!("core dump failed: {e}") }),
        }
    }

    /// How the bus answers a client.
    fn later(&self, id: ClientId) -> impl FnOnce(Reply) + Send + 'static {
        let (answers, ping) = (self.answers.0.clone(), self.answered.clone());
        move |reply| {
            // Nobody hears it only when all is over.
            let _ = answers.send((id, reply));
            ping.ping();
        }
    }

    /// Pass on what the bus has answered.
    pub(super) fn pass_on(&mut self) {
        while let Ok((id, reply)) = self.answers.1.try_recv() {
            self.control.reply(id, &reply);
        }
    }

    /// The answer to a request, or `None` when it has to wait for the shutdown.
    fn answer(&mut self, request: &Request) -> Option<Reply> {
        let done = |result: Result<(), String>| match result {
            Ok(()) => Reply::Ok,
            Err(message) => Reply::Error { message },
        };
        Some(match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Config => Reply::Config(Box::new(self.config())),
            Request::Dmesg => Reply::Text { text: self.log.text() },
            Request::Wait => Reply::Shutdown { reason: self.shutdown? },
            Request::Destroy => {
                info!("Domain {} is to be destroyed", self.launch.domid);
                self.destroy();
                Reply::Ok
            }
            Request::Pause
            | Request::Unpause
            | Request::PowerButton
            | Request::Nmi { .. }
            | Request::Reset => done(self.command(request)),
            Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Devices
            | Request::Resize { .. }
            | Request::Media { .. }
            | Request::Describe { .. }
            | Request::DumpCore { .. } => done(Err("this is answered elsewhere".into())),
        })
    }

    /// Some things can be done only with a domain that lives.
    fn living(&self) -> Result<(), String> {
        if self.end.is_some() {
            return Err("the domain is being destroyed".into());
        }
        if let Some(code) = self.shutdown {
            return Err(format!("the domain has shut down already, reason code {code}"));
        }
        Ok(())
    }

    fn command(&mut self, request: &Request) -> Result<(), String> {
        self.living()?;
        match request {
            Request::Pause => self.vm.pause(),
            Request::Unpause => self.vm.unpause(),
            Request::PowerButton => self.vm.power_button()?,
            Request::Nmi { vcpu } => self.vm.nmi(*vcpu)?,
            Request::Reset => {
                self.vm.pause();
                self.shut_down(reason::REBOOT);
            }
            _ => {}
        }
        Ok(())
    }

    /// The configuration with the devices as they are now.
    pub(super) fn config(&self) -> DomainConfig {
        DomainConfig { devices: self.bus.configs(), ..self.launch.config.clone() }
    }

    fn status(&self) -> Status {
        let config = &self.launch.config;
        Status {
            domid: self.launch.domid,
            name: config.name.clone(),
            uuid: config.uuid.clone(),
            pid: std::process::id(),
            paused: self.vm.paused(),
            shutdown: self.shutdown,
            dying: self.end.is_some(),
            memory_kib: self.vm.memory_kib(),
            max_memory_kib: config.maxmem_mib << 10,
            start_time: self.start_time,
            backend: self.vm.backend().to_owned(),
            tty: self.console.tty().map(str::to_owned),
            vcpus: self.vm.vcpus(),
        }
    }

    /// The bus has the devices, the machine all else; without a path there is all of it.
    fn describe(&mut self, id: ClientId, path: &str) {
        let devices = path.strip_prefix("devices").map(|rest| rest.trim_start_matches('/'));
        let text = match path {
            "" => self.vm.describe("") + &self.console.describe(),
            "console" => self.console.describe(),
            _ if devices.is_some() => String::new(),
            path => self.vm.describe(path),
        };
        let Some(devices) = devices.or((path.is_empty()).then_some("")) else {
            return self.control.reply(id, &Reply::Text { text });
        };
        let answer = self.later(id);
        let joined = move |reply| {
            answer(match reply {
                Reply::Text { text: devices } => Reply::Text { text: text + &devices },
                other => other,
            });
        };
        self.bus.ask(Request::Describe { path: devices.to_owned() }, Box::new(joined));
    }
}
