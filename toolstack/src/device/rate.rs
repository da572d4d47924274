//! `rate=`: xl-network-configuration(5).

use xen_emu_api::device::Rate;

/// Of one byte or bit per second.
const UNITS: [(&str, u64); 4] = [("G", 1_000_000_000), ("M", 1_000_000), ("K", 1_000), ("", 1)];
/// In microseconds; a bare number is microseconds.
const INTERVALS: [(&str, u64); 4] = [("ms", 1_000), ("us", 1), ("s", 1_000_000), ("", 1)];
const DEFAULT_INTERVAL_US: u64 = 50_000;

/// Read `10Mb/s`, `250KB/s`, `1MB/s@20ms`.
///
/// # Errors
/// One line.
pub fn parse(text: &str) -> Result<Rate, String> {
    let right = "10Mb/s, 250KB/s or 1MB/s@20ms would be right";
    let wrong = || format!("invalid rate `{text}`: {right}");
    let (rate, interval) = text.split_once('@').map_or((text, None), |(rate, every)| (rate, Some(every)));
    let per_second = rate.strip_suffix("/s").and_then(bytes).ok_or_else(wrong)?;
    let interval =
        interval.map_or(Some(DEFAULT_INTERVAL_US), |text| scaled(text, &INTERVALS)).ok_or_else(wrong)?;
    let interval_us = u32::try_from(interval).ok().filter(|&us| us > 0);
    let interval_us =
        interval_us.ok_or_else(|| format!("rate `{text}`: the interval must be from 1us to 4294s"))?;
    let credit = u128::from(per_second) * u128::from(interval) / 1_000_000;
    match u64::try_from(credit) {
        Ok(0) => Err(format!("rate `{text}` is not one byte in an interval: nothing could be sent; {right}")),
        Ok(bytes) => Ok(Rate { bytes, interval_us }),
        Err(_) => Err(wrong()),
    }
}

/// Bytes per second; `B` stands for bytes and `b` for bits.
fn bytes(text: &str) -> Option<u64> {
    match text.strip_suffix('b') {
        Some(bits) => scaled(bits, &UNITS).map(|bits| bits / 8),
        None => scaled(text.strip_suffix('B')?, &UNITS),
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, scale) = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse::<u64>().ok())??.checked_mul(*scale)
}

/// As it would be written.
#[cfg(test)]
pub fn print(rate: Rate) -> String {
    // The credit of the fewest bytes per second that give it.
    let per_second = (u128::from(rate.bytes) * 1_000_000).div_ceil(u128::from(rate.interval_us));
    format!("{per_second}B/s@{}us", rate.interval_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_credits_per_interval() {
        for (text, bytes, interval_us) in [
            ("10Mb/s", 62_500, 50_000),
            ("1MB/s@20ms", 20_000, 20_000),
            ("1GB/s", 50_000_000, 50_000),
            ("10Kb/s", 62, 50_000),
            ("250KB/s", 12_500, 50_000),
            ("8000b/s@1s", 1_000, 1_000_000),
            ("1000000B/s@5us", 5, 5),
            ("1000000B/s@5", 5, 5),
            ("18446744073709551615B/s@1us", 18_446_744_073_709, 1),
        ] {
            assert_eq!(parse(text), Ok(Rate { bytes, interval_us }), "{text}");
            assert_eq!(parse(&print(Rate { bytes, interval_us })), Ok(Rate { bytes, interval_us }), "{text}");
        }
        for text in [
            "",
            "10",
            "10Mb",
            "Mb/s",
            "10mb/s",
            "10 Mb/s",
            "-1B/s",
            "1MB/s@",
            "1MB/s@x",
            "1MB/s@0ms",
            "1MB/s@5000s",
            "1b/s",
            "18446744073709551615GB/s",
            "1MB/s@1h",
            "+1B/s",
        ] {
            assert!(parse(text).unwrap_err().contains(&format!("`{text}`")), "{text}");
        }
    }
}
