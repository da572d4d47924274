//! xlr-pygrub: what is on this disk to boot? It reads partition tables, file systems and boot menus that a guest has
//! written, and therefore does nothing else, and can do nothing else: see [`confine`].
//!
//! Called by a domain's process before it builds the domain, with the protocol of `xen_emu_api::bootloader`; by hand:
//! `xlr-pygrub '{"image":"disk.img","format":"raw","wish":{}}' | head -1`.
#![forbid(unsafe_code)]

mod bls;
mod choice;
mod confine;
mod disk;
mod extlinux;
mod files;
mod grub;
mod journal;
mod kernel;
mod legacy;
mod partitions;
#[cfg(test)]
mod tests;
mod volumes;

use anyhow::{Context, bail};
use choice::Choice;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use volumes::Volumes;
use xen_emu_api::bootloader::{Answer, Found, MAX_KERNEL, MAX_LINE, MAX_RAMDISK, Piece, Request};

/// Longest reason that is given, characters.
const MAX_WHY: usize = 4 << 10;

fn main() -> ExitCode {
    // Damage that a file system's crate stumbles over is an answer too. Where one was given already, bytes follow that
    // are too many, and our end says the rest.
    std::panic::set_hook(Box::new(|panic| failed(&format!("the reader has broken down: {panic}"))));
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failed(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The answer that there is none, of bounded length: a menu may have 10,000 titles.
fn failed(why: &str) {
    let all = one_line(why);
    let mut why: String = all.chars().take(MAX_WHY).collect();
    if why.len() < all.len() {
        why.push_str(" ...");
    }
    let _ = say(&Answer::Failed { why });
}

fn run() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let (Some(request), None) = (words.next(), words.next()) else { bail!("usage: xlr-pygrub REQUEST") };
    let request: Request = serde_json::from_str(&request).context("the request")?;
    // A qcow2 image says itself how large its tables are and what it stands on.
    confine::limits().context("resource limits")?;
    let disk = disk::open(&request.image, request.format)?;
    confine::rights().context("cannot confine itself")?;
    let volumes = Volumes::open(&disk);
    let Some(choice) = choice::choose(&volumes, &request.wish)? else {
        return say(&Answer::Nothing { why: one_line(&volumes.describe()) });
    };
    hand_over(&volumes, choice)
}

/// Announce what there is and send it.
fn hand_over(volumes: &Volumes, choice: Choice) -> anyhow::Result<()> {
    let kernel = volumes.open_file(&choice.kernel).context("kernel")?;
    let ramdisks: Vec<_> = choice
        .ramdisks
        .iter()
        .map(|path| volumes.open_file(path).context("ramdisk"))
        .collect::<anyhow::Result<_>>()?;
    let total = ramdisks.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
    for (what, path, size, most) in [
        ("kernel", &choice.kernel.path, kernel.size, MAX_KERNEL),
        ("ramdisk", &choice.ramdisks.first().unwrap_or(&choice.kernel).path, total, MAX_RAMDISK),
    ] {
        if size > most {
            bail!("{what} {path}: {size} bytes, at most {most} are accepted");
        }
    }
    let image =
        kernel::plain(kernel.bytes, kernel.size).with_context(|| format!("kernel {}", choice.kernel.path))?;
    let piece = |path: &volumes::Place, size| Piece { path: path.path.clone(), size };
    say(&Answer::Found(Found {
        title: one_line(&choice.title),
        kernel: piece(&choice.kernel, image.len() as u64),
        ramdisks: choice.ramdisks.iter().zip(&ramdisks).map(|(path, file)| piece(path, file.size)).collect(),
        cmdline: one_line(&choice.cmdline),
    }))?;
    let mut out = io::stdout().lock();
    out.write_all(&image)?;
    drop(image);
    for file in ramdisks {
        let sent = io::copy(&mut file.bytes.take(file.size), &mut out)?;
        if sent != file.size {
            bail!("a file of {} bytes ends after {sent}", file.size);
        }
    }
    Ok(out.flush()?)
}

fn say(answer: &Answer) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    if line.len() as u64 >= MAX_LINE {
        bail!("the boot menu's entry is too long");
    }
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// Nothing of the guest's reaches a terminal as a control sequence.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
