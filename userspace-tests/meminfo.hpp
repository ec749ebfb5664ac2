// SPDX-License-Identifier: GPL-2.0-only
/* How much memory the machine has left. */
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include "mapping.hpp"

namespace cowsnap_test {

/* The sum of the numbers that follow the word @key in a file of /proc. */
inline std::uint64_t sum_of(const char *path, std::string_view key)
{
	std::ifstream file(path);
	std::string word;
	std::uint64_t value = 0, sum = 0;

	while (file >> word)
		if (word == key && file >> value)
			sum += value;
	return sum;
}

/*
 * In bytes: MemAvailable, and the free pages in the CPUs' own lists, which it
 * leaves out.
 */
inline std::uint64_t available_memory()
{
	return sum_of("/proc/meminfo", "MemAvailable:") * 1024 +
	       sum_of("/proc/zoneinfo", "count:") * page_size;
}

} // namespace cowsnap_test
