//! What the reader gives up before it looks at a single byte of the guest: everything but memory, the image it has open
//! and its stdout. Of a qcow2 image the host's part, header and tables, is read before that, within the limits.

use anyhow::Context;
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use nix::errno::Errno;
use nix::libc::{self, PROT_EXEC};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, alarm, geteuid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// Memory: a kernel packed and unpacked, and the dictionary of its unpacker; all else passes through in pieces.
const MEMORY: u64 = 1 << 30;
/// CPU time, seconds: a kernel is unpacked in one or two, and a large ramdisk takes no more.
const CPU_SECONDS: u64 = 60;
/// Time to live, seconds; a slow disk takes its time.
const SECONDS: u32 = 300;
/// User and group `nobody`.
const NOBODY: u32 = 65534;

/// System calls that are needed from here on; everything else is the end.
const CALLS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_lseek,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What runtime and crates ask for when they report an error (backtraces): refused, but no reason to end.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_getcwd,
    libc::SYS_ioctl,
];

/// Root goes, then Landlock as far as this host has it, then seccomp. [`limits`] have gone before.
///
/// # Errors
/// One of them is refused.
pub fn rights() -> anyhow::Result<()> {
    nobody().context("user nobody")?;
    landlock().context("Landlock")?;
    // Last, as the others need system calls.
    let refuse = REFUSED.iter().map(|&call| (call, vec![])).collect();
    let errno = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    for (rules, matched, otherwise) in [
        (refuse, errno, SeccompAction::Allow),
        (allowed()?, SeccompAction::Allow, SeccompAction::KillProcess),
    ] {
        let filter = SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?;
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&program).context("seccomp")?;
    }
    Ok(())
}

/// Memory, time, no other process, and nothing written to any file. Before the image is opened.
///
/// # Errors
/// One of them is refused.
pub fn limits() -> nix::Result<()> {
    for (what, most) in [
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, CPU_SECONDS),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NPROC, 0),
    ] {
        setrlimit(what, most, most)?;
    }
    alarm::set(SECONDS);
    Ok(())
}

/// Root becomes nobody. The root of a user namespace that maps no other user stays what it is: nobody outside.
fn nobody() -> nix::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let dropped =
        setgroups(&[]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
    match dropped {
        Err(Errno::EPERM | Errno::EINVAL) => Ok(()),
        other => other,
    }
}

/// No path, no port, no signal: a ruleset without a rule.
fn landlock() -> anyhow::Result<()> {
    let abi = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    // It has needed one descriptor; nobody needs another.
    Ok(setrlimit(Resource::RLIMIT_NOFILE, 0, 0)?)
}

/// [`CALLS`], what the other filter refuses, and memory that is not executable.
fn allowed() -> anyhow::Result<BTreeMap<libc::c_long, Vec<SeccompRule>>> {
    let op = SeccompCmpOp::MaskedEq(u64::from(PROT_EXEC.unsigned_abs()));
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, op, 0)?;
    let no_code = SeccompRule::new(vec![condition])?;
    let mut rules: BTreeMap<_, _> = CALLS.iter().chain(REFUSED).map(|&call| (call, vec![])).collect();
    rules.extend([libc::SYS_mmap, libc::SYS_mprotect].map(|call| (call, vec![no_code.clone()])));
    Ok(rules)
}
