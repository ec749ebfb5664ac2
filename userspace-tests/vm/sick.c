// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for a module with one fault of each kind, in the check of the debug
 * kernel: that its watchers watch.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static DEFINE_MUTEX(one);
static DEFINE_MUTEX(other);
static DEFINE_SPINLOCK(spin);

/* What is wrong is not for the compiler to know. */
static unsigned int size = 40;
module_param(size, uint, 0);

static void lock_in_any_order(void)
{
	mutex_lock(&one);
	mutex_lock(&other);
	mutex_unlock(&other);
	mutex_unlock(&one);

	mutex_lock(&other);
	mutex_lock(&one);
	mutex_unlock(&one);
	mutex_unlock(&other);
}

static void sleep_in_atomic(void)
{
	spin_lock(&spin);
	might_sleep();
	spin_unlock(&spin);
}

static unsigned int shift_too_far(void)
{
	return 1U << size;
}

static void write_behind_the_end(void)
{
	char *memory = kmalloc(size, GFP_KERNEL);

	if (memory)
		WRITE_ONCE(memory[size], 1);
	kfree(memory);
}

static void write_after_the_end(void)
{
	char *memory = kmalloc(2 * size, GFP_KERNEL);

	kfree(memory);
	if (memory)
		WRITE_ONCE(*memory, 1);
}

static noinline void lose(void)
{
	unsigned int i;

	/* More than one: what looks like an address may keep another. */
	for (i = 0; i < 16; i++)
		pr_info("sick: lost %p\n", kmalloc(size, GFP_KERNEL));
}

static const struct file_operations sick_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice sick_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "sick",
	.fops = &sick_fops,
};

/* Locks first: who has seen another fault no longer watches them. */
static int __init sick_init(void)
{
	lock_in_any_order();
	sleep_in_atomic();
	pr_info("sick: shifted %u\n", shift_too_far());
	write_behind_the_end();
	write_after_the_end();
	lose();
	return misc_register(&sick_device);
}

static void __exit sick_exit(void)
{
	misc_deregister(&sick_device);
}

module_init(sick_init);
module_exit(sick_exit);
MODULE_DESCRIPTION("one fault of each kind");
MODULE_LICENSE("GPL");
