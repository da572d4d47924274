//! Soft reset (SHUTDOWN_soft_reset of `public/sched.h`): another kernel begins in the same memory, as after kexec, and finds Xen as a new
//! domain does.

use xen_abi::errno::Errno;

use crate::domain::Domain;
use crate::effect::{Backend, VcpuId};
use crate::hvm_params::HvmParams;
use crate::hypercall::Cx;
use crate::mem::{Gfn, SpecialPage};
use crate::vcpu::Vcpu;

impl Domain {
    /// Takes from the guest what it had of Xen: ports, mappings, grants, registered areas, timers, parameters, and the special pages
    /// but for the two rings. Its memory stays, and its vCPUs keep their registers. [`Domain::connect_backend`] follows for the store and
    /// the console. Called while no vCPU runs and no device is connected.
    ///
    /// # Errors
    /// What the machine cannot undo: the domain is of no use then.
    pub fn soft_reset(&mut self, cx: &mut Cx<'_>) -> Result<(), Errno> {
        while !self.reset_ports(cx) {}
        for backend in [Backend::Store, Backend::Console] {
            self.leave_far(backend, cx);
        }
        for mapping in self.grants.mapped.take() {
            match mapping.foreign {
                None => {
                    cx.fx.map_grant(mapping.at, None)?;
                    self.grants.active.unpin(cx.mem, mapping.gref, mapping.write);
                }
                Some((_, page)) => {
                    cx.fx.map_foreign(mapping.at, None)?;
                    cx.fx.release_foreign(page);
                }
            }
        }
        for (id, _) in (0..).zip(0..self.vcpus.len()) {
            self.forget_vcpu(id, cx);
        }
        self.hvm = HvmParams::new();
        self.callback = 0;
        cx.fx.set_callback(0);
        cx.fx.set_runstate_update_flag(false);
        for (id, used) in (1..).zip(&mut self.watchdogs) {
            *used = false;
            cx.fx.set_watchdog(id, 0);
        }
        self.take_pages(cx)?;
        self.grants.active.quiet().empty(cx.mem)?;
        self.shutdown_code = None;
        Ok(())
    }

    /// What a vCPU has registered. The one that has asked for the reset goes on; the others have halted for good, and are down until an INIT
    /// starts them.
    fn forget_vcpu(&mut self, id: VcpuId, cx: &mut Cx<'_>) {
        // What it has asked another domain is undone.
        let _ = self.told(id, |_| None::<()>, cx);
        cx.fx.set_singleshot(id, None);
        cx.fx.set_periodic(id, None);
        cx.fx.set_runstate(id, None);
        cx.fx.set_vcpu_time_info(id, None);
        cx.fx.set_vcpu_info(id, None);
        cx.fx.set_upcall_vector(id, 0);
        if let Some(vcpu) = self.vcpus.get_mut(id as usize) {
            let (online, initialised) = (vcpu.online && id == self.shutdown_by, vcpu.initialised);
            *vcpu = Vcpu { online, initialised, ..Vcpu::new(false) };
        }
    }

    /// Takes the special pages away that the guest has placed; where one lay in RAM there is RAM again, empty.
    fn take_pages(&mut self, cx: &mut Cx<'_>) -> Result<(), Errno> {
        let own = |page: &SpecialPage| !matches!(page, SpecialPage::Console | SpecialPage::Store);
        let placed: Vec<(SpecialPage, Gfn)> = self.physmap.placed().filter(|(page, _)| own(page)).collect();
        for (page, gfn) in placed {
            self.unplace_special(page, cx)?;
            if self.physmap.give(gfn) {
                cx.fx.populate_ram(gfn, 1)?;
            }
        }
        cx.mem.write(SpecialPage::SharedInfo.home(), &[0; xen_abi::xen::PAGE_SIZE])?;
        Ok(())
    }
}
