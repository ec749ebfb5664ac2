// SPDX-License-Identifier: GPL-2.0-only
/* How many snapshots there may be, beside and below one another, and what that does to what each costs. */
#include <algorithm>
#include <fstream>

#include <sys/resource.h>

#include "descriptors.hpp"
#include "meminfo.hpp"
#include "row.hpp"
#include "watched_writer.hpp"

namespace cowsnap_bench {
namespace {

/* In the VM a nanosecond is an instruction, of which a real machine does more than one a nanosecond. */
constexpr double few_milliseconds = 3e6;

/*
 * Bytes that are free.  Not those that are available, with which the kernel counts inodes, as if it could do without
 * those of snapshots that live.
 */
double free_memory()
{
	return static_cast<double>(cowsnap_test::sum_of("/proc/meminfo", "MemFree:") * 1024 +
				   cowsnap_test::sum_of("/proc/zoneinfo", "count:") * page_size);
}

/* What many idle snapshots of one region showed; measured once for several rows. */
struct crowd {
	std::size_t alive = 0;
	double bytes_each = 0;
	cost first, next;
	double longest_close = 0, longest_stall = 0;
	std::string note;
};

/* So many more, as long as the kernel makes them. */
void snapshot_many(const region &parent, std::vector<region> &alive, std::size_t count)
{
	try {
		while (alive.size() < count)
			alive.push_back(parent.snapshot());
	} catch (const std::system_error &) {
		/* No more than these, which the figure shows. */
	}
}

cost next_snapshot(stage &on, const region &parent)
{
	return meter::repeat(on.size.rounds, [&] {
		region made;

		return on.measure.timed([&] { made = parent.snapshot(); });
	});
}

/* The longest close(2) of all, in order, backwards, and at random. */
double close_all(stage &on, std::vector<region> &alive)
{
	const std::size_t third = alive.size() / 3;
	pages order = in_a_row(alive.size());
	double longest = 0;

	std::reverse(order.begin() + static_cast<std::ptrdiff_t>(third),
		     order.begin() + static_cast<std::ptrdiff_t>(2 * third));
	std::shuffle(order.begin() + static_cast<std::ptrdiff_t>(2 * third), order.end(), std::mt19937_64(1));
	for (const std::size_t which : order)
		longest = std::max(longest, on.measure.timed([&] { alive[which].close(); }).time());
	alive.clear();
	return longest;
}

crowd measure_crowd(stage &on)
{
	const std::size_t most = on.size.more_snapshots;
	live &subject = on.region_of(on.size.big);
	crowd seen;

	on.clear_private();
	if (std::ofstream file("/proc/sys/fs/nr_open"); file << most + 1000)
		file.flush();

	const cowsnap_test::descriptor_limit enough(most + 1000);
	std::vector<region> alive;

	alive.reserve(most);
	store_all(subject.map);
	subject.memory.snapshot();
	seen.first = next_snapshot(on, subject.memory);

	const double before = free_memory();

	snapshot_many(subject.memory, alive, on.size.snapshots);

	const double after = free_memory();

	seen.bytes_each = (before - after) / static_cast<double>(alive.size());
	seen.next = next_snapshot(on, subject.memory);

	/* Into the last of the memory nobody goes for a figure. */
	const double wanted = static_cast<double>(most - alive.size()) * seen.bytes_each * 1.1;

	if (wanted < after)
		snapshot_many(subject.memory, alive, most);
	else
		seen.note = "not tried further: " + named_count(most) + " would not fit into this machine";
	seen.alive = alive.size();

	watched_writer writer(subject.map);

	seen.longest_stall = writer.longest_stall([&] { seen.longest_close = close_all(on, alive); });
	return seen;
}

const crowd &crowd_of(stage &on)
{
	static const crowd seen = measure_crowd(on);

	return seen;
}

/* Generations, each a writable fork of the one before, where one page is written. */
class chain {
public:
	explicit chain(stage &on) : on_(on)
	{
		generations_.push_back(filled(on.dev, on.size.middle));
	}

	/* The fault of a fork of a region that has @depth ancestors, at a page of those that are shared. */
	cost fault(std::size_t depth, bool write)
	{
		const pages which = at_random(on_.size.middle / page_size, 1000);

		while (generations_.size() < depth) {
			region next = generations_.back().fork();

			next.fill_page(generations_.size(), 2);
			generations_.push_back(std::move(next));
		}
		return meter::repeat(on_.size.rounds, [&] {
			const region fork = generations_[depth - 1].fork();
			const mapping map = fork.map();

			return on_.measure.timed([&] {
				if (write)
					store(map, which);
				else
					load(map, which);
			}) / which.size();
		});
	}

private:
	stage &on_;
	std::vector<region> generations_;
};

result fault_at_depth(stage &on, bool write)
{
	const cowsnap_test::descriptor_limit enough(4096);
	chain generations(on);
	const cost shallow = generations.fault(1, write);

	return {generations.fault(1000, write), shallow};
}

std::vector<row> crowd_rows(const sizes &size)
{
	const std::string big = named_size(size.big), count = named_count(size.snapshots);

	return {
		{.name = "idle-memory",
		 .what = "memory of an idle snapshot of " + big + ", of " + count + " of them",
		 .per = "bytes",
		 .must = at_most(4096),
		 .aim = at_most(2048),
		 .measure = [](stage &on) { return result{.ours = amount(crowd_of(on).bytes_each)}; }},
		{.name = "live-snapshots",
		 .what = "snapshots alive together, of " + big,
		 .per = "snapshots",
		 .must = at_least(static_cast<double>(size.snapshots)),
		 .aim = at_least(static_cast<double>(size.more_snapshots)),
		 .measure =
			 [](stage &on) {
				 const crowd &seen = crowd_of(on);

				 return result{.ours = amount(static_cast<double>(seen.alive)),
					       .note = seen.note};
			 }},
		{.name = "fork-in-a-crowd",
		 .what = "FORK of " + big + " beside " + count + " snapshots",
		 .peer = "FORK of the same without any",
		 .must = times_the_peer(1.05),
		 .measure =
			 [](stage &on) {
				 return result{crowd_of(on).next, crowd_of(on).first};
			 }},
		{.name = "close-in-a-crowd",
		 .what = "longest close of all those snapshots, in order, backwards and at random",
		 .must = at_most(few_milliseconds),
		 .measure = [](stage &on) { return result{.ours = amount(crowd_of(on).longest_close)}; }},
		{.name = "stall-by-closing",
		 .what = "longest stall of a writer to the region while all those close",
		 .must = at_most(few_milliseconds),
		 .measure = [](stage &on) { return result{.ours = amount(crowd_of(on).longest_stall)}; }},
	};
}

} // namespace

std::vector<row> scale_rows(const sizes &size)
{
	std::vector<row> rows = crowd_rows(size);

	for (const bool write : {true, false})
		rows.push_back({.name = write ? "depth-write" : "depth-read",
				.what = std::string(write ? "first write to" : "first read of") +
					" a page at random, 1,000 generations of forks above",
				.peer = "the same, one generation",
				.per = "page",
				.must = times_the_peer(1.05),
				.measure = [write](stage &on) { return fault_at_depth(on, write); }});
	return rows;
}

} // namespace cowsnap_bench
