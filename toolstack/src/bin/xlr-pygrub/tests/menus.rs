//! From the texts of menus to the choice.

use super::volumes;
use crate::choice::{Choice, choose};
use crate::volumes::Volumes;
use proptest::prelude::*;
use xen_emu_api::bootloader::Bootloader;

const DEBIAN: &str = include_str!("debian.cfg");
const UUID: &str = "3cdd6c2a-0e0e-4d1e-9d0b-3d2c1c1f8e11";

fn wish(entry: &str) -> Bootloader {
    Bootloader { entry: Some(entry.to_owned()), ..Bootloader::default() }
}

fn default(volumes: &Volumes) -> Choice {
    choose(volumes, &Bootloader::default()).unwrap().unwrap()
}

fn paths(choice: &Choice) -> (usize, &str, Vec<&str>) {
    let ramdisks = choice.ramdisks.iter().map(|place| place.path.as_str()).collect();
    (choice.kernel.volume, &choice.kernel.path, ramdisks)
}

#[test]
fn debian_with_its_submenus_and_environment() {
    let cfg = ("/boot/grub/grub.cfg", DEBIAN);
    let plain = volumes(&[("x", &[]), (UUID, &[cfg])]);
    let choice = default(&plain);
    assert_eq!(choice.title, "Debian GNU/Linux");
    let kernel = "/boot/vmlinuz-6.12.48+deb13-amd64";
    assert_eq!(paths(&choice), (1, kernel, vec!["/boot/initrd.img-6.12.48+deb13-amd64"]));
    assert_eq!(choice.cmdline, format!("root=UUID={UUID} ro quiet"));
    let recovery = format!("gnulinux-advanced-{UUID}>gnulinux-6.12.48+deb13-amd64-recovery-{UUID}");
    let saved = format!("# GRUB Environment Block\nnext_entry=0\nsaved_entry={recovery}\n####");
    let saved = volumes(&[("x", &[]), (UUID, &[cfg, ("/boot/grub/grubenv", &saved)])]);
    assert_eq!(default(&saved).cmdline, format!("root=UUID={UUID} ro single dis_ucode_ldr"));
    for (entry, title) in [
        ("1>1", "Debian GNU/Linux, with Linux 6.12.48+deb13-amd64 (recovery mode)"),
        ("1", "Debian GNU/Linux, with Linux 6.12.48+deb13-amd64"),
        ("Advanced options for Debian GNU/Linux>0", "Debian GNU/Linux, with Linux 6.12.48+deb13-amd64"),
        ("xen-gnulinux-simple-3cdd6c2a", "Debian GNU/Linux, with Xen hypervisor"),
    ] {
        assert_eq!(choose(&plain, &wish(entry)).unwrap().unwrap().title, title, "{entry}");
    }
    let xen = choose(&plain, &wish("2")).unwrap().unwrap();
    assert_eq!((xen.cmdline.as_str(), paths(&xen)), ("root=UUID=3cdd6c2a ro quiet", paths(&choice)));
    let said = format!("{:#}", choose(&plain, &wish("9")).unwrap_err());
    assert!(
        said.starts_with("(hd0,gpt2)/boot/grub/grub.cfg: no entry \"9\": there are [\"Debian GNU/Linux\", "),
        "{said}"
    );
    let custom =
        ("/boot/grub/custom.cfg", "menuentry mine {\nlinux (hd0,gpt1)/k a \"b  c\"\n}\nset default=mine");
    let custom = default(&volumes(&[("x", &[]), (UUID, &[cfg, custom])]));
    assert_eq!((custom.title.as_str(), custom.cmdline.as_str()), ("mine", "a b  c"));
    assert_eq!(paths(&custom), (0, "/k", vec![]));
}

#[test]
fn fedora_with_entries_of_the_boot_loader_specification() {
    let entry = |version: &str, options: &str| {
        format!(
            "title Fedora Linux ({version}) 40\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\noptions {options}\ngrub_users $grub_users\n"
        )
    };
    let old = entry("6.8.5-301.fc40.x86_64", "$kernelopts");
    let new = entry("6.10.6-200.fc40.x86_64", "root=UUID=7a7b ro $tuned_params");
    let rescue = entry("0-rescue-8f8f", "root=UUID=7a7b ro");
    let files = [
        ("/grub2/grub.cfg", include_str!("fedora.cfg")),
        ("/loader/entries/8f8f-0-rescue.conf", rescue.as_str()),
        ("/loader/entries/8f8f-6.8.5-301.fc40.x86_64.conf", &old),
        ("/loader/entries/8f8f-6.10.6-200.fc40.x86_64.conf", &new),
        ("/loader/entries/notes.txt", "linux /never"),
    ];
    let with = |more: &[(&str, &str)]| {
        let files = [&files, more].concat();
        volumes(&[("e5e5-0001", &[]), ("1b1c2d3e-0000-4000-8000-00000000b007", &files)])
    };
    let newest = default(&with(&[]));
    assert_eq!(
        paths(&newest),
        (1, "/vmlinuz-6.10.6-200.fc40.x86_64", vec!["/initramfs-6.10.6-200.fc40.x86_64.img"])
    );
    assert_eq!(newest.cmdline, "root=UUID=7a7b ro");
    let saved = ("/grub2/grubenv", "# GRUB\nsaved_entry=8f8f-6.8.5-301.fc40.x86_64\nboot_success=0\n###");
    let saved = default(&with(&[saved]));
    assert_eq!(saved.title, "Fedora Linux (6.8.5-301.fc40.x86_64) 40");
    assert!(
        saved.cmdline.starts_with("root=UUID=7a7b7c7d-0000-4000-8000-00000000f007 ro rootflags="),
        "{}",
        saved.cmdline
    );
    // Without GRUB, as systemd-boot has it.
    let systemd = [
        ("/loader/loader.conf", "timeout 3\ndefaults none\ndefault arch-lts*\n"),
        ("/loader/entries/arch.conf", "linux /a"),
        (
            "/loader/entries/arch-lts.conf",
            "title LTS\nlinux /b\ninitrd /ucode\ninitrd /i\noptions a\noptions b $c",
        ),
    ];
    let systemd = default(&volumes(&[("x", &systemd)]));
    assert_eq!((systemd.cmdline.as_str(), paths(&systemd)), ("a b $c", (0, "/b", vec!["/ucode", "/i"])));
}

#[test]
fn alpine_with_extlinux_and_old_guests_with_menu_lst() {
    let alpine = "# Generated by update-extlinux 6.04_pre1-r15\nDEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine/Linux Boot Menu\n\
        MENU HIDDEN\nMENU AUTOBOOT Alpine will be booted automatically in # seconds.\nTIMEOUT 10\nLABEL virt\n  \
        MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  \
        APPEND root=UUID=1111 modules=ext4 quiet rootfstype=ext4\nINCLUDE more.cfg\nMENU SEPARATOR\n";
    let more = "label ^old\n kernel /boot/k1\n append initrd=/boot/i1,i2 ro\n";
    let alpine = volumes(&[("x", &[("/boot/extlinux.conf", alpine), ("/boot/more.cfg", more)])]);
    let choice = default(&alpine);
    assert_eq!(
        (choice.title.as_str(), choice.cmdline.as_str()),
        ("Linux virt", "root=UUID=1111 modules=ext4 quiet rootfstype=ext4")
    );
    assert_eq!(paths(&choice), (0, "/boot/vmlinuz-virt", vec!["/boot/initramfs-virt"]));
    let old = choose(&alpine, &wish("^old")).unwrap().unwrap();
    assert_eq!((old.cmdline.as_str(), paths(&old)), ("ro", (0, "/boot/k1", vec!["/boot/i1", "/boot/i2"])));
    let legacy = default(&volumes(&[("x", &[("/boot/grub/menu.lst", include_str!("menu.lst"))])]));
    assert_eq!(legacy.cmdline, "root=/dev/xvda1 console=hvc0 ro single");
    assert_eq!(paths(&legacy), (0, "/boot/vmlinuz-3.2.0-4-amd64", vec!["/boot/initrd.img-3.2.0-4-amd64"]));
}

#[test]
fn the_language() {
    let grub = |text: &str| {
        default(&volumes(&[("x", &[("/boot/grub/grub.cfg", text), ("/there", ""), ("/broken", "if")])]))
            .cmdline
    };
    for (text, expected) in [
        ("linux /k a\\ b '$x' \"$x\" ; boot", "a b $x"),
        ("set x='1 2'; linux /k $x \"$x\"a ${x}b # no", "1 2 1 2a 1 2b"),
        ("for i in 1 2 3; do set x=\"$x$i\"; done; linux /k $x $?", "123 0"),
        ("function f { linux /k $2 $1 $#; }\nf a b", "b a 2"),
        ("if false; then linux /k 1; elif ! [ -z \"\" ]; then linux /k 2; else linux /k 3; fi", "3"),
        ("while [ x$x != xaaa ]; do x=a$x; done\nlinux /k $x", "aaa"),
        ("if [ -e /there -a ! -s /there -a ( 3 -lt 12 -o -d /no ) ]; then linux /k yes; fi", "yes"),
        ("if test a = b -o 2 -ge 3; then linux /k 1; else linux /k 2; fi", "2"),
        ("if search --file --set=d /there; then linux /k $d; fi", "hd0,gpt1"),
        ("if search -l nolabel; then linux /k 1; else linux /k 2 \\\n 3; fi", "2 3"),
        ("menuentry x --id=y{linux /k $1 b}", "b"),
        ("menuentry 'a>b' --class c 'par' {\n linux /k $1\n}\nset default='a>>b'", "par"),
        ("set default=7\nmenuentry 1 {\nlinux /k first\n}", "first"),
        ("if ! ! ! false; then linux /k 1; else linux /k 2; fi", "1"),
        ("source /broken; linux /k on", "on"),
    ] {
        assert_eq!(grub(text), expected, "{text}");
    }
    for (text, expected) in [
        ("if true; then", "`fi` is missing"),
        ("menuentry x {", "`}` is missing"),
        ("fi", "`fi` without a beginning"),
        ("while true; do true; done", "no end after"),
        ("function f { f; }; f", "within each other"),
        ("x=aaaaaaaaaaaaaaaa\nwhile true; do x=$x$x; done", "a word of more than"),
        ("menuentry x {\nchainloader +1\n}", "entry \"x\" loads no Linux kernel"),
        (&"if ".repeat(5000), "within each other"),
        (&format!("x='{}'\nlinux {}", "a ".repeat(8000), "$x ".repeat(100_000)), "a command of more than"),
        (&format!("{}false", "! ".repeat(200_000)), "loads no Linux kernel"),
        ("while true; do source /boot/grub/grub.cfg; done", "within each other"),
        ("while true; do load_env -f /boot/grub/grub.cfg; x=1; done", "no end after"),
        ("submenu x {\nsubmenu y {\n}\n}", "a submenu without an entry"),
    ] {
        let volumes = volumes(&[("x", &[("/boot/grub/grub.cfg", text)])]);
        let said = format!("{:#}", choose(&volumes, &Bootloader::default()).unwrap_err());
        assert!(said.contains(expected), "{text:.40}: {said}");
    }
}

#[test]
fn ubuntu_with_a_boot_partition_and_an_entry_of_a_submenu() {
    let cfg = include_str!("ubuntu.cfg");
    let with = |env: &str| {
        volumes(&[("x", &[]), (UUID, &[("/grub/grub.cfg", cfg), ("/grub/grubenv", env)]), ("y", &[])])
    };
    let first = default(&with("# GRUB Environment Block\n########"));
    assert_eq!(first.title, "Ubuntu");
    assert_eq!(first.cmdline, "root=UUID=0d0e0a0d-0000-4000-8000-00000000beef ro quiet splash");
    assert_eq!(paths(&first), (1, "/vmlinuz-6.8.0-45-generic", vec!["/initrd.img-6.8.0-45-generic"]));
    let root = "0d0e0a0d-0000-4000-8000-00000000beef";
    let old = format!("gnulinux-advanced-{root}>gnulinux-6.8.0-41-generic-advanced-{root}");
    for volumes in
        [with(&format!("saved_entry={old}\n")), with(&format!("recordfail=1\nsaved_entry={old}\n##"))]
    {
        let choice = default(&volumes);
        assert_eq!(choice.title, "Ubuntu, with Linux 6.8.0-41-generic");
        assert_eq!(paths(&choice).1, "/vmlinuz-6.8.0-41-generic");
    }
    for entry in ["1>2", "Advanced options for Ubuntu>Ubuntu, with Linux 6.8.0-41-generic", &old] {
        let choice = choose(&with(""), &wish(entry)).unwrap().unwrap();
        assert_eq!(choice.title, "Ubuntu, with Linux 6.8.0-41-generic", "{entry}");
    }
    let by_path = Bootloader { kernel: Some("/boot/grub/grubenv".into()), ..Bootloader::default() };
    let found = choose(&with(""), &by_path).unwrap().unwrap();
    assert_eq!(paths(&found), (1, "/grub/grubenv", vec![]), "as seen from the running system");
}

#[test]
fn what_is_rare_in_menus() {
    // An environment with what GRUB escapes.
    let cfg = ("/boot/grub/grub.cfg", "load_env\nlinux /k \"$a\" $b");
    let env = ("/boot/grub/grubenv", "# GRUB Environment Block\na=x\\\\y\nb=1\\\n2\n####");
    assert_eq!(default(&volumes(&[("x", &[cfg, env])])).cmdline, "x\\y 1 2");
    // Entries that are counted, one of them without tries.
    let entries = [
        ("/loader/loader.conf", "default new*"),
        ("/loader/entries/new+0-3.conf", "version 3\nlinux /new\noptions new"),
        ("/loader/entries/mid+2-1.conf", "version 2\nlinux /mid\noptions mid"),
        ("/loader/entries/old+x.conf", "version 1\nlinux /old\noptions old"),
    ];
    assert_eq!(default(&volumes(&[("x", &entries)])).cmdline, "new", "asked for by name");
    let counted = volumes(&[("x", &entries[1..])]);
    assert_eq!(default(&counted).cmdline, "mid");
    assert_eq!(choose(&counted, &wish("old+x")).unwrap().unwrap().cmdline, "old");
    // A theme that is missing, and a choice that is made when time is over.
    let menu = "include themes/none.cfg\ndefault vesamenu.c32\nontimeout b\nlabel a\nkernel /a\nlabel b\nkernel ../b x\n";
    let choice = default(&volumes(&[("x", &[("/boot/extlinux/extlinux.conf", menu)])]));
    assert_eq!((choice.cmdline.as_str(), paths(&choice)), ("x", (0, "/boot/extlinux/../b", vec![])));
    // Own /boot.
    let alpine = "DEFAULT lts\nLABEL lts\nLINUX vmlinuz-lts\nINITRD initramfs-lts\nAPPEND root=/dev/xvda2\n";
    let choice = default(&volumes(&[("x", &[("/extlinux.conf", alpine)]), ("y", &[])]));
    assert_eq!(paths(&choice), (0, "/vmlinuz-lts", vec!["/initramfs-lts"]));
    // A file that includes itself often.
    let wild = "include extlinux.conf\n".repeat(1000);
    let said = choose(&volumes(&[("x", &[("/extlinux.conf", wild.as_str())])]), &Bootloader::default());
    assert!(format!("{:#}", said.unwrap_err()).contains("within each other"));
}

#[test]
fn wishes_go_before_the_menu() {
    let disk = volumes(&[("a", &[("/x", "")]), ("b", &[("/k", "kernel"), ("/i", "ramdisk")])]);
    let wish = Bootloader {
        kernel: Some("k".into()),
        ramdisk: Some("/i".into()),
        args: Some("single".into()),
        entry: None,
    };
    let choice = choose(&disk, &wish).unwrap().unwrap();
    assert_eq!((choice.cmdline.as_str(), paths(&choice)), ("single", (1, "/k", vec!["/i"])));
    assert_eq!(choose(&disk, &Bootloader::default()).unwrap(), None);
    assert!(disk.describe().contains("partition 2: memory, no boot menu"), "{}", disk.describe());
}

proptest! {
    /// Whatever stands in a menu: an answer or an error, no panic, and an end.
    #[test]
    fn any_menu(
        file in prop::sample::select(vec!["/boot/grub/grub.cfg", "/boot/extlinux.conf", "/loader/entries/a.conf", "/boot/grub/menu.lst"]),
        words in prop::collection::vec(prop::sample::select(vec![
            "if", "then", "fi", "else", "elif", "[", "]", "{", "}", "menuentry", "submenu", "function", "f", "while", "do", "done",
            "for", "in", "$x", "${x}", "\"", "'", "\\", "\n", ";", "#", "!", "set", "x=$x$x", "default=0>1", "linux", "/k", "initrd",
            "source", "$config_file", "search", "--set=x", "blscfg", "load_env", "-f", "(", "LABEL", "DEFAULT", "INCLUDE",
            "/boot/extlinux.conf", "KERNEL", "title", "kernel", "root", "(hd0,0)", "(hd0,gpt1)/", "options", "é",
        ]), 0..60),
        noise in prop::collection::vec(any::<char>(), 0..8),
    ) {
        let text = format!("{}{}", words.join(" "), noise.iter().collect::<String>());
        let disk = volumes(&[("x", &[(file, text.as_str())])]);
        let _ = choose(&disk, &Bootloader::default());
        let _ = choose(&disk, &wish("1>f"));
    }
}
