// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsnap - memory you can fork: the device, the ioctls, loading and unloading.
 */
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "cowsnap.h"

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
	query->granule_shift_max = PAGE_SHIFT;
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
	    (create->granule_shift && create->granule_shift != PAGE_SHIFT) ||
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

static long ioctl_stat(struct file *file, void *arg, void __user *uarg)
{
	struct cowsnap_stat *stat = arg;
	int err;

	err = cowsnap_region_stat(file->private_data, stat);
	return err ?: copy_out(uarg, stat, sizeof(*stat));
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

static long dispatch(const struct ioctl_op *ops, unsigned int nr_ops,
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

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return dispatch(device_ops, ARRAY_SIZE(device_ops), file, cmd,
			(void __user *)arg);
}

long cowsnap_region_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	return dispatch(region_ops, ARRAY_SIZE(region_ops), file, cmd,
			(void __user *)arg);
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "cowsnap",
	.fops = &device_fops,
	.mode = 0660,
};

/* What the uapi header promises: the same layout everywhere, and no padding. */
static void __init check_abi(void)
{
	BUILD_BUG_ON(sizeof(struct cowsnap_query) != 64);
	BUILD_BUG_ON(sizeof(struct cowsnap_create) != 64);
	BUILD_BUG_ON(sizeof(struct cowsnap_fork) != 16);
	BUILD_BUG_ON(sizeof(struct cowsnap_stat) != 128);
	BUILD_BUG_ON(sizeof(struct cowsnap_prepare) != 24);
	BUILD_BUG_ON(sizeof(struct cowsnap_restore) != 24);
	BUILD_BUG_ON(sizeof(struct cowsnap_diff) != 48);
	BUILD_BUG_ON(sizeof(struct cowsnap_range) != 24);
}

static int __init cowsnap_init(void)
{
	int err;

	check_abi();
	cowsnap_account_module_init();
	err = cowsnap_tree_module_init();
	if (err)
		return err;
	err = cowsnap_fault_module_init();
	if (err)
		goto err_exit_tree;
	err = misc_register(&device);
	if (err)
		goto err_exit_fault;
	return 0;

err_exit_fault:
	cowsnap_fault_module_exit();
err_exit_tree:
	cowsnap_tree_module_exit();
	return err;
}

/* No region is left: their mount held a reference on the module. */
static void __exit cowsnap_exit(void)
{
	misc_deregister(&device);
	cowsnap_fault_module_exit();
	cowsnap_tree_module_exit();
}

module_init(cowsnap_init);
module_exit(cowsnap_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The cowsnap authors");
MODULE_DESCRIPTION("Memory regions that can be forked into copy-on-write snapshots");
MODULE_VERSION("0.1.0");
