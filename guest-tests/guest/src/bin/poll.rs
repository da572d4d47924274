//! SCHEDOP_poll with interrupts off: it ends with an event of its port, masked or not, at once where the port is pending, and
//! at its time. In the 2-level layout and, where the domain has it, in FIFO; there, with `yields` on the command line, a poll waits
//! for nothing and looks at nothing: that is what KVM makes of it.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest::boot::Words;
use guest::events::{Events, bind_ipi, evtchn_op, send};
use guest::page::Page;
use guest::smp::{spin_until, start_vcpu};
use guest::{Verdict, acpi, check, check_eq, clock, cpu, fifo, hypercall, println, skip, traps};
use xen_abi::Errno;
use xen_abi::event_channel::{Close, EvtchnOp, fifo as abi};
use xen_abi::hypercall::Hypercall;
use xen_abi::sched::{SchedOp, SchedPoll};
use xen_abi::shared_info::VCPU_TIME;
use xen_abi::xen::Port;

guest::test!(run, other);

const VECTOR: u8 = 0x40;
const ROUNDS: u32 = 50;
const MS: u64 = 1_000_000;
/// Much longer than anything takes: a poll that lasts until then was not ended by its event.
const FAR: u64 = 60_000 * MS;

static PORTS: Page = Page::zero();
/// What the other vCPU sends to when told, and how often it was told and has done so.
static TO: AtomicU32 = AtomicU32::new(0);
static TOLD: AtomicU32 = AtomicU32::new(0);
static SENT: AtomicU32 = AtomicU32::new(0);

/// The ports, and how their bits are found.
struct Polled {
    events: Events,
    fifo: bool,
    /// Every port may be polled that is not masked: `open`.
    open: bool,
    /// Polls of FIFO ports are KVM's, which only yields: `yields`.
    yields: bool,
    ports: [Port; 3],
}

fn run() -> Verdict {
    if acpi::cpus().count() < 2 {
        skip!("needs 2 vCPUs");
    }
    let events = Events::init(VECTOR)?;
    let ports = [bind_ipi(0)?, bind_ipi(0)?, bind_ipi(0)?];
    start_vcpu(1)?;
    let before = traps::count(VECTOR);
    let words = Words::read();
    let (open, yields) = (words.has("open"), words.has("yields"));
    let mut polled = Polled { events, fifo: false, open, yields, ports };
    polled.all("2-level")?;
    match fifo::init_control(0) {
        Err(Errno::ENOSYS) => println!("no FIFO here"),
        answer => {
            answer?;
            fifo::expand_array(1024)?;
            polled.fifo = true;
            polled.all("FIFO")?;
        }
    }
    check_eq!(traps::count(VECTOR), before, "interrupts");
    Ok(())
}

impl Polled {
    fn all(&self, abi: &str) -> Verdict {
        let early = self.by_events()?;
        self.at_once()?;
        let polls = self.until_a_time()?;
        self.refused()?;
        println!("{abi}: {} polls, {early} that ended early; {polls} until a time", 3 * ROUNDS);
        Ok(())
    }

    fn now(&self) -> u64 {
        clock::now(self.events.shared, VCPU_TIME).unwrap_or(0)
    }

    fn set_mask(&self, port: Port, masked: bool) -> Verdict {
        match (self.fifo, masked) {
            (false, true) => self.events.mask(port),
            (false, false) => self.events.clear_mask(port),
            (true, true) => fifo::mask(port),
            (true, false) => fifo::unmask(port)?,
        }
        Ok(())
    }

    fn is_pending(&self, port: Port) -> bool {
        if self.fifo { fifo::is_pending(port) } else { self.events.is_pending(port) }
    }

    /// Takes the event, as a guest does whose interrupts are off.
    fn take(&self, port: Port) {
        self.events.take_selector();
        if self.fifo {
            fifo::take(0, |_| ());
            fifo::word(port).fetch_and(!abi::PENDING, SeqCst);
        } else {
            self.events.clear_pending(port);
        }
    }

    /// A masked port, one that is not, and the last of three. A poll may end early, as the header allows; how often, is said. With the
    /// 2-level layout only masked ones, unless told: KVM, where it answers a poll, wakes it by no other event while interrupts are off.
    fn by_events(&self) -> Result<u32, guest::Stop> {
        let [masked, open, third] = self.ports;
        let mut early = 0;
        for round in 1..=ROUNDS {
            for (port, ports, mask) in [
                (masked, &[masked][..], true),
                (open, &[open][..], !self.fifo && !self.open),
                (third, &self.ports[..], true),
            ] {
                self.set_mask(port, mask)?;
                let until = self.now() + FAR;
                tell(port);
                poll(ports, until)?;
                while !self.is_pending(port) {
                    early += 1;
                    check!(self.now() < until, "round {round}: no event ends a poll of port {port}");
                    poll(ports, until)?;
                }
                check!(self.now() < until, "round {round}: the time ends a poll of port {port}");
                self.take(port);
                check!(spin_until(|| SENT.load(SeqCst) == TOLD.load(SeqCst)), "vCPU 1 sends nothing");
            }
        }
        Ok(early)
    }

    /// Already pending, behind its mask.
    fn at_once(&self) -> Verdict {
        let [port, other, _] = self.ports;
        self.set_mask(port, true)?;
        for ports in [&[port][..], &[other, port][..]] {
            send(port)?;
            poll(ports, 0)?;
            check!(self.is_pending(port), "a poll has taken the event of port {port}");
            let until = self.now() + FAR;
            poll(ports, until)?;
            check!(self.now() < until, "a poll of a pending port lasts until its time");
            self.take(port);
        }
        // Their time is over.
        for timeout in [1, self.now() / 2] {
            poll(&[other], timeout)?;
        }
        Ok(())
    }

    /// A poll of a port, and one of none, which is a sleep.
    fn until_a_time(&self) -> Result<u32, guest::Stop> {
        let [port, ..] = self.ports;
        let mut polls = 0;
        for ports in [&[port][..], &[][..]] {
            let until = self.now() + 50 * MS;
            while self.now() < until {
                polls += 1;
                poll(ports, until)?;
            }
            check!(self.now() < until + FAR, "a poll lasts long beyond its time");
        }
        check!(polls > 100 || !(self.fifo && self.yields), "{polls} polls that only yield in 100 ms");
        Ok(polls)
    }

    fn refused(&self) -> Verdict {
        let at = |ports, nr_ports| {
            let mut arg = SchedPoll { ports, nr_ports, pad: 0, timeout: self.now() };
            hypercall::op(Hypercall::SCHED_OP, SchedOp::POLL.0, &mut arg)
        };
        if self.fifo && self.yields {
            check_eq!(at(PORTS.addr(), 129), Ok(0), "a poll of 129 ports, which yields");
            return Ok(());
        }
        check_eq!(at(PORTS.addr(), 129), Err(Errno::EINVAL), "a poll of 129 ports");
        check_eq!(at(0x7fff_ffff_f000, 1), Err(Errno::EFAULT), "a poll of ports that are nowhere");
        check_eq!(
            poll(&[Port(u32::MAX)], self.now()),
            Err(Errno::EINVAL),
            "a poll of a port beyond the last"
        );
        // KVM looks at the number only.
        if self.open {
            let closed = bind_ipi(0)?;
            evtchn_op(EvtchnOp::CLOSE, &mut Close { port: closed })?;
            for port in [Port(0), closed] {
                check_eq!(
                    poll(&[port], self.now()),
                    Err(Errno::EINVAL),
                    "a poll of port {port}, which is closed"
                );
            }
        }
        Ok(())
    }
}

fn poll(ports: &[Port], timeout: u64) -> Result<(), Errno> {
    for (at, port) in (0..).step_by(4).zip(ports) {
        PORTS.u32(at).store(port.0, SeqCst);
    }
    let nr_ports = u32::try_from(ports.len()).unwrap_or(0);
    let mut arg = SchedPoll { ports: PORTS.addr(), nr_ports, pad: 0, timeout };
    hypercall::op(Hypercall::SCHED_OP, SchedOp::POLL.0, &mut arg).map(drop)
}

fn tell(port: Port) {
    TO.store(port.0, SeqCst);
    TOLD.fetch_add(1, SeqCst);
}

fn other(_vcpu: u32) {
    loop {
        let told = TOLD.load(SeqCst);
        if SENT.load(SeqCst) != told {
            let _ = send(Port(TO.load(SeqCst)));
            SENT.store(told, SeqCst);
        }
        cpu::pause();
    }
}
