//! Names of virtual disks and Xen's numbers for them, by xen-vbd-interface(7).

/// A disk as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdev {
    /// Canonical: `xvda`, `xvda1`, `hdc`; the decimal number where it has no name.
    pub name: String,
    /// Xen's number of it, 51712 for `xvda`.
    pub devid: u32,
}

/// A kind of disk: its numbers are `base | disk << shift | partition`, disks counted from `first`.
struct Family {
    prefix: &'static str,
    base: u32,
    shift: u32,
    first: u32,
    disks: u32,
    partitions: u32,
}

/// In the order of preference: the last one has room for what the first one has not.
const FAMILIES: [Family; 5] = [
    Family { prefix: "xvd", base: 202 << 8, shift: 4, first: 0, disks: 16, partitions: 16 },
    Family { prefix: "sd", base: 8 << 8, shift: 4, first: 0, disks: 16, partitions: 16 },
    Family { prefix: "hd", base: 3 << 8, shift: 6, first: 0, disks: 2, partitions: 64 },
    Family { prefix: "hd", base: 22 << 8, shift: 6, first: 2, disks: 2, partitions: 64 },
    Family { prefix: "xvd", base: 1 << 28, shift: 8, first: 0, disks: 1 << 20, partitions: 256 },
];

/// From here on numbers are reserved.
const RESERVED: u32 = 2 << 28;

const EXAMPLES: &str = "xvda, xvda1, hdc, sda, d0p1 or a number such as 51712 are vdevs";

impl Family {
    fn number(&self, disk: u32, partition: u32) -> Option<u32> {
        let disk = disk.checked_sub(self.first)?;
        (disk < self.disks && partition < self.partitions)
            .then_some(self.base | disk << self.shift | partition)
    }

    fn name(&self, devid: u32) -> Option<String> {
        let rest = devid.checked_sub(self.base)?;
        let (disk, partition) = (rest >> self.shift, rest & ((1 << self.shift) - 1));
        (disk < self.disks).then(|| name(self.prefix, self.first + disk, partition))
    }
}

impl Vdev {
    /// Read a name, or a number as strtoul with base 0 does.
    ///
    /// # Errors
    /// One line: what is wrong with it and what would be right.
    pub fn parse(text: &str) -> Result<Vdev, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return numbered(text);
        }
        let (prefix, disk, partition) =
            split(text).ok_or_else(|| format!("invalid vdev `{text}`: {EXAMPLES}"))?;
        let number =
            |family: &Family| Some(family.number(disk, partition)?).filter(|_| family.prefix == prefix);
        let devid = FAMILIES.iter().find_map(number).ok_or_else(|| {
            let limit = match prefix {
                "hd" => "hda to hdd with partitions up to 63",
                "sd" => "sda to sdp with partitions up to 15",
                _ => "disks up to 1048575 with partitions up to 255",
            };
            format!("vdev `{text}` has no number in Xen's scheme: it has {limit}; xvd disks go further")
        })?;
        Ok(Vdev { name: name(prefix, disk, partition), devid })
    }

    /// By its number.
    pub fn numbered(devid: u32) -> Vdev {
        let name = FAMILIES.iter().find_map(|family| family.name(devid));
        Vdev { name: name.unwrap_or_else(|| devid.to_string()), devid }
    }
}

fn numbered(text: &str) -> Result<Vdev, String> {
    let lower = text.to_ascii_lowercase();
    let number = match lower.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None if lower.len() > 1 && lower.starts_with('0') => u32::from_str_radix(&lower, 8),
        None => lower.parse(),
    };
    match number {
        Ok(devid) if devid < RESERVED => Ok(Vdev::numbered(devid)),
        Ok(_) => Err(format!("invalid vdev `{text}`: numbers from {RESERVED} on are reserved")),
        Err(_) => Err(format!("invalid vdev `{text}`: {EXAMPLES}")),
    }
}

/// Prefix, disk and partition. `dNpM` counts xvd disks.
fn split(text: &str) -> Option<(&'static str, u32, u32)> {
    if let Some(digits) = text.strip_prefix('d').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    {
        let (disk, partition) = digits.split_once('p').unwrap_or((digits, "0"));
        return Some(("xvd", decimal(disk)?, decimal(partition)?));
    }
    let (prefix, rest) =
        ["xvd", "sd", "hd"].into_iter().find_map(|prefix| Some((prefix, text.strip_prefix(prefix)?)))?;
    let digits = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = rest.strip_suffix(digits).unwrap_or(rest);
    Some((prefix, ordinal(letters)?, if digits.is_empty() { 0 } else { decimal(digits)? }))
}

fn decimal(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `a` is 0, `z` 25, `aa` 26.
fn ordinal(letters: &str) -> Option<u32> {
    let add = |sum: u32, b: u8| sum.checked_mul(26)?.checked_add(u32::from(b.checked_sub(b'a')?) + 1);
    letters.bytes().try_fold(0, add)?.checked_sub(1)
}

fn name(prefix: &str, disk: u32, partition: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = Some(disk);
    while let Some(number) = rest {
        letters.push(char::from_u32(u32::from(b'a') + number % 26).unwrap_or('?'));
        rest = (number / 26).checked_sub(1);
    }
    let letters: String = letters.iter().rev().collect();
    if partition == 0 { format!("{prefix}{letters}") } else { format!("{prefix}{letters}{partition}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_xen_s_numbers() {
        for (text, name, devid) in [
            ("xvda", "xvda", 51712),
            ("xvda1", "xvda1", 51713),
            ("xvdb", "xvdb", 51728),
            ("xvdp15", "xvdp15", 51967),
            ("xvdq", "xvdq", (1 << 28) | (16 << 8)),
            ("xvda16", "xvda16", (1 << 28) | 16),
            ("xvdaa", "xvdaa", (1 << 28) | (26 << 8)),
            ("d0", "xvda", 51712),
            ("d0p0", "xvda", 51712),
            ("d1p2", "xvdb2", 51730),
            ("d536p37", "xvdtq37", (1 << 28) | (536 << 8) | 37),
            ("d1048575p255", "xvdbgqcv255", (1 << 28) | (1_048_575 << 8) | 255),
            ("hda", "hda", 768),
            ("hdb", "hdb", 832),
            ("hdc", "hdc", 5632),
            ("hdc2", "hdc2", 5634),
            ("hdd63", "hdd63", 5759),
            ("sda", "sda", 2048),
            ("sdb3", "sdb3", 2067),
            ("51712", "xvda", 51712),
            ("0xca00", "xvda", 51712),
            ("0145002", "xvda2", 51714),
            ("268439552", "xvdq", 268_439_552),
            ("8", "8", 8),
        ] {
            assert_eq!(Vdev::parse(text), Ok(Vdev { name: name.into(), devid }), "{text}");
        }
    }

    #[test]
    fn other_words_are_refused() {
        for text in [
            "",
            "xvd",
            "xvdA",
            "xvda-1",
            "xvda1b",
            "xvda+1",
            "hde",
            "hda64",
            "sdq",
            "sda16",
            "d",
            "dp1",
            "d1p",
            "d1p-1",
            "d1048576",
            "xvda256",
            "xvdzzzzzzzzzz",
            "xvda99999999999",
            "vda",
            "/dev/xvda",
            "0x",
            "08",
            "12q",
            "536870912",
            "4294967296",
        ] {
            let error = Vdev::parse(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")) && !error.contains('\n'), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_name_and_its_number_mean_the_same(text in "(xvd|sd|hd)[a-z]{1,4}[0-9]{0,3}|d[0-9]{1,7}(p[0-9]{1,3})?|[0-9x]{1,9}|.*") {
            if let Ok(vdev) = Vdev::parse(&text) {
                prop_assert_eq!(Vdev::numbered(vdev.devid), vdev.clone());
                prop_assert_eq!(Vdev::parse(&vdev.name), Ok(vdev));
            }
        }
    }
}
