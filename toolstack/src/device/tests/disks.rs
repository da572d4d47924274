//! `disk=`

use super::*;

#[test]
fn disks_that_xl_was_seen_to_read() {
    let raw = plain_disk;
    let qcow2 = |target, vdev, devid| DiskConfig { format: DiskFormat::Qcow2, ..raw(target, vdev, devid) };
    let read_only = |disk: DiskConfig| DiskConfig { writable: false, discard: false, ..disk };
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
        ("vdev=xvdm,untrusted,target=/l", DiskConfig { trusted: false, ..raw("/l", "xvdm", 51904) }),
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
        &["/i,,xvda", "/i,raw,xvda,script=block", "/i,,xvda,script=/etc/xen/scripts/block"],
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
    let ours = disk("/i=a,raw,xvda,w!,cache=writeback,sector-size=4096,persistent-grants=0");
    assert_eq!((ours.target, ours.force, ours.cache), (Some("/i=a".into()), true, DiskCache::Writeback));
    assert_eq!((ours.sector_size, ours.persistent), (Some(4096), false));
    assert_eq!(disk("null,,xvda").target, Some("/dev/null".into()), "below /dev first");
    let words = ["phy:/dev/x".to_owned(), "xvdb".into(), "r".into()];
    let attached = disk_of(&words).unwrap().device;
    assert_eq!(
        attached,
        Device::Disk(DiskConfig { writable: false, discard: false, ..plain_disk("/dev/x", "xvdb", 51728) })
    );
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
        ("'/x,raw,xvda,trusted,untrusted'", "1:28: disk: either trusted or untrusted"),
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
    assert!(check(&qcow2, "raw").unwrap().unwrap().contains("looks like a qcow2 image but is used as raw"));
    let script = disk_of(&["drbd:res0,xvdk,w".into(), "script=/nowhere/block".into()]);
    assert_eq!(script.unwrap_err().message, "disk: `script` is given twice");
    let drbd = disk_of(&["drbd:res0,xvdk,w".into()]).unwrap().device;
    let missing =
        "Disk vdev=xvdk: script /etc/xen/scripts/block-drbd: No such file or directory (os error 2)";
    assert_eq!(check_host(&drbd), Err(missing.into()));
    let device = vif_of(&["script=/nowhere/vif".into()], &[], &XlConf::default()).unwrap().device;
    let missing = "script /nowhere/vif: No such file or directory (os error 2)";
    assert_eq!(check_host(&device), Err(missing.into()));
}
