//! Special pages in the physmap: placing, moving, taking away.

use xen_abi::errno::Errno;
use xen_abi::shared_info::LEGACY_MAX_VCPUS;

use crate::domain::Domain;
use crate::hypercall::Cx;
use crate::mem::{Gfn, SpecialPage};
use crate::physmap::GFN_LIMIT;
use crate::vcpu::default_vcpu_info;

impl Domain {
    /// Whether anything backs the frame: RAM, a special page, or a mapped grant.
    pub(crate) fn has_memory(&self, gfn: Gfn) -> bool {
        self.physmap.is_present(gfn)
            || self.physmap.special_at(gfn).is_some()
            || self.grants.mapped.is_at(gfn)
    }

    /// Whether the guest has RAM there, whatever number it names.
    #[must_use]
    pub fn has_ram(&self, gfn: Gfn) -> bool {
        self.physmap.is_present(gfn)
    }

    /// Whether the frame is the domain's own, and not another domain's page that it has mapped: that goes away when it is
    /// unmapped, and what the machine keeps up to date has to stay.
    pub(crate) fn owns(&self, gfn: Gfn) -> bool {
        self.has_memory(gfn) && !self.grants.mapped.is_foreign(gfn)
    }

    /// Whether another domain has the frame mapped: it has to stay as it is, as whoever has it afterwards would share it
    /// with that domain.
    pub(crate) fn is_away(&self, gfn: Gfn) -> bool {
        self.grants.away.contains_key(&gfn)
    }

    /// Places a special page. It leaves the place it had; a special page at the new place goes home, and a RAM page
    /// there is lost to the domain, as on Xen.
    ///
    /// # Errors
    /// -EINVAL for frames beyond the address space or where a grant is mapped, -EBUSY for a frame that another domain has
    /// mapped, and whatever the machine cannot do.
    pub(crate) fn place_special(
        &mut self,
        page: SpecialPage,
        gfn: Gfn,
        cx: &mut Cx<'_>,
    ) -> Result<(), Errno> {
        if gfn.0 >= GFN_LIMIT || self.grants.mapped.is_at(gfn) {
            return Err(Errno::EINVAL);
        }
        // The page would live in that frame, and the other domain would have it.
        if self.is_away(gfn) {
            return Err(Errno::EBUSY);
        }
        let old = self.physmap.gfn_of(page);
        if old == Some(gfn) {
            return Ok(());
        }
        if let Some(other) = self.physmap.special_at(gfn) {
            self.unplace_special(other, cx)?;
        }
        cx.fx.map_special(page, Some(gfn))?;
        self.physmap.take(gfn);
        self.physmap.place(page, Some(gfn));
        self.left(page, old, cx);
        Ok(())
    }

    /// Takes a special page out of the physmap; its frame becomes a hole.
    pub(crate) fn unplace_special(&mut self, page: SpecialPage, cx: &mut Cx<'_>) -> Result<(), Errno> {
        let old = self.physmap.gfn_of(page);
        cx.fx.map_special(page, None)?;
        self.physmap.place(page, None);
        self.left(page, old, cx);
        Ok(())
    }

    /// A special page has left `old`: in RAM that leaves a hole.
    fn left(&mut self, page: SpecialPage, old: Option<Gfn>, cx: &mut Cx<'_>) {
        if let Some(old) = old.filter(|old| self.physmap.is_ram(*old)) {
            cx.fx.release_ram(old, 1);
        }
        if page == SpecialPage::SharedInfo {
            self.shared_info_moved(cx);
        }
    }

    /// Tells the machine where the default vcpu_infos are now, and the guest what time it is.
    fn shared_info_moved(&mut self, cx: &mut Cx<'_>) {
        let base = self.physmap.gfn_of(SpecialPage::SharedInfo).map(Gfn::gpa);
        let legacy = (0..LEGACY_MAX_VCPUS).zip(&self.vcpus);
        for (id, _) in legacy.filter(|(_, vcpu)| vcpu.info.is_none()) {
            cx.fx.set_vcpu_info(id, base.and_then(|base| default_vcpu_info(base, id)));
        }
        self.update_wallclock(cx);
    }
}
