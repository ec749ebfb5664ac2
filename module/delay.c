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

static struct delay delays[] = {
	[COWSNAP_DELAY_stripes_made] = { .name = "stripes_made" },
	[COWSNAP_DELAY_stripe_locked] = { .name = "stripe_locked" },
	[COWSNAP_DELAY_stop_flagged] = { .name = "stop_flagged" },
	[COWSNAP_DELAY_region_closing] = { .name = "region_closing" },
	[COWSNAP_DELAY_entries_protected] = { .name = "entries_protected" },
	[COWSNAP_DELAY_runs_protected] = { .name = "runs_protected" },
	[COWSNAP_DELAY_one_frozen] = { .name = "one_frozen" },
	[COWSNAP_DELAY_frozen] = { .name = "frozen" },
	[COWSNAP_DELAY_pin_found] = { .name = "pin_found" },
	[COWSNAP_DELAY_image_begun] = { .name = "image_begun" },
	[COWSNAP_DELAY_image_sealed] = { .name = "image_sealed" },
	[COWSNAP_DELAY_image_committed] = { .name = "image_committed" },
	[COWSNAP_DELAY_granule_found] = { .name = "granule_found" },
	[COWSNAP_DELAY_sole_owner_found] = { .name = "sole_owner_found" },
	[COWSNAP_DELAY_granule_copied] = { .name = "granule_copied" },
	[COWSNAP_DELAY_old_zapped] = { .name = "old_zapped" },
	[COWSNAP_DELAY_hole_filled] = { .name = "hole_filled" },
	[COWSNAP_DELAY_fault_granted] = { .name = "fault_granted" },
	[COWSNAP_DELAY_fault_found] = { .name = "fault_found" },
	[COWSNAP_DELAY_around_chosen] = { .name = "around_chosen" },
	[COWSNAP_DELAY_fault_done] = { .name = "fault_done" },
	[COWSNAP_DELAY_snapshot_found] = { .name = "snapshot_found" },
	[COWSNAP_DELAY_write_granted] = { .name = "write_granted" },
	[COWSNAP_DELAY_page_held] = { .name = "page_held" },
	[COWSNAP_DELAY_restore_taken] = { .name = "restore_taken" },
	[COWSNAP_DELAY_restore_zapped] = { .name = "restore_zapped" },
	[COWSNAP_DELAY_restore_exchanged] = { .name = "restore_exchanged" },
	[COWSNAP_DELAY_tail_owned] = { .name = "tail_owned" },
	[COWSNAP_DELAY_length_set] = { .name = "length_set" },
	[COWSNAP_DELAY_punch_zapped] = { .name = "punch_zapped" },
	[COWSNAP_DELAY_range_removed] = { .name = "range_removed" },
	[COWSNAP_DELAY_node_found] = { .name = "node_found" },
	[COWSNAP_DELAY_diff_node_found] = { .name = "diff_node_found" },
	[COWSNAP_DELAY_node_alone] = { .name = "node_alone" },
	[COWSNAP_DELAY_node_copied] = { .name = "node_copied" },
	[COWSNAP_DELAY_node_replaced] = { .name = "node_replaced" },
	[COWSNAP_DELAY_node_dying] = { .name = "node_dying" },
};

static_assert(ARRAY_SIZE(delays) == COWSNAP_DELAYS);

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
