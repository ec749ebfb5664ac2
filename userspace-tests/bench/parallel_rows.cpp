// SPDX-License-Identifier: GPL-2.0-only
/* Two CPUs that fault in one region; by the clock, as it takes two. */
#include <latch>
#include <thread>

#include "row.hpp"

namespace cowsnap_bench {
namespace {

/* From the start of so many threads to the end of the last; each stores to its part of the pages. */
double store_by(std::size_t threads, const mapping &memory, const pages &which)
{
	std::latch ready(static_cast<std::ptrdiff_t>(threads) + 1);
	std::vector<std::thread> running;
	const std::size_t part = which.size() / threads;

	for (std::size_t i = 0; i < threads; i++)
		running.emplace_back([&, i] {
			ready.arrive_and_wait();
			store(memory, std::span(which).subspan(i * part, part));
		});
	ready.arrive_and_wait();

	const double start = meter::shared_clock();

	for (std::thread &thread : running)
		thread.join();
	return meter::shared_clock() - start;
}

/* Two threads beside one, of all that is stored; @make gives memory that faults. */
template <typename Make>
result one_and_two(stage &on, const pages &which, Make &&make)
{
	const auto measure = [&](std::size_t threads) {
		return meter::repeat(on.size.rounds, [&] {
			const auto memory = make();

			return amount(store_by(threads, memory.map, which)) / which.size();
		});
	};

	return {measure(2), measure(1)};
}

struct fork_of_it {
	region memory;
	mapping map;
};

struct only_mapped {
	mapping map;
};

result holes(stage &on)
{
	const std::uint64_t size = on.size.small;
	const pages which = in_a_row(size / page_size);
	result measured = one_and_two(on, which, [&] { return only_mapped{on.dev.create(size).map()}; });
	const result process =
		one_and_two(on, which, [&] { return only_mapped{small_pages(size, false)}; });

	measured.others = {{"two threads, anonymous memory", process.ours},
			   {"one thread, anonymous memory", process.peer.value()}};
	return measured;
}

result copies(stage &on)
{
	const region parent = filled(on.dev, on.size.small);

	return one_and_two(on, in_a_row(on.size.small / page_size), [&] {
		region fork = parent.fork();
		mapping map = fork.map();

		return fork_of_it{std::move(fork), std::move(map)};
	});
}

} // namespace

std::vector<row> parallel_rows(const sizes &size)
{
	const std::string small = named_size(size.small);

	return {
		{.name = "two-cpus-holes",
		 .what = "first write to the holes of one region of " + small + ", by two threads",
		 .peer = "by one thread",
		 .per = "page",
		 .measure = holes,
		 .parallel = true},
		{.name = "two-cpus-copies",
		 .what = "first write to the pages of one fork of " + small + ", by two threads",
		 .peer = "by one thread",
		 .per = "page",
		 .measure = copies,
		 .parallel = true},
	};
}

} // namespace cowsnap_bench
