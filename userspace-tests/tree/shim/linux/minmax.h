/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_MINMAX_H
#define _SHIM_LINUX_MINMAX_H

/* As strict as the kernel's: both sides have one type. */
#define __shim_pick(a, op, b)						\
({									\
	__typeof__(a) __a = (a);					\
	__typeof__(b) __b = (b);					\
									\
	(void)(&__a == &__b);						\
	__a op __b ? __a : __b;						\
})
#define min(a, b) __shim_pick(a, <, b)
#define max(a, b) __shim_pick(a, >, b)

#endif
