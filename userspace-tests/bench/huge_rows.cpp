// SPDX-License-Identifier: GPL-2.0-only
/* What must not depend on the size: FORK, and DIFF, which is beside the two scans that look at every page. */
#include <algorithm>

#include "row.hpp"
#include "trackers.hpp"

namespace cowsnap_bench {
namespace {

constexpr std::size_t some = 1000;

cost fork_clean(stage &on, std::uint64_t size)
{
	const region &subject = on.region_of(size).memory;

	/* Mapped, or there would be nothing to look at. */
	load_all(on.region_of(size).map);
	return meter::repeat(on.size.rounds, [&] {
		region made;

		return on.measure.timed([&] { made = subject.snapshot(); });
	});
}

result fork_of_any_size(stage &on)
{
	const cost small = fork_clean(on, on.size.small);

	on.clear();
	return {fork_clean(on, on.size.huge), small};
}

/* Of all differences, after @which were written. */
cost diff_cost(stage &on, const pages &which)
{
	live &subject = on.region_of(on.size.huge);
	const region snapshot = subject.memory.snapshot();

	differences found(which.size());

	store(subject.map, which);
	return meter::repeat(on.size.rounds, [&] {
		return on.measure.timed([&] {
			if (found.between(subject.memory, snapshot) != which.size() * page_size)
				throw std::runtime_error("DIFF did not find what was written");
		});
	});
}

/* Of so much memory a scan is compared with; where less is there it is multiplied, as it looks at page after page. */
constexpr std::uint64_t compared = 4 * gibibyte;

/* Of finding 1,000 pages at random in memory of a process; the best way that the kernel has. */
struct scan {
	std::string name;
	cost taken;
};

std::vector<scan> measure_scans(stage &on)
{
	const mapping memory = small_pages(on.size.huge);
	const pages which = at_random(memory.pages(), some);
	std::vector<scan> scans;
	const auto measure = [&](auto &tracker, const auto &find) {
		tracker.arm();
		store(memory, which);
		return meter::repeat(on.size.long_rounds, [&] {
			return on.measure.timed([&] {
				if (find() != some)
					throw std::runtime_error("a scan did not find what was written");
			});
		});
	};

	if (userfault_tracker::supported(true)) {
		userfault_tracker tracker(memory, true);

		scans.push_back({"PAGEMAP_SCAN", measure(tracker, [&] { return tracker.written(some); })});
	}
	if (soft_dirty_tracker::supported()) {
		soft_dirty_tracker tracker(memory);

		scans.push_back({"soft-dirty bits of pagemap", measure(tracker, [&] { return tracker.written(); })});
	}
	return scans;
}

/* Beside the quickest scan that the kernel has, or beside the one that all have. */
result diff(stage &on, const pages &which, bool quickest)
{
	static std::vector<scan> scans;
	const cost ours = diff_cost(on, which);

	if (scans.empty()) {
		on.clear();
		scans = measure_scans(on);
	}

	const double times = static_cast<double>(compared) / static_cast<double>(on.size.huge);
	result measured = {.ours = ours};

	for (const scan &one : scans) {
		if (&one == &(quickest ? scans.front() : scans.back())) {
			measured.peer = one.taken * times;
			measured.note = "the peer is " + one.name;
		} else {
			measured.others.push_back({one.name, one.taken * times});
		}
	}
	if (on.size.huge != compared)
		measured.note += ", of " + named_size(on.size.huge) + " and multiplied";
	return measured;
}

result diff_per_granule(stage &on, const pages &few, const pages &many)
{
	return {diff_cost(on, many) / many.size(), diff_cost(on, few) / few.size()};
}

std::vector<row> diff_rows(const std::string &huge, std::size_t all)
{
	const std::string what = "DIFF of " + huge + ", ";
	const std::string peer = "the scan of " + named_size(compared) + " of a process";

	return {
		{.name = "diff-per-granule",
		 .what = what + "10,000 pages in a row changed",
		 .peer = "the same, 1,000 pages",
		 .per = "granule",
		 .must = times_the_peer(1.1),
		 .aim = at_most(50),
		 .measure = [](stage &on) {
			 return diff_per_granule(on, in_a_row(some), in_a_row(10 * some));
		 }},
		{.name = "diff-per-granule-random",
		 .what = what + "10,000 pages at random changed",
		 .peer = "the same, 1,000 pages",
		 .per = "granule",
		 .must = times_the_peer(1.1),
		 .aim = at_most(50),
		 .measure =
			 [all](stage &on) {
				 return diff_per_granule(on, at_random(all, some),
							 at_random(all, 10 * some));
			 }},
		{.name = "diff-in-a-row",
		 .what = what + "1,000 pages in a row changed",
		 .peer = peer,
		 .must = times_the_peer(1.0 / 100),
		 .measure = [](stage &on) { return diff(on, in_a_row(some), true); }},
		{.name = "diff-random",
		 .what = what + "1,000 pages at random changed",
		 .peer = peer,
		 .must = times_the_peer(1.0 / 100),
		 .measure = [all](stage &on) { return diff(on, at_random(all, some), false); }},
	};
}

} // namespace

std::vector<row> huge_rows(const sizes &size)
{
	std::vector<row> rows = {
		{.name = "fork-any-size",
		 .what = "FORK of " + named_size(size.huge) + ", nothing written since the last",
		 .peer = "FORK of " + named_size(size.small),
		 .must = times_the_peer(1.05),
		 .aim = at_most(6000),
		 .measure = fork_of_any_size},
	};

	for (const row &one : diff_rows(named_size(size.huge), size.huge / page_size))
		rows.push_back(one);
	return rows;
}

} // namespace cowsnap_bench
