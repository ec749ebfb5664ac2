// SPDX-License-Identifier: GPL-2.0-only
/*
 * FORK.  cow.c has the argument for why its result is what the region held at
 * one instant.
 */
#include <linux/file.h>

#include "cowsnap.h"

/* Takes out of all mappings what may be written through them. */
static void zap_dirty(struct cowsnap_region *region)
{
	u64 first = 0;
	u64 nr;

	/* Entries are made under a stripe, in VMAs that are linked before. */
	if (!mapping_mapped(region->inode->i_mapping))
		return;
	while (cowsnap_tree_next_dirty(&region->tree, &first, &nr)) {
		cowsnap_region_zap(region, first, nr);
		first += nr;
	}
}

/*
 * Gives @child a copy of its own of @granule if somebody may write that one
 * through a reference that is not a mapping.  The count is exact: the granule is
 * in one leaf, and no mapping is left.  Who only reads it, for a moment, costs a
 * copy that was not needed.
 */
static int copy_if_pinned(struct cowsnap_region *parent,
			  struct cowsnap_tree *child, u64 index,
			  struct cowsnap_granule *granule)
{
	struct cowsnap_granule *copy;
	struct cowsnap_node *leaf;

	if (page_ref_count(cowsnap_granule_page(granule)) == 1)
		return 0;
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
	cowsnap_leaf_set_dirty(leaf, index);
	return 0;
}

static int copy_pinned(struct cowsnap_region *parent,
		       struct cowsnap_tree *child)
{
	u64 first = 0;
	u64 nr;

	while (cowsnap_tree_next_dirty(&parent->tree, &first, &nr)) {
		for (; nr; nr--, first++) {
			struct cowsnap_granule *granule;
			int err;

			granule = cowsnap_tree_lookup(&parent->tree, first);
			err = copy_if_pinned(parent, child, first, granule);
			if (err)
				return err;
		}
	}
	return 0;
}

/*
 * What was copied for the child may be written through the parent still, so it
 * is dirty there from the start.  Needs no memory: all nodes on the path were the
 * parent's own before the fork, and the child has copied them.
 */
static void keep_pinned(struct cowsnap_region *parent,
			struct cowsnap_tree *child)
{
	u64 first = 0;
	u64 nr;

	while (cowsnap_tree_next_dirty(child, &first, &nr)) {
		for (; nr; nr--, first++) {
			struct cowsnap_stripe *stripe;
			struct cowsnap_node *leaf;

			leaf = cowsnap_tree_own(&parent->tree, first);
			if (WARN_ON_ONCE(!leaf))
				continue;
			cowsnap_leaf_set_dirty(leaf, first);
			stripe = cowsnap_stripe(parent, first);
			stripe->counts.dirty++;
			stripe->counts.copies++;
		}
	}
}

/* A region without stripes has not changed since it was forked itself. */
static void fork_unchanged(struct cowsnap_region *parent,
			   struct cowsnap_region *child)
{
	cowsnap_tree_share(&child->tree, &parent->tree);
	child->referenced = parent->referenced;
	i_size_write(child->inode, i_size_read(parent->inode));
}

/* The part of a fork for which the writers wait. */
static int fork_stopped(struct cowsnap_region *parent,
			struct cowsnap_region *child)
{
	unsigned int i;
	int err;

	zap_dirty(parent);
	/* get_user_pages_fast() counts first and then looks for the entry. */
	smp_mb();
	fork_unchanged(parent, child);
	err = copy_pinned(parent, &child->tree);
	if (err)
		return err;

	cowsnap_tree_seal(&parent->tree);
	for (i = 0; i < COWSNAP_STRIPES; i++) {
		child->referenced += parent->stripes[i].counts.referenced;
		parent->stripes[i].counts.dirty = 0;
	}
	keep_pinned(parent, &child->tree);
	/* Nothing maps the copies: they are the child's as if it had forked. */
	cowsnap_tree_seal(&child->tree);
	return 0;
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
	struct file *file;
	int err = 0;

	if (cowsnap_account_over(&parent->family->account))
		return ERR_PTR(-ENOSPC);
	file = cowsnap_region_new(parent->family, 0, readonly);
	if (IS_ERR(file))
		return file;
	child = file->private_data;
	child->parent_id = parent->id;
	child->generation = parent->generation + 1;

	err = mutex_lock_interruptible(&parent->fork_lock);
	if (err) {
		err = -ERESTARTSYS;
		goto err_put_file;
	}
	if (parent->stripes) {
		cowsnap_region_lock_all(parent);
		err = fork_stopped(parent, child);
		cowsnap_region_unlock_all(parent);
	} else {
		fork_unchanged(parent, child);
	}
	mutex_unlock(&parent->fork_lock);
	if (err)
		goto err_put_file;
	return file;

err_put_file:
	fput(file);
	return ERR_PTR(err);
}
