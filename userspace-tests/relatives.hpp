// SPDX-License-Identifier: GPL-2.0-only
/* Two members of a family, before and after they come to share their pages. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>

#include "mapping.hpp"
#include "region.hpp"

namespace cowsnap_test {

enum class operation { fork, restore };

/* What makes them share, and what is shared at once. */
struct sharing {
	operation by;
	std::uint32_t granule_shift = page_shift;
};

inline std::string name_of(const sharing &how)
{
	std::string name =
		how.by == operation::fork ? "a_fork" : "a_restore";

	if (how.granule_shift == page_shift)
		return name;
	if (how.granule_shift == 21)
		return name + "_of_2048k";
	return name + "_of_" +
	       std::to_string(1U << (how.granule_shift - page_shift)) + "_pages";
}

inline void PrintTo(const sharing &how, std::ostream *out)
{
	*out << name_of(how);
}

/*
 * Of a FORK the copy is made then; of a RESTORE it was there before, with other
 * pages, mapped and written.
 */
class relatives {
public:
	/* In the pages of the copy that is there before. */
	static constexpr unsigned int copy_first = 101;

	relatives(const device &dev, const sharing &how, std::size_t pages)
		: source(dev.create(pages * page_size, 0, {}, how.granule_shift)),
		  source_map(source.map()), how_(how)
	{
		if (how.by == operation::restore) {
			copy = source.fork();
			copy_map = copy.map();
			number(copy_map, copy_first);
		}
		number(source_map, 1);
	}

	/* From then on the copy holds what the source holds. */
	void share()
	{
		if (how_.by == operation::restore) {
			copy.restore(source);
		} else {
			copy = source.fork();
			copy_map = copy.map();
		}
	}

	/* Bytes that are shared at once. */
	std::uint64_t granule() const { return 1ULL << how_.granule_shift; }

	region source, copy;
	mapping source_map, copy_map;

private:
	static void number(const mapping &map, unsigned int first)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			fill(map.page(page),
			     static_cast<unsigned int>(first + page));
	}

	sharing how_;
};

} // namespace cowsnap_test
