// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages of a granule: where they come from, what is in them, who refers to them.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "account.h"
#include "pages.h"

/*
 * A large folio is a gift: what is at hand is taken, but nobody is made to wait for
 * memory to be compacted.
 */
static struct folio *alloc_folio(unsigned int order, bool zero)
{
	gfp_t gfp = GFP_USER | __GFP_ACCOUNT | (zero ? __GFP_ZERO : 0);
	struct folio *folio;

	if (order && !cowsnap_may_be_large())
		return NULL;
	if (order)
		gfp = (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN;
	folio = folio_alloc(gfp, order);
	if (!folio)
		return NULL;
	folio->lru.next = NULL;
	/* Of no file; from 6.12 on the core looks whether a PMD would go beyond it. */
	folio->index = 0;
	/* Before 6.5 a pipe that splice(2) put it in wants to know. */
	folio_mark_uptodate(folio);
	return folio;
}

/* The folio at page *@n, and moves *@n behind it; NULL behind the last. */
static struct folio *next_folio(struct cowsnap_pieces *pieces, unsigned int *n)
{
	struct folio *folio;

	if (*n == pieces->nr)
		return NULL;
	folio = page_folio(pieces->page[*n]);
	*n += folio_nr_pages(folio);
	return folio;
}

/* Is a page of it in memory that failed? */
bool cowsnap_folio_has_failed(struct folio *folio)
{
	long nr = folio_nr_pages(folio);
	long n;

	for (n = 0; n < nr; n++) {
		if (PageHWPoison(folio_page(folio, n)))
			return true;
	}
	return false;
}

/*
 * The allocator keeps a page that failed when it comes back alone, but would hand
 * it out again as a part of a large folio; so such a one stays away for good.
 */
static void put_folio(struct folio *folio)
{
	if (folio_test_large(folio) && unlikely(cowsnap_folio_has_failed(folio)))
		return;
	folio_put(folio);
}

static void free_pieces(struct cowsnap_pieces *pieces)
{
	struct folio *folio;
	unsigned int n = 0;

	while ((folio = next_folio(pieces, &n)))
		put_folio(folio);
	kvfree(pieces);
}

/* Puts a granule together of the largest folios below @order that there are. */
static struct page *alloc_pieces(unsigned int order, bool zero)
{
	unsigned int all = 1U << order;
	struct cowsnap_pieces *pieces;

	pieces = kvzalloc(struct_size(pieces, page, all), GFP_KERNEL_ACCOUNT);
	if (!pieces)
		return NULL;
	for (order--; pieces->nr < all;) {
		struct folio *folio = alloc_folio(order, zero);
		unsigned int n;

		if (!folio && !order) {
			free_pieces(pieces);
			return NULL;
		}
		if (!folio) {
			order--;
			continue;
		}
		for (n = 0; n < 1U << order; n++)
			pieces->page[pieces->nr++] = folio_page(folio, n);
	}
	page_folio(pieces->page[0])->lru.next = (void *)pieces;
	return pieces->page[0];
}

static struct page *alloc_pages_for(unsigned int order, bool zero)
{
	struct folio *folio = alloc_folio(order, zero);

	if (folio)
		return folio_page(folio, 0);
	return order ? alloc_pieces(order, zero) : NULL;
}

static int copy_pages(struct cowsnap_granule *to, struct cowsnap_granule *from,
		      unsigned int nr)
{
	unsigned int n;

	for (n = 0; n < nr; n++) {
		struct page *page = cowsnap_granule_page(from, n);

		if (PageHWPoison(page) ||
		    cowsnap_copy_mc_page(page_address(cowsnap_granule_page(to, n)),
					 page_address(page)))
			return -EHWPOISON;
	}
	/* Who finds it by a page-table entry finds the copy, and not what was there. */
	smp_wmb();
	return 0;
}

/**
 * cowsnap_granule_alloc() - make a granule
 * @account: what it is charged to; the memory is charged to the memcg of the caller
 *	besides
 * @from: what to copy, NULL for zeroes
 *
 * Return: the granule, for a leaf or for cowsnap_granule_release();
 * ERR_PTR(-ENOSPC) over a limit, ERR_PTR(-ENOMEM), or ERR_PTR(-EHWPOISON) when
 * @from cannot be read.
 */
struct cowsnap_granule *cowsnap_granule_alloc(struct cowsnap_account *account,
					      struct cowsnap_granule *from)
{
	unsigned int order = account->granule_shift - PAGE_SHIFT;
	struct cowsnap_granule *granule;
	struct page *head;
	int err;

	err = cowsnap_account_charge(account, 1);
	if (err)
		return ERR_PTR(err);
	head = alloc_pages_for(order, !from);
	if (!head) {
		cowsnap_account_uncharge(account, 1);
		return ERR_PTR(-ENOMEM);
	}
	granule = cowsnap_granule_init(head);
	err = from ? copy_pages(granule, from, 1U << order) : 0;
	if (err) {
		cowsnap_granule_release(account, granule);
		return ERR_PTR(err);
	}
	return granule;
}

/* No leaf points to it any more. */
void __cowsnap_granule_free(struct cowsnap_granule *granule)
{
	struct cowsnap_pieces *pieces = cowsnap_granule_pieces(granule);

	if (unlikely(pieces))
		free_pieces(pieces);
	else
		put_folio(cowsnap_granule_folio(granule));
}

/* Drops a leaf's, or a not yet stored, reference. */
void cowsnap_granule_release(struct cowsnap_account *account,
			     struct cowsnap_granule *granule)
{
	if (cowsnap_granule_put(granule))
		cowsnap_account_uncharge(account, 1);
}

/* The sum of what @count says of each folio. */
long cowsnap_pieces_sum(struct cowsnap_pieces *pieces,
			long (*count)(struct folio *folio))
{
	struct folio *folio;
	unsigned int n = 0;
	long sum = 0;

	while ((folio = next_folio(pieces, &n)))
		sum += count(folio);
	return sum;
}

bool cowsnap_granule_folios_have(struct cowsnap_granule *granule,
				 struct page *page)
{
	struct cowsnap_pieces *pieces = cowsnap_granule_pieces(granule);
	struct folio *folio;
	unsigned int n = 0;

	if (likely(!pieces))
		return page_folio(page) == cowsnap_granule_folio(granule);
	while ((folio = next_folio(pieces, &n))) {
		if (page_folio(page) == folio)
			return true;
	}
	return false;
}

/* The bytes [@from, ...) of a granule, up to @to or the end of their page. */
static void *part_of_page(struct cowsnap_granule *granule, size_t from,
			  size_t to, size_t *bytes)
{
	struct page *page = cowsnap_granule_page(granule, from >> PAGE_SHIFT);

	*bytes = min(to - from, PAGE_SIZE - offset_in_page(from));
	return page_address(page) + offset_in_page(from);
}

/* Zeroes the bytes [@from, @to) of a granule that may be written. */
void cowsnap_granule_zero(struct cowsnap_granule *granule, size_t from,
			  size_t to)
{
	size_t bytes;

	for (; from < to; from += bytes) {
		void *part = part_of_page(granule, from, to, &bytes);

		memset(part, 0, bytes);
		flush_dcache_page(virt_to_page(part));
	}
}

/* Are the bytes [@from, @to) of a granule zero?  No, when they cannot be read. */
bool cowsnap_granule_is_zero(struct cowsnap_granule *granule, size_t from,
			     size_t to)
{
	size_t bytes;

	for (; from < to; from += bytes) {
		void *part = part_of_page(granule, from, to, &bytes);

		if (PageHWPoison(virt_to_page(part)) ||
		    memchr_inv(part, 0, bytes))
			return false;
	}
	return true;
}
