// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life of a region: its inode, its file, its stripes.
 */
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "compat.h"
#include "cowsnap.h"
#include "trace.h"

#define COWSNAP_FS_MAGIC	0x434f5753	/* "COWS" */

static struct vfsmount *region_mnt;
static int region_mnt_pins;
static atomic64_t last_id = ATOMIC64_INIT(0);
static atomic_long_t nr_regions = ATOMIC_LONG_INIT(0);

u64 cowsnap_regions(void)
{
	return atomic_long_read(&nr_regions);
}

static void family_free(struct kref *refs)
{
	kfree(container_of(refs, struct cowsnap_family, refs));
}

static struct cowsnap_family *family_new(const struct cowsnap_create *args)
{
	struct cowsnap_family *family;

	family = kzalloc(sizeof(*family), GFP_KERNEL_ACCOUNT);
	if (!family)
		return NULL;
	kref_init(&family->refs);
	family->account.limit = args->limit;
	family->account.granule_shift = args->granule_shift ?: PAGE_SHIFT;
	strscpy(family->name, args->name, sizeof(family->name));
	/* Here and not for each member: it is a large part of what a fork takes. */
	snprintf(family->title, sizeof(family->title),
		 args->name[0] ? "cowsnap:%s" : "cowsnap", family->name);
	return family;
}

static struct cowsnap_region *region_alloc(struct cowsnap_family *family,
					   bool readonly)
{
	struct cowsnap_region *region;

	region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	if (!region)
		return NULL;
	kref_get(&family->refs);
	region->family = family;
	region->id = atomic64_inc_return(&last_id);
	region->readonly = readonly;
	mutex_init(&region->fork_lock);
	cowsnap_tree_init(&region->tree, &family->account);
	atomic_long_inc(&nr_regions);
	return region;
}

static void region_free(struct cowsnap_region *region)
{
	struct cowsnap_family *family = region->family;
	unsigned int i;

	trace_cowsnap_close(region);
	cowsnap_delay(COWSNAP_DELAY_region_closing);
	cowsnap_tree_destroy(&region->tree);
	if (region->stripes) {
		for (i = 0; i < COWSNAP_STRIPES; i++)
			mutex_destroy(&region->stripes[i].lock);
		kvfree(region->stripes);
	}
	mutex_destroy(&region->fork_lock);
	kfree(region);
	kref_put(&family->refs, family_free);
	atomic_long_dec(&nr_regions);
}

/* The last of what refers to a region is gone: files, VMAs, O_PATH descriptors. */
static void region_evict_inode(struct inode *inode)
{
	struct cowsnap_region *region = inode->i_private;

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (region) {
		region_free(region);
		simple_release_fs(&region_mnt, &region_mnt_pins);
	}
}

static const struct super_operations region_sops = {
	.statfs = simple_statfs,
	.evict_inode = region_evict_inode,
};

static int region_fs_init_context(struct fs_context *fc)
{
	struct pseudo_fs_context *ctx = init_pseudo(fc, COWSNAP_FS_MAGIC);

	if (!ctx)
		return -ENOMEM;
	ctx->ops = &region_sops;
	cowsnap_allow_exec(fc);
	return 0;
}

/*
 * Mounted while there are regions.  The mount pins the module, and the core lets
 * go of it when nothing can call into the module any more: a reference for each
 * file would be dropped too early, before the inode's.
 */
static struct file_system_type region_fs = {
	.owner = THIS_MODULE,
	.name = "cowsnap",
	.init_fs_context = region_fs_init_context,
	.kill_sb = kill_anon_super,
};

/* The inode of a region, which it holds from now on, on a mount that it pins. */
static struct inode *region_inode(struct cowsnap_region *region, u64 length)
{
	struct inode *inode;
	int err;

	err = simple_pin_fs(&region_fs, &region_mnt, &region_mnt_pins);
	if (err)
		return ERR_PTR(err);
	inode = alloc_anon_inode(region_mnt->mnt_sb);
	if (IS_ERR(inode)) {
		simple_release_fs(&region_mnt, &region_mnt_pins);
		return inode;
	}
	cowsnap_make_regular(inode);
	inode->i_op = &cowsnap_region_iops;
	inode->i_private = region;
	i_size_write(inode, length);
	/* As a memfd: nothing names it, so a core dump has it as memory. */
	clear_nlink(inode);
	region->inode = inode;
	return inode;
}

static struct file *region_file(struct cowsnap_region *region)
{
	struct file *file;

	/* alloc_file_pseudo() takes no reference on .owner; fput() drops one. */
	__module_get(THIS_MODULE);
	file = alloc_file_pseudo(region->inode, region_mnt, region->family->title,
				 O_RDWR | O_LARGEFILE, &cowsnap_region_fops);
	if (IS_ERR(file)) {
		module_put(THIS_MODULE);
		return file;
	}
	file->f_mode |= FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE;
	file->private_data = region;
	return file;
}

/**
 * cowsnap_region_new() - make a member of a family that holds nothing
 * @family: the family
 * @length: in bytes
 * @readonly: make a snapshot
 *
 * Return: its file, whose private_data it is, or an ERR_PTR().
 */
struct file *cowsnap_region_new(struct cowsnap_family *family, u64 length,
				bool readonly)
{
	struct cowsnap_region *region;
	struct inode *inode;
	struct file *file;

	region = region_alloc(family, readonly);
	if (!region)
		return ERR_PTR(-ENOMEM);
	inode = region_inode(region, length);
	if (IS_ERR(inode)) {
		region_free(region);
		return ERR_CAST(inode);
	}
	file = region_file(region);
	if (IS_ERR(file)) {
		/* The inode lets go of its own pin before it is quite gone. */
		struct vfsmount *mnt = mntget(region_mnt);

		iput(inode);
		mntput(mnt);
	}
	return file;
}

/**
 * cowsnap_region_create() - make a region, the first of a family
 * @args: from the user, checked
 *
 * Return: its file or an ERR_PTR().
 */
struct file *cowsnap_region_create(const struct cowsnap_create *args)
{
	struct cowsnap_family *family = family_new(args);
	struct file *file;

	if (!family)
		return ERR_PTR(-ENOMEM);
	file = cowsnap_region_new(family, args->length, false);
	if (!IS_ERR(file))
		family->id = ((struct cowsnap_region *)file->private_data)->id;
	kref_put(&family->refs, family_free);
	return file;
}

/**
 * cowsnap_region_activate() - make a region ready to be read and written
 * @region: the region
 *
 * Snapshots need no stripes, and many forks are never used.
 *
 * Return: 0 or -ENOMEM.
 */
int cowsnap_region_activate(struct cowsnap_region *region)
{
	struct cowsnap_stripe *stripes;
	unsigned int i;

	/* Pairs with the store below: whoever sees the stripes may use them. */
	if (region->readonly || smp_load_acquire(&region->stripes))
		return 0;
	stripes = kvcalloc(COWSNAP_STRIPES, sizeof(*stripes),
			   GFP_KERNEL_ACCOUNT);
	if (!stripes)
		return -ENOMEM;
	for (i = 0; i < COWSNAP_STRIPES; i++)
		mutex_init(&stripes[i].lock);

	cowsnap_delay(COWSNAP_DELAY_stripes_made);
	/* A fork that found none has to end before there are any. */
	mutex_lock(&region->fork_lock);
	if (!region->stripes) {
		/* Pairs with the load above. */
		smp_store_release(&region->stripes, stripes);
		stripes = NULL;
	}
	mutex_unlock(&region->fork_lock);
	kvfree(stripes);
	return 0;
}

/* The region is stopped, or was a moment ago. */
static noinline void wait_for_stripe(struct cowsnap_region *region,
				     struct cowsnap_stripe *stripe)
{
	atomic_inc(&region->waiting);
	do {
		mutex_unlock(&stripe->lock);
		might_lock(&region->fork_lock);
		wait_var_event(&region->stopped, !READ_ONCE(region->stopped));
		mutex_lock(&stripe->lock);
		/* As in cowsnap_stripe_lock(). */
	} while (smp_load_acquire(&region->stopped));
	if (atomic_dec_and_test(&region->waiting))
		wake_up_var(&region->waiting);
}

/**
 * cowsnap_stripe_lock() - lock the stripe of an index
 * @region: the region, activated; not stopped by the caller
 * @index: the granule
 *
 * Return: the stripe; mutex_unlock() its lock.
 */
struct cowsnap_stripe *cowsnap_stripe_lock(struct cowsnap_region *region,
					   u64 index)
{
	struct cowsnap_stripe *stripe = cowsnap_stripe(region, index);

	mutex_lock(&stripe->lock);
	cowsnap_delay(COWSNAP_DELAY_stripe_locked);
	/* Pairs with cowsnap_region_resume(). */
	if (unlikely(smp_load_acquire(&region->stopped)))
		wait_for_stripe(region, stripe);
	return stripe;
}

/**
 * cowsnap_region_let_in() - let those go first who had to wait the last time
 * @region: its fork_lock is held; not stopped
 *
 * Or forks that come in a row would leave nobody else the time to get in.
 */
void cowsnap_region_let_in(struct cowsnap_region *region)
{
	lockdep_assert_held(&region->fork_lock);
	lockdep_assert(!region->stopped);
	wait_var_event(&region->waiting, !atomic_read(&region->waiting));
}

/**
 * cowsnap_region_stop() - stop whoever could change what a region holds
 * @region: its fork_lock is held, until it is resumed
 *
 * When it returns nobody is in a stripe, or gets into one, and so the contents and
 * the mappings change through the caller alone.  Who comes waits.  Regions without
 * stripes have nobody who could.
 */
void cowsnap_region_stop(struct cowsnap_region *region)
{
	unsigned int i;

	lockdep_assert_held(&region->fork_lock);
	lockdep_assert(!region->stopped);
	if (!region->stripes)
		return;
	WRITE_ONCE(region->stopped, true);
	cowsnap_delay(COWSNAP_DELAY_stop_flagged);
	for (i = 0; i < COWSNAP_STRIPES; i++) {
		/* Who is in leaves; who takes it after this sees the flag. */
		mutex_lock(&region->stripes[i].lock);
		mutex_unlock(&region->stripes[i].lock);
	}
}

void cowsnap_region_resume(struct cowsnap_region *region)
{
	cowsnap_region_assert_stopped(region);
	if (!region->stripes)
		return;
	/* Pairs with cowsnap_stripe_lock(): who gets in sees what was done. */
	smp_store_release(&region->stopped, false);
	/* Between that and the look at who waits. */
	smp_mb();
	wake_up_var(&region->stopped);
}

const struct file_operations cowsnap_region_fops = {
	.owner = THIS_MODULE,
	.llseek = cowsnap_region_llseek,
	.read_iter = cowsnap_region_read_iter,
	.write_iter = cowsnap_region_write_iter,
	.splice_read = cowsnap_splice_read,
	.splice_write = iter_file_splice_write,
	.fsync = noop_fsync,
	.fallocate = cowsnap_region_fallocate,
	.mmap = cowsnap_region_mmap,
	.get_unmapped_area = thp_get_unmapped_area,
	.unlocked_ioctl = cowsnap_region_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.show_fdinfo = cowsnap_region_show_fdinfo,
};
