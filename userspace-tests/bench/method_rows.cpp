// SPDX-License-Identifier: GPL-2.0-only
/* Pairs whose answer is known: when these are wrong, so is everything else. */
#include <cstring>

#include "row.hpp"

namespace cowsnap_bench {
namespace {

/* memcpy(3) of half the memory beside memcpy(3) of all of it. */
result half_of_a_copy(stage &on)
{
	const mapping source = small_pages(on.size.small), target = small_pages(on.size.small);
	const auto copy = [&](std::size_t size) {
		return meter::repeat(on.size.rounds, [&] {
			return on.measure.timed(
				[&] { std::memcpy(target.data(), source.data(), size); });
		});
	};

	return {copy(source.size() / 2), copy(source.size())};
}

} // namespace

std::vector<row> method_rows(const sizes &size)
{
	return {{.name = "method",
		 .what = "the method itself: memcpy of " + named_size(size.small / 2),
		 .peer = "memcpy of " + named_size(size.small),
		 .must = bound{.of_ratio = true, .low = 0.49, .high = 0.51},
		 .measure = half_of_a_copy}};
}

} // namespace cowsnap_bench
