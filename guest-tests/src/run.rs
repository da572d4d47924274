//! One run of L1: start the machine, carry its channels, and tell how it ended.
//!
//! The init in L1 (`lab/l1-init.sh`) speaks by lines on the channel `lab.ctl`: `up`, `beat` every second, `timeout`, `exit STATUS`, and what
//! the test runner says. The script's output comes on `lab.out` and `lab.err`, each up to an end mark. `exit` heard: the script ended, well
//! or badly. The machine gone or silent without `exit`: L1 died, which says nothing about the script. The two are never mixed up.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::l1::{Contents, write_image};
use crate::{qemu, tsc};

/// Quiet, fast, and gone at the first sign of corruption.
const COMMAND_LINE: &str = "console=ttyS0 quiet mitigations=off tsc=reliable panic=-1 oops=panic";
/// L1 beats every second; TCG on a crowded host may starve it for a while.
const SILENCE: Duration = Duration::from_secs(60);
/// From `exit` to the machine's end: the tar of /out and the power-off.
const FAREWELL: Duration = Duration::from_secs(60);
/// What stands in L1's output behind the script's last byte.
const END_MARK: &[u8] = b"\x1eend\x1e";

/// What L1 is to do.
#[derive(Debug)]
pub struct Job {
    /// L1's own kernel.
    pub kernel: Kernel,
    /// What is in its image.
    pub contents: Contents,
    /// Disks of L1, in the order of `/dev/vda` and so on; never written to.
    pub drives: Vec<PathBuf>,
    /// Its CPUs.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Seconds after which the script is killed in L1.
    pub limit: u64,
    /// The terminal is L1's console.
    pub interactive: bool,
    /// Where L1's /out and its kernel log go.
    pub out: PathBuf,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The script ended with this status.
    Exit(i32),
    /// The script did not end in time and was killed.
    Timeout,
    /// L1 itself failed; the reason is for people.
    Died(String),
}

/// What a run says while it goes on.
#[derive(Debug)]
pub enum Event {
    /// Bytes of the script's stdout.
    Out(Vec<u8>),
    /// Bytes of its stderr.
    Err(Vec<u8>),
    /// A line on the control channel.
    Line(String),
}

/// Boots L1 once and runs the job, handing every event to `sink`.
pub fn once(cache: &Cache, job: &Job, sink: &mut dyn FnMut(Event)) -> Result<End> {
    let folder =
        tempfile::Builder::new().prefix("xlr-lab-").tempdir().context("no folder for the run's sockets")?;
    fs::create_dir_all(&job.out).with_context(|| format!("cannot make {}", job.out.display()))?;
    let image = folder.path().join("initramfs");
    write_image(cache, &job.kernel, &job.contents, &image)?;
    let command_line = format!("{COMMAND_LINE} tsc_early_khz={}", tsc::khz());
    let mut command =
        qemu::machine(cache, &job.kernel.image()?, &image, &command_line, job.memory_mib, job.cpus)?;
    qemu::add_drives(&mut command, &job.drives);
    let (events, receiver) = channel();
    add_channels(&mut command, job, folder.path(), &events)?;
    drop(events);
    let complaint = folder.path().join("qemu.err");
    let stdio = || if job.interactive { Stdio::inherit() } else { Stdio::null() };
    let child = command
        .stdin(stdio())
        .stdout(stdio())
        .stderr(File::create(&complaint)?)
        .spawn()
        .context("cannot start QEMU")?;
    let mut machine = Machine(child);
    let limit = (!job.interactive).then(|| Duration::from_secs(job.limit));
    let end = follow(&receiver, limit, sink);
    machine.wait_for(if matches!(end, End::Died(_)) { Duration::ZERO } else { FAREWELL });
    unpack_out(&folder.path().join("files"), &job.out)?;
    Ok(match end {
        End::Died(reason) => End::Died(explain(&reason, &job.out.join("l1.log"), &complaint)),
        end => end,
    })
}

/// Boots L1 and runs the job; if L1 dies, says so and does it once more.
pub fn with_retry(cache: &Cache, job: &Job, sink: &mut dyn FnMut(Event)) -> Result<End> {
    let end = once(cache, job, sink)?;
    let End::Died(reason) = end else { return Ok(end) };
    eprintln!("lab: L1 died ({reason}); running once more, retry 1 of 1");
    once(cache, job, sink)
}

/// The machine, ended whatever happens to us.
struct Machine(Child);

impl Machine {
    fn wait_for(&mut self, patience: Duration) {
        let start = Instant::now();
        while start.elapsed() < patience && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ports by name; each is a socket here, read by a thread of its own, or a file.
fn add_channels(command: &mut Command, job: &Job, folder: &Path, events: &Sender<Event>) -> Result<()> {
    let log = job.out.join("l1.log");
    command.args(["-chardev", &format!("file,id=log,path={}", log.display()), "-serial", "chardev:log"]);
    command.args(["-device", "virtio-serial-pci"]);
    if job.interactive {
        command.args(["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"]);
    }
    for (name, read) in [("ctl", read_lines as Reader), ("out", read_out), ("err", read_err)] {
        let path = folder.join(name);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let events = events.clone();
        thread::spawn(move || listener.accept().map(|(stream, _)| read(stream, &events)));
        command.args(["-chardev", &format!("socket,id={name},path={}", path.display())]);
        command.args(["-device", &format!("virtserialport,chardev={name},name=lab.{name}")]);
    }
    let files = folder.join("files");
    command.args(["-chardev", &format!("file,id=files,path={}", files.display())]);
    command.args(["-device", "virtserialport,chardev=files,name=lab.files"]);
    Ok(())
}

type Reader = fn(UnixStream, &Sender<Event>);

// A send fails only when the run has been judged already.
fn read_lines(stream: UnixStream, events: &Sender<Event>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let _ = events.send(Event::Line(line));
    }
}

fn read_out(stream: UnixStream, events: &Sender<Event>) {
    read_to_mark(stream, |bytes| drop(events.send(Event::Out(bytes))));
}

fn read_err(stream: UnixStream, events: &Sender<Event>) {
    read_to_mark(stream, |bytes| drop(events.send(Event::Err(bytes))));
}

/// Hands on what comes, up to the end mark; bytes that may begin a mark wait for the next read.
fn read_to_mark(mut stream: impl Read, mut send: impl FnMut(Vec<u8>)) {
    let (mut held, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        held.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if let Some(at) = held.windows(END_MARK.len()).position(|w| w == END_MARK) {
            held.truncate(at);
            break;
        }
        let keep = (0..END_MARK.len()).rev().find(|n| held.ends_with(&END_MARK[..*n])).unwrap_or(0);
        let rest = held.split_off(held.len() - keep);
        send(std::mem::replace(&mut held, rest));
    }
    if !held.is_empty() {
        send(held);
    }
}

/// Passes events on until the script's end, L1's end, or a silence too long.
fn follow(receiver: &Receiver<Event>, limit: Option<Duration>, sink: &mut dyn FnMut(Event)) -> End {
    let (mut end, mut timed_out) = (None, false);
    let mut heard = Instant::now();
    let start = heard;
    loop {
        match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(Event::Line(line)) => {
                heard = Instant::now();
                match line.split_once(' ') {
                    _ if line == "beat" || line == "up" => {}
                    _ if line == "timeout" => timed_out = true,
                    Some(("exit", status)) => end = Some(status.trim().parse().unwrap_or(255)),
                    _ => sink(Event::Line(line)),
                }
            }
            Ok(event) => sink(event),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // After `exit` the channels still drain; they end with the machine.
        if end.is_none() && heard.elapsed() > SILENCE {
            return End::Died(format!("no heartbeat for {} s", SILENCE.as_secs()));
        }
        if (end.is_some() && heard.elapsed() > FAREWELL)
            || (end.is_none() && limit.is_some_and(|l| start.elapsed() > l + 2 * SILENCE))
        {
            break;
        }
    }
    match end {
        Some(_) if timed_out => End::Timeout,
        Some(status) => End::Exit(status),
        None => End::Died("it ended without a word".to_owned()),
    }
}

/// What is known about a death: the panic in L1's log, QEMU's own complaint, or the last lines of the log.
fn explain(reason: &str, log: &Path, complaint: &Path) -> String {
    const SIGNS: [&str; 4] = ["Kernel panic", "BUG:", "Oops", "general protection fault"];
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let complaint = fs::read_to_string(complaint).unwrap_or_default();
    // Of features of the CPU model that TCG lacks it only warns.
    let complaint: Vec<&str> = complaint.lines().filter(|line| !line.contains("warning:")).collect();
    let panic = log.lines().find(|line| SIGNS.iter().any(|sign| line.contains(sign)));
    match (panic, complaint.join("; ").as_str()) {
        (Some(line), _) => line.trim().to_owned(),
        (None, "") => {
            format!("{reason}; its log ends with: {}", log.lines().last().unwrap_or("nothing at all").trim())
        }
        (None, complaint) => format!("{reason}; QEMU says: {complaint}"),
    }
}

fn unpack_out(tar: &Path, out: &Path) -> Result<()> {
    if fs::metadata(tar).is_ok_and(|m| m.len() > 0) {
        crate::apt::run(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(out).arg("--no-same-owner"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(chunks: &[&[u8]]) -> Vec<u8> {
        struct Chunks<'a>(Vec<&'a [u8]>);
        impl Read for Chunks<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                if self.0.is_empty() { Ok(0) } else { self.0.remove(0).read(buffer) }
            }
        }
        let mut all = Vec::new();
        read_to_mark(Chunks(chunks.to_vec()), |bytes| all.extend(bytes));
        all
    }

    #[test]
    fn output_ends_at_the_mark_however_it_is_cut() {
        assert_eq!(marked(&[b"one\x1een", b"d\x1etail"]), b"one");
        assert_eq!(marked(&[b"\x1e", b"end", b"\x1e"]), b"");
        assert_eq!(marked(&[b"a\x1ee", b"xact\x1e"]), b"a\x1eexact\x1e", "a mark that was none is output");
    }

    #[test]
    fn a_death_is_never_a_result() {
        let job_end = |lines: &[&str]| {
            let (sender, receiver) = channel();
            lines.iter().for_each(|l| sender.send(Event::Line((*l).to_owned())).expect("a listener"));
            drop(sender);
            judge(&receiver)
        };
        assert_eq!(job_end(&["up", "beat", "exit 3"]), End::Exit(3));
        assert_eq!(job_end(&["up", "timeout", "exit 137"]), End::Timeout);
        assert!(matches!(job_end(&["up", "beat"]), End::Died(_)));
        assert!(matches!(job_end(&[]), End::Died(_)));
    }

    fn judge(receiver: &Receiver<Event>) -> End {
        follow(receiver, None, &mut |_| ())
    }
}
