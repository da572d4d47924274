//! What the guest was told is on disk is there after `kill -9`, under load, in every shape of a connection.
//!
//! A process of its own writes and flushes and says how far it came, until it is killed at any moment. Rounds follow from
//! the seed, so that who looks at the image afterwards knows what has to be in it. `BLK_KILLS` (1) is how often each
//! shape is tried: `BLK_KILLS=100 cargo test -p xen-emu killed -- --nocapture`

use super::Blk;
use super::fake::{DATA, Guest, Ring, Wish, config, segments};
use crate::backend::device::Device;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use xen_abi::io::blkif::{BlkifOp, BlkifRsp};
use xen_emu_api::device::{DiskCache, DiskFormat};

/// Those that are written to.
const BLOCKS: u32 = 2048;
/// So many follow each other; the next ones are far away, where a qcow2 image has another L2 table.
const NEIGHBOURS: u32 = 256;
const LEN: u64 = BLOCKS as u64 / NEIGHBOURS as u64 * FAR;
const FAR: u64 = 512 << 20;
/// Id of a flush.
const FLUSH: u64 = 99;
/// Requests of a queue in a round.
const WRITES: u32 = 8;

/// One row of what is tried.
#[derive(Clone, Copy, Debug)]
struct Shape {
    format: DiskFormat,
    persistent: bool,
    indirect: bool,
    queues: u32,
    seed: u32,
}

impl Shape {
    fn bits(self) -> u32 {
        let flags = [self.format == DiskFormat::Qcow2, self.persistent, self.indirect, self.queues == 4];
        flags.iter().fold(self.seed, |bits, flag| bits << 1 | u32::from(*flag))
    }

    fn of(bits: u32) -> Shape {
        let flag = |n: u32| bits >> n & 1 == 1;
        let format = if flag(3) { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        let queues = if flag(0) { 4 } else { 1 };
        Shape { format, persistent: flag(2), indirect: flag(1), queues, seed: bits >> 4 }
    }

    fn cache(self) -> DiskCache {
        if self.seed.is_multiple_of(2) { DiskCache::Writeback } else { DiskCache::None }
    }

    fn open(self, image: &Path) -> Guest {
        let mut guest = Guest::new(Blk::open(&config(image, self.format, self.cache()), 4).unwrap(), 0);
        guest.connect(Wish { queues: self.queues, persistent: self.persistent, ..Wish::default() }).unwrap();
        guest
    }

    /// First block and number of blocks of each write of a round, which do not overlap.
    fn plan(self, round: u32) -> Vec<(u32, u32)> {
        let mut state = u64::from(self.seed) << 32 | u64::from(round) | 1 << 63;
        let mut next = |below: u32| {
            // xorshift
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from((state >> 20) % u64::from(below)).unwrap()
        };
        (0..8).for_each(|_| _ = next(1));
        let all = WRITES * self.queues;
        let slice = BLOCKS / all;
        let most = if self.indirect { 40 } else { 11 };
        (0..all)
            .map(|n| {
                let count = 1 + next(most);
                (n * slice + next(slice - count), count)
            })
            .collect()
    }

    /// Puts a round's writes on the rings.
    fn post(self, guest: &mut Guest, round: u32) {
        for (n, (first, count)) in (0..).zip(self.plan(round)) {
            // Rounds in turn use other pages: those of the last one may still be read.
            let page = DATA + (n + round % 2 * WRITES * self.queues) * 41;
            (0..count).for_each(|k| guest.fill(page + k, &content(round, first + k)));
            let pieces: Vec<_> = (0..count).map(|k| (page + k, 0, 7)).collect();
            let (ring, id) = (&mut guest.rings[(n % self.queues) as usize], u64::from(n));
            if self.indirect {
                ring.indirect(BlkifOp::WRITE, id, sector(first), &segments(&pieces), page + 40);
            } else {
                ring.direct(BlkifOp::WRITE, id, sector(first), &segments(&pieces));
            }
        }
    }
}

/// Where a block is, in sectors.
fn sector(block: u32) -> u64 {
    u64::from(block / NEIGHBOURS) * (FAR / 512) + u64::from(block % NEIGHBOURS) * 8
}

fn content(round: u32, block: u32) -> Vec<u8> {
    [round.to_le_bytes(), block.to_le_bytes()].concat().repeat(512)
}

/// The process that is killed.
#[test]
#[ignore = "writes until it is killed: the other test's"]
fn writes_until_it_is_killed() {
    let Ok(words) = std::env::var("BLK_KILLED") else { return };
    let (bits, path) = words.split_once(' ').unwrap();
    let shape = Shape::of(bits.parse().unwrap());
    let mut guest = shape.open(Path::new(path));
    let ok = |statuses: Vec<BlkifRsp>| assert!(statuses.iter().all(|status| *status == BlkifRsp::OKAY));
    let writes = WRITES as usize;
    shape.post(&mut guest, 1);
    guest.rings.iter_mut().for_each(|ring| ok(ring.statuses(writes)));
    for round in 1.. {
        // The flush is for what has been answered, whatever is under way beside it.
        let flushing = round as usize % guest.rings.len();
        guest.rings[flushing].direct(BlkifOp::FLUSH_DISKCACHE, FLUSH, 0, &[]);
        shape.post(&mut guest, round + 1);
        guest.rings.iter_mut().for_each(Ring::publish);
        let before = until_flushed(&mut guest.rings[flushing]);
        println!("flushed {round}");
        let left = writes - before.len();
        ok(before);
        for (n, ring) in guest.rings.iter_mut().enumerate() {
            ok(ring.statuses(if n == flushing { left } else { writes }));
        }
    }
}

/// What was answered before the flush, which must be well.
fn until_flushed(ring: &mut Ring) -> Vec<BlkifRsp> {
    let mut others = Vec::new();
    loop {
        match ring.take() {
            Some((FLUSH, _, status)) => {
                assert_eq!(status, BlkifRsp::OKAY);
                return others;
            }
            Some((.., status)) => others.push(status),
            None => assert!(ring.wait()),
        }
    }
}

/// Runs the writer for a while and kills it; the last round that it was told is on disk.
fn kill(shape: Shape, image: &Path, after: Duration) -> u32 {
    let name = "backend::blk::killed::writes_until_it_is_killed";
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("BLK_KILLED", format!("{} {}", shape.bits(), image.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let round = |line: &str| line.strip_prefix("flushed ").and_then(|n| n.parse().ok());
    let first = lines.by_ref().map_while(Result::ok).find_map(|line| round(&line)).unwrap();
    std::thread::sleep(after);
    writer.kill().unwrap();
    let last = lines.map_while(Result::ok).filter_map(|line| round(&line)).last().unwrap_or(first);
    writer.wait().unwrap();
    last
}

/// Every block is as the last round left it, or as one left it that was not flushed yet.
fn verify(shape: Shape, image: &Path, last: u32) {
    let mut expected: HashMap<u32, u32> = HashMap::new();
    let plan = |round| {
        let blocks = |(first, count): (u32, u32)| first..first + count;
        shape.plan(round).into_iter().flat_map(blocks).map(move |block| (block, round))
    };
    (1..=last).for_each(|round| expected.extend(plan(round)));
    let newer: Vec<_> = plan(last + 1).chain(plan(last + 2)).collect();
    let mut guest = shape.open(image);
    for start in (0..BLOCKS).step_by(256) {
        let pieces: Vec<_> = (0..256).map(|n| (DATA + n, 0, 7)).collect();
        guest.rings[0].indirect(BlkifOp::READ, 0, sector(start), &segments(&pieces), DATA + 300);
        assert_eq!(guest.rings[0].statuses(1), [BlkifRsp::OKAY]);
        for block in start..start + 256 {
            let found = guest.page(DATA + block - start);
            let now = newer.iter().any(|(b, round)| *b == block && found == content(*round, block));
            let then = expected.get(&block).map_or_else(|| vec![0; 4096], |round| content(*round, block));
            let what = &found[..8];
            assert!(now || found == then, "{shape:?}, flushed {last}: block {block} begins {what:?}");
        }
    }
    guest.blk.disconnect();
    drop(guest);
    check(shape, image, &[0]);
}

/// What `qemu-img` says: 0 all is well, 3 clusters are counted that nobody uses.
fn check(shape: Shape, image: &Path, well: &[i32]) {
    if shape.format != DiskFormat::Qcow2 {
        return;
    }
    let check = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(image).status();
    let Ok(check) = check else { return eprintln!("SKIP: second opinion on qcow2: no qemu-img here") };
    assert!(check.code().is_some_and(|code| well.contains(&code)), "{shape:?}: qemu-img check: {check}");
}

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    let kills = std::env::var("BLK_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in 0..kills {
        for bits in 0..16 {
            let shape = Shape::of(seed << 4 | bits);
            let shape = Shape { seed: seed * 16 + bits, ..shape };
            let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
            match shape.format {
                DiskFormat::Raw => file.as_file().set_len(LEN).unwrap(),
                DiskFormat::Qcow2 => {
                    std::fs::write(file.path(), crate::disk::tests::header(LEN, "", None)).unwrap()
                }
            }
            let after = Duration::from_millis(u64::from(shape.plan(0)[0].0 % 64));
            let last = kill(shape, file.path(), after);
            check(shape, file.path(), &[0, 3]);
            verify(shape, file.path(), last);
        }
    }
}
