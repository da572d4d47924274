//! The smallest guest: it was started by the book, and every console works.
#![cfg_attr(bare, no_std, no_main)]
#![forbid(unsafe_code)]

use guest::{Verdict, boot, check, check_eq, console, hypercall, println, skip, xen};
use xen_abi::hvm::start_info::{MemmapType, XEN_HVM_START_MAGIC_VALUE};

guest::test!(run);

fn run() -> Verdict {
    let info = boot::start_info();
    println!("hello from a PVH guest, start info {:#x} version {}", boot::start_info_addr(), info.version);
    check_eq!(info.magic, XEN_HVM_START_MAGIC_VALUE, "magic of the start info");
    check!(info.version >= 1 && info.memmap_entries > 0, "the start info has no memory map");
    println!(
        "memory map of {} at {:#x}, RSDP at {:#x}",
        info.memmap_entries, info.memmap_paddr, info.rsdp_paddr
    );
    for e in boot::memmap() {
        println!("memory {:#012x} + {:#011x} {:?}", e.addr, e.size, e.r#type);
    }
    check!(boot::memmap().any(|e| e.r#type == MemmapType::RAM), "no RAM in the memory map");
    console::debug_port(b"hello by port 0xe9\n");
    let Some(base) = xen::base() else { skip!("no Xen signature in CPUID") };
    println!("Xen at CPUID {base:#x}, hypercalls by {:?}", hypercall::transport());
    check_eq!(hypercall::console_write(b"hello by CONSOLEIO_write\n"), Ok(()), "CONSOLEIO_write");
    println!("PV console: {}", if console::ring().is_some() { "yes" } else { "no" });
    Ok(())
}
