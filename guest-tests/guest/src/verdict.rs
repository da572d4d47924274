//! How a test ends.
#![forbid(unsafe_code)]

use crate::{console, cpu, hypercall, println, text::Why};
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::{SchedOp, SchedShutdown, ShutdownReason};

/// What a test returns.
pub type Verdict = Result<(), Stop>;

/// Why a test did not succeed.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Something was wrong.
    Failure(Why),
    /// Something needed is not there.
    Skip(Why),
}

impl From<xen_abi::Errno> for Stop {
    fn from(e: xen_abi::Errno) -> Self {
        Self::Failure(Why::of(format_args!("unexpected {e}")))
    }
}

/// Ends the test as failed.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => {
        return Err($crate::Stop::Failure($crate::text::Why::of(format_args!($($arg)*))))
    };
}

/// Ends the test as skipped.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::Stop::Skip($crate::text::Why::of(format_args!($($arg)*)))) };
}

/// Ends the test as failed unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr, $($arg:tt)*) => { if !$cond { $crate::fail!($($arg)*) } };
}

/// Ends the test as failed unless both sides are equal; says what was wanted and what came.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $want:expr, $($arg:tt)*) => {{
        let (got, want) = ($got, $want);
        if got != want {
            $crate::fail!("{}: want {:?}, got {:?}", format_args!($($arg)*), want, got)
        }
    }};
}

/// Prints the verdict line and ends the domain.
pub fn end(verdict: Verdict) -> ! {
    let reason = match verdict {
        Ok(()) => {
            println!("SUCCESS");
            ShutdownReason::POWEROFF
        }
        Err(Stop::Skip(why)) => {
            println!("SKIP: {why}");
            ShutdownReason::POWEROFF
        }
        Err(Stop::Failure(why)) => {
            println!("FAILURE: {why}");
            ShutdownReason::CRASH
        }
    };
    console::flush();
    // Without Xen (a plain emulator) there is nothing to call; either way a return means that we only can stop.
    let _ = hypercall::op(Hypercall::SCHED_OP, SchedOp::SHUTDOWN.0, &mut SchedShutdown { reason });
    cpu::stop()
}
