/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _SHIM_LINUX_BITOPS_H
#define _SHIM_LINUX_BITOPS_H

#include <linux/kernel.h>

#define BITS_PER_LONG ((int)(CHAR_BIT * sizeof(long)))
#define BIT(nr) (1UL << (nr))

static inline bool test_bit(unsigned long nr, const unsigned long *word)
{
	WARN_ON_ONCE(nr >= BITS_PER_LONG);
	return *word >> nr & 1;
}

static inline void __set_bit(unsigned long nr, unsigned long *word)
{
	WARN_ON_ONCE(nr >= BITS_PER_LONG);
	*word |= 1UL << nr;
}

static inline void __clear_bit(unsigned long nr, unsigned long *word)
{
	WARN_ON_ONCE(nr >= BITS_PER_LONG);
	*word &= ~(1UL << nr);
}

static inline bool __test_and_set_bit(unsigned long nr, unsigned long *word)
{
	bool old = test_bit(nr, word);

	__set_bit(nr, word);
	return old;
}

static inline bool __test_and_clear_bit(unsigned long nr, unsigned long *word)
{
	bool old = test_bit(nr, word);

	__clear_bit(nr, word);
	return old;
}

static inline unsigned long __ffs(unsigned long word)
{
	WARN_ON_ONCE(!word);
	return __builtin_ctzl(word);
}

static inline unsigned long __fls(unsigned long word)
{
	WARN_ON_ONCE(!word);
	return BITS_PER_LONG - 1 - __builtin_clzl(word);
}

static inline unsigned long ffz(unsigned long word)
{
	return __ffs(~word);
}

/* In one word, which is all that tree.c has. */
static inline unsigned long find_next_bit(const unsigned long *word,
					  unsigned long size,
					  unsigned long offset)
{
	WARN_ON_ONCE(size > BITS_PER_LONG);
	while (offset < size && !(*word >> offset & 1))
		offset++;
	return offset < size ? offset : size;
}

static inline unsigned int hweight_long(unsigned long word)
{
	return __builtin_popcountl(word);
}

#endif
