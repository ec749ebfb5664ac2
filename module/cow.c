// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who may write a granule: the COW break and the sole-owner rule.
 *
 * The one state that everything rests on is whether a granule is open:
 *
 *   A page may be written through this region - by a page-table entry that
 *   is writable or can become so without asking, by a pin that was taken through
 *   one, or by the kernel on behalf of write(2) - only while its granule is open.
 *   A page whose granule is dirty, as all open ones are, is reached by this
 *   region alone.
 *
 * It is opened under the stripe before the first such entry is made, and is closed
 * only with the region stopped, after its entries were write-protected and it was seen
 * that nothing else refers to the page (protect.c). What is still open then is copied.
 *
 * Point in time follows.  Let T be the moment when FORK, with the region stopped, has
 * write-protected and cleaned the last entry of what is open and every TLB is flushed.
 *
 * - A store through an entry that was writable before: it was protected under the page
 *   table lock, and the TLBs of every address space that had such an entry were
 *   flushed before T (wrprotect.c), so the store came before T, to a page that the
 *   snapshot gets.  The VMA, and with it the entry, cannot be unmapped
 *   meanwhile without its own flush: the i_mmap lock keeps it linked.
 * - A store that faults: its handler needs the stripe.  It had it before the stop,
 *   which waits until it has installed the entry and let go, so FORK protects that
 *   entry; or it gets it after FORK, and finds the granule clean and shared: a copy.
 *   The handler installs the entry itself under the stripe; what it returns
 *   (VM_FAULT_NOPAGE) makes the core install nothing.  So there is no window
 *   between its return and the entry turning writable.
 * - write(2) copies under the stripe, to an open granule.
 * - mprotect(PROT_READ) and back makes an entry writable without asking if it is
 *   dirty.  Only entries of open granules are ever made dirty, and those are
 *   cleaned.
 * - A pin (O_DIRECT, io_uring, vmsplice, process_vm_writev) needs no entry later
 *   on.  get_user_pages_fast() takes its reference and then looks whether the
 *   entry is still the same; FORK changes the entry and then, after the flush, looks
 *   whether there are more references than entries: one of them sees the other.  A
 *   page that is referenced is copied for the child and stays open in the parent.
 * - truncate, fork(2) and mremap of a mapper, a second FORK: stop the region as
 *   well; or move entries under the locks that FORK takes, in an order in which
 *   it finds them.
 *
 * So at T no store can reach a page that the snapshot shares, and none was lost:
 * until its entry is protected a page's stores go to the page that is shared at T.
 */
#include "cowsnap.h"
#include "trace.h"

/**
 * cowsnap_region_zap_pages() - take pages out of every mapping of a region
 * @region: the region; who needs that no new ones are made holds their stripes
 * @pgoff: the first page
 * @nr: how many, 0 for all that follow
 *
 * When it returns no CPU can reach the pages through this region any more.
 */
void cowsnap_region_zap_pages(struct cowsnap_region *region, u64 pgoff, u64 nr)
{
	unmap_mapping_pages(region->inode->i_mapping, pgoff, nr, false);
}

/* Takes granules out of every mapping, as cowsnap_region_zap_pages() does pages. */
void cowsnap_region_zap(struct cowsnap_region *region, u64 index, u64 nr)
{
	unsigned int shift = cowsnap_granule_shift(region) - PAGE_SHIFT;

	cowsnap_region_zap_pages(region, index << shift, nr << shift);
}

/*
 * Is this region the only one that can see @granule, now and later?  No other
 * leaf may point to it; and whoever else refers to its pages, through a pin or a
 * pipe, may have got them from a member that is closed by now, and must not see
 * what this one writes next (CVE-2020-29374).  So every reference has to be
 * accounted for: one for the leaf, one for each page-table entry, all of which
 * are this region's then, and the one that the core took for its fault on @held.
 */
static bool sole_owner(struct cowsnap_granule *granule, struct page *held)
{
	return !cowsnap_granule_shared(granule) &&
	       cowsnap_granule_only_mapped(granule, held);
}

/**
 * cowsnap_granule_open() - from now on a granule may be written
 * @region: the only one to reach it
 * @leaf: from cowsnap_tree_own()
 * @index: the granule; its stripe is held, or the region is stopped
 */
void cowsnap_granule_open(struct cowsnap_region *region,
			  struct cowsnap_node *leaf, u64 index)
{
	struct cowsnap_counts *counts = &cowsnap_stripe(region, index)->counts;

	cowsnap_stripe_assert_held(region, index);
	if (cowsnap_leaf_set_dirty(leaf, index))
		counts->dirty++;
	if (cowsnap_tree_open(&region->tree, leaf, index))
		counts->open++;
}

static struct cowsnap_granule *fill_hole(struct cowsnap_region *region,
					 u64 index, struct cowsnap_node *leaf)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);
	struct cowsnap_account *account = &region->family->account;
	struct cowsnap_granule *granule;

	granule = cowsnap_granule_alloc(account, NULL);
	if (IS_ERR(granule))
		return granule;
	if (!leaf)
		leaf = cowsnap_tree_take(&region->tree, index);
	if (!leaf) {
		cowsnap_granule_release(account, granule);
		return ERR_PTR(-ENOMEM);
	}
	cowsnap_leaf_store(leaf, index, granule);
	cowsnap_granule_open(region, leaf, index);
	stripe->counts.referenced++;
	stripe->counts.zero_fills++;
	cowsnap_delay(COWSNAP_DELAY_hole_filled);
	if (stripe->zero_mapped)
		cowsnap_region_zap(region, index, 1);
	return granule;
}

/* How many pages to zap at once, when it is known that they will be copied. */
#define ZAP_AHEAD	64U

/*
 * How many granules to zap when one of them is copied: as many ahead as were written
 * in a row behind.  A zap of many costs little more than one, and who writes one
 * after the other will write them.  But who loads from each before would load what is
 * zapped once more, and what is around it.
 */
static u64 zap_ahead(struct cowsnap_region *region, struct cowsnap_node *leaf,
		     u64 index)
{
	unsigned int most = max(ZAP_AHEAD / cowsnap_granule_pages(region), 1U);
	u64 loaded = cowsnap_stripe(region, index)->loaded;
	unsigned int behind;

	if (loaded && index + 1 - loaded < most)
		return 1;
	behind = cowsnap_tree_dirty_run(&region->tree, leaf, index);
	if (behind < COWSNAP_LEAF_SLOTS)
		most = min3(most, behind + 1,
			    cowsnap_leaf_clean_run(leaf, index));
	return most;
}

static struct cowsnap_granule *copy_shared(struct cowsnap_region *region,
					   u64 index, struct cowsnap_node *leaf)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);
	struct cowsnap_account *account = &region->family->account;
	struct cowsnap_granule *old = cowsnap_leaf_granule(leaf, index);
	struct cowsnap_granule *new = cowsnap_granule_alloc(account, old);

	if (IS_ERR(new))
		return new;
	cowsnap_delay(COWSNAP_DELAY_granule_copied);
	trace_cowsnap_copy(region, index, false);
	/*
	 * Nobody may read the old pages through this region once the new ones can
	 * be written: zap first, map later.  The mappings that make them mapped
	 * may all be those of another member; the zap finds nothing then.
	 */
	if (cowsnap_granule_mapped(old))
		cowsnap_region_zap(region, index,
				   zap_ahead(region, leaf, index));
	cowsnap_delay(COWSNAP_DELAY_old_zapped);
	cowsnap_leaf_store(leaf, index, new);
	cowsnap_granule_open(region, leaf, index);
	stripe->counts.copies++;
	cowsnap_granule_release(account, old);
	return new;
}

/**
 * cowsnap_granule_write() - get a granule that this region may write
 * @region: the region, not a snapshot
 * @index: the granule; its stripe is held
 * @held: a page that the caller holds one more reference to than the mappings
 *	account for, or NULL
 *
 * Return: the granule, which may be written and mapped writable until the stripe is
 * let go; no reference is taken.  ERR_PTR(-ENOSPC), ERR_PTR(-ENOMEM) or
 * ERR_PTR(-EHWPOISON); then what the region holds has not changed.
 */
struct cowsnap_granule *cowsnap_granule_write(struct cowsnap_region *region,
					      u64 index, struct page *held)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);
	struct cowsnap_granule *granule;
	struct cowsnap_node *leaf;

	lockdep_assert_held(&stripe->lock);
	leaf = cowsnap_tree_find(&region->tree, index, &granule);
	cowsnap_delay(COWSNAP_DELAY_granule_found);
	if (!granule)
		return fill_hole(region, index, leaf);
	if (!leaf)
		leaf = cowsnap_tree_take(&region->tree, index);
	if (!leaf)
		return ERR_PTR(-ENOMEM);
	if (!cowsnap_leaf_is_dirty(leaf, index)) {
		if (!sole_owner(granule, held))
			return copy_shared(region, index, leaf);
		cowsnap_delay(COWSNAP_DELAY_sole_owner_found);
		stripe->counts.reuses++;
	}
	cowsnap_granule_open(region, leaf, index);
	return granule;
}
