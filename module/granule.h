/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The granule: the unit of sharing and copying.
 *
 * A granule is the first of the pages that the module allocated for it (pages.h has
 * the others).  Two counts describe who has it:
 *
 * - page->private of the first page counts the tree leaves that point to it.  It
 *   says whether a granule is shared between members of a family, exactly, whatever
 *   the core does with the pages meanwhile.  No leaf, no granule.
 * - The reference count of each folio is one for all the leaves together, one for
 *   each page-table entry, and one for each holder that came through
 *   get_user_pages() or read(2).  A folio that is still referenced when the last
 *   leaf lets go lives on for that holder and is not part of a granule any more.
 */
#ifndef _COWSNAP_GRANULE_H
#define _COWSNAP_GRANULE_H

#include <linux/atomic.h>
#include <linux/mm.h>

struct cowsnap_granule;

static inline struct page *cowsnap_granule_head(struct cowsnap_granule *granule)
{
	return (struct page *)granule;
}

static inline atomic_long_t *
__cowsnap_granule_leaves(struct cowsnap_granule *granule)
{
	BUILD_BUG_ON(sizeof(atomic_long_t) !=
		     sizeof(cowsnap_granule_head(granule)->private));
	return (atomic_long_t *)&cowsnap_granule_head(granule)->private;
}

/* Makes a granule of pages; the caller's references become the first leaf's. */
static inline struct cowsnap_granule *cowsnap_granule_init(struct page *head)
{
	struct cowsnap_granule *granule = (struct cowsnap_granule *)head;

	atomic_long_set(__cowsnap_granule_leaves(granule), 1);
	return granule;
}

void __cowsnap_granule_free(struct cowsnap_granule *granule);

/* One more leaf points to @granule; the caller knows of another that does. */
static inline void cowsnap_granule_get(struct cowsnap_granule *granule)
{
	atomic_long_inc(__cowsnap_granule_leaves(granule));
}

/* A leaf lets go.  True when it was the last: the granule is gone. */
static inline bool cowsnap_granule_put(struct cowsnap_granule *granule)
{
	if (!atomic_long_dec_and_test(__cowsnap_granule_leaves(granule)))
		return false;
	__cowsnap_granule_free(granule);
	return true;
}

/*
 * True when more than one leaf points to @granule.  When false, and the caller
 * holds the only leaf still, everything the others did with it came before.
 */
static inline bool cowsnap_granule_shared(struct cowsnap_granule *granule)
{
	return atomic_long_read_acquire(__cowsnap_granule_leaves(granule)) > 1;
}

#endif /* _COWSNAP_GRANULE_H */
