// SPDX-License-Identifier: GPL-2.0-only
/*
 * Write-protecting what is mapped, where it is.
 *
 * To zap an entry costs four times as much as to take the right to write from it, and
 * whoever reads next faults.  But the core has no function for it that is exported
 * in all flavours of all kernels, cleans the entries as well (mprotect(2) makes a dirty
 * one writable again without asking) and tells the TLBs once.  So the entries are
 * visited here, and the TLBs are told by the zap of one of them: the
 * core flushes all of an address space when it sees, by tlb_flush_pending, that somebody
 * else changes entries there and has not flushed yet.
 */
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/mmu_notifier.h>
#include <linux/rbtree.h>

#include "compat.h"
#include "cowsnap.h"
#include "entries.h"

/**
 * struct protection - write-protecting in one VMA
 * @vma: linked in the i_mmap tree, whose lock is held
 * @changed: entries may be in a TLB as they were,
 * @addr: and this is where one of them is
 */
struct protection {
	struct vm_area_struct *vma;
	bool changed;
	unsigned long addr;
};

static void protect_pte(pte_t *ptep, unsigned long addr, void *data)
{
	struct protection *protection = data;
	struct mm_struct *mm = protection->vma->vm_mm;
	pte_t pte = ptep_get(ptep);

	/* What is writable is dirty, too; and may be dirty still when it is not. */
	if (!pte_present(pte) || !(pte_write(pte) || pte_dirty(pte)))
		return;
	/* At once, because a CPU may be about to mark it. */
	pte = ptep_get_and_clear(mm, addr, ptep);
	pte = pte_mkclean(pte_wrprotect(pte));
	cowsnap_put_pte_back(mm, addr, ptep, pte);
	protection->changed = true;
	protection->addr = addr;
}

/* Protects the pages [@first, @end) where the VMA has them. */
static void protect_pages(struct protection *protection, u64 first, u64 end)
{
	struct vm_area_struct *vma = protection->vma;
	unsigned long addr;

	first = max_t(u64, first, vma->vm_pgoff);
	end = min_t(u64, end, (u64)vma->vm_pgoff + vma_pages(vma));
	if (first >= end)
		return;
	addr = vma->vm_start + ((first - vma->vm_pgoff) << PAGE_SHIFT);
	cowsnap_entries_visit(vma->vm_mm, addr,
			      addr + ((end - first) << PAGE_SHIFT), protect_pte,
			      protection);
}

/* Returns false when somebody has to be notified, which only a zap does. */
static bool protect_in(struct vm_area_struct *vma, unsigned int shift,
		       const struct cowsnap_runs *runs)
{
	struct protection protection = { .vma = vma };
	struct mm_struct *mm = vma->vm_mm;
	unsigned int i;

	inc_tlb_flush_pending(mm);
	for (i = 0; i < runs->nr; i++)
		protect_pages(&protection, runs->run[i].first << shift,
			      (runs->run[i].first + runs->run[i].nr) << shift);
	cowsnap_delay(COWSNAP_DELAY_entries_protected);
	if (protection.changed)
		cowsnap_zap_vma(vma, protection.addr, PAGE_SIZE);
	dec_tlb_flush_pending(mm);
	/* Who registers has to wait for the lock of the i_mmap tree. */
	return !protection.changed || !mm_has_notifiers(mm);
}

/**
 * cowsnap_region_wrprotect() - let nobody write to granules without a fault
 * @region: stopped
 * @runs: the granules
 *
 * When it returns no CPU can write to them through a mapping of this region, and
 * their entries are clean; or there are none any more.
 */
void cowsnap_region_wrprotect(struct cowsnap_region *region,
			      const struct cowsnap_runs *runs)
{
	struct address_space *mapping = region->inode->i_mapping;
	unsigned int shift = cowsnap_granule_shift(region) - PAGE_SHIFT;
	bool protected = true;
	struct rb_node *node;
	unsigned int i;

	cowsnap_region_assert_stopped(region);
	/* One page is one zap, either way. */
	if (runs->nr > 1 || runs->run[0].nr << shift > 1) {
		/* Entries are made under a stripe, in VMAs that are linked before. */
		i_mmap_lock_read(mapping);
		/* In the order in which mremap(2) relies on being overtaken. */
		for (node = rb_first_cached(&mapping->i_mmap); node;
		     node = rb_next(node)) {
			protected &= protect_in(rb_entry(node,
							 struct vm_area_struct,
							 shared.rb),
						shift, runs);
			cond_resched();
		}
		i_mmap_unlock_read(mapping);
		if (protected)
			return;
	}
	for (i = 0; i < runs->nr; i++)
		cowsnap_region_zap(region, runs->run[i].first, runs->run[i].nr);
}
