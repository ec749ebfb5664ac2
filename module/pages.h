/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The pages of a granule.  One folio has them all, or several do when no folio of
 * that size could be had.
 */
#ifndef _COWSNAP_PAGES_H
#define _COWSNAP_PAGES_H

#include <linux/mm.h>

#include "compat.h"
#include "granule.h"

struct cowsnap_account;

/* What a PMD maps on x86-64, and with pages of 4 KiB on arm64. */
#define COWSNAP_GRANULE_SHIFT_MAX	21

/**
 * struct cowsnap_pieces - the pages of a granule that is not one folio
 * @nr: how many pages
 * @page: of as many folios as it took, one behind the other
 *
 * The lru of the first folio, which is on no list, points here; it is NULL in a
 * granule of one folio.
 */
struct cowsnap_pieces {
	unsigned int nr;
	struct page *page[];
};

/* The first of its folios, or the only one. */
static inline struct folio *
cowsnap_granule_folio(struct cowsnap_granule *granule)
{
	return (struct folio *)granule;
}

/* NULL when it is one folio. */
static inline struct cowsnap_pieces *
cowsnap_granule_pieces(struct cowsnap_granule *granule)
{
	return (struct cowsnap_pieces *)cowsnap_granule_folio(granule)->lru.next;
}

/* Page @n of a granule; no reference is taken. */
static inline struct page *cowsnap_granule_page(struct cowsnap_granule *granule,
						unsigned int n)
{
	struct cowsnap_pieces *pieces = cowsnap_granule_pieces(granule);

	return unlikely(pieces) ? pieces->page[n] :
	       folio_page(cowsnap_granule_folio(granule), n);
}

long cowsnap_pieces_sum(struct cowsnap_pieces *pieces,
			long (*count)(struct folio *folio));

static inline long cowsnap_granule_sum(struct cowsnap_granule *granule,
				       long (*count)(struct folio *folio))
{
	struct cowsnap_pieces *pieces = cowsnap_granule_pieces(granule);

	return unlikely(pieces) ? cowsnap_pieces_sum(pieces, count) :
	       count(cowsnap_granule_folio(granule));
}

static inline long cowsnap_folio_references(struct folio *folio)
{
	return folio_ref_count(folio) - 1;
}

/* How many references there are to its pages, besides that of the leaves. */
static inline long cowsnap_granule_references(struct cowsnap_granule *granule)
{
	return cowsnap_granule_sum(granule, cowsnap_folio_references);
}

/* How many page-table entries map pages of it. */
static inline long cowsnap_granule_mapcount(struct cowsnap_granule *granule)
{
	return cowsnap_granule_sum(granule, cowsnap_folio_mapcount);
}

static inline long cowsnap_folio_mapped(struct folio *folio)
{
	return folio_mapped(folio);
}

/* Do page-table entries of any process map a part of it? */
static inline bool cowsnap_granule_mapped(struct cowsnap_granule *granule)
{
	return cowsnap_granule_sum(granule, cowsnap_folio_mapped);
}

bool cowsnap_folio_has_failed(struct folio *folio);
bool cowsnap_granule_folios_have(struct cowsnap_granule *granule,
				 struct page *page);

/* Is @page in one of the folios that make up @granule? */
static inline bool cowsnap_granule_has(struct cowsnap_granule *granule,
				       struct page *page)
{
	return page == cowsnap_granule_head(granule) ||
	       cowsnap_granule_folios_have(granule, page);
}

/**
 * cowsnap_granule_only_mapped() - does nobody refer to it, but page-table entries?
 * @granule: nobody makes such entries
 * @held: a page that the caller holds one more reference to, or NULL
 *
 * Return: false may also be because an entry goes away at this moment.
 */
static inline bool cowsnap_granule_only_mapped(struct cowsnap_granule *granule,
					       struct page *held)
{
	long references = cowsnap_granule_references(granule);

	/*
	 * An entry that goes away drops the map count first and the reference
	 * then, so reading them in this order errs towards a reference only.
	 */
	smp_rmb();
	if (held && cowsnap_granule_has(granule, held))
		references--;
	return references == cowsnap_granule_mapcount(granule);
}

void cowsnap_granule_zero(struct cowsnap_granule *granule, size_t from,
			  size_t to);
bool cowsnap_granule_is_zero(struct cowsnap_granule *granule, size_t from,
			     size_t to);

struct cowsnap_granule *cowsnap_granule_alloc(struct cowsnap_account *account,
					      struct cowsnap_granule *from);
void cowsnap_granule_release(struct cowsnap_account *account,
			     struct cowsnap_granule *granule);

#endif /* _COWSNAP_PAGES_H */
