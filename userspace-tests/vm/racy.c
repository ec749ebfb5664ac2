// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for a module in which two threads meet at a variable, in the check of the
 * KCSAN kernel: that it sees them.
 */
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched.h>

static unsigned long counter;

static noinline void count(void)
{
	counter++;
}

static int count_on(void *unused)
{
	while (!kthread_should_stop()) {
		count();
		cond_resched();
	}
	return 0;
}

static const struct file_operations racy_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice racy_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "racy",
	.fops = &racy_fops,
};

static int __init racy_init(void)
{
	struct task_struct *other = kthread_run(count_on, NULL, "racy");
	unsigned long end = jiffies + 10 * HZ;

	if (IS_ERR(other))
		return PTR_ERR(other);
	while (time_before(jiffies, end)) {
		count();
		cond_resched();
	}
	kthread_stop(other);
	pr_info("racy: counted to %lu\n", counter);
	return misc_register(&racy_device);
}

static void __exit racy_exit(void)
{
	misc_deregister(&racy_device);
}

module_init(racy_init);
module_exit(racy_exit);
MODULE_DESCRIPTION("one data race");
MODULE_LICENSE("GPL");
