/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_MUTEX_H
#define _SHIM_LINUX_MUTEX_H

#include <linux/kernel.h>
#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

struct mutex {
	pthread_mutex_t lock;
	const void *owner;
};

void mutex_init(struct mutex *mutex);
void mutex_destroy(struct mutex *mutex);
void mutex_lock(struct mutex *mutex);
void mutex_unlock(struct mutex *mutex);
bool lockdep_is_held(const struct mutex *mutex);

#ifdef __cplusplus
}
#endif

#define lockdep_assert_held(mutex) WARN_ON_ONCE(!lockdep_is_held(mutex))

#endif
