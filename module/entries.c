// SPDX-License-Identifier: GPL-2.0-only
/*
 * Visiting page-table entries.  The core exports apply_to_page_range() for this, which
 * makes page tables where there are none, and costs as much as ten entries each time.
 */
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

#include "compat.h"
#include "entries.h"

/* Others may make tables meanwhile. */
static pmd_t *find_pmd(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(READ_ONCE(*pgd)))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(READ_ONCE(*p4d)))
		return NULL;
	pud = pud_offset(p4d, addr);
	return pud_none(READ_ONCE(*pud)) ? NULL : pmd_offset(pud, addr);
}

/*
 * Visits the entries of the table at @pmdp, if there is one; false to be called again.
 * The same as with pte_offset_map_lock(), which 6.5 made a function that it does not
 * export: RCU keeps a table that is taken away meanwhile, by 6.14 and later, until
 * it is seen under its lock that it was.
 */
static __always_inline bool visit_table(struct mm_struct *mm, pmd_t *pmdp,
					unsigned long addr, unsigned long end,
					cowsnap_entry_fn visit, void *data)
{
	pmd_t pmd = READ_ONCE(*pmdp);
	spinlock_t *lock;
	pte_t *ptep;
	bool same;

	/* Nothing, or a PMD that maps memory itself, which is none of ours. */
	if (pmd_bad(pmd))
		return true;
	lock = pte_lockptr(mm, &pmd);
	spin_lock(lock);
	same = pmd_same(pmd, READ_ONCE(*pmdp));
	if (likely(same)) {
		ptep = pte_offset_kernel(&pmd, addr);
		for (; addr < end; addr += PAGE_SIZE)
			visit(ptep++, addr, data);
	}
	spin_unlock(lock);
	return same;
}

/**
 * cowsnap_entries_visit_table() - visit entries of one page table
 * @mm: see cowsnap_entries_visit()
 * @pmdp: where the table for @addr is, if there is one
 * @addr: the first address
 * @end: behind the last one, for which it is the same table
 * @visit: called for each entry, present or not
 * @data: for @visit
 */
void cowsnap_entries_visit_table(struct mm_struct *mm, pmd_t *pmdp,
				 unsigned long addr, unsigned long end,
				 cowsnap_entry_fn visit, void *data)
{
	rcu_read_lock();
	while (!visit_table(mm, pmdp, addr, end, visit, data))
		;
	rcu_read_unlock();
}

/**
 * cowsnap_entries_visit() - visit entries
 * @mm: of a VMA which has @addr and @end, and which stays, because the mmap_lock,
 *	its own lock or that of the i_mmap tree is held
 * @addr: the first address
 * @end: behind the last one
 * @visit: called for each entry, present or not, where there is a page table
 * @data: for @visit
 *
 * Lets the scheduler in between page tables.
 */
void cowsnap_entries_visit(struct mm_struct *mm, unsigned long addr,
			   unsigned long end, cowsnap_entry_fn visit,
			   void *data)
{
	unsigned long next;

	for (; addr < end; addr = next) {
		pmd_t *pmdp = find_pmd(mm, addr);

		next = pmd_addr_end(addr, end);
		if (pmdp)
			cowsnap_entries_visit_table(mm, pmdp, addr, next, visit,
						    data);
		cond_resched();
	}
}
