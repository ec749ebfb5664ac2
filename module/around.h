/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The pages that are mapped together with one that is read.
 */
#ifndef _COWSNAP_AROUND_H
#define _COWSNAP_AROUND_H

#include <linux/types.h>

struct cowsnap_region;
struct page;
struct vm_fault;

/* Pages that a read maps at once, aligned, as the core does for files; */
#define COWSNAP_READ_WINDOW	16U
/* and the most, where what was read last was mapped right before. */
#define COWSNAP_AROUND_MAX	64U

/**
 * struct cowsnap_around - a page and those around it
 * @first: the region's page that the first of them is
 * @addr: where that is mapped
 * @nr: how many there are
 * @page: the pages, NULL for what is not to be mapped
 */
struct cowsnap_around {
	u64 first;
	unsigned long addr;
	unsigned int nr;
	struct page *page[COWSNAP_AROUND_MAX];
};

void cowsnap_look_around(struct cowsnap_around *around,
			 struct cowsnap_region *region, struct vm_fault *vmf,
			 u64 end, bool writable);

#endif /* _COWSNAP_AROUND_H */
