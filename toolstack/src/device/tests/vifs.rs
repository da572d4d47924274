//! `vif=`

use super::*;
use xen_emu_api::device::{Forward, Rate, VifAttach};

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
        gatewaydev: None,
        ip: vec!["10.0.0.5".into()],
        queues: None,
        vlan: None,
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
            VifAttach::User { forwards, map_gw: false },
        ),
    ] {
        assert_eq!(vif(spec).attach, attach, "{spec}");
    }
    assert_eq!(vif("script=vif-route,netdev=eth1").gatewaydev.as_deref(), Some("eth1"));
    assert_eq!(vif("script=vif-bridge").script, None, "what it does is done anyway");
    assert!(!vif("untrusted").trusted);
    let scripted = |spec| {
        let vif = vif(spec);
        (vif.script.unwrap_or_default(), vif.attach == xenbr0(false), vif.vlan.unwrap_or_default())
    };
    assert_eq!(scripted("script=vif-mine,vlan=5"), ("vif-mine".into(), false, "5".into()));
    assert_eq!(scripted("vlan=5"), ("vif-bridge".into(), true, "5".into()), "VLANs are its doing");
    assert_eq!(vif("type=user,map-gw=1").attach, VifAttach::User { forwards: vec![], map_gw: true });
    let words = ["mac=00:16:3e:00:00:07,bridge=br7".to_owned(), "mtu=1400".into()];
    let Device::Vif(both) = vif_of(&words, &[0, 1, 3], &XlConf::default()).unwrap().device else {
        panic!("a vif")
    };
    assert_eq!((both.devid, both.mtu, both.mac[5]), (2, Some(1400), 7));
}

/// xl.conf(5)
#[test]
fn what_a_card_does_not_say_the_host_does() {
    let text = "vif.default.bridge='lan'\nvif.default.script='vif-route'\nvif.default.gatewaydev='eth7'";
    let host = XlConf::parse("xl.conf", text).unwrap();
    let of =
        |spec: &str, host: &XlConf| match vif_of(&[spec.to_owned()], &[], host).map(|placed| placed.device) {
            Ok(Device::Vif(vif)) => Ok((vif.attach, vif.script, vif.gatewaydev)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
    let (route, eth7) = (Some("vif-route".to_owned()), Some("eth7".to_owned()));
    let bridge = |name: &str| VifAttach::Bridge { bridge: name.into(), create: false };
    for (spec, attach, script, gatewaydev) in [
        ("", bridge("lan"), route.clone(), eth7.clone()),
        ("bridge=br1", bridge("br1"), route.clone(), eth7.clone()),
        ("script=/s,netdev=eth1", bridge("lan"), Some("/s".into()), Some("eth1".into())),
        ("type=tap", VifAttach::Tap, None, None),
        ("type=user", VifAttach::User { forwards: vec![], map_gw: false }, None, None),
    ] {
        assert_eq!(of(spec, &host), Ok((attach, script, gatewaydev)), "{spec}");
    }
    let alone = XlConf::parse("xl.conf", "vif.default.gatewaydev='eth7'").unwrap();
    assert_eq!(of("", &alone), Ok((bridge("xenbr0"), None, None)), "nothing would read it");
    let long = XlConf::parse("/etc/xen/xl.conf", "\nvif.default.bridge='much-too-long-a-name'").unwrap();
    assert!(
        of("", &long).unwrap_err().starts_with("/etc/xen/xl.conf:2:21: vif: bridge `much"),
        "{:?}",
        of("", &long)
    );
    let far = XlConf::parse("xl.conf", "vif.default.backend='net'").unwrap();
    assert!(of("", &far).unwrap_err().starts_with("xl.conf:1:22: vif: backend `net`"), "{:?}", of("", &far));
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
        ("map-gw=1", "14: vif: map-gw is for user-mode networking: add type=user"),
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
        ("type=tap,vlan=5", "21: vif: vlan is for cards on bridges"),
        ("forwarddev=eth0", "18: vif: `forwarddev`: COLO replication is not supported"),
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
            "g.cfg:1:37: vif: `netdev`: this is gatewaydev's old name, and nothing reads it without a script",
        ]
    );
}
