//! What the host's kernel says about the host: /proc and /sys.

use std::collections::BTreeMap;
use std::fs;

/// The whole of a small file, trimmed; empty when it cannot be read.
pub fn text(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The first `name : value` of /proc/cpuinfo.
pub fn cpuinfo(name: &str) -> Option<String> {
    let text = text("/proc/cpuinfo");
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// /proc/meminfo, KiB.
pub fn meminfo() -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let (key, value) = line.split_once(':')?;
        Some((key.to_owned(), value.split_whitespace().next()?.parse().ok()?))
    };
    text("/proc/meminfo").lines().filter_map(parse).collect()
}

/// Seconds since the host started.
pub fn uptime() -> f64 {
    text("/proc/uptime").split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Seconds that all CPUs of the host have worked. /proc/stat counts hundredths, whatever the kernel's HZ.
pub fn busy_seconds() -> f64 {
    let text = text("/proc/stat");
    let fields: Vec<f64> =
        text.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    // user nice system [idle iowait] irq softirq
    [0, 1, 2, 5, 6].iter().filter_map(|&at| fields.get(at)).sum::<f64>() / 100.0
}
