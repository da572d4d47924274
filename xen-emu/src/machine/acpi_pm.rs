//! The ACPI power block: PM1a status, enable and control, the PM timer, and the port that switches ACPI on and off.
//! Addresses as in Xen's `public/hvm/ioreq.h` (version 1); registers by the ACPI specification, 4.8.3.

use std::fmt::Write;

/// PM1a status (16 bits, written 1s clear) and, behind it, enable (16 bits).
pub const PM1A_EVT_BLK: u16 = 0xb000;
/// PM1a control, 16 bits.
pub const PM1A_CNT_BLK: u16 = 0xb004;
/// The timer: 32 bits of 3.579545 MHz.
pub const PM_TMR_BLK: u16 = 0xb008;
/// Takes [`ACPI_ENABLE`] and [`ACPI_DISABLE`].
pub const SMI_CMD: u16 = 0xb2;
/// Written to [`SMI_CMD`]: the guest's system takes over.
pub const ACPI_ENABLE: u8 = 0xa0;
/// Written to [`SMI_CMD`]: it gives back.
pub const ACPI_DISABLE: u8 = 0xa1;
/// Interrupt of the block.
pub const SCI_GSI: u16 = 9;
/// Sleep type of soft off, named by `\_S5`.
pub const SLP_TYP_S5: u8 = 5;

const BLOCK_END: u16 = PM_TMR_BLK + 4;
const TIMER_HZ: u128 = 3_579_545;

const GBL: u16 = 1 << 5;
const PWRBTN: u16 = 1 << 8;
/// The enable bits there is something behind.
const ENABLES: u16 = GBL | PWRBTN;
const SCI_EN: u16 = 1;
const SLP_EN: u16 = 1 << 13;
const SLP_TYP_SHIFT: u16 = 10;
/// Control bits that are kept: bus master reload and the sleep type. SLP_EN and GBL_RLS read 0, and SCI_EN is
/// changed by [`SMI_CMD`] alone.
const CONTROLS: u16 = 1 << 1 | 7 << SLP_TYP_SHIFT;

/// Whether a port belongs to the block.
pub const fn owns(port: u16) -> bool {
    port == SMI_CMD || (port >= PM1A_EVT_BLK && port < BLOCK_END)
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// A register.
    Register,
    /// The guest goes to S5.
    SoftOff,
}

/// The registers.
#[derive(Clone, Debug, Default)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
}

impl AcpiPm {
    /// Read from a port of the block, any width, any alignment; all ones behind its end.
    pub fn read(&self, port: u16, data: &mut [u8], now_ns: u64) {
        let ticks = u128::from(now_ns) * TIMER_HZ / 1_000_000_000;
        let [t0, t1, t2, t3, ..] = ticks.to_le_bytes();
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = self.control.to_le_bytes();
        let block = [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, t3];
        // SMI_CMD is write-only.
        let at = usize::from(port.wrapping_sub(PM1A_EVT_BLK));
        let bytes = block.get(at..).unwrap_or_default().iter().chain(std::iter::repeat(&0xff));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Write to a port of the block, any width, any alignment.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Wrote {
        if port == SMI_CMD {
            match data {
                [ACPI_ENABLE, ..] => self.control |= SCI_EN,
                [ACPI_DISABLE, ..] => self.control &= !SCI_EN,
                _ => {}
            }
            return Wrote::Register;
        }
        let mut wrote = Wrote::Register;
        for (port, byte) in (port..BLOCK_END).zip(data) {
            if self.write_byte(port - PM1A_EVT_BLK, *byte) == Wrote::SoftOff {
                wrote = Wrote::SoftOff;
            }
        }
        wrote
    }

    fn write_byte(&mut self, at: u16, byte: u8) -> Wrote {
        let shift = 8 * (at & 1);
        let (bits, mask) = (u16::from(byte) << shift, 0xff << shift);
        match at & !1 {
            0 => self.status &= !bits,
            2 => self.enable = self.enable & !mask | bits & ENABLES,
            4 => {
                self.control = self.control & (!mask | SCI_EN) | bits & CONTROLS;
                let sleep_type = self.control >> SLP_TYP_SHIFT & 7;
                if bits & SLP_EN != 0 && sleep_type == u16::from(SLP_TYP_S5) {
                    return Wrote::SoftOff;
                }
            }
            // The timer and what lies before it are read-only.
            _ => {}
        }
        Wrote::Register
    }

    /// Whether the SCI is asserted.
    pub fn sci(&self) -> bool {
        self.control & SCI_EN != 0 && self.status & self.enable & ENABLES != 0
    }

    /// Why the guest would not hear the power button.
    ///
    /// # Errors
    /// One line.
    pub fn deaf(&self) -> Result<(), &'static str> {
        if self.control & SCI_EN == 0 {
            Err("its kernel has not switched ACPI on")
        } else if self.enable & PWRBTN == 0 {
            Err("its kernel has no driver on the power button")
        } else {
            Ok(())
        }
    }

    /// Press the power button.
    pub fn press(&mut self) {
        self.status |= PWRBTN;
    }

    /// The state as lines of a text tree.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let AcpiPm { status, enable, control } = self;
        let _ = writeln!(text, "  acpi_pm status={status:#06x} enable={enable:#06x} control={control:#06x}");
        let _ = writeln!(text, "    power button: {}", self.deaf().map_or_else(|why| why, |()| "enabled"));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (writes, then status, enable, control, soft off)
    type Case = (&'static [(u16, &'static [u8])], [u16; 3], bool);

    #[test]
    fn register_table() {
        let cases: &[Case] = &[
            (&[], [0x100, 0, 0], false),
            (&[(0xb000, &[0, 1])], [0, 0, 0], false),
            (&[(0xb001, &[1])], [0, 0, 0], false),
            (&[(0xb000, &[0xff, 0xfe])], [0x100, 0, 0], false),
            // Status cleared and enable set by one 32-bit write.
            (&[(0xb000, &[0, 1, 0xff, 0xff])], [0, 0x120, 0], false),
            (&[(0xb002, &[0x20, 1]), (0xb003, &[0])], [0x100, 0x20, 0], false),
            (&[(0xb2, &[0xa0]), (0xb004, &[0, 0])], [0x100, 0, 1], false),
            (&[(0xb2, &[0xa0]), (0xb2, &[0x42]), (0xb2, &[0xa1])], [0x100, 0, 0], false),
            // SCI_EN cannot be set, GBL_RLS and SLP_EN do not stick.
            (&[(0xb004, &[0xff, 0xeb])], [0x100, 0, 0x802], false),
            // Sleep types other than 5 are none.
            (&[(0xb004, &[1, 0x20])], [0x100, 0, 0], false),
            (&[(0xb004, &[1, 0x34])], [0x100, 0, 0x1400], true),
            (&[(0xb004, &[0, 0x14]), (0xb005, &[0x34])], [0x100, 0, 0x1400], true),
            (&[(0xb008, &[1, 2, 3, 4]), (0xb00b, &[1, 2, 3, 4])], [0x100, 0, 0], false),
        ];
        for (writes, registers, soft_off) in cases {
            let mut pm = AcpiPm::default();
            pm.press();
            let wrote = writes.iter().map(|(port, data)| pm.write(*port, data)).last();
            assert_eq!([pm.status, pm.enable, pm.control], *registers, "{writes:x?}");
            assert_eq!(wrote == Some(Wrote::SoftOff), *soft_off, "{writes:x?}");
        }
    }

    #[test]
    fn timer_runs_at_its_frequency_and_wraps() {
        let pm = AcpiPm::default();
        let at = |now_ns: u64| {
            let mut data = [0; 4];
            pm.read(PM_TMR_BLK, &mut data, now_ns);
            u32::from_le_bytes(data)
        };
        assert_eq!((at(0), at(1_000_000_000), at(10_000_000)), (0, 3_579_545, 35_795));
        assert_eq!(at(1_200_000_000_000), u32::try_from(1200 * 3_579_545u64 % (1 << 32)).unwrap());
        let mut across = [0; 4];
        pm.read(0xb00a, &mut across, u64::MAX);
        assert_eq!(across[2..], [0xff, 0xff], "nothing behind the block");
        pm.read(SMI_CMD, &mut across, 0);
        assert_eq!(across, [0xff; 4]);
    }

    #[test]
    fn sci_needs_all_three() {
        for bits in 0..8u16 {
            let pm = AcpiPm {
                status: if bits & 1 != 0 { PWRBTN } else { GBL },
                enable: if bits & 2 != 0 { PWRBTN } else { 0 },
                control: if bits & 4 != 0 { SCI_EN } else { 0 },
            };
            assert_eq!(pm.sci(), bits == 7);
        }
    }
}
