//! How often an image's tables refer to each of its clusters.

use super::layout::{EXTERNAL_DATA, Layout, OFFSET, corrupt, field, table};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The one who has this entry is the only one who uses its cluster, and writes to it in place.
const COPIED: u64 = 1 << 63;
/// An L2 entry of compressed data.
const COMPRESSED: u64 = 1 << 62;
/// Clusters that are kept account of, at a byte each; 32 TiB of the usual size.
const MOST_CLUSTERS: u64 = 1 << 29;
/// Entries of all L1 tables.
const MOST_ENTRIES: u64 = 16 << 20;
/// Bytes before the variable part of a snapshot's description.
const SNAPSHOT: usize = 40;

/// Numbers of references.
pub struct Uses {
    few: Vec<u8>,
    /// From 255 on.
    many: HashMap<usize, u64>,
    /// A bit for each cluster that must have one user only.
    owned: Vec<u64>,
    /// First cluster behind the file's and behind all that are used.
    end: usize,
    cluster_bits: u32,
}

/// An L2 table's.
#[derive(Default)]
struct Users {
    /// L1 tables that have it.
    number: u64,
    /// The one in use has it.
    active: bool,
}

impl Uses {
    /// Counts. `blocks` is the table of the blocks of counts.
    ///
    /// # Errors
    /// The host's; `InvalidData`: something is used that is not there, or by two who both take it for their own.
    pub fn count(file: &File, layout: &Layout, blocks: &[u64]) -> io::Result<Uses> {
        let there = file.metadata()?.len().div_ceil(layout.cluster());
        let known = blocks.iter().rposition(|block| block & OFFSET != 0).map_or(0, |last| last as u64 + 1);
        let clusters = there.max((known << layout.block_bits()).min(MOST_CLUSTERS));
        if clusters > MOST_CLUSTERS {
            return Err(corrupt("it is too large for its clusters to be counted"));
        }
        let clusters = usize::try_from(clusters).map_err(io::Error::other)?;
        let mut uses = Uses {
            few: vec![0; clusters],
            many: HashMap::new(),
            owned: vec![0; clusters.div_ceil(64)],
            end: usize::try_from(there).map_err(io::Error::other)?,
            cluster_bits: layout.cluster_bits,
        };
        uses.own(0..1)?;
        uses.own(layout.counts.clone())?;
        uses.own(layout.l1.clone())?;
        for block in blocks.iter().map(|block| block & OFFSET).filter(|block| *block != 0) {
            uses.whole(block)?;
            uses.own(block..block + 1)?;
        }
        // In the file's order.
        let mut tables = BTreeMap::new();
        uses.l1(file, layout.l1.start, layout.l1.end - layout.l1.start, &mut tables, true)?;
        uses.snapshots(file, layout, &mut tables)?;
        for (at, users) in tables {
            uses.l2(file, layout, at, &users)?;
        }
        if let Some(cluster) = uses.owned().find(|cluster| uses.of(*cluster) != 1) {
            return Err(corrupt(format!("cluster {cluster} has more than one user")));
        }
        uses.end = uses.end.max(uses.few.iter().rposition(|few| *few != 0).map_or(0, |last| last + 1));
        Ok(uses)
    }

    /// References to a cluster.
    pub fn of(&self, cluster: usize) -> u64 {
        match self.few.get(cluster).copied() {
            Some(u8::MAX) => self.many.get(&cluster).copied().unwrap_or(u8::MAX.into()),
            Some(few) => u64::from(few),
            None => 0,
        }
    }

    /// Whether any of these is used.
    pub fn any(&self, clusters: std::ops::Range<usize>) -> bool {
        let end = clusters.end.min(self.few.len());
        self.few.get(clusters.start.min(end)..end).is_some_and(|few| few.iter().any(|uses| *uses != 0))
    }

    /// No cluster from here on is used.
    pub fn end(&self) -> usize {
        self.end
    }

    /// A new cluster at the end, with one user.
    pub fn append(&mut self) -> u64 {
        let cluster = self.end;
        self.end += 1;
        self.few.resize(self.few.len().max(self.end), 0);
        if let Some(few) = self.few.get_mut(cluster) {
            *few = 1;
        }
        cluster as u64
    }

    fn owned(&self) -> impl Iterator<Item = usize> {
        let bits = |(n, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| n * 64 + bit)
        };
        self.owned.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
    }

    /// `number` more users for the cluster of each of these bytes.
    fn add(&mut self, bytes: std::ops::Range<u64>, number: u64) -> io::Result<()> {
        let last = bytes.end.saturating_sub(1) >> self.cluster_bits;
        for cluster in bytes.start >> self.cluster_bits..=last {
            let index = usize::try_from(cluster).unwrap_or(usize::MAX);
            let sum = self.of(index).saturating_add(number);
            let few = self.few.get_mut(index).ok_or_else(|| corrupt("it uses clusters beyond its end"))?;
            *few = u8::try_from(sum).unwrap_or(u8::MAX);
            if *few == u8::MAX {
                self.many.insert(index, sum);
            }
        }
        Ok(())
    }

    /// One user, who must be the only one.
    fn own(&mut self, bytes: std::ops::Range<u64>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.add(bytes.clone(), 1)?;
        (bytes.start >> self.cluster_bits..=(bytes.end - 1) >> self.cluster_bits).for_each(|c| self.mark(c));
        Ok(())
    }

    fn mark(&mut self, cluster: u64) {
        if let Some(word) = usize::try_from(cluster / 64).ok().and_then(|n| self.owned.get_mut(n)) {
            *word |= 1 << (cluster % 64);
        }
    }

    fn whole(&self, at: u64) -> io::Result<()> {
        let fits = at.is_multiple_of(1 << self.cluster_bits);
        if fits {
            Ok(())
        } else {
            Err(corrupt(format!("a table's entry says {at:#x}, which is no cluster's beginning")))
        }
    }

    /// The L2 tables of an L1 table.
    fn l1(
        &mut self,
        file: &File,
        at: u64,
        size: u64,
        tables: &mut BTreeMap<u64, Users>,
        active: bool,
    ) -> io::Result<()> {
        for entry in table(file, at, size)? {
            let l2 = entry & OFFSET;
            if l2 == 0 {
                continue;
            }
            self.whole(l2)?;
            self.add(l2..l2 + 1, 1)?;
            let users = tables.entry(l2).or_default();
            if active && (users.active || entry & COPIED != 0) {
                // Twice in one table makes it used by two.
                self.mark(l2 >> self.cluster_bits);
            }
            users.number += 1;
            users.active |= active;
        }
        Ok(())
    }

    /// The table of internal snapshots, and the L1 table of each.
    fn snapshots(
        &mut self,
        file: &File,
        layout: &Layout,
        tables: &mut BTreeMap<u64, Users>,
    ) -> io::Result<()> {
        let (start, mut at) = (layout.snapshots_at, layout.snapshots_at);
        let mut entries = 0;
        for _ in 0..layout.snapshots {
            let mut head = [0; SNAPSHOT];
            file.read_exact_at(&mut head, at)?;
            let (l1, size) =
                (u64::from_be_bytes(field(&head, 0)), u64::from(u32::from_be_bytes(field(&head, 8))) * 8);
            let names = u64::from(u16::from_be_bytes(field(&head, 12)))
                + u64::from(u16::from_be_bytes(field(&head, 14)));
            let extra = u64::from(u32::from_be_bytes(field(&head, 36)));
            entries += size / 8;
            if entries > MOST_ENTRIES || l1 > OFFSET || at > OFFSET {
                return Err(corrupt("its snapshots are too large"));
            }
            self.whole(l1)?;
            self.own(l1..l1 + size)?;
            self.l1(file, l1, size, tables, false)?;
            at += (SNAPSHOT as u64 + names + extra).next_multiple_of(8);
        }
        self.own(start..at)
    }

    /// The clusters of an L2 table, for each L1 table that has it.
    fn l2(&mut self, file: &File, layout: &Layout, at: u64, users: &Users) -> io::Result<()> {
        // A compressed cluster begins at any byte; behind its offset is in how many more sectors it lies.
        let bits = 62 - (layout.cluster_bits - 8);
        for entry in table(file, at, layout.cluster())? {
            if entry & COMPRESSED != 0 {
                let offset = entry & ((1 << bits) - 1);
                let sectors = (entry & !(COPIED | COMPRESSED)) >> bits;
                self.add(offset..(offset & !511) + (sectors + 1) * 512, users.number)?;
                continue;
            }
            let offset = entry & OFFSET;
            if offset == 0 || layout.features & EXTERNAL_DATA != 0 {
                continue;
            }
            self.whole(offset)?;
            self.add(offset..offset + 1, users.number)?;
            if users.active && entry & COPIED != 0 {
                self.mark(offset >> self.cluster_bits);
            }
        }
        Ok(())
    }
}
