// SPDX-License-Identifier: GPL-2.0-only
/* For how long a FORK stops a writer in another process. */
#include "row.hpp"
#include "watched_writer.hpp"

namespace cowsnap_bench {
namespace {

result writer_stall(stage &on)
{
	live &subject = on.region_of(on.size.big);
	const cost peer = on.process_fork(on.size.big, true);

	/* The writer's process is not to have it, nor to be slowed down by it. */
	on.clear_private();

	watched_writer writer(subject.map);
	const cost ours = meter::repeat(on.size.long_rounds, [&] {
		region held;

		store_all(subject.map);
		return amount(writer.longest_stall([&] { held = subject.memory.snapshot(); }));
	});
	const double idle = writer.longest_stall([&] {
		/* In user mode, which everything interrupts. */
		for (const double end = meter::shared_clock() + 20e6; meter::shared_clock() < end;)
			;
	});

	return {.ours = ours,
		.peer = peer,
		.others = {{"the same writer while nobody forks", amount(idle)}}};
}

} // namespace

std::vector<row> stall_rows(const sizes &size)
{
	const std::string big = named_size(size.big);

	return {{.name = "writer-stall",
		 .what = "longest stall of a writer in another process, FORK of " + big + ", all written",
		 .peer = "the pause of fork(2) of " + big + ", all written",
		 .must = times_the_peer(1.0 / 10),
		 .aim = times_the_peer(1.0 / 100),
		 .measure = writer_stall}};
}

} // namespace cowsnap_bench
