/* SPDX-License-Identifier: GPL-2.0-only */
/* For C alone: a member is called private. */
#ifndef _SHIM_LINUX_MM_H
#define _SHIM_LINUX_MM_H

#include <linux/refcount.h>

/* @content stands for the bytes of the page. */
struct page {
	unsigned long private;
	refcount_t refs;
	u64 content;
};

void put_page(struct page *page);

#endif
