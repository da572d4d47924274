//! The 2-level ABI: one pending and one mask bit per port in shared_info, a selector of words and a flag in vcpu_info.
//!
//! Order of a delivery, as `public/event_channel.h` and `public/xen.h` tell it: pending bit; if that was clear and the
//! port is not masked, selector bit; if that was clear, `evtchn_upcall_pending`; if that was clear, interrupt.
//! The guest clears in the opposite order, so that no event falls between.

use xen_abi::Width;
use xen_abi::event_channel::nr_channels_2l;
use xen_abi::shared_info::VCPU_UPCALL_PENDING;

use crate::effect::Port;
use crate::evtchn::abi::{Place, PortOps, Raised};
use crate::mem::{Fault, Gpa, GuestMem};

/// The ABI; all its state is the guest's.
#[derive(Debug)]
pub(crate) struct TwoLevel;

/// One bit of a guest word.
#[derive(Clone, Copy)]
struct Bit {
    word: Gpa,
    bit: u32,
    width: Width,
}

impl Bit {
    /// Bit number `index` of the words from `base` on.
    fn of(base: Gpa, index: u32, width: Width) -> Bit {
        let bits = width.bits();
        Bit { word: base.offset(u64::from(index / bits * (bits / 8))), bit: index % bits, width }
    }

    fn set(self, mem: &dyn GuestMem) -> Result<bool, Fault> {
        let old = match self.width {
            Width::W64 => mem.fetch_or_u64(self.word, 1 << self.bit)?,
            Width::W32 => mem.fetch_or_u32(self.word, 1 << self.bit)?.into(),
        };
        Ok(old >> self.bit & 1 != 0)
    }

    fn clear(self, mem: &dyn GuestMem) -> Result<bool, Fault> {
        let old = match self.width {
            Width::W64 => mem.fetch_and_u64(self.word, !(1 << self.bit))?,
            Width::W32 => mem.fetch_and_u32(self.word, !(1 << self.bit))?.into(),
        };
        Ok(old >> self.bit & 1 != 0)
    }

    fn test(self, mem: &dyn GuestMem) -> Result<bool, Fault> {
        let value = match self.width {
            Width::W64 => mem.load_u64(self.word)?,
            Width::W32 => mem.load_u32(self.word)?.into(),
        };
        Ok(value >> self.bit & 1 != 0)
    }
}

/// The bit of `port` in the bitmap at `offset` of shared_info; a fault for ports beyond the bitmap.
fn bit(at: &Place, offset: usize, port: Port) -> Result<Bit, Fault> {
    let width = at.layout.width;
    if port >= nr_channels_2l(width) {
        return Err(Fault);
    }
    Ok(Bit::of(at.shared_info.offset(offset as u64), port, width))
}

fn pending(at: &Place, port: Port) -> Result<Bit, Fault> {
    bit(at, at.layout.pending, port)
}

fn mask(at: &Place, port: Port) -> Result<Bit, Fault> {
    bit(at, at.layout.mask, port)
}

/// The selector bit for the word that holds `port`.
fn selector(at: &Place, info: Gpa, port: Port) -> Bit {
    let width = at.layout.width;
    Bit::of(info.offset(at.layout.vcpu_pending_sel as u64), port / width.bits(), width)
}

impl PortOps for TwoLevel {
    fn name(&self) -> &'static str {
        "2-level"
    }

    fn max_ports(&self, width: Width) -> u32 {
        nr_channels_2l(width)
    }

    fn offloadable(&self) -> bool {
        true
    }

    fn set_pending(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<Raised, Fault> {
        if pending(at, port)?.set(mem)? || mask(at, port)?.test(mem)? {
            return Ok(Raised::Quiet);
        }
        let Some(info) = at.vcpu_info else { return Ok(Raised::Quiet) };
        if selector(at, info, port).set(mem)? {
            return Ok(Raised::Quiet);
        }
        match mem.fetch_or_u8(info.offset(VCPU_UPCALL_PENDING as u64), 1)? {
            0 => Ok(Raised::Upcall),
            _ => Ok(Raised::Quiet),
        }
    }

    fn clear_pending(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<bool, Fault> {
        pending(at, port)?.clear(mem)
    }

    fn unmask(&mut self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<bool, Fault> {
        Ok(mask(at, port)?.clear(mem)? && pending(at, port)?.clear(mem)?)
    }

    fn is_pending(&self, mem: &dyn GuestMem, at: &Place, port: Port) -> Result<bool, Fault> {
        pending(at, port)?.test(mem)
    }
}
