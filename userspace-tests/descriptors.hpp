// SPDX-License-Identifier: GPL-2.0-only
/* Which descriptors this process has, and how many it may have. */
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

#include "unique_fd.hpp"

namespace cowsnap_test {

/*
 * The descriptor that the next open gets, the lowest free one: not what it was
 * where one was left behind, open or only taken.
 */
inline int next_descriptor()
{
	return unique_fd(check(::dup(0), "dup")).get();
}

/* While it lives, this process can have so many descriptors and no more. */
class descriptor_limit {
public:
	/* Those that it has, and @spare more. */
	static descriptor_limit leaving(std::size_t spare)
	{
		std::vector<unique_fd> more;

		/* Descriptors are given out from the lowest. */
		for (std::size_t i = 0; i <= spare; i++)
			more.emplace_back(check(::dup(0), "dup"));
		return descriptor_limit(static_cast<rlim_t>(more.back().get()));
	}

	explicit descriptor_limit(rlim_t most)
	{
		check(::getrlimit(RLIMIT_NOFILE, &before_), "getrlimit");

		const rlimit now = {most, std::max(most, before_.rlim_max)};

		check(::setrlimit(RLIMIT_NOFILE, &now), "setrlimit");
	}
	~descriptor_limit() { ::setrlimit(RLIMIT_NOFILE, &before_); }
	descriptor_limit(const descriptor_limit &) = delete;
	descriptor_limit &operator=(const descriptor_limit &) = delete;

private:
	rlimit before_ = {};
};

} // namespace cowsnap_test
