//! Granted pages, held as long as they are used.

use crate::backend::device::DeviceError;
use std::sync::Arc;
use xen_abi::Gref;
use xen_domain::gnttab::{GrantError, Grants, Pinned};

/// A pinned grant, given back when dropped.
pub struct Grant {
    grants: Arc<dyn Grants>,
    gref: Gref,
    write: bool,
    /// The bytes.
    pub at: Pinned,
}

impl Grant {
    /// Pins.
    ///
    /// # Errors
    /// As [`Grants::pin`].
    pub fn pin(grants: &Arc<dyn Grants>, gref: Gref, write: bool) -> Result<Grant, GrantError> {
        let at = grants.pin(gref, write)?;
        Ok(Grant { grants: grants.clone(), gref, write, at })
    }

    /// Pins the page of a ring.
    ///
    /// # Errors
    /// It is not granted, or no whole page.
    pub fn ring(grants: &Arc<dyn Grants>, gref: u32) -> Result<Grant, DeviceError> {
        let grant =
            Grant::pin(grants, Gref(gref), true).map_err(|e| DeviceError(format!("ring page: {e}")))?;
        match grant.whole() {
            true => Ok(grant),
            false => Err(DeviceError(format!("ring page: grant {gref} is no whole page"))),
        }
    }

    /// Whether it is a whole page.
    pub fn whole(&self) -> bool {
        usize::from(self.at.len) == super::proto::PAGE
    }

    /// Which it is.
    pub fn gref(&self) -> u32 {
        self.gref.0
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.grants.unpin(self.gref, self.write);
    }
}
