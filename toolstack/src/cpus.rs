//! Sets of host CPUs: `0-3,5,^1`, `all`, `nodes:0-1,node:^2`, and how they are shown.

use anyhow::{Context, Result};

/// The host's CPUs that are online.
pub fn online() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    kernel_list(text.trim()).with_context(|| format!("{path} holds no CPU list: {text}"))
}

/// The kernel's form: `0-3,8`.
fn kernel_list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?.min(1 << 16));
    }
    Some(all)
}

/// The CPUs of `host` that `text` names, in the form of `cpus=` in xl.cfg(5).
pub fn select(text: &str, host: &[usize]) -> Result<Vec<usize>, String> {
    let mut chosen = Vec::new();
    let text = text.trim().trim_end_matches(',');
    for part in text.split(',').map(str::trim) {
        let named = part_of(part, host, &node_cpus);
        let (out, named) = named.ok_or_else(|| {
            format!("{part:?} names no CPUs; right are \"all\", \"0-3\", \"2,^1\", \"nodes:0-1\"")
        })?;
        if out {
            chosen.retain(|cpu| !named.contains(cpu));
        } else {
            chosen.extend(named);
        }
    }
    chosen.retain(|cpu| host.contains(cpu));
    chosen.sort_unstable();
    chosen.dedup();
    match chosen.is_empty() {
        true => Err(format!("{text:?} leaves no CPU of this host, which has {}", show(host, &[]))),
        false => Ok(chosen),
    }
}

/// The CPUs of a node; none of one that the host has not.
fn node_cpus(node: usize) -> Vec<usize> {
    let text = std::fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist"));
    text.ok().and_then(|text| kernel_list(text.trim())).unwrap_or_default()
}

/// Whether a part takes CPUs out, and which it names. `^` stands before or behind `node:`.
fn part_of(part: &str, host: &[usize], node: &dyn Fn(usize) -> Vec<usize>) -> Option<(bool, Vec<usize>)> {
    let (before, part) = part.strip_prefix('^').map_or((false, part), |rest| (true, rest));
    let Some(nodes) = part.strip_prefix("nodes:").or(part.strip_prefix("node:")) else {
        let named = if part == "all" { host.to_vec() } else { kernel_list(part)? };
        return Some((before, named)).filter(|(_, named)| !named.is_empty());
    };
    let (behind, nodes) = nodes.strip_prefix('^').map_or((false, nodes), |rest| (true, rest));
    let named = match nodes {
        "all" => host.to_vec(),
        nodes => kernel_list(nodes)?.into_iter().flat_map(node).collect(),
    };
    Some((before || behind, named)).filter(|(_, named)| !named.is_empty())
}

/// As xl shows a set: `all`, or `0-1,3`. Nothing chosen means all.
pub fn show(chosen: &[usize], host: &[usize]) -> String {
    if chosen.is_empty() || (!host.is_empty() && host.iter().all(|cpu| chosen.contains(cpu))) {
        return "all".into();
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in chosen {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(cpu) => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let run = |(a, b): (usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_shown() {
        let host: Vec<_> = (0..8).collect();
        for (text, chosen) in [
            ("all", "all"),
            ("0-3,5,^1", "0,2-3,5"),
            ("7,0", "0,7"),
            ("6-20", "6-7"),
            ("all,^0-5", "6-7"),
            (" 1 , 2", "1-2"),
            ("3,", "3"),
        ] {
            assert_eq!(show(&select(text, &host).unwrap(), &host), chosen, "{text}");
        }
        assert_eq!(select("9", &host).unwrap_err(), "\"9\" leaves no CPU of this host, which has 0-7");
        assert_eq!(show(&[], &host), "all");
        for wrong in ["", "x", "1-", "node:z", "^"] {
            assert!(select(wrong, &host).unwrap_err().contains("names no CPUs"), "{wrong}");
        }
        assert!(online().unwrap().contains(&0));
        let node = |node: usize| if node < 4 { vec![2 * node, 2 * node + 1] } else { vec![] };
        for (part, expected) in [
            ("node:1", Some((false, vec![2, 3]))),
            ("nodes:0-1", Some((false, vec![0, 1, 2, 3]))),
            ("nodes:3-9", Some((false, vec![6, 7]))),
            ("node:^2", Some((true, vec![4, 5]))),
            ("^nodes:0", Some((true, vec![0, 1]))),
            ("nodes:all", Some((false, host.clone()))),
            ("^all", Some((true, host.clone()))),
            ("node:9", None),
            ("nodes:", None),
            ("node:1-", None),
        ] {
            assert_eq!(part_of(part, &host, &node), expected, "{part}");
        }
    }
}
