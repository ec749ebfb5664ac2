/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR MIT */
/*
 * cowsnap - memory you can fork
 *
 * /dev/cowsnap hands out memory regions as file descriptors.  A region behaves
 * like a memfd and has one verb more: FORK, which makes another region that
 * holds exactly what the first held at one instant.
 */
#ifndef _UAPI_LINUX_COWSNAP_H
#define _UAPI_LINUX_COWSNAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: calling convention
 *
 * Every ioctl takes a pointer to a struct whose first member is its own size
 * and whose second is a set of flags.  The rules are the same for all of them:
 *
 * - ``size`` smaller than the first published version of the struct: EINVAL;
 * - ``size`` larger than a page, or larger than the struct this kernel knows
 *   and with a non-zero byte in the part it does not know: E2BIG;
 * - an unknown bit in ``flags``, or a reserved member that is not zero: EINVAL;
 * - a struct that cannot be read, or whose result cannot be written: EFAULT;
 * - an ioctl that this kernel does not know: ENOTTY.
 *
 * Of several things that are wrong the first in this order tells: the size, the
 * part that is not known, the flags, the reserved members, other values, the
 * descriptors, and last what the regions are and hold.
 *
 * Members marked *out* are ignored on the way in.  A struct larger than the
 * one this kernel knows gets its known part written and no more.
 * File descriptors are always made with O_CLOEXEC.
 */

#define COWSNAP_IOC_MAGIC	0xE7

/** define COWSNAP_ABI_VERSION - version of this interface, see QUERY */
#define COWSNAP_ABI_VERSION	1

/** define COWSNAP_NAME_MAX - bytes in a region's name, with its NUL */
#define COWSNAP_NAME_MAX	32

/* On /dev/cowsnap */
#define COWSNAP_IOC_QUERY	_IO(COWSNAP_IOC_MAGIC, 0x00)
#define COWSNAP_IOC_CREATE	_IO(COWSNAP_IOC_MAGIC, 0x01)
#define COWSNAP_IOC_FORK_MANY	_IO(COWSNAP_IOC_MAGIC, 0x02)

/* On a region */
#define COWSNAP_IOC_FORK	_IO(COWSNAP_IOC_MAGIC, 0x10)
#define COWSNAP_IOC_RESTORE	_IO(COWSNAP_IOC_MAGIC, 0x11)
#define COWSNAP_IOC_DIFF	_IO(COWSNAP_IOC_MAGIC, 0x12)
#define COWSNAP_IOC_STAT	_IO(COWSNAP_IOC_MAGIC, 0x13)
#define COWSNAP_IOC_PREPARE	_IO(COWSNAP_IOC_MAGIC, 0x14)

/**
 * struct cowsnap_query - what the loaded module is and what it holds
 * (COWSNAP_IOC_QUERY)
 *
 * @size: sizeof(struct cowsnap_query)
 * @flags: must be 0
 * @abi_version: out, COWSNAP_ABI_VERSION of the module
 * @granule_shift_min: out, log2 of the smallest granule CREATE takes, in bytes
 * @granule_shift_max: out, log2 of the largest granule CREATE takes, in bytes
 * @__reserved: must be 0
 * @features: out, COWSNAP_FEATURE_* bits; none is defined yet, so 0
 * @max_bytes: out, the cap on the granules of all regions together, in bytes
 *	(the module parameter of that name); 0 means no cap
 * @held_bytes: out, bytes of granules that all regions together hold now,
 *	shared granules counted once
 * @regions: out, regions alive
 * @nodes: out, tree nodes alive; each costs a few hundred bytes of kernel
 *	memory that @held_bytes does not count
 *
 * Errors: those of the calling convention.
 */
struct cowsnap_query {
	__u32 size;
	__u32 flags;
	__u32 abi_version;
	__u32 granule_shift_min;
	__u32 granule_shift_max;
	__u32 __reserved;
	__aligned_u64 features;
	__aligned_u64 max_bytes;
	__aligned_u64 held_bytes;
	__aligned_u64 regions;
	__aligned_u64 nodes;
};

/**
 * struct cowsnap_create - make a region, the first of a new family
 * (COWSNAP_IOC_CREATE)
 *
 * @size: sizeof(struct cowsnap_create)
 * @flags: must be 0
 * @length: bytes in the region, which all read as zero; 0 is allowed (see
 *	ftruncate(2)); at most the largest file offset
 * @limit: cap on the granules of the whole family, in bytes; 0 means none.
 *	At the cap a write(2) fails with ENOSPC, a store raises SIGBUS, and FORK
 *	of a family above it fails with ENOSPC; what is held stays readable
 * @granule_shift: log2 of the unit of sharing and copying, in bytes; 0 means
 *	the page size; otherwise within the limits that QUERY tells
 * @fd: out, the region
 * @name: a NUL-terminated name, may be empty; the family's members carry it in
 *	/proc/PID/maps and /proc/PID/fd
 *
 * Errors: EINVAL when @length is larger than a file can be, @granule_shift is
 * out of range or @name has no NUL; EMFILE or ENFILE when no descriptor is
 * left; ENOMEM; and those of the calling convention.
 */
struct cowsnap_create {
	__u32 size;
	__u32 flags;
	__aligned_u64 length;
	__aligned_u64 limit;
	__u32 granule_shift;
	__s32 fd;
	char name[COWSNAP_NAME_MAX];
};

/** define COWSNAP_FORK_F_READONLY - make a snapshot, which nobody can change */
#define COWSNAP_FORK_F_READONLY	(1U << 0)

/**
 * struct cowsnap_fork - make a region that holds what this one holds now
 * (COWSNAP_IOC_FORK)
 *
 * @size: sizeof(struct cowsnap_fork)
 * @flags: COWSNAP_FORK_F_* bits
 * @fd: out, the new member of the family
 * @__reserved: must be 0
 *
 * There is one instant while the ioctl runs such that every store through any
 * mapping in any process, and every write(2), that came before it is in the new
 * region, and none that came after it is.  Writers wait for the last step only,
 * which sees to what they wrote while the first went over the rest.  When the
 * ioctl fails there is no new region, and this one holds what it held.
 *
 * Errors: ENOSPC when the family holds more than its limit or the module more
 * than max_bytes; EMFILE or ENFILE when no descriptor is left; ENOMEM; EINTR
 * when a signal arrived while another operation on the region kept it waiting
 * (the call is restarted where the handler's SA_RESTART asks for that);
 * EHWPOISON when a granule of several pages that is pinned for I/O lies in failed
 * memory; and those of the calling convention.
 */
struct cowsnap_fork {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 __reserved;
};

/**
 * struct cowsnap_fork_entry - one of the forks that FORK_MANY makes
 *
 * @region_fd: the region to fork; it may stand in several entries
 * @flags: COWSNAP_FORK_F_* bits
 * @fd: out, the new member of the region's family
 * @__reserved: must be 0
 */
struct cowsnap_fork_entry {
	__s32 region_fd;
	__u32 flags;
	__s32 fd;
	__u32 __reserved;
};

/** define COWSNAP_FORK_MANY_MAX - the most forks that one FORK_MANY makes */
#define COWSNAP_FORK_MANY_MAX	1024

/**
 * struct cowsnap_fork_many - fork many regions at one instant, or one region
 * many times (COWSNAP_IOC_FORK_MANY)
 *
 * @size: sizeof(struct cowsnap_fork_many)
 * @flags: must be 0
 * @count: entries, 1 to COWSNAP_FORK_MANY_MAX
 * @__reserved: must be 0
 * @entries: a pointer to an array of struct cowsnap_fork_entry; the regions may
 *	be of different families
 *
 * As FORK, but the instant is the same one for all regions: what was stored to
 * one of them after a store to another is not in its fork without the other being
 * in the other's.  What is written through pins for I/O while the ioctl runs is in a
 * fork or is not, page by page.  Either all forks are made or none is.
 *
 * Errors: those of FORK for any of the regions, but a signal is not looked at
 * while other operations on the regions keep the call waiting; EINVAL when @count
 * is out of range, or an entry has an unknown flag or a @__reserved that is not 0;
 * EBADF when a @region_fd is no descriptor, EINVAL when it is no region; EFAULT
 * when the entries cannot be read or written; and those of the calling convention.
 */
struct cowsnap_fork_many {
	__u32 size;
	__u32 flags;
	__u32 count;
	__u32 __reserved;
	__aligned_u64 entries;
};

/**
 * struct cowsnap_restore - make this region hold what another member of its
 * family holds now (COWSNAP_IOC_RESTORE)
 *
 * @size: sizeof(struct cowsnap_restore)
 * @flags: must be 0
 * @src_fd: the other member: an ancestor for a rollback, a child for a commit
 * @__reserved: must be 0
 * @changed: out, bytes of granules that the two did not share
 *
 * There is one instant while the ioctl runs at which all of this region's
 * mappings, in all processes, go over to what the other held at that instant.
 * The length goes with it.  What the two share stays mapped.  What was written to
 * this region since it forked is lost, with what pins for I/O still write.
 *
 * Errors: EBADF when @src_fd is no descriptor, EINVAL when it is no region, EXDEV
 * when it is of another family; EPERM when this region is a snapshot; ENOSPC and
 * EHWPOISON when a granule of the other that is pinned for I/O has to be copied
 * and cannot be; ENOMEM; EINTR as for FORK, but while a write(2) to this region is
 * under way only for a signal that kills; and those of the calling convention.
 * On error both hold what they held.  That @changed can be written is tried out
 * first; who unmaps it meanwhile gets EFAULT all the same.
 */
struct cowsnap_restore {
	__u32 size;
	__u32 flags;
	__s32 src_fd;
	__u32 __reserved;
	__aligned_u64 changed;
};

/** define COWSNAP_RANGE_F_HOLE - nothing there, reads as zero */
#define COWSNAP_RANGE_F_HOLE	(1U << 0)

/**
 * struct cowsnap_range - a part of a region that DIFF found
 *
 * @offset: in bytes, a multiple of the granule
 * @length: in bytes, a multiple of the granule
 * @flags: COWSNAP_RANGE_F_HOLE when this region has a hole there
 * @__reserved: 0
 */
struct cowsnap_range {
	__aligned_u64 offset;
	__aligned_u64 length;
	__u32 flags;
	__u32 __reserved;
};

/** define COWSNAP_DIFF_F_EXACT - leave out granules with equal bytes */
#define COWSNAP_DIFF_F_EXACT	(1U << 0)

/**
 * struct cowsnap_diff - find where two members of a family differ
 * (COWSNAP_IOC_DIFF)
 *
 * @size: sizeof(struct cowsnap_diff)
 * @flags: COWSNAP_DIFF_F_* bits
 * @other_fd: the other member
 * @count: room at @ranges, 1 to COWSNAP_DIFF_MAX; out, ranges written
 * @start: in bytes; a range may begin before it, with its granule
 * @end: in bytes, above @start; a range may end after it, with its granule
 * @next: out, where to go on from, as the next call's @start; not below @end
 *	when there is no more
 * @ranges: a pointer to an array of struct cowsnap_range
 *
 * Finds the granules that the two do not share, in the order of their offsets,
 * those that touch and are alike in one range, in time proportional to their
 * number.  A granule that was written is not shared, even with the bytes that it
 * had before, unless COWSNAP_DIFF_F_EXACT compares them.  What is changed
 * meanwhile may be found or not.  A signal ends the call early, and is no error.
 *
 * Errors: EBADF, EINVAL and EXDEV for @other_fd as for RESTORE; EINVAL when
 * @count or @end is out of range; EFAULT when @ranges cannot be written; ENOMEM;
 * and those of the calling convention.
 */
struct cowsnap_diff {
	__u32 size;
	__u32 flags;
	__s32 other_fd;
	__u32 count;
	__aligned_u64 start;
	__aligned_u64 end;
	__aligned_u64 next;
	__aligned_u64 ranges;
};

/** define COWSNAP_DIFF_MAX - the most ranges that one DIFF tells */
#define COWSNAP_DIFF_MAX	65536

/**
 * struct cowsnap_prepare - make the next FORK short (COWSNAP_IOC_PREPARE)
 *
 * @size: sizeof(struct cowsnap_prepare)
 * @flags: must be 0
 * @budget: the most granules to see to, 0 for all
 * @left: out, granules that a FORK now would have to see to still
 *
 * Write-protects what was written since the last FORK, a little at a time, while
 * the writers go on, and begins where the last call stopped.  Nobody sees a
 * change, but the next store to such a page faults once; it copies nothing.
 * Pages that are written again meanwhile, and those that are pinned, are left.
 * May run in a thread of its own; a signal ends it early, and is no error.  On a
 * snapshot there is nothing to do.
 *
 * Errors: EINTR as for FORK, and those of the calling convention.
 */
struct cowsnap_prepare {
	__u32 size;
	__u32 flags;
	__aligned_u64 budget;
	__aligned_u64 left;
};

/** define COWSNAP_STAT_F_READONLY - the region is a snapshot */
#define COWSNAP_STAT_F_READONLY	(1U << 0)

/**
 * struct cowsnap_stat - what a region is and what it cost (COWSNAP_IOC_STAT)
 *
 * @size: sizeof(struct cowsnap_stat)
 * @flags: must be 0
 * @state: out, COWSNAP_STAT_F_* bits
 * @granule_shift: out, log2 of the granule, in bytes
 * @id: out, the region; never used again while the module is loaded
 * @parent_id: out, the region this one was forked from, 0 for a family's first
 * @family_id: out, the @id of the family's first region
 * @length: out, bytes, what fstat(2) tells
 * @referenced: out, bytes of granules that this region can reach
 * @exclusive: out, the part of @referenced that no other region reaches: what
 *	closing this region gives back
 * @dirty: out, bytes of granules changed since the region last forked or was
 *	forked
 * @generation: out, forks between the family's first region, which is 0, and
 *	this one
 * @forks: out, forks made of this region, those that failed not counted
 * @faults: out, page faults that this region's mappings took
 * @copies: out, granules copied because another region shared them
 * @reuses: out, writes that found a formerly shared granule unshared again and
 *	took it as it was
 * @zero_fills: out, granules made where there was a hole
 * @bytes_copied: out, bytes copied for @copies
 *
 * Figures taken while others change the region are each right for some moment
 * during the call, not all for the same one.
 *
 * Errors: EINTR as for FORK, and when a signal came while what is exclusive was being
 * counted; and those of the calling convention.
 */
struct cowsnap_stat {
	__u32 size;
	__u32 flags;
	__u32 state;
	__u32 granule_shift;
	__aligned_u64 id;
	__aligned_u64 parent_id;
	__aligned_u64 family_id;
	__aligned_u64 length;
	__aligned_u64 referenced;
	__aligned_u64 exclusive;
	__aligned_u64 dirty;
	__aligned_u64 generation;
	__aligned_u64 forks;
	__aligned_u64 faults;
	__aligned_u64 copies;
	__aligned_u64 reuses;
	__aligned_u64 zero_fills;
	__aligned_u64 bytes_copied;
};

#endif /* _UAPI_LINUX_COWSNAP_H */
