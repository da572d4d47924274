//! A domain's configuration in libxl's JSON: what `create -n` and `list -l` print.

mod devices;

use crate::json;
use anyhow::Result;
use devices::{Channel, Disk, Nic};
use serde::Serialize;
use xen_emu_api::config::{Action, DomainConfig, PvShim};
use xen_emu_api::device::Device;

/// `libxl_domain_config`; fields with libxl's default value are left out, as libxl does.
#[derive(Serialize)]
pub struct Config<'a> {
    c_info: CreateInfo<'a>,
    b_info: BuildInfo<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<Disk<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nics: Vec<Nic<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    channels: Vec<Channel<'a>>,
    #[serde(skip_serializing_if = "is_destroy")]
    on_poweroff: String,
    #[serde(skip_serializing_if = "is_destroy")]
    on_reboot: String,
    #[serde(skip_serializing_if = "is_destroy")]
    on_watchdog: String,
    #[serde(skip_serializing_if = "is_destroy")]
    on_crash: String,
    #[serde(skip_serializing_if = "is_destroy")]
    on_soft_reset: String,
}

#[derive(Serialize)]
struct CreateInfo<'a> {
    r#type: &'static str,
    name: &'a str,
    uuid: &'a str,
    run_hotplug_scripts: &'static str,
}

#[derive(Serialize)]
struct BuildInfo<'a> {
    max_vcpus: u32,
    avail_vcpus: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vcpu_hard_affinity: Vec<&'a [usize]>,
    max_memkb: u64,
    target_memkb: u64,
    sched_params: Empty,
    claim_mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    acpi: Option<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    kernel: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    cmdline: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ramdisk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootloader: Option<&'static str>,
    #[serde(rename = "type.pvh")]
    pvh: Pvh<'a>,
    arch_arm: Empty,
    arch_x86: Empty,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(untagged)]
enum Pvh<'a> {
    Plain {},
    Shim { pvshim: &'static str, pvshim_path: String, pvshim_cmdline: &'a str },
}

impl<'a> Pvh<'a> {
    fn new(shim: Option<&'a PvShim>) -> Pvh<'a> {
        let shown = |shim: &'a PvShim| Pvh::Shim {
            pvshim: "True",
            pvshim_path: shim.path.to_string_lossy().into_owned(),
            pvshim_cmdline: &shim.cmdline,
        };
        shim.map_or(Pvh::Plain {}, shown)
    }
}

fn is_destroy(action: &str) -> bool {
    action == "destroy"
}

/// libxl's enumeration spells `rename-restart` `restart_rename`.
fn action(action: Action) -> String {
    match action {
        Action::RenameRestart => "restart_rename".into(),
        other => other.name().replace('-', "_"),
    }
}

impl<'a> Config<'a> {
    /// Of a domain as configured; `built` adds what libxl decides when it builds it.
    pub fn new(domain: &'a DomainConfig, built: bool) -> Self {
        let (mut disks, mut nics, mut channels) = (Vec::new(), Vec::new(), Vec::new());
        for device in &domain.devices {
            match device {
                Device::Disk(disk) => disks.push(Disk::new(disk)),
                Device::Vif(vif) => nics.push(Nic::new(vif, built)),
                Device::Channel(channel) => channels.push(Channel::new(channel)),
            }
        }
        let each = |vcpu: u32| domain.cpus.get(vcpu as usize).or(domain.cpus.first()).map(Vec::as_slice);
        Config {
            c_info: CreateInfo {
                r#type: "pvh",
                name: &domain.name,
                uuid: &domain.uuid,
                run_hotplug_scripts: "True",
            },
            b_info: BuildInfo {
                max_vcpus: domain.max_vcpus,
                avail_vcpus: (0..domain.vcpus).collect(),
                vcpu_hard_affinity: (0..domain.max_vcpus).filter_map(each).collect(),
                max_memkb: domain.maxmem_mib << 10,
                target_memkb: domain.memory_mib << 10,
                sched_params: Empty {},
                claim_mode: "True",
                acpi: (!domain.acpi).then_some("False"),
                kernel: domain.kernel.to_string_lossy().into_owned(),
                cmdline: &domain.cmdline,
                ramdisk: domain.ramdisk.as_ref().map(|path| path.to_string_lossy().into_owned()),
                bootloader: domain.bootloader.as_ref().map(|_| "pygrub"),
                pvh: Pvh::new(domain.pvshim.as_ref()),
                arch_arm: Empty {},
                arch_x86: Empty {},
            },
            disks,
            nics,
            channels,
            on_poweroff: action(domain.actions.poweroff),
            on_reboot: action(domain.actions.reboot),
            on_watchdog: action(domain.actions.watchdog),
            on_crash: action(domain.actions.crash),
            on_soft_reset: action(domain.actions.soft_reset),
        }
    }
}

/// Print what `create` would build.
pub fn print(domain: &DomainConfig) -> Result<()> {
    say!("{}", json::text(&Config::new(domain, false))?);
    Ok(())
}

/// What `block-attach` and its siblings print instead of attaching.
pub fn device(device: &Device) -> Result<String> {
    Ok(devices::one(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, xlcfg};
    use std::path::Path;

    /// What xl 4.20 printed for this configuration.
    const XL: &str = r#"{
    "c_info": {
        "type": "pvh",
        "name": "over",
        "uuid": "98039734-d097-4058-8740-ef93ebc4467b",
        "run_hotplug_scripts": "True"
    },
    "b_info": {
        "max_vcpus": 2,
        "avail_vcpus": [
            0,
            1
        ],
        "max_memkb": 524288,
        "target_memkb": 524288,
        "sched_params": {

        },
        "claim_mode": "True",
        "kernel": "/guest/vmlinuz612",
        "type.pvh": {

        },
        "arch_arm": {

        },
        "arch_x86": {

        }
    },
    "on_reboot": "restart",
    "on_soft_reset": "soft_reset"
}"#;

    #[test]
    fn the_same_bytes_as_xl() {
        let text = "name='over'; uuid='98039734-d097-4058-8740-ef93ebc4467b'; type='pvh'; vcpus=2; memory=512
            kernel='/guest/vmlinuz612'";
        let settings = xlcfg::read("c1.cfg", text).unwrap();
        let mut settings = xlcfg::schema::Settings::new(settings).unwrap();
        let domain = config::domain(&mut settings, Path::new("c1.cfg")).unwrap().domain;
        assert_eq!(json::text(&Config::new(&domain, false)).unwrap(), XL);
    }

    /// What xl 4.20 printed between the objects and the actions.
    const DEVICES: &str = r#"
    "disks": [
        {
            "pdev_path": "/dev/vg0/web01-swap",
            "vdev": "xvda1",
            "format": "raw",
            "readwrite": 1
        },
        {
            "pdev_path": "/srv/iso/debian.iso",
            "vdev": "xvdc",
            "format": "raw",
            "removable": 1,
            "is_cdrom": 1
        },
        {
            "pdev_path": "/root/image-copy.qcow2",
            "vdev": "hdd",
            "format": "qcow2",
            "readwrite": 1
        },
        {
            "pdev_path": "/a/b c.img",
            "vdev": "xvdd",
            "backend": "qdisk",
            "format": "raw",
            "readwrite": 1
        },
        {
            "pdev_path": "res0",
            "vdev": "xvdk",
            "format": "raw",
            "script": "block-drbd",
            "readwrite": 1
        },
        {
            "pdev_path": "/y",
            "vdev": "xvdh",
            "format": "raw",
            "readwrite": 1,
            "discard_enable": "False"
        },
        {
            "pdev_path": "",
            "vdev": "hdc",
            "format": "empty",
            "removable": 1,
            "is_cdrom": 1
        }
    ],
    "nics": [
        {
            "devid": 0,
            "mac": "00:16:3e:12:34:56",
            "ip": "10.0.0.5",
            "bridge": "xenbr0",
            "ifname": "web01.0",
            "rate_bytes_per_interval": 62500,
            "rate_interval_usecs": 50000
        }
    ],
    "on_reboot": "restart","#;

    fn with_devices() -> DomainConfig {
        let text = "name='web01'; type='pvh'; kernel='/k'
            disk = ['phy:/dev/vg0/web01-swap,xvda1,w', 'file:/srv/iso/debian.iso,xvdc:cdrom,r',
                '/root/image-copy.qcow2,qcow2,hdd', 'vdev=xvdd,format=raw,backendtype=qdisk,target=/a/b c.img',
                'drbd:res0,xvdk,w', 'vdev=xvdh,no-discard,target=/y', ',empty,hdc:cdrom,r']
            vif = ['mac=00:16:3E:12:34:56,bridge=xenbr0,ip=10.0.0.5,rate=10Mb/s,vifname=web01.0']
            channel = ['connection=socket,path=/run/ch.sock,name=org.xlr.agent', 'connection=pty,name=b']";
        let mut settings = xlcfg::schema::Settings::new(xlcfg::read("c2.cfg", text).unwrap()).unwrap();
        config::domain(&mut settings, Path::new("c2.cfg")).unwrap().domain
    }

    #[test]
    fn devices_have_the_same_bytes_as_xl_s() {
        let mut domain = with_devices();
        let channels = domain.devices.split_off(8);
        let text = json::text(&Config::new(&domain, false)).unwrap();
        assert!(text.contains(DEVICES), "{text}");
        domain.devices = channels;
        let found: serde_json::Value = serde_json::to_value(Config::new(&domain, false)).unwrap();
        assert_eq!(
            found["channels"],
            serde_json::json!([
                { "devid": 0, "name": "org.xlr.agent", "connection.socket": { "path": "/run/ch.sock" } },
                { "devid": 1, "name": "b", "connection.pty": {} },
            ])
        );
    }

    #[test]
    fn a_built_domain_has_what_libxl_decides() {
        let found = serde_json::to_value(Config::new(&with_devices(), true)).unwrap();
        assert_eq!(found["nics"][0]["nictype"], "vif");
    }
}
