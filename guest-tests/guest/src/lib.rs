//! The base of the microkernels: a Xen PVH guest of one test each, after the example of XTF.
//!
//! A microkernel is a file in `src/bin` with a function from nothing to a [`Verdict`]; [`test!`] makes it a kernel:
//!
//! ```ignore
//! #![cfg_attr(bare, no_std, no_main)]
//! #![forbid(unsafe_code)]
//! guest::test!(run);
//! fn run() -> guest::Verdict { Ok(()) }
//! ```
//!
//! It starts at the PVH entry point (`start`), prints on every console there is (`console`), and ends with one
//! verdict line, `SUCCESS`, `FAILURE: why` or `SKIP: why`, and `SCHEDOP_shutdown`: power-off, or crash for a failure.
//!
//! Build: `cargo build -p guest --release --target x86_64-unknown-none`, or let `cargo lab` do it, which knows what the few
//! for 32 bits take too.
//!
//! Unsafe code is in three files: `start` (entry, trap stubs), `cpu` (instructions, the hypercall among them) and
//! `page` (pages shared with the hypervisor).
#![no_std]

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod events;
pub mod fifo;
pub mod hypercall;
pub mod page;
pub mod smp;
mod start;
pub mod text;
pub mod traps;
pub mod verdict;
pub mod xen;

pub use verdict::{Stop, Verdict};

/// Makes a function from nothing to a [`Verdict`] the test of this microkernel, one from a vCPU's number what the vCPUs do
/// that [`smp::start_vcpu`] or [`smp::start_test`] starts, and one from a vector what is done in an interrupt.
#[macro_export]
macro_rules! test {
    ($run:path) => {
        $crate::test!($run, $crate::smp::idle);
    };
    ($run:path, $cpu:path) => {
        $crate::test!($run, $cpu, $crate::traps::nothing);
    };
    ($run:path, $cpu:path, $interrupt:path) => {
        #[cfg(bare)]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_test() -> $crate::Verdict {
            $run()
        }

        #[cfg(bare)]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_cpu(vcpu: u32) {
            $cpu(vcpu)
        }

        #[cfg(bare)]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_interrupt(vector: u8) {
            $interrupt(vector)
        }

        #[cfg(bare)]
        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::verdict::end(Err($crate::Stop::Failure($crate::text::Why::of(format_args!("{info}")))))
        }

        /// A microkernel is no program of the host.
        #[cfg(not(bare))]
        fn main() {
            let _ = ($run, $cpu, $interrupt);
            println!("a Xen guest: build it with --target x86_64-unknown-none and boot it");
        }
    };
}
