//! `channel=`, and all kinds in YAML.

use super::*;
use xen_emu_api::device::{ChannelConfig, ChannelConnection};

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
    let socket = "connection=socket,path=/run/s";
    let shared = error(&format!("channel=['{socket},name=a','{socket},name=b']"));
    assert!(shared.ends_with("channel: the socket /run/s is taken by channel a"), "{shared}");
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
