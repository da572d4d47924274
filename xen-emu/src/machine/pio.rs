//! The ports that are not the power block's: mostly absent PC devices that kernels look for.
//!
//! What is absent reads all ones, with one exception: channel 2 of the timer reads 0, or Linux waits 100,000 reads for
//! it to move. Ports in the table are known to be probed; all others are counted by the caller.

use super::Action;
use std::ops::RangeInclusive;

/// Writes with bit 2 set reset the machine (the FADT's reset register).
pub const RESET_CONTROL: u16 = 0xcf9;
/// Debug console: bytes written appear on the host, and reading tells that it is there (Xen's port 0xe9).
pub const DEBUG_CONSOLE: u16 = 0xe9;

const KEYBOARD_COMMAND: u16 = 0x64;
/// The keyboard controller's command to pulse the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;
const RESET_CPU: u8 = 1 << 2;
const ABSENT: u8 = 0xff;

/// Known ports and what a byte read there gives.
const PORTS: &[(RangeInclusive<u16>, u8)] = &[
    (0x20..=0x21, ABSENT),                         // first interrupt controller
    (0x40..=0x41, ABSENT),                         // timer channels 0 and 1
    (0x42..=0x42, 0),                              // timer channel 2
    (0x43..=0x43, ABSENT),                         // timer mode
    (0x60..=0x60, ABSENT),                         // keyboard data
    (0x61..=0x61, 0x20), // timer gate and speaker: channel 2 has run out, no NMI reason
    (KEYBOARD_COMMAND..=KEYBOARD_COMMAND, ABSENT), // keyboard command
    (0x70..=0x71, ABSENT), // CMOS clock
    (0x80..=0x80, ABSENT), // delay port
    (0xa0..=0xa1, ABSENT), // second interrupt controller
    (DEBUG_CONSOLE..=DEBUG_CONSOLE, 0xe9), // debug console
    (0xed..=0xed, ABSENT), // delay port
    (0x2e8..=0x2ef, ABSENT), // COM4
    (0x2f8..=0x2ff, ABSENT), // COM2
    (0x3e8..=0x3ef, ABSENT), // COM3
    (0x3f8..=0x3ff, ABSENT), // COM1
    (0x4d0..=0x4d1, ABSENT), // edge or level control
    (0xcf8..=0xcff, ABSENT), // PCI configuration, reset control
];

/// Ports whose writes say nothing to anyone and come often: the address of PCI's configuration space, where
/// nothing is to be addressed, the delay port, and the mode of an absent timer. The kernel may swallow them.
pub const IGNORED_WRITES: &[u16] = &[0x43, 0x80, 0xcf8];

/// What a byte read at a known port gives.
fn known(port: u16) -> Option<u8> {
    PORTS.iter().find(|row| row.0.contains(&port)).map(|row| row.1)
}

/// A port read; each byte comes from its own port. Whether the port is a known one.
pub fn read(port: u16, data: &mut [u8]) -> bool {
    for (at, byte) in (port..=u16::MAX).zip(data.iter_mut()) {
        *byte = known(at).unwrap_or(ABSENT);
    }
    known(port).is_some()
}

/// What a port write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// Nothing, at a port where guests may look for something.
    Nothing,
    /// Nothing, at some other port.
    Unknown,
    /// This.
    Act(Action),
}

/// A port write.
pub fn write(port: u16, data: &[u8]) -> Wrote {
    match (port, data) {
        (DEBUG_CONSOLE, _) => Wrote::Act(Action::Debug(data.to_vec())),
        (KEYBOARD_COMMAND, [PULSE_RESET]) => Wrote::Act(Action::Reset),
        // Only as a byte: wider writes here are PCI configuration addresses.
        (RESET_CONTROL, [value]) if value & RESET_CPU != 0 => Wrote::Act(Action::Reset),
        _ if known(port).is_some() => Wrote::Nothing,
        _ => Wrote::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads() {
        let cases: [(u16, &[u8], bool); 9] = [
            (0x42, &[0], true),
            (0x40, &[0xff, 0xff, 0, 0xff], true),
            (0x61, &[0x20], true),
            (0x71, &[0xff], true),
            (0xe9, &[0xe9], true),
            (0xcfc, &[0xff; 4], true),
            (0x4d0, &[0xff; 2], true),
            (0x1234, &[0xff; 2], false),
            (0xffff, &[0xff, 0x55, 0x55, 0x55], false),
        ];
        for (port, expected, known) in cases {
            let mut data = [0x55; 4];
            assert_eq!(read(port, &mut data[..expected.len()]), known, "{port:#x}");
            assert_eq!(data[..expected.len()], *expected, "{port:#x}");
        }
    }

    #[test]
    fn writes() {
        let cases: [(u16, &[u8], Wrote); 9] = [
            (0xe9, b"hello", Wrote::Act(Action::Debug(b"hello".to_vec()))),
            (0x64, &[0xfe], Wrote::Act(Action::Reset)),
            (0x64, &[0xd1], Wrote::Nothing),
            (0xcf9, &[0x06], Wrote::Act(Action::Reset)),
            (0xcf9, &[0x02], Wrote::Nothing),
            (0xcf9, &[0x06, 0x06], Wrote::Nothing),
            (0xcf8, &[0, 0x06, 0, 0x80], Wrote::Nothing),
            (0x43, &[0xb0], Wrote::Nothing),
            (0x510, &[1, 2], Wrote::Unknown),
        ];
        for (port, data, expected) in cases {
            assert_eq!(write(port, data), expected, "{port:#x}");
        }
    }
}
