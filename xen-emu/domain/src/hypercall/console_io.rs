//! console_io(cmd, count, buffer): the hypervisor's own console.

use xen_abi::errno::Errno;
use xen_abi::xen::ConsoleIo;

use crate::domain::Domain;
use crate::hypercall::{Answer, Call, Cx, DONE, Handler, Outcome};

pub(super) const OPS: &[(u32, Handler)] =
    &[(ConsoleIo::WRITE.0, write), (ConsoleIo::READ.0, |_, _, _| Err(Errno::EPERM))];

/// Bytes in one go; the rest by continuation, count and buffer moved on as Xen does.
const CHUNK: u32 = 1024;

fn write(_: &mut Domain, call: &Call, cx: &mut Cx<'_>) -> Answer {
    let (cmd, count, buffer) = (call.arg(0), call.arg32(1), call.arg(2));
    let mut chunk = [0; CHUNK as usize];
    let now = count.min(CHUNK);
    let Some(bytes) = chunk.get_mut(..now as usize) else { return DONE };
    cx.copy_in(buffer, bytes)?;
    cx.fx.console_write(bytes);
    if now == count {
        return DONE;
    }
    let left = u64::from(count - now);
    Ok(Outcome::Again(call.with_args([cmd, left, buffer.wrapping_add(now.into())])))
}
