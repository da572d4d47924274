//! The hypercall page: what a guest calls that has written its address to the MSR.

use xen_abi::hypercall::{STUB_SIZE, STUBS};
use xen_abi::xen::PAGE_SIZE;

/// HYPERVISOR_iret is PV's alone: its stub faults, as Xen's does.
const IRET: u8 = 23;
const INT3: u8 = 0xcc;

/// Stubs of mov $nr,%eax; `call`; ret, the same in 32 and 64 bits.
pub fn stubs(call: &[u8]) -> Vec<u8> {
    let mut page = vec![INT3; PAGE_SIZE];
    for (nr, stub) in (0u8..).zip(page.chunks_exact_mut(STUB_SIZE)).take(STUBS) {
        let code = match nr {
            IRET => vec![0x0f, 0x0b],
            nr => [&[0xb8, nr, 0, 0, 0], call, &[0xc3]].concat(),
        };
        for (to, from) in stub.iter_mut().zip(code) {
            *to = from;
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_call_with_their_number_and_return() {
        let page = stubs(&[0xe6, 0xe4]);
        assert_eq!(page.len(), PAGE_SIZE);
        assert_eq!(page[12 * 32..12 * 32 + 9], [0xb8, 12, 0, 0, 0, 0xe6, 0xe4, 0xc3, 0xcc]);
        assert_eq!(page[23 * 32..23 * 32 + 3], [0x0f, 0x0b, 0xcc], "iret is no hypercall here");
        assert_eq!(page[127 * 32..127 * 32 + 2], [0xb8, 127]);
    }
}
