//! An IOAPIC of one pin, the SCI's, that speaks in messages: each interrupt leaves as an MSI to a local APIC. Intel 82093AA, with the
//! EOI register of version 0x20.
//!
//! Lines are told as asserted or not; which electrical level that is (a redirection entry's polarity) is the wiring's
//! affair and kept only for the guest to read back.

use super::Action;
use std::fmt::Write;

/// Pins, and redirection entries. A kernel reads and masks every pin it sees, eight exits each, and there is nothing to connect
/// but the SCI.
pub const PINS: u32 = 1;
/// The pin of the SCI; in the MADT the first pin's GSI is the SCI's.
pub const SCI: u32 = 0;
/// Where its page is.
pub const ADDRESS: u64 = 0xfec0_0000;
/// The same for the MADT.
pub const ADDRESS_32: u32 = 0xfec0_0000;

const VERSION: u32 = 0x20 | (PINS - 1) << 16;
const REGISTER_SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;
const ENTRIES_FROM: u8 = 0x10;

const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
/// Reserved bits read 0; 49-55 carry destination bits 8-14, as for Xen's and KVM's extended destination ids.
const WRITABLE: u64 = 0xfffe_0000_0001_ffff & !READ_ONLY;
/// The first vector a local APIC takes.
const VECTOR_MIN: u64 = 0x10;

/// The offset of an address in the IOAPIC's page.
pub const fn offset(address: u64) -> Option<u64> {
    if address & !0xfff == ADDRESS { Some(address & 0xfff) } else { None }
}

/// A redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    fn masked(self) -> bool {
        self.0 & MASKED != 0
    }

    fn delivery_mode(self) -> u64 {
        self.0 >> 8 & 7
    }

    /// Level-triggered; only fixed and lowest-priority interrupts can be.
    fn level(self) -> bool {
        self.0 & LEVEL != 0 && self.delivery_mode() <= 1
    }

    fn in_service(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    fn vector(self) -> u64 {
        self.0 & 0xff
    }

    /// Not masked, and not with a vector that no local APIC takes.
    fn live(self) -> bool {
        !self.masked() && (self.delivery_mode() > 1 || self.vector() >= VECTOR_MIN)
    }

    /// Address and data of its message.
    fn msi(self) -> (u64, u32) {
        let destination = self.0 >> 56 & 0xff;
        let extended = self.0 >> 49 & 0x7f;
        let logical = self.0 >> 11 & 1;
        let lowest_priority = u64::from(self.delivery_mode() == 1);
        let address = 0xfee0_0000 | destination << 12 | extended << 5 | lowest_priority << 3 | logical << 2;
        let [vector, mode, ..] = self.0.to_le_bytes();
        let trigger = if self.level() { 1 << 15 | 1 << 14 } else { 0 };
        (address, u32::from(vector) | u32::from(mode & 7) << 8 | trigger)
    }
}

/// One pin: its line, its entry, and what KVM was told of it.
#[derive(Clone, Copy, Debug)]
struct Pin {
    asserted: bool,
    entry: Entry,
    routed: Option<(u64, u32)>,
}

/// The chip.
#[derive(Debug)]
pub struct IoApic {
    select: u8,
    id: u32,
    pins: [Pin; PINS as usize],
}

impl Default for IoApic {
    /// As after power-on: everything masked; the id as the MADT says.
    fn default() -> Self {
        let pin = Pin { asserted: false, entry: Entry(MASKED), routed: None };
        IoApic { select: 0, id: 1 << 24, pins: [pin; PINS as usize] }
    }
}

impl IoApic {
    /// Read at an offset of its page. Registers are 32 bits wide; wider reads are zero-extended.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            REGISTER_SELECT => u32::from(self.select),
            WINDOW => self.register(),
            _ => u32::MAX,
        };
        let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    /// Write at an offset of its page.
    pub fn write(&mut self, offset: u64, data: &[u8], out: &mut Vec<Action>) {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        match offset {
            REGISTER_SELECT => [self.select, ..] = bytes,
            WINDOW => self.set_register(u32::from_le_bytes(bytes), out),
            EOI => self.eoi(bytes[0], out),
            _ => {}
        }
    }

    /// The selected entry's index, and whether its high half is meant.
    fn selected(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(ENTRIES_FROM)?;
        Some((usize::from(index / 2), index % 2 == 1))
    }

    fn register(&self) -> u32 {
        match self.select {
            0 | 2 => self.id,
            1 => VERSION,
            _ => match self.selected().and_then(|(index, high)| Some((self.pins.get(index)?, high))) {
                Some((pin, high)) => half(pin.entry.0, high),
                None => u32::MAX,
            },
        }
    }

    fn set_register(&mut self, value: u32, out: &mut Vec<Action>) {
        if self.select == 0 {
            self.id = value & 0x0f00_0000;
        }
        let Some((index, high)) = self.selected() else { return };
        let (Some(pin), Ok(number)) = (self.pins.get_mut(index), u32::try_from(index)) else { return };
        let old = pin.entry.0;
        let new = if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        pin.entry = Entry(new & WRITABLE | old & READ_ONLY);
        if !pin.entry.level() {
            pin.entry.0 &= !REMOTE_IRR;
        }
        pin.route(number, out);
        if pin.entry.level() {
            pin.deliver_level(out);
        }
    }

    /// Assert or release a line.
    pub fn set_line(&mut self, pin: u32, asserted: bool, out: &mut Vec<Action>) {
        let Some(pin) = usize::try_from(pin).ok().and_then(|index| self.pins.get_mut(index)) else { return };
        let rising = asserted && !pin.asserted;
        pin.asserted = asserted;
        if pin.entry.level() {
            pin.deliver_level(out);
        } else if rising && pin.entry.live() {
            // An edge that comes while the pin is masked is lost, as on the chip.
            let (address, data) = pin.entry.msi();
            out.push(Action::Msi { address, data });
        }
    }

    /// The end of a level-triggered interrupt: a line that is asserted still interrupts again.
    pub fn eoi(&mut self, vector: u8, out: &mut Vec<Action>) {
        for pin in &mut self.pins {
            if pin.entry.level() && pin.entry.in_service() && pin.entry.vector() == u64::from(vector) {
                pin.entry.0 &= !REMOTE_IRR;
                pin.deliver_level(out);
            }
        }
    }

    /// Whether an interrupt on this pin would reach a CPU.
    pub fn listens(&self, pin: u32) -> bool {
        usize::try_from(pin).ok().and_then(|index| self.pins.get(index)).is_some_and(|pin| pin.entry.live())
    }

    /// The state as lines of a text tree; pins that were never set up are left out.
    pub fn describe(&self) -> String {
        let mut text = format!("  ioapic id={} pins={PINS}\n", self.id >> 24);
        for (index, pin) in self.pins.iter().enumerate().filter(|(_, pin)| pin.entry != Entry(MASKED)) {
            let flag = |set, name| if set { name } else { "" };
            let _ = writeln!(
                text,
                "    pin {index}: vector={:#04x} dest={:#x}{}{}{}{}",
                pin.entry.vector(),
                pin.entry.0 >> 56,
                flag(pin.entry.level(), " level"),
                flag(pin.entry.masked(), " masked"),
                flag(pin.asserted, " asserted"),
                flag(pin.entry.in_service(), " in-service"),
            );
        }
        text
    }
}

impl Pin {
    /// Tell the message of a level-triggered entry. One that is masked for a moment, or in service, keeps its route,
    /// so that the end of an interrupt under way is still reported.
    fn route(&mut self, number: u32, out: &mut Vec<Action>) {
        let msi = self.entry.level().then(|| self.entry.msi());
        let wanted = if self.entry.live() { msi } else { None };
        let keep = wanted.is_none() && (self.entry.in_service() || msi == self.routed);
        if !keep && wanted != self.routed {
            self.routed = wanted;
            out.push(Action::Route { pin: number, msi: wanted });
        }
    }

    fn deliver_level(&mut self, out: &mut Vec<Action>) {
        if self.asserted && self.entry.live() && !self.entry.in_service() {
            self.entry.0 |= REMOTE_IRR;
            let (address, data) = self.entry.msi();
            out.push(Action::Msi { address, data });
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the half that is asked for")]
const fn half(entry: u64, high: bool) -> u32 {
    if high { (entry >> 32) as u32 } else { entry as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(chip: &mut IoApic, register: u8, value: u32) -> Vec<Action> {
        let mut out = vec![];
        chip.write(REGISTER_SELECT, &[register], &mut out);
        chip.write(WINDOW, &value.to_le_bytes(), &mut out);
        out
    }

    fn get(chip: &mut IoApic, register: u8) -> u32 {
        chip.write(REGISTER_SELECT, &u32::from(register).to_le_bytes(), &mut vec![]);
        let mut data = [0; 4];
        chip.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn line(chip: &mut IoApic, pin: u32, asserted: bool) -> Vec<Action> {
        let mut out = vec![];
        chip.set_line(pin, asserted, &mut out);
        out
    }

    fn eoi(chip: &mut IoApic, vector: u8) -> Vec<Action> {
        let mut out = vec![];
        chip.eoi(vector, &mut out);
        out
    }

    #[test]
    fn registers() {
        let mut chip = IoApic::default();
        assert_eq!((get(&mut chip, 0), get(&mut chip, 1)), (1 << 24, 0x0000_0020));
        set(&mut chip, 0, 0xffff_ffff);
        assert_eq!((get(&mut chip, 0), get(&mut chip, 2)), (0x0f00_0000, 0x0f00_0000));
        assert_eq!((get(&mut chip, 0x10), get(&mut chip, 0x11)), (0x1_0000, 0), "masked at reset");
        set(&mut chip, 0x10, 0xffff_ffff);
        set(&mut chip, 0x11, 0xffff_ffff);
        assert_eq!((get(&mut chip, 0x10), get(&mut chip, 0x11)), (0x1_afff, 0xfffe_0000));
        assert_eq!((get(&mut chip, 0x12), get(&mut chip, 0xff)), (u32::MAX, u32::MAX));
        set(&mut chip, 0x40, 0);
        let mut wide = [1; 8];
        chip.read(WINDOW, &mut wide);
        assert_eq!(wide, [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn messages() {
        // (high half, low half, message)
        let cases = [
            (0x0200_0000, 0x0031, (0xfee0_2000, 0x0031)),
            (0xff00_0000, 0x0831, (0xfeef_f004, 0x0031)),
            (0x0300_0000, 0x0931, (0xfee0_300c, 0x0131)),
            (0x0102_0000, 0x0031, (0xfee0_1020, 0x0031)),
            (0, 0x0400, (0xfee0_0000, 0x0400)),
            (0, 0xa031, (0xfee0_0000, 0xc031)),
        ];
        for (high, low, (address, data)) in cases {
            let mut chip = IoApic::default();
            set(&mut chip, 0x11, high);
            set(&mut chip, 0x10, low);
            assert_eq!(line(&mut chip, SCI, true), [Action::Msi { address, data }], "{high:#x} {low:#x}");
        }
    }

    #[test]
    fn edge_once_per_rise_and_lost_while_masked() {
        let mut chip = IoApic::default();
        assert_eq!(set(&mut chip, 0x10, 0x31), [], "edges need no route");
        let msi = Action::Msi { address: 0xfee0_0000, data: 0x31 };
        assert_eq!(line(&mut chip, SCI, true), std::slice::from_ref(&msi));
        assert_eq!(line(&mut chip, SCI, true), []);
        assert_eq!(line(&mut chip, SCI, false), []);
        set(&mut chip, 0x10, 0x1_0031);
        assert_eq!(line(&mut chip, SCI, true), []);
        assert_eq!(set(&mut chip, 0x10, 0x31), []);
        line(&mut chip, SCI, false);
        assert_eq!(line(&mut chip, SCI, true), [msi]);
        assert_eq!(line(&mut chip, PINS, true), []);
        set(&mut chip, 0x10, 0x0f);
        line(&mut chip, SCI, false);
        assert_eq!((line(&mut chip, SCI, true), chip.listens(SCI)), (vec![], false), "no such vector");
    }

    #[test]
    fn level_holds_until_eoi_and_comes_again() {
        let mut chip = IoApic::default();
        let route = |msi| Action::Route { pin: SCI, msi };
        let first = (0xfee0_0000, 0xc031);
        let msi = Action::Msi { address: first.0, data: first.1 };
        line(&mut chip, SCI, true);
        assert_eq!(set(&mut chip, 0x10, 0x1_a031), [], "masked: neither route nor interrupt");
        assert_eq!(set(&mut chip, 0x10, 0xa031), [route(Some(first)), msi.clone()]);
        assert_eq!(get(&mut chip, 0x10), 0xe031, "remote IRR");
        assert_eq!(line(&mut chip, SCI, true), []);
        assert_eq!(eoi(&mut chip, 0x32), [], "another vector");
        assert_eq!(eoi(&mut chip, 0x31), std::slice::from_ref(&msi));
        // Masked while in service: the route stays, the end does not interrupt again, the unmasking does.
        assert_eq!(set(&mut chip, 0x10, 0x1_a031), []);
        assert_eq!(eoi(&mut chip, 0x31), []);
        assert_eq!(set(&mut chip, 0x10, 0xa031), [msi]);
        // Moved to another CPU in service: the new route is told, the end of the old vector counts.
        assert_eq!(set(&mut chip, 0x11, 2 << 24), [route(Some((0xfee0_2000, 0xc031)))]);
        line(&mut chip, SCI, false);
        let mut out = vec![];
        chip.write(EOI, &[0x31, 0, 0, 0], &mut out);
        assert_eq!((out, get(&mut chip, 0x10)), (vec![], 0xa031));
        // Torn down: the route goes. Turned to edge: remote IRR goes with it.
        assert_eq!(set(&mut chip, 0x10, 0x1_0000), [route(None)]);
        set(&mut chip, 0x10, 0xa031);
        line(&mut chip, SCI, true);
        assert_eq!(set(&mut chip, 0x10, 0x2031), [route(None)]);
        assert_eq!(get(&mut chip, 0x10), 0x2031);
    }
}
