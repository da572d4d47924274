//! Partition tables: GPT (UEFI specification, 5.3) and MBR with logical partitions. Numbers as Linux and GRUB have them.
//! Own code, since the crates write tables as well and allocate what a table asks for.

use crate::disk::Disk;

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// From 1 on; logical ones from 5 on.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// Kinds of table, by GRUB's name of their partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `gpt1`
    Gpt,
    /// `msdos1`
    Msdos,
}

/// More rows than any tool makes.
const MOST: u32 = 256;
/// The sectors of a disk; an MBR does not say which.
const SECTORS: [u64; 2] = [512, 4096];

/// What an MBR has for a disk whose table is a GPT.
const PROTECTIVE: u8 = 0xee;

/// The partitions of a disk; none when it has no table. Further tables are other readings of the same: to be looked at when
/// the first makes no sense.
pub fn of(disk: &dyn Disk) -> Vec<(Scheme, Vec<Partition>)> {
    // One left over from former times, most often its copy at the end, is none.
    let protected = rows(disk, 0, 1).is_some_and(|rows| rows.iter().any(|row| row.kind == PROTECTIVE));
    for sector in SECTORS {
        let last = (disk.size() / sector).saturating_sub(1);
        // The second is the copy at the end, for a disk whose first table was overwritten.
        for header in [1, last] {
            let found = if protected { gpt(disk, sector, header) } else { None }.unwrap_or_default();
            if !found.is_empty() {
                return vec![(Scheme::Gpt, found)];
            }
        }
    }
    SECTORS.map(|sector| (Scheme::Msdos, msdos(disk, sector).unwrap_or_default())).to_vec()
}

fn bytes<const N: usize>(disk: &dyn Disk, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    disk.read_at(offset, &mut bytes).ok()?;
    Some(bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn gpt(disk: &dyn Disk, sector: u64, at: u64) -> Option<Vec<Partition>> {
    let header: [u8; 92] = bytes(disk, at.checked_mul(sector)?)?;
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let table = le64(&header, 72)?.checked_mul(sector)?;
    let (count, size) = (le32(&header, 80)?.min(MOST), le32(&header, 84)?);
    if !(128..=4096).contains(&size) {
        return None;
    }
    let row = |number: u32| -> Option<Partition> {
        let offset = u64::from(number - 1) * u64::from(size);
        let row: [u8; 48] = bytes(disk, table.checked_add(offset)?)?;
        let (first, last) = (le64(&row, 32)?, le64(&row, 40)?);
        let used = row.get(..16)?.iter().any(|&byte| byte != 0);
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        let (start, size) = (first.checked_mul(sector)?, sectors.checked_mul(sector)?);
        (used && start < disk.size()).then_some(Partition { number, start, size })
    };
    Some((1..=count).filter_map(row).collect())
}

/// One row of an MBR.
struct Row {
    kind: u8,
    start: u64,
    size: u64,
}

impl Row {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The rows of the table at byte `at`; positions as they stand there, in sectors of that size.
fn rows(disk: &dyn Disk, at: u64, sector: u64) -> Option<Vec<Row>> {
    let table: [u8; 512] = bytes(disk, at)?;
    if table.get(510..) != Some(&[0x55, 0xaa]) {
        return None;
    }
    table
        .get(446..510)?
        .chunks_exact(16)
        .map(|row| {
            let number = |at| le32(row, at).map(|sectors| u64::from(sectors) * sector);
            // Anything but 0 or 80h is the code of a boot sector without a table.
            (row.first()? & 0x7f == 0).then_some(Row {
                kind: *row.get(4)?,
                start: number(8)?,
                size: number(12)?,
            })
        })
        .collect()
}

fn msdos(disk: &dyn Disk, sector: u64) -> Option<Vec<Partition>> {
    let mut found = Vec::new();
    let mut logical = Vec::new();
    for (number, row) in (1..).zip(rows(disk, 0, sector)?) {
        if row.is_extended() && logical.is_empty() {
            logical = chain(disk, row.start, sector);
        } else if row.kind != 0 && row.start != 0 && row.size != 0 && row.start < disk.size() {
            found.push(Partition { number, start: row.start, size: row.size });
        }
    }
    found.extend(logical);
    Some(found)
}

/// The logical partitions: each table has one, relative to itself, and the next table, relative to the first. Empty tables
/// are not counted, as Linux does it.
fn chain(disk: &dyn Disk, base: u64, sector: u64) -> Vec<Partition> {
    let (mut found, mut number) = (Vec::new(), 5);
    let mut at = Some(base);
    for _ in 5..MOST {
        let Some(rows) = at.and_then(|at| rows(disk, at, sector)) else { break };
        let here = at.unwrap_or(base);
        if let Some(row) = rows.iter().find(|row| row.kind != 0 && row.size != 0 && !row.is_extended()) {
            found.push(Partition { number, start: here.saturating_add(row.start), size: row.size });
            number += 1;
        }
        let next = rows.iter().find(|row| row.is_extended() && row.size != 0);
        at = next.map(|row| base.saturating_add(row.start));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn row(disk: &mut [u8], sector: usize, index: usize, kind: u8, start: u32, size: u32) {
        let at = sector * 512 + 446 + index * 16;
        put(disk, at + 4, &[kind]);
        put(disk, at + 8, &start.to_le_bytes());
        put(disk, at + 12, &size.to_le_bytes());
        put(disk, sector * 512 + 510, &[0x55, 0xaa]);
    }

    #[test]
    fn primary_and_logical_partitions() {
        let mut disk = vec![0; 512 * 100];
        row(&mut disk, 0, 0, 0x83, 1, 9);
        row(&mut disk, 0, 1, 0x0f, 20, 80);
        row(&mut disk, 20, 0, 0x83, 1, 9);
        row(&mut disk, 20, 1, 0x05, 20, 10);
        row(&mut disk, 40, 0, 0x82, 2, 8);
        let expected = [(1, 1, 9), (5, 21, 9), (6, 42, 8)].map(|(number, start, size)| Partition {
            number,
            start: start * 512,
            size: size * 512,
        });
        assert_eq!(of(&disk)[0], (Scheme::Msdos, expected.to_vec()));
        // A table without a partition has no number.
        row(&mut disk, 20, 0, 0, 0, 0);
        assert_eq!(of(&disk)[0].1[1], Partition { number: 5, start: 42 * 512, size: 8 * 512 });
        row(&mut disk, 20, 0, 0x83, 1, 9);
        // A chain that leads back to itself ends.
        row(&mut disk, 40, 1, 0x05, 0, 10);
        assert_eq!(of(&disk)[0].1.len(), MOST as usize - 5 + 1);
    }

    #[test]
    fn gpt_of_both_sector_sizes_and_its_copy() {
        for sector in [512usize, 4096] {
            for header in [1, 99] {
                let mut disk = vec![0; sector * 100];
                let table = if header == 1 { 2 } else { 98 };
                let at = header * sector;
                put(&mut disk, at, b"EFI PART");
                put(&mut disk, at + 72, &(table as u64).to_le_bytes());
                let count = if header == 1 { u32::MAX } else { 4 };
                put(&mut disk, at + 80, &count.to_le_bytes());
                put(&mut disk, at + 84, &128u32.to_le_bytes());
                row(&mut disk, 0, 0, PROTECTIVE, 1, 99);
                let row = table * sector + 128;
                put(&mut disk, row, &[7; 16]);
                put(&mut disk, row + 32, &40u64.to_le_bytes());
                put(&mut disk, row + 40, &49u64.to_le_bytes());
                let sector = sector as u64;
                let expected = Partition { number: 2, start: 40 * sector, size: 10 * sector };
                assert_eq!(of(&disk), [(Scheme::Gpt, vec![expected])]);
                // The table of somebody who had the disk before.
                disk[450] = 0x83;
                assert_eq!(
                    of(&disk)[0],
                    (Scheme::Msdos, vec![Partition { number: 1, start: 512, size: 99 * 512 }])
                );
            }
        }
    }
}
