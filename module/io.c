// SPDX-License-Identifier: GPL-2.0-only
/*
 * A region as a file: read(2), write(2), lseek(2), ftruncate(2).
 */
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "compat.h"
#include "cowsnap.h"

static u64 granule_index(struct cowsnap_region *region, loff_t pos)
{
	return (u64)pos >> cowsnap_granule_shift(region);
}

static u64 granule_offset(struct cowsnap_region *region, loff_t pos)
{
	return pos & (cowsnap_granule_size(region) - 1);
}

/* How much of @count bytes at @pos lies in one granule. */
static size_t granule_bytes(struct cowsnap_region *region, loff_t pos,
			    u64 count)
{
	return min(count, cowsnap_granule_size(region) -
			  granule_offset(region, pos));
}

static struct cowsnap_stripe *lock_stripe(struct cowsnap_region *region,
					  u64 index)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);

	mutex_lock(&stripe->lock);
	return stripe;
}

/**
 * cowsnap_granule_page_get() - what a region has at an index, to be read
 * @region: the region, activated
 * @index: the granule
 *
 * Return: its page, with a reference; NULL for a hole.
 */
struct page *cowsnap_granule_page_get(struct cowsnap_region *region, u64 index)
{
	struct cowsnap_stripe *stripe = NULL;
	struct cowsnap_granule *granule;

	if (!region->readonly)
		stripe = lock_stripe(region, index);
	granule = cowsnap_tree_lookup(&region->tree, index);
	if (granule)
		get_page(cowsnap_granule_page(granule));
	if (stripe)
		mutex_unlock(&stripe->lock);
	return granule ? cowsnap_granule_page(granule) : NULL;
}

static size_t read_granule(struct cowsnap_region *region, loff_t pos,
			   size_t bytes, struct iov_iter *to)
{
	struct page *page;
	size_t done;

	page = cowsnap_granule_page_get(region, granule_index(region, pos));
	if (!page)
		return iov_iter_zero(bytes, to);
	done = copy_page_to_iter(page, granule_offset(region, pos), bytes, to);
	put_page(page);
	return done;
}

ssize_t cowsnap_region_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct cowsnap_region *region = iocb->ki_filp->private_data;
	ssize_t total = 0;
	int err;

	err = cowsnap_region_activate(region);
	while (!err && iov_iter_count(to)) {
		loff_t left = i_size_read(region->inode) - iocb->ki_pos;
		size_t bytes, done;

		if (left <= 0)
			break;
		bytes = granule_bytes(region, iocb->ki_pos,
				      min_t(u64, left, iov_iter_count(to)));
		done = read_granule(region, iocb->ki_pos, bytes, to);
		iocb->ki_pos += done;
		total += done;
		if (done < bytes)
			err = -EFAULT;
		else if (fatal_signal_pending(current))
			err = -EINTR;
		cond_resched();
	}
	return total ?: err;
}

/*
 * Makes the granule that @pos lies inside of, if it is not a hole, the region's
 * own, which needs memory the first time; and on request zeroes it from @pos on:
 * stores through a mapping may have reached what is beyond the end.
 */
static int own_tail(struct cowsnap_region *region, loff_t pos, bool zero)
{
	u64 offset = granule_offset(region, pos);
	u64 index = granule_index(region, pos);
	struct cowsnap_stripe *stripe;
	struct page *page;
	int err = 0;

	if (!offset)
		return 0;
	stripe = lock_stripe(region, index);
	if (cowsnap_tree_lookup(&region->tree, index))
		err = cowsnap_granule_write(region, index, NULL, &page);
	else
		zero = false;
	if (!err && zero) {
		memset(page_address(page) + offset, 0,
		       cowsnap_granule_size(region) - offset);
		flush_dcache_page(page);
	}
	mutex_unlock(&stripe->lock);
	return err;
}

/*
 * Copies from user memory into one granule, under its stripe, so that all of it
 * comes before or after a fork; the length grows under it too, so a fork sees
 * both or neither.  Copies less, or nothing, when the user's page is not there: a
 * fault on it may need the stripe.
 */
static ssize_t write_granule(struct cowsnap_region *region, loff_t pos,
			     size_t bytes, struct iov_iter *from)
{
	u64 index = granule_index(region, pos);
	struct cowsnap_stripe *stripe = lock_stripe(region, index);
	struct page *page;
	ssize_t done;

	done = cowsnap_granule_write(region, index, NULL, &page);
	if (!done) {
		done = copy_page_from_iter_atomic(page,
						  granule_offset(region, pos),
						  bytes, from);
		flush_dcache_page(page);
		if (done && pos + done > i_size_read(region->inode))
			i_size_write(region->inode, pos + done);
	}
	mutex_unlock(&stripe->lock);
	return done;
}

static ssize_t write_granules(struct cowsnap_region *region, struct kiocb *iocb,
			      struct iov_iter *from)
{
	u64 most = U64_MAX;
	ssize_t total = 0;

	while (iov_iter_count(from)) {
		size_t bytes = granule_bytes(region, iocb->ki_pos,
					     min_t(u64, most,
						   iov_iter_count(from)));
		ssize_t done;

		if (fault_in_iov_iter_readable(from, bytes) == bytes)
			return total ?: -EFAULT;
		done = write_granule(region, iocb->ki_pos, bytes, from);
		if (done < 0)
			return total ?: done;
		iocb->ki_pos += done;
		total += done;
		/* Nothing: then no more at once than what was faulted in. */
		most = done ? U64_MAX : iov_iter_single_seg_count(from);
		if (fatal_signal_pending(current))
			return total ?: -EINTR;
		cond_resched();
	}
	return total;
}

ssize_t cowsnap_region_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct cowsnap_region *region = iocb->ki_filp->private_data;
	struct inode *inode = region->inode;
	ssize_t ret;
	int err;

	if (region->readonly)
		return -EPERM;
	err = cowsnap_region_activate(region);
	if (err)
		return err;

	inode_lock(inode);
	ret = generic_write_checks(iocb, from);
	if (ret > 0 && iocb->ki_pos > i_size_read(inode)) {
		err = own_tail(region, i_size_read(inode), true);
		if (err)
			ret = err;
	}
	if (ret > 0)
		ret = write_granules(region, iocb, from);
	inode_unlock(inode);
	return ret;
}

static loff_t seek_data_hole(struct cowsnap_region *region, loff_t offset,
			     bool data)
{
	loff_t size = i_size_read(region->inode);
	u64 index = granule_index(region, offset);
	loff_t found;

	if (offset < 0 || offset >= size)
		return -ENXIO;
	if (!cowsnap_tree_next(&region->tree, &index, data) ||
	    index > granule_index(region, size - 1))
		return data ? -ENXIO : size;
	found = index << cowsnap_granule_shift(region);
	return max(found, offset);
}

loff_t cowsnap_region_llseek(struct file *file, loff_t offset, int whence)
{
	struct cowsnap_region *region = file->private_data;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return generic_file_llseek(file, offset, whence);
	offset = seek_data_hole(region, offset, whence == SEEK_DATA);
	if (offset < 0)
		return offset;
	return vfs_setpos(file, offset, MAX_LFS_FILESIZE);
}

/* After this no fault goes beyond @length, unless it has done so already. */
static void set_length(struct cowsnap_region *region, loff_t length)
{
	cowsnap_region_lock_all(region);
	i_size_write(region->inode, length);
	cowsnap_region_unlock_all(region);
}

/*
 * Cuts the region down to @length.  What needs memory comes first: the last
 * granule becomes the region's own, the rest goes to @trash; then nothing can
 * fail any more.
 */
static int shrink(struct cowsnap_region *region, loff_t length,
		  struct cowsnap_trash *trash)
{
	loff_t granule = cowsnap_granule_size(region);
	u64 first = DIV_ROUND_UP((u64)length, granule);
	loff_t old = i_size_read(region->inode);
	struct cowsnap_tally tally = {};
	struct cowsnap_stripe *stripe;
	int err;

	err = own_tail(region, length, false);
	if (err)
		return err;
	set_length(region, length);
	unmap_mapping_range(region->inode->i_mapping, first * granule, 0, 1);

	cowsnap_region_lock_all(region);
	err = cowsnap_tree_remove(&region->tree, first, COWSNAP_INDEX_MAX,
				  trash);
	cowsnap_region_unlock_all(region);
	if (err) {
		set_length(region, old);
		return err;
	}
	cowsnap_trash_tally(&region->tree, trash, &tally);
	stripe = lock_stripe(region, 0);
	stripe->counts.referenced -= tally.granules;
	stripe->counts.dirty -= tally.dirty;
	stripe->counts.open -= tally.open;
	mutex_unlock(&stripe->lock);
	return own_tail(region, length, true);
}

/* The caller holds the inode's lock, and so is the only one to set the length. */
static int region_truncate(struct cowsnap_region *region, loff_t length)
{
	struct cowsnap_trash trash = {};
	int err;

	err = cowsnap_region_activate(region);
	if (err)
		return err;
	if (mutex_lock_killable(&region->fork_lock))
		return -EINTR;
	if (length < i_size_read(region->inode)) {
		err = shrink(region, length, &trash);
	} else {
		err = own_tail(region, i_size_read(region->inode), true);
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
