//! set_timer_op(timeout): the older way to the singleshot timer.

use crate::domain::Domain;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Width};

pub(super) const OPS: &[(u32, Handler)] = &[(0, set_timer_op)];

/// As far ahead as this (13 days) means a wrapped jiffies value, or a guest that has no timer pending.
const TOO_FAR: u64 = 1 << 50;
/// What Xen makes of that: neither at once nor never.
const MIDDLE: u64 = 100_000_000;

fn set_timer_op(_: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let timeout = match call.width {
        Width::Bits64 => call.arg(0),
        Width::Bits32 => call.arg(1) << 32 | call.arg(0),
    };
    let now = (cx.now)().system_ns;
    cx.fx.set_singleshot(call.vcpu, deadline(timeout, now));
    DONE
}

fn deadline(timeout: u64, now: u64) -> Option<u64> {
    let negative = timeout > i64::MAX.unsigned_abs();
    match timeout {
        0 => None,
        _ if negative || timeout.saturating_sub(now) >= TOO_FAR => Some(now.saturating_add(MIDDLE)),
        _ => Some(timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_and_wrapped_timeouts_come_in_a_tenth_of_a_second() {
        assert_eq!(deadline(0, 5), None);
        assert_eq!(deadline(3, 5), Some(3));
        assert_eq!(deadline((1 << 50) + 4, 5), Some((1 << 50) + 4));
        assert_eq!(deadline((1 << 50) + 5, 5), Some(100_000_005));
        assert_eq!(deadline(u64::MAX, 5), Some(100_000_005));
    }
}
