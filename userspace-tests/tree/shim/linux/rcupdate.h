/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_RCUPDATE_H
#define _SHIM_LINUX_RCUPDATE_H

#include <linux/kernel.h>

#ifdef __cplusplus
extern "C" {
#endif

void rcu_read_lock(void);
void rcu_read_unlock(void);
bool rcu_read_lock_held(void);
void rcu_barrier(void);
void call_rcu(struct rcu_head *head, void (*func)(struct rcu_head *head));

#ifdef __cplusplus
}
#endif

#define rcu_dereference(p)						\
({									\
	__typeof__(p) __p = __atomic_load_n(&(p), __ATOMIC_ACQUIRE);	\
									\
	WARN_ON_ONCE(!rcu_read_lock_held());				\
	shim_dereferenced();						\
	shim_lockless_read();						\
	__p;								\
})
#define rcu_dereference_protected(p, cond)				\
({									\
	WARN_ON_ONCE(!(cond));						\
	(p);								\
})
#define rcu_access_pointer(p) __atomic_load_n(&(p), __ATOMIC_RELAXED)
#define rcu_assign_pointer(p, v) __atomic_store_n(&(p), v, __ATOMIC_RELEASE)
#define RCU_INIT_POINTER(p, v) __atomic_store_n(&(p), v, __ATOMIC_RELAXED)

#endif
