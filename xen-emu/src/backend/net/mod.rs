//! Network devices (`vif`): protocol of `public/io/netif.h`, with a TAP interface or passt at the other end.

mod counters;
mod grant;
mod link;
pub mod proto;
mod queue;
mod script;
mod shared;
mod sys;
mod tap;
#[cfg(test)]
pub mod tests;
mod user;

use super::device::{Connection, Device, DeviceError, Nodes};
use counters::Counters;
use grant::Grant;
use link::{Attachment, Link};
use proto::offload::Accepts;
use proto::rate::Rate;
use queue::{Ctrl, Cx, Queue, Rx, Tx};
use script::Script;
use shared::Shared;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;
use xen_emu_api::device::{VifAttach, VifConfig};

/// Most queues offered, whatever was asked for.
const QUEUES_MAX: u32 = 64;

/// A vif.
pub struct Vif {
    name: String,
    config: VifConfig,
    attachment: Box<dyn Attachment>,
    script: Option<Script>,
    queues: u32,
    counters: Arc<Counters>,
    connected: Option<Connected>,
}

struct Connected {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Box<dyn Link>>>,
    grefs: Vec<u32>,
}

impl Vif {
    /// Makes the host's end: interface, bridge port and script, or passt. `vcpus`: queues offered if the
    /// configuration does not say.
    ///
    /// # Errors
    /// One line that says what would be right; nothing is left of the attempt.
    pub fn open(domid: u16, config: &VifConfig, vcpus: u32) -> Result<Vif, DeviceError> {
        let devid = config.devid;
        let name = config.ifname.clone().unwrap_or_else(|| format!("vif{domid}.{devid}"));
        let in_line = |e: DeviceError| DeviceError(format!("vif {devid}: {e}"));
        let script = config.script.as_ref().map(|script| Script::find(script, domid, config, &name));
        let script = script.transpose().map_err(in_line)?.flatten();
        let attachment = attach(config, &name, script.is_some()).map_err(in_line)?;
        if let Some(script) = &script {
            script.run("online").map_err(in_line)?;
        }
        let mut vif = Vif::with(name, config.clone(), attachment, vcpus);
        vif.script = script;
        Ok(vif)
    }

    /// With this at the other end.
    fn with(name: String, config: VifConfig, attachment: Box<dyn Attachment>, vcpus: u32) -> Vif {
        let queues = config.queues.unwrap_or(vcpus).min(attachment.queues()).clamp(1, QUEUES_MAX);
        Vif { name, config, attachment, script: None, queues, counters: Arc::default(), connected: None }
    }

    fn start(&mut self, connection: Connection) -> Result<Connected, DeviceError> {
        let queues = self.queues_of(&connection)?;
        let accepts = accepts(&connection);
        let rate = self.config.rate.map(|rate| Rate::new(rate, Instant::now()));
        let rx_notify = connection.front.flag("feature-rx-notify");
        let shared = Shared::new(queues, accepts, rx_notify, rate, self.counters.clone());
        let shared = Arc::new(shared.map_err(|e| DeviceError(format!("no eventfd: {e}")))?);
        shared.steer(|steering| steering.filter.on = connection.front.flag("request-multicast-control"));
        let mut links = self.attachment.links(queues, accepts)?;
        let mut built = Vec::new();
        for (index, link) in links.drain(..).enumerate() {
            match self.queue(&connection, &shared, index, queues) {
                Ok(parts) => built.push((parts, link)),
                Err(e) => {
                    self.attachment.release(built.into_iter().map(|(_, link)| link).chain([link]).collect());
                    return Err(e);
                }
            }
        }
        let mut connected = Connected { shared, threads: Vec::new(), grefs: Vec::new() };
        for (parts, link) in built {
            let queue = parts.with(link);
            connected.grefs.extend(queue.grefs());
            let thread = format!("{}-q{}", self.name, queue.cx.queue);
            let fail = connection.fail.clone();
            let run = move || {
                let (link, ended) = queue.run();
                if let Err(e) = ended {
                    fail(e);
                }
                link
            };
            match std::thread::Builder::new().name(thread).spawn(run) {
                Ok(thread) => connected.threads.push(thread),
                Err(e) => {
                    self.stop(connected);
                    return Err(DeviceError(format!("no thread for a queue: {e}")));
                }
            }
        }
        Ok(connected)
    }

    fn queues_of(&self, connection: &Connection) -> Result<usize, DeviceError> {
        let front = &connection.front;
        if !front.flag("request-rx-copy") {
            return Err(DeviceError(
                "the frontend wants page flipping; only request-rx-copy = 1 is supported".into(),
            ));
        }
        match front.get::<u32>("multi-queue-num-queues")?.unwrap_or(1) {
            n if (1..=self.queues).contains(&n) => Ok(n as usize),
            n => Err(DeviceError(format!("the frontend asks for {n} queues of 1 to {}", self.queues))),
        }
    }

    /// Maps the rings of a queue and binds its event channels.
    fn queue(
        &self,
        connection: &Connection,
        shared: &Arc<Shared>,
        index: usize,
        queues: usize,
    ) -> Result<Parts, DeviceError> {
        let Connection { front, memory, grants, channels, .. } = connection;
        let prefix = if queues == 1 { String::new() } else { format!("queue-{index}/") };
        let node = |name: &str| front.need::<u32>(&format!("{prefix}{name}"));
        let cx = Cx {
            name: self.name.clone(),
            queue: index,
            memory: memory.clone(),
            grants: grants.clone(),
            shared: shared.clone(),
        };
        let tx = Tx::new(&cx, Grant::ring(grants, node("tx-ring-ref")?)?)?;
        let rx = Rx::new(&cx, Grant::ring(grants, node("rx-ring-ref")?)?)?;
        let split = front.get::<u32>(&format!("{prefix}event-channel-tx"))?;
        let (tx_channel, rx_channel) = match split {
            Some(port) => (channels.bind(port)?, Some(channels.bind(node("event-channel-rx")?)?)),
            None => (channels.bind(node("event-channel")?)?, None),
        };
        let ctrl = match front.get::<u32>("ctrl-ring-ref")? {
            Some(gref) if index == 0 => {
                let channel = channels.bind(front.need("event-channel-ctrl")?)?;
                Some(Ctrl::new(&cx, Grant::ring(grants, gref)?, channel)?)
            }
            _ => None,
        };
        Ok(Parts { cx, tx, tx_channel, rx, rx_channel, ctrl })
    }

    fn stop(&mut self, connected: Connected) {
        connected.shared.stop();
        let links = connected.threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        self.attachment.release(links);
    }
}

/// A queue that has no link yet.
struct Parts {
    cx: Cx,
    tx: Tx,
    tx_channel: super::device::EventChannel,
    rx: Rx,
    rx_channel: Option<super::device::EventChannel>,
    ctrl: Option<Ctrl>,
}

impl Parts {
    fn with(self, link: Box<dyn Link>) -> Queue {
        let Parts { cx, tx, tx_channel, rx, rx_channel, ctrl } = self;
        Queue { cx, tx, tx_channel, rx, rx_channel, ctrl, link }
    }
}

fn attach(config: &VifConfig, name: &str, scripted: bool) -> Result<Box<dyn Attachment>, DeviceError> {
    Ok(match &config.attach {
        VifAttach::User { forwards, map_gw } => {
            Box::new(user::Passt::start(forwards, *map_gw, config.mtu.unwrap_or(1500))?)
        }
        // The script does what there is to do.
        VifAttach::Bridge { .. } if scripted => Box::new(tap::Tap::open(name, &VifAttach::Tap, config.mtu)?),
        attach => Box::new(tap::Tap::open(name, attach, config.mtu)?),
    })
}

/// What the frontend takes on receive.
fn accepts(connection: &Connection) -> Accepts {
    let flag = |name: &str| connection.front.flag(name);
    Accepts {
        sg: flag("feature-sg"),
        csum_v4: !flag("feature-no-csum-offload"),
        csum_v6: flag("feature-ipv6-csum-offload"),
        gso_v4: flag("feature-gso-tcpv4"),
        gso_v6: flag("feature-gso-tcpv6"),
    }
    .consistent()
}

impl Device for Vif {
    fn advertise(&self) -> Nodes {
        let offloads = u8::from(self.attachment.offloads());
        let node = |(name, value): (&str, u32)| (name.to_owned(), value.to_string());
        [
            ("feature-sg", 1),
            ("feature-gso-tcpv4", offloads.into()),
            ("feature-gso-tcpv6", offloads.into()),
            ("feature-ipv6-csum-offload", offloads.into()),
            ("feature-no-csum-offload", (1 - offloads).into()),
            ("feature-rx-copy", 1),
            ("feature-rx-flip", 0),
            ("feature-multicast-control", 1),
            ("feature-dynamic-multicast-control", 1),
            ("feature-split-event-channels", 1),
            ("feature-ctrl-ring", 1),
            // Room for a guest's XDP programs before each packet: none, and so Linux runs none.
            ("feature-xdp-headroom", 0),
            ("multi-queue-max-queues", self.queues),
        ]
        .into_iter()
        .map(node)
        .chain([("hotplug-status".to_owned(), "connected".to_owned())])
        .collect()
    }

    fn tells(&self) -> Nodes {
        let mtu = self.config.mtu.or(self.attachment.mtu()).unwrap_or(1500);
        vec![("mtu".to_owned(), mtu.to_string())]
    }

    fn connect(&mut self, connection: Connection) -> Result<Nodes, DeviceError> {
        self.disconnect();
        self.connected = Some(self.start(connection)?);
        Ok(Nodes::new())
    }

    fn listens(&self) -> &'static [&'static str] {
        &["request-multicast-control"]
    }

    fn heard(&mut self, _path: &str, value: &str) {
        let on = !matches!(value.trim(), "" | "0");
        if let Some(connected) = &self.connected {
            connected.shared.steer(|steering| steering.filter.on = on);
        }
    }

    fn disconnect(&mut self) {
        if let Some(connected) = self.connected.take() {
            self.stop(connected);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.list()
    }

    fn rings(&self) -> Vec<u32> {
        self.connected.as_ref().map(|connected| connected.grefs.clone()).unwrap_or_default()
    }
}

impl Drop for Vif {
    fn drop(&mut self) {
        self.disconnect();
        if let Some(script) = &self.script
            && let Err(e) = script.run("offline")
        {
            tracing::warn!("{}: {e}", self.name);
        }
    }
}
