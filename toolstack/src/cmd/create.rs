//! `xlr create`: read the configuration, start the domain's process, and stay as long as asked.

use super::shown::Shown;
use super::terminal::Ended;
use super::vigil::Vigil;
use super::{console, terminal};
use crate::args::{Args, superfluous};
use crate::domains::Domain;
use crate::failure::Failure;
use crate::host::Host;
use crate::xlcfg::XlConf;
use crate::xlcfg::schema::Settings;
use crate::{commands, config, dry_run, spawn, store, xlcfg};
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::path::Path;
use xen_emu_api::config::{DomainConfig, Launch};
use xen_emu_api::control::Request;
use xen_emu_api::run_dir::RunDir;

/// `xlr create`
pub fn run(args: &Args) -> Result<()> {
    let (file, overrides) = source(args)?;
    let quiet = args.has("quiet");
    if !quiet {
        tell!("Parsing config from {file}");
    }
    let mut settings = settings(file, overrides)?;
    let parsed = config::domain(&mut settings, Path::new(file))?;
    if !quiet {
        parsed.warnings.iter().for_each(|warning| tell!("{warning}"));
    }
    let dry = args.has("dryrun") || args.globals.dry_run;
    if dry || args.has("d") {
        dry_run::print(&parsed.domain)?;
    }
    if dry {
        return Ok(());
    }
    let warnings = config::check_files(&settings, &parsed)?;
    if !quiet {
        warnings.iter().for_each(|warning| tell!("{warning}"));
    }
    let host = Host::open()?;
    let dir = start(&host, parsed.domain, args).map_err(|error| Failure::error(3, format!("{error:#}")))?;
    if stays(args) { follow(&host, host.find(&dir.domid.to_string())?, args) } else { Ok(()) }
}

/// `-c` and `-F`: the domain runs only when xlr watches it, since a small guest may end at once.
fn stays(args: &Args) -> bool {
    args.has("c") || args.has("F")
}

/// The file and the `key=value` words, in any order; as in xl a word with `=` is no file.
fn source(args: &Args) -> Result<(&str, Vec<&String>)> {
    let (overrides, files): (Vec<_>, Vec<_>) = args.words.iter().partition(|word| word.contains('='));
    let mut files = args.value("defconfig").into_iter().chain(files.into_iter().map(String::as_str));
    match (files.next(), files.next()) {
        (Some(file), None) => Ok((file, overrides)),
        (_, Some(extra)) => Err(superfluous(commands::find("create")?, &args.globals, extra)),
        (None, _) => Err(Failure::error(6, "Config file not specified: xlr create FILE [key=value ...]")),
    }
}

fn settings(file: &str, overrides: Vec<&String>) -> Result<Settings> {
    let bytes = std::fs::read(file)
        .map_err(|error| Failure::error(3, format!("Failed to read config file: {file}: {error}")))?;
    let mut list = xlcfg::read(file, text(file, &bytes)?)?;
    for word in overrides {
        list.extend(xlcfg::read_override(word)?);
    }
    Ok(Settings::new(list)?.on(XlConf::read()?))
}

/// The text of a configuration, which must be UTF-8.
fn text<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let (good, rest) = bytes.split_at(error.valid_up_to());
        let line = good.split(|&byte| byte == b'\n').count();
        let byte = rest.first().copied().unwrap_or_default();
        Failure::error(
            1,
            format!("{file}:{line}: byte {byte:#04x} is not UTF-8 text: `iconv -f LATIN1` converts it"),
        )
    })
}

/// Have the domain built. On an error nothing of it is left.
fn start(host: &Host, config: DomainConfig, args: &Args) -> Result<RunDir> {
    // Cleans up after a dead one of the same name.
    host.survey()?;
    // Held to the end.
    let _creation = host.root.lock()?;
    check_unique(&host.probe()?.0, &config)?;
    let store = RefCell::new(store::ensure(host).context("xenstored")?);
    let taken =
        |domid: u16| matches!(store.borrow_mut().read_opt(&format!("/local/domain/{domid}")), Ok(Some(_)));
    let dir = host.root.reserve(taken)?;
    let launch = Launch {
        domid: dir.domid,
        run_root: host.root.path().to_owned(),
        xenstored: host.xenstored.clone(),
        paused: args.has("p") || stays(args),
        supervise: !args.has("e"),
        config,
    };
    let built = write_launch(&dir, &launch).and_then(|()| spawn::domain(&dir, args.has("quiet")));
    if let Err(error) = built {
        give_up(host, &dir, &launch.config);
        return Err(error);
    }
    Ok(dir)
}

/// A name means one domain, and so does the UUID, by which `/vm` knows it.
fn check_unique(living: &[Domain], config: &DomainConfig) -> Result<()> {
    for Domain { dir, status } in living {
        let (key, value) = match status {
            _ if status.name == config.name => ("name", format!("{:?}", config.name)),
            _ if status.uuid == config.uuid => ("uuid", config.uuid.clone()),
            _ => continue,
        };
        let id = dir.domid;
        anyhow::bail!("Domain with {key} {value} already exists (id {id}): destroy it or take another {key}");
    }
    Ok(())
}

fn write_launch(dir: &RunDir, launch: &Launch) -> Result<()> {
    let text = serde_json::to_vec_pretty(launch)?;
    std::fs::write(dir.launch(), text).with_context(|| format!("cannot write {}", dir.launch().display()))
}

/// The process has cleaned up after itself where it could.
fn give_up(host: &Host, dir: &RunDir, config: &DomainConfig) {
    if let Err(error) = store::forget(host, dir.domid, &config.uuid) {
        tell!("nodes of domain {} stay: {error:#}", dir.domid);
    }
    if let Err(error) = dir.remove() {
        tell!("cannot remove {}: {error}", dir.path().display());
    }
}

/// `-c` and `-F`: the console, the foreground, or both; through restarts.
fn follow(host: &Host, domain: Domain, args: &Args) -> Result<()> {
    let (foreground, supervised) = (args.has("F"), !args.has("e"));
    let mut attach = args.has("c");
    let mut unpause = !args.has("p");
    let mut vigil = Vigil::keep(domain, supervised)?;
    let mut shown = Shown::default();
    loop {
        let stream = attach.then(|| console::connect(vigil.domain())).transpose()?;
        if std::mem::take(&mut unpause) {
            vigil.domain().ask(&Request::Unpause)?;
        }
        if let Some(stream) = stream {
            attach = terminal::attach(stream.into(), terminal::ESCAPE, &mut shown)? == Ended::Gone;
            if !attach && !foreground {
                return Ok(());
            }
        }
        let next = end(&mut vigil, host, foreground && !args.has("quiet"))?;
        match next {
            Some(next) => {
                vigil = next;
                shown.expect_repetition();
            }
            None => return Ok(()),
        }
    }
}

/// Await the end; `log` says what happens in the words of xl's monitor.
fn end(vigil: &mut Vigil, host: &Host, log: bool) -> Result<Option<Vigil>> {
    let note = |line: String| {
        if log {
            tell!("{line}");
        }
    };
    let (name, domid) = (vigil.domain().status.name.clone(), vigil.domain().dir.domid);
    note(format!("Waiting for domain {name} (domid {domid}) to die [pid {}]", vigil.pid()));
    let reason = vigil.end()?;
    match reason {
        Some(reason) => {
            note(format!("Domain {domid} has shut down, reason code {reason} {reason:#x}"));
            let action = vigil.action(reason).map_or("none", xen_emu_api::config::Action::name);
            note(format!("Action for shutdown reason code {reason} is {action}"));
        }
        None => {
            note(format!("Domain {domid} has been destroyed."));
            // Or its process died: that is said and cleaned up.
            host.survey()?;
        }
    }
    let next = vigil.successor(host, reason)?;
    match &next {
        Some(next) => note(format!("Done. Rebooting now: domain {}", next.domain().dir.domid)),
        None => {
            if !reason.is_some_and(|reason| vigil.keeps(reason)) {
                vigil.gone()?;
            }
            note("Done. Exiting now".into());
        }
    }
    Ok(next)
}
