//! multicall(entries, count): several hypercalls by one.

use xen_abi::errno::Errno;
use xen_abi::hypercall::Hypercall;
use xen_abi::xen::{MulticallEntry, MulticallEntryCompat};

use crate::domain::Domain;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome, Width, dispatch};

pub(super) const OPS: &[(u32, Handler)] = &[(0, multicall)];

/// Entries in one go.
const BATCH: u32 = 64;

fn multicall(domain: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (mut list, mut left) = (call.arg(0), call.arg32(1));
    for _ in 0..BATCH {
        if left == 0 {
            return DONE;
        }
        match entry(domain, call, list, cx)? {
            Step::Next => {}
            Step::Again => break,
            Step::Ask => return Ok(Outcome::Ask(call.with_args([list, left.into()]))),
            Step::Exit(outcome) => return Ok(outcome),
        }
        list = list.wrapping_add(entry_size(call.width));
        left -= 1;
    }
    match left {
        0 => DONE,
        _ => Ok(Outcome::Again(call.with_args([list, left.into()]))),
    }
}

enum Step {
    Next,
    /// The entry itself asked to be continued; its arguments in the list now say from where.
    Again,
    /// The same, when another domain has answered.
    Ask,
    Exit(Outcome),
}

const fn entry_size(width: Width) -> u64 {
    match width {
        Width::Bits64 => size_of::<MulticallEntry>() as u64,
        Width::Bits32 => size_of::<MulticallEntryCompat>() as u64,
    }
}

fn entry(domain: &mut Domain, call: &Call, at: u64, cx: &mut Cx<'_>) -> Result<Step, Errno> {
    let entry = cx.get_twin::<MulticallEntry, MulticallEntryCompat>(call.width, at)?;
    let inner = Call { nr: entry.op, args: entry.args, ..*call };
    let outcome = match entry.op == Hypercall::MULTICALL.0 {
        true => Outcome::Done(Errno::EINVAL.to_ret()),
        false => dispatch(domain, &inner, cx),
    };
    match outcome {
        Outcome::Done(result) => cx.put_long(call.width, at, 1, result.cast_unsigned())?,
        // A vCPU cannot wait in the middle of the list; waking early is always allowed.
        Outcome::Block(_) => {
            domain.unblocked(call.vcpu);
            cx.put_long(call.width, at, 1, 0)?;
        }
        Outcome::Again(rest) | Outcome::Ask(rest) => {
            for (slot, arg) in (2..).zip(rest.args) {
                cx.put_long(call.width, at, slot, arg)?;
            }
            return Ok(if matches!(outcome, Outcome::Ask(_)) { Step::Ask } else { Step::Again });
        }
        Outcome::Exit(_) => return Ok(Step::Exit(outcome)),
    }
    Ok(Step::Next)
}
