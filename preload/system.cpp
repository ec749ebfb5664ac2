// SPDX-License-Identifier: MIT
#include "system.hpp"

#ifndef __x86_64__
#error "the library is for x86-64: it knows its registers, and elsewhere kernels lack syscall user dispatch"
#endif

asm(R"(
	.pushsection .text.cowsnap_preload, "ax", @progbits
	.balign	64
	.globl	cowsnap_preload_calls, cowsnap_preload_calls_end
	.hidden	cowsnap_preload_calls, cowsnap_preload_calls_end
	.globl	cowsnap_preload_call, cowsnap_preload_sigreturn, cowsnap_preload_on_stack
	.hidden	cowsnap_preload_call, cowsnap_preload_sigreturn, cowsnap_preload_on_stack
	.type	cowsnap_preload_call, @function
	.type	cowsnap_preload_sigreturn, @function
	.type	cowsnap_preload_on_stack, @function
cowsnap_preload_calls:
cowsnap_preload_call:
	mov	%rdi, %rax
	mov	%rsi, %rdi
	mov	%rdx, %rsi
	mov	%rcx, %rdx
	mov	%r8, %r10
	mov	%r9, %r8
	mov	8(%rsp), %r9
	syscall
	ret
cowsnap_preload_sigreturn:
	mov	$15, %eax
	syscall
	ud2
cowsnap_preload_calls_end:
cowsnap_preload_on_stack:
	push	%rbp
	mov	%rsp, %rbp
	mov	%rcx, %rsp
	mov	%rdi, %rax
	mov	%rsi, %rdi
	mov	%rdx, %rsi
	call	*%rax
	mov	%rbp, %rsp
	pop	%rbp
	ret
	.popsection
)");
