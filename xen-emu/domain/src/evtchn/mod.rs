//! Event channels: the port table of the domain, and dom0's end of those that lead to backends.
//!
//! `ports` is the table alone, `deliver` brings a port to the guest, `backend` joins ports with the host; the
//! hypercalls on top are in `hypercall/evtchn_op`. Errors and their order are Xen's (`common/event_channel.c`).

pub(crate) mod abi;
pub(crate) mod abi_2l;
pub(crate) mod abi_fifo;
mod backend;
mod deliver;
mod fifo;
mod life;
pub(crate) mod ports;

pub(crate) use fifo::Switch;
pub(crate) use ports::{Kind, Ports};
