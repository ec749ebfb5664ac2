// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsnap - memory you can fork: the device, loading and unloading.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "cowsnap.h"

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = cowsnap_device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "cowsnap",
	.fops = &device_fops,
	.mode = 0660,
};

static int __init cowsnap_init(void)
{
	int err;

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
