// SPDX-License-Identifier: GPL-2.0-only
/*
 * FORK and FORK_MANY: new members of a family, of images of others.
 */
#include <linux/bsearch.h>
#include <linux/file.h>
#include <linux/sort.h>

#include "cowsnap.h"
#include "trace.h"

/* A member to be, which holds nothing yet. */
static struct file *new_child(struct cowsnap_region *parent, bool readonly)
{
	struct cowsnap_region *child;
	struct file *file;

	if (cowsnap_account_over(&parent->family->account))
		return ERR_PTR(-ENOSPC);
	file = cowsnap_region_new(parent->family, 0, readonly);
	if (IS_ERR(file))
		return file;
	child = file->private_data;
	child->parent_id = parent->id;
	child->generation = parent->generation + 1;
	return file;
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
	struct cowsnap_image image;
	struct file *file;
	int err;

	file = new_child(parent, readonly);
	if (IS_ERR(file))
		return file;
	if (mutex_lock_interruptible(&parent->fork_lock)) {
		fput(file);
		return ERR_PTR(-ERESTARTSYS);
	}
	cowsnap_region_protect_first(parent);
	cowsnap_region_freeze(parent);
	err = cowsnap_image_begin(&image, parent);
	if (!err)
		cowsnap_image_commit(&image, parent);
	cowsnap_region_resume(parent);
	mutex_unlock(&parent->fork_lock);
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}
	cowsnap_delay(COWSNAP_DELAY_image_committed);
	cowsnap_image_give(&image, file->private_data);
	cowsnap_image_destroy(&image);
	trace_cowsnap_fork(parent, file->private_data);
	return file;
}

/**
 * struct many - the regions that one FORK_MANY forks, each once
 * @lock: nobody else has it: what to tell lockdep that many locks of one class are
 *	taken under, whose order is seen to
 * @nr: how many
 * @one: by their ids, which is the order to lock them in
 */
struct many {
	struct mutex lock;
	unsigned int nr;
	struct one {
		struct cowsnap_region *region;
		struct cowsnap_image image;
	} one[];
};

static int compare_ids(const void *a, const void *b)
{
	u64 x = ((const struct one *)a)->region->id;
	u64 y = ((const struct one *)b)->region->id;

	return x < y ? -1 : x > y;
}

static struct many *many_of(const struct cowsnap_fork_job *jobs,
			    unsigned int nr)
{
	struct many *many;
	unsigned int i;

	many = kvzalloc(struct_size(many, one, nr), GFP_KERNEL_ACCOUNT);
	if (!many)
		return NULL;
	mutex_init(&many->lock);
	for (i = 0; i < nr; i++)
		many->one[i].region = jobs[i].parent->private_data;
	sort(many->one, nr, sizeof(many->one[0]), compare_ids, NULL);
	for (i = 0; i < nr; i++) {
		if (!i || many->one[many->nr - 1].region != many->one[i].region)
			many->one[many->nr++].region = many->one[i].region;
	}
	return many;
}

static void lock_many(struct many *many)
{
	unsigned int i;

	mutex_lock(&many->lock);
	for (i = 0; i < many->nr; i++)
		mutex_lock_nest_lock(&many->one[i].region->fork_lock,
				     &many->lock);
}

static void unlock_many(struct many *many)
{
	unsigned int i;

	for (i = 0; i < many->nr; i++)
		mutex_unlock(&many->one[i].region->fork_lock);
	mutex_unlock(&many->lock);
}

/*
 * Takes the images of all, or none.  The instant is when the last of them is frozen:
 * from then on until the first is resumed nobody can store to any.  Not before is
 * it looked for pins: what was written through one before a store to a region that
 * is not frozen yet has to be in its image, as that store is.
 */
static int take_many(struct many *many)
{
	unsigned int begun = 0;
	unsigned int i;
	int err = 0;

	for (i = 0; i < many->nr; i++)
		cowsnap_region_protect_first(many->one[i].region);
	for (i = 0; i < many->nr; i++) {
		cowsnap_region_freeze(many->one[i].region);
		cowsnap_delay(COWSNAP_DELAY_one_frozen);
	}
	while (begun < many->nr) {
		struct one *one = &many->one[begun];

		err = cowsnap_image_begin(&one->image, one->region);
		if (err)
			break;
		begun++;
	}
	for (i = 0; i < begun; i++) {
		struct one *one = &many->one[i];

		if (err)
			cowsnap_image_destroy(&one->image);
		else
			cowsnap_image_commit(&one->image, one->region);
	}
	for (i = 0; i < many->nr; i++)
		cowsnap_region_resume(many->one[i].region);
	return err;
}

/* Gives each child the image of its parent, and lets go of the images. */
static void give_many(struct many *many, struct cowsnap_fork_job *jobs,
		      unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		struct cowsnap_region *child = jobs[i].child->private_data;
		struct one key = { .region = jobs[i].parent->private_data };
		struct one *one = bsearch(&key, many->one, many->nr,
					  sizeof(key), compare_ids);

		cowsnap_image_give(&one->image, child);
		trace_cowsnap_fork(key.region, child);
	}
	for (i = 0; i < many->nr; i++)
		cowsnap_image_destroy(&many->one[i].image);
}

/**
 * cowsnap_fork_many() - fork regions, all at one instant
 * @jobs: what to fork; the same region may stand in several
 * @nr: how many jobs there are
 *
 * Return: 0; as cowsnap_region_fork(), but not for a signal; then no child is
 * there.
 */
int cowsnap_fork_many(struct cowsnap_fork_job *jobs, unsigned int nr)
{
	struct many *many = many_of(jobs, nr);
	unsigned int made = 0;
	int err = 0;

	if (!many)
		return -ENOMEM;
	for (; made < nr; made++) {
		struct file *child = new_child(jobs[made].parent->private_data,
					       jobs[made].readonly);

		if (IS_ERR(child)) {
			err = PTR_ERR(child);
			break;
		}
		jobs[made].child = child;
	}
	if (!err) {
		lock_many(many);
		err = take_many(many);
		unlock_many(many);
	}
	if (!err)
		give_many(many, jobs, nr);
	while (err && made) {
		fput(jobs[--made].child);
		jobs[made].child = NULL;
	}
	mutex_destroy(&many->lock);
	kvfree(many);
	return err;
}
