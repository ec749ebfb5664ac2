/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What stands in for the kernel under module/tree.c, and the handles that the
 * tests have on it.  The headers in linux/ have what tree.c uses and no more.
 */
#ifndef _COWSNAP_SHIM_H
#define _COWSNAP_SHIM_H

#include <linux/types.h>

struct cowsnap_granule;

#ifdef __cplusplus
extern "C" {
#endif

/* A rule of the kernel's is broken: fails the test that runs. */
void shim_complain(const char *file, int line, const char *what);
/* Complains in an RCU reader and in an RCU callback. */
void shim_might_sleep(const char *file, int line);

/* Allocations, of slab objects and percpu memory, that this thread got. */
u64 shim_allocations(void);
/* Of this thread's next allocations the nth fails, and only that; 0 for none. */
void shim_fail_allocation(unsigned int nth);
/* Did that failure come? */
bool shim_allocation_failed(void);
/* Slab objects and percpu memory that are not freed. */
u64 shim_live_objects(void);

/*
 * When eager, callbacks run as soon as no reader is in the way, in call_rcu()
 * itself if need be: what is used too long is found.  When not, they wait for
 * rcu_barrier() or shim_rcu_grace_period().
 */
void shim_rcu_eager(bool eager);
void shim_rcu_grace_period(void);

/* Every rcu_dereference() that this thread made: so many nodes it visited. */
void shim_dereferenced(void);
u64 shim_dereferences(void);

/*
 * rcu_dereference() and READ_ONCE() end here: each is a place to be overtaken
 * at.  At this thread's nth from now it calls @hook, once; 0 for none.
 */
void shim_lockless_read(void);
void shim_hook_lockless_read(unsigned int nth, void (*hook)(void *), void *arg);

/* granule.h is C, not C++; this is what the tests need of it. */
struct cowsnap_granule *shim_granule_new(u64 content);
u64 shim_granule_content(struct cowsnap_granule *granule);
void shim_granule_write(struct cowsnap_granule *granule, u64 content);
bool shim_granule_put(struct cowsnap_granule *granule);
bool shim_granule_shared(struct cowsnap_granule *granule);
/* Pages that are not freed. */
u64 shim_live_pages(void);

#ifdef __cplusplus
}
#endif

#endif /* _COWSNAP_SHIM_H */
