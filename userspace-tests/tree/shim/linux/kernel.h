/* SPDX-License-Identifier: GPL-2.0-only */
/* What every file of the kernel's has without asking for it. */
#ifndef _SHIM_LINUX_KERNEL_H
#define _SHIM_LINUX_KERNEL_H

#include "../shim.h"

#define __rcu

#ifndef __cplusplus
#undef static_assert
#define static_assert(expr) _Static_assert(expr, #expr)
#define BUILD_BUG_ON(cond) _Static_assert(!(cond), #cond)
#endif

#define container_of(ptr, type, member) \
	((type *)((char *)(ptr) - offsetof(type, member)))

#define might_sleep() shim_might_sleep(__FILE__, __LINE__)

#define data_race(x) (x)
#define READ_ONCE(x)							\
({									\
	__typeof__(x) __x = __atomic_load_n(&(x), __ATOMIC_RELAXED);	\
									\
	shim_lockless_read();						\
	__x;								\
})
#define WRITE_ONCE(x, val) __atomic_store_n(&(x), val, __ATOMIC_RELAXED)

/*
 * ThreadSanitizer knows no fences, so here the reads that come before one of the
 * kernel's read fences, rcu_dereference() and refcount_read(), are acquires.
 */
#define smp_rmb() do { } while (0)
#define smp_acquire__after_ctrl_dep() do { } while (0)
#define smp_load_acquire(p)						\
({									\
	__typeof__(*(p)) __x = __atomic_load_n(p, __ATOMIC_ACQUIRE);	\
									\
	shim_lockless_read();						\
	__x;								\
})
#define smp_store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)

/* Once or not: a warning fails the test. */
#define WARN_ON_ONCE(cond)						\
({									\
	bool __cond = (cond);						\
									\
	if (__cond)							\
		shim_complain(__FILE__, __LINE__, "WARN_ON: " #cond);	\
	__cond;								\
})

#endif
