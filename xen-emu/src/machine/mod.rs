//! The few emulated devices of a PVH domain: an ACPI power block, an IOAPIC for its interrupt, a handful of ports.
//!
//! Sans-IO: exits come in as values, what has to happen outside goes out as [`Action`]s. With `acpi = 0` there is no
//! device at all, as for Xen's own PVH guests, only the ports that Xen answers too.

pub mod acpi_pm;
pub mod ioapic;
pub mod pio;

use acpi_pm::AcpiPm;
use ioapic::IoApic;
use std::collections::BTreeMap;
use std::fmt::Write;

pub use ioapic::PINS as IOAPIC_PINS;

/// Distinct unknown ports or pages that are counted one by one; what a guest does beyond is not kept.
const UNKNOWN_MAX: usize = 256;

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Deliver an interrupt message (KVM_SIGNAL_MSI).
    Msi {
        /// Address bits of the message.
        address: u64,
        /// Data bits of the message.
        data: u32,
    },
    /// The message of an IOAPIC pin changed. KVM needs it in its GSI table: only of messages it knows to be
    /// level-triggered does it report the end ([`Machine::eoi`]). Comes before the first [`Action::Msi`] of its kind.
    Route {
        /// Pin, which is KVM's GSI too.
        pin: u32,
        /// Address and data; none where the pin is not in use or edge-triggered.
        msi: Option<(u64, u32)>,
    },
    /// The guest has powered itself off (S5).
    PowerOff,
    /// The guest wants a reset.
    Reset,
    /// The guest wrote to the debug port.
    Debug(Vec<u8>),
}

/// What a guest with `acpi = 1` has beyond Xen's PVH.
#[derive(Debug, Default)]
struct Power {
    pm: AcpiPm,
    ioapic: IoApic,
}

impl Power {
    /// Let the SCI follow the status and enable bits.
    fn update_sci(&mut self, out: &mut Vec<Action>) {
        self.ioapic.set_line(ioapic::SCI, self.pm.sci(), out);
    }
}

/// The devices of one domain.
#[derive(Debug)]
pub struct Machine {
    power: Option<Power>,
    /// Accesses to ports that do not exist, by port; the first [`UNKNOWN_MAX`] of them.
    unknown_ports: BTreeMap<u16, u64>,
    /// Accesses to addresses where nothing is, by page; the first [`UNKNOWN_MAX`] of them.
    unknown_addresses: BTreeMap<u64, u64>,
}

impl Machine {
    /// A machine as after power-on; `acpi` as in the configuration.
    pub fn new(acpi: bool) -> Machine {
        Machine {
            power: acpi.then(Power::default),
            unknown_ports: BTreeMap::new(),
            unknown_addresses: BTreeMap::new(),
        }
    }

    /// One port read of 1, 2 or 4 bytes. `now_ns`: any monotonic clock, always the same.
    pub fn pio_read(&mut self, port: u16, data: &mut [u8], now_ns: u64) {
        match &self.power {
            Some(power) if acpi_pm::owns(port) => power.pm.read(port, data, now_ns),
            _ => {
                if !pio::read(port, data) {
                    count(&mut self.unknown_ports, port);
                }
            }
        }
    }

    /// One port write of 1, 2 or 4 bytes (more to the debug port are fine).
    pub fn pio_write(&mut self, port: u16, data: &[u8], out: &mut Vec<Action>) {
        match &mut self.power {
            Some(power) if acpi_pm::owns(port) => {
                if power.pm.write(port, data) == acpi_pm::Wrote::SoftOff {
                    out.push(Action::PowerOff);
                }
                power.update_sci(out);
            }
            _ => match pio::write(port, data) {
                pio::Wrote::Nothing => {}
                pio::Wrote::Unknown => count(&mut self.unknown_ports, port),
                pio::Wrote::Act(action) => out.push(action),
            },
        }
    }

    /// One memory read outside RAM; all ones where nothing is.
    pub fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        match (&self.power, ioapic::offset(address)) {
            (Some(power), Some(offset)) => power.ioapic.read(offset, data),
            _ => {
                data.fill(0xff);
                count(&mut self.unknown_addresses, address & !0xfff);
            }
        }
    }

    /// One memory write outside RAM.
    pub fn mmio_write(&mut self, address: u64, data: &[u8], out: &mut Vec<Action>) {
        match (&mut self.power, ioapic::offset(address)) {
            (Some(power), Some(offset)) => power.ioapic.write(offset, data, out),
            _ => count(&mut self.unknown_addresses, address & !0xfff),
        }
    }

    /// A local APIC has ended a level-triggered interrupt (KVM_EXIT_IOAPIC_EOI).
    pub fn eoi(&mut self, vector: u8, out: &mut Vec<Action>) {
        if let Some(power) = &mut self.power {
            power.ioapic.eoi(vector, out);
        }
    }

    /// Press the power button.
    ///
    /// # Errors
    /// Why the guest would not hear it, in one line; then nothing has been pressed.
    pub fn press_power_button(&mut self, out: &mut Vec<Action>) -> Result<(), String> {
        let power = self.power.as_mut().ok_or("it has no power button (acpi = 0)")?;
        power.pm.deaf()?;
        if !power.ioapic.listens(ioapic::SCI) {
            return Err("its kernel has not enabled the ACPI interrupt (GSI 9)".to_owned());
        }
        power.pm.press();
        power.update_sci(out);
        Ok(())
    }

    /// The state as a text tree.
    pub fn describe(&self) -> String {
        let mut text = String::from("machine\n");
        match &self.power {
            Some(power) => text.extend([power.pm.describe(), power.ioapic.describe()]),
            None => text.push_str("  no power block, no ioapic (acpi = 0)\n"),
        }
        for (port, n) in &self.unknown_ports {
            let _ = writeln!(text, "  unknown port {port:#06x}: {n}");
        }
        for (page, n) in &self.unknown_addresses {
            let _ = writeln!(text, "  unknown page {page:#x}: {n}");
        }
        text
    }
}

fn count<K: Ord>(counters: &mut BTreeMap<K, u64>, key: K) {
    if counters.len() < UNKNOWN_MAX || counters.contains_key(&key) {
        *counters.entry(key).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCI: Action = Action::Msi { address: 0xfee0_2000, data: 0xc030 };
    const ROUTE: Action = Action::Route { pin: ioapic::SCI, msi: Some((0xfee0_2000, 0xc030)) };

    fn write(machine: &mut Machine, port: u16, data: &[u8]) -> Vec<Action> {
        let mut out = vec![];
        machine.pio_write(port, data, &mut out);
        out
    }

    fn read16(machine: &mut Machine, port: u16) -> u16 {
        let mut data = [0; 2];
        machine.pio_read(port, &mut data, 0);
        u16::from_le_bytes(data)
    }

    fn ioapic_write(machine: &mut Machine, register: u32, value: u32) -> Vec<Action> {
        let mut out = vec![];
        machine.mmio_write(0xfec0_0000, &register.to_le_bytes(), &mut out);
        machine.mmio_write(0xfec0_0010, &value.to_le_bytes(), &mut out);
        out
    }

    /// What a kernel does with the button, from boot to soft off.
    #[test]
    fn button_from_press_to_power_off() {
        let mut machine = Machine::new(true);
        let press = |machine: &mut Machine| {
            let mut out = vec![];
            machine.press_power_button(&mut out).map(|()| out)
        };
        assert_eq!(press(&mut machine).unwrap_err(), "its kernel has not switched ACPI on");
        write(&mut machine, 0xb2, &[0xa0]);
        assert_eq!(read16(&mut machine, 0xb004), 1, "SCI_EN");
        assert_eq!(press(&mut machine).unwrap_err(), "its kernel has no driver on the power button");
        write(&mut machine, 0xb002, &0xffffu16.to_le_bytes());
        assert_eq!(read16(&mut machine, 0xb002), 0x120, "PWRBTN and GBL only");
        assert_eq!(press(&mut machine).unwrap_err(), "its kernel has not enabled the ACPI interrupt (GSI 9)");
        // Level, active low, vector 0x30, physical destination 2.
        assert_eq!(ioapic_write(&mut machine, 0x11, 2 << 24), []);
        assert_eq!(ioapic_write(&mut machine, 0x10, 0xa030), [ROUTE]);

        assert_eq!(press(&mut machine).unwrap(), [SCI]);
        assert_eq!(read16(&mut machine, 0xb000), 0x100);
        assert_eq!(press(&mut machine).unwrap(), [], "in service still");
        let mut out = vec![];
        machine.eoi(0x30, &mut out);
        assert_eq!(out, [SCI], "not served: again");
        assert_eq!(write(&mut machine, 0xb000, &0x100u16.to_le_bytes()), []);
        assert_eq!(read16(&mut machine, 0xb000), 0);
        out.clear();
        machine.eoi(0x30, &mut out);
        assert_eq!(out, []);
        assert_eq!(press(&mut machine).unwrap(), [SCI], "and once more");

        assert_eq!(write(&mut machine, 0xb004, &0x1400u16.to_le_bytes()), []);
        assert_eq!(read16(&mut machine, 0xb004), 0x1401, "SCI_EN stays");
        assert_eq!(write(&mut machine, 0xb004, &0x3401u16.to_le_bytes()), [Action::PowerOff]);
        write(&mut machine, 0xb2, &[0xa1]);
        assert_eq!(read16(&mut machine, 0xb004) & 1, 0);
    }

    #[test]
    fn without_acpi_there_is_nothing_there() {
        let mut machine = Machine::new(false);
        let said = machine.press_power_button(&mut vec![]).unwrap_err();
        assert_eq!(said, "it has no power button (acpi = 0)");
        assert_eq!(read16(&mut machine, 0xb004), 0xffff);
        assert_eq!(write(&mut machine, 0xb004, &0x3401u16.to_le_bytes()), []);
        assert_eq!(ioapic_write(&mut machine, 0x10, 0x30), []);
        let mut word = [0; 4];
        machine.mmio_read(0xfec0_0010, &mut word);
        assert_eq!(word, [0xff; 4]);
        assert_eq!(machine.unknown_ports, BTreeMap::from([(0xb004, 2)]));
        assert_eq!(machine.unknown_addresses, BTreeMap::from([(0xfec0_0000, 3)]));
    }

    #[test]
    fn unknown_ports_are_counted_within_bounds() {
        let mut machine = Machine::new(true);
        for port in (0x1000..0x3000).chain([0x1000]) {
            assert_eq!(read16(&mut machine, port), 0xffff);
        }
        assert_eq!(machine.unknown_ports.len(), UNKNOWN_MAX);
        assert_eq!(machine.unknown_ports[&0x1000], 2);
        assert!(machine.describe().contains("unknown port 0x1000: 2\n"), "{}", machine.describe());
    }

    proptest! {
        /// Whatever a guest writes where: no panic, messages only with a deliverable vector, and every message of a
        /// level-triggered pin has been routed before.
        #[test]
        fn any_accesses(
            steps in prop::collection::vec((0u8..6, 0u16..0x40, any::<u32>(), 1usize..5), 1..200),
        ) {
            let mut machine = Machine::new(true);
            let mut routes = BTreeMap::new();
            for (what, at, value, size) in steps {
                let (mut out, data) = (vec![], value.to_le_bytes());
                match what {
                    0 => machine.pio_write(0xaff8 + at, &data[..size], &mut out),
                    1 => machine.pio_write(0xb2, &[0xa0 + data[0] % 2], &mut out),
                    2 => machine.pio_read(0xaff8 + at, &mut [0; 4][..size], u64::from(value) << 20),
                    3 => out = ioapic_write(&mut machine, u32::from(at), value & 0x0001_a0ff),
                    4 => machine.eoi(data[0], &mut out),
                    _ => { let _ = machine.press_power_button(&mut out); }
                }
                for action in out {
                    match action {
                        Action::Route { pin, msi } => {
                            prop_assert!(pin < IOAPIC_PINS);
                            routes.insert(pin, msi);
                        }
                        Action::Msi { address, data } => {
                            prop_assert!(data & 0xff >= 0x10);
                            let level = data & 0x8000 != 0;
                            prop_assert!(!level || routes.values().any(|r| *r == Some((address, data))));
                        }
                        Action::PowerOff => prop_assert_eq!(what, 0),
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
            }
        }
    }
}
