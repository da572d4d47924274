//! xlr-pygrub as a process: real images, what it answers, and that it is confined.
#![expect(clippy::unwrap_used, reason = "a panic is the verdict of a test")]

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use xen_emu_api::bootloader::{Answer, Bootloader, Found, Piece, Request};
use xen_emu_api::device::DiskFormat;

/// The tools of the file systems are not everywhere, and of an ordinary user's not in PATH.
fn program(tool: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(tool);
    Command::new(if sbin.exists() { sbin.as_os_str() } else { tool.as_ref() })
}

fn has(tool: &str) -> bool {
    let there = program(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        let required = std::env::var_os("XLR_TOOLS_REQUIRED").is_some();
        assert!(!required, "XLR_TOOLS_REQUIRED is set, but there is no {tool}");
        println!("SKIP: no {tool}");
    }
    there
}

fn ask(image: &Path, format: DiskFormat) -> (Answer, Vec<u8>) {
    ask_for(image, format, Bootloader::default())
}

fn ask_for(image: &Path, format: DiskFormat, wish: Bootloader) -> (Answer, Vec<u8>) {
    let request = Request { image: image.to_owned(), format, wish };
    let text = serde_json::to_string(&request).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_xlr-pygrub")).arg(text).env("RUST_BACKTRACE", "1").output().unwrap();
    let end = output
        .stdout
        .iter()
        .position(|&b| b == b'\n')
        .unwrap_or_else(|| panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    let (line, rest) = output.stdout.split_at(end + 1);
    (serde_json::from_slice(line).unwrap(), rest.to_vec())
}

/// A tree with a kernel behind a symlink, and a ramdisk.
fn tree(folder: &Path, menu: &str) {
    let boot = folder.join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(boot.join("vmlinuz-1"), noise).unwrap();
    std::os::unix::fs::symlink("boot/vmlinuz-1", folder.join("vmlinuz")).unwrap();
    fs::write(boot.join("initrd-1"), "the ramdisk").unwrap();
    fs::write(boot.join("grub/grub.cfg"), menu).unwrap();
}

const MENU: &str =
    "menuentry Linux {\nlinux /vmlinuz root=/dev/xvda1 ro\ninitrd /boot/initrd-1 /boot/initrd-1\n}\n";

fn mke2fs(folder: &Path, image: &Path, options: &[&str]) {
    let mut command = program("mke2fs");
    command.args(["-q", "-F", "-d"]).arg(folder).args(options).arg(image).arg("16m");
    assert!(command.stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success(), "{options:?}");
}

fn expected() -> Answer {
    let piece = |path: &str, size| Piece { path: path.into(), size };
    Answer::Found(Found {
        title: "Linux".into(),
        kernel: piece("/vmlinuz", 3_000_000),
        ramdisks: vec![piece("/boot/initrd-1", 11); 2],
        cmdline: "root=/dev/xvda1 ro".into(),
    })
}

#[test]
fn every_ext_on_whole_disks_and_partitions() {
    if !has("mke2fs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (files, image) = (dir.path().join("files"), dir.path().join("image"));
    tree(&files, MENU);
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext3"],
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file", "-b", "4096"],
        &["-t", "ext4", "-O", "^metadata_csum,^64bit,^has_journal"],
    ] {
        let _ = fs::remove_file(&image);
        mke2fs(&files, &image, options);
        let (answer, bytes) = ask(&image, DiskFormat::Raw);
        assert_eq!(answer, expected(), "{options:?}");
        let kernel = fs::read(files.join("boot/vmlinuz-1")).unwrap();
        assert!(bytes == [&kernel[..], b"the ramdiskthe ramdisk"].concat(), "{options:?}");
    }
    // The last as partition 1 of an MBR.
    let whole = fs::read(&image).unwrap();
    let mut disk = fs::File::create(dir.path().join("disk")).unwrap();
    let mut mbr = [0u8; 512];
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    mbr[446 + 12..446 + 16].copy_from_slice(&u32::try_from(whole.len() / 512).unwrap().to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all(&mbr).unwrap();
    disk.seek(SeekFrom::Start(2048 * 512)).unwrap();
    disk.write_all(&whole).unwrap();
    assert_eq!(ask(&dir.path().join("disk"), DiskFormat::Raw).0, expected());
    if has("qemu-img") {
        let qcow2 = dir.path().join("qcow2");
        for options in [&["-q"][..], &["-q", "-c"]] {
            let mut command = program("qemu-img");
            command.arg("convert").args(options).args(["-O", "qcow2"]).arg(&image).arg(&qcow2);
            assert!(command.status().unwrap().success());
            let (answer, bytes) = ask(&qcow2, DiskFormat::Qcow2);
            assert_eq!(answer, expected());
            let kernel = fs::read(files.join("boot/vmlinuz-1")).unwrap();
            assert!(bytes == [&kernel[..], b"the ramdiskthe ramdisk"].concat(), "{options:?}");
        }
    }
}

/// The kernel and the menu of a guest that was killed are in its journal: the first blocks of both as they were committed.
#[test]
fn a_journal_is_replayed() {
    if !has("mke2fs") || !has("debugfs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (files, image, script) =
        (dir.path().join("files"), dir.path().join("image"), dir.path().join("script"));
    tree(&files, &MENU.replace("ro\n", "rw\n"));
    let kernel = fs::read(files.join("boot/vmlinuz-1")).unwrap();
    for (kind, open) in [("ext3", "jo"), ("ext4", "jo -c -v 3")] {
        let _ = fs::remove_file(&image);
        mke2fs(&files, &image, &["-t", kind, "-b", "1024", "-J", "size=1"]);
        let place = |path: &str| {
            let output =
                program("debugfs").args(["-R", &format!("blocks {path}")]).arg(&image).output().unwrap();
            String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
        };
        let mut menu = MENU.as_bytes().to_vec();
        menu.resize(1024, b'\n');
        let copies = dir.path().join("copies");
        fs::write(&copies, [&menu[..], &[0x5a; 1024]].concat()).unwrap();
        let blocks = format!("{},{}", place("/boot/grub/grub.cfg"), place("/boot/vmlinuz-1"));
        fs::write(&script, format!("{open}\njw -b {blocks} {}\njc\n", copies.display())).unwrap();
        let mut command = program("debugfs");
        command.args(["-w", "-f"]).arg(&script).arg(&image).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        let (answer, bytes) = ask(&image, DiskFormat::Raw);
        assert_eq!(answer, expected(), "{kind}");
        assert!(bytes[..1024] == [0x5a; 1024] && bytes[1024..kernel.len()] == kernel[1024..], "{kind}");
    }
}

/// An MBR does not say how large its sectors are; /boot may be a partition of its own, and its menu of the specification's kind.
#[test]
fn a_boot_partition_on_a_disk_of_4096_byte_sectors() {
    if !has("mke2fs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (files, image, disk) = (dir.path().join("files"), dir.path().join("image"), dir.path().join("disk"));
    let entry = "title Linux\nlinux /vmlinuz-1\ninitrd /initrd-1\noptions root=/dev/xvda2\n";
    let label = "default Linux\nlabel Linux\nkernel /vmlinuz-1\ninitrd /initrd-1\nappend root=/dev/xvda2\n";
    for (folder, menu, text) in
        [("loader/entries", "loader/entries/a.conf", entry), ("extlinux", "extlinux/extlinux.conf", label)]
    {
        let _ = fs::remove_dir_all(&files);
        fs::create_dir_all(files.join(folder)).unwrap();
        fs::write(files.join(menu), text).unwrap();
        fs::write(files.join("vmlinuz-1"), [7; 5000]).unwrap();
        fs::write(files.join("initrd-1"), "the ramdisk").unwrap();
        let _ = fs::remove_file(&image);
        mke2fs(&files, &image, &["-t", "ext4"]);
        let boot = fs::read(&image).unwrap();
        for sector in [512u32, 4096] {
            // A primary one that is swap, and the first logical one.
            let mut bytes = vec![0u8; (4 << 20) + boot.len()];
            let mut row = |table: usize, at: usize, kind: u8, start: u32, size: u32| {
                let table = table * sector as usize;
                bytes[table + 446 + 16 * at + 4] = kind;
                bytes[table + 446 + 16 * at + 8..][..4].copy_from_slice(&start.to_le_bytes());
                bytes[table + 446 + 16 * at + 12..][..4].copy_from_slice(&size.to_le_bytes());
                bytes[table + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
            };
            let mib = (1 << 20) / sector;
            row(0, 0, 0x82, mib, mib);
            row(0, 1, 0x05, 2 * mib, 18 * mib);
            row(2 * mib as usize, 0, 0x83, 2 * mib, 16 * mib);
            bytes[4 << 20..].copy_from_slice(&boot);
            fs::write(&disk, &bytes).unwrap();
            let (answer, sent) = ask(&disk, DiskFormat::Raw);
            let Answer::Found(found) = answer else { panic!("{menu}, {sector}: {answer:?}") };
            let about = (found.title.as_str(), found.kernel.path.as_str(), found.cmdline.as_str());
            assert_eq!(about, ("Linux", "/vmlinuz-1", "root=/dev/xvda2"), "{menu}, {sector}");
            assert!(sent == [&[7; 5000][..], b"the ramdisk"].concat(), "{menu}, {sector}");
        }
    }
}

#[test]
fn fat_and_what_is_no_boot_disk() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("fat");
    let mut file = fs::File::options().create_new(true).read(true).write(true).open(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    fatfs::format_volume(&mut file, fatfs::FormatVolumeOptions::new()).unwrap();
    let fat = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    let root = fat.root_dir();
    let put = |path: &str, text: &[u8]| root.create_file(path).unwrap().write_all(text).unwrap();
    root.create_dir("loader").unwrap().create_dir("entries").unwrap();
    put("loader/entries/a-long-name.conf", b"title Arch\nlinux /vmlinuz-linux\noptions rw\n");
    put("vmlinuz-linux", &[7; 100_000]);
    drop(root);
    fat.unmount().unwrap();
    let (answer, bytes) = ask(&image, DiskFormat::Raw);
    let Answer::Found(found) = answer else { panic!("{answer:?}") };
    assert_eq!((found.title.as_str(), found.cmdline.as_str(), bytes), ("Arch", "rw", vec![7; 100_000]));
    let said = |image: &Path, format| match ask(image, format).0 {
        Answer::Nothing { why } => format!("nothing: {why}"),
        Answer::Failed { why } => why,
        Answer::Found(found) => panic!("{found:?}"),
    };
    let empty = dir.path().join("empty");
    fs::write(&empty, [0; 100_000]).unwrap();
    let nothing = "nothing: nothing to boot from (the whole disk: no file system known here)";
    assert_eq!(said(&empty, DiskFormat::Raw), nothing);
    fs::write(&empty, b"XFSB").unwrap();
    assert!(said(&empty, DiskFormat::Raw).contains("XFS, which cannot be read"));
    for (at, magic, name) in [(512, &b"LABELONE"[..], "LVM"), (0x1_0040, b"_BHRfS_M", "btrfs")] {
        let mut bytes = vec![0; 100_000];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&empty, bytes).unwrap();
        let nothing = format!("nothing: nothing to boot from (the whole disk: {name}, which cannot be read)");
        assert_eq!(said(&empty, DiskFormat::Raw), nothing);
    }
    fs::write(&empty, b"XFSB").unwrap();
    assert!(said(dir.path(), DiskFormat::Raw).ends_with("neither a file nor a block device"));
    assert!(
        said(&dir.path().join("no"), DiskFormat::Raw).ends_with("No such file or directory (os error 2)")
    );
    assert!(said(&empty, DiskFormat::Qcow2).contains("qcow2"));
}

/// With all the rights that the unpackers have to do without.
#[test]
fn a_packed_kernel_comes_unpacked() {
    use bzimage::testing::{Pack, bzimage};
    if !has("mke2fs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (files, image) = (dir.path().join("files"), dir.path().join("image"));
    tree(&files, MENU);
    let mut elf = bzimage::ELF.to_vec();
    elf.extend((0..1_000_000u32).map(|i| (i / 3).to_le_bytes()[0]));
    let packed = Pack::ALL.into_iter().filter(|pack| !matches!(pack, Pack::None));
    for (pack, kernel) in packed.map(|pack| (pack, bzimage(&elf, pack))) {
        fs::write(files.join("boot/vmlinuz-1"), &kernel).unwrap();
        let _ = fs::remove_file(&image);
        mke2fs(&files, &image, &["-t", "ext4"]);
        let (Answer::Found(found), bytes) = ask(&image, DiskFormat::Raw) else { panic!("{pack:?}") };
        assert_eq!(found.kernel.size, elf.len() as u64, "{pack:?}");
        assert!(bytes == [&elf[..], b"the ramdiskthe ramdisk"].concat(), "{pack:?}");
    }
    let mut damaged = bzimage(&elf, Pack::Gzip);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    fs::write(files.join("boot/vmlinuz-1"), damaged).unwrap();
    let _ = fs::remove_file(&image);
    mke2fs(&files, &image, &["-t", "ext4"]);
    let (Answer::Failed { why }, _) = ask(&image, DiskFormat::Raw) else { panic!("damage") };
    assert!(why.starts_with("kernel /vmlinuz: gzip payload cannot be unpacked"), "{why}");
}

/// A qcow2 header with tables of that many entries, which stands on `backing`.
fn qcow2_header(l1_entries: u32, backing: &str) -> Vec<u8> {
    let mut image = vec![0; 4 << 16];
    let name = u32::try_from(backing.len()).unwrap();
    for (at, value) in [
        (0, 0x5146_49fb),
        (4, 3),
        (12, 512),
        (16, name),
        (20, 16),
        (28, 1 << 20),
        (36, l1_entries),
        (44, 3 << 16),
        (52, 1 << 16),
        (56, 1),
        (96, 4),
        (100, 112),
    ] {
        image[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    image[112..116].copy_from_slice(&0xe279_2acau32.to_be_bytes());
    image[116..120].copy_from_slice(&5u32.to_be_bytes());
    image[120..125].copy_from_slice(b"qcow2");
    image[512..512 + backing.len()].copy_from_slice(backing.as_bytes());
    image
}

#[test]
fn hostile_images_and_menus_get_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    for (header, expected) in [
        (qcow2_header(1, "image"), "more than 200 images on top of each other, or a loop"),
        (qcow2_header(u32::MAX, ""), "image: qcow2"),
    ] {
        fs::write(&image, header).unwrap();
        let (answer, bytes) = ask(&image, DiskFormat::Qcow2);
        let Answer::Failed { why } = &answer else { panic!("{answer:?}") };
        assert!(why.contains(expected) && bytes.is_empty(), "{why}");
    }
    if !has("mke2fs") {
        return;
    }
    let (files, image) = (dir.path().join("files"), dir.path().join("ext"));
    tree(
        &files,
        &(0..9000).map(|n| format!("menuentry '\u{1b}[2J{n}' {{\nlinux /x\n}}\n")).collect::<String>(),
    );
    mke2fs(&files, &image, &["-t", "ext4"]);
    let wish = Bootloader { entry: Some("none".into()), ..Bootloader::default() };
    let Answer::Failed { why } = ask_for(&image, DiskFormat::Raw, wish).0 else {
        panic!("an entry that is not there")
    };
    assert!(why.len() < 8192 && why.ends_with(" ...") && !why.contains('\u{1b}'), "{why:?}");
    assert!(why.starts_with("(hd0)/boot/grub/grub.cfg: no entry \"none\": there are ["), "{why}");
}

#[test]
fn a_kernel_of_4_gib_is_refused() {
    if !has("mke2fs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (files, image) = (dir.path().join("files"), dir.path().join("image"));
    tree(&files, MENU);
    // All hole.
    fs::File::create(files.join("boot/vmlinuz-1")).unwrap().set_len(4 << 30).unwrap();
    mke2fs(&files, &image, &["-t", "ext4"]);
    let (answer, bytes) = ask(&image, DiskFormat::Raw);
    let why = "kernel /vmlinuz: 4294967296 bytes, at most 268435456 are accepted".into();
    assert_eq!((answer, bytes), (Answer::Failed { why }, vec![]));
}
