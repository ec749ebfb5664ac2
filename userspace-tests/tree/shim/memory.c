// SPDX-License-Identifier: GPL-2.0-only
/* Pages, and module/granule.h for the tests. */
#include <stdlib.h>

#include "granule.h"

static atomic_long_t live_pages;

struct cowsnap_granule *shim_granule_new(u64 content)
{
	struct page *page = calloc(1, sizeof(*page));

	if (!page)
		abort();
	page->content = content;
	atomic_long_inc(&live_pages);
	return cowsnap_granule_init(page);
}

void __cowsnap_granule_free(struct cowsnap_granule *granule)
{
	struct page *page = cowsnap_granule_head(granule);

	WARN_ON_ONCE(page->private);
	atomic_long_sub(1, &live_pages);
	free(page);
}

u64 shim_granule_content(struct cowsnap_granule *granule)
{
	return cowsnap_granule_head(granule)->content;
}

void shim_granule_write(struct cowsnap_granule *granule, u64 content)
{
	cowsnap_granule_head(granule)->content = content;
}

bool shim_granule_put(struct cowsnap_granule *granule)
{
	return cowsnap_granule_put(granule);
}

bool shim_granule_shared(struct cowsnap_granule *granule)
{
	return cowsnap_granule_shared(granule);
}

u64 shim_live_pages(void)
{
	return atomic_long_read(&live_pages);
}
