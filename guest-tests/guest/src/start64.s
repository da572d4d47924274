    /* The entry and the traps of 64-bit microkernels. The target is soft-float, so SSE needs no setting up. Page tables map the
       first 4 GiB one to one in 2 MiB pages. */
    .section .note.Xen, "a", @note
    .p2align 2
    .long 4, 8, 18              /* name, value, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _start32

    .section .text
    .code32
    .global _start32
_start32:                       /* EBX: start info; flat segments, no paging */
    cli
    cld
    mov     esp, offset boot_stack_top

    mov     edi, offset pml4
    lea     eax, [pdpt + 7]
    mov     [edi], eax
    mov     edi, offset pdpt
    lea     eax, [pd + 7]
    mov     ecx, 4
1:  mov     [edi], eax
    add     eax, 4096
    add     edi, 8
    loop    1b

    mov     edi, offset pd
    mov     eax, 0x87           /* present, writable, user, 2 MiB */
    mov     ecx, 2048
2:  mov     [edi], eax
    add     eax, 0x200000
    add     edi, 8
    loop    2b
    mov     edi, ebx
    mov     ebp, offset {entry}

enter64:                        /* EDI: argument; EBP: where to; ESP: stack */
    mov     eax, cr4
    or      eax, 0x20           /* PAE */
    mov     cr4, eax
    mov     eax, offset pml4
    mov     cr3, eax
    mov     ecx, 0xc0000080     /* EFER.LME */
    rdmsr
    or      eax, 0x100
    wrmsr
    mov     eax, cr0
    or      eax, 0x80010001     /* PG, WP, PE */
    mov     cr0, eax
    lgdt    [gdt_pointer]
    ljmp    0x18, offset in64

    .code64
in64:
    mov     eax, 0x10
    mov     ss, eax
    mov     ds, eax
    mov     es, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    mov     edi, edi
    mov     eax, ebp
    xor     ebp, ebp
    call    rax
3:  hlt
    jmp     3b

    /* Another CPU begins here after a copy to a page below 1 MiB, in real mode. */
    .code16
    .global ap_begin
ap_begin:
    cli
    .byte   0x2e, 0x66, 0x0f, 0x01, 0x16 /* lgdt cs:[disp16], which the assembler cannot say */
    .word   ap_gdt_pointer - ap_begin
    mov     eax, cr0
    or      eax, 1
    mov     cr0, eax
    .byte   0x66, 0xea          /* far jump, 32-bit offset */
    .long   ap_32
    .word   8
    .p2align 2
ap_gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt
    .global ap_end
ap_end:

    .code32
ap_32:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     esp, offset ap_stack_top
    xor     edi, edi
    mov     ebp, offset {ap_entry}
    jmp     enter64

    /* Another CPU begins here in 64 bits by VCPUOP_initialise: RDI its number, RSP its stack. */
    .code64
    .global vcpu_begin
vcpu_begin:
    lgdt    [gdt_pointer]
    mov     eax, 0x10
    mov     ss, eax
    mov     ds, eax
    mov     es, eax
    push    0x18
    lea     rax, [rip + 4f]
    push    rax
    retfq
4:  xor     ebp, ebp
    call    {vcpu_entry}
5:  hlt
    jmp     5b

    .code64
    .p2align 4
    .global trap_stubs
trap_stubs:                     /* 256 stubs of 16 bytes: error code, vector */
    .set    vector, 0
    .rept   256
    .p2align 4
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push    0
    .endif
    .byte   0x68                /* push imm32 */
    .long   vector
    jmp     trap_common
    .set    vector, vector + 1
    .endr

trap_common:                    /* vector, error, RIP, CS, RFLAGS, RSP, SS */
    push    rax
    push    rcx
    push    rdx
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    cld
    mov     rdi, [rsp + 72]
    mov     rsi, [rsp + 80]
    mov     rdx, [rsp + 88]
    call    {trap}
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rdx
    pop     rcx
    pop     rax
    add     rsp, 16
    iretq

    /* u64 guest_ring3(how, nr, args, flags): a hypercall made in ring 3 with these flags. how: 0 VMCALL, 1 VMMCALL, else
       the address of a stub. */
    .global guest_ring3
guest_ring3:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    mov     r12, rdi
    mov     r13, rsi
    mov     r14, rdx
    mov     r11, rcx
    mov     r15, rsp
    lea     rcx, [rip + 6f]
    sysretq
6:  mov     rdi, [r14]
    mov     rsi, [r14 + 8]
    mov     rdx, [r14 + 16]
    mov     r10, [r14 + 24]
    mov     r8, [r14 + 32]
    mov     r9, [r14 + 40]
    mov     rax, r13
    cmp     r12, 1
    jb      7f
    je      8f
    call    r12
    jmp     9f
7:  vmcall
    jmp     9f
8:  vmmcall
9:  syscall
    .global guest_ring0
guest_ring0:                    /* LSTAR */
    mov     rsp, r15
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    .section .data
    .p2align 4
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff  /* 08: code, 32 bits */
    .quad   0x00cf93000000ffff  /* 10: data */
    .quad   0x00af9b000000ffff  /* 18: code, 64 bits */
    .quad   0x00cf93000000ffff  /* 20: data, where SYSCALL looks for it */
    .quad   0x00cff3000000ffff  /* 28: data of ring 3, where SYSRET looks for it */
    .quad   0x00affb000000ffff  /* 30: code of ring 3, 64 bits */
gdt_end:
gdt_pointer:
    .word   gdt_end - gdt - 1
    .quad   gdt

    .section .bss
    .p2align 12
    .global pml4
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4 * 4096
    .skip 65536
boot_stack_top:
    .skip 65536
ap_stack_top:
    .global vcpu_stacks
vcpu_stacks:
    .skip 8 * 16384
