//! What the domain knows of each vCPU: its registered areas, VIRQs and whether it waits.

use std::fmt::Write as _;

use xen_abi::shared_info::{LEGACY_MAX_VCPUS, VCPU_INFO_SIZE};
use xen_abi::xen::Virq;

use crate::domain::Domain;
use crate::effect::{Port, StartState, VcpuId};
use crate::mem::{Gpa, SpecialPage};
use crate::peer::Asked;

const NR_VIRQS: usize = Virq::NR_VIRQS as usize;

/// What a vCPU in `Outcome::Block` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// It runs.
    No,
    /// SCHEDOP_block: an upcall.
    Upcall,
    /// SCHEDOP_poll on one port, masked or not.
    Port(Port),
    /// SCHEDOP_poll on several: any event, as Xen does.
    AnyPort,
}

/// One vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Vcpu {
    /// Not down in the sense of VCPUOP_is_up.
    pub online: bool,
    /// VCPUOP_down has been made on it, and its thread has not halted it yet.
    pub halting: bool,
    /// System time at which it went up or down, nanoseconds.
    pub since: u64,
    /// Has register values: by VCPUOP_initialise, by INIT/SIPI, or as the boot vCPU.
    pub initialised: bool,
    /// What VCPUOP_initialise has set, until it runs.
    pub start: Option<Box<StartState>>,
    /// The machine has been asked to do something on another vCPU's thread for a call of this one, which comes again when it has.
    pub posted: bool,
    /// Registered vcpu_info.
    pub info: Option<Gpa>,
    /// Registered secondary vcpu_time_info.
    pub time_info: Option<Gpa>,
    /// Registered runstate area.
    pub runstate: Option<Gpa>,
    /// Upcall vector of its own, 0 = none.
    pub upcall_vector: u8,
    /// The port bound to each VIRQ, 0 = none.
    pub virqs: [Port; NR_VIRQS],
    /// Why it blocks.
    pub waiting: Waiting,
    /// What its hypercall has asked another domain.
    pub asked: Option<Asked>,
}

impl Vcpu {
    /// vCPU 0 starts up and running, all others down.
    pub(crate) fn new(boot: bool) -> Vcpu {
        Vcpu {
            online: boot,
            halting: false,
            since: 0,
            initialised: boot,
            start: None,
            posted: false,
            info: None,
            time_info: None,
            runstate: None,
            upcall_vector: 0,
            virqs: [0; NR_VIRQS],
            waiting: Waiting::No,
            asked: None,
        }
    }

    /// Is up or down from `now` on: true if it was not so before.
    pub(crate) fn turn(&mut self, online: bool, now: u64) -> bool {
        let changed = std::mem::replace(&mut self.online, online) != online;
        if changed {
            self.since = now;
        }
        changed
    }

    /// The port bound to a VIRQ.
    pub(crate) fn virq_port(&self, virq: Virq) -> Option<Port> {
        self.virqs.get(virq.0 as usize).copied().filter(|&port| port != 0)
    }

    pub(crate) fn describe(&self, out: &mut String, id: VcpuId) {
        let state = if self.online { "up" } else { "down" };
        let _ = write!(out, "{id}: {state}, upcall vector {:#x}", self.upcall_vector);
        for (what, area) in
            [("vcpu_info", self.info), ("time_info", self.time_info), ("runstate", self.runstate)]
        {
            if let Some(gpa) = area {
                let _ = write!(out, ", {what} {:#x}", gpa.0);
            }
        }
        if self.waiting != Waiting::No {
            let _ = write!(out, ", waits for {:?}", self.waiting);
        }
        for (virq, port) in (0..).zip(self.virqs).filter(|(_, port): &(u32, Port)| *port != 0) {
            let _ = write!(out, ", {} = port {port}", Virq(virq));
        }
        out.push('\n');
    }
}

impl Domain {
    /// Where a vCPU's vcpu_info lies: as registered, else its slot in shared_info.
    pub(crate) fn vcpu_info(&self, vcpu: VcpuId) -> Option<Gpa> {
        let registered = self.vcpus.get(vcpu as usize)?.info;
        registered.or_else(|| default_vcpu_info(SpecialPage::SharedInfo.home(), vcpu))
    }
}

/// The default vcpu_info of a vCPU in the shared_info page at `shared_info`.
pub(crate) fn default_vcpu_info(shared_info: Gpa, vcpu: VcpuId) -> Option<Gpa> {
    (vcpu < LEGACY_MAX_VCPUS).then(|| shared_info.offset(VCPU_INFO_SIZE as u64 * u64::from(vcpu)))
}
