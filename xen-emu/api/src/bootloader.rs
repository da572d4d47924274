//! `bootloader=`: what a domain's process asks the reader of boot menus (`xlr-pygrub`) and what that answers.
//!
//! The reader gets a [`Request`] as its only argument and answers on stdout: one line with an [`Answer`]; after
//! [`Answer::Found`] the bytes of the kernel and then those of each ramdisk follow, as many as announced. A packed kernel
//! is unpacked by the reader: an ELF image follows.

use crate::device::DiskFormat;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest line of an answer, bytes.
pub const MAX_LINE: u64 = 64 << 10;
/// Largest kernel, packed and unpacked, bytes.
pub const MAX_KERNEL: u64 = 256 << 20;
/// Largest sum of the ramdisks, bytes.
pub const MAX_RAMDISK: u64 = 1 << 30;

/// `bootloader=` with its `bootloader_args=`; each `None` is left to the menu on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootloader {
    /// `--entry`: number, id or title of a menu entry; `>` leads into submenus.
    pub entry: Option<String>,
    /// `--kernel`: path of a kernel in the guest; no menu is read then.
    pub kernel: Option<String>,
    /// `--ramdisk`: path of a ramdisk in the guest, with `kernel`.
    pub ramdisk: Option<String>,
    /// `--args`: put behind the kernel's command line.
    pub args: Option<String>,
}

/// What to look for, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// A file or block device.
    pub image: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// What is wanted.
    pub wish: Bootloader,
}

/// A file of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its path there.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// What the disk is to be booted with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Title of the menu entry.
    pub title: String,
    /// The kernel, with the size of what follows.
    pub kernel: Piece,
    /// The ramdisks, to be put one behind the other.
    pub ramdisks: Vec<Piece>,
    /// The command line in the menu.
    pub cmdline: String,
}

/// What the reader has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The bytes follow.
    Found(Found),
    /// Nobody has made this disk to be booted; the next one may be.
    Nothing {
        /// One line: what is on it.
        why: String,
    },
    /// It should be bootable, but is not.
    Failed {
        /// One line.
        why: String,
    },
}
