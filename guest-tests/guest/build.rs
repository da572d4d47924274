//! Links the microkernels as plain ELF executables at 1 MiB, as a PVH loader wants them. `bare` is set where one is built, for
//! 64 bits (x86_64-unknown-none) or 32 (i586-unknown-linux-gnu, of which only its `core` is used); all else is a check of the
//! workspace on the host.

use std::env::var;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(bare)");
    println!("cargo::rerun-if-changed=guest.ld");
    let target = |key: &str| var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    if target("OS") != "none" && target("POINTER_WIDTH") != "32" {
        return;
    }
    println!("cargo::rustc-cfg=bare");
    let dir = var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-T{dir}/guest.ld");
    // The target defaults to position-independent executables; nobody relocates us.
    println!("cargo::rustc-link-arg-bins=--no-pie");
    println!("cargo::rustc-link-arg-bins=-znorelro");
}
