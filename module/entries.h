/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The page-table entries of an address space that there are already.
 */
#ifndef _COWSNAP_ENTRIES_H
#define _COWSNAP_ENTRIES_H

#include <linux/mm.h>

/* Called with the page table locked. */
typedef void (*cowsnap_entry_fn)(pte_t *ptep, unsigned long addr, void *data);

void cowsnap_entries_visit_table(struct mm_struct *mm, pmd_t *pmdp,
				 unsigned long addr, unsigned long end,
				 cowsnap_entry_fn visit, void *data);
void cowsnap_entries_visit(struct mm_struct *mm, unsigned long addr,
			   unsigned long end, cowsnap_entry_fn visit,
			   void *data);

#endif /* _COWSNAP_ENTRIES_H */
