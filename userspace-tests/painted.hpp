// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a file holds to which only runs of equal bytes are written, whatever its
 * length: so that it can be remembered, and compared, without as much memory.
 */
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <span>

#include "mapping.hpp"

namespace cowsnap_test {

class painted {
public:
	/* All bytes in [@start, @end) get @value; they are 0 at first. */
	void paint(std::uint64_t start, std::uint64_t end, unsigned int value)
	{
		if (start >= end)
			return;

		const unsigned int behind = at(end);

		runs_.erase(runs_.lower_bound(start), runs_.upper_bound(end));
		runs_[start] = value;
		runs_[end] = behind;
	}

	unsigned int at(std::uint64_t offset) const
	{
		return std::prev(runs_.upper_bound(offset))->second;
	}

	/* Is it the same as @other from @start to @end? */
	bool same_as(const painted &other, std::uint64_t start,
		     std::uint64_t end) const
	{
		while (start < end) {
			if (at(start) != other.at(start))
				return false;
			start = std::min(run_end(start), other.run_end(start));
		}
		return true;
	}

	bool is_zero(std::uint64_t start, std::uint64_t end) const
	{
		return same_as(painted(), start, end);
	}

	/*
	 * Does @bytes have what is painted from @offset on?  Every byte is looked at
	 * in the pages where a run begins or ends, and a word of all others.
	 */
	bool shown_by(std::span<const std::byte> bytes, std::uint64_t offset) const
	{
		while (!bytes.empty()) {
			const auto size = static_cast<std::size_t>(
				std::min<std::uint64_t>(bytes.size(),
							run_end(offset) - offset));

			if (!run_is(bytes.first(size), at(offset)))
				return false;
			bytes = bytes.subspan(size);
			offset += size;
		}
		return true;
	}

private:
	static constexpr std::uint64_t infinite = UINT64_MAX;

	std::uint64_t run_end(std::uint64_t offset) const
	{
		const auto next = runs_.upper_bound(offset);

		return next == runs_.end() ? infinite : next->first;
	}

	static bool run_is(std::span<const std::byte> bytes, unsigned int value)
	{
		if (bytes.size() <= 4 * page_size)
			return is_all(bytes, value);

		std::size_t at = 2 * page_size;

		for (; at + 2 * page_size < bytes.size(); at += page_size)
			if (!is_all(bytes.subspan(at, sizeof(std::uint64_t)), value))
				return false;
		return is_all(bytes.first(2 * page_size), value) &&
		       is_all(bytes.subspan(at), value);
	}

	/* Where each run begins; the last one has no end. */
	std::map<std::uint64_t, unsigned int> runs_ = {{0, 0}};
};

} // namespace cowsnap_test
