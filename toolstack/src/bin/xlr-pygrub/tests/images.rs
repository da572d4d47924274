//! Damaged and meaningless disks.

use proptest::prelude::*;
use std::fs;
use std::io::Read;
use std::rc::Rc;
use std::sync::OnceLock;
use xen_emu_api::bootloader::Bootloader;

/// An ext4 file system with a menu; `None` where there is no mke2fs.
fn good() -> Option<&'static Vec<u8>> {
    static GOOD: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let (files, image) = (dir.path().join("files"), dir.path().join("image"));
        fs::create_dir_all(files.join("boot/grub")).unwrap();
        fs::write(files.join("boot/vmlinuz"), [7; 300_000]).unwrap();
        std::os::unix::fs::symlink("boot/vmlinuz", files.join("vmlinuz")).unwrap();
        fs::write(files.join("boot/grub/grub.cfg"), "menuentry Linux {\nlinux /vmlinuz ro\n}\n").unwrap();
        let mut command = super::tools::tool("mke2fs")?;
        command
            .args(["-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "-d"])
            .arg(&files)
            .arg(&image)
            .arg("4m");
        assert!(command.status().unwrap().success());
        Some(fs::read(&image).unwrap())
    };
    GOOD.get_or_init(make).as_ref()
}

/// Look at everything that can be reached on a disk, as the program does.
pub fn look(image: Vec<u8>) {
    let disk: crate::disk::Shared = Rc::new(image);
    let volumes = crate::volumes::Volumes::open(&disk);
    if let Ok(Some(choice)) = crate::choice::choose(&volumes, &Bootloader::default())
        && let Ok(kernel) = volumes.open_file(&choice.kernel)
    {
        let mut bytes = Vec::new();
        let _ = kernel.bytes.take(1 << 20).read_to_end(&mut bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Damage in the metadata of a file system, and noise after a partition table's magic.
    #[test]
    fn damaged_images_end(
        hits in prop::collection::vec((0usize..200_000, any::<u8>()), 1..40),
        noise in prop::collection::vec(any::<u8>(), 2048),
        gpt: bool,
    ) {
        let mut disk = noise;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        if gpt {
            disk[446..510].fill(0);
            disk[450] = 0xee;
            disk[512..520].copy_from_slice(b"EFI PART");
        }
        disk.resize(100_000, 3);
        look(disk);
        let Some(good) = good() else { return Ok(()) };
        let mut disk = good.clone();
        for (at, byte) in hits {
            disk[at] = byte;
        }
        look(disk);
    }
}
