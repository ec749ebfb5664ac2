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
 * only with all stripes held, after its entries were zapped and it was seen that
 * nothing else refers to the page (protect.c). What is still open then is copied.
 *
 * Point in time follows.  Let T be the moment when FORK, holding all stripes,
 * has finished the last zap and its TLB flush.
 *
 * - A store through an entry that was there before the zap: the zap clears it and
 *   flushes the TLBs before it returns, so the store came before T, to a page
 *   that the snapshot gets.
 * - A store that faults: its handler needs the stripe.  It had it before FORK, and
 *   installed the entry before it let go, so FORK zaps that entry; or it gets it
 *   after FORK, and finds the granule clean and shared: a copy.
 *   The handler installs the entry itself under the stripe; what it returns
 *   (VM_FAULT_NOPAGE) makes the core install nothing.  So there is no window
 *   between its return and the entry turning writable.
 * - write(2) copies under the stripe, to an open granule.
 * - mprotect(PROT_READ) and back makes an entry writable without asking if it is
 *   dirty.  Only entries of open granules are ever made dirty, and those are
 *   zapped.
 * - A pin (O_DIRECT, io_uring, vmsplice, process_vm_writev) needs no entry later
 *   on.  get_user_pages_fast() takes its reference and then looks whether the
 *   entry is still there; the zap clears the entry and then, after the flush, FORK
 *   looks at the reference count: one of them sees the other.  A page that is
 *   referenced is copied for the child and stays open in the parent.
 * - truncate, fork(2) and mremap of a mapper, a second FORK: take all stripes as
 *   well; or move entries under the locks that the zap takes, in an order in which
 *   it finds them.
 *
 * So at T no store can reach a page that the snapshot shares, and none was lost:
 * until a page's zap its stores go to the page that is shared at T.
 */
#include <linux/highmem.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "cowsnap.h"

/**
 * cowsnap_granule_alloc() - make a granule
 * @region: the region whose family is charged; the memory is charged to the
 *	memcg of the caller besides
 * @from: what to copy, NULL for zeroes
 *
 * Return: the granule, for a leaf or for cowsnap_granule_release();
 * ERR_PTR(-ENOSPC) over a limit, ERR_PTR(-ENOMEM), or ERR_PTR(-EHWPOISON) when
 * @from cannot be read.
 */
struct cowsnap_granule *cowsnap_granule_alloc(struct cowsnap_region *region,
					      struct cowsnap_granule *from)
{
	struct cowsnap_account *account = &region->family->account;
	struct cowsnap_granule *granule;
	struct page *page;
	int err;

	err = cowsnap_account_charge(account, 1);
	if (err)
		return ERR_PTR(err);
	page = alloc_page(GFP_USER | __GFP_ACCOUNT | (from ? 0 : __GFP_ZERO));
	if (!page) {
		cowsnap_account_uncharge(account, 1);
		return ERR_PTR(-ENOMEM);
	}
	/* Before 6.5 a pipe that splice(2) put it in wants to know. */
	SetPageUptodate(page);
	granule = cowsnap_granule_init(page);
	if (from && copy_mc_to_kernel(page_address(page),
				      page_address(cowsnap_granule_page(from)),
				      PAGE_SIZE)) {
		cowsnap_granule_release(region, granule);
		return ERR_PTR(-EHWPOISON);
	}
	return granule;
}

/* Drops a leaf's, or a not yet stored, reference. */
void cowsnap_granule_release(struct cowsnap_region *region,
			     struct cowsnap_granule *granule)
{
	if (cowsnap_granule_put(granule))
		cowsnap_account_uncharge(&region->family->account, 1);
}

/**
 * cowsnap_region_zap() - take granules out of every mapping of a region
 * @region: the region; the stripes of the granules are held
 * @index: the first granule
 * @nr: how many, 0 for all that follow
 *
 * When it returns no CPU can reach the pages through this region any more.
 */
void cowsnap_region_zap(struct cowsnap_region *region, u64 index, u64 nr)
{
	unsigned int shift = cowsnap_granule_shift(region) - PAGE_SHIFT;

	unmap_mapping_pages(region->inode->i_mapping, index << shift,
			    nr << shift, false);
}

/*
 * Is this region the only one that can see @granule, now and later?  No other
 * leaf may point to it; and whoever else refers to its page, through a pin or a
 * pipe, may have got it from a member that is closed by now, and must not see
 * what this one writes next (CVE-2020-29374).  So every reference has to be
 * accounted for: one for the leaf, one for each page-table entry, all of which
 * are this region's then, and the one that the core took for its fault on @held.
 */
static bool sole_owner(struct cowsnap_granule *granule, struct page *held)
{
	struct page *page = cowsnap_granule_page(granule);
	int refs;

	if (cowsnap_granule_shared(granule))
		return false;
	refs = page_ref_count(page);
	/*
	 * An entry that goes away drops the map count first and the reference
	 * then, so reading them in this order errs towards a copy only.
	 */
	smp_rmb();
	return refs == 1 + cowsnap_page_mapcount(page) + (page == held);
}

/* From now on the granule may be written; it is this region's alone. */
static void open_granule(struct cowsnap_region *region,
			 struct cowsnap_node *leaf, u64 index)
{
	struct cowsnap_counts *counts = &cowsnap_stripe(region, index)->counts;

	if (cowsnap_leaf_set_dirty(leaf, index))
		counts->dirty++;
	if (cowsnap_tree_open(&region->tree, leaf, index))
		counts->open++;
}

static int fill_hole(struct cowsnap_region *region, u64 index,
		     struct page **page)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);
	struct cowsnap_granule *granule;
	struct cowsnap_node *leaf;

	granule = cowsnap_granule_alloc(region, NULL);
	if (IS_ERR(granule))
		return PTR_ERR(granule);
	leaf = cowsnap_tree_own(&region->tree, index);
	if (!leaf) {
		cowsnap_granule_release(region, granule);
		return -ENOMEM;
	}
	cowsnap_leaf_store(leaf, index, granule);
	open_granule(region, leaf, index);
	stripe->counts.referenced++;
	stripe->counts.zero_fills++;
	if (stripe->zero_mapped)
		cowsnap_region_zap(region, index, 1);
	*page = cowsnap_granule_page(granule);
	return 0;
}

static int copy_shared(struct cowsnap_region *region, u64 index,
		       struct cowsnap_node *leaf, struct page **page)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);
	struct cowsnap_granule *old = cowsnap_leaf_granule(leaf, index);
	struct cowsnap_granule *new = cowsnap_granule_alloc(region, old);

	if (IS_ERR(new))
		return PTR_ERR(new);
	cowsnap_leaf_store(leaf, index, new);
	open_granule(region, leaf, index);
	stripe->counts.copies++;
	/*
	 * Nobody may read the old page through this region once the new one can
	 * be written: zap first, map later.  The mappings that make it mapped
	 * may all be those of another member; the zap finds nothing then.
	 */
	if (page_mapped(cowsnap_granule_page(old)))
		cowsnap_region_zap(region, index, 1);
	cowsnap_granule_release(region, old);
	*page = cowsnap_granule_page(new);
	return 0;
}

/**
 * cowsnap_granule_write() - get a page that this region may write
 * @region: the region, not a snapshot
 * @index: the granule; its stripe is held
 * @held: a page that the caller holds one more reference to than the mappings
 *	account for, or NULL
 * @page: out, the page, which may be written and mapped writable until the
 *	stripe is let go; no reference is taken
 *
 * Return: 0, -ENOSPC, -ENOMEM or -EHWPOISON; then what the region holds has not
 * changed.
 */
int cowsnap_granule_write(struct cowsnap_region *region, u64 index,
			  struct page *held, struct page **page)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);
	struct cowsnap_granule *granule;
	struct cowsnap_node *leaf;

	lockdep_assert_held(&stripe->lock);
	granule = cowsnap_tree_lookup(&region->tree, index);
	if (!granule)
		return fill_hole(region, index, page);
	leaf = cowsnap_tree_own(&region->tree, index);
	if (!leaf)
		return -ENOMEM;
	if (!cowsnap_leaf_is_dirty(leaf, index)) {
		if (!sole_owner(granule, held))
			return copy_shared(region, index, leaf, page);
		stripe->counts.reuses++;
	}
	open_granule(region, leaf, index);
	*page = cowsnap_granule_page(granule);
	return 0;
}
