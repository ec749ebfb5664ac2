/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_PERCPU_COUNTER_H
#define _SHIM_LINUX_PERCPU_COUNTER_H

#include <linux/atomic.h>
#include <linux/slab.h>

struct percpu_counter {
	s64 count;
	/* What the per-cpu part would be: a leak, when not destroyed. */
	void *cpus;
};

#ifdef __cplusplus
extern "C" {
#endif

int percpu_counter_init(struct percpu_counter *counter, s64 amount, int gfp);
void percpu_counter_destroy(struct percpu_counter *counter);

#ifdef __cplusplus
}
#endif

static inline void percpu_counter_inc(struct percpu_counter *counter)
{
	__atomic_fetch_add(&counter->count, 1, __ATOMIC_RELAXED);
}

static inline void percpu_counter_dec(struct percpu_counter *counter)
{
	__atomic_fetch_sub(&counter->count, 1, __ATOMIC_RELAXED);
}

static inline s64 percpu_counter_sum_positive(struct percpu_counter *counter)
{
	s64 count = __atomic_load_n(&counter->count, __ATOMIC_RELAXED);

	return count > 0 ? count : 0;
}

#endif
