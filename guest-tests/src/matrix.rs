//! The table of tests that run in L1: a name, L1's kernel, a script of guest-tests/tests and its arguments. Microkernels add themselves,
//! and `ways.rs` adds what is done in every way that events come.

use crate::script::Host::{self, Plain, TwoCpus, WithXen};

/// One row.
#[derive(Debug)]
pub struct Test {
    /// What it reports under. Those that begin with `long-` run only when they are asked for.
    pub name: &'static str,
    /// L1's kernel.
    pub host: Host,
    /// The script and what it is given.
    pub script: &'static str,
    /// Its arguments.
    pub args: &'static [&'static str],
    /// Seconds until it has failed.
    pub limit: u64,
}

const fn test(name: &'static str, script: &'static str, args: &'static [&'static str], limit: u64) -> Test {
    Test { name, host: WithXen, script, args, limit }
}

/// The same in an L1 without KVM_XEN.
const fn plain(name: &'static str, script: &'static str, args: &'static [&'static str], limit: u64) -> Test {
    Test { host: Plain, ..test(name, script, args, limit) }
}

/// The same in an L1 with two CPUs.
const fn two(name: &'static str, script: &'static str, args: &'static [&'static str], limit: u64) -> Test {
    Test { host: TwoCpus, ..test(name, script, args, limit) }
}

/// The line of a configuration that does without KVM_XEN.
pub const PORTABLE: &str = "accel = 'portable'";
/// The line of a configuration whose kernel is a PV one.
pub const SHIM: &str = "pvshim = 1; pvshim_path = '/guest/xen-shim'";
/// The line of a configuration that asks for FIFO event channels.
pub const FIFO: &str = "event_channels = 'fifo'";
/// The line of a configuration that does not.
pub const TWO_LEVEL: &str = "event_channels = '2level'";
/// The line of a configuration whose guest has the one vector for all vCPUs.
const GLOBAL: &str = "upcall = 'global'";
/// The line of a configuration whose guest has a vector for each vCPU.
const VECTOR: &str = "upcall = 'vector'";
/// The line of a configuration for the microkernel `flood`.
const TEN_MILLION: &str = "extra = 'events=10000000'";
/// Lines of a configuration for the microkernel `hostile`: more calls, and all the ports that there can be.
const HOSTILE: &str = "extra = 'calls=5000 ports=131071'";
const MOST_PORTS: &str = "max_event_channels = 131071";

/// What a row is called that runs only when it is asked for.
pub const LONG: &str = "long-";
/// Blocks go one by one, each with a grant of its own.
const PLAIN_BLOCKS: &str = "feature_persistent=0 max_indirect_segments=0";

/// `boot.sh KERNEL VCPUS MEMORY-MIB ACTION [ABI [UPCALL [LINE...]]]`: every kernel and memory size occurs, and every kernel with more than one of each.
pub const TESTS: &[Test] = &[
    test("boot-6.12-cloud-1cpu-128M", "boot.sh", &["6.12-cloud", "1", "128", "poweroff"], 90),
    test("boot-6.12-cloud-4cpu-4G", "boot.sh", &["6.12-cloud", "4", "4096", "poweroff"], 90),
    test("boot-6.12-cloud-2cpu-5G", "boot.sh", &["6.12-cloud", "2", "5120", "poweroff"], 90),
    test("boot-6.12-cloud-8cpu-512M", "boot.sh", &["6.12-cloud", "8", "512", "poweroff"], 150),
    test("boot-6.12-cloud-64cpu-1G", "boot.sh", &["6.12-cloud", "64", "1024", "poweroff"], 600),
    test("boot-6.12-full-1cpu-256M", "boot.sh", &["6.12-full", "1", "256", "poweroff"], 120),
    test("boot-6.12-full-2cpu-1G", "boot.sh", &["6.12-full", "2", "1024", "poweroff"], 120),
    test("boot-6.12-full-4cpu-512M", "boot.sh", &["6.12-full", "4", "512", "poweroff"], 120),
    test("boot-6.1-cloud-2cpu-128M", "boot.sh", &["6.1-cloud", "2", "128", "poweroff"], 90),
    test("boot-6.1-cloud-4cpu-3G", "boot.sh", &["6.1-cloud", "4", "3072", "poweroff"], 90),
    test("boot-6.1-full-1cpu-4G", "boot.sh", &["6.1-full", "1", "4096", "poweroff"], 120),
    test("boot-6.1-full-2cpu-256M", "boot.sh", &["6.1-full", "2", "256", "poweroff"], 120),
    test("boot-6.1-full-4cpu-1G", "boot.sh", &["6.1-full", "4", "1024", "poweroff"], 120),
    test(
        "boot-global-6.12-cloud-4cpu",
        "boot.sh",
        &["6.12-cloud", "4", "512", "poweroff", "2level", "global"],
        120,
    ),
    // A vector of each vCPU, which the lab's processor does not make the default.
    test(
        "boot-vector-6.1-full-2cpu",
        "boot.sh",
        &["6.1-full", "2", "512", "poweroff", "2level", "vector"],
        120,
    ),
    test(
        "boot-fifo-global-6.12-cloud-2cpu",
        "boot.sh",
        &["6.12-cloud", "2", "512", "poweroff", "fifo", "global"],
        150,
    ),
    // The portable backend, on a host that has the other one too.
    test(
        "boot-portable-2level-6.12-cloud-4cpu",
        "boot.sh",
        &["6.12-cloud", "4", "512", "poweroff", "2level", "auto", PORTABLE],
        150,
    ),
    test(
        "boot-portable-2level-6.1-cloud-1cpu",
        "boot.sh",
        &["6.1-cloud", "1", "512", "poweroff", "2level", "auto", PORTABLE],
        150,
    ),
    test(
        "boot-portable-fifo-6.12-cloud-2cpu",
        "boot.sh",
        &["6.12-cloud", "2", "512", "poweroff", "fifo", "auto", PORTABLE],
        150,
    ),
    test(
        "boot-portable-fifo-6.1-cloud-3cpu",
        "boot.sh",
        &["6.1-cloud", "3", "512", "poweroff", "fifo", "auto", PORTABLE],
        150,
    ),
    test(
        "boot-portable-vector-6.12-cloud-2cpu",
        "boot.sh",
        &["6.12-cloud", "2", "512", "poweroff", "2level", "vector", PORTABLE],
        150,
    ),
    test("cpus-portable-6.12-cloud", "cpus.sh", &["6.12-cloud", "2level", PORTABLE], 150),
    test("cpus-portable-fifo-6.1-cloud", "cpus.sh", &["6.1-cloud", "fifo", PORTABLE], 150),
    test("reboot-portable-6.12-cloud", "reboot.sh", &["6.12-cloud", PORTABLE], 120),
    test("shutdown-portable-button", "shutdown.sh", &["button", PORTABLE], 90),
    test("paused-portable", "paused.sh", &[PORTABLE], 120),
    test("paused-clock", "paused-clock.sh", &[], 120),
    test("paused-clock-portable", "paused-clock.sh", &[PORTABLE], 120),
    test("strict-portable-halts", "strict.sh", &["6.12-cloud", PORTABLE], 90),
    test(
        "stress-portable-2level-4cpu",
        "micro.sh",
        &["stress", "64", PORTABLE, TWO_LEVEL, "vcpus = 4", "max_event_channels = 4095"],
        300,
    ),
    test(
        "stress-portable-fifo-4cpu",
        "micro.sh",
        &["stress", "64", PORTABLE, FIFO, "vcpus = 4", "max_event_channels = 4095"],
        300,
    ),
    test(
        "micro-portable-evtchn_self-off",
        "micro.sh",
        &["evtchn_self", "64", PORTABLE, VECTOR, "extra = 'off'"],
        120,
    ),
    test("vcpu-down-idle", "down.sh", &[], 90),
    test("vcpu-down-idle-portable", "down.sh", &[PORTABLE], 90),
    test("micro-portable-poll-open", "micro.sh", &["poll", "64", PORTABLE, TWO_LEVEL, "extra = 'open'"], 120),
    test("micro-portable-fifo-asked", "micro.sh", &["fifo", "64", PORTABLE, FIFO], 180),
    test("cpus-6.12-cloud", "cpus.sh", &["6.12-cloud", "2level"], 120),
    test("cpus-fifo-6.1-cloud", "cpus.sh", &["6.1-cloud", "fifo"], 120),
    test("reboot-6.12-cloud", "reboot.sh", &["6.12-cloud"], 120),
    test("reboot-6.1-full", "reboot.sh", &["6.1-full"], 120),
    test("strict-pvh-halts", "strict.sh", &["6.12-cloud"], 90),
    test("xenstore-in-l1", "xenstore.sh", &[], 90),
    test("xenbus-in-guest", "xenbus.sh", &[], 90),
    test("shutdown-pv", "shutdown.sh", &["pv"], 90),
    test("shutdown-button", "shutdown.sh", &["button"], 90),
    test("shutdown-trigger", "shutdown.sh", &["trigger"], 90),
    test("shutdown-sigterm", "shutdown.sh", &["sigterm"], 90),
    test("second-sigterm", "signals.sh", &[], 90),
    test("sigterm-and-a-deaf-guest", "deaf.sh", &[], 150),
    test("memory-below-maxmem", "balloon.sh", &["maxmem"], 120),
    test("memory-target", "balloon.sh", &["target"], 120),
    test("create-in-foreground", "foreground.sh", &[], 90),
    test("create-paused-as-xl", "xl.sh", &[], 90),
    test("create-as-nobody", "user.sh", &[], 90),
    test("create-from-yaml", "yaml.sh", &[], 90),
    test("micro-callback-apic-off", "micro.sh", &["callback", "64", "cmdline = 'off'"], 120),
    test(
        "micro-cpuid-tsc-native",
        "micro.sh",
        &["cpuid", "64", "tsc_mode = 'native'", "extra = 'tsc=2'"],
        60,
    ),
    test(
        "micro-portable-cpuid-tsc-native",
        "micro.sh",
        &["cpuid", "64", PORTABLE, "tsc_mode = 'native'", "extra = 'tsc=2'"],
        60,
    ),
    test("micro-fifo-asked", "micro.sh", &["fifo", "64", FIFO], 180),
    test("micro-errno-fifo", "micro.sh", &["errno", "64", FIFO], 120),
    // From 2-level to FIFO while vCPUs send, of which there are three.
    test("micro-poll-fifo", "micro.sh", &["poll", "64", FIFO, "extra = 'yields'"], 180),
    test("micro-switch-fifo", "micro.sh", &["switch", "64", FIFO, "vcpus = 3"], 180),
    test("hostile-neighbour-fifo", "hostile.sh", &[FIFO], 300),
    test("stress-2level-4cpu", "micro.sh", &["stress", "64", "vcpus = 4", "max_event_channels = 4095"], 300),
    test(
        "stress-fifo-4cpu",
        "micro.sh",
        &["stress", "64", FIFO, "vcpus = 4", "max_event_channels = 4095"],
        300,
    ),
    // 4 vCPUs on 2 CPUs.
    two(
        "long-stress-2level-2cpu",
        "micro.sh",
        &["stress", "64", "vcpus = 4", "max_event_channels = 4095"],
        1800,
    ),
    two(
        "long-stress-fifo-2cpu",
        "micro.sh",
        &["stress", "64", FIFO, "vcpus = 4", "max_event_channels = 4095"],
        1800,
    ),
    two(
        "long-stress-portable-2level-2cpu",
        "micro.sh",
        &["stress", "64", PORTABLE, TWO_LEVEL, "vcpus = 4", "max_event_channels = 4095"],
        1800,
    ),
    two(
        "long-stress-portable-fifo-2cpu",
        "micro.sh",
        &["stress", "64", PORTABLE, FIFO, "vcpus = 4", "max_event_channels = 4095"],
        1800,
    ),
    test("channel-client-dies", "peers.sh", &["client"], 120),
    test("channel-server-dies", "peers.sh", &["server"], 120),
    test("channel-server-killed", "peers.sh", &["killed"], 120),
    test("channel-fifo", "peers.sh", &["client", FIFO], 120),
    test("channel-portable", "peers.sh", &["server", PORTABLE], 120),
    // Debian's kernels with Debian's drivers, and the two ABIs and backends.
    test("channel-linux", "channel.sh", &["6.12-cloud", "6.1-cloud"], 240),
    test("channel-linux-mixed", "channel.sh", &["6.12-cloud", "6.12-cloud", FIFO, PORTABLE], 240),
    test("events-without-exits", "exits.sh", &[], 120),
    test("micro-flood-fifo", "micro.sh", &["flood", "64", FIFO], 120),
    test("micro-flood-global", "micro.sh", &["flood", "64", GLOBAL, "extra = 'global'"], 120),
    test(
        "micro-portable-flood-2level-global",
        "micro.sh",
        &["flood", "64", PORTABLE, TWO_LEVEL, GLOBAL, "extra = 'global strict'"],
        120,
    ),
    test(
        "micro-portable-flood-2level",
        "micro.sh",
        &["flood", "64", PORTABLE, TWO_LEVEL, "extra = 'strict'"],
        120,
    ),
    test("long-hostile-fifo", "hostile.sh", &[FIFO, HOSTILE, MOST_PORTS], 3600),
    test("long-hostile-portable-fifo", "hostile.sh", &[PORTABLE, FIFO, HOSTILE, MOST_PORTS], 3600),
    // A minute or more for each million.
    test("long-ten-million-2level", "micro.sh", &["flood", "64", TEN_MILLION], 7200),
    test("long-ten-million-fifo", "micro.sh", &["flood", "64", FIFO, TEN_MILLION], 7200),
    test(
        "long-ten-million-portable-2level",
        "micro.sh",
        &["flood", "64", PORTABLE, TWO_LEVEL, "extra = 'strict events=10000000'"],
        7200,
    ),
    test("long-ten-million-portable-fifo", "micro.sh", &["flood", "64", PORTABLE, FIFO, TEN_MILLION], 7200),
    test(
        "long-ten-million-global",
        "micro.sh",
        &["flood", "64", GLOBAL, "extra = 'global events=10000000'"],
        7200,
    ),
    test(
        "long-ten-million-fifo-global",
        "micro.sh",
        &["flood", "64", FIFO, GLOBAL, "extra = 'global events=10000000'"],
        7200,
    ),
    test(
        "long-ten-million-portable-global",
        "micro.sh",
        &["flood", "64", PORTABLE, TWO_LEVEL, GLOBAL, "extra = 'global strict events=10000000'"],
        7200,
    ),
    test("memory-32M", "micro.sh", &["hello", "32"], 60),
    test("trigger-nmi", "nmi.sh", &[], 90),
    test("crash-preserved", "preserve.sh", &[], 90),
    test("rename-restart", "rename-restart.sh", &[], 120),
    test("crash-restarts", "crash.sh", &[], 120),
    test("destroy-leaves-nothing", "destroy.sh", &[], 60),
    test("killed-is-noticed", "killed.sh", &[], 60),
    test("store-killed", "store-killed.sh", &["debian-12"], 300),
    test("list", "list.sh", &[], 60),
    test("bad-input", "bad-input.sh", &[], 120),
    test("console-flood", "flood.sh", &[], 400),
    test("console-readers", "readers.sh", &[], 90),
    test("console-channels", "channels.sh", &["debian-12"], 400),
    test("block-devices", "block.sh", &["debian-12", "4"], 600),
    test("long-device-cycles", "cycles.sh", &["debian-12", "210"], 7200),
    test("long-device-modules", "modules.sh", &["debian-12"], 900),
    test("long-device-media", "media.sh", &["debian-12"], 1800),
    test("long-device-kexec", "kexec.sh", &["debian-12", "2level"], 900),
    test("long-device-kexec-fifo", "kexec.sh", &["debian-12", "fifo"], 900),
    test("device-refusals", "refused-devices.sh", &["debian-12"], 900),
    test("durable-raw", "durable.sh", &["debian-12", "raw", "none", "4", "all"], 500),
    test("durable-raw-plain", "durable.sh", &["debian-12", "raw", "writeback", "1", PLAIN_BLOCKS], 500),
    test("durable-qcow2", "durable.sh", &["debian-12", "qcow2", "none", "4", "all"], 500),
    test("durable-qcow2-plain", "durable.sh", &["debian-12", "qcow2", "writeback", "1", PLAIN_BLOCKS], 500),
    test("long-durable-raw-1cpu", "durable.sh", &["debian-12", "raw", "none", "1", "all"], 500),
    test(
        "long-durable-raw-plain-4cpu",
        "durable.sh",
        &["debian-12", "raw", "writeback", "4", PLAIN_BLOCKS],
        500,
    ),
    test("long-durable-qcow2-1cpu", "durable.sh", &["debian-12", "qcow2", "none", "1", "all"], 500),
    test(
        "long-durable-qcow2-plain-4cpu",
        "durable.sh",
        &["debian-12", "qcow2", "writeback", "4", PLAIN_BLOCKS],
        500,
    ),
    test("network-devices", "network.sh", &["debian-12"], 600),
    test("network-refused", "network-refused.sh", &["debian-12"], 600),
    test("network-load", "network-load.sh", &["debian-12", "4", "20000"], 1200),
    test("long-network-user", "network-user.sh", &["debian-12"], 2400),
    test("long-network-load", "network-load.sh", &["debian-12", "64", "1000000"], 3600),
    test("debian-12-poweroff", "debian.sh", &["debian-12", "kernel", "raw", "poweroff"], 900),
    test("debian-12-pygrub-shutdown", "debian.sh", &["debian-12", "pygrub", "raw", "shutdown"], 900),
    test("long-debian-12-script", "debian.sh", &["debian-12", "pygrub", "script", "shutdown"], 1800),
    test("debian-12-qcow2-button", "debian.sh", &["debian-12", "pygrub", "qcow2", "button"], 900),
    test("debian-12-grub-poweroff", "debian.sh", &["debian-12", "grub-pvh", "raw", "poweroff"], 900),
    test(
        "long-debian-12-grub-portable",
        "debian.sh",
        &["debian-12", "grub-pvh", "raw", "poweroff", PORTABLE],
        900,
    ),
    test(
        "long-debian-13-grub-portable",
        "debian.sh",
        &["debian-13", "grub-pvh", "raw", "poweroff", PORTABLE],
        900,
    ),
    test("debian-13-qcow2-poweroff", "debian.sh", &["debian-13", "pygrub", "qcow2", "poweroff"], 900),
    test("long-debian-13-shutdown", "debian.sh", &["debian-13", "pygrub", "raw", "shutdown"], 900),
    test("long-debian-13-force", "debian.sh", &["debian-13", "kernel", "raw", "force"], 900),
    test("pvshim-6.12-cloud", "pvshim.sh", &["6.12-cloud", SHIM], 240),
    test("pvshim-fifo-6.1-cloud", "pvshim.sh", &["6.1-cloud", SHIM, FIFO], 240),
    test("long-pvshim-debian-12", "debian.sh", &["debian-12", "pygrub", "raw", "poweroff", SHIM], 1800),
    test("examples", "examples.sh", &[], 60),
    // A host whose KVM has no KVM_XEN.
    plain("plain-no-kvm-xen", "no-kvm-xen.sh", &[SHIM], 120),
    plain(
        "plain-boot-global-6.12-cloud-2cpu",
        "boot.sh",
        &["6.12-cloud", "2", "512", "poweroff", "fifo", "global"],
        150,
    ),
    plain("plain-channel-fifo", "peers.sh", &["client", FIFO], 120),
    plain("plain-cpus-6.12-cloud", "cpus.sh", &["6.12-cloud", "fifo"], 150),
    plain("plain-reboot-6.1-cloud", "reboot.sh", &["6.1-cloud"], 120),
    plain(
        "plain-stress-fifo-4cpu",
        "micro.sh",
        &["stress", "64", FIFO, "vcpus = 4", "max_event_channels = 4095"],
        300,
    ),
    plain("long-plain-hostile-fifo", "hostile.sh", &[FIFO, HOSTILE, MOST_PORTS], 3600),
    plain("long-plain-ten-million-fifo", "micro.sh", &["flood", "64", FIFO, TEN_MILLION], 7200),
    plain(
        "long-plain-ten-million-2level",
        "micro.sh",
        &["flood", "64", TWO_LEVEL, "extra = 'strict events=10000000'"],
        7200,
    ),
    plain("long-plain-debian-12-grub", "debian.sh", &["debian-12", "grub-pvh", "raw", "poweroff"], 900),
    plain("plain-debian-12-poweroff", "debian.sh", &["debian-12", "kernel", "raw", "poweroff"], 900),
];
