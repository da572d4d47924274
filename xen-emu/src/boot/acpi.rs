//! The firmware tables of a PVH domain: RSDP, XSDT, FADT (revision 5), FACS, DSDT and MADT, as one image for a region
//! of its own below 4 GiB, where Xen's toolstack puts them too.
//!
//! With `acpi = 0` they say what Xen's say: local APICs and nothing else. Otherwise there are a PM1 block with a power
//! button and `\_S5`, a PM timer and an IOAPIC for the SCI ([`crate::machine`] is the hardware). Either way the FADT
//! declares neither VGA nor CMOS clock, by which a kernel that did not come in through the PVH entry knows it is PVH.

use crate::machine::acpi_pm;
use crate::machine::ioapic;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};
use zerocopy::IntoBytes;

/// Where the tables begin, as with libxl.
pub const BASE: u64 = 0xfc00_0000;
/// They end before this, or there are absurdly many vCPUs.
const LIMIT: u64 = 0xfe00_0000;

const OEM_ID: [u8; 6] = *b"Xen\0\0\0";
const OEM_TABLE_ID: [u8; 8] = *b"HVM\0\0\0\0\0";
const CREATOR_ID: [u8; 4] = *b"HVML";

/// iapc_boot_arch: no VGA, no CMOS clock; the bits for legacy devices and the keyboard controller stay clear.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// Where the local APICs are.
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
/// As with Xen: odd, so that it collides with no local APIC.
const IOAPIC_ID: u8 = 1;

/// The tables of one domain.
#[derive(Clone, Debug)]
pub struct AcpiTables {
    /// Guest-physical address of the image; a page boundary.
    pub base: u64,
    /// Whole pages. The guest writes to them (the FACS holds a lock), so they must be RAM to it.
    pub image: Vec<u8>,
    /// Address of the RSDP, for hvm_start_info.
    pub rsdp: u64,
}

impl AcpiTables {
    /// The RSDP's bytes.
    pub fn rsdp(&self) -> &[u8] {
        let at = usize::try_from(self.rsdp - self.base).unwrap_or(usize::MAX);
        let rest = self.image.get(at..).unwrap_or_default();
        rest.get(..size_of::<Rsdp>()).unwrap_or_default()
    }
}

/// Build the tables: `acpi` as in the configuration, vCPUs from `vcpus_online` up to `max_vcpus` exist but are off.
pub fn build(acpi: bool, vcpus_online: u32, max_vcpus: u32) -> AcpiTables {
    let mut image = Image { base: BASE, bytes: Vec::new() };
    let facs = image.place(FACS::new().as_bytes());
    let dsdt = image.place(dsdt(acpi).as_slice());
    let fadt = image.place(&fadt(acpi, facs, dsdt));
    let madt = image.place(madt(acpi, vcpus_online, max_vcpus).as_slice());
    let mut xsdt = table(*b"XSDT", 1);
    xsdt.append(fadt);
    xsdt.append(madt);
    let xsdt = image.place(xsdt.as_slice());
    let rsdp = image.place(Rsdp::new(OEM_ID, xsdt).as_bytes());
    let mut image = image.bytes;
    image.resize(image.len().next_multiple_of(4096), 0);
    AcpiTables { base: BASE, image, rsdp }
}

/// Tables one after the other.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Append one on a boundary good for all of them; its address comes back.
    fn place(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend(table);
        debug_assert!(self.base + (self.bytes.len() as u64) < LIMIT);
        address
    }
}

/// A table of just its header.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    let mut sdt = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, 0);
    sdt.write_bytes(28, &CREATOR_ID);
    sdt.write_u32(32, 0);
    sdt
}

/// Nothing, or what sleep type powers off.
fn dsdt(acpi: bool) -> Sdt {
    let mut dsdt = table(*b"DSDT", 5);
    if acpi {
        let s5 = acpi_pm::SLP_TYP_S5;
        let package = aml::Package::new(vec![&s5, &s5, &aml::ZERO, &aml::ZERO]);
        let mut bytes = Vec::new();
        aml::Name::new("_S5_".into(), &package).to_aml_bytes(&mut bytes);
        dsdt.append_slice(&bytes);
    }
    dsdt
}

/// An I/O port register, 32- and 64-bit form.
fn ports(address: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, u64::from(address))
}

/// Revision 5: 268 bytes, eight less than the builder's revision 6.
fn fadt(acpi: bool, facs: u64, dsdt: u64) -> Vec<u8> {
    const LENGTH: u32 = 268;
    let low = |address: u64| u32::try_from(address).unwrap_or_default();
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton) // no fixed sleep button
        .flag(Flags::FixRtc) // no fixed clock alarm
        .flag(Flags::UsePlatformClock);
    fadt.major_version = 5;
    fadt.fadt_minor_version = 0;
    fadt.creator_id = CREATOR_ID;
    fadt.creator_revision = [0; 4];
    fadt.length = LENGTH.into();
    fadt.firmware_ctrl = low(facs).into();
    fadt.x_firmware_ctrl = facs.into();
    fadt.dsdt = low(dsdt).into();
    fadt.x_dsdt = dsdt.into();
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.p_lvl2_lat = 0x0fff.into(); // no C2
    fadt.p_lvl3_lat = 0x0fff.into(); // no C3
    fadt.sci_int = acpi_pm::SCI_GSI.into();
    // Xen names these two also where, as for its PVH guests, no hardware answers: an ACPI interpreter that finds
    // neither them nor the hardware-reduced flag does not start.
    fadt.pm1a_evt_blk = u32::from(acpi_pm::PM1A_EVT_BLK).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = ports(acpi_pm::PM1A_EVT_BLK, 4, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(acpi_pm::PM1A_CNT_BLK).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = ports(acpi_pm::PM1A_CNT_BLK, 2, AccessSize::WordAccess);
    let fadt = if acpi { power_hardware(fadt) } else { fadt.flag(Flags::PwrButton) };
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes.truncate(LENGTH as usize); // the rest is zero and not in the checksum
    bytes
}

/// What Xen's PVH guests do not have: the way into ACPI mode, the PM timer, a reset register; and the power button
/// is a fixed one, for its flag, which would say otherwise, stays clear.
fn power_hardware(mut fadt: FADTBuilder) -> FADTBuilder {
    fadt.smi_cmd = u32::from(acpi_pm::SMI_CMD).into();
    fadt.acpi_enable = acpi_pm::ACPI_ENABLE;
    fadt.acpi_disable = acpi_pm::ACPI_DISABLE;
    fadt.pm_tmr_blk = u32::from(acpi_pm::PM_TMR_BLK).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = ports(acpi_pm::PM_TMR_BLK, 4, AccessSize::DwordAccess);
    fadt.reset_reg = ports(crate::machine::pio::RESET_CONTROL, 1, AccessSize::ByteAccess);
    fadt.reset_value = 6;
    fadt.flag(Flags::TmrValExt).flag(Flags::ResetRegSup)
}

/// A processor with an APIC id beyond 8 bits.
#[derive(Clone, Copy, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    apic_id: [u8; 4],
    flags: [u8; 4],
    uid: [u8; 4],
}

/// An ISA interrupt that is not edge-triggered and active-high.
#[derive(Clone, Copy, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct InterruptSourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: [u8; 4],
    flags: [u8; 2],
}

/// Every vCPU that may exist: UID = vCPU id, APIC id twice that, enabled if it is there at the start. The flag for
/// two 8259s (PCAT_COMPAT) stays clear: there are none, and Linux would wait for their timer.
fn madt(acpi: bool, vcpus_online: u32, max_vcpus: u32) -> Sdt {
    let mut madt = table(*b"APIC", 2);
    madt.append_slice(&LAPIC_ADDRESS.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    for vcpu in 0..max_vcpus {
        let status = if vcpu < vcpus_online { EnabledStatus::Enabled } else { EnabledStatus::Disabled };
        let apic_id = vcpu * 2;
        match (u8::try_from(vcpu), u8::try_from(apic_id)) {
            (Ok(uid), Ok(id)) if id != 0xff => {
                madt.append_slice(ProcessorLocalApic::new(uid, id, status).as_bytes());
            }
            _ => madt.append_slice(
                LocalX2Apic {
                    kind: 9,
                    length: 16,
                    reserved: [0; 2],
                    apic_id: apic_id.to_le_bytes(),
                    flags: (status as u32).to_le_bytes(),
                    uid: vcpu.to_le_bytes(),
                }
                .as_bytes(),
            ),
        }
    }
    if acpi {
        let gsi = u32::from(acpi_pm::SCI_GSI);
        madt.append_slice(IoApic::new(IOAPIC_ID, ioapic::ADDRESS_32, gsi - ioapic::SCI).as_bytes());
        let [sci, _] = acpi_pm::SCI_GSI.to_le_bytes();
        let level_low = InterruptSourceOverride {
            kind: 2,
            length: 10,
            bus: 0,
            source: sci,
            gsi: gsi.to_le_bytes(),
            flags: 0xfu16.to_le_bytes(),
        };
        madt.append_slice(level_low.as_bytes());
    }
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    /// The table at an address, its length taken from its header.
    fn at(tables: &AcpiTables, address: u64) -> &[u8] {
        let start = usize::try_from(address - tables.base).unwrap();
        let length = u32_at(&tables.image, start + 4) as usize;
        &tables.image[start..start + length]
    }

    /// Walk from the RSDP as a guest does: (FADT, MADT, DSDT, FACS).
    fn walk(tables: &AcpiTables) -> [&[u8]; 4] {
        let rsdp = &tables.image[usize::try_from(tables.rsdp - tables.base).unwrap()..][..36];
        assert_eq!((&rsdp[..8], &rsdp[9..15]), (b"RSD PTR ".as_slice(), b"Xen\0\0\0".as_slice()));
        assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (0, 0, 2));
        let xsdt = at(tables, u64_at(rsdp, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (b"XSDT".as_slice(), 36 + 16));
        let fadt = at(tables, u64_at(xsdt, 36));
        let madt = at(tables, u64_at(xsdt, 44));
        let dsdt = at(tables, u64_at(fadt, 140));
        let facs = at(tables, u64_at(fadt, 132));
        for table in [xsdt, fadt, madt, dsdt] {
            assert_eq!(sum(table), 0);
            assert_eq!(&table[10..24], b"Xen\0\0\0HVM\0\0\0\0\0");
        }
        assert_eq!((&facs[..4], facs.len()), (b"FACS".as_slice(), 64));
        assert_eq!(u64_at(fadt, 132) % 64, 0);
        [fadt, madt, dsdt, facs]
    }

    #[test]
    fn with_a_power_button() {
        let tables = build(true, 2, 3);
        assert_eq!((tables.base, tables.image.len()), (0xfc00_0000, 4096));
        let [fadt, madt, dsdt, _] = walk(&tables);
        assert_eq!((&fadt[..4], fadt.len(), fadt[8]), (b"FACP".as_slice(), 268, 5));
        assert_eq!(u32_at(fadt, 40), u32::try_from(u64_at(fadt, 140)).unwrap(), "dsdt and x_dsdt");
        assert_eq!((fadt[46], u32_at(fadt, 48), fadt[52], fadt[53]), (9, 0xb2, 0xa0, 0xa1));
        assert_eq!([56, 64, 76].map(|field| u32_at(fadt, field)), [0xb000, 0xb004, 0xb008]);
        assert_eq!((fadt[88], fadt[89], fadt[91]), (4, 2, 4));
        assert_eq!(fadt[109], 0b10_0100, "no VGA, no CMOS clock, no 8042, no legacy devices");
        let flags = u32_at(fadt, 112);
        assert_eq!(flags & (1 << 4), 0, "the power button is a fixed feature");
        assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
        assert_ne!(flags & (1 << 8), 0, "32-bit timer");
        assert_eq!(&dsdt[36..], b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\0\0");
        assert_eq!((&madt[..4], u32_at(madt, 36), u32_at(madt, 40)), (b"APIC".as_slice(), 0xfee0_0000, 0));
        let entries = [
            [0, 8, 0, 0, 1, 0, 0, 0].as_slice(),
            &[0, 8, 1, 2, 1, 0, 0, 0],
            &[0, 8, 2, 4, 0, 0, 0, 0],
            &[1, 12, 1, 0, 0, 0, 0xc0, 0xfe, 9, 0, 0, 0],
            &[2, 10, 0, 9, 9, 0, 0, 0, 0xf, 0],
        ];
        assert_eq!(madt[44..], entries.concat());
    }

    #[test]
    fn strict_tables_have_local_apics_only() {
        let tables = build(false, 1, 1);
        let [fadt, madt, dsdt, _] = walk(&tables);
        assert_eq!(dsdt.len(), 36, "no sleep state");
        assert_eq!(madt[44..], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!((u32_at(fadt, 48), u32_at(fadt, 76), fadt[91]), (0, 0, 0), "no SMI_CMD, no PM timer");
        assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64)), (0xb000, 0xb004), "as Xen's");
        assert_ne!(u32_at(fadt, 112) & (1 << 4), 0, "no fixed power button");
    }

    #[test]
    fn many_vcpus_need_wide_ids() {
        let tables = build(true, 130, 130);
        let [_, madt, ..] = walk(&tables);
        let wide = &madt[44 + 128 * 8..][..32];
        assert_eq!(wide[..16], [9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 128, 0, 0, 0]);
        assert_eq!(wide[16..], [9, 16, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 129, 0, 0, 0]);
    }
}
