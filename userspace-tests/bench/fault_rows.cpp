// SPDX-License-Identifier: GPL-2.0-only
/* What the first write to a page takes, by what the page is; beside the faults of a process's own memory. */
#include "row.hpp"

namespace cowsnap_bench {
namespace {

constexpr std::size_t some = 4096;

/*
 * After a FORK, whose snapshot lives, a write to each of @which; loaded first when @read.
 * The snapshot of the round before has closed.
 */
cost copy_cost(stage &on, live &subject, const pages &which, bool read)
{
	return meter::repeat(on.size.rounds, [&] {
		const region held = subject.memory.snapshot();

		if (read)
			load(subject.map, which);
		meter::settle();
		return on.measure.timed([&] { store(subject.map, which); }) / which.size();
	});
}

cost process_copy_cost(stage &on, const mapping &memory, const pages &which)
{
	store(memory, which);
	return meter::repeat(on.size.long_rounds, [&] {
		const child process = waiting_child();

		meter::settle();
		return on.measure.timed([&] { store(memory, which); }) / which.size();
	});
}

result copy_at_random(stage &on, bool read)
{
	const pages which = at_random(on.size.big / page_size, some);

	return {copy_cost(on, on.region_of(on.size.big), which, read),
		process_copy_cost(on, on.private_of(on.size.big), which)};
}

/* In order, all of it. */
result copy_large(stage &on, std::uint32_t granule_shift)
{
	const pages which = in_a_row(on.size.small / page_size);

	return {copy_cost(on, on.region_of(on.size.small, granule_shift), which, false),
		process_copy_cost(on, on.private_of(on.size.small), which)};
}

result hole(stage &on)
{
	const auto first_touch = [&](const auto &make) {
		return meter::repeat(on.size.long_rounds, [&] {
			const mapping memory = make();

			return on.measure.timed([&] { store_all(memory); }) / memory.pages();
		});
	};
	const std::uint64_t size = on.size.small;

	/* Mappings keep what they map. */
	return {.ours = first_touch([&] { return on.dev.create(size).map(); }),
		.peer = first_touch([&] { return small_pages(size, false); }),
		.others = {{"first write to a page of a memfd",
			    first_touch([&] { return cowsnap_test::make_memfd(size).map(); })}}};
}

/* A write to what a region shared that has closed, and to what a process shared that has ended. */
result sole_owner(stage &on, const pages &which, bool read)
{
	live &subject = on.region_of(on.size.big);
	mapping &memory = on.private_of(on.size.big);

	store(subject.map, which);
	store(memory, which);

	const cost ours = meter::repeat(on.size.rounds, [&] {
		subject.memory.snapshot().close();
		if (read)
			load(subject.map, which);
		return on.measure.timed([&] { store(subject.map, which); }) / which.size();
	});
	const cost peer = meter::repeat(on.size.long_rounds, [&] {
		waiting_child().finish(SIGKILL);
		return on.measure.timed([&] { store(memory, which); }) / which.size();
	});

	return {ours, peer};
}

std::vector<row> copy_rows(const std::string &big, const std::string &small)
{
	return {
		{.name = "copy-present",
		 .what = "first write after a FORK of " + big + " to pages at random that were read before",
		 .peer = "COW fault after fork(2)",
		 .per = "page",
		 .must = times_the_peer(1.6),
		 .aim = times_the_peer(0.95),
		 .measure = [](stage &on) { return copy_at_random(on, true); }},
		{.name = "copy-absent",
		 .what = "the same, not read before",
		 .peer = "COW fault after fork(2)",
		 .per = "page",
		 .measure = [](stage &on) { return copy_at_random(on, false); }},
		{.name = "copy-64k",
		 .what = "first write after a FORK of " + small + ", in order, granules of 64 KiB",
		 .peer = "COW fault after fork(2), in order",
		 .per = "page",
		 .must = times_the_peer(0.4),
		 .aim = times_the_peer(0.2),
		 .measure = [](stage &on) { return copy_large(on, 16); }},
		{.name = "copy-2m",
		 .what = "the same, granules of 2 MiB",
		 .peer = "COW fault after fork(2), in order",
		 .per = "page",
		 .measure = [](stage &on) { return copy_large(on, 21); }},
	};
}

std::vector<row> sole_owner_rows()
{
	return {
		{.name = "sole-owner-absent",
		 .what = "write after the snapshot closed, in order, page not mapped",
		 .peer = "write after the child of fork(2) ended, in order",
		 .per = "page",
		 .must = times_the_peer(1.4),
		 .aim = times_the_peer(0.9),
		 .measure = [](stage &on) { return sole_owner(on, in_a_row(some), false); }},
		{.name = "sole-owner-present",
		 .what = "the same, page was read before",
		 .peer = "write after the child of fork(2) ended, in order",
		 .per = "page",
		 .must = times_the_peer(1.4),
		 .aim = times_the_peer(0.9),
		 .measure = [](stage &on) { return sole_owner(on, in_a_row(some), true); }},
		{.name = "sole-owner-random",
		 .what = "the same at random, page not mapped",
		 .peer = "write after the child of fork(2) ended, at random",
		 .per = "page",
		 .measure =
			 [](stage &on) {
				 return sole_owner(on, at_random(on.size.big / page_size, some),
						   false);
			 }},
	};
}

} // namespace

std::vector<row> fault_rows(const sizes &size)
{
	std::vector<row> rows = copy_rows(named_size(size.big), named_size(size.small));

	for (const row &one : sole_owner_rows())
		rows.push_back(one);
	rows.push_back({.name = "hole",
			.what = "first write to a hole, in order",
			.peer = "first write to a page of anonymous memory",
			.per = "page",
			.must = times_the_peer(1.2),
			.aim = times_the_peer(0.9),
			.measure = hole});
	return rows;
}

} // namespace cowsnap_bench
