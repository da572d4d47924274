//! Disks, network cards and channels under xlr: configured, attached, listed, detached.

use crate::bed::{Bed, FakeDomain, Ran};
use std::path::PathBuf;
use xen_emu_api::control::Request;
use xen_emu_api::device::{Device, DiskFormat};

const DEVICES: &str = "disk = ['disk.img,raw,xvda,w', ',empty,hdc:cdrom,r']
vif = ['mac=00:16:3e:00:00:01,bridge=br0']
channel = ['connection=pty,name=agent']";

/// A domain with one of each, and the images `disk.img`, `more.img` and `disc.iso`.
fn domain(bed: &Bed) -> FakeDomain {
    for name in ["disk.img", "more.img", "disc.iso"] {
        std::fs::write(bed.path(name), [0; 2048]).unwrap();
    }
    let domain = bed.expect_domain(1);
    let ran = bed.xlr(&["create", "-q", bed.config(DEVICES)]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    domain.join().unwrap()
}

fn xlr(bed: &Bed, line: &str) -> Ran {
    bed.xlr(&line.split(' ').collect::<Vec<_>>())
}

fn silent(bed: &Bed, line: &str) {
    let ran = xlr(bed, line);
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (0, "", ""), "{line}");
}

#[test]
fn lists_have_xl_s_columns() {
    let bed = Bed::new();
    domain(&bed);
    let header = "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n";
    let disks = "51712 0   1      4     8      8        /local/domain/0/backend/vbd/1/51712\n\
        5632  0   1      4     8      8        /local/domain/0/backend/vbd/1/5632\n";
    assert_eq!(xlr(&bed, "block-list web").out, format!("{header}{disks}"));
    assert_eq!(xlr(&bed, "block-list web 1").out, format!("{header}{disks}{disks}"));
    assert_eq!(
        xlr(&bed, "network-list web").out,
        "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n\
         0   0  00:16:3e:00:00:01     0     4     -1   522/523         /local/domain/0/backend/vif/1/0\n"
    );
    assert_eq!(
        xlr(&bed, "channel-list web").out,
        "Idx BE state evt-ch ring-ref connection                               \n\
         0   0  4     13     9        pty        /dev/pts/7                    \n"
    );
    let json: serde_json::Value = serde_json::from_str(&xlr(&bed, "network-list --json web").out).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["devices"][0]["state"]), (&"web".into(), &4.into()));
    let long: serde_json::Value = serde_json::from_str(&xlr(&bed, "list -l web").out).unwrap();
    assert_eq!(long[0]["config"]["disks"][1]["format"], "empty");
    for line in [
        "block-list nosuch",
        "network-list nosuch",
        "channel-list web nosuch",
        "block-attach nosuch /x,,xvda",
    ] {
        let ran = xlr(&bed, &format!("{line}{}", if line.starts_with("block-a") { " r" } else { "" }));
        let unknown = "nosuch is an invalid domain identifier (rc=-6)\n";
        assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (1, "", unknown), "{line}");
    }
}

#[test]
fn disks_come_and_go() {
    let bed = Bed::new();
    let domain = domain(&bed);
    silent(&bed, "block-attach web more.img,raw,xvdb,w");
    silent(&bed, "block-attach web phy:more.img xvdc r");
    let disk = |request| match request {
        Request::Attach { device: Device::Disk(disk) } => Some((disk.vdev, disk.target, disk.writable)),
        _ => None,
    };
    let attached: Vec<_> = domain.requests().into_iter().filter_map(disk).collect();
    let image = Some(std::fs::canonicalize(bed.path("more.img")).unwrap());
    assert_eq!(attached, [("xvdb".into(), image.clone(), true), ("xvdc".into(), image, false)]);
    assert_eq!(xlr(&bed, "block-list web").out.lines().count(), 5);
    silent(&bed, "block-detach web xvdb");
    silent(&bed, "block-detach -f web 51744");
    assert!(domain.requests().contains(&Request::Detach { kind: "vbd".into(), devid: 51744, force: true }));
    assert_eq!(xlr(&bed, "block-list web").out.lines().count(), 3);
    let here = std::fs::canonicalize(bed.path("")).unwrap();
    let here = here.display();
    for (line, expected) in [
        ("block-detach web xvdb", "Error: Device xvdb not connected.".to_owned()),
        (
            "block-detach web nix",
            "invalid vdev `nix`: xvda, xvda1, hdc, sda, d0p1 or a number such as 51712 are vdevs".into(),
        ),
        (
            "block-attach web more.img,raw,xvda,w",
            format!("domain 'web' (id 1): disk: vdev xvda is taken by another disk ({here}/disk.img)"),
        ),
        (
            "block-attach web nope.img,raw,xvdb,w",
            format!("Disk vdev=xvdb failed to stat: {here}/nope.img: No such file or directory (os error 2)"),
        ),
        (
            "block-attach web more.img,zip,xvdb,w",
            "disk: unknown format `zip`: raw and qcow2 are known".into(),
        ),
        (
            "block-attach web more.img,raw,xvdz,w",
            "domain 'web' (id 1): xvdz: its image is locked by domain 'db' (id 7)".into(),
        ),
        ("block-resize web xvda much", "invalid size `much': 20G, 512M or bytes in multiples of 512".into()),
        ("cd-insert web xvda disc.iso", "domain 'web' (id 1): xvda is no CD drive".into()),
        (
            "cd-insert web hdc gone.iso",
            format!("Disk vdev=hdc failed to stat: {here}/gone.iso: No such file or directory (os error 2)"),
        ),
        (
            "cd-insert web hdc disc.iso vmdk",
            "vmdk images are not supported: qemu-img convert -O qcow2 makes one that is".into(),
        ),
        ("cd-insert web hdc disc.iso empty", "an image is not empty: cd-eject leaves the drive empty".into()),
        ("cd-eject web hdd", "Error: Device hdd not connected.".into()),
    ] {
        let ran = xlr(&bed, line);
        assert_eq!(
            (ran.status, ran.out.as_str(), ran.err.as_str()),
            (1, "", format!("{expected}\n").as_str()),
            "{line}"
        );
    }
    assert_eq!(xlr(&bed, "block-list web").out.lines().count(), 3, "nothing stays of what failed");
}

#[test]
fn discs_and_sizes_change() {
    let bed = Bed::new();
    let domain = domain(&bed);
    std::fs::write(bed.path("disc.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    let dry = xlr(&bed, "-N cd-insert web hdc disc.iso");
    assert!(
        dry.out.starts_with("disk: {\n    \"pdev_path\": \"/") && dry.out.contains("\"is_cdrom\": 1"),
        "{}",
        dry.out
    );
    for line in [
        "cd-insert web hdc disc.iso",
        "cd-insert web 5632 disc.qcow2 qcow2",
        "cd-eject web hdc",
        "block-resize web xvda",
        "block-resize web xvda 1M",
    ] {
        silent(&bed, line);
    }
    // What a disc begins with is up to whoever has made it: raw is what it is, unless somebody here says otherwise.
    let plain = xlr(&bed, "cd-insert web 5632 disc.qcow2");
    assert!(
        plain.status == 0 && plain.err.contains("looks like a qcow2 image but is used as raw"),
        "{}",
        plain.err
    );
    let path = |name: &str| Some(std::fs::canonicalize(bed.path(name)).unwrap());
    let media = |target: Option<PathBuf>, format| Request::Media { devid: 5632, target, format };
    let expected = [
        media(path("disc.iso"), DiskFormat::Raw),
        media(path("disc.qcow2"), DiskFormat::Qcow2),
        media(None, DiskFormat::Raw),
        Request::Resize { devid: 51712, bytes: None },
        Request::Resize { devid: 51712, bytes: Some(1 << 20) },
        media(path("disc.qcow2"), DiskFormat::Raw),
    ];
    let mut asked = domain.requests();
    asked.retain(|request| matches!(request, Request::Media { .. } | Request::Resize { .. }));
    assert_eq!(asked, expected);
}

#[test]
fn network_cards_come_and_go() {
    let bed = Bed::new();
    let domain = domain(&bed);
    let dry = xlr(&bed, "-N network-attach web bridge=br7,mac=00:16:3e:00:00:07 mtu=1400");
    let text = "vif: {\n    \"devid\": 1,\n    \"mtu\": 1400,\n    \"mac\": \"00:16:3e:00:00:07\",\n    \"bridge\": \"br7\"\n}\n";
    assert_eq!((dry.status, dry.out.as_str(), dry.err.as_str()), (0, text, ""));
    assert!(!domain.requests().iter().any(|request| matches!(request, Request::Attach { .. })));
    silent(&bed, "network-attach web bridge=br7,mac=00:16:3e:00:00:07");
    silent(&bed, "network-attach web bridge=br7 mac=00:16:3e:00:00:08");
    let last = |bed: &Bed| xlr(bed, "network-list web").out.lines().last().unwrap().to_owned();
    assert!(last(&bed).starts_with("2   0  00:16:3e:00:00:08     2     4 "), "{}", last(&bed));
    silent(&bed, "network-detach web 00:16:3E:00:00:08");
    silent(&bed, "network-detach web 0");
    assert!(last(&bed).starts_with("1   0  00:16:3e:00:00:07 "), "{}", last(&bed));
    for (line, expected) in [
        ("network-detach web 5", "Unknown device 5."),
        ("network-attach web bogus=1", "vif: unknown parameter `bogus`"),
        (
            "network-attach web devid=1",
            "domain 'web' (id 1): vif: devid 1 is taken by another vif (00:16:3e:00:00:07)",
        ),
        ("network-attach web script=/no/script", "script /no/script: No such file or directory (os error 2)"),
    ] {
        let ran = xlr(&bed, line);
        assert_eq!((ran.status, ran.out, ran.err), (1, String::new(), format!("{expected}\n")), "{line}");
    }
}

#[test]
fn a_channel_is_a_console_with_a_number() {
    let bed = Bed::new();
    let socket = bed.path("agent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let domain = bed.expect_domain(1);
    let channel = format!("channel=['connection=socket,name=agent,path={}']", socket.display());
    assert_eq!(bed.xlr(&["create", "-q", bed.config(&channel)]).status, 0);
    domain.join().unwrap();
    let guest = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut client, b"hello from the agent\n").unwrap();
    });
    let ran = xlr(&bed, "console -n 1 web");
    guest.join().unwrap();
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (0, "hello from the agent\n", ""));
    let none = xlr(&bed, "console -n 2 web");
    let expected = "domain 'web' (id 1): it has no console 2: `channel-list` shows those it has\n";
    assert_eq!((none.status, none.err.as_str()), (1, expected));
    assert_eq!(xlr(&bed, "console -n x web").status, 2);
}

#[test]
fn the_host_has_defaults() {
    let bed = Bed::new();
    domain(&bed);
    std::fs::write(bed.path("xl.conf"), "lockfile='/x'\nvif.default.bridge = 'br9'\nbogus=1\n").unwrap();
    let conf = bed.path("xl.conf").display().to_string();
    let said = format!("{conf}:3:1: warning: unknown key `bogus`\n");
    let attached = xlr(&bed, "-N network-attach web mac=00:16:3e:00:00:07");
    assert!(attached.out.contains("\"bridge\": \"br9\""), "{}", attached.out);
    assert_eq!((attached.status, attached.err.as_str()), (0, said.as_str()));
    let create = bed.xlr(&["create", "-n", bed.config("vif=['','bridge=br1']")]);
    assert!(
        create.out.contains("\"bridge\": \"br9\"") && create.out.contains("\"bridge\": \"br1\""),
        "{}",
        create.out
    );
    std::fs::write(bed.path("xl.conf"), "vif.default.bridge = br9\n").unwrap();
    let wrong = xlr(&bed, "network-attach web");
    let right = "unexpected `br9`: strings stand in quotes, vif.default.bridge = \"br9\"";
    assert_eq!((wrong.status, wrong.err), (1, format!("{conf}:1:22: {right}\n")));
    std::fs::write(bed.path("xl.conf"), "vif.default.bridge = 'much-too-long-a-name'\n").unwrap();
    let wrong = xlr(&bed, "network-attach web");
    assert!(
        wrong.err.starts_with(&format!("{conf}:1:23: vif: bridge `much-too-long-a-name`")),
        "{}",
        wrong.err
    );
}

#[test]
fn a_create_that_lacks_a_device_leaves_nothing() {
    let bed = Bed::new();
    std::fs::write(bed.path("disk.img"), "x").unwrap();
    let here = std::fs::canonicalize(bed.path("")).unwrap();
    let here = here.display();
    for (more, status, expected) in [
        (
            "disk=['/nope,raw,xvda,w']",
            3,
            "5:8: Disk vdev=xvda failed to stat: /nope: No such file or directory (os error 2)".to_owned(),
        ),
        (
            "disk=['disk.img,,xvda',\n  'disk.img,qcow2,xvdb']",
            3,
            format!("6:4: Disk vdev=xvdb: {here}/disk.img is no qcow2 image: check its format"),
        ),
        (
            "disk=['disk.img,,xvda', '/,raw,xvdb,w']",
            3,
            "5:26: Disk vdev=xvdb: / is a directory: an image file or a block device is needed".into(),
        ),
        ("disk=['foo']", 1, "5:8: disk: no vdev specified; a disk is '/srv/disk.img,raw,xvda,rw'".into()),
        (
            "vif=['mac=1']",
            1,
            "5:11: vif: invalid mac `1`: six pairs of hexadecimal digits such as 00:16:3e:12:34:56".into(),
        ),
    ] {
        let ran = bed.xlr(&["create", "-q", bed.config(more)]);
        assert_eq!((ran.status, ran.err), (status, format!("web.cfg:{expected}\n")), "{more}");
        assert_eq!((bed.domain_dirs().len(), bed.store.paths().len()), (0, 0), "{more}");
    }
}

#[test]
fn the_launch_keeps_a_random_mac() {
    let bed = Bed::new();
    let domain = bed.expect_domain(1);
    assert_eq!(bed.xlr(&["create", "-q", bed.config("vif=['']")]).status, 0);
    let domain = domain.join().unwrap();
    let launch: serde_json::Value =
        serde_json::from_slice(&std::fs::read(domain.dir.launch()).unwrap()).unwrap();
    let mac: Vec<u8> = serde_json::from_value(launch["config"]["devices"][0]["mac"].clone()).unwrap();
    assert_eq!(mac[..3], [0x00, 0x16, 0x3e]);
}
