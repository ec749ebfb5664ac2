// SPDX-License-Identifier: GPL-2.0-only
/*
 * STAT and /proc/PID/fdinfo: what a region is and what it cost.
 */
#include <linux/sched/signal.h>
#include <linux/seq_file.h>

#include "cowsnap.h"

/*
 * What closing the region would give back: granules with one leaf, in leaves
 * and under nodes with one reference.  One stripe at a time, so that nobody waits
 * for all of it.
 */
static int count_exclusive(struct cowsnap_region *region, u64 *nr)
{
	u64 index;

	*nr = 0;
	for (index = 0; cowsnap_tree_next_exclusive(&region->tree, &index);
	     index = (index | (COWSNAP_LEAF_SLOTS - 1)) + 1) {
		if (region->stripes)
			mutex_lock(&cowsnap_stripe(region, index)->lock);
		*nr += cowsnap_tree_leaf_exclusive(&region->tree, index);
		if (region->stripes)
			mutex_unlock(&cowsnap_stripe(region, index)->lock);
		if (signal_pending(current))
			return -ERESTARTSYS;
		cond_resched();
	}
	return 0;
}

static void sum_counts(struct cowsnap_region *region,
		       struct cowsnap_counts *sum)
{
	unsigned int i;

	*sum = (struct cowsnap_counts){
		.referenced = region->referenced,
		.faults = atomic64_read(&region->snapshot_faults),
	};
	if (!region->stripes)
		return;
	for (i = 0; i < COWSNAP_STRIPES; i++) {
		struct cowsnap_stripe *stripe = &region->stripes[i];

		mutex_lock(&stripe->lock);
		sum->referenced += stripe->counts.referenced;
		sum->dirty += stripe->counts.dirty;
		sum->faults += stripe->counts.faults;
		sum->copies += stripe->counts.copies;
		sum->reuses += stripe->counts.reuses;
		sum->zero_fills += stripe->counts.zero_fills;
		mutex_unlock(&stripe->lock);
	}
}

/**
 * cowsnap_region_stat() - fill in what STAT tells
 * @region: the region
 * @stat: out; size and flags are left alone
 *
 * Return: 0, or -ERESTARTSYS when a signal came.
 */
int cowsnap_region_stat(struct cowsnap_region *region,
			struct cowsnap_stat *stat)
{
	unsigned int shift = cowsnap_granule_shift(region);
	struct cowsnap_counts sum;
	u64 exclusive;
	int err;

	if (mutex_lock_interruptible(&region->fork_lock))
		return -ERESTARTSYS;
	sum_counts(region, &sum);
	err = count_exclusive(region, &exclusive);
	stat->length = i_size_read(region->inode);
	mutex_unlock(&region->fork_lock);
	if (err)
		return err;

	stat->state = region->readonly ? COWSNAP_STAT_F_READONLY : 0;
	stat->granule_shift = shift;
	stat->id = region->id;
	stat->parent_id = region->parent_id;
	stat->family_id = region->family->id;
	stat->referenced = sum.referenced << shift;
	stat->exclusive = exclusive << shift;
	stat->dirty = sum.dirty << shift;
	stat->generation = region->generation;
	stat->forks = atomic64_read(&region->forks);
	stat->faults = sum.faults;
	stat->copies = sum.copies;
	stat->reuses = sum.reuses;
	stat->zero_fills = sum.zero_fills;
	stat->bytes_copied = sum.copies << shift;
	return 0;
}

void cowsnap_region_show_fdinfo(struct seq_file *seq, struct file *file)
{
	struct cowsnap_region *region = file->private_data;
	struct cowsnap_stat stat;

	if (cowsnap_region_stat(region, &stat))
		return;
	seq_printf(seq, "cowsnap-id:\t%llu\n", stat.id);
	seq_printf(seq, "cowsnap-parent:\t%llu\n", stat.parent_id);
	seq_printf(seq, "cowsnap-family:\t%llu\n", stat.family_id);
	/* A line of its own, whatever the user put into it. */
	seq_puts(seq, "cowsnap-name:\t");
	seq_escape(seq, region->family->name, "\n\\");
	seq_puts(seq, "\n");
	seq_printf(seq, "cowsnap-readonly:\t%u\n", region->readonly);
	seq_printf(seq, "cowsnap-generation:\t%llu\n", stat.generation);
	seq_printf(seq, "cowsnap-length:\t%llu\n", stat.length);
	seq_printf(seq, "cowsnap-granule:\t%u\n", 1U << stat.granule_shift);
	seq_printf(seq, "cowsnap-referenced:\t%llu\n", stat.referenced);
	seq_printf(seq, "cowsnap-exclusive:\t%llu\n", stat.exclusive);
	seq_printf(seq, "cowsnap-dirty:\t%llu\n", stat.dirty);
	seq_printf(seq, "cowsnap-forks:\t%llu\n", stat.forks);
	seq_printf(seq, "cowsnap-faults:\t%llu\n", stat.faults);
	seq_printf(seq, "cowsnap-copies:\t%llu\n", stat.copies);
	seq_printf(seq, "cowsnap-reuses:\t%llu\n", stat.reuses);
	seq_printf(seq, "cowsnap-zero-fills:\t%llu\n", stat.zero_fills);
	seq_printf(seq, "cowsnap-bytes-copied:\t%llu\n", stat.bytes_copied);
}
