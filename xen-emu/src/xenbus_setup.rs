//! The store's nodes of a domain, as libxl writes them: paths, values and permissions.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use xen_emu_api::config::{DomainConfig, Launch};
use xenstored::client::{Batch, Client, Result, RingFds};
use xenstored::perms::{Access, Perm};

/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known only once the machine is built.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Frame of the console's ring.
    pub console_gfn: u64,
    /// The guest's port of the console.
    pub console_port: u32,
    /// Frame of the store's ring.
    pub store_gfn: u64,
    /// The guest's port of the store.
    pub store_port: u32,
    /// Path of the console's pty.
    pub tty: Option<String>,
    /// Unix time of the build, seconds.
    pub start_time: f64,
}

/// Who may do what with a node. Domain 0 may do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// As with the node above.
    Inherited,
    /// The guest may read: `n0,rD`.
    GuestReads,
    /// It is the guest's own: `nD`.
    GuestOwns,
    /// It is the guest's own, its backend in domain 0 may read: `nD,r0`.
    Frontend,
}

impl Rights {
    /// To be set on the node; `None` = as it was made.
    pub fn perms(self, domid: u16) -> Option<Vec<Perm>> {
        let (none, read) = (|id| Perm::new(Access::None, id), |id| Perm::new(Access::Read, id));
        match self {
            Rights::Inherited => None,
            Rights::GuestReads => Some(vec![none(0), read(domid)]),
            Rights::GuestOwns => Some(vec![none(domid)]),
            Rights::Frontend => Some(vec![none(domid), read(0)]),
        }
    }
}

type Node = (String, String, Rights);

/// Everything a new domain finds. Parents are written before what lies below them.
fn nodes(launch: &Launch, facts: &Facts) -> Vec<Node> {
    let (domid, config) = (launch.domid, &launch.config);
    let (home, vm) = (format!("/local/domain/{domid}"), format!("/vm/{}", config.uuid));
    let mut nodes = Vec::new();
    let mut below = |base: &str, table: &[(&str, &str, Rights)]| {
        for &(path, value, rights) in table {
            let path = if path.is_empty() { base.to_owned() } else { format!("{base}/{path}") };
            nodes.push((path, value.to_owned(), rights));
        }
    };
    use Rights::{Frontend, GuestOwns, GuestReads, Inherited};
    // The home comes first: with it the store takes a domain that is not introduced for one that exists.
    below(&home, &[("", "", GuestReads)]);
    below(
        &vm,
        &[
            ("", "", GuestReads),
            ("uuid", &config.uuid, Inherited),
            ("name", &config.name, Inherited),
            ("start_time", &format!("{:.2}", facts.start_time), Inherited),
        ],
    );
    below(&format!("/libxl/{domid}"), &[("type", "pvh", Inherited), ("dm-version", "qemu_xen", Inherited)]);
    below(
        &home,
        &[
            ("vm", &vm, Inherited),
            ("name", &config.name, Inherited),
            ("domid", &domid.to_string(), Inherited),
            ("memory/static-max", &(config.maxmem_mib << 10).to_string(), Inherited),
            ("memory/target", &(config.memory_mib << 10).to_string(), Inherited),
            ("memory/videoram", "0", Inherited),
            ("device/suspend/event-channel", "", GuestOwns),
            ("control/shutdown", "", GuestOwns),
            ("control/feature-poweroff", "", GuestOwns),
            ("control/feature-reboot", "", GuestOwns),
            ("control/feature-suspend", "", GuestOwns),
            ("control/sysrq", "", GuestOwns),
            ("control/platform-feature-multiprocessor-suspend", "1", Inherited),
            ("control/platform-feature-xs_reset_watches", "1", Inherited),
            ("data", "", GuestOwns),
            ("drivers", "", GuestOwns),
            ("feature", "", GuestOwns),
            ("attr", "", GuestOwns),
            ("error", "", GuestOwns),
            ("store/port", &facts.store_port.to_string(), Inherited),
            ("store/ring-ref", &facts.store_gfn.to_string(), Inherited),
        ],
    );
    for vcpu in 0..config.max_vcpus {
        let availability = if vcpu < config.vcpus { "online" } else { "offline" };
        below(&home, &[(&format!("cpu/{vcpu}/availability"), availability, Inherited)]);
    }
    let (front, back) = (format!("{home}/console"), format!("/local/domain/0/backend/console/{domid}/0"));
    let guest = domid.to_string();
    let both = [
        ("frontend", &*front, Inherited),
        ("frontend-id", &*guest, Inherited),
        ("online", "1", Inherited),
        ("state", "1", Inherited),
        ("protocol", "vt100", Inherited),
    ];
    below(&back, &[("", "", GuestReads)]);
    below(&back, &both);
    let copy = format!("/libxl/{domid}/device/console/0");
    below(&copy, &[("backend", &back, Inherited)]);
    below(&copy, &both);
    below(
        &front,
        &[
            ("backend", &back, Inherited),
            ("backend-id", "0", Frontend),
            ("limit", "1048576", Inherited),
            ("type", "xenconsoled", Inherited),
            ("output", "pty", Inherited),
            ("tty", facts.tty.as_deref().unwrap_or_default(), Inherited),
            ("port", &facts.console_port.to_string(), Inherited),
            ("ring-ref", &facts.console_gfn.to_string(), Inherited),
        ],
    );
    nodes
}

/// Nodes of the host that tools expect; written where missing.
const HOST: [(&str, &str); 3] =
    [("/local/domain/0/domid", "0"), ("/local/domain/0/name", "Domain-0"), ("/local/pool/0/name", "Pool-0")];

/// Connect to the store that serves this domain.
pub fn connect(launch: &Launch) -> Result<Client> {
    let mut client = Client::connect(&launch.xenstored)?;
    client.set_timeout(Some(PATIENCE));
    Ok(client)
}

/// Make the domain known to the store: from here on its ring is served. Comes back with our end of its life line:
/// a byte `s` says that the domain has shut down, its end that it is gone. After [`setup`], so that whoever hears
/// `@introduceDomain` finds the nodes.
pub fn introduce(
    client: &mut Client,
    domid: u16,
    facts: &Facts,
    page: BorrowedFd<'_>,
    kick: BorrowedFd<'_>,
    notify: BorrowedFd<'_>,
) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let fds = RingFds { page, kick, notify, lifeline: Some(theirs.as_fd()) };
    client.introduce(domid, facts.store_gfn, facts.store_port, fds)?;
    Ok(ours)
}

/// Write all nodes of the domain, at once or not at all. What an earlier domain of this number has left goes first.
pub fn setup(client: &mut Client, launch: &Launch, facts: &Facts) -> Result<()> {
    let mut made = Batch::default();
    for (path, value, rights) in nodes(launch, facts) {
        made.write(&path, value);
        if let Some(perms) = rights.perms(launch.domid) {
            made.set_perms(&path, &perms);
        }
    }
    client.transaction(|store| {
        host(store)?;
        store.remove_domain_nodes(launch.domid, &launch.config.uuid)?;
        store.run(&made)
    })
}

/// The host's own nodes, where they are missing. The last one stands for all.
fn host(store: &mut Client) -> Result<()> {
    if let Some((last, _)) = HOST.last()
        && store.read_opt(last)?.is_some()
    {
        return Ok(());
    }
    for (path, value) in HOST {
        if store.read_opt(path)?.is_none() {
            store.write(path, value)?;
        }
    }
    Ok(())
}

/// Record a new name, and a new uuid if `config` has another than `uuid`.
pub fn rename(client: &mut Client, domid: u16, uuid: &str, config: &DomainConfig) -> Result<()> {
    let (old, new) = (format!("/vm/{uuid}"), format!("/vm/{}", config.uuid));
    client.transaction(|store| {
        store.write(&format!("/local/domain/{domid}/name"), &config.name)?;
        if old != new {
            let start_time = store.read_opt(&format!("{old}/start_time"))?.unwrap_or_default();
            store.rm(&old)?;
            store.write(&new, "")?;
            if let Some(perms) = Rights::GuestReads.perms(domid) {
                store.set_perms(&new, &perms)?;
            }
            store.write(&format!("{new}/uuid"), &config.uuid)?;
            store.write(&format!("{new}/start_time"), start_time)?;
            store.write(&format!("/local/domain/{domid}/vm"), &new)?;
        }
        store.write(&format!("{new}/name"), &config.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestStore, launch};

    #[test]
    fn the_tree_is_that_of_a_real_libxl() {
        let mut launch = launch(10);
        launch.config.name = "pvh1".into();
        launch.config.uuid = "2e9ff4b9-ed55-4f22-8400-167e74473a5c".into();
        (launch.config.memory_mib, launch.config.maxmem_mib) = (128, 128);
        (launch.config.vcpus, launch.config.max_vcpus) = (1, 2);
        let facts = Facts {
            console_gfn: 0xfefff,
            console_port: 2,
            store_gfn: 0xfeffc,
            store_port: 1,
            tty: Some("/dev/pts/0".into()),
            start_time: 1_795_163_960.88,
        };
        let dir = tempfile::tempdir().unwrap();
        let store = TestStore::start(dir.path());
        let empty = store.listing();
        let mut client = store.client();
        setup(&mut client, &launch, &facts).unwrap();
        let real: Vec<&str> = include_str!("xenbus_setup_golden.txt").lines().collect();
        let ours: Vec<_> = store.listing().into_iter().filter(|line| !empty.contains(line)).collect();
        assert_eq!(ours, real);

        launch.config.name = "pvh1-dead".into();
        let uuid = std::mem::replace(&mut launch.config.uuid, "11111111-2222-4333-8444-555555555555".into());
        rename(&mut client, 10, &uuid, &launch.config).unwrap();
        let renamed = store.listing();
        let named: Vec<_> = renamed.iter().filter(|line| line.contains("pvh1")).cloned().collect();
        let vm = format!("/vm/{}", launch.config.uuid);
        let want = [
            "/local/domain/10/name = \"pvh1-dead\"   (n0,r10)".to_owned(),
            format!("{vm}/name = \"pvh1-dead\"   (n0,r10)"),
        ];
        assert_eq!(named, want);
        assert!(!renamed.iter().any(|line| line.contains(&uuid)), "{renamed:#?}");
        assert!(renamed.contains(&format!("{vm}/start_time = \"1795163960.88\"   (n0,r10)")));

        client.forget_domain(10, &launch.config.uuid).unwrap();
        let left: Vec<_> = store.listing().into_iter().filter(|line| !empty.contains(line)).collect();
        assert!(left.iter().all(|line| !line.contains("10") && !line.contains("console")), "{left:#?}");
    }
}
