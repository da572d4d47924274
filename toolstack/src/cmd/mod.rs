//! One file per command.

pub mod block;
pub mod channel;
pub mod console;
pub mod create;
pub mod describe;
pub mod destroy;
pub mod device;
pub mod dmesg;
pub mod dump_core;
pub mod info;
pub mod list;
pub mod names;
pub mod network;
pub mod power;
mod shown;
pub mod state;
mod terminal;
pub mod trigger;
pub mod uptime;
pub mod vcpu_list;
pub mod vigil;
pub mod vm_list;

use crate::args::Args;

/// The first word, which the table of commands demands.
fn first(args: &Args) -> &str {
    args.words.first().map_or("", String::as_str)
}
