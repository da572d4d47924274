//! Debian packages by the machine's own `apt`, with sources, lists and state in the cache: the system's are only read.
//!
//! Mirror addresses come from the sources the machine is configured with, whatever their format; other suites of the same mirrors are
//! added to them. The dpkg status is empty, so that resolving a package yields all it needs to run from a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cache::Cache;
use crate::step::{step, watch_download};

/// Suites whose lists are kept together.
#[derive(Debug)]
pub struct Suites {
    /// The folder of the cache for lists and state.
    folder: &'static str,
    /// Of Debian's archive.
    archive: &'static [&'static str],
    /// Of its security archive, for the kernels.
    security: &'static str,
    /// More options of the sources, each with a space behind it.
    options: &'static str,
}

/// Where the packages are from, on any host: they run from the cache with their own libraries.
pub const CURRENT: Suites = Suites {
    folder: "apt",
    archive: &["bookworm", "trixie", "trixie-backports"],
    security: "bookworm-security",
    options: "",
};
/// Debian 11, which mirrors need not have any more: its lists may be missing while the others are there. Nobody renews them.
pub const OLD: Suites = Suites {
    folder: "apt-old",
    archive: &["bullseye"],
    security: "bullseye-security",
    options: "check-valid-until=no ",
};
/// Debian's keys; where the package debian-archive-keyring is missing apt's trusted keys decide.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One package of an exact version to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// `name=version`, as apt takes it.
    pub spec: String,
    /// Size of the `.deb` in bytes.
    pub bytes: u64,
}

/// An apt of our own inside the cache.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Writes the configuration and fetches the package lists if there are none. The caller holds the cache's lock.
    pub fn open(cache: &Cache, suites: &Suites) -> Result<Self> {
        let apt = Self { folder: cache.root().join(suites.folder) };
        for folder in ["state", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.folder.join(folder))?;
        }
        fs::write(apt.folder.join("status"), "")?;
        fs::write(apt.folder.join("apt.conf"), configuration(&apt.folder)?)?;
        // The lists belong to the sources they were fetched from.
        let sources = sources(suites)?;
        if fs::read_to_string(apt.folder.join("updated")).is_ok_and(|of| of == sources) {
            return Ok(apt);
        }
        fs::write(apt.folder.join("sources.list"), &sources)?;
        apt.update()?;
        Ok(apt)
    }

    /// Fetches the package lists anew.
    pub fn update(&self) -> Result<()> {
        step("package lists", || self.output("apt-get", &["update", "-qq", "--error-on=any"]))?;
        fs::copy(self.folder.join("sources.list"), self.folder.join("updated"))
            .context("cannot write to the cache")?;
        Ok(())
    }

    /// `packages` of the suite and all they depend on.
    pub fn closure(&self, suite: &str, packages: &[&str]) -> Result<Vec<Package>> {
        let mut args = vec!["install", "--print-uris", "-qq", "--yes", "--target-release", suite];
        args.extend(packages);
        let found = self.output("apt-get", &args)?.lines().map(parse_uri_line).collect::<Result<Vec<_>>>()?;
        ensure!(!found.is_empty(), "apt resolves {packages:?} to nothing");
        Ok(found)
    }

    /// The newest package whose name matches the POSIX regular expression, alone.
    pub fn newest(&self, pattern: &str) -> Result<Vec<Package>> {
        let names = self.output("apt-cache", &["search", "--names-only", pattern])?;
        let Some(name) = names.lines().filter_map(|l| l.split_whitespace().next()).max_by_key(|n| numbers(n))
        else {
            bail!("the package lists have no package named like {pattern}");
        };
        let uris = self.output("apt-get", &["download", "--print-uris", "-qq", name])?;
        uris.lines().map(parse_uri_line).collect()
    }

    /// Downloads the packages as `.deb` files into `folder`; apt checks sizes, sums and signatures.
    pub fn download(&self, packages: &[Package], folder: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["download", "-qq"]).args(packages.iter().map(|p| &p.spec)).current_dir(folder);
        let total = packages.iter().map(|p| p.bytes).sum();
        let status = watch_download(command.stdout(Stdio::null()), folder, total)?;
        ensure!(status.success(), "apt-get could not download {} packages ({status})", packages.len());
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf")).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args))
    }
}

/// Runs a command to its end and returns what it printed; a failure carries its error text.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}: is it installed?"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed ({}): {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Only what the machine says about fetching (proxies, certificates) is taken over; its hooks and paths are not.
fn configuration(folder: &Path) -> Result<String> {
    let dump = run(Command::new("apt-config").arg("dump"))?;
    let mut text: String =
        dump.lines().filter(|l| l.starts_with("Acquire::")).map(|l| format!("{l}\n")).collect();
    let folder = folder.display();
    for (key, value) in [
        ("Dir::Etc::main", "/dev/null".to_owned()),
        ("Dir::Etc::parts", "/dev/null".to_owned()),
        ("Dir::Etc::sourcelist", format!("{folder}/sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
        ("Dir::Etc::preferences", "/dev/null".to_owned()),
        ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
        ("Dir::State", format!("{folder}/state")),
        ("Dir::State::lists", format!("{folder}/lists")),
        ("Dir::State::status", format!("{folder}/status")),
        ("Dir::Cache", format!("{folder}/cache")),
        ("APT::Sandbox::User", "root".to_owned()),
        ("APT::Install-Recommends", "false".to_owned()),
        ("APT::Architecture", "amd64".to_owned()),
    ] {
        text += &format!("{key} \"{value}\";\n");
    }
    Ok(text)
}

fn sources(suites: &Suites) -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE) $(ORIGIN)";
    let listed =
        run(Command::new("apt-get").args(["indextargets", "Created-By: Packages", "--format", format]))
            .context("the lab takes its packages from a Debian 12 or 13 machine's own mirrors")?;
    let (archive, security) = mirrors(&listed).with_context(|| {
        format!(
            "no Debian mirror among this machine's apt sources; apt-get indextargets says: {:?}",
            listed.trim()
        )
    })?;
    let option = if Path::new(KEYRING).exists() {
        format!("[arch=amd64 {}signed-by={KEYRING}]", suites.options)
    } else {
        format!("[arch=amd64 {}]", suites.options)
    };
    let mut text = format!("deb {option} {security} {} main\n", suites.security);
    for suite in suites.archive {
        text += &format!("deb {option} {archive} {suite} main\n");
    }
    Ok(text)
}

/// The addresses of the archive and of the security archive, from lines `URI release origin`. The origin is empty before the machine's
/// first `apt-get update`; then the address has to look like Debian's.
fn mirrors(listed: &str) -> Option<(String, String)> {
    let (mut archive, mut security) = (None, None);
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        let (Some(uri), Some(release)) = (words.next(), words.next()) else { continue };
        let origin = words.next().filter(|o| !o.starts_with('$'));
        let path = uri.trim_end_matches('/');
        if release.ends_with("-security") || path.ends_with("-security") {
            if origin.map_or(path.ends_with("security"), |o| o == "Debian") {
                security.get_or_insert_with(|| uri.to_owned());
            }
        } else if origin.map_or(path.ends_with("/debian"), |o| o == "Debian") {
            archive.get_or_insert_with(|| uri.to_owned());
        }
    }
    let archive = archive?;
    let security = security.unwrap_or_else(|| format!("{}-security", archive.trim_end_matches('/')));
    Some((archive, security))
}

/// One line of `--print-uris`: `'URI' name_version_arch.deb SIZE HASH`, the version percent-encoded.
fn parse_uri_line(line: &str) -> Result<Package> {
    let mut words = line.split_whitespace().skip(1);
    let parsed = words.next().zip(words.next()).and_then(|(file, size)| {
        let (name, rest) = file.split_once('_')?;
        let (version, _) = rest.split_once('_')?;
        Some(Package { spec: format!("{name}={}", version.replace("%3a", ":")), bytes: size.parse().ok()? })
    });
    parsed.with_context(|| format!("apt printed a line of unknown form: {line}"))
}

/// All numbers in a package name, so that 6.12.117 sorts after 6.12.95.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_from_the_machines_sources() {
        let both =
            "http://m/pool/ bookworm Docker\nhttp://m/x/ trixie Debian\nhttp://m/y/ trixie-security Debian\n";
        assert_eq!(mirrors(both), Some(("http://m/x/".into(), "http://m/y/".into())));
        let never_updated = "http://m/debian/ bookworm $(ORIGIN)\n";
        assert_eq!(
            mirrors(never_updated),
            Some(("http://m/debian/".into(), "http://m/debian-security".into()))
        );
        assert_eq!(mirrors("http://m/ubuntu/ noble Ubuntu\n"), None);
    }

    #[test]
    fn uri_lines_give_exact_versions() {
        let line = "'http://m/a.deb' busybox-static_1%3a1.35.0-4+deb12u1_amd64.deb 928188 MD5Sum:00";
        let package = parse_uri_line(line).expect("a good line");
        assert_eq!(package, Package { spec: "busybox-static=1:1.35.0-4+deb12u1".into(), bytes: 928_188 });
        assert!(parse_uri_line("E: nonsense").is_err());
    }

    #[test]
    fn newest_is_by_number_not_by_letter() {
        assert!(numbers("linux-image-6.12.117+deb12-amd64") > numbers("linux-image-6.12.95+deb12-amd64"));
    }
}
