// SPDX-License-Identifier: GPL-2.0-only
/*
 * The caps on what granules may take.
 *
 * Both sums are plain atomics that a charge adds to first and looks at then, so
 * a cap is never exceeded.  Two chargers that meet just below a cap may both be
 * refused where one would have fitted; neither has to take a lock.
 */
#include <linux/mm.h>
#include <linux/moduleparam.h>

#include "account.h"

/* Stands for "not given": half of the memory, known once the module is loaded. */
#define MAX_BYTES_DEFAULT	ULONG_MAX

static unsigned long max_bytes = MAX_BYTES_DEFAULT;
module_param(max_bytes, ulong, 0644);
MODULE_PARM_DESC(max_bytes,
		 "Most bytes that all regions may hold together, 0 for no cap (default: half of RAM)");

static atomic_long_t held_bytes = ATOMIC_LONG_INIT(0);

void cowsnap_account_module_init(void)
{
	if (max_bytes == MAX_BYTES_DEFAULT)
		max_bytes = totalram_pages() / 2 * PAGE_SIZE;
}

u64 cowsnap_account_max_bytes(void)
{
	return READ_ONCE(max_bytes);
}

u64 cowsnap_account_held_bytes(void)
{
	return atomic_long_read(&held_bytes);
}

/**
 * cowsnap_account_charge() - make room for granules
 * @account: the family
 * @nr: how many
 *
 * Return: 0, or -ENOSPC when they would exceed the family's limit or max_bytes.
 */
int cowsnap_account_charge(struct cowsnap_account *account, unsigned long nr)
{
	unsigned long bytes = nr << account->granule_shift;
	unsigned long family = atomic_long_add_return(bytes, &account->held);
	unsigned long module = atomic_long_add_return(bytes, &held_bytes);
	unsigned long cap = READ_ONCE(max_bytes);

	if ((account->limit && family > account->limit) ||
	    (cap && module > cap)) {
		cowsnap_account_uncharge(account, nr);
		return -ENOSPC;
	}
	return 0;
}

void cowsnap_account_uncharge(struct cowsnap_account *account,
			      unsigned long nr)
{
	unsigned long bytes = nr << account->granule_shift;

	atomic_long_sub(bytes, &account->held);
	atomic_long_sub(bytes, &held_bytes);
}

/**
 * cowsnap_account_over() - is a cap exceeded already?
 * @account: the family
 *
 * Happens when max_bytes is lowered below what is held.
 *
 * Return: true when it is.
 */
bool cowsnap_account_over(struct cowsnap_account *account)
{
	unsigned long cap = READ_ONCE(max_bytes);

	return (account->limit &&
		atomic_long_read(&account->held) > account->limit) ||
	       (cap && atomic_long_read(&held_bytes) > cap);
}
