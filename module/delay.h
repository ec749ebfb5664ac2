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
#define COWSNAP_DELAY_POINTS(point)					\
	/* region.c: stopping */					\
	point(stripes_made)						\
	point(stripe_locked)						\
	point(stop_flagged)						\
	point(region_closing)						\
	/* wrprotect.c, protect.c, image.c, fork.c: the image */	\
	point(entries_protected)					\
	point(runs_protected)						\
	point(one_frozen)						\
	point(frozen)							\
	point(pin_found)						\
	point(image_begun)						\
	point(image_sealed)						\
	point(image_committed)						\
	/* cow.c: who may write */					\
	point(granule_found)						\
	point(sole_owner_found)						\
	point(granule_copied)						\
	point(old_zapped)						\
	point(hole_filled)						\
	/* fault.c, io.c */						\
	point(fault_granted)						\
	point(fault_found)						\
	point(around_chosen)						\
	point(fault_done)						\
	point(snapshot_found)						\
	point(write_granted)						\
	point(page_held)						\
	/* restore.c, space.c */					\
	point(restore_taken)						\
	point(restore_zapped)						\
	point(restore_exchanged)					\
	point(tail_owned)						\
	point(length_set)						\
	point(punch_zapped)						\
	point(range_removed)						\
	/* tree.c; on walks it is busy waiting */			\
	point(node_found)						\
	point(diff_node_found)						\
	point(node_alone)						\
	point(node_copied)						\
	point(node_replaced)						\
	point(node_dying)

#define COWSNAP_DELAY_ENUM(name)	COWSNAP_DELAY_##name,
enum cowsnap_delay_point {
	COWSNAP_DELAY_POINTS(COWSNAP_DELAY_ENUM)
	COWSNAP_DELAYS
};
#undef COWSNAP_DELAY_ENUM

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
