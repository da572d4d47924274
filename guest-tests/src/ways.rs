//! What is done in every way that a guest's events come: with KVM_XEN and on a host without, 2-level and FIFO.
//!
//! Both of Debian's kernels boot with 1 to 4 vCPUs every day, and Debian 11's, which calls through the hypercall page, with two. What takes minutes is `long-`: the console, disks and cards of guests with
//! 1, 4 and 3 vCPUs, and whole systems, Debian 12 with its 6.1 and Debian 13 with its 6.12. Where the table of `matrix.rs` has a row
//! like that for every day it is there.

use crate::matrix::{FIFO, TWO_LEVEL};
use crate::script::Host::{self, Plain, WithXen};
use crate::suite::Case;

/// One way.
struct Way {
    /// What begins the names of its rows, and L1's kernel.
    prefix: &'static str,
    host: Host,
    /// What `event_channels` says, and the line of a configuration that says so.
    abi: &'static str,
    line: &'static str,
    /// Whether devices and whole systems have rows in the table already.
    in_table: bool,
}

const WAYS: [Way; 4] = [
    Way { prefix: "", host: WithXen, abi: "2level", line: TWO_LEVEL, in_table: true },
    Way { prefix: "", host: WithXen, abi: "fifo", line: FIFO, in_table: false },
    Way { prefix: "plain-", host: Plain, abi: "2level", line: TWO_LEVEL, in_table: false },
    Way { prefix: "plain-", host: Plain, abi: "fifo", line: FIFO, in_table: false },
];
const KERNELS: [&str; 2] = ["6.12-cloud", "6.1-cloud"];
/// The kernel that calls through the hypercall page, and its vCPUs.
const PAGE: (&str, &str) = ("5.10-cloud", "2");
/// Of hostile guests.
const SEEDS: u32 = 10;
const VCPUS: [&str; 4] = ["1", "2", "3", "4"];

/// All rows.
pub fn cases() -> impl Iterator<Item = Case> {
    WAYS.iter().flat_map(|way| boots(way).chain(devices(way)).chain(systems(way))).chain(hostile())
}

fn boots(way: &Way) -> impl Iterator<Item = Case> {
    let all = KERNELS.iter().flat_map(|kernel| VCPUS.iter().map(move |vcpus| (*kernel, *vcpus)));
    all.chain([PAGE]).map(move |(kernel, vcpus)| {
        let name = format!("{}boot-{}-{kernel}-{vcpus}cpu", way.prefix, way.abi);
        Case::new(name, way.host, "boot.sh", &[kernel, vcpus, "512", "poweroff", way.abi], 150)
    })
}

fn devices(way: &Way) -> impl Iterator<Item = Case> {
    let rows: [(&str, &str, &[&str]); 3] = [
        ("console-flood", "flood.sh", &["vcpus = 1"]),
        ("block", "block.sh", &["debian-12", "0", "vcpus = 4"]),
        ("network", "network.sh", &["debian-12", "vcpus = 3"]),
    ];
    let rows = rows.into_iter().filter(|_| !way.in_table);
    rows.map(move |(name, script, args)| {
        let name = format!("long-{}{name}-{}", way.prefix, way.abi);
        Case::new(name, way.host, script, &[args, &[way.line]].concat(), 1800)
    })
}

fn systems(way: &Way) -> impl Iterator<Item = Case> {
    let images = ["debian-12", "debian-13"].into_iter().filter(|_| !way.in_table);
    images.map(move |image| {
        let name = format!("long-{}{image}-{}", way.prefix, way.abi);
        Case::new(name, way.host, "debian.sh", &[image, "pygrub", "raw", "poweroff", way.line], 900)
    })
}

/// The hostile guest beside another one, with other numbers each time.
fn hostile() -> impl Iterator<Item = Case> {
    (1..=SEEDS).zip(WAYS.iter().cycle()).map(|(seed, way)| {
        let name = format!("long-{}hostile-{}-seed-{seed}", way.prefix, way.abi);
        let seed = format!("extra = 'calls=1000 seed={seed}'");
        Case::new(name, way.host, "hostile.sh", &[way.line, &seed], 1200)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_there_once() {
        let mut names: Vec<String> = cases().map(|case| case.name).collect();
        let all = names.len();
        assert_eq!(all, 4 * (2 * 4 + 1) + 3 * 3 + 3 * 2 + 10);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        for name in [
            "boot-2level-6.1-cloud-3cpu",
            "boot-fifo-5.10-cloud-2cpu",
            "plain-boot-fifo-6.12-cloud-4cpu",
            "long-plain-block-fifo",
        ] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }
}
