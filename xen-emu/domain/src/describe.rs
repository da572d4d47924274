//! The domain's state as text, for the control protocol's `describe`.

use std::fmt::Write as _;

use crate::domain::Domain;
use crate::hypercall;

/// One part of the tree: its name, and how it renders with what follows its name in the path.
type Section = (&'static str, fn(&Domain, &mut String, Option<u32>));

const SECTIONS: &[Section] = &[
    ("evtchn", |domain, out, port| domain.ports.describe(out, port)),
    ("gnttab", |domain, out, _| domain.grants.describe(out)),
    ("vcpu", |domain, out, only| {
        for (id, vcpu) in (0..).zip(&domain.vcpus).filter(|(id, _)| only.is_none_or(|only| only == *id)) {
            vcpu.describe(out, id);
        }
    }),
    ("params", |domain, out, _| domain.hvm.describe(out)),
    ("physmap", |domain, out, _| domain.physmap.describe(out)),
    ("hypercalls", |domain, out, _| {
        for ((nr, op), count) in domain.counters() {
            let _ = writeln!(out, "{count} {}", hypercall::name(*nr, *op));
        }
    }),
];

impl Domain {
    /// The state as a tree of text, below `path` ("evtchn", "evtchn/12", "gnttab", "vcpu/0", "params", "physmap",
    /// "hypercalls"; "" = all). Empty for a path that leads nowhere.
    #[must_use]
    pub fn describe(&self, path: &str) -> String {
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        let only = if rest.is_empty() { None } else { Some(rest.parse().unwrap_or(u32::MAX)) };
        let mut out = String::new();
        for (section, render) in SECTIONS.iter().filter(|(section, _)| path.is_empty() || *section == name) {
            let mut part = String::new();
            render(self, &mut part, only);
            for line in part.lines() {
                let _ = writeln!(out, "{section}: {line}");
            }
        }
        out
    }
}
