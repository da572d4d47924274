//! The store daemon.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xenstored::server::{Setup, Socket, Trace, run};

/// XenStore daemon: serves clients on a socket, and guests through their ring pages.
#[derive(Parser)]
#[command(name = "xenstored", version)]
struct Args {
    /// Stay in the foreground; it always does
    #[arg(short = 'N', long, alias = "nofork")]
    no_fork: bool,
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
    ready_fd: Option<i32>,
    /// What to log: error, warn, info, debug, trace, or a filter of `tracing`
    #[arg(long, env = "XENSTORED_LOG", default_value = "info", value_name = "LEVEL")]
    log: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .with_context(|| format!("--log {}: not a level", args.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    raise_descriptor_limit();
    let path = args.socket.clone().unwrap_or_else(|| args.rundir.join("socket"));
    let socket = Socket::bind(&path).with_context(|| format!("cannot serve {}", path.display()))?;
    let pid_file = args.pid_file.as_deref();
    if let Some(file) = pid_file {
        fs::write(file, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write pid file {}", file.display()))?;
    }
    let result = run(Setup { socket, trace: Trace::default() }, || {
        tracing::info!("serving {}", path.display());
        if let Err(error) = announce(args.ready_fd) {
            tracing::warn!("cannot say that it is ready: {error:#}");
        }
    });
    if let Some(file) = pid_file {
        let _ = fs::remove_file(file);
    }
    result.context("event loop")
}

/// Tells whoever started the daemon that it serves.
fn announce(ready_fd: Option<i32>) -> Result<()> {
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
