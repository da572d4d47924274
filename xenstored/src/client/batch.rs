//! Many changes, few round trips.

use std::collections::VecDeque;

use xen_abi::io::xs_wire::XENSTORE_PAYLOAD_MAX;

use super::error::{Error, Result};
use super::poll::Asked;
use super::{Client, requests::perms_payload};
use crate::perms::Perm;
use crate::wire::{Errno, MsgType};

/// Requests sent before their replies are read: far fewer bytes than the buffers of a socket, so that neither side can
/// block on the other.
const IN_FLIGHT: usize = 128;

/// Changes that are sent together, in their order.
#[derive(Debug, Default)]
pub struct Batch {
    requests: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    kind: MsgType,
    path: String,
    payload: Vec<u8>,
    missing_is_fine: bool,
}

impl Batch {
    fn push(&mut self, kind: MsgType, path: &str, payload: Vec<u8>) {
        self.requests.push(Request { kind, path: path.to_owned(), payload, missing_is_fine: false });
    }

    /// As [`Client::rm`], and nothing there is fine.
    pub fn rm(&mut self, path: &str) {
        let payload = [path.as_bytes(), b"\0"].concat();
        let path = path.to_owned();
        self.requests.push(Request { kind: MsgType::RM, path, payload, missing_is_fine: true });
    }

    /// As [`Client::write`].
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) {
        let payload = [path.as_bytes(), b"\0", value.as_ref()].concat();
        self.push(MsgType::WRITE, path, payload);
    }

    /// As [`Client::set_perms`].
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) {
        self.push(MsgType::SET_PERMS, path, perms_payload(path, perms));
    }
}

impl Client {
    /// Carries out a batch. All of it is tried even if one request fails; inside a transaction the caller's error then
    /// drops the whole.
    ///
    /// # Errors
    /// The first failure, as the single requests have it.
    pub fn run(&mut self, batch: &Batch) -> Result<()> {
        if let Some(long) = batch.requests.iter().find(|request| request.payload.len() > XENSTORE_PAYLOAD_MAX)
        {
            return Err(Error::invalid(long.kind, &long.path, Errno::E2BIG));
        }
        let mut first = Ok(());
        for requests in batch.requests.chunks(IN_FLIGHT) {
            let deadline = self.deadline();
            let mut waiting = VecDeque::new();
            for Request { kind, payload, .. } in requests {
                waiting.push_back(self.next_id());
                self.transport.queue(*kind, self.req_id, self.tx_id, &[payload])?;
            }
            let sent = self.transport.flush(&[], deadline)?;
            let mut answers = requests.iter();
            while let Some((Request { kind, path, missing_is_fine, .. }, id)) =
                answers.next().filter(|_| sent).zip(waiting.pop_front())
            {
                match self.reply(id, *kind, path, deadline) {
                    Err(Error::Timeout) => {
                        self.asked.extend(waiting.into_iter().map(|id| (id, Asked::GivenUp)));
                        return Err(Error::Timeout);
                    }
                    Err(error) if *missing_is_fine && error.errno() == Some(Errno::ENOENT) => {}
                    Err(error) if error.errno().is_none() => return Err(error),
                    reply => first = first.and(reply.map(drop)),
                }
            }
            if !sent {
                self.asked.extend(waiting.into_iter().map(|id| (id, Asked::GivenUp)));
                return Err(Error::Timeout);
            }
        }
        first
    }
}
