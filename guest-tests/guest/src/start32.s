    /* The entry and the traps of 32-bit microkernels, which stay as PVH starts them: protected mode, flat, no paging. */
    .section .note.Xen, "a", @note
    .p2align 2
    .long 4, 4, 18              /* name, value, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start32

    .section .text
    .code32
    .global _start32
_start32:                       /* EBX: start info */
    cli
    cld
    mov     esp, offset boot_stack_top
    call    load_segments
    push    0
    push    ebx
    call    {entry}
1:  hlt
    jmp     1b

load_segments:
    lgdt    [gdt_pointer]
    ljmp    8, offset segments_loaded
segments_loaded:
    mov     eax, 0x10
    mov     ss, eax
    mov     ds, eax
    mov     es, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    ret

    /* Another CPU begins here by VCPUOP_initialise: EDI its number, ESP its stack. */
    .global vcpu_begin
vcpu_begin:
    cld
    call    load_segments
    push    0
    push    edi
    call    {vcpu_entry}
3:  hlt
    jmp     3b

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

trap_common:                    /* vector, error, EIP, CS, EFLAGS */
    pushad
    cld
    push    0
    push    dword ptr [esp + 44] /* EIP */
    push    0
    push    dword ptr [esp + 48] /* error */
    push    0
    push    dword ptr [esp + 52] /* vector */
    call    {trap}
    add     esp, 24
    popad
    add     esp, 8
    iretd

    /* u32 guest_call32(how, nr, args): a hypercall. how: 0 VMCALL, 1 VMMCALL, else the address of a stub. */
    .global guest_call32
guest_call32:
    push    ebp
    push    ebx
    push    esi
    push    edi
    mov     eax, [esp + 28]
    mov     ebx, [eax]
    mov     ecx, [eax + 4]
    mov     edx, [eax + 8]
    mov     esi, [eax + 12]
    mov     edi, [eax + 16]
    mov     ebp, [eax + 20]
    mov     eax, [esp + 24]
    cmp     dword ptr [esp + 20], 1
    jb      4f
    je      5f
    call    dword ptr [esp + 20]
    jmp     6f
4:  vmcall
    jmp     6f
5:  vmmcall
6:  pop     edi
    pop     esi
    pop     ebx
    pop     ebp
    ret

    /* What compiled code takes for granted, and a system's library would have. */
    .global memcpy, memmove, memset, memcmp, bcmp
memmove:                        /* (to, from, count) */
    mov     eax, [esp + 4]
    sub     eax, [esp + 8]
    cmp     eax, [esp + 12]
    jae     memcpy              /* `to` does not begin inside `from` */
    push    edi
    push    esi
    mov     ecx, [esp + 20]
    mov     edi, [esp + 12]
    mov     esi, [esp + 16]
    lea     edi, [edi + ecx - 1]
    lea     esi, [esi + ecx - 1]
    std
    rep     movsb
    cld
    mov     eax, [esp + 12]
    pop     esi
    pop     edi
    ret
memcpy:                         /* (to, from, count) */
    push    edi
    push    esi
    mov     edi, [esp + 12]
    mov     esi, [esp + 16]
    mov     ecx, [esp + 20]
    mov     eax, edi
    rep     movsb
    pop     esi
    pop     edi
    ret
memset:                         /* (to, byte, count) */
    push    edi
    mov     edi, [esp + 8]
    mov     eax, [esp + 12]
    mov     ecx, [esp + 16]
    rep     stosb
    mov     eax, [esp + 8]
    pop     edi
    ret
memcmp:                         /* (one, other, count) */
bcmp:
    push    edi
    push    esi
    mov     esi, [esp + 12]
    mov     edi, [esp + 16]
    mov     ecx, [esp + 20]
    xor     eax, eax
    repe    cmpsb
    je      7f
    movzx   eax, byte ptr [esi - 1]
    movzx   ecx, byte ptr [edi - 1]
    sub     eax, ecx
7:  pop     esi
    pop     edi
    ret

    .section .data
    .p2align 2
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff  /* 08: code */
    .quad   0x00cf93000000ffff  /* 10: data */
gdt_end:
gdt_pointer:
    .word   gdt_end - gdt - 1
    .long   gdt

    .section .bss
    .p2align 12
    .skip 65536
boot_stack_top:
    .global vcpu_stacks
vcpu_stacks:
    .skip 8 * 16384
