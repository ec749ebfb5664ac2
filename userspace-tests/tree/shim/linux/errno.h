/* SPDX-License-Identifier: GPL-2.0-only */
/* The C library's own errno.h includes this name for the numbers. */
#include_next <linux/errno.h>
