// SPDX-License-Identifier: GPL-2.0-only
/* A fork, and somebody reads all that it holds; beside the child of fork(2). */
#include <sys/mman.h>

#include "row.hpp"

namespace cowsnap_bench {
namespace {

/* From before fork(2) to where the child has read all; the VM's one CPU does nothing else. */
cost process_read_all(stage &on, const mapping &memory)
{
	const cowsnap_test::shared<double> end;

	return meter::repeat(on.size.long_rounds, [&] {
		const double start = meter::shared_clock();
		child process([&] {
			load_all(memory);
			*end = meter::shared_clock();
		});

		if (!process.succeeded())
			throw std::runtime_error("the child that reads all failed");
		return amount(*end - start);
	});
}

cost snapshot_read_all(stage &on, const live &subject, bool populate)
{
	return meter::repeat(on.size.long_rounds, [&] {
		region snapshot;
		mapping map;

		return on.measure.timed(
			[&] {
				snapshot = subject.memory.snapshot();
				map = snapshot.map(PROT_READ);
				if (populate)
					map.advise(MADV_POPULATE_READ);
				load_all(map);
			},
			whose::all);
	});
}

result read_all(stage &on, std::uint32_t granule_shift)
{
	live &subject = on.region_of(on.size.middle, granule_shift);
	mapping &memory = on.private_of(on.size.middle);
	const std::size_t count = memory.pages();

	/* Either is mapped by who forks it. */
	store_all(memory);
	load_all(subject.map);
	return {.ours = snapshot_read_all(on, subject, false) / count,
		.peer = process_read_all(on, memory) / count,
		.others = {{"ours with MADV_POPULATE_READ",
			    snapshot_read_all(on, subject, true) / count}}};
}

} // namespace

std::vector<row> read_rows(const sizes &size)
{
	const std::string what = "fork of " + named_size(size.middle) + " and all of it read, granules of ";
	const std::string peer = "fork(2), and the child reads all";

	return {
		{.name = "read-all-4k",
		 .what = what + "4 KiB",
		 .peer = peer,
		 .per = "page",
		 .must = times_the_peer(2.5),
		 .aim = times_the_peer(1.2),
		 .measure = [](stage &on) { return read_all(on, 12); }},
		{.name = "read-all-64k",
		 .what = what + "64 KiB",
		 .peer = peer,
		 .per = "page",
		 .measure = [](stage &on) { return read_all(on, 16); }},
		{.name = "read-all-2m",
		 .what = what + "2 MiB",
		 .peer = peer,
		 .per = "page",
		 .must = times_the_peer(0.5),
		 .aim = times_the_peer(0.1),
		 .measure = [](stage &on) { return read_all(on, 21); }},
	};
}

} // namespace cowsnap_bench
