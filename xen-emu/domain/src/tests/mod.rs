//! Scripts of calls, by family: (operation, errno, effects), in both widths where layouts differ.

mod back_ring;
mod evtchn;
mod evtchn_both;
mod evtchn_fifo;
mod evtchn_races;
mod gnttab;
mod grants;
mod hostile;
mod memory;
mod misc;
mod peer;
mod ring;
mod soft_reset;
mod vcpu;
mod xenbus;

use xen_abi::hypercall::Hypercall;

use crate::hypercall::Width;

const BOTH: [Width; 2] = [Width::Bits64, Width::Bits32];

const MEMORY: u64 = Hypercall::MEMORY_OP.0;
const EVTCHN: u64 = Hypercall::EVENT_CHANNEL_OP.0;
const VCPU: u64 = Hypercall::VCPU_OP.0;
const SCHED: u64 = Hypercall::SCHED_OP.0;
const HVM: u64 = Hypercall::HVM_OP.0;
const GNTTAB: u64 = Hypercall::GRANT_TABLE_OP.0;
const VERSION: u64 = Hypercall::XEN_VERSION.0;
