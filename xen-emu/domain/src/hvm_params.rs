//! HVM params and who may read and write them (`public/hvm/params.h`; rights as Xen's `hvm_allow_get_param` and
//! `hvm_allow_set_param` give them to the guest itself).

use std::fmt::Write as _;

use xen_abi::errno::Errno;
use xen_abi::hvm::params::HvmParam;

const NR: usize = HvmParam::NR as usize;

/// What the guest may do with a param.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// Read and write.
    Rw,
    /// Read; writing is -EPERM.
    Ro,
    /// The toolstack's: -EPERM.
    Denied,
}

/// Rights by index; what is not listed is the toolstack's.
const RIGHTS: &[(HvmParam, Rights)] = &[
    (HvmParam::CALLBACK_IRQ, Rights::Rw),
    (HvmParam::STORE_PFN, Rights::Ro),
    (HvmParam::STORE_EVTCHN, Rights::Rw),
    (HvmParam::CONSOLE_PFN, Rights::Ro),
    (HvmParam::CONSOLE_EVTCHN, Rights::Rw),
    (HvmParam::VM86_TSS, Rights::Rw),
    (HvmParam::VM86_TSS_SIZED, Rights::Rw),
    (HvmParam::ACPI_IOPORTS_LOCATION, Rights::Rw),
    (HvmParam::VM_GENERATION_ID_ADDR, Rights::Rw),
    (HvmParam::ALTP2M, Rights::Ro),
    (HvmParam::X87_FIP_WIDTH, Rights::Rw),
];

/// The values. Unset ones are 0.
#[derive(Debug)]
pub(crate) struct HvmParams {
    values: [u64; NR],
}

impl HvmParams {
    pub(crate) fn new() -> HvmParams {
        HvmParams { values: [0; NR] }
    }

    /// HVMOP_get_param by the guest.
    pub(crate) fn guest_get(&self, index: HvmParam) -> Result<u64, Errno> {
        match rights(index)? {
            Rights::Rw | Rights::Ro => Ok(self.get(index)),
            Rights::Denied => Err(Errno::EPERM),
        }
    }

    /// Whether HVMOP_set_param by the guest may write the value.
    pub(crate) fn check_guest_set(index: HvmParam, value: u64) -> Result<(), Errno> {
        match rights(index)? {
            Rights::Rw => check_value(index, value),
            Rights::Ro | Rights::Denied => Err(Errno::EPERM),
        }
    }

    /// The value, whoever asks.
    pub(crate) fn get(&self, index: HvmParam) -> u64 {
        self.values.get(index.0 as usize).copied().unwrap_or(0)
    }

    /// Writes the value, whoever wants to.
    pub(crate) fn set(&mut self, index: HvmParam, value: u64) {
        if let Some(slot) = self.values.get_mut(index.0 as usize) {
            *slot = value;
        }
    }

    pub(crate) fn describe(&self, out: &mut String) {
        for (index, value) in (0..).zip(self.values).filter(|(_, value): &(u32, u64)| *value != 0) {
            let _ = writeln!(out, "{} = {value:#x}", HvmParam(index));
        }
    }
}

fn rights(index: HvmParam) -> Result<Rights, Errno> {
    if index.0 >= HvmParam::NR || HvmParam::DEPRECATED.contains(&index.0) {
        return Err(Errno::EINVAL);
    }
    Ok(RIGHTS.iter().find(|(of, _)| *of == index).map_or(Rights::Denied, |(_, rights)| *rights))
}

/// Values that Xen refuses with -EINVAL.
fn check_value(index: HvmParam, value: u64) -> Result<(), Errno> {
    let good = match index {
        HvmParam::ACPI_IOPORTS_LOCATION => value <= 1,
        HvmParam::X87_FIP_WIDTH => matches!(value, 0 | 4 | 8),
        _ => true,
    };
    if good { Ok(()) } else { Err(Errno::EINVAL) }
}
