/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints, for perf(1), bpftrace(8) and tracefs.  Regions go by the ids that
 * STAT and fdinfo tell.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM cowsnap

#if !defined(_COWSNAP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _COWSNAP_TRACE_H

#include <linux/tracepoint.h>

#include "cowsnap.h"

/* A region was forked; each child of a FORK_MANY is one event. */
TRACE_EVENT(cowsnap_fork,
	TP_PROTO(const struct cowsnap_region *parent,
		 const struct cowsnap_region *child),
	TP_ARGS(parent, child),
	TP_STRUCT__entry(
		__field(u64, parent)
		__field(u64, child)
		__field(u64, referenced)
		__field(bool, readonly)
	),
	TP_fast_assign(
		__entry->parent = parent->id;
		__entry->child = child->id;
		__entry->referenced = child->referenced <<
				      cowsnap_granule_shift(child);
		__entry->readonly = child->readonly;
	),
	TP_printk("region=%llu child=%llu readonly=%d referenced=%llu",
		  __entry->parent, __entry->child, __entry->readonly,
		  __entry->referenced)
);

/* A region was made to hold what another holds. */
TRACE_EVENT(cowsnap_restore,
	TP_PROTO(const struct cowsnap_region *region,
		 const struct cowsnap_region *source, u64 changed),
	TP_ARGS(region, source, changed),
	TP_STRUCT__entry(
		__field(u64, region)
		__field(u64, source)
		__field(u64, changed)
	),
	TP_fast_assign(
		__entry->region = region->id;
		__entry->source = source->id;
		__entry->changed = changed;
	),
	TP_printk("region=%llu source=%llu changed=%llu",
		  __entry->region, __entry->source, __entry->changed)
);

/* A page fault was handled; @error is 0 or a negative errno. */
TRACE_EVENT(cowsnap_fault,
	TP_PROTO(const struct cowsnap_region *region, u64 pgoff, bool write,
		 int error),
	TP_ARGS(region, pgoff, write, error),
	TP_STRUCT__entry(
		__field(u64, region)
		__field(u64, offset)
		__field(bool, write)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->region = region->id;
		__entry->offset = pgoff << PAGE_SHIFT;
		__entry->write = write;
		__entry->error = error;
	),
	TP_printk("region=%llu offset=%#llx write=%d error=%d",
		  __entry->region, __entry->offset, __entry->write,
		  __entry->error)
);

/* A shared granule was copied: for a write, or by a fork for a pin. */
TRACE_EVENT(cowsnap_copy,
	TP_PROTO(const struct cowsnap_region *region, u64 index, bool pinned),
	TP_ARGS(region, index, pinned),
	TP_STRUCT__entry(
		__field(u64, region)
		__field(u64, offset)
		__field(u64, bytes)
		__field(bool, pinned)
	),
	TP_fast_assign(
		__entry->region = region->id;
		__entry->offset = index << cowsnap_granule_shift(region);
		__entry->bytes = cowsnap_granule_size(region);
		__entry->pinned = pinned;
	),
	TP_printk("region=%llu offset=%#llx bytes=%llu pinned=%d",
		  __entry->region, __entry->offset, __entry->bytes,
		  __entry->pinned)
);

/* Nothing refers to a region any more: neither descriptor nor mapping. */
TRACE_EVENT(cowsnap_close,
	TP_PROTO(const struct cowsnap_region *region),
	TP_ARGS(region),
	TP_STRUCT__entry(
		__field(u64, region)
		__field(u64, family)
	),
	TP_fast_assign(
		__entry->region = region->id;
		__entry->family = region->family->id;
	),
	TP_printk("region=%llu family=%llu", __entry->region, __entry->family)
);

#endif /* _COWSNAP_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
