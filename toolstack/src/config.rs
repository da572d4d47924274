//! From settings to the domain that shall be built.

use crate::failure::Failure;
use crate::xlcfg::schema::Settings;
use crate::xlcfg::{Diag, Kind, Pos, Value};
use crate::{bootloader, cpus, device, pvshim};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xen_emu_api::config::{Accel, Action, Actions, DomainConfig, EventChannels, TscMode, Upcall};

/// vCPUs of one domain.
const MAX_VCPUS: u32 = 64;
/// 64 TiB: beyond any host, and far from overflow in bytes.
const MAX_MEMORY_MIB: u64 = 64 << 20;
/// As libxl: enough for a small guest.
const DEFAULT_MEMORY_MIB: u64 = 128;
/// libxl's defaults.
const GRANT_FRAMES: u32 = 64;
const EVENT_CHANNELS: u32 = 1023;
/// The highest port of 64-bit guests without FIFO.
const LAST_PORT_2L: u32 = 4095;

/// A domain and what there is to say about its configuration.
#[derive(Debug)]
pub struct Parsed {
    /// The domain.
    pub domain: DomainConfig,
    /// Where each of its devices stands.
    pub places: Vec<Pos>,
    /// One line each.
    pub warnings: Vec<String>,
}

/// Make a domain of `settings`, which came from `source`. No file but names in `/sys` and `/dev` is looked at.
pub fn domain(settings: &mut Settings, source: &Path) -> Result<Parsed> {
    check_type(settings, source)?;
    let (vcpus, max_vcpus) = vcpus(settings)?;
    let (memory_mib, maxmem_mib) = memory(settings)?;
    let devices = device::all(settings)?;
    let pvshim = pvshim::configured(settings)?;
    let domain = DomainConfig {
        name: name(settings, source)?,
        uuid: uuid(settings)?,
        kernel: kernel(settings, source)?,
        ramdisk: settings.text("ramdisk")?.map(absolute).transpose()?,
        cmdline: cmdline(settings)?,
        bootloader: bootloader::configured(settings)?,
        memory_mib,
        maxmem_mib,
        vcpus,
        max_vcpus,
        cpus: affinity(settings, max_vcpus)?,
        actions: actions(settings)?,
        // The shim wants a PVH guest as Xen makes them, and a PV guest has no ACPI.
        acpi: settings.flag("acpi")?.unwrap_or(true) && pvshim.is_none(),
        pvshim,
        max_grant_frames: settings.count("max_grant_frames", (1, 1 << 16), "64")?.unwrap_or(GRANT_FRAMES),
        max_grant_version: settings.count("max_grant_version", (1, 2), "1")?.unwrap_or(2),
        event_channels: settings.choice("event_channels", "ABI", &EventChannels::ALL)?.unwrap_or_default(),
        max_event_channels: settings
            .count("max_event_channels", (63, 1 << 17), "1023")?
            .unwrap_or(EVENT_CHANNELS),
        upcall: settings.choice("upcall", "delivery", &Upcall::ALL)?.unwrap_or_default(),
        tsc_mode: tsc_mode(settings)?,
        accel: settings.choice("accel", "backend", &Accel::ALL)?.unwrap_or_default(),
        hypercall_rewrite: settings.flag("hypercall_rewrite")?,
        devices: devices.iter().map(|placed| placed.device.clone()).collect(),
        source: Some(absolute(&source.to_string_lossy())?),
    };
    let mut warnings = std::mem::take(&mut settings.warnings);
    if let Some(value) = settings.value("max_event_channels")
        && domain.event_channels == EventChannels::TwoLevel
        && domain.max_event_channels > LAST_PORT_2L
    {
        warnings.push(format!(
            "{}: warning: a guest has no ports above {LAST_PORT_2L} by the 2-level ABI: event_channels = \"fifo\" has them",
            value.pos
        ));
    }
    let line = |diag: &Diag| format!("{}: warning: {}", diag.pos, diag.message);
    warnings.extend(devices.iter().flat_map(|placed| &placed.warnings).map(line));
    Ok(Parsed { domain, places: devices.into_iter().map(|placed| placed.at).collect(), warnings })
}

/// Which of the two keys says what kind of guest it is.
fn type_key(settings: &Settings) -> &'static str {
    if settings.value("type").is_some() { "type" } else { "builder" }
}

/// The key that names what is started: an HVM guest may have its test kernel in the place of the firmware.
fn kernel_key(settings: &Settings) -> Result<&'static str> {
    let hvm = settings.text(type_key(settings))? == Some("hvm");
    let instead = hvm && settings.text("kernel")?.is_none() && settings.text("firmware_override")?.is_some();
    Ok(if instead { "firmware_override" } else { "kernel" })
}

/// PVH is what there is; PV configurations run as PVH, or in a shim that does, and so do HVM ones that bring their own 32-bit entry.
fn check_type(settings: &mut Settings, source: &Path) -> Result<()> {
    let (key, firmware) = (type_key(settings), kernel_key(settings)? == "firmware_override");
    if !firmware && let Some(value) = settings.value("firmware_override").filter(|value| !value.is_empty()) {
        let warning = format!("{}: warning: `firmware_override` has no effect on a PVH guest", value.pos);
        settings.warnings.push(warning);
    }
    let shim = settings.flag("pvshim")? == Some(true);
    match (key, settings.text(key)?) {
        ("type", Some("pvh")) => {}
        (_, None | Some("pv" | "generic" | "linux")) if shim => {}
        (_, Some("hvm")) if firmware => settings.warnings.push(format!(
            "{}: note: there is no HVM yet; firmware_override is started as PVH if it can",
            source.display()
        )),
        (_, None) | ("type", Some("pv")) | ("builder", Some("generic" | "linux")) => {
            settings.warnings.push(format!(
                "{}: note: a PV guest cannot run on KVM; it is started as PVH if its kernel can: type = \"pvh\" says so, pvshim = 1 \
                 runs it in Xen's shim",
                source.display()
            ));
        }
        (_, Some("hvm")) => {
            return Err(
                settings.error(key, "HVM guests are not supported yet: use type = \"pvh\" with a kernel")
            );
        }
        (_, Some(other)) => {
            return Err(settings.error(key, format!("Invalid domain type {other}: expected \"pvh\"")));
        }
    }
    Ok(())
}

/// The words of xl, and the numbers that it still takes.
fn tsc_mode(settings: &Settings) -> Result<TscMode> {
    const MODES: [(&str, Option<TscMode>); 8] = [
        ("default", Some(TscMode::Default)),
        ("always_emulate", None),
        ("native", Some(TscMode::Native)),
        ("native_paravirt", None),
        ("0", Some(TscMode::Default)),
        ("1", None),
        ("2", Some(TscMode::Native)),
        ("3", None),
    ];
    match settings.choice("tsc_mode", "value", &MODES)? {
        None => Ok(TscMode::Default),
        Some(Some(mode)) => Ok(mode),
        Some(None) => Err(settings.error(
            "tsc_mode",
            "KVM does not emulate the TSC, and Xen has no native_paravirt any more: use \"default\" or \"native\"",
        )),
    }
}

fn name(settings: &Settings, source: &Path) -> Result<String> {
    let Some(name) = settings.text("name")? else {
        let file = source.display();
        return Err(anyhow::anyhow!("{file}: Domain name must be specified: name = \"guest\""));
    };
    let wrong = match name {
        _ if name.bytes().all(|b| b.is_ascii_digit()) => "it would be taken for a domain id: add a letter",
        _ if name.contains('/') => "`/` parts xenstore paths: leave it out",
        _ if name.chars().any(char::is_control) => "it has control characters: leave them out",
        "Domain-0" => "that is the host itself: take another one",
        _ => return Ok(name.to_owned()),
    };
    Err(settings.error("name", format!("{name:?} cannot be a domain's name: {wrong}")))
}

fn uuid(settings: &Settings) -> Result<String> {
    let uuid = match settings.text("uuid")? {
        None => Uuid::new_v4(),
        Some(text) => Uuid::try_parse(text).map_err(|_| {
            let right = "12345678-1234-5678-9abc-def012345678";
            settings.error("uuid", format!("Failed to parse UUID: {text}; it looks like {right}"))
        })?,
    };
    Ok(uuid.as_hyphenated().to_string())
}

fn kernel(settings: &Settings, source: &Path) -> Result<PathBuf> {
    if bootloader::configured(settings)?.is_some() {
        return Ok(PathBuf::new());
    }
    let file = source.display();
    let key = kernel_key(settings)?;
    if key == "firmware_override"
        && let Some(path) = settings.text(key)?
    {
        return beside(source, path);
    }
    let path = settings.text(key)?.with_context(|| {
        format!("{file}: Neither kernel nor bootloader specified: kernel = \"/boot/vmlinuz\" names a kernel with a PVH entry, \
             bootloader = \"pygrub\" takes the guest's own")
    })?;
    absolute(path)
}

/// Test suites put the kernel beside its configuration and start it from wherever they are.
fn beside(source: &Path, path: &str) -> Result<PathBuf> {
    let neighbour = source.parent().map(|folder| folder.join(path));
    match neighbour.filter(|neighbour| neighbour.is_file() && !Path::new(path).is_file()) {
        Some(neighbour) => absolute(&neighbour.to_string_lossy()),
        None => absolute(path),
    }
}

/// Refuse a kernel, ramdisk or image that cannot be read, before anything is built: status 3 as in xl. What comes
/// back are warnings.
pub fn check_files(settings: &Settings, parsed: &Parsed) -> Result<Vec<String>> {
    let domain = &parsed.domain;
    let kernel = domain.bootloader.is_none().then_some(&domain.kernel);
    let shim = domain.pvshim.as_ref().map(|shim| &shim.path);
    let files =
        [(kernel_key(settings)?, kernel), ("ramdisk", domain.ramdisk.as_ref()), ("pvshim_path", shim)];
    for (key, path) in files {
        let Some(path) = path else { continue };
        let opened = std::fs::File::open(path).and_then(|file| match file.metadata()?.is_dir() {
            true => Err(std::io::ErrorKind::IsADirectory.into()),
            false => Ok(()),
        });
        if let Err(error) = opened {
            let message = settings.error(key, format!("cannot open {key} {}: {error}", path.display()));
            return Err(Failure::error(3, message.to_string()));
        }
    }
    let mut warnings = Vec::new();
    for (device, at) in domain.devices.iter().zip(&parsed.places) {
        let warning =
            device::check_host(device).map_err(|error| Failure::error(3, format!("{at}: {error}")))?;
        warnings.extend(warning.map(|warning| format!("{at}: warning: {warning}")));
    }
    Ok(warnings)
}

fn cmdline(settings: &mut Settings) -> Result<String> {
    let (cmdline, root, extra) = (settings.text("cmdline")?, settings.text("root")?, settings.text("extra")?);
    let line = match (cmdline, root, extra) {
        (Some(line), ..) => line.to_owned(),
        (None, Some(root), Some(extra)) => format!("root={root} {extra}"),
        (None, Some(root), None) => format!("root={root}"),
        (None, None, extra) => extra.unwrap_or_default().to_owned(),
    };
    if cmdline.is_some() && (root.is_some() || extra.is_some()) {
        settings.warnings.push("Warning: ignoring root= and extra= in favour of cmdline=".into());
    }
    Ok(line)
}

fn memory(settings: &Settings) -> Result<(u64, u64)> {
    let range = (1, MAX_MEMORY_MIB);
    let max = settings.number("maxmem", range, "512")?;
    let memory = settings.number("memory", range, "512")?.or(max).unwrap_or(DEFAULT_MEMORY_MIB);
    match max {
        Some(max) if max < memory => {
            Err(settings.error("maxmem", format!("maxmem ({max}) is less than memory ({memory})")))
        }
        _ => Ok((memory, max.unwrap_or(memory))),
    }
}

fn vcpus(settings: &Settings) -> Result<(u32, u32)> {
    let max = settings.count("maxvcpus", (1, MAX_VCPUS), "2")?;
    // As with xl: of those that may come one is there.
    let vcpus = settings.count("vcpus", (1, MAX_VCPUS), "2")?.unwrap_or(1);
    match max {
        Some(max) if max < vcpus => {
            Err(settings.error("maxvcpus", format!("maxvcpus ({max}) < vcpus ({vcpus}): raise maxvcpus")))
        }
        _ => Ok((vcpus, max.unwrap_or(vcpus))),
    }
}

fn affinity(settings: &Settings, max_vcpus: u32) -> Result<Vec<Vec<usize>>> {
    let said = settings.value("cpus").filter(|value| value.kind != Kind::Text(String::new()));
    let Some(value) = said else { return Ok(Vec::new()) };
    let host = cpus::online()?;
    let one = |value: &Value| -> Result<Vec<usize>> {
        let text = match &value.kind {
            Kind::Text(text) => text.clone(),
            Kind::Number(number) => number.to_string(),
            _ => return Err(value.pos.error("a list of CPUs within a list").into()),
        };
        cpus::select(&text, &host).map_err(|message| value.pos.error(message).into())
    };
    let Kind::List(list) = &value.kind else { return Ok(vec![one(value)?]) };
    let mut all = list.iter().take(max_vcpus as usize).map(one).collect::<Result<Vec<_>>>()?;
    all.resize(max_vcpus as usize, host.clone());
    Ok(all)
}

fn actions(settings: &Settings) -> Result<Actions> {
    let read = |key: &str, default: Action| -> Result<Action> {
        Ok(settings.choice(key, "action", &Action::ALL)?.unwrap_or(default))
    };
    let default = Actions::default();
    Ok(Actions {
        poweroff: read("on_poweroff", default.poweroff)?,
        reboot: read("on_reboot", default.reboot)?,
        crash: read("on_crash", default.crash)?,
        watchdog: read("on_watchdog", default.watchdog)?,
        soft_reset: read("on_soft_reset", default.soft_reset)?,
    })
}

/// Relative paths are meant from the current directory, as in xl.
pub fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{path}: no absolute path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xlcfg::read;

    fn parsed(text: &str) -> Result<Parsed> {
        let source = Path::new("guest.cfg");
        domain(&mut Settings::new(read("guest.cfg", text)?)?, source)
    }

    const BASE: &str = "name='web'; type='pvh'; kernel='/boot/vmlinuz';";

    #[test]
    fn a_whole_configuration() {
        let text = "name = 'web01'\ntype = 'pvh'\nkernel = 'vmlinuz'\nramdisk = '/r.gz'\nroot = '/dev/xvda2 ro'\n\
            extra = 'console=hvc0'\nuuid = '12345678-1234-5678-9ABC-def012345678'\nvcpus = 2\nmaxvcpus = 4\n\
            memory = 512\nmaxmem = 1024\ncpus = \"0\"\non_crash = 'coredump-restart'\nacpi = 0\n\
            upcall = 'global'\ntsc_mode = 'native'\naccel = 'portable'\nhypercall_rewrite = 1\n";
        let Parsed { domain: got, warnings, .. } = parsed(text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(got.kernel, std::env::current_dir().unwrap().join("vmlinuz"));
        assert_eq!(
            (got.cmdline.as_str(), got.uuid.as_str()),
            ("root=/dev/xvda2 ro console=hvc0", "12345678-1234-5678-9abc-def012345678")
        );
        assert_eq!((got.vcpus, got.max_vcpus, got.memory_mib, got.maxmem_mib), (2, 4, 512, 1024));
        assert_eq!((got.cpus, got.acpi), (vec![vec![0]], false));
        assert_eq!((got.upcall, got.tsc_mode), (Upcall::Global, TscMode::Native));
        assert_eq!(
            (got.upcall, got.accel, got.hypercall_rewrite),
            (Upcall::Global, Accel::Portable, Some(true))
        );
        assert_eq!((got.actions.crash, got.actions.reboot), (Action::CoredumpRestart, Action::Restart));
        let small = parsed(BASE).unwrap().domain;
        let version = |text: &str| {
            parsed(&format!("{BASE} max_grant_version={text}")).map(|p| p.domain.max_grant_version)
        };
        assert_eq!((small.max_grant_version, version("1").unwrap(), version("2").unwrap()), (2, 1, 2));
        assert!(version("3").is_err());
        assert_eq!((small.vcpus, small.max_vcpus, small.memory_mib, small.maxmem_mib), (1, 1, 128, 128));
        assert_eq!((small.accel, small.hypercall_rewrite), (Accel::Auto, None));
        assert_eq!((small.max_grant_frames, small.max_event_channels, small.acpi), (64, 1023, true));
        let growing = parsed(&format!("{BASE} maxvcpus=4; cpus=''")).unwrap().domain;
        assert_eq!((growing.vcpus, growing.max_vcpus, growing.cpus.len()), (1, 4, 0));
        let pinned = parsed(&format!("{BASE} vcpus=3; cpus=['0', 0]")).unwrap().domain.cpus;
        assert_eq!((pinned.len(), &pinned[0], &pinned[1]), (3, &vec![0], &vec![0]));
    }

    #[test]
    fn what_cannot_be_is_said_in_one_line() {
        for (text, expected) in [
            ("type='pvh'", "guest.cfg: Domain name must be specified: name = \"guest\""),
            (
                "name='7'; type='pvh'",
                "guest.cfg:1:6: \"7\" cannot be a domain's name: it would be taken for a domain id: add a letter",
            ),
            (
                "name='a/b'; type='pvh'",
                "guest.cfg:1:6: \"a/b\" cannot be a domain's name: `/` parts xenstore paths: leave it out",
            ),
            ("name='a'; type='foo'", "guest.cfg:1:16: Invalid domain type foo: expected \"pvh\""),
            (
                "name='a'; builder='hvm'",
                "guest.cfg:1:19: HVM guests are not supported yet: use type = \"pvh\" with a kernel",
            ),
            (
                "name='a'; type='pvh'",
                "guest.cfg: Neither kernel nor bootloader specified: kernel = \"/boot/vmlinuz\" names a kernel with a PVH entry, \
                 bootloader = \"pygrub\" takes the guest's own",
            ),
            (
                "@ memory = \"lots\"",
                "guest.cfg:1:58: memory must be a number, \"lots\" is none; for example memory = 512",
            ),
            ("@ memory=512; maxmem=256", "guest.cfg:1:68: maxmem (256) is less than memory (512)"),
            ("@ vcpus=0", "guest.cfg:1:55: vcpus must be from 1 to 64, not 0; for example vcpus = 2"),
            ("@ vcpus=4; maxvcpus=2", "guest.cfg:1:67: maxvcpus (2) < vcpus (4): raise maxvcpus"),
            (
                "@ uuid='zz'",
                "guest.cfg:1:54: Failed to parse UUID: zz; it looks like 12345678-1234-5678-9abc-def012345678",
            ),
            (
                "@ on_crash='bogus'",
                "guest.cfg:1:58: Unknown on_crash action \"bogus\" specified: one of destroy, restart, rename-restart, \
                 preserve, coredump-destroy, coredump-restart, soft-reset",
            ),
            (
                "@ tsc_mode='always_emulate'",
                "guest.cfg:1:58: KVM does not emulate the TSC, and Xen has no native_paravirt any more: use \"default\" \
                 or \"native\"",
            ),
            (
                "@ accel='xen'",
                "guest.cfg:1:55: Unknown accel backend \"xen\" specified: one of auto, kernel, portable",
            ),
            (
                "@ upcall='local'",
                "guest.cfg:1:56: Unknown upcall delivery \"local\" specified: one of auto, vector, global",
            ),
        ] {
            let error = parsed(&text.replace('@', BASE)).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn an_hvm_guest_of_a_test_suite_starts_by_its_own_entry() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("test-hvm64-example"), "").unwrap();
        let source = dir.path().join("test.cfg");
        let text =
            "name='t'; builder='hvm'; memory=128; firmware_override='test-hvm64-example'; shadow_memory=4";
        let mut settings = Settings::new(read("test.cfg", text).unwrap()).unwrap();
        let parsed = domain(&mut settings, &source).unwrap();
        assert_eq!(parsed.domain.kernel, dir.path().join("test-hvm64-example"));
        assert!(parsed.warnings[1].contains("firmware_override is started as PVH"), "{:?}", parsed.warnings);
        assert!(check_files(&settings, &parsed).is_ok());
        let unused = super::tests::parsed(&format!("{BASE} firmware_override='/x'")).unwrap();
        assert_eq!(unused.domain.kernel, Path::new("/boot/vmlinuz"));
        assert!(unused.warnings[0].ends_with("`firmware_override` has no effect on a PVH guest"));
    }

    #[test]
    fn notes_do_not_stop_it() {
        let warnings = |text: &str| parsed(text).unwrap().warnings;
        assert!(warnings("name='a'; kernel='/k'")[0].contains("type = \"pvh\" says so"));
        let ports = |abi: &str, last: u32| {
            warnings(&format!("{BASE} event_channels='{abi}'\nmax_event_channels={last}"))
        };
        assert!(ports("2level", 4095).is_empty() && ports("fifo", 4096).is_empty());
        assert!(
            ports("2level", 4096)[0].starts_with("guest.cfg:2:20: warning: a guest has no ports above 4095")
        );
        assert_eq!(
            warnings(&format!("{BASE} cmdline='x'; root='y'")),
            ["Warning: ignoring root= and extra= in favour of cmdline="]
        );
    }
}
