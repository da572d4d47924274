//! What xl 4.20 and its man pages say, and what nobody thought of.

use super::*;
use crate::xlcfg;
use proptest::prelude::*;
use std::path::PathBuf;
use xen_emu_api::device::{
    ChannelConfig, ChannelConnection, DiskCache, DiskConfig, DiskFormat, Forward, Rate, VifAttach,
};

fn placed(text: &str) -> Result<Vec<Placed>, Diag> {
    placed_from("g.cfg", text)
}

fn placed_from(name: &str, text: &str) -> Result<Vec<Placed>, Diag> {
    all(&Settings::new(xlcfg::read(name, text)?)?)
}

fn error(text: &str) -> String {
    match placed(text) {
        Ok(found) => panic!("{text}: {found:?}"),
        Err(error) => error.to_string(),
    }
}

fn disk(spec: &str) -> DiskConfig {
    match placed(&format!("disk=['{spec}']")).map(|mut list| list.remove(0).device) {
        Ok(Device::Disk(disk)) => disk,
        other => panic!("{spec}: {other:?}"),
    }
}

fn vif(spec: &str) -> VifConfig {
    match placed(&format!("vif=['{spec}']")).map(|mut list| list.remove(0).device) {
        Ok(Device::Vif(vif)) => vif,
        other => panic!("{spec}: {other:?}"),
    }
}

fn plain_disk(target: &str, vdev: &str, devid: u32) -> DiskConfig {
    DiskConfig {
        vdev: vdev.into(),
        devid,
        target: Some(target.into()),
        format: DiskFormat::Raw,
        writable: true,
        cdrom: false,
        removable: false,
        discard: true,
        cache: DiskCache::None,
        sector_size: None,
        force: false,
        script: None,
        backendtype: None,
    }
}

fn drive(target: Option<&str>, vdev: &str, devid: u32) -> DiskConfig {
    let target = target.map(PathBuf::from);
    DiskConfig { target, writable: false, cdrom: true, removable: true, ..plain_disk("", vdev, devid) }
}

#[test]
fn disks_that_xl_was_seen_to_read() {
    let raw = plain_disk;
    let qcow2 = |target, vdev, devid| DiskConfig { format: DiskFormat::Qcow2, ..raw(target, vdev, devid) };
    let read_only = |disk: DiskConfig| DiskConfig { writable: false, ..disk };
    for (spec, expected) in [
        ("/dev/vg/guest-volume,,hda", raw("/dev/vg/guest-volume", "hda", 768)),
        ("/root/image-copy.qcow2,qcow2,hdd", qcow2("/root/image-copy.qcow2", "hdd", 5696)),
        (
            "format=raw, vdev=hdb, access=ro, target=/root/image.iso",
            read_only(raw("/root/image.iso", "hdb", 832)),
        ),
        (
            "format=raw, vdev=hdc, access=rw, devtype=cdrom, target=/root/with,comma.iso",
            drive(Some("/root/with,comma.iso"), "hdc", 5632),
        ),
        ("/root/img.raw,raw,xvdb,rw,direct-io-safe", raw("/root/img.raw", "xvdb", 51728)),
        (
            "vdev=xvdc,format=raw,backendtype=qdisk,target=/a/b c.img",
            DiskConfig { backendtype: Some("qdisk".into()), ..raw("/a/b c.img", "xvdc", 51744) },
        ),
        (
            "vdev=xvdf,script=block-iscsi,target=iqn.2001-05.com.equallogic:0-8a0906",
            DiskConfig {
                script: Some("block-iscsi".into()),
                ..raw("iqn.2001-05.com.equallogic:0-8a0906", "xvdf", 51792)
            },
        ),
        ("vdev=xvdg,discard,target=/x", raw("/x", "xvdg", 51808)),
        ("vdev=xvdh,no-discard,target=/y", DiskConfig { discard: false, ..raw("/y", "xvdh", 51824) }),
        ("vdev=xvdi1,target=/z,access=r", raw("/z,access=r", "xvdi1", 51841)),
        ("vdev=d536p37,target=/q,w", raw("/q,w", "xvdtq37", 268_572_709)),
        ("drbd:res0,xvdk,w", DiskConfig { script: Some("block-drbd".into()), ..raw("res0", "xvdk", 51872) }),
        ("vdev=xvdm,trusted,target=/l", raw("/l", "xvdm", 51904)),
        (",empty,hdc:cdrom,r", drive(None, "hdc", 5632)),
        (",hdc:cdrom,r", drive(None, "hdc", 5632)),
        ("phy:/dev/vg0/web01-swap,xvda1,w", raw("/dev/vg0/web01-swap", "xvda1", 51713)),
        ("file:/srv/iso/debian.iso,xvdc:cdrom,r", drive(Some("/srv/iso/debian.iso"), "xvdc", 51744)),
    ] {
        assert_eq!(disk(spec), expected, "{spec}");
    }
}

#[test]
fn disks_in_other_words() {
    for same in [
        &[
            "/dev/vg/guest-volume,,hda",
            "/dev/vg/guest-volume,raw,hda,rw",
            "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
            "raw:/dev/vg/guest-volume,hda,w",
            "tap:aio:/dev/vg/guest-volume,hda,w",
            "tap2:tapdisk:ioemu:/dev/vg/guest-volume,hda,",
            "phy:/dev/vg/guest-volume,raw,hda,w",
            "vdev=768,/dev/vg/guest-volume",
            "vdev=0x300,format=,/dev/vg/guest-volume,rw",
            ",,hda,,target=/dev/vg/guest-volume",
            "phy:vg/guest-volume-that-is-not-there,hda,w,target=",
            " vdev = hda , target = /dev/vg/guest-volume",
        ][..],
        &[
            "/root/image.iso,,hdc,cdrom",
            "/root/image.iso,,hdc,,cdrom",
            "/root/image.iso,raw,hdc,devtype=cdrom",
            "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
            "raw:/root/image.iso,hdc:cdrom,ro",
        ],
        &["/i,qcow2,xvda", "tap:qcow2:/i,xvda,w", "qcow2:/i,xvda,w", "/i,vdev=xvda,format=qcow2"],
    ] {
        for spec in same {
            if spec.contains("not-there") {
                let missing = std::env::current_dir().unwrap().join("vg/guest-volume-that-is-not-there");
                assert_eq!(disk(spec).target, Some(missing), "{spec}");
            } else {
                assert_eq!(disk(spec), disk(same[0]), "{spec}");
            }
        }
    }
    let ours = disk("/i=a,raw,xvda,w!,cache=writeback,sector-size=4096");
    assert_eq!((ours.target, ours.force, ours.cache), (Some("/i=a".into()), true, DiskCache::Writeback));
    assert_eq!(ours.sector_size, Some(4096));
    assert_eq!(disk("null,,xvda").target, Some("/dev/null".into()), "below /dev first");
    let words = ["phy:/dev/x".to_owned(), "xvdb".into(), "r".into()];
    let attached = disk_of(&words).unwrap().device;
    assert_eq!(attached, Device::Disk(DiskConfig { writable: false, ..plain_disk("/dev/x", "xvdb", 51728) }));
    let swallowed = disk_of(&["target=/x,y".into(), "vdev=xvdc".into()]).unwrap().device;
    assert_eq!(swallowed, Device::Disk(plain_disk("/x,y", "xvdc", 51744)), "to the end of its own word");
}

#[test]
fn disks_that_cannot_be_say_why_and_where() {
    for (specs, expected) in [
        ("'foo'", "1:8: disk: no vdev specified; a disk is '/srv/disk.img,raw,xvda,rw'"),
        ("''", "1:8: disk: no vdev specified; a disk is '/srv/disk.img,raw,xvda,rw'"),
        ("',,xvda'", "1:8: disk: no target specified for xvda; a disk is '/srv/disk.img,raw,xvda,rw'"),
        ("'vdev=xvda,bogus=1,target=/x'", "1:18: disk: unknown parameter `bogus`"),
        (
            "'vdev=xvda,fromat=raw,target=/x'",
            "1:18: disk: unknown parameter `fromat`, did you mean `format`?",
        ),
        (
            "'/x,raw,xvdz9999'",
            "1:15: disk: vdev `xvdz9999` has no number in Xen's scheme: it has disks up to 1048575 with partitions up to 255; xvd disks go further",
        ),
        (
            "'/x,raw,vda'",
            "1:15: disk: invalid vdev `vda`: xvda, xvda1, hdc, sda, d0p1 or a number such as 51712 are vdevs",
        ),
        (
            "'/x,vhd,xvda'",
            "1:11: disk: vhd images are not supported: qemu-img convert -O qcow2 makes one that is",
        ),
        (
            "'vdi:/x,xvda,w'",
            "1:8: disk: vdi images are not supported: qemu-img convert -O qcow2 makes one that is",
        ),
        ("'/x,zip,xvda'", "1:11: disk: unknown format `zip`: raw and qcow2 are known"),
        (
            "'/x,xvda,w'",
            "1:11: disk: `xvda` stands where the format belongs; a disk is '/srv/disk.img,raw,xvda,rw', and an empty format means raw",
        ),
        ("'/x,raw,xvda,rx'", "1:20: disk: unknown access `rx`: one of rw, w, ro, r, w!, rw!, !, r!, ro!"),
        (
            "'/x,raw,xvda,w,extra'",
            "1:22: disk: `extra` is one word too many: target, format, vdev and access are there; a target with commas is written last, as target=...",
        ),
        ("'/x,raw,xvda,vdev=xvdb'", "1:25: disk: `vdev` is given twice"),
        (
            "'rbd:pool/x,xvda,w'",
            "1:8: disk: unknown prefix `rbd:`; make it a block device of this host, or write target=rbd:pool/x last if it is a file",
        ),
        ("'/x,empty,hdc,cdrom'", "1:8: disk: an empty drive has no target: leave it out"),
        (
            "'/x,raw,xvda,backend=driverdom'",
            "1:28: disk: backend `driverdom`: driver domains are not supported: leave it out",
        ),
        (
            "'/x,raw,xvda,untrusted'",
            "1:20: disk: a frontend that distrusts this disk is not supported yet: leave `untrusted` out",
        ),
        ("'/x,raw,xvda,specification=virtio'", "1:34: disk: `virtio` disks are not supported: xen are"),
        (
            "'/x,raw,xvda,backendtype=standalone'",
            "1:32: disk: unknown backendtype `standalone`: one of phy, qdisk, tap",
        ),
        ("'/x,raw,xvda,devtype=tape'", "1:28: disk: unknown devtype `tape`: one of cdrom, disk"),
        ("'/x,raw,xvda,discard,no-discard'", "1:28: disk: either discard or no-discard"),
        (
            "'/x,raw,xvda,cache=off'",
            "1:26: disk: unknown cache `off`: one of none, writeback, writethrough, unsafe",
        ),
        ("'/x,raw,xvda,sector-size=2048'", "1:32: disk: unknown sector-size `2048`: one of 512, 4096"),
        ("'/x,raw,xvda,colo'", "1:20: disk: `colo`: COLO replication is not supported"),
        ("'/x,,xvda',\n '/y,,51712'", "2:3: disk: vdev xvda is taken by another disk (/x)"),
        ("7", "1:7: a disk is described by a string"),
    ] {
        assert_eq!(error(&format!("disk=[{specs}]")), format!("g.cfg:{expected}"), "{specs}");
    }
    assert_eq!(error("disk='/x,,xvda'"), "g.cfg:1:6: disk must be a list: disk = [ \"...\" ]");
    assert!(placed("disk=''; vif=[]; channel=''").unwrap().is_empty());
}

#[test]
fn vifs_by_the_man_page() {
    let xl = vif("mac=00:16:3E:12:34:56,bridge=br1,ip=10.0.0.5,rate=10Mb/s,vifname=web01.0,mtu=9000,devid=3");
    let expected = VifConfig {
        devid: 3,
        mac: [0, 0x16, 0x3e, 0x12, 0x34, 0x56],
        attach: VifAttach::Bridge { bridge: "br1".into(), create: false },
        ifname: Some("web01.0".into()),
        mtu: Some(9000),
        rate: Some(Rate { bytes: 62_500, interval_us: 50_000 }),
        script: None,
        ip: vec!["10.0.0.5".into()],
        queues: None,
        trusted: true,
    };
    assert_eq!(xl, expected);
    let plain = vif("");
    assert_eq!((plain.mac[..3].to_vec(), plain.devid), (vec![0, 0x16, 0x3e], 0));
    assert_ne!(plain.mac, vif("").mac);
    let xenbr0 = |create| VifAttach::Bridge { bridge: "xenbr0".into(), create };
    let forward = |udp, address: Option<&str>, host_port, guest_port| Forward {
        udp,
        address: address.map(|a| a.parse().unwrap()),
        host_port,
        guest_port,
    };
    let forwards = vec![
        forward(false, None, 2222, 22),
        forward(true, Some("127.0.0.1"), 5353, 53),
        forward(false, Some("::1"), 80, 8080),
    ];
    for (spec, attach) in [
        ("", xenbr0(false)),
        ("type=ioemu, model = e1000,script=/etc/xen/scripts/vif-bridge", xenbr0(false)),
        ("bridge-create=1", xenbr0(true)),
        (" bridge = br2 ", VifAttach::Bridge { bridge: "br2".into(), create: false }),
        ("type=tap", VifAttach::Tap),
        ("script=vif-route,gatewaydev=eth0", VifAttach::Tap),
        (
            "type=user,hostfwd=tcp:2222:22,hostfwd=udp:127.0.0.1:5353:53,hostfwd=tcp:[::1]:80:8080",
            VifAttach::User { forwards },
        ),
    ] {
        assert_eq!(vif(spec).attach, attach, "{spec}");
    }
    assert_eq!(vif("script=vif-bridge").script, None, "what it does is done anyway");
    assert!(!vif("untrusted").trusted);
    let words = ["mac=00:16:3e:00:00:07,bridge=br7".to_owned(), "mtu=1400".into()];
    let Device::Vif(both) = vif_of(&words, &[0, 1, 3]).unwrap().device else { panic!("a vif") };
    assert_eq!((both.devid, both.mtu, both.mac[5]), (2, Some(1400), 7));
}

#[test]
fn vif_numbers_are_places_unless_claimed() {
    let devids = |text: &str| placed(text).unwrap().iter().map(|p| p.device.devid()).collect::<Vec<_>>();
    assert_eq!(devids("vif=['','','']"), [0, 1, 2]);
    assert_eq!(devids("vif=['devid=1','','']"), [1, 0, 2]);
    assert_eq!(devids("channel=['connection=pty,name=a','connection=pty,name=b']"), [1, 2]);
    let twin = placed("vif=['mac=00:16:3e:00:00:01',\n 'mac=00:16:3e:00:00:01']").unwrap();
    assert_eq!(
        twin[1].warnings[0].to_string(),
        "g.cfg:2:3: vif: two network cards have the address 00:16:3e:00:00:01"
    );
}

#[test]
fn vifs_that_cannot_be_say_why_and_where() {
    let mac = "six pairs of hexadecimal digits such as 00:16:3e:12:34:56";
    for (spec, expected) in [
        ("mac=00:16:3e:zz:00:01", &*format!("11: vif: invalid mac `00:16:3e:zz:00:01`: {mac}")),
        ("mac=00:16:3e:0:00:01", &format!("11: vif: invalid mac `00:16:3e:0:00:01`: {mac}")),
        (
            "mac=01:16:3e:00:00:01",
            "11: vif: mac `01:16:3e:00:00:01` is a multicast address: its first byte must be even",
        ),
        ("mac=00:00:00:00:00:00", "11: vif: a mac of zeros is no address: leave it out for a random one"),
        ("bogus=1", "7: vif: unknown parameter `bogus`"),
        ("brigde=br0", "7: vif: unknown parameter `brigde`, did you mean `bridge`?"),
        ("trusted=0", "15: vif: `trusted` is a flag: write `trusted` or leave it out, not `trusted=0`"),
        ("bridge=br0,bridge=br1", "25: vif: `bridge` is given twice"),
        ("bridge", "7: vif: `bridge` needs a value: bridge=..."),
        (
            "bridge=much-too-long-name",
            "14: vif: bridge `much-too-long-name` is no interface name: at most 15 bytes, without blanks, `/`, `:` and `%`",
        ),
        ("rate=10", "12: vif: invalid rate `10`: 10Mb/s, 250KB/s or 1MB/s@20ms would be right"),
        ("mtu=12", "11: vif: mtu must be from 68 to 65535, not `12`"),
        ("type=e1000", "12: vif: unknown type `e1000`: one of vif, ioemu, tap, user"),
        ("type=user,bridge=br0", "24: vif: type=user has no bridge: leave one of them out"),
        ("hostfwd=tcp:1:2", "15: vif: hostfwd is for user-mode networking: add type=user"),
        (
            "type=user,hostfwd=tcp:22",
            "25: vif: invalid hostfwd `tcp:22`: tcp:2222:22 or udp:127.0.0.1:5353:53 would be right",
        ),
        (
            "type=user,hostfwd=tcp:::1:1:2",
            "25: vif: invalid hostfwd `tcp:::1:1:2`: tcp:2222:22 or udp:127.0.0.1:5353:53 would be right",
        ),
        (
            "type=user,hostfwd=tcp:0:22",
            "25: vif: invalid hostfwd `tcp:0:22`: tcp:2222:22 or udp:127.0.0.1:5353:53 would be right",
        ),
        ("backend=netvm", "15: vif: backend `netvm`: driver domains are not supported: leave it out"),
        ("vlan=5", "12: vif: vlan is not supported: give a bridge that has the VLAN's interface"),
    ] {
        assert_eq!(error(&format!("vif=['{spec}']")), format!("g.cfg:1:{expected}"), "{spec}");
    }
    assert_eq!(
        error("vif=['devid=1','devid=1,mac=00:16:3e:00:00:01']").split(" (").next(),
        Some("g.cfg:1:17: vif: devid 1 is taken by another vif")
    );
    let warned = placed("vif=['type=ioemu,model=e1000,netdev=eth0']").unwrap().remove(0).warnings;
    let lines: Vec<_> = warned.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "g.cfg:1:12: vif: `type`: emulated network cards are for HVM guests: a PVH guest gets the PV device only",
            "g.cfg:1:37: vif: `netdev`: this is gatewaydev's old name, and nothing reads it",
        ]
    );
}

#[test]
fn channels() {
    let text = "channel=['connection=socket,path=/run/ch.sock,name=org.xlr.agent', 'connection=pty,name=b']";
    let found: Vec<_> = placed(text).unwrap().into_iter().map(|p| p.device).collect();
    let channel = |devid, name: &str, connection| {
        Device::Channel(ChannelConfig { devid, name: name.into(), connection })
    };
    let socket = ChannelConnection::Socket { path: "/run/ch.sock".into() };
    assert_eq!(found, [channel(1, "org.xlr.agent", socket), channel(2, "b", ChannelConnection::Pty)]);
    for (spec, expected) in [
        ("connection=pty", "no name, by which the guest finds it; a channel is"),
        ("name=a", "no connection; a channel is"),
        ("connection=tcp,name=a", "unknown connection `tcp`: pty or socket"),
        ("connection=socket,name=a", "a socket needs path="),
        ("connection=pty,name=a,path=/x", "a pty has no path of its own"),
        ("conection=pty,name=a", "unknown parameter `conection`, did you mean `connection`?"),
    ] {
        assert!(error(&format!("channel=['{spec}']")).contains(expected), "{spec}");
    }
    assert!(
        error(&format!("channel=['connection=socket,name=a,path=/{}']", "x".repeat(120)))
            .contains("at most 107")
    );
    let twice = "channel=['connection=pty,name=a','connection=pty,name=a']";
    assert_eq!(error(twice), "g.cfg:1:35: channel: the name a is taken by another channel");
}

#[test]
fn yaml_has_strings_and_maps() {
    let yaml = "name: web\ndisk:\n  - /x.img,raw,xvda,w\n  - {target: '/y,z.iso', vdev: hdc, cdrom: true}\n\
        vif:\n  - type: user\n    mac: 00:16:3e:00:00:01\n    hostfwd: ['tcp:2222:22', 'tcp:8080:80']\n    mtu: 1400\n\
        channel:\n  - {connection: pty, name: a}\n";
    let cfg = "disk=['/x.img,raw,xvda,w', 'vdev=hdc,cdrom,target=/y,z.iso']
        vif=['type=user,mac=00:16:3e:00:00:01,hostfwd=tcp:2222:22,hostfwd=tcp:8080:80,mtu=1400']
        channel=['connection=pty,name=a']";
    let devices = |found: Vec<Placed>| found.into_iter().map(|p| p.device).collect::<Vec<_>>();
    assert_eq!(devices(placed_from("g.yaml", yaml).unwrap()), devices(placed(cfg).unwrap()));
    for (text, expected) in [
        ("disk: [{target: /x, vdev: vda}]", "g.yaml:1:27: disk: invalid vdev `vda`"),
        ("disk:\n - /x,zip,xvda\n", "g.yaml:2:7: disk: unknown format `zip`"),
        ("disk:\n - \"/x,zip,xvda\"\n", "g.yaml:2:8: disk: unknown format `zip`"),
        ("vif: [{mac: {}}]", "g.yaml:1:13: vif: mac must be a string or a number"),
        ("vif: [{trusted: false}]", "g.yaml:1:17: vif: `trusted` is a flag"),
    ] {
        let error = placed_from("g.yaml", text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn the_host_is_asked_for_images() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let check = |target: &str, format: &str| {
        let device = disk_of(&[format!("vdev=xvda,format={format},target={target}")]).unwrap().device;
        check_host(&device).map_err(|line| line.replace(&dir.path().display().to_string(), "D"))
    };
    let (raw, qcow2, vmdk) =
        (file("raw", b"raw"), file("qcow2", b"QFI\xfb\0\0\0\x03"), file("vmdk", b"KDMV...."));
    assert_eq!((check(&raw, "raw"), check(&qcow2, "qcow2")), (Ok(None), Ok(None)));
    let here = dir.path().display().to_string();
    for (target, format, expected) in [
        (
            format!("{here}/no"),
            "raw",
            "Disk vdev=xvda failed to stat: D/no: No such file or directory (os error 2)",
        ),
        (here.clone(), "raw", "Disk vdev=xvda: D is a directory: an image file or a block device is needed"),
        ("/dev/null".into(), "raw", "Disk vdev=xvda: /dev/null is neither an image file nor a block device"),
        (raw, "qcow2", "Disk vdev=xvda: D/raw is no qcow2 image: check its format"),
        (vmdk.clone(), "qcow2", "Disk vdev=xvda: D/vmdk is no qcow2 image but a vmdk one: check its format"),
    ] {
        assert_eq!(check(&target, format), Err(expected.into()));
    }
    assert!(check(&vmdk, "raw").unwrap().unwrap().contains("looks like a vmdk image but is used as raw"));
    assert_eq!(image::guess(qcow2.as_ref()), DiskFormat::Qcow2);
    let script = disk_of(&["drbd:res0,xvdk,w".into(), "script=/nowhere/block".into()]);
    assert_eq!(script.unwrap_err().message, "disk: `script` is given twice");
    let drbd = disk_of(&["drbd:res0,xvdk,w".into()]).unwrap().device;
    assert!(
        check_host(&drbd).unwrap_err().starts_with("Disk vdev=xvdk: script block-drbd: scripts for disks")
    );
    let device = vif_of(&["script=/nowhere/vif".into()], &[]).unwrap().device;
    let missing = "script /nowhere/vif: No such file or directory (os error 2)";
    assert_eq!(check_host(&device), Err(missing.into()));
}

/// A specification of the disk.
fn print_disk(disk: &DiskConfig) -> String {
    let mut words = vec![
        format!("vdev={}", disk.devid),
        format!("format={}", if disk.format == DiskFormat::Raw { "raw" } else { "qcow2" }),
        format!("access={}{}", if disk.writable { "w" } else { "r" }, if disk.force { "!" } else { "" }),
        if disk.cdrom { "cdrom".into() } else { String::new() },
        if disk.discard { "discard" } else { "no-discard" }.into(),
        format!("cache={}", serde_json::to_value(disk.cache).unwrap().as_str().unwrap()),
        format!("sector-size={}", disk.sector_size.map_or_else(String::new, |size| size.to_string())),
        format!("script={}", disk.script.as_deref().unwrap_or_default()),
        format!("backendtype={}", disk.backendtype.as_deref().unwrap_or_default()),
    ];
    words.retain(|word| !word.is_empty());
    words.push(format!(
        "target={}",
        disk.target.as_ref().map_or_else(String::new, |path| path.display().to_string())
    ));
    words.join(",")
}

/// A specification of the vif.
fn print_vif(vif: &VifConfig) -> String {
    let mut words = vec![format!("devid={}", vif.devid), format!("mac={}", show_mac(&vif.mac))];
    match &vif.attach {
        VifAttach::Bridge { bridge, create } => {
            words.push(format!("bridge={bridge},bridge-create={}", u8::from(*create)));
        }
        VifAttach::Tap => words.push("type=tap".into()),
        VifAttach::User { forwards } => {
            words.push("type=user".into());
            for Forward { udp, address, host_port, guest_port } in forwards {
                let address = match address {
                    Some(std::net::IpAddr::V6(six)) => format!("[{six}]:"),
                    Some(four) => format!("{four}:"),
                    None => String::new(),
                };
                let protocol = if *udp { "udp" } else { "tcp" };
                words.push(format!("hostfwd={protocol}:{address}{host_port}:{guest_port}"));
            }
        }
    }
    words.push(format!("vifname={}", vif.ifname.as_deref().unwrap_or_default()));
    words.push(format!("script={}", vif.script.as_deref().unwrap_or_default()));
    words.push(format!("ip={}", vif.ip.join(" ")));
    words.extend(vif.mtu.map(|mtu| format!("mtu={mtu}")));
    words.extend(vif.queues.map(|queues| format!("queues={queues}")));
    words.extend(vif.rate.map(|rate| format!("rate={}", rate::print(rate))));
    words.push(if vif.trusted { "trusted" } else { "untrusted" }.into());
    words.join(",")
}

/// Words that are likely to be something, in any order.
fn spec(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    let word = prop_oneof![
        8 => proptest::sample::select(words).prop_map(str::to_owned),
        1 => "[ -~]{0,12}",
        1 => ".{0,6}",
    ];
    proptest::collection::vec(word, 0..8).prop_map(|words| words.join(","))
}

const DISK_WORDS: &[&str] = &[
    "/x",
    "/x=y",
    "raw",
    "qcow2",
    "xvda",
    "hdc:cdrom",
    "w",
    "r",
    "w!",
    "",
    " ",
    "vdev=xvdb",
    "vdev=51712",
    "format=raw",
    "format=",
    "access=ro",
    "cdrom",
    "devtype=disk",
    "discard",
    "no-discard",
    "cache=unsafe",
    "sector-size=512",
    "target=/a",
    "target=",
    "target",
    "script=block-x",
    "phy:/dev/x",
    "tap:qcow2:/x",
    "iscsi:iqn=x",
    ",",
    "=",
    ":",
    "backendtype=tap",
    "colo",
    "é:/x",
];

const VIF_WORDS: &[&str] = &[
    "mac=00:16:3e:00:00:01",
    "mac=",
    "bridge=br0",
    "bridge = br0",
    "bridge-create=1",
    "bridge-create",
    "type=user",
    "type=tap",
    "type=vif",
    "hostfwd=tcp:1:2",
    "hostfwd=udp:[::1]:3:4",
    "hostfwd=tcp:1.2.3.4:5:6",
    "hostfwd=",
    "rate=1MB/s",
    "rate=7b/s@3s",
    "rate=333B/s@7ms",
    "mtu=1500",
    "devid=7",
    "queues=2",
    "untrusted",
    "trusted",
    "vifname=v0",
    "ip=10.0.0.1 ::1",
    "ip=10.0.0.2",
    "script=vif-bridge",
    "script=/x",
    "model=e1000",
    "",
    "=",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_disk_that_is_printed_is_read_again(spec in spec(DISK_WORDS)) {
        if let Ok(Placed { device: Device::Disk(disk), .. }) = disk_of(&[spec]) {
            let again = disk_of(&[print_disk(&disk)]).map(|placed| placed.device);
            prop_assert_eq!(again, Ok(Device::Disk(disk)));
        }
    }

    #[test]
    fn a_vif_that_is_printed_is_read_again(spec in spec(VIF_WORDS)) {
        if let Ok(Placed { device: Device::Vif(vif), .. }) = vif_of(&[spec], &[]) {
            let again = vif_of(&[print_vif(&vif)], &[]).map(|placed| placed.device);
            prop_assert_eq!(again, Ok(Device::Vif(vif)));
        }
    }

    #[test]
    fn no_list_of_devices_is_too_strange(disks in spec(DISK_WORDS), vifs in spec(VIF_WORDS), any in ".*") {
        let value = |text: &str| Value {
            pos: command_line(),
            quoted: true,
            kind: Kind::List(vec![
                Value { pos: command_line(), quoted: true, kind: Kind::Text(text.into()) },
                Value { pos: command_line(), quoted: false, kind: Kind::Map(vec![(any.clone(), Value {
                    pos: command_line(), quoted: false, kind: Kind::Text(text.into()),
                })]) },
            ]),
        };
        let list = [("disk", &disks), ("vif", &vifs), ("channel", &any)].map(|(key, text)| xlcfg::Setting {
            key: key.into(), pos: command_line(), value: value(text),
        });
        if let Err(error) = all(&Settings::new(list.into()).unwrap()) {
            prop_assert!(!error.message.is_empty());
        }
    }
}
