//! The life of domains under xlr: created, listed, paused, shut down, killed.

use crate::bed::{Bed, FakeDomain, ran, wait_until};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use xen_emu_api::control::Request;

/// `xlr create` with `args`, served by a domain of the test.
fn created(bed: &Bed, args: &[&str]) -> FakeDomain {
    let domain = bed.expect_domain(1);
    let mut words = vec!["create", bed.config("maxvcpus = 2; vcpus = 1")];
    words.extend(args);
    let ran = bed.xlr(&words);
    assert_eq!((ran.status, ran.err.as_str()), (0, "Parsing config from web.cfg\n"));
    domain.join().unwrap()
}

#[test]
fn from_create_to_destroy() {
    let bed = Bed::new();
    let domain = created(&bed, &["-p"]);
    let line = |args: &[&str]| bed.xlr(args).out.lines().last().unwrap_or_default().to_owned();
    let row = |state: &str| format!("{:<40}     1    64     1     {state}      38.9", "web");
    assert_eq!(line(&["list"]), row("--p---"));
    assert_eq!(bed.xlr(&["unpause", "web"]).status, 0);
    assert_eq!(line(&["list", "1"]), row("-b----"));
    assert_eq!((line(&["domid", "web"]), line(&["domname", "1"])), ("1".into(), "web".into()));
    assert!(
        line(&["vcpu-list"]).ends_with("    1     1    -   --p       0.0  all / all"),
        "{}",
        line(&["vcpu-list"])
    );
    assert_eq!(bed.xlr(&["dmesg", "web"]).out, "one\ntwo\n");
    assert_eq!(bed.xlr(&["__complete", "pause", "w"]).out, "web\n");
    let long: serde_json::Value = serde_json::from_str(&bed.xlr(&["list", "-l"]).out).unwrap();
    assert_eq!((&long[0]["config"]["c_info"]["name"], &long[1]["domid"]), (&"Domain-0".into(), &1.into()));
    let status: serde_json::Value = serde_json::from_str(&bed.xlr(&["list", "--json"]).out).unwrap();
    assert_eq!((&status[0]["name"], &status[0]["memory_kib"]), (&"web".into(), &65_536.into()));

    let twice = bed.xlr(&["create", "-q", "web.cfg"]);
    let line = "Domain with name \"web\" already exists (id 1): destroy it or take another name\n";
    assert_eq!((twice.status, twice.err.as_str()), (3, line));

    let uuid = status[0]["uuid"].as_str().unwrap();
    let twin = bed.xlr(&["create", "-q", "web.cfg", "name=other", &format!("uuid='{uuid}'")]);
    let line = format!("Domain with uuid {uuid} already exists (id 1): destroy it or take another uuid\n");
    assert_eq!((twin.status, twin.err), (3, line));

    let gone = bed.xlr(&["destroy", "web"]);
    assert_eq!((gone.status, gone.out.as_str(), gone.err.as_str()), (0, "", ""));
    assert_eq!((bed.domain_dirs().len(), bed.store.paths().len()), (0, 0));
    assert!(domain.requests().contains(&Request::Unpause));
    assert_eq!(bed.xlr(&["destroy", "web"]).status, 1);
}

#[test]
fn shutdown_waits_for_the_guest() {
    let bed = Bed::new();
    created(&bed, &[]).listen_to_the_store();
    let ran = bed.xlr(&["shutdown", "-w", "web"]);
    let words = "Shutting down domain 1\nWaiting for 1 domains\nDomain 1 has been shut down, reason code 0\n";
    assert_eq!((ran.status, ran.err.as_str()), (0, words));
    assert_eq!((bed.domain_dirs().len(), bed.store.paths().len()), (0, 0));
    let none = bed.xlr(&["shutdown", "-a"]);
    assert_eq!((none.status, none.err.as_str()), (0, ""));
}

#[test]
fn a_guest_without_pv_control_needs_the_button() {
    let bed = Bed::new();
    let domain = created(&bed, &[]);
    let missing = "PV control interface not available";
    let ran = bed.xlr(&["shutdown", "web"]);
    let words = format!(
        "Shutting down domain 1\n{missing}: external graceful shutdown not possible.\n\
         Use \"-F\" to fallback to ACPI power event.\nshutdown failed (rc=-10)\n"
    );
    assert_eq!((ran.status, ran.err), (1, words));
    let deaf = "domain 'web' (id 1): the guest does not listen\n";
    let pressed = format!("Shutting down domain 1\n{missing}: sending ACPI power button event.\n");
    let ran = bed.xlr(&["shutdown", "-F", "web"]);
    assert_eq!((ran.status, ran.err), (1, format!("{pressed}{deaf}")));
    let ran = bed.xlr(&["trigger", "web", "power"]);
    assert_eq!((ran.status, ran.err.as_str()), (1, deaf));
    domain.hear_the_button();
    let ran = bed.xlr(&["shutdown", "-F", "web"]);
    assert_eq!((ran.status, ran.err), (0, pressed));
    assert_eq!(domain.requests().iter().filter(|r| **r == Request::PowerButton).count(), 3);
    domain.vanish();
}

#[test]
fn a_killed_domain_is_shown_once_and_cleaned_up() {
    let bed = Bed::new();
    let dir = tempfile::tempdir().unwrap();
    let [left, served, file] = ["left", "served", "file"].map(|name| dir.path().join(name));
    let channel = |path: &Path| format!("'connection=socket,name={0},path={0}'", path.display());
    let domain =
        created(&bed, &[&format!("channel=[{}, {}, {}]", channel(&left), channel(&served), channel(&file))]);
    bed.store.set("/local/domain/0/backend/vbd/1/51712/state", "4");
    bed.store.set("/local/domain/0/name", "Domain-0");
    drop(UnixListener::bind(&left).unwrap());
    let _server = UnixListener::bind(&served).unwrap();
    std::fs::write(&file, "somebody's").unwrap();
    domain.end();
    let ran = bed.xlr(&["list"]);
    assert_eq!(ran.err, "domain 'web' (id 1): its process died; cleaned up\n");
    let row = format!("{:<40}     1     0     0     ---sc-       0.0", "web");
    assert_eq!(ran.out.lines().last(), Some(row.as_str()));
    assert_eq!(bed.store.paths(), ["/local/domain/0/name"]);
    assert_eq!([&left, &served, &file].map(|path| path.exists()), [false, true, true], "sockets of channels");
    let again = bed.xlr(&["list"]);
    assert_eq!((again.err.as_str(), again.out.lines().count()), ("", 2));
}

#[test]
fn a_domain_in_the_making_is_left_alone_while_its_maker_lives() {
    let bed = Bed::new();
    let domain = created(&bed, &[]);
    let dir = bed.root().reserve(|_| false).unwrap();
    std::fs::copy(domain.dir.launch(), dir.launch()).unwrap();
    domain.vanish();
    assert_eq!(bed.xlr(&["list"]).status, 0);
    assert!(dir.path().exists(), "no process has held it yet");
    let mut maker = std::process::Command::new("true").spawn().unwrap();
    dir.set_maker(maker.id()).unwrap();
    maker.wait().unwrap();
    let next = bed.expect_domain(3);
    let again = bed.xlr(&["create", "-q", "web.cfg"]);
    assert_eq!((again.status, bed.domain_dirs()), (0, vec![3]), "{}", again.err);
    next.join().unwrap().vanish();
}

#[test]
fn destroy_by_name_means_the_successor_too() {
    for (word, left) in [("9", vec![1]), ("web", vec![])] {
        let bed = Bed::new();
        let counter = bed.root().path().join("next-domid");
        std::fs::write(&counter, "9").unwrap();
        let domain = bed.expect_domain(9);
        assert_eq!(bed.xlr(&["create", "-q", bed.config("")]).status, 0);
        // The highest number of a name is asked first.
        std::fs::write(&counter, "1").unwrap();
        domain.join().unwrap().restart_when_destroyed_as(bed.root().reserve(|_| false).unwrap());
        let gone = bed.xlr(&["destroy", word]);
        assert_eq!((gone.status, bed.domain_dirs()), (0, left), "{word}: {}", gone.err);
    }
}

#[test]
fn create_c_shows_everything_and_follows_a_restart() {
    let bed = Bed::new();
    let first = bed.expect_domain(1);
    let mut child = bed.command(&["create", "-c", "-q", bed.config("")]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let first = first.join().unwrap();
    wait_until(|| [Request::Wait, Request::Unpause].iter().all(|r| first.requests().contains(r)));
    first.print("hello\r\n");
    let mut output = child.stdout.take().unwrap();
    let mut expect = |text: &str| {
        let mut bytes = vec![0; text.len()];
        output.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    };
    expect("log of domain 1\r\nhello\r\n");
    // The end of input is not the end of the session.
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"typed\n").unwrap();
    drop(input);
    expect("typed\n");
    // A reboot: the same name under the next domid.
    let text = std::fs::read_to_string(first.dir.launch()).unwrap();
    first.shut_down(1);
    first.vanish();
    let dir = bed.root().reserve(|_| false).unwrap();
    std::fs::write(dir.launch(), text.replace("\"domid\": 1", "\"domid\": 2")).unwrap();
    let second = FakeDomain::start(dir, bed.store.clone());
    expect("log of domain 2\r\n");
    second.shut_down(0);
    second.vanish();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn create_in_the_foreground_ends_with_the_domain() {
    let bed = Bed::new();
    let domain = bed.expect_domain(1);
    let child = bed.command(&["create", "-F", bed.config("")]).stderr(Stdio::piped()).spawn().unwrap();
    let domain = domain.join().unwrap();
    wait_until(|| [Request::Wait, Request::Unpause].iter().all(|r| domain.requests().contains(r)));
    domain.shut_down(0);
    domain.vanish();
    let ran = ran(child.wait_with_output().unwrap());
    let pid = std::process::id();
    let words = format!(
        "Parsing config from web.cfg\nWaiting for domain web (domid 1) to die [pid {pid}]\n\
         Domain 1 has shut down, reason code 0 0x0\nAction for shutdown reason code 0 is destroy\nDone. Exiting now\n"
    );
    assert_eq!((ran.status, ran.err), (0, words));
}

#[test]
fn create_in_the_foreground_does_not_await_the_end_of_what_is_kept() {
    for (words, action) in [
        (&["create", "-F", "on_crash=preserve"][..], "preserve"),
        (&["create", "-Fe", "on_crash=restart"], "restart"),
    ] {
        let bed = Bed::new();
        let domain = bed.expect_domain(1);
        let mut command = bed.command(words);
        let child = command.arg(bed.config("")).stderr(Stdio::piped()).spawn().unwrap();
        let domain = domain.join().unwrap();
        wait_until(|| [Request::Wait, Request::Unpause].iter().all(|r| domain.requests().contains(r)));
        domain.shut_down(3);
        let ran = ran(child.wait_with_output().unwrap());
        let words = format!("Action for shutdown reason code 3 is {action}\nDone. Exiting now\n");
        assert!(ran.status == 0 && ran.err.ends_with(&words), "{ran:?}");
        assert_eq!(bed.domain_dirs(), [1]);
        domain.vanish();
    }
}

#[test]
fn nothing_to_shut_down_needs_no_store() {
    let bed = Bed::new();
    let mut command = bed.command(&["shutdown", "-a", "-w"]);
    let none = ran(command.env("XENSTORED_PATH", bed.path("nowhere")).output().unwrap());
    assert_eq!((none.status, none.err.as_str()), (0, ""));
}

#[test]
fn the_terminal_is_raw_during_a_console_and_put_back_after() {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let bed = Bed::new();
    let domain = created(&bed, &[]);
    let pty = nix::pty::openpty(None, None).unwrap();
    let cooked = || tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON);
    let session = |last: Option<u8>| {
        let terminal = Stdio::from(pty.slave.try_clone().unwrap());
        let mut child =
            bed.command(&["console", "web"]).stdin(terminal).stdout(Stdio::piped()).spawn().unwrap();
        wait_until(|| !cooked());
        match last {
            Some(byte) => drop(nix::unistd::write(&pty.master, &[b'x', byte]).unwrap()),
            None => nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id().try_into().unwrap()),
                nix::sys::signal::Signal::SIGTERM,
            )
            .unwrap(),
        }
        let status = child.wait().unwrap().code();
        assert!(cooked(), "left raw");
        status
    };
    assert_eq!(session(Some(0x1d)), Some(0));
    assert_eq!(session(None), Some(128 + 15));
    domain.vanish();
}
