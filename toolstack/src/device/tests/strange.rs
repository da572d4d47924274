//! What nobody thought of: no panic, and what is printed is read again as the same.

use super::*;
use proptest::prelude::*;
use xen_emu_api::device::{Forward, VifAttach};

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
        format!("persistent-grants={}", u8::from(disk.persistent)),
        format!("script={}", disk.script.as_deref().unwrap_or_default()),
        format!("backendtype={}", disk.backendtype.as_deref().unwrap_or_default()),
        if disk.trusted { "trusted" } else { "untrusted" }.into(),
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
        VifAttach::User { forwards, .. } => {
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
    words.extend(vif.vlan.as_ref().map(|vlan| format!("vlan={vlan}")));
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
    "persistent-grants=0",
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
        if let Ok(Placed { device: Device::Vif(vif), .. }) = vif_of(&[spec], &[], &XlConf::default()) {
            let again = vif_of(&[print_vif(&vif)], &[], &XlConf::default()).map(|placed| placed.device);
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
