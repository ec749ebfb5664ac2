// SPDX-License-Identifier: GPL-2.0-only
/*
 * The image: what a region holds at one instant.  cow.c has the argument for why
 * it is.
 */
#include "cowsnap.h"
#include "trace.h"

/**
 * cowsnap_region_freeze() - let nobody store to a region
 * @region: its fork_lock is held, until it is resumed
 *
 * Stops it and takes away what could be written without a fault.  What remains are
 * pins, which an image sees to.
 */
void cowsnap_region_freeze(struct cowsnap_region *region)
{
	cowsnap_region_stop(region);
	/* A region without stripes has not changed since it was made. */
	if (!region->stripes)
		return;
	cowsnap_region_protect_open(region);
	cowsnap_delay(COWSNAP_DELAY_frozen);
}

/* Gives @child a granule of its own in place of one that it shares. */
static int copy_for_child(struct cowsnap_region *parent,
			  struct cowsnap_tree *child, u64 index,
			  struct cowsnap_granule *granule)
{
	struct cowsnap_account *account = &parent->family->account;
	struct cowsnap_granule *copy;
	struct cowsnap_node *leaf;

	copy = cowsnap_granule_alloc(account, granule);
	if (IS_ERR(copy))
		return PTR_ERR(copy);
	leaf = cowsnap_tree_own(child, index);
	if (!leaf) {
		cowsnap_granule_release(account, copy);
		return -ENOMEM;
	}
	/* The parent's leaf still points to it: the child's was one more. */
	cowsnap_granule_release(account,
				cowsnap_leaf_store(leaf, index, copy));
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
		if (!cowsnap_region_pinned(parent, first, granule))
			continue;
		cowsnap_delay(COWSNAP_DELAY_pin_found);
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
		struct cowsnap_node *leaf;

		leaf = cowsnap_tree_own(&parent->tree, first);
		if (WARN_ON_ONCE(!leaf))
			continue;
		cowsnap_granule_open(parent, leaf, first);
		cowsnap_stripe(parent, first)->counts.copies++;
		trace_cowsnap_copy(parent, first, true);
	}
}

/**
 * cowsnap_image_begin() - take what a region holds
 * @image: to be made
 * @region: frozen, and stays so until the image is committed, or destroyed
 *
 * Return: 0, -ENOSPC, -ENOMEM or -EHWPOISON; then there is no image, and nothing
 * has changed.
 */
int cowsnap_image_begin(struct cowsnap_image *image,
			struct cowsnap_region *region)
{
	unsigned int i;
	int err;

	cowsnap_region_assert_stopped(region);
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
	for (i = 0; i < COWSNAP_STRIPES; i++)
		image->referenced += region->stripes[i].counts.referenced;
	cowsnap_delay(COWSNAP_DELAY_image_begun);
	return 0;
}

/**
 * cowsnap_image_commit() - make a fork of the taking; cannot fail
 * @image: begun
 * @region: the one that it was taken of
 */
void cowsnap_image_commit(struct cowsnap_image *image,
			  struct cowsnap_region *region)
{
	unsigned int i;

	cowsnap_region_assert_stopped(region);
	if (!region->stripes)
		return;
	cowsnap_tree_seal(&region->tree);
	cowsnap_delay(COWSNAP_DELAY_image_sealed);
	for (i = 0; i < COWSNAP_STRIPES; i++) {
		region->stripes[i].counts.dirty = 0;
		region->stripes[i].counts.open = 0;
	}
	keep_pinned(region, &image->tree);
}

/**
 * cowsnap_image_give() - give a region what an image has
 * @image: committed
 * @region: holds nothing, and nobody else knows it
 */
void cowsnap_image_give(struct cowsnap_image *image,
			struct cowsnap_region *region)
{
	cowsnap_tree_share(&region->tree, &image->tree);
	region->referenced = image->referenced;
	i_size_write(region->inode, image->length);
}

/**
 * cowsnap_image_destroy() - let go of an image, and take the taking back
 * @image: begun or committed; what it was taken of need not be frozen when it was
 *	committed
 */
void cowsnap_image_destroy(struct cowsnap_image *image)
{
	cowsnap_tree_destroy(&image->tree);
}
