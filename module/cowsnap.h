/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The region: what all parts of the module share.
 *
 * Lock order, outermost first:
 *
 *   inode->i_rwsem               write(2), ftruncate(2): the length
 *     mm->mmap_lock or VMA lock  faults; user copies
 *       region->fork_lock        what happens to the region as a whole: fork,
 *                                truncate, stat, making and stopping the stripes;
 *                                of several regions by their ids
 *         stripe->lock           what is at the indices of the stripe: the leaves
 *                                there, their granules, the page-table entries
 *                                that map them
 *           tree->lock           the shape of the tree
 *             (allocation)       reclaim calls nothing of ours
 *           mapping->i_mmap_rwsem, page table lock
 *                                to zap, to insert and to protect
 *
 * A fault takes one stripe and no fork_lock, but waits where the region is stopped.
 * Who stops a region, under its fork_lock, has as good as all of its stripes: nobody
 * is in one, and who wants one waits until the region is resumed.  No user memory is
 * touched under fork_lock or a stripe, except with page faults disabled, because a
 * fault takes a stripe itself.
 *
 * References: an inode is its region's life; a file holds its inode, a VMA its
 * file.  A region holds its family and the root of its tree, a node holds its
 * children, a leaf its granules.  A region holds no other region: not its parent, not its children.
 * A snapshot's tree never changes, so nothing in it needs a lock.
 */
#ifndef _COWSNAP_H
#define _COWSNAP_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/cowsnap.h>

#include "account.h"
#include "delay.h"
#include "pages.h"
#include "tree.h"

/**
 * struct cowsnap_family - what a region and all that was forked from it share
 * @refs: one for each member
 * @id: the first member's
 * @account: what the members' granules are charged to
 * @name: as given to CREATE
 * @title: with that, as /proc/PID/maps has it
 */
struct cowsnap_family {
	struct kref refs;
	u64 id;
	struct cowsnap_account account;
	char name[COWSNAP_NAME_MAX];
	char title[sizeof("cowsnap:") + COWSNAP_NAME_MAX];
};

/* A power of two: enough for the CPUs to spread, few enough to take them all. */
#define COWSNAP_STRIPES	32

/* Neighbours share a stripe: who reads on and on maps so many pages in one fault. */
#define COWSNAP_STRIPE_SHIFT	6

static_assert(COWSNAP_STRIPE_SHIFT >= COWSNAP_LEAF_SHIFT);

/**
 * struct cowsnap_counts - what happened in a stripe, or in a whole region
 * @referenced: granules that became reachable, less those that ceased to be
 * @dirty: granules changed since the last fork
 * @open: granules that may be written without a fault
 * @faults: page faults
 * @copies: COW breaks that copied, and granules copied by a fork for a pin
 * @reuses: COW breaks that found the region to be the only owner
 * @zero_fills: holes filled
 *
 * A stripe's @referenced, @dirty and @open may be negative; the sums over a region
 * are not.
 */
struct cowsnap_counts {
	s64 referenced;
	s64 dirty;
	s64 open;
	u64 faults;
	u64 copies;
	u64 reuses;
	u64 zero_fills;
};

/**
 * struct cowsnap_stripe - one of the locks that a region's indices divide into
 * @lock: the class lock of tree.h; protects the rest, too
 * @zero_mapped: the zero page may be mapped at holes of this stripe
 * @loaded: behind the granule for which a load faulted last, or 0
 * @counts: what happened here
 */
struct cowsnap_stripe {
	struct mutex lock;
	bool zero_mapped;
	u64 loaded;
	struct cowsnap_counts counts;
} ____cacheline_aligned_in_smp;

/**
 * struct cowsnap_region - a member of a family
 * @inode: of its own, so that its i_mapping names exactly its own mappings
 * @family: the family
 * @id: never 0, never used again
 * @parent_id: of the region it was forked from, or 0
 * @generation: forks between the family's first region and this one
 * @readonly: it is a snapshot
 * @fork_lock: see above
 * @stopped: nobody may take a stripe; changes under @fork_lock
 * @waiting: how many wait for that to end, or have and are on their way in
 * @tree: what it holds
 * @prepare_next: where the next PREPARE goes on; under @fork_lock
 * @stripes: NULL in a snapshot, and until somebody maps or writes the region;
 *	set once, under @fork_lock
 * @referenced: granules that it could reach when it was made or restored; the
 *	stripes count from there
 * @forks: made of it
 * @snapshot_faults: page faults, where there are no stripes to count them
 */
struct cowsnap_region {
	struct inode *inode;
	struct cowsnap_family *family;
	u64 id;
	u64 parent_id;
	u64 generation;
	bool readonly;
	bool stopped;
	atomic_t waiting;
	struct mutex fork_lock;
	struct cowsnap_tree tree;
	u64 prepare_next;
	struct cowsnap_stripe *stripes;
	u64 referenced;
	atomic64_t forks;
	atomic64_t snapshot_faults;
};

static inline unsigned int
cowsnap_granule_shift(const struct cowsnap_region *region)
{
	return region->family->account.granule_shift;
}

static inline u64 cowsnap_granule_size(const struct cowsnap_region *region)
{
	return 1ULL << cowsnap_granule_shift(region);
}

static inline unsigned int
cowsnap_granule_pages(const struct cowsnap_region *region)
{
	return 1U << (cowsnap_granule_shift(region) - PAGE_SHIFT);
}

/* The granule that has a page of the region, and which of its pages that is. */
static inline u64 cowsnap_page_index(const struct cowsnap_region *region,
				     u64 pgoff)
{
	return pgoff >> (cowsnap_granule_shift(region) - PAGE_SHIFT);
}

static inline unsigned int
cowsnap_page_in_granule(const struct cowsnap_region *region, u64 pgoff)
{
	return pgoff & (cowsnap_granule_pages(region) - 1);
}

/* The page at @pgoff of the region, whose granule there is @granule. */
static inline struct page *cowsnap_page_at(const struct cowsnap_region *region,
					   struct cowsnap_granule *granule,
					   u64 pgoff)
{
	return cowsnap_granule_page(granule,
				    cowsnap_page_in_granule(region, pgoff));
}

static inline struct cowsnap_stripe *
cowsnap_stripe(struct cowsnap_region *region, u64 index)
{
	return &region->stripes[(index >> COWSNAP_STRIPE_SHIFT) &
				(COWSNAP_STRIPES - 1)];
}

/* The caller has stopped @region, or there is nobody in it to stop. */
static inline void cowsnap_region_assert_stopped(struct cowsnap_region *region)
{
	lockdep_assert_held(&region->fork_lock);
	lockdep_assert(region->stopped || !region->stripes);
}

/* The caller has the stripe of @index, or has stopped @region. */
static inline void cowsnap_stripe_assert_held(struct cowsnap_region *region,
					      u64 index)
{
	lockdep_assert(lockdep_is_held(&cowsnap_stripe(region, index)->lock) ||
		       (region->stopped &&
			lockdep_is_held(&region->fork_lock)));
}

/* ioctl.c */
long cowsnap_device_ioctl(struct file *file, unsigned int cmd, unsigned long arg);
long cowsnap_region_ioctl(struct file *file, unsigned int cmd, unsigned long arg);

/* region.c: the life of a region */
extern const struct file_operations cowsnap_region_fops;

u64 cowsnap_regions(void);
struct file *cowsnap_region_create(const struct cowsnap_create *args);
struct file *cowsnap_region_new(struct cowsnap_family *family, u64 length,
				bool readonly);
int cowsnap_region_activate(struct cowsnap_region *region);
struct cowsnap_stripe *cowsnap_stripe_lock(struct cowsnap_region *region,
					   u64 index);
void cowsnap_region_let_in(struct cowsnap_region *region);
void cowsnap_region_stop(struct cowsnap_region *region);
void cowsnap_region_resume(struct cowsnap_region *region);

/**
 * struct cowsnap_runs - granules, in runs of neighbours
 * @nr: how many runs
 * @run: the first granule of each, and how many they are
 */
struct cowsnap_runs {
	unsigned int nr;
	struct {
		u64 first;
		u64 nr;
	} run[32];
};

/* wrprotect.c */
void cowsnap_region_wrprotect(struct cowsnap_region *region,
			      const struct cowsnap_runs *runs);

/* protect.c: closing granules */
bool cowsnap_region_pinned(struct cowsnap_region *region, u64 index,
			   struct cowsnap_granule *granule);
void cowsnap_region_protect_open(struct cowsnap_region *region);
void cowsnap_region_protect_first(struct cowsnap_region *region);
int cowsnap_region_prepare(struct cowsnap_region *region, u64 budget,
			   u64 *left);

/**
 * struct cowsnap_image - what a region held at one instant
 * @tree: nobody else knows it; what is open in it was copied for it
 * @referenced: granules in it
 * @length: of the region, in bytes
 */
struct cowsnap_image {
	struct cowsnap_tree tree;
	u64 referenced;
	loff_t length;
};

/* image.c */
void cowsnap_region_freeze(struct cowsnap_region *region);
int cowsnap_image_begin(struct cowsnap_image *image,
			struct cowsnap_region *region);
void cowsnap_image_commit(struct cowsnap_image *image,
			  struct cowsnap_region *region);
void cowsnap_image_give(struct cowsnap_image *image,
			struct cowsnap_region *region);
void cowsnap_image_destroy(struct cowsnap_image *image);

/**
 * struct cowsnap_fork_job - one of many forks
 * @parent: the file of the region to be forked
 * @child: out, the file of the new member
 * @readonly: make a snapshot
 */
struct cowsnap_fork_job {
	struct file *parent;
	struct file *child;
	bool readonly;
};

/* fork.c */
struct file *cowsnap_region_fork(struct cowsnap_region *parent, bool readonly);
int cowsnap_fork_many(struct cowsnap_fork_job *jobs, unsigned int nr);

/* restore.c */
int cowsnap_region_restore(struct cowsnap_region *region,
			   struct cowsnap_region *source, u64 *changed);

/* diff.c */
int cowsnap_region_diff(struct cowsnap_region *region,
			struct cowsnap_region *other,
			struct cowsnap_diff *args);

/* stat.c */
int cowsnap_region_stat(struct cowsnap_region *region,
			struct cowsnap_stat *stat);
void cowsnap_region_show_fdinfo(struct seq_file *seq, struct file *file);

/* cow.c: who may write a granule */
void cowsnap_region_zap_pages(struct cowsnap_region *region, u64 pgoff, u64 nr);
void cowsnap_region_zap(struct cowsnap_region *region, u64 index, u64 nr);
void cowsnap_granule_open(struct cowsnap_region *region,
			  struct cowsnap_node *leaf, u64 index);
struct cowsnap_granule *cowsnap_granule_write(struct cowsnap_region *region,
					      u64 index, struct page *held);

/* fault.c */
int cowsnap_fault_module_init(void);
void cowsnap_fault_module_exit(void);
int cowsnap_region_mmap(struct file *file, struct vm_area_struct *vma);

/* space.c */
extern const struct inode_operations cowsnap_region_iops;

int cowsnap_region_clear_tail(struct cowsnap_region *region);
long cowsnap_region_fallocate(struct file *file, int mode, loff_t offset,
			      loff_t length);

/* io.c */
struct page *cowsnap_region_page_get(struct cowsnap_region *region, u64 pgoff);
ssize_t cowsnap_region_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t cowsnap_region_write_iter(struct kiocb *iocb, struct iov_iter *from);
loff_t cowsnap_region_llseek(struct file *file, loff_t offset, int whence);

#endif /* _COWSNAP_H */
