// SPDX-License-Identifier: GPL-2.0-only
/*
 * RESTORE: make a region hold what another member of its family holds.
 *
 * Takes an image of the source as FORK does and exchanges it for what the region
 * holds, with both stopped.  Only entries of granules that the two do
 * not share are zapped, which all entries of open granules are among: the rest
 * stays mapped, and nothing faults again that did not change.
 */
#include "cowsnap.h"
#include "trace.h"

/* The lower id's first, as who locks more than one does everywhere. */
static int lock_both(struct cowsnap_region *region,
		     struct cowsnap_region *source)
{
	struct cowsnap_region *first = region;
	struct cowsnap_region *second = source;

	if (first->id > second->id)
		swap(first, second);
	if (mutex_lock_interruptible(&first->fork_lock))
		return -ERESTARTSYS;
	if (mutex_lock_interruptible_nested(&second->fork_lock,
					    SINGLE_DEPTH_NESTING)) {
		mutex_unlock(&first->fork_lock);
		return -ERESTARTSYS;
	}
	return 0;
}

/* Zaps what will not be there any more; returns how many granules that is. */
static u64 zap_changed(struct cowsnap_region *region,
		       struct cowsnap_image *image)
{
	u64 changed = 0;
	u64 start = 0;
	u64 run = 0;
	u64 first, nr;
	bool data;

	/* What is found ends with a leaf: one zap for those that touch. */
	for (first = 0; cowsnap_tree_next_diff(&region->tree, &image->tree,
					       &first, &nr, &data);
	     first += nr) {
		changed += nr;
		if (run && start + run != first) {
			cowsnap_region_zap(region, start, run);
			run = 0;
		}
		if (!run)
			start = first;
		run += nr;
	}
	if (run)
		cowsnap_region_zap(region, start, run);
	/* And the zero page where there is nothing any more, not even a hole. */
	if (image->length < i_size_read(region->inode))
		cowsnap_region_zap_pages(region,
					 DIV_ROUND_UP((u64)image->length,
						      PAGE_SIZE), 0);
	return changed;
}

/* Exchanges what @region holds for what @image does. */
static void exchange(struct cowsnap_region *region, struct cowsnap_image *image)
{
	unsigned int i;

	lockdep_assert_held_write(&region->inode->i_rwsem);
	cowsnap_region_assert_stopped(region);
	cowsnap_tree_swap(&region->tree, &image->tree);
	i_size_write(region->inode, image->length);
	region->referenced = image->referenced;
	for (i = 0; i < COWSNAP_STRIPES; i++) {
		struct cowsnap_counts *counts = &region->stripes[i].counts;

		counts->referenced = 0;
		counts->dirty = 0;
		counts->open = 0;
	}
}

/**
 * cowsnap_region_restore() - make a region hold what another member holds now
 * @region: the region
 * @source: the other
 * @changed: out, bytes of granules that were not shared
 *
 * Return: 0; -EPERM for a snapshot, -EXDEV for a source from another family,
 * -ERESTARTSYS for a signal, -EINTR for a fatal one, -ENOMEM; -ENOSPC or
 * -EHWPOISON for a pinned granule of the source; on error both hold what they
 * held.
 */
int cowsnap_region_restore(struct cowsnap_region *region,
			   struct cowsnap_region *source, u64 *changed)
{
	struct cowsnap_image image;
	int err;

	*changed = 0;
	if (region->readonly)
		return -EPERM;
	if (region->family != source->family)
		return -EXDEV;
	if (region == source)
		return 0;
	err = cowsnap_region_activate(region);
	if (err)
		return err;

	/* A write(2) may have it while it waits for its user's memory. */
	if (down_write_killable(&region->inode->i_rwsem))
		return -EINTR;
	err = lock_both(region, source);
	if (err)
		goto out_unlock_inode;
	cowsnap_region_protect_first(source);
	cowsnap_region_freeze(source);
	err = cowsnap_image_begin(&image, source);
	if (!err) {
		cowsnap_image_commit(&image, source);
		cowsnap_delay(COWSNAP_DELAY_restore_taken);
		cowsnap_region_stop(region);
		*changed = zap_changed(region, &image) <<
			   cowsnap_granule_shift(region);
		cowsnap_delay(COWSNAP_DELAY_restore_zapped);
		exchange(region, &image);
		cowsnap_delay(COWSNAP_DELAY_restore_exchanged);
		cowsnap_region_resume(region);
	}
	cowsnap_region_resume(source);
	mutex_unlock(&source->fork_lock);
	mutex_unlock(&region->fork_lock);
	if (!err) {
		trace_cowsnap_restore(region, source, *changed);
		cowsnap_image_destroy(&image);
	}
out_unlock_inode:
	up_write(&region->inode->i_rwsem);
	return err;
}
