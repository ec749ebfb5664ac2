// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ioctls: what the user gives is checked here, and nowhere else.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "cowsnap.h"

/* What the uapi header promises: the same layout everywhere, and no padding. */
static_assert(sizeof(struct cowsnap_query) == 64);
static_assert(sizeof(struct cowsnap_create) == 64);
static_assert(sizeof(struct cowsnap_fork) == 16);
static_assert(sizeof(struct cowsnap_fork_many) == 24);
static_assert(sizeof(struct cowsnap_fork_entry) == 16);
static_assert(sizeof(struct cowsnap_stat) == 128);
static_assert(sizeof(struct cowsnap_prepare) == 24);
static_assert(sizeof(struct cowsnap_restore) == 24);
static_assert(sizeof(struct cowsnap_diff) == 48);
static_assert(sizeof(struct cowsnap_range) == 24);

/**
 * struct ioctl_op - how an ioctl's argument is brought in and where it goes
 * @cmd: its number
 * @size: of its struct today
 * @min_size: of its struct when it was first published
 * @reserved: offset of a __u32 that must be 0, 0 for none
 * @flags: the flags it knows
 * @execute: does it; the struct it gets is zeroed beyond what the user gave
 */
struct ioctl_op {
	unsigned int cmd;
	u32 size;
	u32 min_size;
	u32 reserved;
	u32 flags;
	long (*execute)(struct file *file, void *arg, void __user *uarg);
};

union ioctl_arg {
	struct {
		u32 size;
		u32 flags;
	};
	struct cowsnap_query query;
	struct cowsnap_create create;
	struct cowsnap_fork fork;
	struct cowsnap_fork_many fork_many;
	struct cowsnap_stat stat;
	struct cowsnap_prepare prepare;
	struct cowsnap_restore restore;
	struct cowsnap_diff diff;
};

/* Writes back as much of a struct as the user has room for. */
static int copy_out(void __user *uarg, const void *arg, size_t size)
{
	u32 usize = *(const u32 *)arg;

	return copy_to_user(uarg, arg, min_t(size_t, usize, size)) ?
	       -EFAULT : 0;
}

/*
 * Gives the user a descriptor for @file in @fd, a member of @arg, and consumes
 * the reference to @file.  The descriptor is installed last: when the result
 * cannot be written, nobody ever saw it.
 */
static int return_fd(struct file *file, s32 *fd, void __user *uarg,
		     const void *arg, size_t size)
{
	int err;

	*fd = get_unused_fd_flags(O_CLOEXEC);
	if (*fd < 0) {
		fput(file);
		return *fd;
	}
	err = copy_out(uarg, arg, size);
	if (err) {
		put_unused_fd(*fd);
		fput(file);
		return err;
	}
	fd_install(*fd, file);
	return 0;
}

static long ioctl_query(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_query *query = arg;

	query->abi_version = COWSNAP_ABI_VERSION;
	query->granule_shift_min = PAGE_SHIFT;
	query->granule_shift_max = COWSNAP_GRANULE_SHIFT_MAX;
	query->features = 0;
	query->max_bytes = cowsnap_account_max_bytes();
	query->held_bytes = cowsnap_account_held_bytes();
	query->regions = cowsnap_regions();
	query->nodes = cowsnap_tree_nodes();
	return copy_out(uarg, query, sizeof(*query));
}

static long ioctl_create(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_create *create = arg;
	struct file *region;

	if (create->length > MAX_LFS_FILESIZE ||
	    (create->granule_shift &&
	     (create->granule_shift < PAGE_SHIFT ||
	      create->granule_shift > COWSNAP_GRANULE_SHIFT_MAX)) ||
	    !memchr(create->name, 0, sizeof(create->name)))
		return -EINVAL;
	region = cowsnap_region_create(create);
	if (IS_ERR(region))
		return PTR_ERR(region);
	return return_fd(region, &create->fd, uarg, create, sizeof(*create));
}

static long ioctl_fork(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_region *region = file->private_data;
	struct cowsnap_fork *fork = arg;
	struct file *child;
	long ret;

	child = cowsnap_region_fork(region,
				    fork->flags & COWSNAP_FORK_F_READONLY);
	if (IS_ERR(child))
		return PTR_ERR(child);
	ret = return_fd(child, &fork->fd, uarg, fork, sizeof(*fork));
	if (!ret)
		atomic64_inc(&region->forks);
	return ret;
}

/* The file of another region; ERR_PTR(-EBADF), or -EINVAL for any other file. */
static struct file *get_region_file(s32 fd)
{
	struct file *file = fget(fd);

	if (!file)
		return ERR_PTR(-EBADF);
	if (file->f_op != &cowsnap_region_fops) {
		fput(file);
		return ERR_PTR(-EINVAL);
	}
	return file;
}

/* What a FORK_MANY is made of; each is given back in reverse. */
struct fork_many {
	unsigned int nr;
	struct cowsnap_fork_entry *entries;
	struct cowsnap_fork_job *jobs;
};

static int get_parents(struct fork_many *many)
{
	unsigned int i;

	for (i = 0; i < many->nr; i++) {
		struct cowsnap_fork_entry *entry = &many->entries[i];

		if ((entry->flags & ~COWSNAP_FORK_F_READONLY) ||
		    entry->__reserved)
			return -EINVAL;
	}
	for (i = 0; i < many->nr; i++) {
		struct cowsnap_fork_entry *entry = &many->entries[i];
		struct file *parent = get_region_file(entry->region_fd);

		if (IS_ERR(parent))
			return PTR_ERR(parent);
		many->jobs[i].parent = parent;
		many->jobs[i].readonly = entry->flags & COWSNAP_FORK_F_READONLY;
	}
	return 0;
}

static void put_parents(struct fork_many *many)
{
	unsigned int i;

	for (i = 0; i < many->nr && many->jobs[i].parent; i++)
		fput(many->jobs[i].parent);
}

/* As return_fd(): descriptors for all, and the references consumed. */
static int return_fds(struct fork_many *many, void __user *uentries)
{
	unsigned int reserved;
	unsigned int i;
	int err = 0;

	for (reserved = 0; reserved < many->nr; reserved++) {
		err = get_unused_fd_flags(O_CLOEXEC);
		if (err < 0)
			break;
		many->entries[reserved].fd = err;
		err = 0;
	}
	if (!err && copy_to_user(uentries, many->entries,
				 array_size(many->nr, sizeof(*many->entries))))
		err = -EFAULT;
	for (i = 0; i < many->nr; i++) {
		struct cowsnap_region *parent = many->jobs[i].parent->private_data;

		if (!err) {
			fd_install(many->entries[i].fd, many->jobs[i].child);
			atomic64_inc(&parent->forks);
			continue;
		}
		if (i < reserved)
			put_unused_fd(many->entries[i].fd);
		fput(many->jobs[i].child);
	}
	return err;
}

static long ioctl_fork_many(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_fork_many *args = arg;
	void __user *uentries = u64_to_user_ptr(args->entries);
	struct fork_many many = { .nr = args->count };
	long ret;

	if (!args->count || args->count > COWSNAP_FORK_MANY_MAX)
		return -EINVAL;
	many.entries = vmemdup_user(uentries,
				    array_size(many.nr, sizeof(*many.entries)));
	if (IS_ERR(many.entries))
		return PTR_ERR(many.entries);
	many.jobs = kvcalloc(many.nr, sizeof(*many.jobs), GFP_KERNEL_ACCOUNT);
	if (!many.jobs) {
		kvfree(many.entries);
		return -ENOMEM;
	}
	ret = get_parents(&many);
	if (!ret)
		ret = cowsnap_fork_many(many.jobs, many.nr);
	if (!ret)
		ret = return_fds(&many, uentries);
	put_parents(&many);
	kvfree(many.jobs);
	kvfree(many.entries);
	return ret;
}

static long ioctl_stat(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_stat *stat = arg;
	int err;

	err = cowsnap_region_stat(file->private_data, stat);
	return err ?: copy_out(uarg, stat, sizeof(*stat));
}

static long ioctl_restore(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_restore *restore = arg;
	struct file *source;
	long ret;

	/* What cannot be told must not be done. */
	if (copy_out(uarg, restore, sizeof(*restore)))
		return -EFAULT;
	source = get_region_file(restore->src_fd);
	if (IS_ERR(source))
		return PTR_ERR(source);
	ret = cowsnap_region_restore(file->private_data, source->private_data,
				     &restore->changed);
	fput(source);
	return ret ?: copy_out(uarg, restore, sizeof(*restore));
}

static long ioctl_diff(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_diff *diff = arg;
	struct file *other;
	long ret;

	if (!diff->count || diff->count > COWSNAP_DIFF_MAX ||
	    diff->end <= diff->start || diff->end > MAX_LFS_FILESIZE)
		return -EINVAL;
	other = get_region_file(diff->other_fd);
	if (IS_ERR(other))
		return PTR_ERR(other);
	ret = cowsnap_region_diff(file->private_data, other->private_data,
				  diff);
	fput(other);
	return ret ?: copy_out(uarg, diff, sizeof(*diff));
}

static long ioctl_prepare(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_prepare *prepare = arg;
	int err;

	err = cowsnap_region_prepare(file->private_data, prepare->budget,
				     &prepare->left);
	return err ?: copy_out(uarg, prepare, sizeof(*prepare));
}

static const struct ioctl_op device_ops[] = {
	{
		.cmd = COWSNAP_IOC_QUERY,
		.size = sizeof(struct cowsnap_query),
		.min_size = offsetofend(struct cowsnap_query, nodes),
		.reserved = offsetof(struct cowsnap_query, __reserved),
		.execute = ioctl_query,
	}, {
		.cmd = COWSNAP_IOC_CREATE,
		.size = sizeof(struct cowsnap_create),
		.min_size = offsetofend(struct cowsnap_create, name),
		.execute = ioctl_create,
	}, {
		.cmd = COWSNAP_IOC_FORK_MANY,
		.size = sizeof(struct cowsnap_fork_many),
		.min_size = offsetofend(struct cowsnap_fork_many, entries),
		.reserved = offsetof(struct cowsnap_fork_many, __reserved),
		.execute = ioctl_fork_many,
	}
};

static const struct ioctl_op region_ops[] = {
	{
		.cmd = COWSNAP_IOC_FORK,
		.size = sizeof(struct cowsnap_fork),
		.min_size = offsetofend(struct cowsnap_fork, __reserved),
		.reserved = offsetof(struct cowsnap_fork, __reserved),
		.flags = COWSNAP_FORK_F_READONLY,
		.execute = ioctl_fork,
	}, {
		.cmd = COWSNAP_IOC_STAT,
		.size = sizeof(struct cowsnap_stat),
		.min_size = offsetofend(struct cowsnap_stat, bytes_copied),
		.execute = ioctl_stat,
	}, {
		.cmd = COWSNAP_IOC_RESTORE,
		.size = sizeof(struct cowsnap_restore),
		.min_size = offsetofend(struct cowsnap_restore, changed),
		.reserved = offsetof(struct cowsnap_restore, __reserved),
		.execute = ioctl_restore,
	}, {
		.cmd = COWSNAP_IOC_DIFF,
		.size = sizeof(struct cowsnap_diff),
		.min_size = offsetofend(struct cowsnap_diff, ranges),
		.flags = COWSNAP_DIFF_F_EXACT,
		.execute = ioctl_diff,
	}, {
		.cmd = COWSNAP_IOC_PREPARE,
		.size = sizeof(struct cowsnap_prepare),
		.min_size = offsetofend(struct cowsnap_prepare, left),
		.execute = ioctl_prepare,
	}
};

static long do_ioctl(const struct ioctl_op *ops, unsigned int nr_ops,
		     struct file *file, unsigned int cmd, void __user *uarg)
{
	const struct ioctl_op *op = ops;
	union ioctl_arg arg = {};
	u32 size;
	int err;

	while (op < ops + nr_ops && op->cmd != cmd)
		op++;
	if (op == ops + nr_ops)
		return -ENOTTY;
	if (get_user(size, (u32 __user *)uarg))
		return -EFAULT;
	if (size < op->min_size)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	err = copy_struct_from_user(&arg, op->size, uarg, size);
	if (err)
		return err;
	/* Should the user have changed it since. */
	arg.size = size;
	if (arg.flags & ~op->flags)
		return -EINVAL;
	if (op->reserved && *(u32 *)((void *)&arg + op->reserved))
		return -EINVAL;
	return op->execute(file, &arg, uarg);
}

/* For who wonders which call fails: dynamic debug, see cowsnap(4). */
static long dispatch(const struct ioctl_op *ops, unsigned int nr_ops,
		     struct file *file, unsigned int cmd, unsigned long arg)
{
	long ret = do_ioctl(ops, nr_ops, file, cmd, (void __user *)arg);

	if (ret < 0)
		pr_debug("%s[%d]: ioctl %#x of %pD: error %ld\n", current->comm,
			 task_pid_nr(current), cmd, file, ret);
	return ret;
}

long cowsnap_device_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	return dispatch(device_ops, ARRAY_SIZE(device_ops), file, cmd, arg);
}

long cowsnap_region_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	return dispatch(region_ops, ARRAY_SIZE(region_ops), file, cmd, arg);
}
