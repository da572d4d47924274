//! A domain's configuration in libxl's JSON: what `create -n` and `list -l` print.

use crate::json;
use anyhow::Result;
use serde::Serialize;
use xen_emu_api::config::{Action, DomainConfig};

/// `libxl_domain_config`; fields with libxl's default value are left out, as libxl does.
#[derive(Serialize)]
pub struct Config<'a> {
    c_info: CreateInfo<'a>,
    b_info: BuildInfo<'a>,
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
    kernel: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    cmdline: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ramdisk: Option<String>,
    #[serde(rename = "type.pvh")]
    pvh: Empty,
    arch_arm: Empty,
    arch_x86: Empty,
}

#[derive(Serialize)]
struct Empty {}

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
    /// Of a domain as configured.
    pub fn new(domain: &'a DomainConfig) -> Self {
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
                pvh: Empty {},
                arch_arm: Empty {},
                arch_x86: Empty {},
            },
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
    say!("{}", json::text(&Config::new(domain))?);
    Ok(())
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
        assert_eq!(json::text(&Config::new(&domain)).unwrap(), XL);
    }
}
