// SPDX-License-Identifier: GPL-2.0-only
/*
 * What to map with a page that is read, when its granule is small: its neighbours, as
 * the core does for files.  A page more in a fault costs a tenth of a fault.
 */
#include <linux/mm.h>

#include "around.h"
#include "compat.h"
#include "cowsnap.h"
#include "entries.h"

/* What lies around a page, but in one stripe. */
static_assert(COWSNAP_AROUND_MAX <= 1U << COWSNAP_STRIPE_SHIFT);

/**
 * struct entries - which entries there are
 * @from: the address of the first that was looked at
 * @present: a bit for each
 */
struct entries {
	unsigned long from;
	unsigned long present;
};

static void see_entry(pte_t *ptep, unsigned long addr, void *data)
{
	struct entries *seen = data;

	if (!pte_none(ptep_get(ptep)))
		seen->present |= BIT((addr - seen->from) >> PAGE_SHIFT);
}

/*
 * Chooses @around->first and @around->nr: from the page of the fault on for who reads
 * on and on, which shows in that the page before is mapped and none
 * from there on.  Returns a bit for each that has an entry.
 */
static unsigned long choose_pages(struct cowsnap_around *around,
				  struct vm_fault *vmf, u64 end)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address & PAGE_MASK;
	u64 here = vmf->pgoff;
	u64 window = round_down(here, COWSNAP_READ_WINDOW);
	u64 first = max_t(u64, window, vma->vm_pgoff);
	u64 last = min(window + COWSNAP_READ_WINDOW, end);
	bool before = first == here && here > vma->vm_pgoff;
	u64 from = first - before;
	struct entries seen = { .from = addr - ((here - from) << PAGE_SHIFT) };

	cowsnap_entries_visit(vma->vm_mm, seen.from,
			      seen.from + ((last - from) << PAGE_SHIFT),
			      see_entry, &seen);
	if (here > from && seen.present >> (here - from - 1) == 1) {
		around->first = here;
		around->nr = min(round_down(here, COWSNAP_AROUND_MAX) +
				 COWSNAP_AROUND_MAX, end) - here;
		return 0;
	}
	around->first = first;
	around->nr = last - first;
	return seen.present >> before;
}

/*
 * Puts down the pages @around->page[@n] and those behind it that are in the same leaf;
 * not those in @present.  Returns how many.
 */
static unsigned int look_in_leaf(struct cowsnap_around *around,
				 struct cowsnap_region *region, unsigned int n,
				 unsigned long present, bool writable)
{
	unsigned int shift = cowsnap_granule_shift(region) - PAGE_SHIFT;
	struct cowsnap_granule *granules[COWSNAP_LEAF_SLOTS];
	u64 pgoff = around->first + n;
	unsigned int slot = (pgoff >> shift) & (COWSNAP_LEAF_SLOTS - 1);
	unsigned int in_granule = pgoff & (BIT(shift) - 1);
	unsigned int nr = min_t(u64, around->nr - n,
				((COWSNAP_LEAF_SLOTS - slot) << shift) -
				in_granule);
	struct page **page = &around->page[n];
	unsigned long usable;
	unsigned int i;

	usable = cowsnap_tree_look_around(&region->tree, pgoff >> shift,
					  granules);
	if (!writable)
		usable = ULONG_MAX;
	for (i = 0; i < nr; i++, present >>= 1) {
		struct cowsnap_granule *granule = granules[slot];

		page[i] = NULL;
		if (granule && !(present & 1) && (usable >> slot & 1))
			page[i] = shift ? cowsnap_granule_page(granule,
							       in_granule) :
					  cowsnap_granule_head(granule);
		if (++in_granule == 1U << shift) {
			in_granule = 0;
			slot++;
		}
	}
	return nr;
}

/**
 * cowsnap_look_around() - choose what to map with a page
 * @around: out
 * @region: the page's stripe is held, or it is a snapshot
 * @vmf: a fault on it, for reading; there is no hole
 * @end: the region's first page that may not be mapped
 * @writable: only what may be written
 */
void cowsnap_look_around(struct cowsnap_around *around,
			 struct cowsnap_region *region, struct vm_fault *vmf,
			 u64 end, bool writable)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long present;
	unsigned int n;

	if (!region->readonly)
		cowsnap_stripe_assert_held(region,
					   cowsnap_page_index(region, vmf->pgoff));
	end = min(end, (u64)vma->vm_pgoff + vma_pages(vma));
	present = choose_pages(around, vmf, end);
	around->addr = (vmf->address & PAGE_MASK) -
		       ((vmf->pgoff - around->first) << PAGE_SHIFT);
	for (n = 0; n < around->nr;)
		n += look_in_leaf(around, region, n, present >> n, writable);
}
