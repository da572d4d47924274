//! Building a domain, in one straight line: kernel, memory, VM, acceleration, Xen semantics, vCPUs.

use crate::boot::{
    acpi,
    bootloader::{self, Source},
    kernel::Kernel,
    map,
    pvh::{self, Module},
    rewrite::{self, Stubs},
};
use crate::clock::Clock;
use crate::forward::{self, Forward};
use crate::fx::Fx;
use crate::guest::Guest;
use crate::kvm::cpuid::{self, Facts, apic_id};
use crate::kvm::mailbox::Mailboxes;
use crate::kvm::vcpu::{Counters, Thread};
use crate::kvm::vm::Slots;
use crate::kvm::xen_kernel::XenKernel;
use crate::kvm::xen_portable::{HYPERCALL_PORT, XenPortable};
use crate::kvm::{self, HostError, Way, XenAccel, auto_eoi, ioctl, regs};
use crate::log::Dmesg;
use crate::machine::{IOAPIC_PINS, Machine};
use crate::memory::{self, Memory};
use crate::peers::{self, Peers};
use crate::timers::{self, Timers};
use crate::vm::VmEvent;
use anyhow::{Context, anyhow};
use calloop::channel::Sender;
use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use xen_abi::Width;
use xen_abi::event_channel::{self, nr_channels_2l};
use xen_domain::effect::{Backend, Effects, Port};
use xen_domain::mem::{Gpa, GuestMem, SpecialPage};
use xen_domain::version::XEN_VERSION;
use xen_domain::{Domain, Params};
use xen_emu_api::config::{DomainConfig, EventChannels, Launch, Upcall};
use xen_emu_api::run_dir::RunRoot;

/// A built domain, paused, and what its backends need.
pub struct Built {
    /// The machine.
    pub guest: Arc<Guest>,
    /// The store ring's page, to be handed to xenstored.
    pub store_page: File,
    /// Port of the store channel.
    pub store_port: Port,
    /// Port of the console channel.
    pub console_port: Port,
    /// What the user is told in a line of its own, if anything.
    pub notice: Option<String>,
}

impl Built {
    /// The eventfds of a backend: guest to backend, backend to guest.
    pub fn fds(&self, backend: Backend) -> anyhow::Result<(OwnedFd, OwnedFd)> {
        let fds = self.guest.accel.backend(backend).with_context(|| format!("no channel for {backend:?}"))?;
        Ok((ioctl::share(&fds.kick)?, ioctl::share(&fds.notify)?))
    }
}

/// Build the domain of `launch` and start its vCPU threads, parked.
pub fn build(launch: &Launch, events: Sender<VmEvent>, log: Dmesg) -> anyhow::Result<Built> {
    let config = &launch.config;
    let kvm = kvm::open()?;
    let way = Way::choose(&kvm, config.accel)?;
    let vcpu_upcall = vcpu_upcall(config.upcall, way)?;
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    kvm::vcpu::install_kick()?;

    let boot = bootloader::resolve(launch)?;
    let ramdisk = match &boot.ramdisk {
        Some(path) => Some(map::map_file(path).with_context(|| format!("ramdisk {}", path.display()))?),
        None => None,
    };
    let tables = acpi::build(config.acpi, config.vcpus, config.max_vcpus);
    // The map shows what the guest may grow to; what it has now is in Params::pages.
    let ram = config.maxmem_mib.max(config.memory_mib) << 20;
    memory::check_available(config.memory_mib)?;
    let (low, high) = pvh::ram_split(ram);
    let mut regions = vec![(0, low), (tables.base, tables.image.len() as u64)];
    regions.extend((high > 0).then_some((1 << 32, high)));
    let mut memory = Memory::new(&regions)?;
    // With a shim that is what is started, and the guest's kernel its first module.
    let (source, name, cmdline, shimmed) = match &config.pvshim {
        None => (boot.kernel, &boot.name, &boot.cmdline, None),
        Some(shim) => {
            let kernel = boot.kernel.bytes(&boot.name)?;
            (Source::Host(shim.path.clone()), &shim.path, &shim.cmdline, Some(kernel))
        }
    };
    let kernel = match source {
        Source::Host(path) => Kernel::open(&path, |range| memory.boot_slice(range))?,
        Source::Guest(image) => Kernel::of_elf(image, name)?,
    };
    let mut modules = Vec::new();
    modules.extend(shimmed.as_deref().map(|bytes| Module { what: "kernel", bytes, cmdline: &boot.cmdline }));
    modules.extend(ramdisk.as_deref().map(|bytes| Module { what: "ramdisk", bytes, cmdline: "" }));
    tracing::info!(
        "kernel {}: entry {:#x}, {}, hypercalls by {}",
        name.display(),
        kernel.entry,
        if kernel.long_mode { "64-bit" } else { "32-bit" },
        if kernel.hypercall_page { "page" } else { "instruction" },
    );
    let layout = pvh::layout(&kernel, &modules, cmdline, ram, &tables)?;
    layout.write(&memory).map_err(|_| anyhow!("the kernel does not fit into the guest's memory"))?;
    let notice = match way {
        Way::Kernel(_) => None,
        Way::Portable(_) => rewrite_calls(config, &kernel, &mut memory)
            .with_context(|| format!("kernel {}", name.display()))?,
    };
    let memory = Arc::new(memory);
    tracing::debug!("guest memory written");
    let store_page = memory.share_special(SpecialPage::Store)?;

    let vm = Arc::new(kvm::vm::create(&kvm, if config.acpi { IOAPIC_PINS } else { 0 })?);
    let mut slots = Slots::default();
    let taken = slots.add_regions(&vm, &memory);
    taken.with_context(|| format!("this host's KVM takes no guest memory of {} MiB (maxmem)", ram >> 20))?;
    let forward = Arc::new(Forward::new().context("epoll")?);
    let root = RunRoot::at(&launch.run_root)?;
    let peers = Peers::open(root, launch.domid).context("socket for other domains")?;
    // A boot loader may bring a Linux, which nobody has looked at then.
    let watch = notice.is_none() && !kernel.linux && config.hypercall_rewrite != Some(false);
    let accel = accel(way, &vm, config.max_vcpus, &forward, watch)
        .with_context(|| format!("the {} backend of KVM", way.name()))?;
    accel.latch_long_mode(kernel.long_mode)?;

    let guest = Arc::new(Guest {
        vm,
        memory,
        accel,
        domain: Mutex::new(Domain::new(params(launch, &layout, &kernel, fifo(config, way), &cpuid)?)),
        machine: Mutex::new(Machine::new(config.acpi)),
        slots: Mutex::new(slots),
        clock: Clock::default(),
        mailboxes: Mailboxes::new(usize::try_from(config.max_vcpus)?),
        clocks: (0..config.max_vcpus).map(|_| AtomicU64::new(0)).collect(),
        vectors: (0..config.max_vcpus).map(|_| AtomicU8::new(0)).collect(),
        timer_ports: (0..config.max_vcpus).map(|_| AtomicU32::new(0)).collect(),
        refused: (0..config.max_vcpus).map(|_| AtomicU32::new(0)).collect(),
        forward,
        timers: Timers::new().context("timerfd")?,
        peers,
        workers: Mutex::default(),
        events: Mutex::new(events),
        log,
        domid: launch.domid,
        threads: Mutex::default(),
        started: Instant::now(),
        exits: Counters::default(),
    });
    tracing::debug!("virtual machine made");
    let (store_port, console_port) = connect(&guest)?;
    vcpus(&cpuid, &guest, config, launch.domid, vcpu_upcall, (kernel.entry, layout.start_info))?;
    tracing::debug!("vCPUs made");
    serve(&guest, "timers", timers::run)?;
    serve(&guest, "forward", forward::run)?;
    serve(&guest, "peers", peers::run)?;
    Ok(Built { guest, store_page, store_port, console_port, notice })
}

/// Whether the guest may have FIFO event channels. Those of the 2-level ABI are the ones that KVM_XEN delivers.
fn fifo(config: &DomainConfig, way: Way) -> bool {
    match (config.event_channels, way) {
        (EventChannels::Fifo, _) | (EventChannels::Auto, Way::Portable(_)) => true,
        (EventChannels::TwoLevel, _) => false,
        (EventChannels::Auto, Way::Kernel(_)) => config.max_event_channels >= nr_channels_2l(Width::W64),
    }
}

/// KVM's part of Xen's interfaces.
fn accel(
    way: Way,
    vm: &Arc<VmFd>,
    vcpus: u32,
    forward: &Arc<Forward>,
    watch: bool,
) -> std::io::Result<Box<dyn XenAccel>> {
    let (vm, forward) = (vm.clone(), forward.clone());
    Ok(match way {
        Way::Kernel(offers) => Box::new(XenKernel::new(vm, offers, XEN_VERSION, forward)?),
        Way::Portable(offers) => Box::new(XenPortable::new(vm, offers, vcpus, forward, watch)?),
    })
}

/// The user has forbidden it.
const NOT_REWRITTEN: &str = "the portable backend of KVM: hypercall_rewrite = 0 leaves the kernel its hypercall instructions, \
     which do not reach xlr on this backend: the guest will not get far";

/// Without KVM_XEN no hypercall instruction comes to us: those of a kernel that uses no hypercall page become OUTs, in its
/// memory, and the user is told. Linux and Xen's shim could do nothing without them; other kernels may know better.
fn rewrite_calls(
    config: &DomainConfig,
    kernel: &Kernel,
    memory: &mut Memory,
) -> anyhow::Result<Option<String>> {
    if !config.hypercall_rewrite.unwrap_or(!kernel.hypercall_page) {
        let deaf = kernel.linux && !kernel.hypercall_page;
        return Ok(deaf.then(|| NOT_REWRITTEN.into()));
    }
    let mut stubs = Stubs::default();
    for segment in kernel.segments.iter().filter(|segment| segment.text) {
        let bytes = memory.boot_slice(segment.paddr..segment.end());
        stubs.look(segment.paddr, bytes.context("its code is not in one piece of memory")?);
    }
    let must = kernel.linux || config.pvshim.is_some() || config.hypercall_rewrite == Some(true);
    match stubs.both() {
        Ok([amd, intel]) => {
            for site in [amd, intel] {
                let written = memory.write(Gpa(site), &rewrite::call_by(HYPERCALL_PORT));
                written.map_err(|_| anyhow!("no memory at {site:#x}"))?;
            }
            let notice = format!(
                "the portable backend of KVM: the kernel's hypercall instructions at {amd:#x} and {intel:#x} are \
                 written over in its memory (hypercall_rewrite)"
            );
            tracing::info!("{notice}");
            Ok(Some(notice))
        }
        Err(refusal) if must => {
            Err(refusal).context("its hypercalls cannot be rewritten for the portable backend")
        }
        Err(refusal) => {
            tracing::info!("no hypercall instructions written over, the guest has the page: {refusal}");
            Ok(None)
        }
    }
}

/// Start a thread that works for the domain until it is told to stop.
fn serve(guest: &Arc<Guest>, name: &str, run: fn(&Arc<Guest>)) -> std::io::Result<()> {
    let own = guest.clone();
    let thread = std::thread::Builder::new().name(name.into()).stack_size(128 << 10);
    crate::guest::lock(&guest.workers).push(thread.spawn(move || run(&own))?);
    Ok(())
}

fn params(
    launch: &Launch,
    layout: &pvh::Layout<'_>,
    kernel: &Kernel,
    fifo: bool,
    cpuid: &CpuId,
) -> anyhow::Result<Params> {
    let config = &launch.config;
    let most = if fifo { event_channel::fifo::NR_CHANNELS } else { nr_channels_2l(Width::W64) };
    Ok(Params {
        domid: launch.domid,
        uuid: uuid_bytes(&config.uuid)?,
        max_vcpus: config.max_vcpus,
        pages: config.memory_mib << 8,
        max_pages: config.maxmem_mib.max(config.memory_mib) << 8,
        memory_map: layout.memory_map.clone(),
        max_grant_frames: config.max_grant_frames,
        max_grant_version: config.max_grant_version,
        max_ports: config.max_event_channels.saturating_add(1).min(most),
        fifo,
        commandline: String::new(),
        long_mode: kernel.long_mode,
        processor: cpuid::processor(cpuid),
        console_gfn: pvh::CONSOLE_GFN,
        store_gfn: pvh::STORE_GFN,
    })
}

/// Whether guests are told of per-vCPU upcall vectors. They end each such interrupt with an exit, unless the processor
/// virtualises their local APICs; the global vector needs none.
///
/// # Errors
/// The global vector has no way to the guest.
fn vcpu_upcall(upcall: Upcall, way: Way) -> Result<bool, HostError> {
    match (upcall, way) {
        (Upcall::Vector, _) => Ok(true),
        (Upcall::Global, Way::Portable(offers)) if !offers.auto_eoi => Err(HostError::NoAutoEoi),
        (Upcall::Global, _) => Ok(false),
        (Upcall::Auto, Way::Kernel(offers)) => Ok(offers.vectors && !offers.auto_eoi),
        (Upcall::Auto, Way::Portable(offers)) => Ok(!offers.auto_eoi || auto_eoi::needless()),
    }
}

fn uuid_bytes(uuid: &str) -> anyhow::Result<[u8; 16]> {
    let digits: String = uuid.chars().filter(|&c| c != '-').collect();
    let value = u128::from_str_radix(&digits, 16).with_context(|| format!("UUID `{uuid}`"))?;
    Ok(value.to_be_bytes())
}

/// Place the ring pages and connect the two backends that every domain has.
fn connect(guest: &Guest) -> anyhow::Result<(Port, Port)> {
    let mut fx = Fx::new(guest, None);
    for (page, gfn) in [(SpecialPage::Store, pvh::STORE_GFN), (SpecialPage::Console, pvh::CONSOLE_GFN)] {
        fx.map_special(page, Some(gfn)).map_err(|e| anyhow!("{page:?} at {gfn:?}: {e:?}"))?;
    }
    let connect = |backend| {
        let port = guest.with_domain(|domain, cx| domain.connect_backend(backend, cx));
        port.map_err(|e| anyhow!("event channel of {backend:?}: {e:?}"))
    };
    Ok((connect(Backend::Store)?, connect(Backend::Console)?))
}

fn vcpus(
    supported: &CpuId,
    guest: &Arc<Guest>,
    config: &DomainConfig,
    domid: u16,
    vcpu_upcall: bool,
    (entry, start_info): (u32, u32),
) -> anyhow::Result<()> {
    for vcpu in 0..config.max_vcpus {
        let mut fd = guest
            .vm
            .create_vcpu(apic_id(vcpu).into())
            .with_context(|| format!("vCPU {vcpu} of {}", config.max_vcpus))?;
        let facts = Facts {
            max_vcpus: config.max_vcpus,
            domid,
            xen_version: XEN_VERSION,
            vcpu_upcall,
            invariant_tsc: kvm::keeps_time_by_tsc(),
            tsc_mode: config.tsc_mode,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        };
        let leaves = cpuid::for_vcpu(supported, &facts, vcpu).map_err(|e| anyhow!("CPUID leaves: {e:?}"))?;
        fd.set_cpuid2(&leaves).context("CPUID leaves")?;
        regs::initial_msrs(&fd)?;
        if vcpu == 0 {
            regs::pvh_entry(&fd, entry, start_info)?;
        }
        guest.accel.setup_vcpu(&mut fd, vcpu)?;
        let affinity = match config.cpus.as_slice() {
            [one] => one.clone(),
            each => each.get(usize::try_from(vcpu)?).cloned().unwrap_or_default(),
        };
        let thread = Thread::start(guest, vcpu, config.max_vcpus, fd, affinity)?;
        crate::guest::lock(&guest.threads).push(thread);
    }
    Ok(())
}
