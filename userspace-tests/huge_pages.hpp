// SPDX-License-Identifier: GPL-2.0-only
/* Whether the kernel knows of huge pages, which one for PREEMPT_RT does not, and of which. */
#pragma once

#include <cstdint>
#include <fstream>

#include <unistd.h>

namespace cowsnap_test {

inline bool kernel_has_huge_pages()
{
	return ::access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0;
}

/* What a PMD maps, in bytes; 0 where nothing is mapped by one. */
inline std::uint64_t huge_page_size()
{
	std::uint64_t size = 0;

	std::ifstream("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") >> size;
	return size;
}

/*
 * Before it finds that it cannot split ours, Linux 6.12 looks at the cgroup of any
 * large folio, for which those charged as kernel memory want RCU's lock.
 */
inline bool lockdep_objects_to_splits()
{
	return ::access("/proc/lockdep", F_OK) == 0;
}

} // namespace cowsnap_test
