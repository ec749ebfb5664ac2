// SPDX-License-Identifier: GPL-2.0-only
/* What a FORK takes, by what was written; beside fork(2). */
#include "row.hpp"

namespace cowsnap_bench {
namespace {

/* Of FORK, when the pages @which were written since the last one, whose snapshot lives. */
cost fork_after(stage &on, live &subject, const pages &which, std::size_t rounds)
{
	region held = subject.memory.snapshot();

	return meter::repeat(rounds, [&] {
		region made;

		store(subject.map, which);
		const cost taken = on.measure.timed([&] { made = subject.memory.snapshot(); });
		held = std::move(made);
		return taken;
	});
}

result clean(stage &on)
{
	live &subject = on.region_of(on.size.big);

	store_all(subject.map);
	return {fork_after(on, subject, {}, on.size.rounds), on.process_fork(gibibyte, false)};
}

result in_a_row_dirty(stage &on)
{
	constexpr std::size_t count = 1000;
	live &subject = on.region_of(on.size.big);

	return {fork_after(on, subject, in_a_row(count), on.size.rounds) / count,
		on.process_fork(on.size.big, false) / subject.map.pages()};
}

result at_random_dirty(stage &on)
{
	constexpr std::size_t count = 1000;
	live &subject = on.region_of(on.size.big);

	return {fork_after(on, subject, at_random(subject.map.pages(), count), on.size.rounds) / count,
		on.process_fork(on.size.big, false) / subject.map.pages()};
}

/* No snapshot lives while all is written, or all would be copied. */
cost fork_all_dirty(stage &on, live &subject, bool prepare)
{
	return meter::repeat(on.size.long_rounds, [&] {
		region made;

		store_all(subject.map);
		if (prepare && subject.memory.prepare())
			throw std::runtime_error("PREPARE left something though nobody wrote");
		return on.measure.timed([&] { made = subject.memory.snapshot(); });
	});
}

result all_dirty(stage &on)
{
	live &subject = on.region_of(on.size.big);

	return {fork_all_dirty(on, subject, false) / subject.map.pages(),
		on.process_fork(on.size.big, true) / subject.map.pages()};
}

result prepared(stage &on)
{
	live &subject = on.region_of(on.size.big);

	return {fork_all_dirty(on, subject, true), on.process_fork(on.size.big, true)};
}

result one_percent_in_runs(stage &on)
{
	live &subject = on.region_of(on.size.big);
	const pages which = in_runs(subject.map.pages(), subject.map.pages() / 100, 64);

	return {fork_after(on, subject, which, on.size.rounds), on.process_fork(on.size.big, false)};
}

result one_percent_at_random(stage &on)
{
	live &subject = on.region_of(on.size.big);
	const pages which = at_random(subject.map.pages(), subject.map.pages() / 100);

	return {fork_after(on, subject, which, on.size.rounds), on.process_fork(on.size.big, false)};
}

/* FORK, and then every page, all of them dirty, written again in the order of @which. */
result sum(stage &on, const pages &which)
{
	live &subject = on.region_of(on.size.middle);
	mapping &memory = on.private_of(on.size.middle);

	store_all(subject.map);

	const cost ours = meter::repeat(on.size.long_rounds, [&] {
		region held;

		return on.measure.timed([&] {
			held = subject.memory.snapshot();
			store(subject.map, which);
		});
	});
	const cost peer = meter::repeat(on.size.long_rounds, [&] {
		std::optional<child> process;

		return on.measure.timed([&] {
			process.emplace(waiting_child());
			store(memory, which);
		});
	});

	return {ours / which.size(), peer / which.size()};
}

std::vector<row> dirty_rows(const std::string &big)
{
	const std::string fork = "fork(2) of " + big, peer = fork + ", per page";
	const std::string written = ", all written";

	return {
		{.name = "fork-in-a-row",
		 .what = "FORK of " + big + ", 1,000 pages in a row written",
		 .peer = peer,
		 .per = "dirty page",
		 .must = times_the_peer(3),
		 .aim = times_the_peer(1),
		 .measure = in_a_row_dirty},
		{.name = "fork-at-random",
		 .what = "FORK of " + big + ", 1,000 pages at random written",
		 .peer = peer,
		 .per = "dirty page",
		 .measure = at_random_dirty},
		{.name = "fork-1-percent-runs",
		 .what = "FORK of " + big + ", 1 % written in runs of 64 pages",
		 .peer = fork,
		 .must = times_the_peer(1.0 / 25),
		 .aim = times_the_peer(1.0 / 80),
		 .measure = one_percent_in_runs},
		{.name = "fork-1-percent-random",
		 .what = "FORK of " + big + ", 1 % written in single pages at random",
		 .peer = fork,
		 .must = times_the_peer(1.0 / 8),
		 .aim = times_the_peer(1.0 / 40),
		 .measure = one_percent_at_random},
		{.name = "fork-all-dirty",
		 .what = "FORK of " + big + ", all written",
		 .peer = fork + written + ", per page",
		 .per = "dirty page",
		 .must = times_the_peer(3),
		 .aim = times_the_peer(1),
		 .measure = all_dirty},
		{.name = "fork-prepared",
		 .what = "FORK of " + big + ", all written, after PREPARE",
		 .peer = fork + written,
		 .must = times_the_peer(1.0 / 100),
		 .aim = times_the_peer(1.0 / 1000),
		 .measure = prepared},
	};
}

} // namespace

std::vector<row> fork_rows(const sizes &size)
{
	const std::string big = named_size(size.big), middle = named_size(size.middle);
	std::vector<row> rows = {
		{.name = "fork-clean",
		 .what = "FORK of " + big + ", nothing written since the last",
		 .peer = "fork(2) of " + named_size(gibibyte),
		 .must = times_the_peer(1.0 / 1000),
		 .aim = at_most(6000),
		 .measure = clean},
	};

	for (const row &one : dirty_rows(big))
		rows.push_back(one);
	rows.push_back({.name = "sum-in-order",
			.what = "FORK of " + middle + ", all written, and all written again in order",
			.peer = "the same with fork(2)",
			.per = "page",
			.must = times_the_peer(1.1),
			.aim = times_the_peer(0.7),
			.measure = [](stage &on) {
				return sum(on, in_a_row(on.size.middle / page_size));
			}});
	rows.push_back({.name = "sum-at-random",
			.what = "the same, written again in random order",
			.peer = "the same with fork(2)",
			.per = "page",
			.measure = [](stage &on) {
				const std::size_t all = on.size.middle / page_size;

				return sum(on, at_random(all, all));
			}});
	return rows;
}

} // namespace cowsnap_bench
