//! XenStore: the daemon's core, its server, and the client library.
//!
//! The core is sans-IO: [`store::Store::handle`] takes one request of one connection and appends replies and watch
//! events to an output; it knows neither sockets nor rings nor clocks. [`server`] carries bytes between that core and
//! the world; [`client`] is what programs use to talk to a store.
//!
//! Behaviour follows `docs/misc/xenstore.txt`, `docs/misc/xenstore-ring.txt` and `public/io/xs_wire.h` of Xen.
#![forbid(unsafe_code)]

mod changes;
mod check;
pub mod client;
pub mod domain;
mod dormant;
mod dump;
mod ids;
mod journal;
mod migration;
mod nodes;
mod ops;
pub mod out;
mod pace;
pub mod path;
mod path_map;
pub mod perms;
pub mod persist;
pub mod pulled;
pub mod quota;
pub mod ring;
mod room;
pub mod server;
mod special;
pub mod store;
mod text;
pub mod transaction;
pub mod tree;
pub mod usage;
pub mod watch;
pub mod wire;

/// A domain's number. 0 is the host's own, privileged domain.
pub type DomId = u16;
