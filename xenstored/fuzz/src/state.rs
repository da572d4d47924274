//! A state folder with anything in it: a snapshot, which is the stream of a live update too, that was damaged at will.
//!
//! It is refused, or gives a store that keeps every promise of [`crate::store`](super::store).

use std::fs;
use std::path::{Path, PathBuf};

use xenstored::persist::{Disk, Fsync, Policy};

use super::input::Input;
use super::store::World;

/// Nothing has to outlive the host.
const POLICY: Policy = Policy { fsync: Fsync::Never, transient: false };

thread_local! {
    /// In memory where that can be had.
    static FOLDER: tempfile::TempDir =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
}

/// Plays the bytes.
pub fn run(data: &[u8]) -> u64 {
    FOLDER.with(|folder| play(folder.path(), data))
}

fn play(folder: &Path, data: &[u8]) -> u64 {
    let mut input = Input(data);
    let mut world = World::with_guests();
    let before = Input(input.bytes(data.len() / 2));
    world.play(before);
    drop(Disk::replace(folder, POLICY, &world.store).expect("written"));
    for file in files(folder, "snapshot.") {
        let mut bytes = fs::read(&file).expect("readable");
        damage(&mut bytes, &mut input);
        fs::write(&file, bytes).expect("writable");
    }
    if input.once_in(4) {
        for file in files(folder, "log.") {
            fs::write(&file, input.bytes(200)).expect("writable");
        }
    }
    let Ok((disk, store)) = Disk::open(folder, POLICY) else {
        ["snapshot.", "log."].iter().flat_map(|kind| files(folder, kind)).for_each(|file| {
            let _ = fs::remove_file(file);
        });
        return world.finish();
    };
    drop(disk);
    let mut heir = World::on(store);
    heir.play(input);
    world.finish() + heir.finish()
}

/// A few bytes changed, cut out or doubled.
fn damage(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..input.below(6) {
        let at = input.word() as usize % (bytes.len() + 1);
        let end = (at + input.below(80)).min(bytes.len());
        match input.below(5) {
            0..=1 => bytes[at..end].iter_mut().take(2).for_each(|byte| *byte = input.byte()),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            // A number of the 8-byte aligned records.
            _ => {
                let at = at & !3;
                if let Some(word) = bytes.get_mut(at..at + 4) {
                    word.copy_from_slice(&input.pick(&[0u32, 1, 2, 3, 4, 5, 8, 255, u32::MAX]).to_le_bytes());
                }
            }
        }
    }
}

fn files(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("readable").filter_map(Result::ok).map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)))
        .collect()
}
