// SPDX-License-Identifier: GPL-2.0-only
/* What takes more than one process, or more than one fork. */
#include <cstring>

#include "descriptors.hpp"
#include "row.hpp"

namespace cowsnap_bench {
namespace {

using cowsnap_test::event;

/* A FORK, and then 2,000 pages at random are written: by one process, or half of them by another. */
cost fork_and_write(stage &on, live &subject, const pages &which, bool another)
{
	const std::span<const std::size_t> all(which);
	const std::span mine = another ? all.first(all.size() / 2) : all;
	const std::span others = all.subspan(mine.size());
	event start, done;
	const child writer([&] {
		for (;;) {
			start.wait();
			store(subject.map, others);
			done.tell();
		}
	});

	return meter::repeat(on.size.rounds, [&] {
		region held;

		return on.measure.timed(
			[&] {
				held = subject.memory.snapshot();
				start.tell();
				store(subject.map, mine);
				done.wait();
			},
			whose::all) / all.size();
	});
}

result two_writers(stage &on)
{
	live &subject = on.region_of(on.size.middle);
	const pages which = at_random(subject.map.pages(), 2000);
	const mapping memory = cowsnap_test::make_memfd(on.size.middle).map();
	mapping &copy = on.private_of(on.size.middle);

	store_all(memory);
	return {.ours = fork_and_write(on, subject, which, true),
		/* The two would have to wait meanwhile, or it is no snapshot. */
		.peer = meter::repeat(on.size.rounds, [&] {
			return on.measure.timed([&] {
				std::memcpy(copy.data(), memory.data(), memory.size());
				store(memory, which);
			}) / which.size();
		}),
		.others = {{"ours, all by one process", fork_and_write(on, subject, which, false)}}};
}

result life(stage &on)
{
	live &subject = on.region_of(on.size.big);
	mapping &memory = on.private_of(on.size.big);
	const pages which = in_runs(memory.pages(), memory.pages() / 100, 64);

	subject.memory.snapshot();
	return {meter::repeat(on.size.rounds, [&] {
			return on.measure.timed(
				[&] {
					const region snapshot = subject.memory.snapshot();
					const mapping map = snapshot.map(PROT_READ);

					load(map, which);
				},
				whose::all);
		}),
		meter::repeat(on.size.long_rounds, [&] {
			return on.measure.timed(
				[&] { child([&] { load(memory, which); }).finish(); }, whose::all);
		})};
}

/* Each fork of one instant with the others, or of its own. */
result fork_many(stage &on)
{
	constexpr std::size_t count = 1000;
	const cowsnap_test::descriptor_limit enough(2 * count);
	live &subject = on.region_of(on.size.big);
	const std::vector<const region *> parents(count, &subject.memory);

	subject.memory.snapshot();
	return {meter::repeat(on.size.rounds, [&] {
			std::vector<region> forks;

			return on.measure.timed([&] {
				forks = on.dev.fork_all(parents, COWSNAP_FORK_F_READONLY);
			}) / count;
		}),
		meter::repeat(on.size.rounds, [&] {
			std::vector<region> forks;

			forks.reserve(count);
			return on.measure.timed([&] {
				for (std::size_t i = 0; i < count; i++)
					forks.push_back(subject.memory.snapshot());
			}) / count;
		})};
}

} // namespace

std::vector<row> process_rows(const sizes &size)
{
	const std::string big = named_size(size.big), middle = named_size(size.middle);

	return {
		{.name = "two-writers",
		 .what = "FORK of " + middle + ", then 2,000 pages at random written by two processes",
		 .peer = "memfd + memcpy, then the same",
		 .per = "page",
		 .measure = two_writers},
		{.name = "life",
		 .what = "life of a snapshot of " + big + ": FORK, mmap, 1 % read in runs of 64 pages, munmap, close",
		 .peer = "fork(2), the child reads the same and ends, wait",
		 .measure = life},
		{.name = "fork-many",
		 .what = "FORK_MANY, 1,000 of " + big,
		 .peer = "1,000 times FORK",
		 .per = "fork",
		 .measure = fork_many},
	};
}

} // namespace cowsnap_bench
