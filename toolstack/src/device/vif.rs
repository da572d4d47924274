//! `vif=`: xl-network-configuration(5), and `type=user`, `type=tap`, `hostfwd=`, `map-gw=`, `bridge-create=` and `queues=`.

use super::params::{Form, Param, Params};
use super::{Placed, rate};
use crate::xlcfg::{Diag, XlConf};
use std::net::IpAddr;
use uuid::Uuid;
use xen_emu_api::device::{Device, Forward, VifAttach, VifConfig};

/// Every parameter.
const KEYS: &[(&str, Form)] = &[
    ("mac", Form::Value),
    ("bridge", Form::Value),
    ("bridge-create", Form::Switch),
    ("gatewaydev", Form::Value),
    ("netdev", Form::Value),
    ("type", Form::Value),
    ("model", Form::Value),
    ("vifname", Form::Value),
    ("script", Form::Value),
    ("ip", Form::Many),
    ("backend", Form::Value),
    ("backendtype", Form::Value),
    ("rate", Form::Value),
    ("devid", Form::Value),
    ("mtu", Form::Value),
    ("vlan", Form::Value),
    ("forwarddev", Form::Value),
    ("accel", Form::Value),
    ("trusted", Form::Flag),
    ("untrusted", Form::Flag),
    ("hostfwd", Form::Many),
    ("map-gw", Form::Switch),
    ("queues", Form::Value),
];

/// xl's default.
pub const BRIDGE: &str = "xenbr0";
/// xl's default script: what it does is done without it, but for VLANs.
const BRIDGE_SCRIPT: &str = "vif-bridge";
/// IFNAMSIZ of linux/if.h without its NUL.
const IFNAME_MAX: usize = 15;
/// Xen's organisation in Ethernet addresses.
const XEN_OUI: [u8; 3] = [0x00, 0x16, 0x3e];

/// What `type=` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    /// On a bridge; what `ioemu` would add is for HVM guests.
    Bridged,
    Tap,
    User,
}

const TYPES: &[(&str, Type)] =
    &[("vif", Type::Bridged), ("ioemu", Type::Bridged), ("tap", Type::Tap), ("user", Type::User)];

/// From its parameters. `devid` is its number where none is given, `host` what it has where it says nothing.
pub fn vif(params: &Params, devid: u32, host: &XlConf) -> Result<Placed, Diag> {
    params.check(KEYS)?;
    let params = &with_defaults(params, host);
    refuse(params)?;
    let script = script(params);
    let mtu = params.number("mtu", (68, 65535))?.and_then(|mtu| u16::try_from(mtu).ok());
    let config = VifConfig {
        devid: given_devid(params)?.unwrap_or(devid),
        mac: mac(params)?,
        attach: attach(params, own_script(params).is_some())?,
        ifname: ifname(params, "vifname")?,
        mtu,
        rate: params.text("rate").map(rate::parse).transpose().map_err(|m| params.error("rate", m))?,
        script: script.map(str::to_owned),
        gatewaydev: params.text("gatewaydev").or(params.text("netdev")).map(str::to_owned),
        ip: params.all("ip").flat_map(|(text, _)| text.split_whitespace()).map(str::to_owned).collect(),
        vlan: params.text("vlan").map(str::to_owned),
        queues: params.number("queues", (1, 64))?,
        trusted: !params.is_set("untrusted"),
    };
    Ok(Placed { device: Device::Vif(config), at: params.at.clone(), warnings: warnings(params) })
}

/// The host's defaults are for cards on bridges and behind scripts.
fn with_defaults(params: &Params, host: &XlConf) -> Params {
    let mut whole = params.clone();
    if matches!(params.text("type"), Some("tap" | "user")) {
        return whole;
    }
    for (key, value) in host.vif() {
        // Only scripts read it.
        let idle = key == "gatewaydev" && (!whole.has("script") || params.has("netdev"));
        if let Some(text) = value.text().filter(|_| params.text(key).is_none() && !idle) {
            let (start, at) = (value.pos.clone(), value.inside());
            whole.list.push(Param { key: key.to_owned(), value: Some(text.to_owned()), start, at });
        }
    }
    whole
}

/// A script that does something which is not done without it.
fn script(params: &Params) -> Option<&str> {
    let vlans = || params.text("vlan").map(|_| params.text("script").unwrap_or(BRIDGE_SCRIPT));
    own_script(params).or_else(vlans)
}

/// A script other than xl's.
fn own_script(params: &Params) -> Option<&str> {
    params.text("script").filter(|script| script.rsplit('/').next() != Some(BRIDGE_SCRIPT))
}

/// `devid=`
pub fn given_devid(params: &Params) -> Result<Option<u32>, Diag> {
    params.number("devid", (0, 65535))
}

fn refuse(params: &Params) -> Result<(), Diag> {
    super::own_backend(params)?;
    match params.text("backendtype") {
        None | Some("vif") => {}
        Some(other) => return Err(params.error("backendtype", format!("`{other}` is not supported: vif is"))),
    }
    if params.has("forwarddev") {
        return Err(params.error("forwarddev", "`forwarddev`: COLO replication is not supported"));
    }
    let alone = matches!(params.text("type"), Some("tap" | "user"));
    if params.text("vlan").is_some() && alone && own_script(params).is_none() {
        return Err(params.error("vlan", "vlan is for cards on bridges"));
    }
    if params.is_set("trusted") && params.is_set("untrusted") {
        return Err(params.error("untrusted", "either trusted or untrusted"));
    }
    Ok(())
}

fn warnings(params: &Params) -> Vec<Diag> {
    let ioemu = params.text("type") == Some("ioemu");
    let emulated = "emulated network cards are for HVM guests: a PVH guest gets the PV device only";
    let route = "nothing reads it without a script: routing is up to the host then";
    let scripted = params.has("script");
    [
        ("type", ioemu, emulated),
        ("model", !ioemu && params.text("model").is_some(), emulated),
        ("gatewaydev", params.has("gatewaydev") && !scripted, route),
        (
            "netdev",
            params.has("netdev") && !scripted,
            "this is gatewaydev's old name, and nothing reads it without a script",
        ),
    ]
    .iter()
    .filter(|(_, given, _)| *given)
    .map(|(key, _, what)| params.error(key, format!("`{key}`: {what}")))
    .collect()
}

fn attach(params: &Params, scripted: bool) -> Result<VifAttach, Diag> {
    let kind = params.choice("type", TYPES)?.unwrap_or(Type::Bridged);
    let bridge = ifname(params, "bridge")?;
    let create = params.is_set("bridge-create");
    let forwards = params.all("hostfwd").map(|(text, at)| {
        forward(text).ok_or_else(|| {
            at.error(format!(
                "vif: invalid hostfwd `{text}`: tcp:2222:22 or udp:127.0.0.1:5353:53 would be right"
            ))
        })
    });
    let forwards = forwards.collect::<Result<Vec<_>, _>>()?;
    if kind != Type::User && !forwards.is_empty() {
        return Err(params.error("hostfwd", "hostfwd is for user-mode networking: add type=user"));
    }
    let map_gw = params.is_set("map-gw");
    if kind != Type::User && map_gw {
        return Err(params.error("map-gw", "map-gw is for user-mode networking: add type=user"));
    }
    let stray = if bridge.is_some() { Some("bridge") } else { create.then_some("bridge-create") };
    if let (Type::Tap | Type::User, Some(key)) = (kind, stray) {
        let word = params.text("type").unwrap_or_default();
        return Err(params.error(key, format!("type={word} has no bridge: leave one of them out")));
    }
    Ok(match (kind, bridge) {
        (Type::User, _) => VifAttach::User { forwards, map_gw },
        (Type::Tap, _) => VifAttach::Tap,
        // The script knows what to do with it.
        (Type::Bridged, None) if scripted && !create => VifAttach::Tap,
        (Type::Bridged, bridge) => {
            VifAttach::Bridge { bridge: bridge.unwrap_or_else(|| BRIDGE.into()), create }
        }
    })
}

fn ifname(params: &Params, key: &str) -> Result<Option<String>, Diag> {
    let Some(name) = params.text(key) else { return Ok(None) };
    let fits = name.len() <= IFNAME_MAX
        && !matches!(name, "." | "..")
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%'));
    let wrong = || {
        format!(
            "{key} `{name}` is no interface name: at most {IFNAME_MAX} bytes, without blanks, `/`, `:` and `%`"
        )
    };
    if fits { Ok(Some(name.to_owned())) } else { Err(params.error(key, wrong())) }
}

fn mac(params: &Params) -> Result<[u8; 6], Diag> {
    let Some(text) = params.text("mac") else { return Ok(random_mac()) };
    let mac = read_mac(text).ok_or_else(|| {
        params.error(
            "mac",
            format!("invalid mac `{text}`: six pairs of hexadecimal digits such as 00:16:3e:12:34:56"),
        )
    })?;
    match mac {
        [0, 0, 0, 0, 0, 0] => {
            Err(params.error("mac", "a mac of zeros is no address: leave it out for a random one"))
        }
        [first, ..] if first & 1 != 0 => {
            Err(params
                .error("mac", format!("mac `{text}` is a multicast address: its first byte must be even")))
        }
        _ => Ok(mac),
    }
}

/// Six pairs of hexadecimal digits.
pub fn read_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair =
            pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(mac)
}

/// `00:16:3e:12:34:56`
pub fn show_mac(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// One of Xen's.
fn random_mac() -> [u8; 6] {
    let random = Uuid::new_v4();
    let [a, b, c, ..] = *random.as_bytes();
    let [x, y, z] = XEN_OUI;
    [x, y, z, a, b, c]
}

/// `tcp:[ADDR:]HOSTPORT:GUESTPORT`; an IPv6 address stands in brackets.
fn forward(text: &str) -> Option<Forward> {
    let (protocol, rest) = text.split_once(':')?;
    let udp = match protocol {
        "tcp" => false,
        "udp" => true,
        _ => return None,
    };
    let (rest, guest) = rest.rsplit_once(':')?;
    let (address, host) = rest.rsplit_once(':').map_or((None, rest), |(address, host)| (Some(address), host));
    let bare = |address: &str| match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(six) => six.parse().ok().map(IpAddr::V6),
        None => address.parse().ok().map(IpAddr::V4),
    };
    let address = match address {
        None | Some("") => None,
        Some(address) => Some(bare(address)?),
    };
    let port = |text: &str| text.parse().ok().filter(|&port: &u16| port != 0 && !text.starts_with('+'));
    Some(Forward { udp, address, host_port: port(host)?, guest_port: port(guest)? })
}
