// SPDX-License-Identifier: GPL-2.0-only
#include "costs.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "measure.hpp"
#include "process.hpp"

namespace cowsnap_demo {
namespace {

using cowsnap_test::mapping;
using cowsnap_test::region;

std::vector<std::size_t> choose_pages(std::size_t pages, std::size_t count)
{
	std::vector<std::size_t> all(pages);

	std::iota(all.begin(), all.end(), std::size_t(0));
	std::ranges::shuffle(all, std::mt19937_64(pages));
	all.resize(count);
	return all;
}

/* Of one store to each of the pages, per page. */
double store_cost(const mapping &memory, const std::vector<std::size_t> &pages)
{
	const double all = nanoseconds([&] {
		for (const std::size_t page : pages)
			memory.store(page, page);
	});

	return pages.empty() ? 0 : all / static_cast<double>(pages.size());
}

/* In 4 KiB pages: a huge one is split by the first write after a fork anyway. */
mapping small_pages(std::size_t size)
{
	mapping memory = cowsnap_test::anonymous(size);

	/* Refused only where there are no huge pages. */
	::madvise(memory.data(), memory.size(), MADV_NOHUGEPAGE);
	return memory;
}

costs::region measure_region(const region &live, const std::vector<std::size_t> &pages)
{
	/* Of its own, so that the store stays whole. */
	const region own = live.fork();
	const mapping memory = own.map();
	std::vector<double> fork, write;

	store_cost(memory, pages);
	for (std::size_t i = 0; i < rounds; i++) {
		region made;

		fork.push_back(nanoseconds([&] { made = own.snapshot(); }));
		write.push_back(store_cost(memory, pages));
	}
	return {pages.size(), median(fork), median(write)};
}

void measure_process(const mapping &data, const std::vector<std::size_t> &pages,
		     costs &result)
{
	const mapping memory = small_pages(data.size());
	std::vector<double> fork, write;

	std::ranges::copy(data.bytes(), memory.data());
	for (std::size_t i = 0; i < rounds; i++) {
		/* It lives, and so does its snapshot, until the end of the round. */
		std::optional<cowsnap_test::child> child;

		fork.push_back(nanoseconds([&] { child.emplace([] { ::pause(); }); }));
		write.push_back(store_cost(memory, pages));
	}
	result.process_fork = median(fork);
	result.process_first_write = median(write);
}

void measure_copy(const mapping &data, costs &result)
{
	const mapping target = small_pages(data.size());
	std::vector<double> copy;

	std::memset(target.data(), 1, target.size());
	for (std::size_t i = 0; i < rounds; i++)
		copy.push_back(nanoseconds([&] {
			std::memcpy(target.data(), data.data(), data.size());
		}));
	result.copy = median(copy);
}

} // namespace

costs measure_costs(const region &live, std::size_t dirty_pages)
{
	const mapping data = live.map(PROT_READ);
	const std::size_t more = std::min<std::size_t>(1000, data.pages());
	costs result;

	for (const std::size_t count : {std::size_t(0), dirty_pages, more})
		result.regions.push_back(
			measure_region(live, choose_pages(data.pages(), count)));
	measure_process(data, choose_pages(data.pages(), more), result);
	measure_copy(data, result);
	return result;
}

} // namespace cowsnap_demo
