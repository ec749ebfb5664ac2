// SPDX-License-Identifier: GPL-2.0-only
/* redis-benchmark, and what it found. */
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "server.hpp"

namespace cowsnap_redis {

struct speed {
	double requests = 0; /* per second */
	double slowest = 0; /* request, in milliseconds */
};

/* By the name of its test, SET and GET: so many requests each, for keys at random. */
std::map<std::string, speed> benchmark(const server &of, std::size_t keys, std::size_t requests);

} // namespace cowsnap_redis
