//! What has to hold of a qcow2 image before the crate may allocate in it: whatever the image uses has its count. An image that denies
//! its tables would be overwritten there; without counts where clusters are freed or allocated the crate calls itself for ever.
//!
//! A process that was killed, a host without power, or a program that counts later (QEMU's lazy_refcounts) leave counts that are too
//! low or, of clusters that nobody uses, too high. Both are put right and synced before the image is used.

use super::layout::{COUNTS, DIRTY, FEATURES, Layout, MOST_COUNTS, OFFSET, corrupt, table};
use super::uses::Uses;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of new blocks of counts; those of 2 TiB of the usual cluster size.
const MOST_NEW: u64 = 64 << 20;

/// What was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Clusters whose count was too low.
    pub raised: u64,
    /// Clusters whose count was too high.
    pub lowered: u64,
}

/// Compares every count with the references there are, and corrects it. Without `sole` others may write to the image: it is left as it is.
///
/// # Errors
/// The host's; `Unsupported`: a kind of image that we do not know, which stays as it is; `InvalidData`: no counts could make this image
/// right, or it is not and others may write to it.
pub fn repair(file: &File, sole: bool) -> io::Result<Repaired> {
    let layout = Layout::read(file)?;
    if !sole && layout.features & DIRTY != 0 {
        return Err(corrupt("it is marked dirty, which is put right only where it is locked (without `!`)"));
    }
    let mut blocks = table(file, layout.counts.start, layout.counts.end - layout.counts.start)?;
    let mut uses = Uses::count(file, &layout, &blocks)?;
    let mut done = Repaired::default();
    let mut changed = false;
    for (n, block) in blocks.iter().map(|block| block & OFFSET).enumerate().filter(|(_, block)| *block != 0) {
        let mut bytes = vec![0; 1 << layout.cluster_bits];
        read(file, &mut bytes, block)?;
        if correct(&mut bytes, &layout, n, &uses, sole && layout.is_plain(), &mut done)? {
            writable(sole)?;
            file.write_all_at(&bytes, block)?;
            changed = true;
        }
    }
    let new = missing(&layout, &mut blocks, &mut uses)?;
    if !new.is_empty() {
        writable(sole)?;
        add(file, &layout, &blocks, &uses, &new, &mut done)?;
    }
    if changed || layout.features & DIRTY != 0 {
        file.sync_all()?;
    }
    if layout.features & DIRTY != 0 {
        file.write_all_at(&(layout.features & !DIRTY).to_be_bytes(), FEATURES.into())?;
        file.sync_all()?;
    }
    Ok(done)
}

fn writable(sole: bool) -> io::Result<()> {
    let not =
        || corrupt("what it uses is not counted, which is put right only where it is locked (without `!`)");
    sole.then_some(()).ok_or_else(not)
}

/// As much as the file has of a block.
fn read(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("it ends before its counts do"),
        _ => e,
    })
}

/// Makes block `n` of counts say what is used; false when it did.
fn correct(
    bytes: &mut [u8],
    layout: &Layout,
    n: usize,
    uses: &Uses,
    lower: bool,
    done: &mut Repaired,
) -> io::Result<bool> {
    let before = *done;
    let first = n << layout.block_bits();
    for index in 0..1usize << layout.block_bits() {
        let (count, want) = (get(bytes, layout.order, index), uses.of(first + index));
        if count < want {
            put(bytes, layout.order, index, want)?;
            done.raised += 1;
        } else if count > want && lower {
            put(bytes, layout.order, index, want)?;
            done.lowered += 1;
        }
    }
    Ok(*done != before)
}

/// The blocks that there should be: each becomes a cluster at the image's end, which needs a count itself; and so does a
/// longer table of blocks. Returns the numbers of the new blocks and, if there is one, the new table's offset under the number
/// behind all blocks.
fn missing(layout: &Layout, blocks: &mut Vec<u64>, uses: &mut Uses) -> io::Result<BTreeMap<usize, u64>> {
    let bits = layout.block_bits();
    let mut new = BTreeMap::new();
    let (mut n, mut moved) = (0, None);
    loop {
        while n << bits < uses.end() {
            let used = uses.any(n << bits..(n + 1) << bits);
            if blocks.len() <= n && used {
                blocks.resize(n + 1, 0);
            }
            if used && blocks.get(n).is_some_and(|block| block & OFFSET == 0) {
                let at = uses.append() << layout.cluster_bits;
                new.insert(n, at);
                if let Some(block) = blocks.get_mut(n) {
                    *block = at;
                }
                if new.len() as u64 > MOST_NEW >> layout.cluster_bits {
                    return Err(corrupt("too many of its clusters have no count"));
                }
            }
            n += 1;
        }
        let size = blocks.len() as u64 * 8;
        if size <= moved.map_or(layout.counts.end - layout.counts.start, |(_, size)| size) {
            break;
        }
        if moved.is_some() || size + 1024 > MOST_COUNTS {
            return Err(corrupt("too many of its clusters have no count"));
        }
        // With room for the blocks of what is appended.
        let clusters = (size + 1024).div_ceil(layout.cluster());
        blocks.resize(usize::try_from(clusters << layout.cluster_bits).map_err(io::Error::other)? / 8, 0);
        let at = (0..clusters).map(|_| uses.append()).min().unwrap_or(0) << layout.cluster_bits;
        moved = Some((at, clusters << layout.cluster_bits));
        n = 0;
    }
    if let Some((at, _)) = moved {
        new.insert(blocks.len(), at);
    }
    Ok(new)
}

/// Writes new blocks, then the table that has them, then the header if that has moved.
fn add(
    file: &File,
    layout: &Layout,
    blocks: &[u64],
    uses: &Uses,
    new: &BTreeMap<usize, u64>,
    done: &mut Repaired,
) -> io::Result<()> {
    // Those that were there before count what was appended too.
    for (n, block) in blocks.iter().map(|block| block & OFFSET).enumerate().filter(|(_, block)| *block != 0) {
        let mut bytes = vec![0; 1 << layout.cluster_bits];
        if !new.contains_key(&n) {
            read(file, &mut bytes, block)?;
        }
        if correct(&mut bytes, layout, n, uses, false, done)? {
            file.write_all_at(&bytes, block)?;
        }
    }
    file.sync_all()?;
    let entries: Vec<u8> = blocks.iter().flat_map(|block| block.to_be_bytes()).collect();
    let moved = new.get(&blocks.len()).copied();
    file.write_all_at(&entries, moved.unwrap_or(layout.counts.start))?;
    file.sync_all()?;
    if let Some(at) = moved {
        let clusters = u32::try_from(entries.len() >> layout.cluster_bits).map_err(io::Error::other)?;
        let place = [&at.to_be_bytes()[..], &clusters.to_be_bytes()].concat();
        file.write_all_at(&place, COUNTS.start as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// A count; those narrower than a byte begin at its lowest bit.
pub fn get(bytes: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let (byte, shift) = (index >> (3 - order), (index << order) % 8);
        return u64::from(bytes.get(byte).copied().unwrap_or(0)) >> shift & ((1 << (1 << order)) - 1);
    }
    let width = 1 << (order - 3);
    let bytes = bytes.get(index * width..(index + 1) * width).unwrap_or_default();
    bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
}

/// Sets a count.
///
/// # Errors
/// It has too few bits.
pub fn put(bytes: &mut [u8], order: u32, index: usize, count: u64) -> io::Result<()> {
    let bits = 1u32 << order;
    if bits < 64 && count >> bits != 0 {
        return Err(corrupt(format!("counts of {bits} bits are too narrow for its clusters")));
    }
    if order < 3 {
        let (at, shift) = (index >> (3 - order), (index << order) % 8);
        let mask = ((1u64 << bits) - 1) << shift;
        if let Some(byte) = bytes.get_mut(at) {
            *byte = ((u64::from(*byte) & !mask) | count << shift).to_le_bytes()[0];
        }
        return Ok(());
    }
    let width = 1usize << (order - 3);
    if let Some(place) = bytes.get_mut(index * width..(index + 1) * width) {
        place.copy_from_slice(&count.to_be_bytes()[8 - width..]);
    }
    Ok(())
}
