//! What a domain's ring has no room for yet, in a file of the state folder: a store that is killed has sent the beginning of
//! a message perhaps, and the next one sends the rest. No disk is waited for: after a crash of the host there is no domain.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::Server;
use super::link::{Carrier, DomainRing, Link};
use super::log::LogLimit;
use super::outbox::Outbox;
use crate::DomId;
use crate::perms::Life;
use crate::persist::Disk;
use crate::store::Store;
use crate::wire::{HEADER_LEN, split};

/// Bytes that a file may have before what is sent of it is left out.
const LONG: u64 = 64 * 1024;

/// What the file of a ring has.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    /// The index of the ring behind it.
    end: u32,
    len: u64,
}

impl Server {
    /// What an earlier daemon had no room for in the ring of a domain, of which the index is `at` now.
    pub(super) fn kept_unsent(&self, domid: DomId, at: u32) -> Option<Outbox> {
        let (file, life) = (self.disk.as_ref()?.unsent(domid), self.store.domains.life(domid)?);
        read(&fs::read(file).ok()?, life, at)
    }

    /// A ring begins anew, or is no more.
    pub(super) fn forget_unsent(&self, domid: DomId) {
        if let Some(disk) = &self.disk {
            let _ = fs::remove_file(disk.unsent(domid));
        }
    }
}

impl Link {
    /// Keeps what the ring has no room for, before any of it is sent. A fault of the ring is for whoever sends.
    pub(super) fn keep_unsent(&mut self, disk: &Disk, store: &Store, log: &mut LogLimit) {
        let Carrier::Ring(DomainRing { domid, ring, .. }) = &self.carrier else { return };
        let (domid, Ok((at, room))) = (*domid, ring.room()) else { return };
        let Some(life) = store.domains.life(domid).filter(|_| self.outbox.len() > room) else { return };
        if let Err(error) = self.keep(&disk.unsent(domid), life, at) {
            self.kept = None;
            log.warn(format_args!("domain {domid}: what it has not read is not kept: {error}"));
        }
    }

    fn keep(&mut self, file: &Path, life: Life, at: u32) -> io::Result<()> {
        let bytes = self.outbox.bytes();
        let there = self.kept.filter(|kept| kept.len < LONG + 4 * bytes.len() as u64);
        let new = there.and_then(|kept| bytes.get(kept.end.wrapping_sub(at) as usize..));
        let mut len = there.map_or(0, |kept| kept.len);
        match new {
            Some(new) if new.len() < bytes.len() => {
                if !new.is_empty() {
                    File::options().append(true).open(file)?.write_all(new)?;
                }
                len += new.len() as u64;
            }
            // Not in its place: what is there may be needed until this is whole.
            _ => {
                let rest = u32::try_from(self.outbox.rest_of_first()).unwrap_or(u32::MAX);
                let head = [&life.0.to_le_bytes()[..], &at.to_le_bytes(), &rest.to_le_bytes()].concat();
                let half = file.with_extension("new");
                fs::write(&half, [&head, bytes].concat())?;
                fs::rename(&half, file)?;
                len = bytes.len() as u64;
            }
        }
        self.kept = Some(Kept { end: at.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0)), len });
        Ok(())
    }
}

/// What of a file is not in the ring of which the index is `at`.
fn read(bytes: &[u8], life: Life, at: u32) -> Option<Outbox> {
    let (then, bytes) = bytes.split_first_chunk()?;
    let (from, bytes) = bytes.split_first_chunk()?;
    let (rest, bytes) = bytes.split_first_chunk()?;
    let sent = usize::try_from(at.wrapping_sub(u32::from_le_bytes(*from))).ok()?;
    let mut headless = usize::try_from(u32::from_le_bytes(*rest)).ok()?;
    if u32::from_le_bytes(*then) != life.0 || sent >= bytes.len() {
        return None;
    }
    let mut start = 0;
    loop {
        let whole = headless == 0;
        let message = || Some(HEADER_LEN + split(bytes.get(start..)?).ok()??.1.len());
        let end = start + if whole { message()? } else { headless };
        if end > sent {
            let partial = if whole && start == sent { 0 } else { end - sent };
            return Some(Outbox::resumed(bytes.get(sent..)?.to_vec(), partial));
        }
        (start, headless) = (end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MsgType, put};

    #[test]
    fn a_file_goes_on_at_any_byte_and_for_that_life_alone() {
        let mut bytes = Vec::new();
        for len in [5, 2000, 0, 30] {
            put(&mut bytes, MsgType::READ, 1, 2, &[&vec![b'x'; len]]).unwrap();
        }
        let ends = [21, 21 + 2016, 21 + 2032, 21 + 2078];
        for cut in [0, 7, 20] {
            let rest: u32 = if cut == 0 { 0 } else { 21 - u32::try_from(cut).unwrap() };
            let at = 0xffff_ff00u32;
            let head = [&9u32.to_le_bytes()[..], &at.to_le_bytes(), &rest.to_le_bytes()].concat();
            let file = [&head, &bytes[cut..]].concat();
            for sent in 0..bytes.len() - cut {
                let now = at.wrapping_add(u32::try_from(sent).unwrap());
                let outbox = read(&file, Life(9), now).unwrap();
                assert_eq!(outbox.bytes(), &bytes[cut + sent..]);
                let end = ends.into_iter().find(|end| *end > cut + sent).unwrap();
                let begins = cut + sent == 0 || ends.contains(&(cut + sent));
                assert_eq!(outbox.rest_of_first(), if begins { 0 } else { end - cut - sent });
                assert!(read(&file, Life(8), now).is_none());
            }
            let sent = u32::try_from(bytes.len() - cut).unwrap();
            assert!(read(&file, Life(9), at.wrapping_add(sent)).is_none(), "all was sent");
            assert!(read(&file, Life(9), at - 1).is_none());
            for len in 0..file.len().min(60) {
                let _ = read(&file[..len], Life(9), at);
            }
        }
    }
}
