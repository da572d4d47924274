//! Features and quotas, and a watch that newer stores know.

use super::{Client, Error, Result};
use crate::DomId;
use crate::wire::{MsgType, number};

impl Client {
    /// As [`Client::watch`], for changes at most `depth` levels below `path`: 0 is the node alone, 1 its children too.
    ///
    /// # Errors
    /// As [`Client::watch`]; `EINVAL` from a store without the feature.
    pub fn watch_to_depth(&mut self, path: &str, token: &str, depth: u32) -> Result<()> {
        let depth = depth.to_string();
        self.fields(MsgType::WATCH, path, &[path, token, &depth]).map(drop)
    }

    /// Ends all watches and transactions of this connection.
    ///
    /// # Errors
    /// [`Error::Io`] and the like.
    pub fn reset_watches(&mut self) -> Result<()> {
        self.fields(MsgType::RESET_WATCHES, "", &[""]).map(drop)
    }

    /// The features that the store offers to a domain, or to this client; bits as in `xs_wire.h`.
    ///
    /// # Errors
    /// `ENOSYS` from an older store, `ENOENT` for an unknown domain.
    pub fn features(&mut self, domid: Option<DomId>) -> Result<u32> {
        let domid = domid.map_or_else(String::new, |domid| domid.to_string());
        let reply = self.fields(MsgType::GET_FEATURE, &domid, &[&domid])?;
        number(reply.strip_suffix(b"\0").unwrap_or(&reply))
            .map_err(|_| Error::Protocol("features are no number".into()))
    }

    /// Chooses the features that a domain will be offered, before it is introduced.
    ///
    /// # Errors
    /// `EINVAL` for bits the store does not know, `EBUSY` once the domain is introduced.
    pub fn set_features(&mut self, domid: DomId, features: u32) -> Result<()> {
        let (domid, features) = (domid.to_string(), features.to_string());
        self.fields(MsgType::SET_FEATURE, &domid, &[&domid, &features]).map(drop)
    }

    /// The names of the quotas.
    ///
    /// # Errors
    /// `ENOSYS` from an older store.
    pub fn quotas(&mut self) -> Result<Vec<String>> {
        let reply = self.fields(MsgType::GET_QUOTA, "", &[""])?;
        let text = String::from_utf8_lossy(&reply);
        Ok(text.trim_end_matches('\0').split_whitespace().map(str::to_owned).collect())
    }

    /// A quota of a domain, or the one that holds for every domain without its own; 0 is no limit.
    ///
    /// # Errors
    /// `EINVAL` for a name the store does not know, `ENOENT` for an unknown domain.
    pub fn quota(&mut self, domid: Option<DomId>, name: &str) -> Result<u64> {
        let domid = domid.map(|domid| domid.to_string());
        let list: Vec<&str> = domid.as_deref().into_iter().chain([name]).collect();
        let reply = self.fields(MsgType::GET_QUOTA, name, &list)?;
        number(reply.strip_suffix(b"\0").unwrap_or(&reply))
            .map_err(|_| Error::Protocol(format!("quota {name} is no number")))
    }

    /// Sets a quota, see [`Client::quota`].
    ///
    /// # Errors
    /// As [`Client::quota`].
    pub fn set_quota(&mut self, domid: Option<DomId>, name: &str, value: u64) -> Result<()> {
        let (domid, value) = (domid.map(|domid| domid.to_string()), value.to_string());
        let list: Vec<&str> = domid.as_deref().into_iter().chain([name, &value]).collect();
        self.fields(MsgType::SET_QUOTA, name, &list).map(drop)
    }

    fn fields(&mut self, kind: MsgType, what: &str, list: &[&str]) -> Result<Vec<u8>> {
        let payload: String = list.iter().map(|field| format!("{field}\0")).collect();
        self.request(kind, what, &[payload.as_bytes()], &[])
    }
}
