/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What granules are charged to: a family, which may have a limit, and the
 * module, which has max_bytes.  The memcg of whoever causes an allocation is
 * charged by the allocator besides.
 */
#ifndef _COWSNAP_ACCOUNT_H
#define _COWSNAP_ACCOUNT_H

#include <linux/atomic.h>
#include <linux/types.h>

/**
 * struct cowsnap_account - the granules of one family
 * @held: bytes of granules that the family's members hold together
 * @limit: the most that @held may be, in bytes; 0 for no limit
 * @granule_shift: log2 of a granule, in bytes
 */
struct cowsnap_account {
	atomic_long_t held;
	u64 limit;
	unsigned int granule_shift;
};

int cowsnap_account_charge(struct cowsnap_account *account, unsigned long nr);
void cowsnap_account_uncharge(struct cowsnap_account *account,
			      unsigned long nr);
bool cowsnap_account_over(struct cowsnap_account *account);

void cowsnap_account_module_init(void);
u64 cowsnap_account_max_bytes(void);
u64 cowsnap_account_held_bytes(void);

#endif /* _COWSNAP_ACCOUNT_H */
