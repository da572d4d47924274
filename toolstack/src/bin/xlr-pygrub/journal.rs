//! The journal of ext3 and ext4 (jbd2), replayed in memory: a guest that was killed boots from what its own kernel would
//! find. Laid out as the kernel's documentation has it (filesystems/ext4, "Journal (jbd2)"). Own code, since the crate
//! knows none but 64-bit journals with checksums, and of those no log that has come round.
//!
//! The log is a ring of transactions: descriptors with the copies of blocks that follow each, revocations of earlier
//! copies, a commit. It ends where the next transaction is not whole.

use crate::disk::Window;
use anyhow::{Context, bail, ensure};
use crc::{Algorithm, CRC_32_ISCSI, CRC_32_MPEG_2, Crc, Table};
use ext4_view::Ext4Read;
use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;

/// Where the superblock is, and how long.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
/// Of its features: there is a journal; it has to be replayed; block numbers have 64 bits; it has a checksum.
const HAS_JOURNAL: u32 = 0x4;
const RECOVERY: u32 = 0x4;
const WIDE: u32 = 0x80;
const METADATA_CSUM: u32 = 0x400;
/// An inode with extents in the place of a block map.
const EXTENTS: u32 = 0x8_0000;

/// What every block of the log begins with that is no copy.
pub const MAGIC: u32 = 0xc03b_3998;
/// Kinds of block.
const DESCRIPTOR: u32 = 1;
pub const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOCATION: u32 = 5;
/// Features of a journal: one checksum in each commit.
const CHECKSUM: u32 = 0x1;
/// Those that matter for reading: revocations, 64-bit block numbers, commits that do not wait for what they commit,
/// checksums everywhere in two forms, a part of the journal for small commits.
pub const REVOKE: u32 = 0x1;
const BIG: u32 = 0x2;
pub const ASYNC_COMMIT: u32 = 0x4;
pub const CSUM_V2: u32 = 0x8;
pub const CSUM_V3: u32 = 0x10;
pub const FAST_COMMIT: u32 = 0x20;
/// Flags of a tag: the copy began with [`MAGIC`], no UUID follows, no tag follows.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST_TAG: u32 = 8;
/// Blocks of the part for small commits where none is given, and what must remain of the journal beside it.
const FAST_BLOCKS: u32 = 256;
const LEAST_BLOCKS: u32 = 1024;

/// Blocks of a log that are looked at, and revocations: a multiple of what any journal has by default.
const MOST_BLOCKS: u64 = 1 << 22;
const MOST_REVOKED: u64 = 1 << 26;

/// CRC-32C as it is used here, without the inversion at the end.
const RAW_CRC32C: Algorithm<u32> = Algorithm { xorout: 0, ..CRC_32_ISCSI };
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&RAW_CRC32C);
/// What a commit has with [`CHECKSUM`].
static CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_MPEG_2);

/// The `N` bytes at `at`; zeroes where there are none.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

/// Two halves of a number.
fn wide(high: u32, low: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

/// `bytes` put to where they are missing, or changed, in a block.
fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = at.checked_add(bytes.len()).and_then(|end| block.get_mut(at..end)) {
        place.copy_from_slice(bytes);
    }
}

/// With its parts behind each other.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = CRC32C.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

/// The file system in `window` as it is after its journal has been replayed.
///
/// # Errors
/// The image cannot be read; the journal is on another device, damaged, or of a kind that is not known.
pub fn replayed(window: &Window) -> anyhow::Result<Box<dyn Ext4Read>> {
    let mut superblock = [0; SUPERBLOCK_LEN];
    window.read_at(SUPERBLOCK, &mut superblock)?;
    if le32(&superblock, 0x60) & RECOVERY == 0 {
        return Ok(Box::new(window.clone()));
    }
    let copies = if le32(&superblock, 0x5c) & HAS_JOURNAL != 0 {
        let journal = Journal::of(window, &superblock)?;
        journal.log()?.map_or(Ok(Copies::new()), Log::replay).context("its journal")?
    } else {
        Copies::new()
    };
    let mut replayed =
        Replayed { window: window.clone(), block_size: block_size(&superblock)?, copies, superblock: None };
    // There may be a copy of it as well.
    replayed.read_at(SUPERBLOCK, &mut superblock)?;
    let whole = |superblock: &[u8]| crc32c(&[superblock.get(..0x3fc).unwrap_or(superblock)]).to_le_bytes();
    let sound =
        le32(&superblock, 0x64) & METADATA_CSUM != 0 && field(&superblock, 0x3fc) == whole(&superblock);
    let incompat = le32(&superblock, 0x60) & !RECOVERY;
    put(&mut superblock, 0x60, &incompat.to_le_bytes());
    if sound {
        let checksum = whole(&superblock);
        put(&mut superblock, 0x3fc, &checksum);
    }
    replayed.superblock = Some(superblock);
    Ok(Box::new(replayed))
}

fn block_size(superblock: &[u8]) -> anyhow::Result<u64> {
    match le32(superblock, 0x18) {
        log @ 0..=6 => Ok(1024 << log),
        _ => bail!("the size of its blocks is damaged"),
    }
}

/// A block of the log that stands for one of the file system.
#[derive(Clone, Copy, Debug)]
struct Copy {
    /// Where it is, in bytes of the file system.
    at: u64,
    escaped: bool,
}

/// The newest copies, by the number of the block.
type Copies = BTreeMap<u64, Copy>;

/// A file system with the copies laid over it.
struct Replayed {
    window: Window,
    block_size: u64,
    copies: Copies,
    /// The superblock that needs no recovery.
    superblock: Option<[u8; SUPERBLOCK_LEN]>,
}

/// Lay over `buffer`, which is from byte `offset` on, what of `bytes` falls into it, which are from byte `at` on.
fn lay(buffer: &mut [u8], offset: u64, bytes: &[u8], at: u64) {
    let skip = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    let over = buffer.get_mut(skip(offset, at)..).unwrap_or_default();
    let bytes = bytes.get(skip(at, offset)..).unwrap_or_default();
    over.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}

impl Replayed {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.window.read_at(offset, buffer)?;
        let end = offset.saturating_add(buffer.len() as u64);
        for (number, copy) in self.copies.range(offset / self.block_size..end.div_ceil(self.block_size)) {
            let mut block = vec![0; usize::try_from(self.block_size).unwrap_or_default()];
            self.window.read_at(copy.at, &mut block)?;
            if copy.escaped {
                put(&mut block, 0, &MAGIC.to_be_bytes());
            }
            lay(buffer, offset, &block, number.saturating_mul(self.block_size));
        }
        if let Some(superblock) = &self.superblock {
            lay(buffer, offset, superblock, SUPERBLOCK);
        }
        Ok(())
    }
}

impl Ext4Read for Replayed {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.read_at(start_byte, dst)?)
    }
}

/// The file that is the journal.
pub struct Journal<'a> {
    window: &'a Window,
    block_size: u64,
    /// Blocks it has.
    blocks: u64,
    has_extents: bool,
    /// Root of its extents, or its block map.
    root: [u8; 60],
}

impl<'a> Journal<'a> {
    /// By what the superblock says.
    ///
    /// # Errors
    /// It cannot be read, or is on another device.
    pub fn of(window: &'a Window, superblock: &[u8]) -> anyhow::Result<Self> {
        let block_size = block_size(superblock)?;
        let Some(index) = le32(superblock, 0xe0).checked_sub(1) else {
            bail!("its journal, which has to be replayed, is on another device");
        };
        let per_group = NonZero::new(le32(superblock, 0x28)).context("its superblock is damaged")?;
        // A meta_bg file system has the first descriptors where all others have them.
        let wide_numbers = le32(superblock, 0x60) & WIDE != 0;
        let descriptor_size = if wide_numbers { le16(superblock, 0xfe).max(64) } else { 32 };
        let mut descriptor = vec![0; usize::from(descriptor_size)];
        let group = u64::from(index / per_group) * u64::from(descriptor_size);
        window.read_at((1024 / block_size + 1) * block_size + group, &mut descriptor)?;
        let table = wide(if wide_numbers { le32(&descriptor, 0x28) } else { 0 }, le32(&descriptor, 8));
        let inode_size = if le32(superblock, 0x4c) == 0 { 128 } else { le16(superblock, 0x58) };
        let inside = u64::from(index % per_group) * u64::from(inode_size);
        let mut inode = [0; 128];
        let at = table.checked_mul(block_size).and_then(|at| at.checked_add(inside));
        window.read_at(at.unwrap_or(u64::MAX), &mut inode).context("the inode of its journal")?;
        Ok(Journal {
            window,
            block_size,
            blocks: wide(le32(&inode, 0x6c), le32(&inode, 4)) / block_size,
            has_extents: le32(&inode, 0x20) & EXTENTS != 0,
            root: field(&inode, 0x28),
        })
    }

    /// The block at byte `at` of the file system.
    fn read(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; usize::try_from(self.block_size).unwrap_or_default()];
        self.window.read_at(at, &mut block)?;
        Ok(block)
    }

    /// First byte of a block of the file system.
    fn start(&self, block: u64) -> io::Result<u64> {
        block.checked_mul(self.block_size).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Where block `index` of the journal is; `None` in a hole.
    ///
    /// # Errors
    /// The image's.
    pub fn find(&self, index: u32) -> io::Result<Option<u64>> {
        let found = if self.has_extents { self.in_extents(index)? } else { self.in_map(index)? };
        found.filter(|&block| block != 0).map(|block| self.start(block)).transpose()
    }

    fn in_extents(&self, index: u32) -> io::Result<Option<u64>> {
        let mut node = self.root.to_vec();
        // As deep as a tree can be.
        for _ in 0..=5 {
            if le16(&node, 0) != 0xf30a {
                return Ok(None);
            }
            let rows = node.chunks_exact(12).skip(1).take(usize::from(le16(&node, 2)));
            let Some(row) = rows.take_while(|row| le32(row, 0) <= index).last() else { return Ok(None) };
            if le16(&node, 6) == 0 {
                let inside = index.saturating_sub(le32(row, 0));
                let first = wide(le16(row, 6).into(), le32(row, 8));
                // More than 32768 is one with nothing written in it.
                let len = u32::from(le16(row, 4));
                return Ok((inside < len && len <= 32768).then(|| first.saturating_add(inside.into())));
            }
            let below = wide(le16(row, 8).into(), le32(row, 4));
            node = self.read(self.start(below)?)?;
        }
        Ok(None)
    }

    fn in_map(&self, index: u32) -> io::Result<Option<u64>> {
        let slot =
            |block: &[u8], at: u64| u64::from(le32(block, usize::try_from(at * 4).unwrap_or(usize::MAX)));
        let each = self.block_size / 4;
        let (mut index, direct) = (u64::from(index), 12);
        if index < direct {
            return Ok(Some(slot(&self.root, index)));
        }
        index -= direct;
        for level in 1..=3 {
            if index < each.pow(level) {
                let mut block = slot(&self.root, direct + u64::from(level) - 1);
                for below in (0..level).rev() {
                    if block == 0 {
                        return Ok(None);
                    }
                    let mut bytes = [0; 4];
                    let at = index / each.pow(below) % each * 4;
                    self.window.read_at(self.start(block)?.saturating_add(at), &mut bytes)?;
                    block = u32::from_le_bytes(bytes).into();
                }
                return Ok(Some(block));
            }
            index -= each.pow(level);
        }
        Ok(None)
    }

    /// The log; `None` when it is empty.
    fn log(self) -> anyhow::Result<Option<Log<'a>>> {
        let at = self.find(0).context("its journal")?.context("its journal is a hole")?;
        let mut superblock = self.read(at).context("its journal")?;
        superblock.truncate(SUPERBLOCK_LEN);
        let (kind, start) = (be32(&superblock, 4), be32(&superblock, 0x1c));
        if be32(&superblock, 0) != MAGIC || ![SUPERBLOCK_V1, SUPERBLOCK_V2].contains(&kind) {
            bail!("its journal has no superblock");
        }
        // The first version ends there.
        let feature = |at| if kind == SUPERBLOCK_V1 { 0 } else { be32(&superblock, at) };
        let (compat, incompat, ro_compat) = (feature(0x24), feature(0x28), feature(0x2c));
        let known = REVOKE | BIG | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
        let unknown = incompat & !known;
        ensure!(
            unknown == 0 && ro_compat == 0,
            "its journal has unknown features {unknown:#x}, {ro_compat:#x}"
        );
        let sums = match (compat & CHECKSUM, incompat & CSUM_V2, incompat & CSUM_V3) {
            (0, 0, 0) => Sums::None,
            (_, 0, 0) => Sums::Commits,
            (0, _, 0) => Sums::Half,
            (0, 0, _) => Sums::Full,
            _ => bail!("its journal has two kinds of checksum"),
        };
        if matches!(sums, Sums::Half | Sums::Full) {
            let checksum = be32(&superblock, 0xfc);
            put(&mut superblock, 0xfc, &[0; 4]);
            let of = field::<1>(&superblock, 0x50);
            ensure!(
                of == [4] && checksum == crc32c(&[&superblock]),
                "the superblock of its journal is damaged"
            );
        }
        if start == 0 {
            return Ok(None);
        }
        let (first, len) = (be32(&superblock, 0x14), be32(&superblock, 0x10));
        let fast = match be32(&superblock, 0x54) {
            _ if incompat & FAST_COMMIT == 0 => 0,
            0 => FAST_BLOCKS,
            fast => fast,
        };
        // What is committed there is not in the log yet, and would have to be done over, not copied.
        let end = len.checked_sub(fast).filter(|&end| end >= LEAST_BLOCKS).unwrap_or(len);
        let fits = u64::from(be32(&superblock, 0xc)) == self.block_size && u64::from(len) <= self.blocks;
        ensure!(
            fits && 0 < first && (first..end).contains(&start),
            "the superblock of its journal is damaged"
        );
        Ok(Some(Log {
            journal: self,
            first,
            end,
            next: start,
            left: end - first,
            looked_at: 0,
            sequence: be32(&superblock, 0x18),
            sums,
            big: incompat & BIG != 0,
            async_commit: incompat & ASYNC_COMMIT != 0,
            uuid: field(&superblock, 0x30),
        }))
    }
}

/// What has a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sums {
    None,
    /// All copies of a transaction and their descriptors together, in its commit.
    Commits,
    /// Each block, copies with 16 bits.
    Half,
    /// Each block.
    Full,
}

/// A row of a descriptor.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

/// What one transaction changes.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    /// Where its revocations are.
    revocations: Vec<u64>,
}

/// The log, being read.
struct Log<'a> {
    journal: Journal<'a>,
    /// The ring: its first block, and the one behind its last.
    first: u32,
    end: u32,
    /// The block to be looked at next, and how many there are before all have been seen.
    next: u32,
    left: u32,
    looked_at: u64,
    /// Of the transaction being read.
    sequence: u32,
    sums: Sums,
    big: bool,
    async_commit: bool,
    uuid: [u8; 16],
}

impl Log<'_> {
    /// Transaction by transaction: a block's last copy is what it has, unless that was revoked in the same transaction or
    /// a later one.
    fn replay(mut self) -> anyhow::Result<Copies> {
        let (mut copies, mut revoked) = (Copies::new(), 0);
        while let Some(transaction) = self.transaction()? {
            copies.extend(transaction.copies);
            for at in transaction.revocations {
                let block = self.journal.read(at)?;
                for number in self.revoked(&block) {
                    copies.remove(&number);
                    revoked += 1;
                    ensure!(revoked <= MOST_REVOKED, "more than {MOST_REVOKED} revocations");
                }
            }
            self.sequence = self.sequence.wrapping_add(1);
        }
        Ok(copies)
    }

    /// Where the next block of the log is; `None` when all have been seen.
    fn step(&mut self) -> anyhow::Result<Option<u64>> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.looked_at += 1;
        ensure!(self.looked_at <= MOST_BLOCKS, "more than {MOST_BLOCKS} blocks to be replayed");
        let here = self.next;
        self.left = left;
        self.next = if here + 1 == self.end { self.first } else { here + 1 };
        let found = self.journal.find(here).with_context(|| format!("its block {here}"))?;
        Ok(Some(found.with_context(|| format!("its block {here} is a hole"))?))
    }

    /// The next transaction that is whole.
    fn transaction(&mut self) -> anyhow::Result<Option<Transaction>> {
        let mut found = Transaction::default();
        let mut sound = true;
        let mut sum = CRC32.digest();
        while let Some(at) = self.step()? {
            let block = self.journal.read(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence {
                return Ok(None);
            }
            match be32(&block, 4) {
                DESCRIPTOR => {
                    sound &= self.is_sound(&block, block.len() - 4);
                    if self.sums == Sums::Commits {
                        sum.update(&block);
                    }
                    for tag in self.tags(&block) {
                        let Some(at) = self.step()? else { return Ok(None) };
                        if self.sums != Sums::None {
                            let copy = self.journal.read(at)?;
                            sound &= self.is_copy(&copy, &tag);
                            if self.sums == Sums::Commits {
                                sum.update(&copy);
                            }
                        }
                        found.copies.push((tag.block, Copy { at, escaped: tag.flags & ESCAPED != 0 }));
                    }
                }
                REVOCATION => {
                    sound &= self.is_sound(&block, block.len() - 4);
                    sound &=
                        (16..=self.room(&block)).contains(&be32(&block, 12).try_into().unwrap_or(usize::MAX));
                    found.revocations.push(at);
                }
                COMMIT => {
                    if !self.is_sound(&block, 16) {
                        return Ok(None);
                    }
                    // None of one that was written without.
                    if self.sums == Sums::Commits && field(&block, 12) != [0, 0] {
                        sound &= field(&block, 12) == [1, 4] && be32(&block, 16) == sum.finalize();
                    }
                    // A commit may then be there before what it commits.
                    ensure!(sound || self.async_commit, "damage in transaction {}", self.sequence);
                    return Ok(sound.then_some(found));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// A block of the log is as it was written, by the checksum at `at` in it.
    fn is_sound(&self, block: &[u8], at: usize) -> bool {
        let (before, rest) = block.split_at_checked(at).unwrap_or((block, &[]));
        let behind = rest.get(4..).unwrap_or_default();
        matches!(self.sums, Sums::None | Sums::Commits)
            || be32(block, at) == crc32c(&[&self.uuid, before, &[0; 4], behind])
    }

    /// And a copy.
    fn is_copy(&self, copy: &[u8], tag: &Tag) -> bool {
        let checksum = || crc32c(&[&self.uuid, &self.sequence.to_be_bytes(), copy]);
        match self.sums {
            Sums::None | Sums::Commits => true,
            Sums::Half => tag.checksum & 0xffff == checksum() & 0xffff,
            Sums::Full => tag.checksum == checksum(),
        }
    }

    /// Bytes of a descriptor or of revocations without the checksum behind them.
    fn room(&self, block: &[u8]) -> usize {
        let tail = if matches!(self.sums, Sums::Half | Sums::Full) { 4 } else { 0 };
        block.len().saturating_sub(tail)
    }

    /// The rows of a descriptor.
    fn tags(&self, block: &[u8]) -> Vec<Tag> {
        // Number, checksum and flags; the upper half of the number. With checksums there are two bytes more than needed.
        let len = match (self.sums, self.big) {
            (Sums::Full, _) => 16,
            (Sums::Half, true) => 14,
            (Sums::Half, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        };
        let mut tags = Vec::new();
        let mut rest = block.get(12..self.room(block)).unwrap_or_default();
        while let Some(row) = rest.get(..len) {
            let high = if self.big { be32(row, 8) } else { 0 };
            let both = be32(row, 4);
            let (flags, checksum) =
                if self.sums == Sums::Full { (both, be32(row, 12)) } else { (both & 0xffff, both >> 16) };
            tags.push(Tag { block: wide(high, be32(row, 0)), flags, checksum });
            if flags & LAST_TAG != 0 {
                break;
            }
            let uuid = if flags & SAME_UUID == 0 { 16 } else { 0 };
            rest = rest.get(len + uuid..).unwrap_or_default();
        }
        tags
    }

    /// The numbers that a block of revocations has.
    fn revoked<'a>(&self, block: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
        let len = if self.big { 8 } else { 4 };
        let end = usize::try_from(be32(block, 12)).unwrap_or(usize::MAX).min(self.room(block));
        let rows = block.get(16..end).unwrap_or_default().chunks_exact(len);
        rows.map(move |row| if len == 8 { wide(be32(row, 0), be32(row, 4)) } else { be32(row, 0).into() })
    }
}
