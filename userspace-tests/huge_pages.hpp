// SPDX-License-Identifier: GPL-2.0-only
/* Whether the kernel knows of huge pages; one for PREEMPT_RT does not. */
#pragma once

#include <unistd.h>

namespace cowsnap_test {

inline bool kernel_has_huge_pages()
{
	return ::access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0;
}

} // namespace cowsnap_test
