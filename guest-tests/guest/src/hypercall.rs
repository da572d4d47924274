//! Hypercalls: by instruction, or through the page if the instruction is not answered.
#![forbid(unsafe_code)]

use crate::{cpu, page::Page, xen};
use core::sync::atomic::{AtomicU8, Ordering};
use xen_abi::Errno;
use xen_abi::hvm::op::{HvmOp, XenHvmParam};
use xen_abi::hvm::params::HvmParam;
use xen_abi::hypercall::{Hypercall, STUB_SIZE};
use xen_abi::version::XenVer;
use xen_abi::xen::{ConsoleIo, Domid};
use zerocopy::{FromBytes, IntoBytes};

/// How calls reach the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// There is no hypervisor; every call is -ENOSYS.
    None = 0,
    /// VMCALL.
    Vmcall = 1,
    /// VMMCALL.
    Vmmcall = 2,
    /// The hypercall page.
    Page = 3,
}

static TRANSPORT: AtomicU8 = AtomicU8::new(0);
static PAGE: Page = Page::zero();

/// The transport in use.
#[must_use]
pub fn transport() -> Transport {
    match TRANSPORT.load(Ordering::Relaxed) {
        1 => Transport::Vmcall,
        2 => Transport::Vmmcall,
        3 => Transport::Page,
        _ => Transport::None,
    }
}

/// The instruction of this CPU's vendor.
#[must_use]
pub fn instruction() -> Transport {
    let [_, vendor, ..] = cpu::cpuid(0, 0);
    // `Auth`enticAMD and `Hygo`nGenuine.
    if [*b"Auth", *b"Hygo"].contains(&vendor.to_le_bytes()) { Transport::Vmmcall } else { Transport::Vmcall }
}

/// Uses the instruction if XENVER_version answers to it, else the page.
pub(crate) fn init() {
    if xen::base().is_none() {
        return;
    }
    set(instruction());
    if !op_null(Hypercall::XEN_VERSION, XenVer::VERSION.0).is_ok_and(|v| v >> 16 >= 3) {
        use_page();
    }
}

/// From now on calls go this way.
pub fn set(transport: Transport) {
    TRANSPORT.store(transport as u8, Ordering::Relaxed);
}

/// Has the hypervisor write the page, and uses it from now on.
pub fn use_page() -> &'static Page {
    cpu::wrmsr(xen::hypercall_msr(), PAGE.addr());
    set(Transport::Page);
    &PAGE
}

/// Any call, with the register as it comes back. Addresses among `args` must be of memory that may hold any bytes.
#[must_use]
pub fn raw(nr: Hypercall, args: [u64; 6]) -> i64 {
    match transport() {
        Transport::None => Errno::ENOSYS.to_ret(),
        Transport::Vmcall => cpu::vmcall(false, nr.0, args).cast_signed(),
        Transport::Vmmcall => cpu::vmcall(true, nr.0, args).cast_signed(),
        Transport::Page => cpu::call_stub(PAGE.addr() + nr.0 * STUB_SIZE as u64, args).cast_signed(),
    }
}

/// `raw` with up to six arguments, its error apart.
///
/// # Errors
/// What the hypervisor answers.
pub fn call(nr: Hypercall, args: &[u64]) -> Result<i64, Errno> {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(args) {
        *to = *from;
    }
    Errno::from_ret(raw(nr, all))
}

/// A call of the usual form: a command and the address of its struct.
///
/// # Errors
/// What the hypervisor answers.
pub fn op<T: FromBytes + IntoBytes>(nr: Hypercall, cmd: u32, arg: &mut T) -> Result<i64, Errno> {
    call(nr, &[cmd.into(), address(arg)])
}

/// The same without a struct.
///
/// # Errors
/// What the hypervisor answers.
pub fn op_null(nr: Hypercall, cmd: u32) -> Result<i64, Errno> {
    call(nr, &[cmd.into(), 0])
}

/// `HYPERVISOR_grant_table_op` on one struct.
///
/// # Errors
/// What the hypervisor answers.
pub fn grant_table_op<T: FromBytes + IntoBytes>(cmd: u32, arg: &mut T) -> Result<i64, Errno> {
    call(Hypercall::GRANT_TABLE_OP, &[cmd.into(), address(arg), 1])
}

/// `HYPERVISOR_vcpu_op` with a struct.
///
/// # Errors
/// What the hypervisor answers.
pub fn vcpu_op<T: FromBytes + IntoBytes>(cmd: u32, vcpu: u32, arg: &mut T) -> Result<i64, Errno> {
    call(Hypercall::VCPU_OP, &[cmd.into(), vcpu.into(), address(arg)])
}

/// The address of a struct the hypervisor reads and writes.
#[must_use]
pub fn address<T: FromBytes + IntoBytes>(arg: &mut T) -> u64 {
    core::ptr::from_mut(arg).expose_provenance() as u64
}

/// `HVMOP_get_param` of this domain.
///
/// # Errors
/// What the hypervisor answers.
pub fn hvm_get_param(index: HvmParam) -> Result<u64, Errno> {
    let mut arg = XenHvmParam { domid: Domid::SELF, pad: 0, index, value: 0 };
    op(Hypercall::HVM_OP, HvmOp::GET_PARAM.0, &mut arg)?;
    Ok(arg.value)
}

/// `HVMOP_set_param` of this domain.
///
/// # Errors
/// What the hypervisor answers.
pub fn hvm_set_param(index: HvmParam, value: u64) -> Result<(), Errno> {
    let mut arg = XenHvmParam { domid: Domid::SELF, pad: 0, index, value };
    op(Hypercall::HVM_OP, HvmOp::SET_PARAM.0, &mut arg).map(drop)
}

/// `CONSOLEIO_write`.
///
/// # Errors
/// What the hypervisor answers.
pub fn console_write(bytes: &[u8]) -> Result<(), Errno> {
    let addr = bytes.as_ptr().expose_provenance() as u64;
    call(Hypercall::CONSOLE_IO, &[ConsoleIo::WRITE.0.into(), bytes.len() as u64, addr]).map(drop)
}
