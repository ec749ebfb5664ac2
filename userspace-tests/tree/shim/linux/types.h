/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_TYPES_H
#define _SHIM_LINUX_TYPES_H

/* The C library includes this name too, for __u64 and so on. */
#include_next <linux/types.h>

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

typedef unsigned char u8;
typedef long long s64;
typedef unsigned long long u64;

struct rcu_head {
	struct rcu_head *next;
	void (*func)(struct rcu_head *head);
};

#endif
