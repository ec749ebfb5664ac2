// SPDX-License-Identifier: GPL-2.0-only
/*
 * ftruncate(2) and fallocate(2): how long a region is, and where it takes memory.
 *
 * Beyond the length there is nothing but zeroes, except in what follows it in its
 * granule: a store through a mapping may have reached the rest of its page, and what
 * was pinned before it was cut off the rest of the granule.  So that is cleared when
 * the region grows.
 */
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "cowsnap.h"

/*
 * Makes the bytes [@start, @end), which lie in one granule, the region's own, unless
 * they are zero; that needs memory the first time.  And zeroes them on request.
 */
static int own_part(struct cowsnap_region *region, u64 start, u64 end,
		    bool zero)
{
	u64 mask = cowsnap_granule_size(region) - 1;
	u64 index = start >> cowsnap_granule_shift(region);
	size_t from = start & mask;
	size_t to = ((end - 1) & mask) + 1;
	struct cowsnap_granule *granule;
	struct cowsnap_stripe *stripe;
	int err = 0;

	if (start == end)
		return 0;
	stripe = cowsnap_stripe_lock(region, index);
	granule = cowsnap_tree_lookup(&region->tree, index);
	if (granule && !cowsnap_granule_is_zero(granule, from, to)) {
		granule = cowsnap_granule_write(region, index, NULL);
		err = PTR_ERR_OR_ZERO(granule);
		if (!err && zero)
			cowsnap_granule_zero(granule, from, to);
	}
	mutex_unlock(&stripe->lock);
	return err;
}

/**
 * cowsnap_region_clear_tail() - make ready to grow
 * @region: activated; the inode's lock is held
 *
 * Return: 0, or what cowsnap_granule_write() failed with.
 */
int cowsnap_region_clear_tail(struct cowsnap_region *region)
{
	u64 length = i_size_read(region->inode);

	lockdep_assert_held_write(&region->inode->i_rwsem);
	return own_part(region, length,
			round_up(length, cowsnap_granule_size(region)), true);
}

/* After this no fault goes beyond @length, unless it has done so already. */
static void set_length(struct cowsnap_region *region, loff_t length)
{
	cowsnap_region_stop(region);
	i_size_write(region->inode, length);
	cowsnap_region_resume(region);
}

/* To zap more pages than these takes longer than to do it once more. */
#define ZAP_AHEAD_ABOVE	64

/*
 * Makes a hole of the granules [@first, @last]; what was there goes to @trash.  On
 * error nothing has changed.
 *
 * A store that comes before the zap goes to what was removed: it came before the
 * hole.  The first zap is for those that are mapped now, so that the writers need
 * not wait for all of them, if they are many.
 */
static int remove_granules(struct cowsnap_region *region, u64 first, u64 last,
			   struct cowsnap_trash *trash)
{
	struct cowsnap_tally tally = {};
	struct cowsnap_counts *counts;
	int err;

	if ((last - first) * cowsnap_granule_pages(region) >= ZAP_AHEAD_ABOVE)
		cowsnap_region_zap(region, first, last - first + 1);
	cowsnap_delay(COWSNAP_DELAY_punch_zapped);
	cowsnap_region_stop(region);
	err = cowsnap_tree_remove(&region->tree, first, last, trash);
	cowsnap_delay(COWSNAP_DELAY_range_removed);
	if (!err)
		cowsnap_region_zap(region, first, last - first + 1);
	cowsnap_trash_tally(&region->tree, trash, &tally);
	counts = &region->stripes[0].counts;
	counts->referenced -= tally.granules;
	counts->dirty -= tally.dirty;
	counts->open -= tally.open;
	cowsnap_region_resume(region);
	return err;
}

/*
 * Cuts the region down to @length.  What needs memory comes first: the last
 * granule becomes the region's own, the rest goes to @trash; then nothing can
 * fail any more.
 */
static int shrink(struct cowsnap_region *region, loff_t length,
		  struct cowsnap_trash *trash)
{
	u64 granule = cowsnap_granule_size(region);
	u64 first = DIV_ROUND_UP((u64)length, granule);
	u64 behind = DIV_ROUND_UP((u64)length, PAGE_SIZE);
	u64 cut = first * cowsnap_granule_pages(region) - behind;
	loff_t old = i_size_read(region->inode);
	int err;

	err = own_part(region, length, first * granule, false);
	if (err)
		return err;
	cowsnap_delay(COWSNAP_DELAY_tail_owned);
	set_length(region, length);
	cowsnap_delay(COWSNAP_DELAY_length_set);
	/* Of the last granule; the others are zapped when they are removed. */
	if (cut)
		cowsnap_region_zap_pages(region, behind, cut);
	err = remove_granules(region, first, COWSNAP_INDEX_MAX, trash);
	if (err) {
		set_length(region, old);
		return err;
	}
	return own_part(region, length, first * granule, true);
}

/* With the inode's lock, and so the only one to set the length. */
static int region_truncate(struct cowsnap_region *region, loff_t length)
{
	struct cowsnap_trash trash = {};
	int err;

	lockdep_assert_held_write(&region->inode->i_rwsem);
	err = cowsnap_region_activate(region);
	if (err)
		return err;
	if (mutex_lock_killable(&region->fork_lock))
		return -EINTR;
	if (length <= i_size_read(region->inode)) {
		err = shrink(region, length, &trash);
	} else {
		err = cowsnap_region_clear_tail(region);
		if (!err)
			i_size_write(region->inode, length);
	}
	mutex_unlock(&region->fork_lock);
	cowsnap_trash_destroy(&region->tree, &trash);
	return err;
}

static int region_setattr(struct cowsnap_idmap *idmap, struct dentry *dentry,
			  struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	struct cowsnap_region *region = inode->i_private;
	int err;

	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE) {
		if (region->readonly)
			return -EPERM;
		err = region_truncate(region, attr->ia_size);
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	return 0;
}

const struct inode_operations cowsnap_region_iops = {
	.setattr = region_setattr,
	.getattr = simple_getattr,
};

/*
 * Makes [@start, @end) read as zero: granules that lie in it whole become holes, of
 * the others the part is cleared.  A fork comes before or after all of it.  What
 * needs memory comes first.
 */
static int punch(struct cowsnap_region *region, u64 start, u64 end,
		 struct cowsnap_trash *trash)
{
	u64 granule = cowsnap_granule_size(region);
	u64 first = DIV_ROUND_UP(start, granule);
	u64 behind = end / granule;
	int err;

	if (first > behind)
		return own_part(region, start, end, true);
	err = own_part(region, start, first * granule, false) ?:
	      own_part(region, behind * granule, end, false);
	if (!err && first < behind)
		err = remove_granules(region, first, behind - 1, trash);
	if (err)
		return err;
	return own_part(region, start, first * granule, true) ?:
	       own_part(region, behind * granule, end, true);
}

static int punch_hole(struct cowsnap_region *region, u64 start, u64 end)
{
	struct cowsnap_trash trash = {};
	int err;

	if (mutex_lock_killable(&region->fork_lock))
		return -EINTR;
	err = punch(region, start, end, &trash);
	mutex_unlock(&region->fork_lock);
	cowsnap_trash_destroy(&region->tree, &trash);
	return err;
}

/*
 * Sees to it that writing to [@start, @end) needs no memory for holes any more; nor,
 * with @unshare, for what is shared.
 */
static int allocate(struct cowsnap_region *region, u64 start, u64 end,
		    bool unshare)
{
	u64 index = start >> cowsnap_granule_shift(region);
	u64 last = (end - 1) >> cowsnap_granule_shift(region);
	int err = 0;

	for (; !err && index <= last; index++) {
		struct cowsnap_stripe *stripe;

		stripe = cowsnap_stripe_lock(region, index);
		if (unshare || !cowsnap_tree_lookup(&region->tree, index))
			err = PTR_ERR_OR_ZERO(cowsnap_granule_write(region,
								    index,
								    NULL));
		mutex_unlock(&stripe->lock);
		if (!err && fatal_signal_pending(current))
			err = -EINTR;
		cond_resched();
	}
	return err;
}

static int region_fallocate(struct cowsnap_region *region, int mode, u64 start,
			    u64 end)
{
	bool grows = !(mode & FALLOC_FL_KEEP_SIZE) &&
		     end > i_size_read(region->inode);
	int err;

	err = cowsnap_region_activate(region);
	if (!err && grows)
		err = inode_newsize_ok(region->inode, end) ?:
		      cowsnap_region_clear_tail(region);
	if (!err && (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)))
		err = punch_hole(region, start, end);
	if (!err && !(mode & FALLOC_FL_PUNCH_HOLE))
		err = allocate(region, start, end,
			       mode & FALLOC_FL_UNSHARE_RANGE);
	if (!err && grows) {
		if (mutex_lock_killable(&region->fork_lock))
			return -EINTR;
		i_size_write(region->inode, end);
		mutex_unlock(&region->fork_lock);
	}
	return err;
}

long cowsnap_region_fallocate(struct file *file, int mode, loff_t offset,
			      loff_t length)
{
	struct cowsnap_region *region = file->private_data;
	int err;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE |
		     FALLOC_FL_ZERO_RANGE | FALLOC_FL_UNSHARE_RANGE))
		return -EOPNOTSUPP;
	if (region->readonly)
		return -EPERM;
	inode_lock(region->inode);
	err = region_fallocate(region, mode, offset, offset + length);
	inode_unlock(region->inode);
	return err;
}
