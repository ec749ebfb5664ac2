// SPDX-License-Identifier: GPL-2.0-only
/*
 * A region as a file: read(2), write(2), lseek(2).
 */
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "compat.h"
#include "cowsnap.h"

/* How much of @count bytes at @pos lies in one page. */
static size_t page_bytes(loff_t pos, u64 count)
{
	return min_t(u64, count, PAGE_SIZE - offset_in_page(pos));
}

/**
 * cowsnap_region_page_get() - what a region has at a page, to be read
 * @region: the region, activated
 * @pgoff: the page
 *
 * Return: it, with a reference; NULL in a hole.
 */
struct page *cowsnap_region_page_get(struct cowsnap_region *region, u64 pgoff)
{
	u64 index = cowsnap_page_index(region, pgoff);
	struct cowsnap_stripe *stripe = NULL;
	struct cowsnap_granule *granule;
	struct page *page = NULL;

	if (!region->readonly)
		stripe = cowsnap_stripe_lock(region, index);
	granule = cowsnap_tree_lookup(&region->tree, index);
	if (granule) {
		page = cowsnap_page_at(region, granule, pgoff);
		get_page(page);
	}
	if (stripe)
		mutex_unlock(&stripe->lock);
	return page;
}

static ssize_t read_page(struct cowsnap_region *region, loff_t pos,
			 size_t bytes, struct iov_iter *to)
{
	struct page *page;
	ssize_t done = -EIO;

	page = cowsnap_region_page_get(region, pos >> PAGE_SHIFT);
	if (!page)
		return iov_iter_zero(bytes, to);
	cowsnap_delay(COWSNAP_DELAY_page_held);
	if (!PageHWPoison(page))
		done = copy_page_to_iter(page, offset_in_page(pos), bytes, to);
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
		ssize_t bytes, done;

		if (left <= 0)
			break;
		bytes = page_bytes(iocb->ki_pos,
				   min_t(u64, left, iov_iter_count(to)));
		done = read_page(region, iocb->ki_pos, bytes, to);
		if (done < 0)
			return total ?: done;
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
 * Copies from user memory into one page, under its stripe, so that all of it
 * comes before or after a fork; the length grows under it too, so a fork sees
 * both or neither.  Copies less, or nothing, when the user's page is not there: a
 * fault on it may need the stripe.
 */
static ssize_t write_page(struct cowsnap_region *region, loff_t pos,
			  size_t bytes, struct iov_iter *from)
{
	u64 pgoff = pos >> PAGE_SHIFT;
	u64 index = cowsnap_page_index(region, pgoff);
	struct cowsnap_stripe *stripe = cowsnap_stripe_lock(region, index);
	struct cowsnap_granule *granule;
	struct page *page;
	ssize_t done;

	granule = cowsnap_granule_write(region, index, NULL);
	cowsnap_delay(COWSNAP_DELAY_write_granted);
	done = PTR_ERR_OR_ZERO(granule);
	if (!done) {
		page = cowsnap_page_at(region, granule, pgoff);
		done = -EIO;
		if (!PageHWPoison(page))
			done = cowsnap_copy_from_iter_atomic(page,
							     offset_in_page(pos),
							     bytes, from);
		flush_dcache_page(page);
		if (done > 0 && pos + done > i_size_read(region->inode))
			i_size_write(region->inode, pos + done);
	}
	mutex_unlock(&stripe->lock);
	return done;
}

static ssize_t write_pages(struct cowsnap_region *region, struct kiocb *iocb,
			   struct iov_iter *from)
{
	u64 most = U64_MAX;
	ssize_t total = 0;

	while (iov_iter_count(from)) {
		size_t bytes = page_bytes(iocb->ki_pos,
					  min_t(u64, most,
						iov_iter_count(from)));
		ssize_t done;

		if (fault_in_iov_iter_readable(from, bytes) == bytes)
			return total ?: -EFAULT;
		done = write_page(region, iocb->ki_pos, bytes, from);
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
		err = cowsnap_region_clear_tail(region);
		if (err)
			ret = err;
	}
	if (ret > 0)
		ret = write_pages(region, iocb, from);
	inode_unlock(inode);
	return ret;
}

static loff_t seek_data_hole(struct cowsnap_region *region, loff_t offset,
			     bool data)
{
	loff_t size = i_size_read(region->inode);
	u64 index = offset >> cowsnap_granule_shift(region);
	loff_t found;

	if (offset < 0 || offset >= size)
		return -ENXIO;
	if (!cowsnap_tree_next(&region->tree, &index, data) ||
	    index > (size - 1) >> cowsnap_granule_shift(region))
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
