// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module parameter of delay.h; not there in a normal build.
 */
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/moduleparam.h>
#include <linux/random.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "delay.h"

/* More would be taken for a hang. */
#define MOST_US		100000U
#define MOST_BUSY_US	100U

/**
 * struct delay - what happens at a point
 * @name: the point's
 * @least: microseconds,
 * @most: and 0 for nothing
 * @met: how often there was one
 */
struct delay {
	const char *name;
	unsigned int least;
	unsigned int most;
	atomic_t met;
};

#define DELAY(point)	[COWSNAP_DELAY_##point] = { .name = #point },
static struct delay delays[COWSNAP_DELAYS] = {
	COWSNAP_DELAY_POINTS(DELAY)
};

static unsigned int meet(enum cowsnap_delay_point point)
{
	struct delay *delay = &delays[point];
	unsigned int least = READ_ONCE(delay->least);
	unsigned int most = READ_ONCE(delay->most);

	if (likely(!most))
		return 0;
	atomic_inc(&delay->met);
	return least < most ? least + get_random_u32() % (most - least + 1) :
			      most;
}

/* For where it may sleep. */
void cowsnap_delay(enum cowsnap_delay_point point)
{
	unsigned int us = meet(point);

	if (us)
		usleep_range(us, us + 1);
}

/* For where it may not. */
void cowsnap_delay_busy(enum cowsnap_delay_point point)
{
	unsigned int us = meet(point);

	if (us)
		udelay(min(us, MOST_BUSY_US));
}

static int delay_set(const char *text, const struct kernel_param *param)
{
	unsigned int least, most, i;
	char name[32];
	int read;

	read = sscanf(text, "%31[^:]:%u-%u", name, &least, &most);
	if (read < 2)
		return -EINVAL;
	if (read == 2)
		most = least;
	if (least > most || most > MOST_US)
		return -EINVAL;
	for (i = 0; i < COWSNAP_DELAYS; i++) {
		if (strcmp(delays[i].name, name))
			continue;
		atomic_set(&delays[i].met, 0);
		WRITE_ONCE(delays[i].least, least);
		WRITE_ONCE(delays[i].most, most);
		return 0;
	}
	return -EINVAL;
}

static int delay_get(char *text, const struct kernel_param *param)
{
	int size = 0;
	int i;

	for (i = 0; i < COWSNAP_DELAYS; i++)
		size += sysfs_emit_at(text, size, "%s:%u-%u %d\n",
				      delays[i].name, delays[i].least,
				      delays[i].most,
				      atomic_read(&delays[i].met));
	return size;
}

static const struct kernel_param_ops delay_ops = {
	.set = delay_set,
	.get = delay_get,
};

module_param_cb(delay, &delay_ops, NULL, 0600);
MODULE_PARM_DESC(delay,
		 "Where to wait for how many microseconds, as NAME:LEAST-MOST; for tests");
