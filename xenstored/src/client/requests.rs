//! The typed requests.

use std::os::fd::BorrowedFd;

use super::Client;
use super::error::{Error, Result};
use crate::DomId;
use crate::perms::Perm;
use crate::wire::{Errno, MsgType, number};

/// The descriptors of a domain's ring, in the order INTRODUCE carries them.
#[derive(Clone, Copy, Debug)]
pub struct RingFds<'a> {
    /// Memfd of the ring page: 4096 bytes at offset 0. One that is shortened later is not served any more.
    pub page: BorrowedFd<'a>,
    /// Eventfd that the guest's kick signals.
    pub kick: BorrowedFd<'a>,
    /// Eventfd that the store signals to notify the guest.
    pub notify: BorrowedFd<'a>,
    /// The store's end of a stream socket. A byte `s` from the other end: the domain has shut down. Hang-up: it died.
    pub lifeline: Option<BorrowedFd<'a>>,
}

/// What SET_PERMS carries.
pub(super) fn perms_payload(path: &str, perms: &[Perm]) -> Vec<u8> {
    let mut payload = format!("{path}\0");
    perms.iter().for_each(|perm| payload.push_str(&format!("{perm}\0")));
    payload.into_bytes()
}

impl Client {
    /// The value of a node.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `EINVAL` for a bad path.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        self.one(MsgType::READ, path)
    }

    /// The value of a node as text; bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn read_string(&mut self, path: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).into_owned())
    }

    /// As [`Client::read_string`], but `None` for a node that does not exist.
    ///
    /// # Errors
    /// As [`Client::read`], but for `ENOENT`.
    pub fn read_opt(&mut self, path: &str) -> Result<Option<String>> {
        match self.read_string(path) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Sets a node's value, creating it and its missing parents.
    ///
    /// # Errors
    /// `EACCES`, `ENOSPC`, `EINVAL`.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<()> {
        self.request(MsgType::WRITE, path, &[path.as_bytes(), b"\0", value.as_ref()], &[]).map(drop)
    }

    /// Creates a node with an empty value, and its missing parents. An existing node is left as it is.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn mkdir(&mut self, path: &str) -> Result<()> {
        self.one(MsgType::MKDIR, path).map(drop)
    }

    /// Removes a node and all below it. A missing node is no error if its parent exists.
    ///
    /// # Errors
    /// `ENOENT` without the parent, `EACCES`, `EINVAL` for `/`.
    pub fn rm(&mut self, path: &str) -> Result<()> {
        self.one(MsgType::RM, path).map(drop)
    }

    /// The names of a node's children, however many.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>> {
        match self.one(MsgType::DIRECTORY, path) {
            Err(error) if error.errno() == Some(Errno::E2BIG) => self.directory_in_parts(path),
            reply => Ok(names(&reply?)),
        }
    }

    /// Begins again whenever the generation that every part carries has changed.
    fn directory_in_parts(&mut self, path: &str) -> Result<Vec<String>> {
        let (mut list, mut generation) = (Vec::new(), Vec::new());
        loop {
            let offset = list.len().to_string();
            let parts = [path.as_bytes(), b"\0", offset.as_bytes(), b"\0"];
            let reply = self.request(MsgType::DIRECTORY_PART, path, &parts, &[])?;
            let end = reply.iter().position(|&byte| byte == 0);
            let end = end.ok_or_else(|| Error::Protocol("DIRECTORY_PART without generation".into()))?;
            let (now, part) = reply.split_at(end);
            let part = part.get(1..).unwrap_or_default();
            if !list.is_empty() && generation != now {
                list.clear();
                continue;
            }
            generation = now.to_vec();
            // An empty string, that is one NUL too many, marks the end.
            if part == b"\0" {
                return Ok(names(&list));
            }
            if let Some(last) = part.strip_suffix(b"\0\0") {
                list.extend_from_slice(last);
                return Ok(names(&list));
            }
            if part.is_empty() {
                return Err(Error::Protocol("empty DIRECTORY_PART".into()));
            }
            list.extend_from_slice(part);
        }
    }

    /// The permissions of a node, the owner's entry first.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn get_perms(&mut self, path: &str) -> Result<Vec<Perm>> {
        let reply = self.one(MsgType::GET_PERMS, path)?;
        let entries = reply.split(|&byte| byte == 0).filter(|entry| !entry.is_empty());
        entries
            .map(Perm::parse)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::Protocol(format!("permissions of {path}")))
    }

    /// Replaces the permissions of a node. The first entry: the owner, and what everybody not named may do.
    ///
    /// # Errors
    /// `EACCES` unless owner or privileged, `EINVAL` for an empty list.
    pub fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<()> {
        self.request(MsgType::SET_PERMS, path, &[&perms_payload(path, perms)], &[]).map(drop)
    }

    /// Asks for an event whenever `path` or something below changes; the first event comes at once.
    ///
    /// # Errors
    /// `EEXIST` for the same path and token, `EINVAL`.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<()> {
        self.two(MsgType::WATCH, path, token)
    }

    /// Ends a watch. Events already on their way may still come.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<()> {
        self.two(MsgType::UNWATCH, path, token)
    }

    /// Makes a domain known and hands over its ring; when this returns the ring is served.
    ///
    /// Done again for the same domain it binds the new descriptors; watches and transactions of the guest are gone.
    ///
    /// # Errors
    /// `EINVAL` for descriptors that are not what they should be, `EACCES` from a guest.
    pub fn introduce(&mut self, domid: DomId, gfn: u64, port: u32, fds: RingFds<'_>) -> Result<()> {
        let (what, args) = (domid.to_string(), format!("{domid}\0{gfn}\0{port}\0"));
        let mut list = vec![fds.page, fds.kick, fds.notify];
        list.extend(fds.lifeline);
        self.request(MsgType::INTRODUCE, &what, &[args.as_bytes()], &list).map(drop)
    }

    /// Forgets a domain: `@releaseDomain` fires, the nodes it owns are removed.
    ///
    /// # Errors
    /// `ENOENT` if it is not known, `EINVAL` for 0.
    pub fn release(&mut self, domid: DomId) -> Result<()> {
        self.one(MsgType::RELEASE, &domid.to_string()).map(drop)
    }

    /// Says that a domain runs again after its shutdown, so that the next one is announced.
    ///
    /// # Errors
    /// `ENOENT` if it is not known.
    pub fn resume(&mut self, domid: DomId) -> Result<()> {
        self.one(MsgType::RESUME, &domid.to_string()).map(drop)
    }

    /// Gives `domid` the rights that `target` has.
    ///
    /// # Errors
    /// `ENOENT` unless both are known.
    pub fn set_target(&mut self, domid: DomId, target: DomId) -> Result<()> {
        self.two(MsgType::SET_TARGET, &domid.to_string(), &target.to_string())
    }

    /// Whether the store knows the domain.
    ///
    /// # Errors
    /// `EACCES` from a guest.
    pub fn is_introduced(&mut self, domid: DomId) -> Result<bool> {
        Ok(self.one(MsgType::IS_DOMAIN_INTRODUCED, &domid.to_string())?.first() == Some(&b'T'))
    }

    /// The home of a domain, `/local/domain/N`, known or not.
    ///
    /// # Errors
    /// [`Error::Io`] and the like.
    pub fn get_domain_path(&mut self, domid: DomId) -> Result<String> {
        let reply = self.one(MsgType::GET_DOMAIN_PATH, &domid.to_string())?;
        Ok(String::from_utf8_lossy(reply.strip_suffix(b"\0").unwrap_or(&reply)).into_owned())
    }

    /// A command to the daemon itself, such as `help`, and its answer.
    ///
    /// # Errors
    /// `EINVAL` for a command it does not know.
    pub fn control(&mut self, args: &[&str]) -> Result<String> {
        let payload: String = args.iter().map(|arg| format!("{arg}\0")).collect();
        let reply = self.request(MsgType::CONTROL, &args.join(" "), &[payload.as_bytes()], &[])?;
        Ok(String::from_utf8_lossy(reply.strip_suffix(b"\0").unwrap_or(&reply)).into_owned())
    }

    pub(super) fn transaction_start(&mut self) -> Result<u32> {
        let reply = self.request(MsgType::TRANSACTION_START, "", &[b"\0"], &[])?;
        number(reply.strip_suffix(b"\0").unwrap_or(&reply))
            .map_err(|_| Error::Protocol("transaction id is no number".into()))
    }

    pub(super) fn transaction_end(&mut self, commit: bool) -> Result<()> {
        let arg: &[u8] = if commit { b"T\0" } else { b"F\0" };
        self.request(MsgType::TRANSACTION_END, "", &[arg], &[]).map(drop)
    }

    fn one(&mut self, kind: MsgType, arg: &str) -> Result<Vec<u8>> {
        self.request(kind, arg, &[arg.as_bytes(), b"\0"], &[])
    }

    fn two(&mut self, kind: MsgType, first: &str, second: &str) -> Result<()> {
        let parts = [first.as_bytes(), b"\0", second.as_bytes(), b"\0"];
        self.request(kind, first, &parts, &[]).map(drop)
    }
}

fn names(list: &[u8]) -> Vec<String> {
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}
