/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_SLAB_H
#define _SHIM_LINUX_SLAB_H

#include <linux/kernel.h>

#define GFP_KERNEL 0
#define SLAB_ACCOUNT 0

/* Of a struct that ends in a flexible array. */
#define struct_size(p, member, n) \
	(sizeof(*(p)) + sizeof((p)->member[0]) * (n))

struct kmem_cache;

#ifdef __cplusplus
extern "C" {
#endif

struct kmem_cache *kmem_cache_create(const char *name, unsigned int size,
				     unsigned int align, unsigned int flags,
				     void (*ctor)(void *object));
void kmem_cache_destroy(struct kmem_cache *cache);
#define kmem_cache_zalloc(cache, gfp) \
	(shim_might_sleep(__FILE__, __LINE__), shim_slab_zalloc(cache))
void *shim_slab_zalloc(struct kmem_cache *cache);
void kmem_cache_free(struct kmem_cache *cache, void *object);

#ifdef __cplusplus
}
#endif

#endif
