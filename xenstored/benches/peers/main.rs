//! A load generator for any xenstored, and a table of several side by side.
//!
//! `cargo bench -p xenstored --bench peers -- ours=/run/xenstored/socket c=/tmp/c/socket,/tmp/c/shim`. `cargo lab bench
//! store` starts the daemons and calls it. Every load is a closed loop: a client sends its next request when it has the
//! reply to the last one. Daemons take turns with every load and round; a figure is the median of the rounds. The
//! daemon's own CPU time per operation is the figure to compare: throughput is the whole machine's.
//!
//! With `--floor` there is one more, which does nothing but answer: what is left to save, and no more.
//!
//! The stores must be empty, and are left so. With a folder behind a comma the daemon runs on the stand-in for Xen's
//! libraries (`guest-tests/bench/xenshim.c`), and guests are introduced its way.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is a clear end of a measurement")]

mod conn;
mod floor;
mod guest;
mod load;
mod peer;
mod phases;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use peer::{Floor, Peer};
use table::Table;

#[derive(Parser)]
struct Args {
    /// Rounds of each load
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one load
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Nodes of the largest store
    #[arg(long, default_value_t = 100_000)]
    nodes: u32,
    /// Domains that are introduced
    #[arg(long, default_value_t = 1000)]
    domains: u16,
    /// Only loads named like that
    #[arg(long, default_value = "")]
    only: String,
    /// Write all figures of all rounds to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures beside them what receiving and sending alone takes
    #[arg(long)]
    floor: bool,
    /// Is that daemon, at this socket
    #[arg(long, hide = true)]
    be_floor: Option<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
    /// The daemons: LABEL=SOCKET or LABEL=SOCKET,SHIMFOLDER
    #[arg(required_unless_present = "be_floor")]
    peers: Vec<Peer>,
}

/// One run over all peers.
struct Run {
    peers: Vec<Peer>,
    table: Table,
    rounds: usize,
    time: Duration,
    only: String,
}

fn main() {
    let args = Args::parse();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    if let Some(socket) = args.be_floor {
        floor::serve(&socket);
    }
    let mut peers = args.peers;
    let floor = args.floor.then(Floor::start);
    peers.extend(floor.as_ref().map(Floor::peer));
    peers.iter_mut().for_each(Peer::find);
    let labels = peers.iter().map(|peer| peer.label.clone()).collect();
    let time = Duration::from_secs_f64(args.seconds);
    let mut run = Run { peers, table: Table::new(labels), rounds: args.rounds, time, only: args.only };
    phases::all(&mut run, args.nodes, args.domains);
    println!("{}", run.table.render());
    if let Some(file) = args.json {
        std::fs::write(file, run.table.to_json()).unwrap();
    }
}
