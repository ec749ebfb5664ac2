/* SPDX-License-Identifier: GPL-2.0-only */
/* For C alone: a member is called private. */
#ifndef _SHIM_LINUX_MM_H
#define _SHIM_LINUX_MM_H

/* @content stands for the bytes of the page. */
struct page {
	unsigned long private;
	u64 content;
};

#endif
