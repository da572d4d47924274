//! `xlr info`: xl's keys in xl's order, then what the host offers to guests.

use crate::args::Args;
use crate::commands::nearest;
use crate::failure::Failure;
use crate::host::Host;
use crate::{cpus, proc, spawn};
use anyhow::Result;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeSet;
use std::process::Command;

/// What `xen-emu --probe` says: the domain's own program is asked, since xlr never opens /dev/kvm.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Probe {
    kvm: bool,
    xen_hvm: u32,
    xen_hvm_names: Vec<String>,
    portable: Vec<String>,
    backend: String,
    reason: String,
    xen: Personality,
}

/// The Xen that guests see.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Personality {
    major: u32,
    minor: u32,
    extra: String,
    caps: String,
    changeset: String,
    compiler: String,
    virt_start: u64,
}

/// Keys and values in their order; as JSON an object of strings.
struct Facts(Vec<(&'static str, String)>);

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// `xlr info`
pub fn run(args: &Args) -> Result<()> {
    let mut facts = Facts(host()?);
    facts.0.extend(memory());
    let place = facts.0.len();
    let probe = probe();
    facts.0.extend(personality(&probe.xen));
    facts.0.extend(backend(&probe));
    facts.0.push(("domain_backends", domain_backends()));
    if let Some(field) = args.words.first() {
        return one(&facts, field);
    }
    if args.has("json") {
        say!("{}", serde_json::to_string_pretty(&facts)?);
        return Ok(());
    }
    for (at, (key, value)) in facts.0.iter().enumerate() {
        if at == place && args.has("numa") {
            topology()?;
        }
        say!("{key:<22} : {value}");
    }
    Ok(())
}

/// The value of one field, as scripts ask for it: `xl info xen_caps`.
fn one(facts: &Facts, field: &str) -> Result<()> {
    let Some((_, value)) = facts.0.iter().find(|(key, _)| *key == field) else {
        let near = nearest(field, facts.0.iter().map(|(key, _)| *key));
        let hint = near.map_or_else(String::new, |near| format!(", did you mean `{near}'?"));
        return Err(Failure::error(1, format!("info has no field `{field}'{hint}")));
    };
    say!("{value}");
    Ok(())
}

fn host() -> Result<Vec<(&'static str, String)>> {
    let name = nix::sys::utsname::uname()?;
    let word = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let cpus = cpus::online()?;
    let number = |name: &str| proc::cpuinfo(name).and_then(|v| v.parse::<usize>().ok()).unwrap_or(1).max(1);
    let (siblings, cores) = (number("siblings"), number("cpu cores"));
    Ok(vec![
        ("host", word(name.nodename())),
        ("release", word(name.release())),
        ("version", word(name.version())),
        ("machine", word(name.machine())),
        ("nr_cpus", cpus.len().to_string()),
        ("max_cpu_id", cpus.iter().max().copied().unwrap_or(0).to_string()),
        ("nr_nodes", nodes().len().max(1).to_string()),
        ("cores_per_socket", cores.to_string()),
        ("threads_per_core", (siblings / cores).max(1).to_string()),
        ("cpu_mhz", proc::cpuinfo("cpu MHz").unwrap_or_default()),
        ("hw_caps", hw_caps()),
        ("virt_caps", virt_caps()),
    ])
}

/// The feature words of CPUID that xl shows; all but the first five are 0 on a CPU without them.
fn hw_caps() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let (basic, extended, state, seven) =
            (__cpuid(1), __cpuid(0x8000_0001), __cpuid_count(13, 1), __cpuid_count(7, 0));
        let power = __cpuid(0x8000_0007);
        let seven = if __cpuid(0).eax >= 7 { seven } else { basic_zero() };
        let state = if __cpuid(0).eax >= 13 { state } else { basic_zero() };
        [basic.edx, basic.ecx, extended.edx, extended.ecx, state.eax, seven.ebx, seven.ecx, power.edx]
            .map(|word| format!("{word:08x}"))
            .join(":")
    }
    #[cfg(not(target_arch = "x86_64"))]
    String::new()
}

#[cfg(target_arch = "x86_64")]
fn basic_zero() -> std::arch::x86_64::CpuidResult {
    std::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
}

fn virt_caps() -> String {
    let on = |path: &str| matches!(proc::text(path).as_str(), "Y" | "1");
    let hap = on("/sys/module/kvm_intel/parameters/ept") || on("/sys/module/kvm_amd/parameters/npt");
    format!("hvm{} gnttab-v1 gnttab-v2", if hap { " hap" } else { "" })
}

fn memory() -> Vec<(&'static str, String)> {
    let memory = proc::meminfo();
    let mib = |key: &str| (memory.get(key).copied().unwrap_or(0) >> 10).to_string();
    let mut facts = vec![("total_memory", mib("MemTotal")), ("free_memory", mib("MemAvailable"))];
    let none = ["sharing_freed_memory", "sharing_used_memory", "outstanding_claims", "free_cpus"];
    facts.extend(none.map(|key| (key, "0".to_owned())));
    facts
}

fn personality(xen: &Personality) -> Vec<(&'static str, String)> {
    vec![
        ("xen_major", xen.major.to_string()),
        ("xen_minor", xen.minor.to_string()),
        ("xen_extra", xen.extra.clone()),
        ("xen_version", format!("{}.{}{}", xen.major, xen.minor, xen.extra)),
        ("xen_caps", xen.caps.clone()),
        ("xen_scheduler", "linux".to_owned()),
        ("xen_pagesize", "4096".to_owned()),
        ("platform_params", format!("virt_start={:#x}", xen.virt_start)),
        ("xen_changeset", xen.changeset.clone()),
        ("xen_commandline", String::new()),
        ("cc_compiler", xen.compiler.clone()),
        ("cc_compile_by", String::new()),
        ("cc_compile_domain", String::new()),
        ("cc_compile_date", String::new()),
        ("build_id", String::new()),
        ("xend_config_format", "4".to_owned()),
    ]
}

/// Without an answer the reason stands where the backend would.
fn probe() -> Probe {
    let none = |reason: String| Probe { backend: "none".to_owned(), reason, ..Probe::default() };
    match Command::new(spawn::program("xen-emu")).arg("--probe").output() {
        Ok(out) => serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|_| none("xen-emu --probe gave no answer".to_owned())),
        Err(error) => none(format!("xen-emu cannot be started: {error}")),
    }
}

fn backend(probe: &Probe) -> Vec<(&'static str, String)> {
    let reason = if probe.reason.is_empty() { String::new() } else { format!(" ({})", probe.reason) };
    vec![
        ("xlr_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("kvm", if probe.kvm { "yes" } else { "no" }.to_owned()),
        (
            "kvm_xen_hvm",
            format!("{:#x} {}", probe.xen_hvm, probe.xen_hvm_names.join(" ")).trim_end().to_owned(),
        ),
        ("kvm_portable", probe.portable.join(" ")),
        ("backend", format!("{}{reason}", probe.backend)),
    ]
}

/// Which of the backends each domain runs on that lives.
fn domain_backends() -> String {
    let living = Host::open().and_then(|host| host.probe()).map(|(living, _)| living).unwrap_or_default();
    let told = living.iter().filter(|domain| !domain.status.backend.is_empty());
    let each: Vec<_> = told.map(|d| format!("{}={}", d.status.name, d.status.backend)).collect();
    each.join(" ")
}

fn nodes() -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()).collect()
}

/// `-n`: CPUs and nodes.
fn topology() -> Result<()> {
    say!("cpu_topology           :\ncpu:    core    socket     node");
    for cpu in cpus::online()? {
        let base = format!("/sys/devices/system/cpu/cpu{cpu}");
        let part = |name: &str| proc::text(&format!("{base}/topology/{name}"));
        let node =
            nodes().into_iter().find(|node| std::path::Path::new(&format!("{base}/node{node}")).exists());
        say!("{cpu:>3}: {:>7} {:>8} {:>8}", part("core_id"), part("physical_package_id"), node.unwrap_or(0));
    }
    say!("device topology        :\ndevice           node\nNo device topology data available");
    say!("numa_info              :\nnode:    memsize    memfree    distances");
    for node in nodes() {
        let base = format!("/sys/devices/system/node/node{node}");
        let text = proc::text(&format!("{base}/meminfo"));
        let mib = |key: &str| {
            let line = text.lines().find(|line| line.contains(key));
            line.and_then(|l| l.split_whitespace().nth(3)?.parse::<u64>().ok()).unwrap_or(0) >> 10
        };
        let distances = proc::text(&format!("{base}/distance")).replace(' ', ",");
        say!("{node:>4}: {:>9} {:>10}      {distances}", mib("MemTotal:"), mib("MemFree:"));
    }
    Ok(())
}
