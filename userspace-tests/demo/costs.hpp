// SPDX-License-Identifier: GPL-2.0-only
/* What a snapshot costs, beside the two other ways to get one. */
#pragma once

#include <cstddef>
#include <vector>

#include "region.hpp"

namespace cowsnap_demo {

inline constexpr std::size_t rounds = 9;

/* Medians of so many rounds, in nanoseconds. */
struct costs {
	struct region {
		std::size_t dirty_pages; /* changed since the FORK before */
		double fork;
		double first_write; /* to each of these pages after the FORK */
	};
	std::vector<region> regions;
	double process_fork = 0; /* fork(2) with the data in private memory */
	double process_first_write = 0;
	double copy = 0; /* memcpy into memory that is there already */
};

/* Of FORKs with nothing dirty, with so many pages dirty, and with more. */
costs measure_costs(const cowsnap_test::region &live, std::size_t dirty_pages);

} // namespace cowsnap_demo
