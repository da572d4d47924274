//! The control ring.

use super::Cx;
use crate::backend::device::{DeviceError, EventChannel};
use crate::backend::net::grant::Grant;
use crate::backend::net::proto::control::{Surroundings, answer};
use xen_abi::Gref;
use xen_abi::io::netif::{CTRL_SLOT, CtrlRequest};
use xen_domain::ring::{BackRing, RingError};
use zerocopy::{FromBytes, IntoBytes};

/// Messages answered in one turn.
const TURN: usize = 32;

/// A control ring.
pub struct Ctrl {
    ring: BackRing,
    page: Grant,
    /// Its event channel.
    pub channel: EventChannel,
}

fn broken(e: RingError) -> DeviceError {
    DeviceError(format!("control ring: {e}"))
}

impl Ctrl {
    /// On a ring page.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn new(cx: &Cx, page: Grant, channel: EventChannel) -> Result<Ctrl, DeviceError> {
        let ring = BackRing::attach(cx.mem(), &[page.at.gpa], CTRL_SLOT).map_err(broken)?;
        Ok(Ctrl { ring, page, channel })
    }

    /// Grant reference of the ring.
    pub fn gref(&self) -> u32 {
        self.page.gref()
    }

    /// Answers messages; whether there are more, and whether the guest wants to be notified.
    ///
    /// # Errors
    /// The ring makes no sense any more.
    pub fn run(&mut self, cx: &Cx) -> Result<(bool, bool), DeviceError> {
        let queues = u32::try_from(cx.shared.queues()).unwrap_or(u32::MAX);
        let around = Surroundings { read: &|gref, buf| read(cx, gref, buf), queues };
        let mut slot = [0; CTRL_SLOT];
        for _ in 0..TURN {
            if !self.ring.pop(cx.mem(), &mut slot).map_err(broken)? {
                break;
            }
            let Ok(request) = CtrlRequest::read_from_bytes(&slot) else { break };
            let response = cx.shared.steer(|steering| answer(&mut steering.hash, &request, &around));
            self.ring.push(cx.mem(), response.as_bytes()).map_err(broken)?;
        }
        let notify = self.ring.publish(cx.mem()).map_err(broken)?;
        let more = self.ring.final_check_for_requests(cx.mem()).map_err(broken)?;
        Ok((more, notify))
    }
}

/// The first bytes of a granted page.
fn read(cx: &Cx, gref: Gref, buf: &mut [u8]) -> Option<()> {
    let grant = Grant::pin(&cx.grants, gref, false).ok()?;
    (buf.len() <= usize::from(grant.at.len)).then_some(())?;
    cx.mem().read(grant.at.gpa, buf).ok()
}
