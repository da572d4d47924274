//! Instructions: the hypercall, CPUID, MSRs, ports, TSC, interrupt flag.
#![expect(unsafe_code, reason = "instructions that Rust has no words for")]

use core::arch::asm;

#[cfg(all(bare, target_pointer_width = "64"))]
unsafe extern "C" {
    fn guest_ring3(how: u64, nr: u64, args: *const [u64; 6], flags: u64) -> u64;
    static guest_ring0: u8;
}
#[cfg(target_pointer_width = "32")]
unsafe extern "C" {
    fn guest_call32(how: u32, nr: u32, args: *const [u32; 6]) -> u32;
}

/// `HYPERVISOR_*` by VMCALL (Intel) or VMMCALL (AMD), number and arguments in Xen's registers.
///
/// Addresses among `args` must be of memory that may hold any bytes; `hypercall` sees to that.
#[cfg(not(target_pointer_width = "32"))]
#[must_use]
pub fn vmcall(amd: bool, nr: u64, args: [u64; 6]) -> u64 {
    let [a, b, c, d, e, f] = args;
    let result;
    // SAFETY: Xen clobbers nothing but RAX and the memory it was given.
    unsafe {
        if amd {
            asm!("vmmcall", inlateout("rax") nr => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
                in("r8") e, in("r9") f);
        } else {
            asm!("vmcall", inlateout("rax") nr => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
                in("r8") e, in("r9") f);
        }
    }
    result
}

/// `HYPERVISOR_*` by VMCALL (Intel) or VMMCALL (AMD), number and arguments in Xen's registers of 32 bits.
#[cfg(target_pointer_width = "32")]
#[must_use]
pub fn vmcall(amd: bool, nr: u64, args: [u64; 6]) -> u64 {
    call32(amd.into(), nr, args)
}

/// The same through a stub of the hypercall page at `stub`.
#[cfg(target_pointer_width = "32")]
#[must_use]
pub fn call_stub(stub: u64, args: [u64; 6]) -> u64 {
    // The stub says which call it is.
    call32(stub, 0, args)
}

/// The answer is an `int`: its sign is that of 64 bits.
#[cfg(target_pointer_width = "32")]
#[expect(clippy::cast_possible_truncation, reason = "a caller of 32 bits has no more")]
fn call32(how: u64, nr: u64, args: [u64; 6]) -> u64 {
    let args = args.map(|arg| arg as u32);
    // SAFETY: as with 64 bits; the arguments lie on the stack.
    let result = unsafe { guest_call32(how as u32, nr as u32, &raw const args) };
    i64::from(result.cast_signed()).cast_unsigned()
}

/// A hypercall in ring 3, by VMCALL (0), VMMCALL (1) or the stub at an address, with this I/O privilege level.
#[cfg(not(target_pointer_width = "32"))]
#[must_use]
pub fn ring3_call(how: u64, nr: u64, args: [u64; 6], iopl: u64) -> u64 {
    #[cfg(bare)]
    {
        const EFER: u32 = 0xc000_0080;
        wrmsr(EFER, rdmsr(EFER) | 1);
        // SYSCALL's and SYSRET's segments, where SYSCALL leads, and the flags it clears: all.
        wrmsr(0xc000_0081, 0x0023 << 48 | 0x18 << 32);
        wrmsr(0xc000_0082, &raw const guest_ring0 as u64);
        wrmsr(0xc000_0084, 0x3f_7fd5);
        // SAFETY: ring 3 sees all of our memory, and interrupts are off in between; the arguments lie on the stack.
        unsafe { guest_ring3(how, nr, &raw const args, 2 | iopl << 12) }
    }
    #[cfg(not(bare))]
    {
        let [arg, ..] = args;
        how + nr + arg + iopl
    }
}

/// The same through a stub of the hypercall page at `stub`.
#[cfg(not(target_pointer_width = "32"))]
#[must_use]
pub fn call_stub(stub: u64, args: [u64; 6]) -> u64 {
    let [a, b, c, d, e, f] = args;
    let result;
    // SAFETY: the stub is the hypervisor's code; it clobbers RAX, and RCX and R11 if it is a SYSCALL.
    unsafe {
        asm!("call rax", inlateout("rax") stub => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// EAX, EBX, ECX, EDX of a CPUID leaf.
#[cfg(target_pointer_width = "32")]
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: CPUID only writes its registers.
    unsafe {
        asm!("cpuid", inlateout("eax") leaf => a, out("ebx") b, inlateout("ecx") subleaf => c, lateout("edx") d,
            options(nomem, nostack));
    }
    [a, b, c, d]
}

/// EAX, EBX, ECX, EDX of a CPUID leaf.
#[cfg(not(target_pointer_width = "32"))]
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: CPUID only writes its registers; RBX belongs to the compiler and is put back.
    unsafe {
        asm!("mov {tmp:r}, rbx", "cpuid", "xchg {tmp:r}, rbx", tmp = out(reg) b, inlateout("eax") leaf => a,
            inlateout("ecx") subleaf => c, lateout("edx") d, options(nomem, nostack));
    }
    [a, b, c, d]
}

/// Reads an MSR; an unknown one faults, which fails the test.
#[must_use]
pub fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: reading an MSR touches no memory.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes an MSR; an unknown one faults, which fails the test.
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the MSRs written here are the APIC's and the hypercall page's; the page is given to the hypervisor.
    #[expect(clippy::cast_possible_truncation, reason = "low and high half")]
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Writes a byte to a port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the ports written here are debug consoles.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// The time-stamp counter, after all loads before it.
#[must_use]
pub fn rdtsc() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: only reads a counter; not `nomem`, so that it keeps its place among loads.
    unsafe { asm!("lfence", "rdtsc", out("eax") lo, out("edx") hi, options(nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Loads the interrupt table at `base`.
pub fn lidt(base: u64, limit: u16) {
    let pointer: [u16; 5] = {
        let [a, b, c, d, ..] = halves(base);
        [limit, a, b, c, d]
    };
    // SAFETY: `traps` keeps a full table at `base` for ever.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack)) };
}

#[expect(clippy::cast_possible_truncation, reason = "the pieces of the word")]
const fn halves(v: u64) -> [u16; 4] {
    [v as u16, (v >> 16) as u16, (v >> 32) as u16, (v >> 48) as u16]
}

/// Lets interrupts in.
pub fn sti() {
    // SAFETY: handlers only touch atomics.
    unsafe { asm!("sti", options(nostack)) };
}

/// Keeps interrupts out.
pub fn cli() {
    // SAFETY: harmless at any time.
    unsafe { asm!("cli", options(nostack)) };
}

/// Waits for an interrupt with none lost in between, then keeps them out again.
pub fn wait_interrupt() {
    // SAFETY: STI takes effect after HLT has begun.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Stops this CPU for ever.
pub fn stop() -> ! {
    loop {
        // SAFETY: there is nothing left to do.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// The address that caused a page fault.
#[must_use]
pub fn cr2() -> u64 {
    let value: usize;
    // SAFETY: only reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack)) };
    value as u64
}

/// Tells the CPU that this is a busy loop.
pub fn pause() {
    core::hint::spin_loop();
}
