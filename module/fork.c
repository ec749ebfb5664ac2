// SPDX-License-Identifier: GPL-2.0-only
/*
 * FORK.  cow.c has the argument for why its result is what the region held at
 * one instant.
 */
#include <linux/file.h>

#include "cowsnap.h"

/* Takes what is open out of all mappings. */
static void zap_open(struct cowsnap_region *region)
{
	u64 first = 0;
	u64 nr = U64_MAX;

	/* Entries are made under a stripe, in VMAs that are linked before. */
	if (!mapping_mapped(region->inode->i_mapping))
		return;
	while (cowsnap_tree_next_open(&region->tree, &first, &nr)) {
		cowsnap_region_zap(region, first, nr);
		first += nr;
		nr = U64_MAX;
	}
}

/* Gives @child a granule of its own in place of one that it shares. */
static int copy_for_child(struct cowsnap_region *parent,
			  struct cowsnap_tree *child, u64 index,
			  struct cowsnap_granule *granule)
{
	struct cowsnap_granule *copy;
	struct cowsnap_node *leaf;

	copy = cowsnap_granule_alloc(parent, granule);
	if (IS_ERR(copy))
		return PTR_ERR(copy);
	leaf = cowsnap_tree_own(child, index);
	if (!leaf) {
		cowsnap_granule_release(parent, copy);
		return -ENOMEM;
	}
	/* The parent's leaf still points to it: the child's was one more. */
	cowsnap_granule_release(parent, cowsnap_leaf_store(leaf, index, copy));
	cowsnap_tree_open(child, leaf, index);
	return 0;
}

static int copy_pinned(struct cowsnap_region *parent,
		       struct cowsnap_tree *child)
{
	u64 first = 0;
	u64 nr = 1;

	for (; cowsnap_tree_next_open(&parent->tree, &first, &nr); first++) {
		struct cowsnap_granule *granule;
		int err;

		granule = cowsnap_tree_lookup(&parent->tree, first);
		if (!cowsnap_granule_pinned(granule))
			continue;
		err = copy_for_child(parent, child, first, granule);
		if (err)
			return err;
	}
	return 0;
}

/*
 * What was copied for the child may be written through the parent still, so it
 * is open there from the start.  Needs no memory: all nodes on the path were the
 * parent's own before the fork, and the child has copied them.
 */
static void keep_pinned(struct cowsnap_region *parent,
			struct cowsnap_tree *child)
{
	u64 first = 0;
	u64 nr = 1;

	for (; cowsnap_tree_next_open(child, &first, &nr); first++) {
		struct cowsnap_counts *counts;
		struct cowsnap_node *leaf;

		leaf = cowsnap_tree_own(&parent->tree, first);
		if (WARN_ON_ONCE(!leaf))
			continue;
		cowsnap_leaf_set_dirty(leaf, first);
		cowsnap_tree_open(&parent->tree, leaf, first);
		counts = &cowsnap_stripe(parent, first)->counts;
		counts->dirty++;
		counts->open++;
		counts->copies++;
	}
}

/**
 * cowsnap_image_take() - take what a region holds at one instant
 * @image: to be made; cowsnap_image_destroy() lets go of it
 * @region: its fork_lock and all of its stripes are held
 *
 * Return: 0, -ENOSPC, -ENOMEM or -EHWPOISON; then there is no image, and nothing
 * has changed.
 */
int cowsnap_image_take(struct cowsnap_image *image,
		       struct cowsnap_region *region)
{
	unsigned int i;
	int err;

	/* A region without stripes has not changed since it was made. */
	if (region->stripes) {
		zap_open(region);
		/* get_user_pages_fast() counts, and then looks for the entry. */
		smp_mb();
	}
	cowsnap_tree_init(&image->tree, &region->family->account);
	cowsnap_tree_share(&image->tree, &region->tree);
	image->referenced = region->referenced;
	image->length = i_size_read(region->inode);
	if (!region->stripes)
		return 0;

	err = copy_pinned(region, &image->tree);
	if (err) {
		cowsnap_image_destroy(image);
		return err;
	}
	cowsnap_tree_seal(&region->tree);
	for (i = 0; i < COWSNAP_STRIPES; i++) {
		struct cowsnap_counts *counts = &region->stripes[i].counts;

		image->referenced += counts->referenced;
		counts->dirty = 0;
		counts->open = 0;
	}
	keep_pinned(region, &image->tree);
	return 0;
}

void cowsnap_image_destroy(struct cowsnap_image *image)
{
	cowsnap_tree_destroy(&image->tree);
}

/* Gives a region that holds nothing what the image has. */
static void image_give(struct cowsnap_image *image,
		       struct cowsnap_region *region)
{
	cowsnap_tree_share(&region->tree, &image->tree);
	region->referenced = image->referenced;
	i_size_write(region->inode, image->length);
}

/**
 * cowsnap_region_fork() - make a region that holds what another holds now
 * @parent: the other
 * @readonly: make a snapshot
 *
 * Return: the new member's file; ERR_PTR(-ENOSPC) over a limit,
 * ERR_PTR(-ERESTARTSYS) for a signal, ERR_PTR(-EHWPOISON), or what allocation
 * failed with.  On error @parent holds what it held.
 */
struct file *cowsnap_region_fork(struct cowsnap_region *parent, bool readonly)
{
	struct cowsnap_region *child;
	struct cowsnap_image image;
	struct file *file;
	int err;

	if (cowsnap_account_over(&parent->family->account))
		return ERR_PTR(-ENOSPC);
	file = cowsnap_region_new(parent->family, 0, readonly);
	if (IS_ERR(file))
		return file;
	child = file->private_data;
	child->parent_id = parent->id;
	child->generation = parent->generation + 1;

	err = -ERESTARTSYS;
	if (mutex_lock_interruptible(&parent->fork_lock))
		goto err_put_file;
	cowsnap_region_lock_all(parent);
	cowsnap_region_protect_first(parent);
	err = cowsnap_image_take(&image, parent);
	cowsnap_region_unlock_all(parent);
	mutex_unlock(&parent->fork_lock);
	if (err)
		goto err_put_file;
	image_give(&image, child);
	cowsnap_image_destroy(&image);
	return file;

err_put_file:
	fput(file);
	return ERR_PTR(err);
}
