//! Links the microkernels as plain ELF executables at 1 MiB, as a PVH loader wants them.

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    // A build for the host (checks of the whole workspace) links nothing special.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-T{dir}/guest.ld");
    // The target defaults to position-independent executables; nobody relocates us.
    println!("cargo::rustc-link-arg-bins=--no-pie");
    println!("cargo::rustc-link-arg-bins=-znorelro");
}
