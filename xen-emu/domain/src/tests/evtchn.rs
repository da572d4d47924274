use xen_abi::errno::Errno;
use xen_abi::event_channel::{
    AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Close, EvtchnOp, EvtchnStat, Reset, Send,
    SetPriority, Status, Unmask,
};
use xen_abi::grant_table::{GrantEntryV1, gtf};
use xen_abi::hvm::op::{HvmOp, XenHvmParam};
use xen_abi::hvm::params::HvmParam;
use xen_abi::shared_info::Layout;
use xen_abi::xen::{Domid, Port};

use super::{BOTH, EVTCHN, HVM};
use crate::effect::{Backend, Offload};
use crate::hypercall::Width;
use crate::mem::{GuestMem, SpecialPage};
use crate::peer::Told;
use crate::testing::{Bench, Effect};

impl Bench {
    pub(super) fn bind_ipi(&mut self, vcpu: u32) -> Result<u32, Errno> {
        let (rc, bind) = self.op(EVTCHN, EvtchnOp::BIND_IPI.0, &BindIpi { vcpu, port: Port(0) });
        rc.map(|_| bind.port.0)
    }

    pub(super) fn bind_virq(&mut self, virq: u32, vcpu: u32) -> Result<u32, Errno> {
        let (rc, bind) = self.op(EVTCHN, EvtchnOp::BIND_VIRQ.0, &BindVirq { virq, vcpu, port: Port(0) });
        rc.map(|_| bind.port.0)
    }

    pub(super) fn alloc_unbound(&mut self, dom: Domid, remote_dom: Domid) -> Result<u32, Errno> {
        let alloc = AllocUnbound { dom, remote_dom, port: Port(0) };
        let (rc, alloc) = self.op(EVTCHN, EvtchnOp::ALLOC_UNBOUND.0, &alloc);
        rc.map(|_| alloc.port.0)
    }

    pub(super) fn interdomain(&mut self, remote_dom: Domid, remote_port: u32) -> Result<u32, Errno> {
        let bind =
            BindInterdomain { remote_dom, pad: 0, remote_port: Port(remote_port), local_port: Port(0) };
        let (rc, bind) = self.op(EVTCHN, EvtchnOp::BIND_INTERDOMAIN.0, &bind);
        rc.map(|_| bind.local_port.0)
    }

    pub(super) fn send(&mut self, port: u32) -> Result<i64, Errno> {
        self.op(EVTCHN, EvtchnOp::SEND.0, &Send { port: Port(port) }).0
    }

    pub(super) fn close(&mut self, port: u32) -> Result<i64, Errno> {
        self.op(EVTCHN, EvtchnOp::CLOSE.0, &Close { port: Port(port) }).0
    }

    pub(super) fn unmask(&mut self, port: u32) -> Result<i64, Errno> {
        self.op(EVTCHN, EvtchnOp::UNMASK.0, &Unmask { port: Port(port) }).0
    }

    pub(super) fn bind_vcpu(&mut self, port: u32, vcpu: u32) -> Result<i64, Errno> {
        self.op(EVTCHN, EvtchnOp::BIND_VCPU.0, &BindVcpu { port: Port(port), vcpu }).0
    }

    pub(super) fn status(&mut self, port: u32) -> Result<(EvtchnStat, u32, u32, u32), Errno> {
        let ask = Status {
            dom: Domid::SELF,
            pad: 0,
            port: Port(port),
            status: EvtchnStat::CLOSED,
            vcpu: 9,
            u: 0,
            u_port: Port(0),
        };
        let (rc, status) = self.op(EVTCHN, EvtchnOp::STATUS.0, &ask);
        rc.map(|_| (status.status, status.u, status.u_port.0, status.vcpu))
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::of(self.width.into())
    }

    /// Pending bit, selector bit and upcall flag of a port on a vCPU.
    pub(super) fn seen(&self, port: u32, vcpu: u64) -> (bool, bool, bool) {
        let (layout, home) = (self.layout(), SpecialPage::SharedInfo.home());
        let bits = layout.width.bits();
        let bit = |offset: u64, n: u32| {
            let mut byte = [0];
            self.ram.read(home.offset(offset + u64::from(n / 8)), &mut byte).unwrap();
            byte[0] >> (n % 8) & 1 == 1
        };
        let info = vcpu * 64;
        let selector = bit(info + layout.vcpu_pending_sel as u64, port / bits);
        (bit(layout.pending as u64, port), selector, bit(info, 0))
    }

    fn mask(&mut self, port: u32) {
        let at = SpecialPage::SharedInfo.home().offset(self.layout().mask as u64 + u64::from(port / 32 * 4));
        self.ram.fetch_or_u32(at, 1 << (port % 32)).unwrap();
    }
}

#[test]
fn an_event_is_delivered_once_in_the_headers_order() {
    for width in BOTH {
        let mut b = Bench::new(width);
        let ports: Vec<u32> = (0..70).map(|_| b.bind_ipi(1).unwrap()).collect();
        b.effects();
        assert_eq!((ports[0], ports[69]), (1, 70), "lowest free port first");
        assert_eq!(b.send(70), Ok(0));
        assert_eq!(b.seen(70, 1), (true, true, true));
        assert_eq!(b.effects(), [Effect::Upcall(1)]);
        assert_eq!((b.send(70), b.send(1)), (Ok(0), Ok(0)));
        assert_eq!(b.seen(1, 1), (true, true, true));
        assert_eq!(b.effects(), [], "the vCPU knows already");
        assert_eq!(b.seen(1, 0), (true, false, false), "and the other one was never told");
    }
}

#[test]
fn a_masked_event_waits_for_unmask() {
    for width in BOTH {
        let mut b = Bench::new(width);
        let port = b.bind_ipi(2).unwrap();
        b.mask(port);
        b.send(port).unwrap();
        b.effects();
        assert_eq!(b.seen(port, 2), (true, false, false));
        assert_eq!(b.unmask(port), Ok(0));
        assert_eq!(b.seen(port, 2), (true, true, true));
        assert_eq!(b.effects(), [Effect::Upcall(2)]);
        assert_eq!((b.unmask(port), b.unmask(5000)), (Ok(0), Err(Errno::EINVAL)));
        assert_eq!(b.effects(), []);
        b.close(port).unwrap();
        b.mask(port);
        let masked = b.ram.load_u32(SpecialPage::SharedInfo.home().offset(b.layout().mask as u64));
        assert_eq!((b.unmask(port), b.unmask(0)), (Ok(0), Ok(0)), "closed, and the reserved one");
        assert_eq!(b.ram.load_u32(SpecialPage::SharedInfo.home().offset(b.layout().mask as u64)), masked);
    }
}

#[test]
fn where_the_machine_delivers_it_is_asked_again_at_unmask() {
    let mut b = Bench::new(Width::Bits64);
    b.fx.accelerated = true;
    let port = b.bind_ipi(1).unwrap();
    assert_eq!(b.effects(), [Effect::Offload(port, Offload::Ipi(1))]);
    b.mask(port);
    // What the kernel does when the guest sends: only the pending bit, because of the mask.
    let pending = SpecialPage::SharedInfo.home().offset(b.layout().pending as u64);
    b.ram.fetch_or_u64(pending, 1 << port).unwrap();
    assert_eq!(b.unmask(port), Ok(0));
    assert_eq!(b.effects(), [Effect::Raise(port, 1)]);
    assert_eq!(b.seen(port, 1), (false, false, false), "taken, for the kernel to set anew");
    b.close(port).unwrap();
    assert_eq!(b.effects(), [Effect::Retract(port)]);
}

#[test]
fn errors_are_xens() {
    use Errno as E;
    let mut b = Bench::new(Width::Bits64);
    assert_eq!((b.send(0), b.send(1), b.send(4096)), (Err(E::EINVAL), Err(E::EINVAL), Err(E::EINVAL)));
    assert_eq!((b.close(0), b.close(1)), (Err(E::EINVAL), Err(E::EINVAL)));
    assert_eq!(b.bind_ipi(4), Err(E::ENOENT));
    assert_eq!(b.bind_virq(24, 0), Err(E::EINVAL));
    assert_eq!(b.bind_virq(2, 1), Err(E::EINVAL), "global ones on vCPU 0 only");
    assert_eq!(b.bind_virq(0, 9), Err(E::ENOENT));
    assert_eq!((b.bind_virq(0, 1), b.bind_virq(0, 1)), (Ok(1), Err(E::EEXIST)));
    assert_eq!(b.effects(), [Effect::TimerPort(1, Some(1))]);
    assert_eq!(b.send(1), Err(E::EINVAL), "a VIRQ cannot be sent on");
    assert_eq!(b.bind_vcpu(1, 0), Err(E::EINVAL), "nor a per-vCPU one moved");
    assert_eq!((b.bind_virq(2, 0), b.bind_vcpu(2, 3)), (Ok(2), Ok(0)), "a global one can");
    assert_eq!(b.status(2), Ok((EvtchnStat::VIRQ, 2, 0, 3)));
    assert_eq!((b.bind_vcpu(2, 4), b.bind_vcpu(3, 0)), (Err(E::ENOENT), Err(E::EINVAL)));
    assert_eq!(b.alloc_unbound(Domid(0), Domid(0)), Err(E::EPERM));
    assert_eq!(b.alloc_unbound(Domid(9), Domid(0)), Err(E::ESRCH), "it does not answer");
    b.fx.answers = [Told::Done].into();
    assert_eq!(b.alloc_unbound(Domid(9), Domid(0)), Err(E::EPERM), "it lives");
    assert_eq!(b.alloc_unbound(Domid(0x7ff4), Domid(0)), Err(E::ESRCH));
    assert_eq!(b.interdomain(Domid(9), 1), Err(E::ESRCH));
    assert_eq!((b.interdomain(Domid(0), 1), b.interdomain(Domid::SELF, 1)), (Err(E::EINVAL), Err(E::EINVAL)));
    let fifo = SetPriority { port: Port(1), priority: 3 };
    assert_eq!(b.op(EVTCHN, EvtchnOp::SET_PRIORITY.0, &fifo).0, Err(E::ENOSYS));
    assert_eq!(b.op(EVTCHN, EvtchnOp::INIT_CONTROL.0, &[0u64; 3]).0, Err(E::ENOSYS));
    assert_eq!(b.status(0), Ok((EvtchnStat::CLOSED, 0, 0, 0)));
    assert_eq!(
        (b.status(63).map(|s| s.0), b.status(64)),
        (Ok(EvtchnStat::CLOSED), Err(E::EINVAL)),
        "as made"
    );
    let full: Vec<u32> = (0..2000).map_while(|_| b.bind_ipi(0).ok()).collect();
    assert_eq!((full.last(), b.bind_ipi(0)), (Some(&1022), Err(E::ENOSPC)), "max_ports");
    assert_eq!((b.close(500), b.bind_ipi(0)), (Ok(0), Ok(500)));
}

#[test]
fn loopback_delivers_at_the_other_end_and_follows_its_vcpu() {
    let mut b = Bench::new(Width::Bits32);
    let far = b.alloc_unbound(Domid::SELF, Domid(7)).unwrap();
    assert_eq!(b.status(far), Ok((EvtchnStat::UNBOUND, 7, 0, 0)));
    assert_eq!(b.send(far), Ok(0), "dropped");
    assert_eq!(b.seen(far, 0), (false, false, false));
    let near = b.interdomain(Domid::SELF, far).unwrap();
    assert_eq!(b.seen(near, 0), (true, true, true), "made up, for what was lost");
    assert_eq!((b.status(near), b.status(far)), {
        let stat = EvtchnStat::INTERDOMAIN;
        (Ok((stat, 7, far, 0)), Ok((stat, 7, near, 0)))
    });
    b.effects();
    b.bind_vcpu(far, 3).unwrap();
    assert_eq!(
        b.effects(),
        [
            Effect::Offload(far, Offload::Loopback { port: near, vcpu: 0 }),
            Effect::Offload(near, Offload::Loopback { port: far, vcpu: 3 }),
        ]
    );
    b.send(near).unwrap();
    assert_eq!((b.seen(far, 3), b.effects()), ((true, true, true), vec![Effect::Upcall(3)]));
    b.close(near).unwrap();
    assert_eq!(b.status(far), Ok((EvtchnStat::UNBOUND, 7, 0, 3)));
    assert!(!b.seen(near, 0).0, "nothing of it stays pending");
}

#[test]
fn the_store_comes_first_and_is_found_by_param_grant_and_port() {
    let mut b = Bench::new(Width::Bits64);
    b.fx.accelerated = true;
    let store = b.with(|d, cx| d.connect_backend(Backend::Store, cx));
    let console = b.with(|d, cx| d.connect_backend(Backend::Console, cx));
    assert_eq!((store, console), (Ok(1), Ok(2)));
    assert_eq!(b.with(|d, cx| d.connect_backend(Backend::Store, cx)), Err(Errno::EEXIST));
    assert_eq!(b.effects()[0], Effect::Offload(1, Offload::Backend(Backend::Store, 0)));
    let entry = |index: u64| -> GrantEntryV1 { b.get(SpecialPage::GrantFrame(0).home().0 + index * 8) };
    let granted = |frame| GrantEntryV1 { flags: gtf::PERMIT_ACCESS, domid: Domid::DOM0, frame };
    assert_eq!((entry(0), entry(1)), (granted(0xfeff0), granted(0xfeff1)));
    let mut get = |index| {
        let (rc, param) =
            b.op(HVM, HvmOp::GET_PARAM.0, &XenHvmParam { domid: Domid::SELF, pad: 0, index, value: 9 });
        rc.map(|_| param.value)
    };
    assert_eq!((get(HvmParam::STORE_EVTCHN), get(HvmParam::STORE_PFN)), (Ok(1), Ok(0xfeff1)));
    assert_eq!((get(HvmParam::CONSOLE_EVTCHN), get(HvmParam::CONSOLE_PFN)), (Ok(2), Ok(0xfeff0)));
    b.domain.set_store_page(false);
    let ask = XenHvmParam { domid: Domid(7), pad: 0, index: HvmParam::STORE_PFN, value: 9 };
    assert_eq!(b.op(HVM, HvmOp::GET_PARAM.0, &ask).1.value, 0);
    assert_eq!(b.send(1), Ok(0));
    assert_eq!(b.effects(), [Effect::Kick(Backend::Store)]);
    b.with(|d, cx| d.raise(1, cx));
    b.bind_vcpu(1, 2).unwrap();
    assert_eq!(b.effects(), [Effect::Raise(1, 0), Effect::Offload(1, Offload::Backend(Backend::Store, 2))]);
}

#[test]
fn after_a_reset_the_guest_finds_its_backends_again() {
    let mut b = Bench::new(Width::Bits64);
    b.fx.accelerated = true;
    b.with(|d, cx| d.connect_backend(Backend::Store, cx)).unwrap();
    b.bind_virq(0, 0).unwrap();
    let (_, dom, far, _) = b.status(1).unwrap();
    assert_eq!((dom, far), (0, 1));
    b.effects();
    assert_eq!(b.op(EVTCHN, EvtchnOp::RESET.0, &Reset { dom: Domid::SELF }).0, Ok(0));
    assert_eq!(b.effects(), [Effect::RetractAll, Effect::TimerPort(0, None)]);
    assert_eq!(b.status(1), Ok((EvtchnStat::CLOSED, 0, 0, 0)));
    let port = b.bind_ipi(0).and_then(|_| b.interdomain(Domid::DOM0, far));
    assert_eq!((port, b.interdomain(Domid::DOM0, far)), (Ok(2), Err(Errno::EINVAL)));
    b.effects();
    b.send(2).unwrap();
    assert_eq!(b.effects(), [Effect::Kick(Backend::Store)]);
    b.with(|d, cx| d.disconnect_backend(Backend::Store, cx));
    assert_eq!(b.status(2), Ok((EvtchnStat::UNBOUND, 0, 0, 0)));
}

#[test]
fn a_device_binds_to_the_port_that_the_guest_offers() {
    let mut b = Bench::new(Width::Bits64);
    let port = b.alloc_unbound(Domid::SELF, Domid::DOM0).unwrap();
    let device = Backend::Device(5);
    let other = b.alloc_unbound(Domid::SELF, Domid(3)).unwrap();
    assert_eq!(b.with(|d, cx| d.bind_backend(other, device, cx)), Err(Errno::EINVAL), "meant for another");
    assert_eq!(b.with(|d, cx| d.bind_backend(port, device, cx)), Ok(()));
    assert_eq!(b.with(|d, cx| d.bind_backend(port, device, cx)), Err(Errno::EINVAL));
    assert_eq!(b.effects(), [Effect::Offload(port, Offload::Backend(device, 0)), Effect::Kick(device)]);
    assert_eq!(b.domain.describe("evtchn/1"), "evtchn: 1: interdomain with Device(5) on vcpu 0\n");

    // The guest closes the port and another device gets the number: the first one's leaving does not concern it.
    b.close(port).unwrap();
    assert_eq!(b.alloc_unbound(Domid::SELF, Domid::DOM0), Ok(port));
    assert_eq!(b.with(|d, cx| d.bind_backend(port, Backend::Device(6), cx)), Ok(()));
    b.with(|d, cx| d.disconnect_backend(device, cx));
    assert_eq!(b.domain.describe("evtchn/1"), "evtchn: 1: interdomain with Device(6) on vcpu 0\n");
    b.with(|d, cx| d.disconnect_backend(Backend::Device(6), cx));
    assert_eq!(b.status(port), Ok((EvtchnStat::UNBOUND, 0, 0, 0)));
    assert_eq!(b.with(|d, cx| d.bind_backend(port, device, cx)), Ok(()), "and back");
}
