// SPDX-License-Identifier: GPL-2.0-only
/*
 * DIFF: where two members of a family do not share granules.
 */
#include <linux/highmem.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "cowsnap.h"

static bool is_zero(struct page *page)
{
	return !page || !memchr_inv(page_address(page), 0, PAGE_SIZE);
}

static bool same_page(struct cowsnap_region *region,
		      struct cowsnap_region *other, u64 pgoff)
{
	struct page *a = cowsnap_region_page_get(region, pgoff);
	struct page *b = cowsnap_region_page_get(other, pgoff);
	bool same;

	/* What cannot be read is not known to be the same. */
	if ((a && PageHWPoison(a)) || (b && PageHWPoison(b)))
		same = false;
	else if (a && b)
		same = !memcmp(page_address(a), page_address(b), PAGE_SIZE);
	else
		same = is_zero(a) && is_zero(b);
	if (a)
		put_page(a);
	if (b)
		put_page(b);
	return same;
}

static bool same_bytes(struct cowsnap_region *region,
		       struct cowsnap_region *other, u64 index)
{
	u64 pages = cowsnap_granule_pages(region);
	u64 n;

	for (n = 0; n < pages; n++) {
		if (!same_page(region, other, index * pages + n))
			return false;
	}
	return true;
}

/* Takes what has equal bytes off both ends of a run, and ends it where it has. */
static u64 trim_equal(struct cowsnap_region *region,
		      struct cowsnap_region *other, u64 *first, u64 nr)
{
	u64 found = 0;

	for (; nr && same_bytes(region, other, *first); nr--)
		++*first;
	while (found < nr && !same_bytes(region, other, *first + found))
		found++;
	return found;
}

struct diff {
	struct cowsnap_range __user *ranges;
	u32 count;
	u32 room;
	unsigned int shift;
	struct cowsnap_range last;
};

static int write_last(struct diff *diff)
{
	if (!diff->last.length)
		return 0;
	if (copy_to_user(diff->ranges + diff->count, &diff->last,
			 sizeof(diff->last)))
		return -EFAULT;
	diff->count++;
	diff->last.length = 0;
	return 0;
}

/* Adds a run to the last range, or begins another; -ENOSPC without room. */
static int add_run(struct diff *diff, u64 first, u64 nr, u32 flags)
{
	u64 offset = first << diff->shift;
	int err;

	if (!nr)
		return 0;
	if (diff->last.length && diff->last.flags == flags &&
	    diff->last.offset + diff->last.length == offset) {
		diff->last.length += nr << diff->shift;
		return 0;
	}
	err = write_last(diff);
	if (err)
		return err;
	if (diff->count == diff->room)
		return -ENOSPC;
	diff->last.offset = offset;
	diff->last.length = nr << diff->shift;
	diff->last.flags = flags;
	return 0;
}

/**
 * cowsnap_region_diff() - find where two members of a family differ
 * @region: the one that is asked
 * @other: the one it is compared with
 * @args: checked; out, count and next
 *
 * Return: 0, -EXDEV for members of two families, -EFAULT when the ranges cannot be
 * written, -ENOMEM.
 */
int cowsnap_region_diff(struct cowsnap_region *region,
			struct cowsnap_region *other, struct cowsnap_diff *args)
{
	struct diff diff = {
		.ranges = u64_to_user_ptr(args->ranges),
		.room = args->count,
		.shift = cowsnap_granule_shift(region),
	};
	u64 end = ((args->end - 1) >> diff.shift) + 1;
	u64 first = args->start >> diff.shift;
	bool data;
	u64 nr;
	int err;

	if (region->family != other->family)
		return -EXDEV;
	err = cowsnap_region_activate(region) ?: cowsnap_region_activate(other);
	if (err)
		return err;

	for (;; first += nr) {
		if (!cowsnap_tree_next_diff(&region->tree, &other->tree,
					    &first, &nr, &data) ||
		    first >= end) {
			first = end;
			break;
		}
		/* Neither a signal nor a full array loses anything. */
		if (signal_pending(current))
			break;
		nr = min(nr, end - first);
		if (args->flags & COWSNAP_DIFF_F_EXACT)
			nr = trim_equal(region, other, &first, nr);
		err = add_run(&diff, first, nr,
			      data ? 0 : COWSNAP_RANGE_F_HOLE);
		if (err)
			break;
	}
	if (!err)
		err = write_last(&diff);
	args->count = diff.count;
	args->next = first << diff.shift;
	return err == -ENOSPC ? 0 : err;
}
