// SPDX-License-Identifier: GPL-2.0-only
/*
 * The three parts of a snapshot, beside all other ways to know what is written: the pause, the first write to a page
 * after it, and finding out what was written.  Of those other than fork(2) only a copy of all is a snapshot; the rest
 * tells what has to be copied, which is still to be done.
 */
#include <cstring>

#include "row.hpp"
#include "trackers.hpp"

namespace cowsnap_bench {
namespace {

constexpr std::size_t some = 1000;

/* What each way takes; nothing where the kernel has it not, or it has no such part. */
struct parts {
	std::optional<cost> pause, write, find;
};

/* @pause makes a snapshot or arms; @find is not run when it finds nothing. */
template <typename Pause, typename Find>
parts measure_parts(stage &on, const mapping &memory, const pages &which, Pause &&pause, Find &&find, whose who)
{
	std::vector<cost> pauses, writes, finds;

	store(memory, which);
	for (std::size_t i = 0; i <= on.size.rounds; i++) {
		pauses.push_back(on.measure.timed(pause));
		writes.push_back(on.measure.timed([&] { store(memory, which); }, who) / which.size());
		finds.push_back(on.measure.timed(find));
	}
	/* The first time is never like the others. */
	for (std::vector<cost> *costs : {&pauses, &writes, &finds})
		costs->erase(costs->begin());
	return {median(pauses), median(writes), median(finds)};
}

void expect_found(std::size_t found)
{
	if (found != some)
		throw std::runtime_error("a tracker found " + std::to_string(found) + " pages of " +
					 std::to_string(some));
}

parts cowsnap_parts(stage &on, const pages &which)
{
	live &subject = on.region_of(on.size.middle);
	differences found(some);
	region held;

	return measure_parts(
		on, subject.map, which, [&] { held = subject.memory.snapshot(); },
		[&] { expect_found(found.between(subject.memory, held) / page_size); },
		whose::thread);
}

parts userfault_parts(stage &on, const mapping &memory, const pages &which, bool async)
{
	if (!userfault_tracker::supported(async))
		return {};

	userfault_tracker tracker(memory, async);
	parts measured = measure_parts(
		on, memory, which, [&] { tracker.arm(); },
		[&] {
			if (async)
				expect_found(tracker.written(some));
		},
		whose::all);

	if (!async)
		measured.find.reset();
	return measured;
}

std::vector<std::pair<std::string, parts>> other_ways(stage &on, const pages &which)
{
	mapping &memory = on.private_of(on.size.middle);
	std::vector<std::pair<std::string, parts>> ways;

	{
		std::optional<child> process;
		parts measured = measure_parts(
			on, memory, which,
			[&] { process.emplace(waiting_child()); }, [&] { process.reset(); },
			whose::thread);

		measured.find.reset();
		ways.emplace_back("fork(2)", measured);
	}
	{
		const mapping copy = small_pages(memory.size());
		parts measured = measure_parts(
			on, memory, which,
			[&] { std::memcpy(copy.data(), memory.data(), memory.size()); }, [] {},
			whose::thread);

		measured.find.reset();
		ways.emplace_back("memcpy of all", measured);
	}
	ways.emplace_back("userfaultfd", userfault_parts(on, memory, which, false));
	ways.emplace_back("userfaultfd, async", userfault_parts(on, memory, which, true));
	{
		mprotect_tracker tracker(memory);
		parts measured = measure_parts(
			on, memory, which, [&] { tracker.arm(); },
			[&] { expect_found(tracker.written().size()); }, whose::thread);

		measured.find.reset();
		ways.emplace_back("mprotect + SIGSEGV", measured);
	}
	if (soft_dirty_tracker::supported()) {
		soft_dirty_tracker tracker(memory);

		ways.emplace_back("soft-dirty", measure_parts(
							on, memory, which, [&] { tracker.arm(); },
							[&] { expect_found(tracker.written()); },
							whose::thread));
	}
	return ways;
}

/* All of it at once, cowsnap first, for the rows that tell a part each. */
const std::vector<std::pair<std::string, parts>> &all_ways(stage &on)
{
	static std::vector<std::pair<std::string, parts>> ways;

	if (ways.empty()) {
		const pages which = at_random(on.size.middle / page_size, some);

		ways.emplace_back("cowsnap", cowsnap_parts(on, which));
		for (auto &way : other_ways(on, which))
			ways.push_back(std::move(way));
	}
	return ways;
}

/* One of the parts, of all ways that have it; the first after cowsnap is the peer. */
result one_part(stage &on, std::optional<cost> parts::*part)
{
	const auto &ways = all_ways(on);
	result measured = {.ours = *(ways.front().second.*part)};

	for (const auto &[name, way] : std::span(ways).subspan(1)) {
		if (!(way.*part))
			continue;
		if (!measured.peer)
			measured.peer = way.*part;
		measured.others.push_back({name, *(way.*part)});
	}
	return measured;
}

} // namespace

std::vector<row> tracking_rows(const sizes &size)
{
	const std::string middle = named_size(size.middle);

	return {
		{.name = "ways-pause",
		 .what = "pause for a snapshot of " + middle + ", 1,000 pages at random written",
		 .peer = "fork(2)",
		 .measure = [](stage &on) { return one_part(on, &parts::pause); }},
		{.name = "ways-write",
		 .what = "the first write to a page after it",
		 .peer = "fork(2)",
		 .per = "page",
		 .measure = [](stage &on) { return one_part(on, &parts::write); }},
		{.name = "ways-find",
		 .what = "finding which 1,000 pages were written since",
		 .peer = "the first that can",
		 .measure = [](stage &on) { return one_part(on, &parts::find); }},
	};
}

} // namespace cowsnap_bench
