// SPDX-License-Identifier: GPL-2.0-only
/*
 * What makes a copy of memory that others write meanwhile a copy of one instant.
 *
 * A writer stores the number of its round in its pages, page after page, one round
 * after another.  At any instant some first pages have this round's number r and
 * the rest the round's before: r, ..., r, r - 1, ..., r - 1.  So, in a copy of one
 * instant, no page has a later number than a page before it, and the last page's
 * number is the first's or one less.  A copy that took a page too late, or too
 * early, has a later number behind an earlier one, or numbers further apart.
 */
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace cowsnap_test {

/* Where @values are not of one instant, nothing when they are. */
inline std::optional<std::string> torn(std::span<const std::uint64_t> values)
{
	for (std::size_t i = 1; i < values.size(); i++) {
		if (values[i] > values[i - 1] || values[i] + 1 < values[0])
			return "position " + std::to_string(i) + " has " +
			       std::to_string(values[i]) + " after " +
			       std::to_string(values[i - 1]) + ", the first has " +
			       std::to_string(values[0]);
	}
	return std::nullopt;
}

} // namespace cowsnap_test
