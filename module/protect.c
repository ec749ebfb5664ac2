// SPDX-License-Identifier: GPL-2.0-only
/*
 * Closing granules, so that a fork need not: PREPARE, and the first pass of FORK.
 *
 * Goes over what is open a little at a time, with the region stopped for as long as
 * that takes, and changes nothing that anyone sees: a store to a closed granule
 * faults once and opens it again, without a copy, because it is dirty.
 */
#include <linux/sched/signal.h>

#include "cowsnap.h"

/* How many pages are closed while the writers wait: 80,000 instructions. */
#define PROTECT_AT_ONCE	512

static u64 protect_at_once(struct cowsnap_region *region)
{
	return max(PROTECT_AT_ONCE / cowsnap_granule_pages(region), 1U);
}

static long folio_has_failed(struct folio *folio)
{
	return cowsnap_folio_has_failed(folio);
}

/* Besides entries, and what the core has of a single page that failed. */
static long references_to_sound(struct folio *folio)
{
	long references = cowsnap_folio_references(folio);

	if (!folio_test_large(folio) && cowsnap_folio_has_failed(folio))
		return 0;
	/* As in cowsnap_granule_only_mapped(). */
	smp_rmb();
	return references - cowsnap_folio_mapcount(folio);
}

/**
 * cowsnap_region_pinned() - may a dirty granule be written without a mapping?
 * @region: stopped, and write-protected there
 * @index: where the granule is
 * @granule: the granule
 *
 * The count is exact: the granule is in one leaf, and no entries are made.
 *
 * Return: true when somebody refers to it; who only reads it, for a moment, counts
 * as one who writes.  False for a single page in memory that failed, which the core
 * may refer to: there is nothing in it that could be kept apart, and who touches it
 * next is told.
 */
bool cowsnap_region_pinned(struct cowsnap_region *region, u64 index,
			   struct cowsnap_granule *granule)
{
	bool referenced = !cowsnap_granule_only_mapped(granule, NULL);

	cowsnap_region_assert_stopped(region);
	if (likely(!PageHWPoison(cowsnap_granule_head(granule)) &&
		   !cowsnap_granule_pieces(granule)))
		return referenced;
	if (cowsnap_granule_sum(granule, folio_has_failed))
		cowsnap_region_zap(region, index, 1);
	return cowsnap_granule_sum(granule, references_to_sound);
}

/*
 * Write-protects up to @budget open granules from *@next on, and moves *@next behind
 * them.  @runs says which, and may have room for less.  Returns how many.
 */
static u64 protect_runs(struct cowsnap_region *region, u64 *next, u64 budget,
			struct cowsnap_runs *runs)
{
	u64 done = 0;

	for (runs->nr = 0; runs->nr < ARRAY_SIZE(runs->run) && done < budget;
	     runs->nr++) {
		u64 nr = budget - done;

		if (!cowsnap_tree_next_open(&region->tree, next, &nr))
			break;
		runs->run[runs->nr].first = *next;
		runs->run[runs->nr].nr = nr;
		*next += nr;
		done += nr;
	}
	if (done)
		cowsnap_region_wrprotect(region, runs);
	return done;
}

/* Closes those of the open granules [@first, @first + @nr) that are not pinned. */
static void close_unpinned(struct cowsnap_region *region, u64 first, u64 nr)
{
	while (nr) {
		u64 slot = first & (COWSNAP_LEAF_SLOTS - 1);
		u64 end = min(slot + nr, (u64)COWSNAP_LEAF_SLOTS);
		struct cowsnap_node *leaf;
		unsigned long slots = 0;
		u64 index = first;

		/* What is open is owned. */
		leaf = cowsnap_tree_owned(&region->tree, index);
		for (; slot < end; slot++, first++, nr--) {
			struct cowsnap_granule *granule;

			granule = cowsnap_leaf_granule(leaf, first);
			if (!cowsnap_region_pinned(region, first, granule))
				slots |= 1UL << slot;
		}
		if (!slots)
			continue;
		cowsnap_tree_close(&region->tree, index, slots);
		cowsnap_stripe(region, index)->counts.open -=
			hweight_long(slots);
	}
}

/*
 * Tries to close @budget granules, from *@next on, and moves *@next behind them.
 * Returns how many it came to: fewer than @budget at the end of the region.
 */
static u64 protect_some(struct cowsnap_region *region, u64 *next, u64 budget)
{
	struct cowsnap_runs runs;
	unsigned int i;
	u64 done = 0;
	u64 found;

	while ((found = protect_runs(region, next, budget - done, &runs))) {
		/* See get_user_pages_fast() in cow.c. */
		smp_mb();
		cowsnap_delay(COWSNAP_DELAY_runs_protected);
		for (i = 0; i < runs.nr; i++)
			close_unpinned(region, runs.run[i].first,
				       runs.run[i].nr);
		done += found;
	}
	return done;
}

/**
 * cowsnap_region_protect_open() - take away what could be written without a fault
 * @region: stopped, and has stripes
 */
void cowsnap_region_protect_open(struct cowsnap_region *region)
{
	struct cowsnap_runs runs;
	u64 next = 0;

	cowsnap_region_assert_stopped(region);
	while (protect_runs(region, &next, U64_MAX, &runs))
		;
	/* get_user_pages_fast() counts, and then looks for the entry. */
	smp_mb();
}

static u64 count_open(struct cowsnap_region *region)
{
	s64 open = 0;
	unsigned int i;

	for (i = 0; i < COWSNAP_STRIPES; i++)
		/* Exact while the region is stopped, a guess otherwise. */
		open += data_race(region->stripes[i].counts.open);
	return max(open, 0LL);
}

/**
 * cowsnap_region_protect_first() - take work out of what is to come
 * @region: its fork_lock is held; not stopped
 *
 * Goes over the region once while its writers go on, if there is much to do.
 */
void cowsnap_region_protect_first(struct cowsnap_region *region)
{
	u64 most = protect_at_once(region);
	u64 next = 0;
	u64 done;

	cowsnap_region_let_in(region);
	if (!region->stripes || count_open(region) <= most)
		return;
	do {
		cowsnap_region_stop(region);
		done = protect_some(region, &next, most);
		cowsnap_region_resume(region);
		cond_resched();
	} while (done == most);
}

/**
 * cowsnap_region_prepare() - close granules, so that the next fork need not
 * @region: the region
 * @budget: the most to close, 0 for all
 * @left: out, how many are open still
 *
 * Begins where the last call stopped, and goes over the region twice at the most,
 * whatever its writers do meanwhile.
 *
 * Return: 0, or -ERESTARTSYS for a signal.
 */
int cowsnap_region_prepare(struct cowsnap_region *region, u64 budget,
			   u64 *left)
{
	unsigned int ends = 0;
	u64 asked, done;

	*left = 0;
	if (mutex_lock_interruptible(&region->fork_lock))
		return -ERESTARTSYS;
	cowsnap_region_let_in(region);
	while (region->stripes && ends < 2) {
		asked = min_not_zero(budget, protect_at_once(region));
		cowsnap_region_stop(region);
		done = protect_some(region, &region->prepare_next, asked);
		*left = count_open(region);
		cowsnap_region_resume(region);
		if (done < asked) {
			region->prepare_next = 0;
			ends++;
		}
		if (!*left || signal_pending(current))
			break;
		if (budget && done == budget)
			break;
		budget -= budget ? done : 0;
		cond_resched();
	}
	mutex_unlock(&region->fork_lock);
	return 0;
}
