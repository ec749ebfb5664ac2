// SPDX-License-Identifier: GPL-2.0-only
/* Costs over what they must not depend on, and over what they may. */
#include "descriptors.hpp"
#include "row.hpp"

namespace cowsnap_bench {
namespace {

cost fork_with(stage &on, const live &subject, const pages &which, bool prepare = false)
{
	return meter::repeat(3, [&] {
		region made;

		store(subject.map, which);
		if (prepare)
			subject.memory.prepare();
		return on.measure.timed([&] { made = subject.memory.snapshot(); });
	});
}

std::vector<line> over_size(stage &on)
{
	std::vector<line> lines = {{"fork(2)", {}}, {"FORK, 100 pages written", {}}, {"FORK, nothing written", {}}};

	for (std::uint64_t size = mebibyte; size <= on.size.big; size *= 4) {
		const double x = static_cast<double>(size) / static_cast<double>(mebibyte);
		live &subject = on.region_of(size);

		lines[0].points.push_back({x, on.process_fork(size, false).time()});
		store_all(subject.map);
		lines[1].points.push_back({x, fork_with(on, subject, in_a_row(100)).time()});
		lines[2].points.push_back({x, fork_with(on, subject, {}).time()});
	}
	return lines;
}

std::vector<line> over_dirty(stage &on)
{
	const live &subject = on.region_of(on.size.big);
	const double process = on.process_fork(on.size.big, false).time();
	std::vector<line> lines = {{"fork(2)", {}},
				   {"FORK, written at random", {}},
				   {"FORK, written in a row", {}},
				   {"FORK after PREPARE", {}}};

	for (std::size_t count = 1; count <= subject.map.pages(); count *= 8) {
		const auto x = static_cast<double>(count);
		const pages random = at_random(subject.map.pages(), count);

		lines[0].points.push_back({x, process});
		lines[1].points.push_back({x, fork_with(on, subject, random).time()});
		lines[2].points.push_back({x, fork_with(on, subject, in_a_row(count)).time()});
		lines[3].points.push_back({x, fork_with(on, subject, random, true).time()});
	}
	return lines;
}

std::vector<line> over_depth(stage &on)
{
	const cowsnap_test::descriptor_limit enough(4096);
	const pages which = at_random(on.size.small / page_size, 1000);
	std::vector<line> lines = {{"first write to a page", {}}, {"first read of a page", {}}};
	std::vector<region> generations;

	generations.push_back(filled(on.dev, on.size.small));
	for (const std::size_t depth : {1, 3, 10, 32, 100, 316, 1000}) {
		while (generations.size() < depth) {
			region next = generations.back().fork();

			next.fill_page(generations.size(), 2);
			generations.push_back(std::move(next));
		}
		for (const bool write : {true, false}) {
			const cost fault = meter::repeat(3, [&] {
				const region fork = generations.back().fork();
				const mapping map = fork.map();

				return on.measure.timed([&] {
					write ? store(map, which) : load(map, which);
				}) / which.size();
			});

			lines[write ? 0 : 1].points.push_back({static_cast<double>(depth), fault.time()});
		}
	}
	return lines;
}

} // namespace

std::vector<curve> curves()
{
	return {{"size", over_size}, {"dirty", over_dirty}, {"depth", over_depth}};
}

} // namespace cowsnap_bench
