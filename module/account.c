// SPDX-License-Identifier: GPL-2.0-only
/*
 * The caps on what granules may take.
 *
 * A charge that would exceed a cap is never made, not even for a moment: a fork that
 * needs no memory, at a cap exactly, must not see another's charge that fails.
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

/* False when there is a @cap and it would be exceeded. */
static bool charge(atomic_long_t *held, unsigned long bytes, u64 cap)
{
	long old = atomic_long_read(held);

	do {
		if (cap && (u64)old + bytes > cap)
			return false;
	} while (!atomic_long_try_cmpxchg(held, &old, old + bytes));
	return true;
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

	if (!charge(&account->held, bytes, account->limit))
		return -ENOSPC;
	if (!charge(&held_bytes, bytes, READ_ONCE(max_bytes))) {
		atomic_long_sub(bytes, &account->held);
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
