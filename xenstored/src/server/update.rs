//! Live update.

use super::Server;
use super::control::Answer;
use crate::store::ConnId;
use crate::wire::{Errno, Header};

impl Server {
    pub(super) fn live_update(&mut self, _: ConnId, _: &Header, _: &[&[u8]]) -> Answer {
        Err(Errno::EINVAL)
    }
    pub(super) fn holds(&self, _: ConnId, _: &Header) -> bool {
        false
    }
}
