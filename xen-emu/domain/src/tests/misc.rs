use xen_abi::errno::Errno;
use xen_abi::hvm::op::{GetMemType, HvmMemType, HvmOp, PagetableDying, XenHvmParam};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::Hypercall;
use xen_abi::version::{FeatureInfo, XenVer};
use xen_abi::xen::{Domid, MulticallEntry};

use super::{BOTH, HVM, MEMORY, SCHED, VERSION};
use crate::hypercall::{Call, Outcome, Width};
use crate::testing::{Bench, Effect, result};

#[test]
fn who_may_call_and_what_is_unknown() {
    let mut b = Bench::new(Width::Bits64);
    let call = Call { vcpu: 0, nr: VERSION, args: [0; 6], width: Width::Bits64, cpl: 3 };
    assert_eq!(result(b.raw(call)), Err(Errno::EPERM));
    assert_eq!(result(b.raw(Call { cpl: 0, ..call })), Ok(4 << 16 | 20));
    let unknown = Call { nr: 39, cpl: 0, ..call };
    assert_eq!((result(b.raw(unknown)), result(b.raw(unknown))), (Err(Errno::ENOSYS), Err(Errno::ENOSYS)));
    assert_eq!(result(b.call(33, [12, Bench::ARG])), Err(Errno::ENOSYS));
    let logs = ["unknown hypercall ARGO_OP", "unknown hypercall PHYSDEV_OP.EOI"];
    assert_eq!(b.effects(), logs.map(|log| Effect::Log(log.to_owned())), "once each");
    assert_eq!(b.domain.counters()[&(39, 0)], 2);
    assert_eq!(b.domain.describe("hypercalls").lines().last(), Some("hypercalls: 2 ARGO_OP"));
    for op in 0..1000 {
        assert_eq!(result(b.call(33, [op])), Err(Errno::ENOSYS));
    }
    assert!(b.domain.counters().len() <= 257 && b.effects().len() <= 257, "a guest cannot fill the log");
}

#[test]
fn versions_and_features() {
    for width in BOTH {
        let mut b = Bench::new(width);
        let text = |b: &mut Bench, cmd: XenVer| {
            b.put(Bench::ARG, &[0xffu8; 64]);
            let rc = result(b.call(VERSION, [cmd.0.into(), Bench::ARG]));
            let bytes: [u8; 64] = b.get(Bench::ARG);
            rc.map(|_| String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap()).into_owned())
        };
        assert_eq!(text(&mut b, XenVer::EXTRAVERSION), Ok(".0-xlr".to_owned()));
        let caps = text(&mut b, XenVer::CAPABILITIES).unwrap();
        assert_eq!(caps, "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ");
        assert_eq!(text(&mut b, XenVer::COMMANDLINE), Ok("none".to_owned()));
        assert_eq!(text(&mut b, XenVer::BUILD_ID), Err(Errno::EPERM));
        b.call(VERSION, [XenVer::GUEST_HANDLE.0.into(), Bench::ARG]);
        assert_eq!(&b.get::<[u8; 16]>(Bench::ARG), b"0123456789abcdef");
        let mut features = |submap_idx| {
            let (rc, info) = b.op(VERSION, XenVer::GET_FEATURES.0, &FeatureInfo { submap_idx, submap: 0 });
            rc.map(|_| info.submap)
        };
        assert_eq!((features(0), features(1)), (Ok(0b1101_0000_0011_0000_0101), Err(Errno::EINVAL)));
        let varbuf = |b: &mut Bench, len: u32| {
            b.put(Bench::ARG, &len);
            result(b.call(VERSION, [XenVer::EXTRAVERSION2.0.into(), Bench::ARG]))
        };
        assert_eq!(result(b.call(VERSION, [XenVer::EXTRAVERSION2.0.into()])), Ok(6));
        assert_eq!((varbuf(&mut b, 5), varbuf(&mut b, 6)), (Err(Errno::ENOBUFS), Ok(6)));
        assert_eq!(&b.get::<[u8; 6]>(Bench::ARG + 4), b".0-xlr");
        assert_eq!(result(b.call(VERSION, [XenVer::PAGESIZE.0.into(), 0])), Ok(4096));
        assert_eq!(result(b.call(VERSION, [XenVer::PAGESIZE.0.into(), 8])), Err(Errno::EINVAL));
    }
}

#[test]
fn multicalls_run_their_entries_and_carry_continuations() {
    for width in BOTH {
        let mut b = Bench::new(width);
        let entries = [
            (VERSION, [0, 0, 0]),
            (Hypercall::MULTICALL.0, [0, 0, 0]),
            (Hypercall::CONSOLE_IO.0, [0, 1500, 0x9000]),
            (SCHED, [0, 0, 0]),
        ];
        b.put(0x9000, &[b'x'; 1500]);
        let size = if width == Width::Bits64 { 8 } else { 4 };
        for (index, (op, args)) in (0..).zip(entries) {
            for (slot, value) in [op, 99].into_iter().chain(args).enumerate() {
                b.with(|_, cx| cx.put_long(width, Bench::ARG, index * 8 + slot as u64, value)).unwrap();
            }
        }
        assert_eq!(result(b.call(Hypercall::MULTICALL.0, [Bench::ARG, 4])), Ok(0));
        let mut results = |n: u64| b.with(|_, cx| cx.get_long(width, Bench::ARG, n * 8 + 1)).unwrap();
        let minus_einval = if size == 8 { -22i64 as u64 } else { u64::from(-22i32 as u32) };
        assert_eq!([0, 1, 2, 3].map(&mut results), [4 << 16 | 20, minus_einval, 0, 0]);
        assert_eq!(b.effects(), [Effect::Console(vec![b'x'; 1024]), Effect::Console(vec![b'x'; 476])]);
        assert_eq!(result(b.call(Hypercall::MULTICALL.0, [0x2_0000, 1])), Err(Errno::EFAULT));
    }
    let mut b = Bench::new(Width::Bits64);
    for index in 0..100 {
        b.put(Bench::ARG + index * 64, &MulticallEntry { op: VERSION, result: 0, args: [0; 6] });
    }
    let args = [Bench::ARG, 100, 0, 0, 0, 0];
    let call = Call { vcpu: 0, nr: Hypercall::MULTICALL.0, args, width: Width::Bits64, cpl: 0 };
    let Outcome::Again(rest) = b.raw(call) else { panic!("not preempted") };
    assert_eq!(rest.args[..2], [Bench::ARG + 64 * 64, 36]);
}

#[test]
fn small_operations() {
    let mut b = Bench::new(Width::Bits64);
    let vm_assist = |b: &mut Bench, cmd: u64, kind: u64| result(b.call(Hypercall::VM_ASSIST.0, [cmd, kind]));
    assert_eq!((vm_assist(&mut b, 0, 5), vm_assist(&mut b, 1, 5)), (Ok(0), Ok(0)));
    assert_eq!((vm_assist(&mut b, 0, 4), vm_assist(&mut b, 2, 5)), (Err(Errno::EINVAL), Err(Errno::ENOSYS)));
    assert_eq!(b.effects()[..2], [Effect::RunstateUpdateFlag(true), Effect::RunstateUpdateFlag(false)]);
    assert_eq!(b.op(HVM, HvmOp::GET_TIME.0, &0u64), (Ok(0), 5_000_000_000));
    assert_eq!(result(b.call(HVM, [HvmOp::FLUSH_TLBS.0.into(), 0])), Ok(0));
    assert_eq!(result(b.call(HVM, [HvmOp::FLUSH_TLBS.0.into(), 1])), Err(Errno::EINVAL));
    let dying = PagetableDying { domid: Domid::SELF, pad: [0; 3], gpa: 0 };
    assert_eq!(b.op(HVM, HvmOp::PAGETABLE_DYING.0, &dying).0, Err(Errno::EINVAL));
    let mut kind = |pfn| {
        let ask = GetMemType { domid: Domid::SELF, mem_type: HvmMemType(9), pad: [0; 2], pfn };
        b.op(HVM, HvmOp::GET_MEM_TYPE.0, &ask).1.mem_type
    };
    assert_eq!((kind(63), kind(64)), (HvmMemType::RAM_RW, HvmMemType::MMIO_DM));
    assert_eq!(result(b.call(Hypercall::CONSOLE_IO.0, [1, 5, Bench::ARG])), Err(Errno::EPERM));
    let mut get =
        |domid, index| b.op(HVM, HvmOp::GET_PARAM.0, &XenHvmParam { domid, pad: 0, index, value: 9 }).0;
    let own = Domid::SELF;
    assert_eq!(
        (get(own, HvmParam::VIRIDIAN), get(own, HvmParam(39))),
        (Err(Errno::EPERM), Err(Errno::EINVAL))
    );
    assert_eq!(
        (get(Domid(0), HvmParam(1)), get(Domid(8), HvmParam(1))),
        (Err(Errno::EPERM), Err(Errno::ESRCH))
    );
    assert_eq!(result(b.call(MEMORY, [2])), Ok(64), "maximum_ram_page takes no argument");
    assert_eq!(b.domain.describe("nothing/1"), "");
    assert!(b.domain.describe("").contains("vcpu: 0: up"));
}
