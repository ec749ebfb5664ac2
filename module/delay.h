/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Delays where two threads may meet, so that tests come to the windows of the argument
 * for the point in time (cow.c) and of the tree's (tree.c).  They are there in a module
 * that was built with COWSNAP_DEBUG=1, and nothing otherwise.
 *
 *	echo frozen:500 >/sys/module/cowsnap/parameters/delay	500 us, each time
 *	echo frozen:0-500 >...					that much at the most
 *	echo frozen:0 >...					none
 *	cat ...							all, and how often
 *								each was met
 *
 * This file is included where nothing of the kernel's is (userspace-tests/tree).
 */
#ifndef _COWSNAP_DELAY_H
#define _COWSNAP_DELAY_H

/* Where there may be one: after what it is named for. */
enum cowsnap_delay_point {
	/* region.c: stopping */
	COWSNAP_DELAY_stripes_made,
	COWSNAP_DELAY_stripe_locked,
	COWSNAP_DELAY_stop_flagged,
	COWSNAP_DELAY_region_closing,
	/* wrprotect.c, protect.c, image.c, fork.c: the image */
	COWSNAP_DELAY_entries_protected,
	COWSNAP_DELAY_runs_protected,
	COWSNAP_DELAY_one_frozen,
	COWSNAP_DELAY_frozen,
	COWSNAP_DELAY_pin_found,
	COWSNAP_DELAY_image_begun,
	COWSNAP_DELAY_image_sealed,
	COWSNAP_DELAY_image_committed,
	/* cow.c: who may write */
	COWSNAP_DELAY_granule_found,
	COWSNAP_DELAY_sole_owner_found,
	COWSNAP_DELAY_granule_copied,
	COWSNAP_DELAY_old_zapped,
	COWSNAP_DELAY_hole_filled,
	/* fault.c, io.c */
	COWSNAP_DELAY_fault_granted,
	COWSNAP_DELAY_fault_found,
	COWSNAP_DELAY_around_chosen,
	COWSNAP_DELAY_fault_done,
	COWSNAP_DELAY_snapshot_found,
	COWSNAP_DELAY_write_granted,
	COWSNAP_DELAY_page_held,
	/* restore.c, space.c */
	COWSNAP_DELAY_restore_taken,
	COWSNAP_DELAY_restore_zapped,
	COWSNAP_DELAY_restore_exchanged,
	COWSNAP_DELAY_tail_owned,
	COWSNAP_DELAY_length_set,
	COWSNAP_DELAY_punch_zapped,
	COWSNAP_DELAY_range_removed,
	/* tree.c; on walks it is busy waiting */
	COWSNAP_DELAY_node_found,
	COWSNAP_DELAY_diff_node_found,
	COWSNAP_DELAY_node_alone,
	COWSNAP_DELAY_node_copied,
	COWSNAP_DELAY_node_replaced,
	COWSNAP_DELAY_node_dying,
	COWSNAP_DELAYS
};

#ifdef COWSNAP_DEBUG
void cowsnap_delay(enum cowsnap_delay_point point);
void cowsnap_delay_busy(enum cowsnap_delay_point point);
#else
static inline void cowsnap_delay(enum cowsnap_delay_point point)
{
	(void)point;
}

static inline void cowsnap_delay_busy(enum cowsnap_delay_point point)
{
	(void)point;
}
#endif

#endif /* _COWSNAP_DELAY_H */
