//! A core of the guest: what `crash`, `gdb` and `drgn` read. An ELF64 core file with one PT_LOAD per region of memory, at its
//! guest-physical address, and one NT_PRSTATUS per vCPU, as from QEMU's dump-guest-memory. Pages of zeros are holes in the file.
//! Source: System V ABI (ELF), `struct elf_prstatus` of Linux's elfcore.h.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use xen_domain::mem::{Gpa, GuestMem};

const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const READ_WRITE_EXECUTE: u32 = 7;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PRSTATUS: usize = 336;
/// Where in it the thread's id and the registers are.
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;
const PAGE: u64 = 4096;
/// Copied at once.
const CHUNK: usize = 1 << 20;
/// A run of zeros of this length becomes a hole.
const HOLE: usize = 64 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// The registers of a vCPU in the order of Linux's `user_regs_struct`: r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx,
/// rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs.
pub type Registers = [u64; 27];

/// Write the core of a guest that stands still to a new file at `path`, in the place of one that is there. `stop` set: given up.
///
/// # Errors
/// The host's, and `Interrupted`; no file is left then.
pub fn write(
    path: &Path,
    memory: &dyn GuestMem,
    regions: &[(u64, u64)],
    vcpus: &[Registers],
    stop: &AtomicBool,
) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let written = fill(file, memory, regions, vcpus, stop);
    if written.is_err() {
        fs::remove_file(path)?;
    }
    written
}

fn fill(
    mut file: File,
    memory: &dyn GuestMem,
    regions: &[(u64, u64)],
    vcpus: &[Registers],
    stop: &AtomicBool,
) -> io::Result<()> {
    let head = head(regions, vcpus);
    file.write_all(&head)?;
    let mut at = first_page(head.len());
    let mut buffer = vec![0; CHUNK];
    for &(base, size) in regions {
        for offset in (0..size).step_by(CHUNK) {
            if stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the domain is being destroyed"));
            }
            let length = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
            let Some(chunk) = buffer.get_mut(..length) else { continue };
            memory
                .read(Gpa(base + offset), chunk)
                .map_err(|_| io::Error::other("memory that is not there"))?;
            for piece in chunk.chunks(HOLE) {
                if ZEROS.get(..piece.len()) != Some(piece) {
                    file.seek(SeekFrom::Start(at))?;
                    file.write_all(piece)?;
                }
                at += piece.len() as u64;
            }
        }
    }
    file.set_len(at)
}

/// The file up to the first page of memory.
fn head(regions: &[(u64, u64)], vcpus: &[Registers]) -> Vec<u8> {
    let notes: Vec<u8> =
        (1..).zip(vcpus).flat_map(|(thread, registers)| prstatus(thread, registers)).collect();
    let tables = HEADER + PROGRAM_HEADER * (regions.len() + 1);
    let mut head = elf_header(regions.len() + 1);
    head.extend(program_header(PT_NOTE, 0, tables as u64, 0, notes.len() as u64));
    let mut offset = first_page(tables + notes.len());
    for &(base, size) in regions {
        head.extend(program_header(PT_LOAD, READ_WRITE_EXECUTE, offset, base, size));
        offset += size;
    }
    head.extend(notes);
    head
}

fn first_page(after: usize) -> u64 {
    (after as u64).next_multiple_of(PAGE)
}

fn elf_header(segments: usize) -> Vec<u8> {
    // 64-bit, little-endian, version 1.
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([ET_CORE, EM_X86_64].iter().flat_map(|half| half.to_le_bytes()));
    header.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    header.extend([0, HEADER as u64, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    header.extend(0u32.to_le_bytes());
    let segments = u16::try_from(segments).unwrap_or(u16::MAX);
    header.extend([64, 56, segments, 0, 0, 0].iter().flat_map(|half: &u16| half.to_le_bytes()));
    header
}

fn program_header(kind: u32, flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut header: Vec<u8> = [kind, flags].iter().flat_map(|word| word.to_le_bytes()).collect();
    // Virtual, then physical address: the same, as nobody says which address space would be meant.
    let words = [offset, address, address, size, size, if kind == PT_LOAD { PAGE } else { 4 }];
    header.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    header
}

/// The note of one vCPU, as of a thread with this number.
fn prstatus(thread: u32, registers: &Registers) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = status.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(PRSTATUS_PID, &thread.to_le_bytes());
    let words: Vec<u8> = registers.iter().flat_map(|word| word.to_le_bytes()).collect();
    put(PRSTATUS_REGISTERS, &words);
    let lengths = [b"CORE\0".len(), PRSTATUS].map(|length| u32::try_from(length).unwrap_or(0));
    let mut note: Vec<u8> =
        lengths.iter().chain(&[NT_PRSTATUS]).flat_map(|word| word.to_le_bytes()).collect();
    note.extend(b"CORE\0\0\0\0");
    note.extend(status);
    note
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_core_holds_memory_and_registers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/core");
        let regions = [(0, 4 << 20), (1 << 32, 2 << 20)];
        let memory = Memory::new(&regions).unwrap();
        memory.write(Gpa(0x1234), b"low").unwrap();
        memory.write(Gpa((1 << 32) + 0x1f_fffd), b"end").unwrap();
        let vcpus: [Registers; 2] = [std::array::from_fn(|n| n as u64), [7; 27]];
        write(&path, &memory, &regions, &vcpus, &AtomicBool::new(false)).unwrap();

        let bytes = fs::read(&path).unwrap();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(&bytes[..7], b"\x7fELF\x02\x01\x01");
        assert_eq!(bytes[16..20], [4, 0, 62, 0], "a core of x86-64");
        assert_eq!((word(32), bytes[54], bytes[56]), (64, 56, 3), "three program headers");
        let segment = |n: usize| {
            let at = HEADER + n * PROGRAM_HEADER;
            (bytes[at], word(at + 8), word(at + 24), word(at + 32))
        };
        let (kind, notes, _, length) = segment(0);
        assert_eq!((kind, length), (4, 2 * (20 + 336)));
        let notes = usize::try_from(notes).unwrap();
        assert_eq!(&bytes[notes..notes + 16], b"\x05\0\0\0\x50\x01\0\0\x01\0\0\0CORE");
        let status = notes + 20;
        assert_eq!((bytes[status + 32], word(status + 112 + 16 * 8)), (1, 16), "vCPU 0 as thread 1, its rip");
        let (low, high) = (segment(1), segment(2));
        assert_eq!((low.0, low.2, low.3), (1, 0, 4 << 20));
        assert_eq!((high.0, high.2, high.3, high.1), (1, 1 << 32, 2 << 20, low.1 + low.3));
        assert_eq!(low.1 % PAGE, 0);
        let at = usize::try_from(low.1).unwrap() + 0x1234;
        assert_eq!(&bytes[at..at + 3], b"low");
        assert!(bytes.ends_with(b"end"));
        let meta = fs::metadata(&path).unwrap();
        assert!(meta.blocks() * 512 < 1 << 20, "zeros take no room");
        assert_eq!(meta.mode() & 0o777, 0o600);

        let error = write(&path, &memory, &regions, &vcpus, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(!path.exists(), "nothing half-made is left");
    }
}
