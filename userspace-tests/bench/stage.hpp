// SPDX-License-Identifier: GPL-2.0-only
/* What rows are measured on: regions and memory of processes, filled, made once and kept while rows want the same. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "meter.hpp"
#include "process.hpp"
#include "region.hpp"

namespace cowsnap_bench {

using cowsnap_test::child;
using cowsnap_test::device;
using cowsnap_test::mapping;
using cowsnap_test::memory_file;
using cowsnap_test::page_size;
using cowsnap_test::region;

inline constexpr std::uint64_t mebibyte = 1UL << 20;

struct sizes {
	/* Of the rows that name a size, of those that go over all pages, of granules. */
	std::uint64_t big, middle, small;
	/* Of DIFF and of the largest FORK. */
	std::uint64_t huge;
	/* How many are alive together at first, and, where they fit, in the end. */
	std::size_t snapshots, more_snapshots;
	std::size_t resets, frames;
	/* Of what is cheap, and of what goes over all pages. */
	std::size_t rounds, long_rounds;

	static sizes full();
	/* For QUICK=1. */
	static sizes quick();
};

/* A size, fork(2) of which is what FORK is compared with at any size. */
inline constexpr std::uint64_t gibibyte = 1024 * mebibyte;

std::string named_size(std::uint64_t bytes);
/* 100000 as "100,000". */
std::string named_count(std::size_t count);

using pages = std::vector<std::size_t>;

/* Of @all pages @count: the first ones; runs of so many; single ones. The same ones every time. */
pages in_a_row(std::size_t count, std::size_t first = 0);
pages in_runs(std::size_t all, std::size_t count, std::size_t run);
pages at_random(std::size_t all, std::size_t count, std::uint64_t seed = 1);

/* A store to each of @which: it alone, as an emulated read-modify-write faults twice. */
inline void store(const mapping &memory, std::span<const std::size_t> which, std::uint64_t value = 1)
{
	for (const std::size_t page : which)
		memory.store(page, value);
}
inline void store_all(const mapping &memory, std::uint64_t value = 1)
{
	for (std::size_t page = 0; page < memory.pages(); page++)
		memory.store(page, value);
}
inline void load(const mapping &memory, std::span<const std::size_t> which)
{
	for (const std::size_t page : which)
		memory.load(page);
}
inline void load_all(const mapping &memory)
{
	for (std::size_t page = 0; page < memory.pages(); page++)
		memory.load(page);
}

/* A region that is filled, and mapped. */
struct live {
	region memory;
	mapping map;
};

class stage {
public:
	stage(const sizes &wanted, const meter &with) : size(wanted), measure(with) {}

	const sizes size;
	const meter &measure;
	const device dev;

	/* A region without holes, what is written to it is not shared; kept until another size is wanted. */
	live &region_of(std::uint64_t bytes, std::uint32_t granule_shift = 0);
	/* Memory of this process, in 4 KiB pages, all there. */
	mapping &private_of(std::uint64_t bytes);
	/* Lets go of both, for a row that needs the room or a process that is small. */
	void clear();
	void clear_private() { private_.reset(); }

	/* fork(2) of a process that has so much memory: forked before, and written since then all of it or nothing. */
	cost process_fork(std::uint64_t bytes, bool written);

private:
	std::optional<live> region_;
	std::uint32_t shift_ = 0;
	mapping private_;
	std::map<std::pair<std::uint64_t, bool>, cost> process_forks_;
};

/* A region that is filled by write(2), not mapped. */
region filled(const device &dev, std::uint64_t bytes, std::uint32_t granule_shift = 0);
/* Memory of 4 KiB pages, all there when @populate. */
mapping small_pages(std::uint64_t bytes, bool populate = true);

/* DIFF of all, into room for so many ranges that is there already: bytes that differ. */
class differences {
public:
	explicit differences(std::size_t room) : ranges_(room) {}

	std::uint64_t between(const region &one, const region &other);

private:
	std::vector<cowsnap_range> ranges_;
};

/* A process that waits, with all that its parent has. */
inline child waiting_child()
{
	return child([] { ::pause(); });
}

} // namespace cowsnap_bench
