// SPDX-License-Identifier: GPL-2.0-only
/* What a fork costs Redis, and what it costs the rest of it. */
#pragma once

#include <cstdint>

#include "demo/results.hpp"

namespace cowsnap_redis {

struct sizes {
	std::size_t keys = 0;
	/* Of redis-benchmark, for each of its tests. */
	std::size_t requests = 0;
	/* Bytes per second that the library's own thread prepares at most. */
	std::uint64_t rate = 0;
	/* Of all that the issue asks for; else that a fork's pause is well below. */
	bool whole = false;
};

void compare(const sizes &size, cowsnap_demo::results &results);

} // namespace cowsnap_redis
