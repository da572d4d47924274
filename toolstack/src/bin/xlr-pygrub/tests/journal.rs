//! Journals: written by debugfs, turned round so that the log wraps, and replayed by e2fsck, which has the last word on
//! every byte; and damaged ones.

use super::tools::{output, tool};
use crate::disk::{Shared, Window};
use crate::journal;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::rc::Rc;

/// Blocks of the file that transactions write to.
const BLOCKS: usize = 400;
/// Blocks of the journal.
const LEN: u32 = 1024;

/// One kind of journal: options of mke2fs, and of debugfs when it opens the journal.
struct Kind {
    name: &'static str,
    mke2fs: &'static [&'static str],
    open: &'static str,
    /// Feature bits that debugfs does not set.
    incompat: u32,
}

const KINDS: &[Kind] = &[
    Kind { name: "ext3", mke2fs: &["-t", "ext3", "-b", "1024"], open: "", incompat: 0 },
    Kind { name: "ext3, 4 KiB", mke2fs: &["-t", "ext3", "-b", "4096", "-I", "128"], open: "", incompat: 0 },
    Kind {
        name: "ext4 of old",
        mke2fs: &["-t", "ext4", "-b", "2048", "-O", "^metadata_csum,^64bit"],
        open: "",
        incompat: 0,
    },
    Kind {
        name: "64 bits",
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,64bit"],
        open: "",
        incompat: 0,
    },
    Kind {
        name: "sums of commits",
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"],
        open: "-c",
        incompat: journal::ASYNC_COMMIT,
    },
    Kind {
        name: "half sums",
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,^64bit"],
        open: "-c -v 2",
        incompat: 0,
    },
    Kind {
        name: "half sums, 64 bits",
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,64bit"],
        open: "-c -v 2",
        incompat: 0,
    },
    Kind {
        name: "full sums",
        mke2fs: &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,64bit"],
        open: "-c -v 3",
        incompat: journal::ASYNC_COMMIT,
    },
    Kind {
        name: "full sums, 32 bits, 4 KiB, fast commits",
        mke2fs: &["-t", "ext4", "-b", "4096", "-O", "metadata_csum,^64bit,fast_commit"],
        open: "-c -v 3",
        incompat: journal::FAST_COMMIT,
    },
];

impl Kind {
    fn block(&self) -> usize {
        let at = self.mke2fs.iter().position(|word| *word == "-b").unwrap();
        self.mke2fs[at + 1].parse().unwrap()
    }

    /// An image whose journal has three transactions and a fourth that was never committed; `None` without the tools.
    fn dirty(&self, dir: &Path) -> Option<Vec<u8>> {
        let (mke2fs, debugfs) = (tool("mke2fs")?, tool("debugfs")?);
        let (files, image) = (dir.join("files"), dir.join("image"));
        fs::create_dir_all(files.join("boot/grub")).unwrap();
        fs::write(files.join("boot/grub/grub.cfg"), "menuentry Linux {\nlinux /boot/vmlinuz ro\n}\n")
            .unwrap();
        fs::write(files.join("boot/vmlinuz"), vec![7; BLOCKS * self.block()]).unwrap();
        // With room for fast commits beside what a log has at least.
        let (len, size) = if self.block() == 4096 { (2 * LEN, "64m") } else { (LEN, "16m") };
        let journal = format!("size={}", (len as usize * self.block()) >> 20);
        let mut command = mke2fs;
        command.args(["-q", "-F", "-J", &journal, "-d"]).arg(&files).args(self.mke2fs).arg(&image).arg(size);
        assert!(command.status().unwrap().success(), "{}", self.name);
        let mut blocks = tool("debugfs")?;
        blocks.args(["-R", "blocks /boot/vmlinuz"]).arg(&image);
        let blocks: Vec<String> = output(blocks)
            .lines()
            .filter(|line| !line.starts_with("debugfs"))
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect();
        assert!(blocks.len() >= BLOCKS, "{}: {blocks:?}", self.name);
        let list = |from: usize, to: usize| blocks[from..to].join(",");
        // Opened anew for each, since debugfs misjudges how long one was that it has just written.
        let mut script = String::new();
        let mut open = self.open;
        let mut write = |number: u8, what: &str, count: usize| {
            let copies = dir.join(format!("copies-{number}"));
            fs::write(&copies, self.copies(number, count)).unwrap();
            writeln!(script, "jo {open}\njw {what} {}\njc", copies.display()).unwrap();
            open = "";
        };
        write(1, &format!("-b {}", list(0, 300)), 300);
        // Blocks that are revoked: for ever, until a later transaction, in the transaction that writes them.
        let again = format!("-b {}", list(20, 30));
        // debugfs sums up revocations too, which the kernel does not, for the one kind.
        if self.name == "sums of commits" {
            write(2, &again, 10);
            write(3, &format!("-b {}", list(15, 22)), 7);
        } else {
            write(2, &format!("{again} -r {}", list(5, 20)), 10);
            write(3, &format!("-b {} -r {}", list(15, 22), list(21, 25)), 7);
        }
        write(4, &format!("-c -b {}", list(300, 310)), 10);
        let commands = dir.join("script");
        fs::write(&commands, script).unwrap();
        let mut command = debugfs;
        command.args(["-w", "-f"]).arg(&commands).arg(&image);
        let said = output(command);
        let image = fs::read(&image).unwrap();
        assert!(be32(&image, in_journal(&image, 0) + 0x1c) == 1, "{}: no transaction: {said}", self.name);
        Some(image)
    }

    /// Blocks of which every seventh begins as a block of a journal does.
    fn copies(&self, number: u8, count: usize) -> Vec<u8> {
        let mut copies = vec![number; count * self.block()];
        for (index, copy) in copies.chunks_mut(self.block()).enumerate() {
            copy[8..16].copy_from_slice(&(index as u64).to_le_bytes());
            if index % 7 == 0 {
                copy[..4].copy_from_slice(&journal::MAGIC.to_be_bytes());
            }
        }
        copies
    }
}

fn window(image: &[u8]) -> Window {
    let disk: Shared = Rc::new(image.to_vec());
    Window::new(&disk, 0, image.len() as u64)
}

/// Where blocks of an image's journal are.
fn all_in_journal(image: &[u8], blocks: impl Iterator<Item = u32>) -> Vec<usize> {
    let window = window(image);
    let journal = journal::Journal::of(&window, &image[1024..2048]).unwrap();
    blocks.map(|block| usize::try_from(journal.find(block).unwrap().unwrap()).unwrap()).collect()
}

fn in_journal(image: &[u8], block: u32) -> usize {
    all_in_journal(image, std::iter::once(block))[0]
}

fn be32(image: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(image[at..at + 4].try_into().unwrap())
}

/// Change the superblock of a journal.
fn amend(image: &mut [u8], at: usize, value: u32) {
    let superblock = in_journal(image, 0);
    image[superblock + at..][..4].copy_from_slice(&value.to_be_bytes());
    if be32(image, superblock + 0x28) & (journal::CSUM_V2 | journal::CSUM_V3) != 0 {
        image[superblock + 0xfc..][..4].fill(0);
        let sum = journal::crc32c(&[&image[superblock..][..1024]]);
        image[superblock + 0xfc..][..4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The same log, begun so late in its ring that `before` blocks come before the seam.
fn turned(kind: &Kind, image: &[u8], before: u32) -> Vec<u8> {
    let superblock = in_journal(image, 0);
    let (len, first) = (be32(image, superblock + 0x10), be32(image, superblock + 0x14));
    let fast = be32(image, superblock + 0x28) & journal::FAST_COMMIT != 0;
    let len = if fast { len - be32(image, superblock + 0x54) } else { len };
    let place = |index: u32| first + (index - first + len - first - before) % (len - first);
    let mut turned = image.to_vec();
    let places = [all_in_journal(image, first..len), all_in_journal(image, (first..len).map(place))];
    for (&from, &to) in places[0].iter().zip(&places[1]) {
        turned[to..to + kind.block()].copy_from_slice(&image[from..from + kind.block()]);
    }
    amend(&mut turned, 0x1c, place(be32(image, superblock + 0x1c)));
    turned
}

/// Everything as the file system's reader sees it.
fn replayed(image: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; image.len()];
    let mut reader = journal::replayed(&window(image)).map_err(|error| format!("{error:#}"))?;
    // In pieces that begin and end anywhere.
    let mut at = 0;
    for piece in bytes.chunks_mut(100_003) {
        reader.read(at, piece).unwrap();
        at += piece.len() as u64;
    }
    Ok(bytes)
}

fn fsck(dir: &Path, image: &[u8]) -> Vec<u8> {
    let path = dir.join("checked");
    fs::write(&path, image).unwrap();
    let mut command = tool("e2fsck").unwrap();
    command.args(["-y", "-E", "journal_only"]).arg(&path);
    output(command);
    fs::read(&path).unwrap()
}

#[test]
fn every_kind_of_journal_as_e2fsck_replays_it() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let Some(mut dirty) = kind.dirty(dir.path()) else { return };
        if kind.incompat != 0 {
            let incompat = be32(&dirty, in_journal(&dirty, 0) + 0x28);
            amend(&mut dirty, 0x28, incompat | kind.incompat);
        }
        let mut straight = Vec::new();
        // The seam nowhere, behind the first descriptor, in the middle of copies, at the first commit and behind it.
        for before in [0, 1, 2, 150, 302, 304, 310] {
            let image = turned(kind, &dirty, before);
            let name = format!("{}, {before}", kind.name);
            let ours = replayed(&image).unwrap();
            // Kernels wrap before the part for fast commits; e2fsck 1.47 reads on into it. There it has the last word on the
            // log that does not wrap, and that has it on the others, beside the journal itself.
            let judged = kind.incompat & journal::FAST_COMMIT == 0 || before == 0;
            let theirs = if judged { fsck(dir.path(), &image) } else { straight.clone() };
            if before == 0 {
                straight.clone_from(&ours);
            }
            assert!(ours.len() == theirs.len(), "{name}");
            let size = kind.block();
            let differs: Vec<_> = (0..ours.len() / size)
                .filter(|n| ours[n * size..][..size] != theirs[n * size..][..size])
                .collect();
            // All but the superblocks, which have times and counts.
            let len = if judged { 1 } else { be32(&image, in_journal(&image, 0) + 0x10) };
            let aside: Vec<_> = all_in_journal(&image, 0..len).iter().map(|at| at / size).collect();
            let others: Vec<_> =
                differs.iter().filter(|n| !aside.contains(n) && **n != 1024 / size).collect();
            assert!(others.is_empty(), "{name}: {others:?}");
            let changed =
                (0..ours.len() / size).filter(|n| ours[n * size..][..size] != image[n * size..][..size]);
            let expected = if kind.name == "sums of commits" { 300 } else { 300 - 10 - 4 };
            let superblock = 1;
            assert_eq!(changed.count(), expected + superblock, "{name}");
            assert_eq!(ours[1024 + 0x60] & 4, 0, "{name}: needs recovery");
            assert!(crate::files::open(&window(&image)).is_ok(), "{name}");
        }
    }
}

#[test]
fn what_cannot_be_replayed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let kind = KINDS.iter().find(|kind| kind.name == "half sums").unwrap();
    let Some(dirty) = kind.dirty(dir.path()) else { return };
    let why = |image: &[u8]| replayed(image).err().unwrap();
    // Its first copy, of a transaction that is committed.
    let mut image = dirty.clone();
    let copy = in_journal(&image, 2);
    image[copy + 100] ^= 1;
    assert_eq!(why(&image), "its journal: damage in transaction 1");
    // With commits that do not wait it only was not there yet.
    amend(&mut image, 0x28, journal::ASYNC_COMMIT | journal::CSUM_V2 | journal::REVOKE);
    let seen = replayed(&image).unwrap();
    assert!(seen[2048..] == image[2048..]);
    // So it is where the commit itself is not whole.
    let mut image = dirty.clone();
    for index in 300..310 {
        let at = in_journal(&image, index);
        if be32(&image, at) == journal::MAGIC && be32(&image, at + 4) == journal::COMMIT {
            image[at + 1000] ^= 1;
        }
    }
    assert!(replayed(&image).unwrap()[2048..] == image[2048..]);
    for (at, value, expected) in [
        (0x28, 0x100, "its journal has unknown features 0x100, 0x0"),
        (0x28, 0x18, "its journal has two kinds of checksum"),
        (0x1c, LEN, "the superblock of its journal is damaged"),
        (0x10, LEN + 1, "the superblock of its journal is damaged"),
        (0, 0, "its journal has no superblock"),
    ] {
        let mut image = dirty.clone();
        amend(&mut image, at, value);
        assert_eq!(why(&image), expected);
    }
    let mut image = dirty.clone();
    image[1024 + 0xe0..][..4].fill(0);
    assert_eq!(why(&image), "its journal, which has to be replayed, is on another device");
    // A log that is empty.
    let mut image = dirty;
    amend(&mut image, 0x1c, 0);
    assert!(replayed(&image).unwrap()[2048..] == image[2048..]);
}

/// SplitMix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below as u64).unwrap()
    }
}

/// Bits flipped in the journal and in what leads to it: whatever comes of it, it ends, and nothing breaks down.
#[test]
fn fuzz_of_journals() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("PYGRUB_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PYGRUB_FUZZ_IMAGES").unwrap_or(20),
    };
    let dir = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    for (number, kind) in [&KINDS[0], &KINDS[3], &KINDS[7]].into_iter().enumerate() {
        let folder = dir.path().join(number.to_string());
        fs::create_dir_all(&folder).unwrap();
        let Some(dirty) = kind.dirty(&folder) else { return };
        images.push(turned(kind, &dirty, 124));
    }
    let mut replays = 0;
    for seed in seeds {
        let mut noise = Noise(seed);
        let mut image = images[noise.next(images.len())].clone();
        // The log, with what it begins with, and superblock, descriptors and the first inodes.
        let mut places = vec![(1024, 1024), (2048, 64)];
        let table = usize::try_from(u32::from_le_bytes(image[2056..2060].try_into().unwrap())).unwrap();
        places.push((table * 1024, 4096));
        let blocks = [0, 900, 901, 902, 903, 1023, 1, 2, 177, 178, 179, 180, 181, 182];
        places.extend(all_in_journal(&image, blocks.into_iter()).into_iter().map(|at| (at, 1024)));
        for _ in 0..=noise.next(6) {
            let (at, len) = places[noise.next(places.len())];
            // Most of what matters stands at the beginning.
            let within = noise.next(len);
            let within = noise.next(within + 1);
            image[at + within] ^= 1 << noise.next(8);
        }
        println!("PYGRUB_FUZZ_SEED={seed}");
        if journal::replayed(&window(&image)).is_ok() {
            replays += 1;
        }
        super::images::look(image);
    }
    println!("{replays} were replayed");
}
