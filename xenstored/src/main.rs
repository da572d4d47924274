//! The store daemon.

mod limits;
mod sigbus;
#[cfg(target_env = "gnu")]
mod trim;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xenstored::persist::{Disk, Fsync, Policy};
use xenstored::server::{ACCEPTED, Begin, Setup, Socket, State, Trace, run, state_file};

/// XenStore daemon: serves clients on a socket, and guests through their ring pages.
#[derive(Parser)]
#[command(name = "xenstored", version, disable_help_flag = true, disable_version_flag = true)]
#[command(args_override_self = true)]
struct Args {
    /// Print help
    #[arg(short = 'h', short_alias = 'H', long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Stay in the foreground; it always does
    #[arg(short = 'N', long, alias = "nofork")]
    no_fork: bool,
    #[command(flatten)]
    limits: limits::Limits,
    #[command(flatten)]
    others: limits::Others,
    /// Folder of the socket
    #[arg(long, env = "XENSTORED_RUNDIR", default_value = "/run/xenstored", value_name = "DIR")]
    rundir: PathBuf,
    /// The socket itself [default: RUNDIR/socket]
    #[arg(long, env = "XENSTORED_PATH", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Write the process id to this file while serving
    #[arg(short = 'F', long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Write `ready` and a newline to this inherited pipe when clients can connect
    #[arg(long, value_name = "N")]
    ready_fd: Option<RawFd>,
    /// Trace messages and connections into this file; SIGHUP opens it anew
    #[arg(short = 'T', long, env = "XENSTORED_TRACE", value_name = "FILE")]
    trace_file: Option<PathBuf>,
    /// What is traced: +SWITCH or -SWITCH of obj, io, wrl, acc, tdb; may be given more than once
    #[arg(long, value_name = "SWITCH", allow_hyphen_values = true)]
    trace_control: Vec<String>,
    /// Keep the tree in this folder, and begin with the one that is there
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// When what is kept reaches the disk: always (before replies), interval (within a second), never (as the system likes)
    #[arg(long, value_name = "WHEN", default_value = "interval", requires = "state_dir")]
    fsync: Fsync,
    /// Keep the tree only for a daemon that was killed: it is gone when this one is told to end, or the host is booted
    #[arg(long, requires = "state_dir")]
    transient: bool,
    /// Keep no nodes about connections and domains under /tool/xenstored
    #[arg(long)]
    no_counters: bool,
    /// What to log: error, warn, info, debug, trace, or TARGET=LEVEL,…
    #[arg(long, env = "XENSTORED_LOG", default_value = "info", value_name = "LEVEL")]
    log: String,
    /// Go on with the state of the daemon that executed this one
    #[arg(short = 'U', long, hide = true)]
    live_update: bool,
    /// The inherited descriptor of that state [default: the file RUNDIR/state_dump]
    #[arg(long, hide = true, requires = "live_update")]
    state_fd: Option<RawFd>,
    /// Only say whether that state is understood
    #[arg(long, hide = true, requires = "live_update")]
    trial: bool,
}

#[cfg(target_env = "gnu")]
const TRIM: fn() = trim::trim;
/// Other allocators do it by themselves, or cannot.
#[cfg(not(target_env = "gnu"))]
const TRIM: fn() = || {};

fn main() -> Result<()> {
    let args = Args::parse();
    let filter: Targets = args.log.parse().with_context(|| format!("--log {}: not a level", args.log))?;
    tracing_subscriber::fmt()
        .with_max_level(Level::TRACE)
        .with_writer(|| Stderr)
        .finish()
        .with(filter)
        .init();
    let mut state = if args.live_update { Some(read_state(&args).context("live update")?) } else { None };
    if args.trial {
        rehearse(&args)?;
        return Ok(io::stdout().write_all(ACCEPTED.as_bytes())?);
    }
    raise_descriptor_limit();
    sigbus::survive().context("SIGBUS")?;
    let path = args.socket.clone().unwrap_or_else(|| args.rundir.join("socket"));
    let socket = listen(&path, state.as_mut()).with_context(|| format!("cannot serve {}", path.display()))?;
    let resumed = state.is_some();
    // A service manager, or the daemon before, may have another one.
    let served = socket.path().unwrap_or_else(|| "a socket without a path".into());
    if resumed && args.socket.as_ref().is_some_and(|asked| *asked != served) {
        tracing::warn!("--socket {} is left out: it goes on serving {}", path.display(), served.display());
    }
    let (disk, mut begin) = begin(&args, state)?;
    if let Begin::Store(store) = &mut begin {
        args.limits.set(store);
        args.limits.warn();
        args.others.warn();
    }
    if resumed {
        args.limits.warn_of_others(begin.store());
    }
    begin.store().keep_orphans(args.limits.keep_orphans);
    let trace = trace(&args).or_else(|error| unless(resumed, error))?;
    let setup = Setup { socket, trace, disk, counters: !args.no_counters, trim: TRIM };
    let pid_file = args.pid_file.as_deref();
    if let Some(file) = pid_file {
        fs::write(file, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write pid file {}", file.display()))
            .or_else(|error| unless(resumed, error))?;
    }
    let ready = || {
        tracing::info!("{} {}", if resumed { "goes on serving" } else { "serving" }, served.display());
        // After a live update the number may be anything's.
        if let Err(error) = announce(args.ready_fd.filter(|_| !resumed)) {
            tracing::warn!("cannot say that it is ready: {error:#}");
        }
    };
    // What stays of one that fails tells that it has to be started again.
    let ended = || {
        if let Some(file) = pid_file {
            let _ = fs::remove_file(file);
        }
    };
    run(setup, begin, ready, ended).context("event loop")
}

/// What does not work in a daemon that begins does not end one that goes on after a live update: it goes without.
fn unless<T: Default>(resumed: bool, error: anyhow::Error) -> Result<T> {
    if !resumed {
        return Err(error);
    }
    tracing::error!("{error:#}: goes on without it");
    Ok(T::default())
}

/// What a trial can find out: whether the files that the arguments name can be opened. Leaves none behind.
fn rehearse(args: &Args) -> Result<()> {
    switches(args)?;
    if let Some(file) = &args.trace_file {
        can_write(file).with_context(|| format!("trace file {}", file.display()))?;
    }
    if let Some(file) = &args.pid_file {
        can_write(file).with_context(|| format!("cannot write pid file {}", file.display()))?;
    }
    if let Some(folder) = &args.state_dir {
        Disk::rehearse(folder).with_context(|| format!("state folder {}", folder.display()))?;
    }
    Ok(())
}

fn can_write(file: &Path) -> io::Result<()> {
    // Not even a pipe without a reader is waited for.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    match File::options().append(true).create_new(true).custom_flags(flags).open(file) {
        Ok(_) => fs::remove_file(file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            File::options().append(true).custom_flags(flags).open(file).map(drop)
        }
        Err(error) => Err(error),
    }
}

/// The socket that the daemon before left, that the service manager opened, or a new one.
fn listen(path: &Path, state: Option<&mut State>) -> io::Result<Socket> {
    if let Some(state) = state {
        return state.take_socket();
    }
    match Socket::activated() {
        Ok(Some(socket)) => Ok(socket),
        Ok(None) => Socket::bind(path),
        Err(error) => Err(io::Error::new(error.kind(), format!("socket activation: {error}"))),
    }
}

/// What there is before the first request, and where it is kept.
fn begin(args: &Args, state: Option<State>) -> Result<(Option<Disk>, Begin)> {
    let Some(folder) = &args.state_dir else {
        let empty = || Begin::Store(Box::default());
        return Ok((None, state.map_or_else(empty, |state| Begin::State(Box::new(state)))));
    };
    let policy = Policy { fsync: args.fsync, transient: args.transient };
    let named = || format!("state folder {}", folder.display());
    let Some(state) = state else {
        let (disk, store) = Disk::open(folder, policy).with_context(named)?;
        return Ok((Some(disk), Begin::Store(Box::new(store))));
    };
    let disk = Disk::replace(folder, policy, state.store()).with_context(named).map(Some);
    Ok((disk.or_else(|error| unless(true, error))?, Begin::State(Box::new(state))))
}

/// A trace with the switches that were given.
fn switches(args: &Args) -> Result<Trace> {
    let mut trace = Trace::default();
    for switch in args.trace_control.iter().flat_map(|list| list.split(',')) {
        trace
            .set_switch(switch.as_bytes())
            .map_err(|_| anyhow!("--trace-control {switch}: not + or - and obj, io, wrl, acc or tdb"))?;
    }
    Ok(trace)
}

fn trace(args: &Args) -> Result<Trace> {
    let mut trace = switches(args)?;
    if let Some(file) = &args.trace_file {
        trace.set_file(file.clone()).with_context(|| format!("trace file {}", file.display()))?;
    }
    Ok(trace)
}

fn read_state(args: &Args) -> Result<State> {
    let mut bytes = Vec::new();
    match args.state_fd {
        Some(fd) => {
            File::open(format!("/proc/self/fd/{fd}"))?.read_to_end(&mut bytes)?;
            // The standard descriptors stay what they are.
            if fd > 2 {
                let _ = nix::unistd::close(fd);
            }
        }
        None => {
            let file = state_file(&args.rundir);
            bytes = fs::read(&file).with_context(|| file.display().to_string())?;
            let _ = fs::remove_file(file);
        }
    }
    Ok(State::read(&bytes)?)
}

/// Tells whoever started the daemon that it serves.
fn announce(ready_fd: Option<RawFd>) -> Result<()> {
    if let Some(fd) = ready_fd {
        let mut pipe = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
        if let Ok(pipe) = &mut pipe {
            pipe.write_all(b"ready\n")?;
        }
        let _ = nix::unistd::close(fd);
        pipe.with_context(|| format!("--ready-fd {fd}"))?;
    }
    if let Some(name) = std::env::var_os("NOTIFY_SOCKET") {
        let name = name.into_encoded_bytes();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::str::from_utf8(&name)?)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    }
    Ok(())
}

/// Every client and every domain takes descriptors.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The log: lines for which there is no room are lost, because the store must not wait for whoever reads them.
/// What goes wrong is nobody's concern: the subscriber would say so on this very stderr, and panic if that fails too.
struct Stderr;

/// Bytes that a pipe with room takes without blocking (`PIPE_BUF`).
const ROOM: usize = 4096;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::ZERO) == Ok(1);
        let some = line.get(..ROOM).unwrap_or(line);
        let written = if ready { stderr.lock().write(some).unwrap_or(0) } else { 0 };
        Ok(if written > 0 { written } else { line.len() })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
