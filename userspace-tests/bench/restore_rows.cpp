// SPDX-License-Identifier: GPL-2.0-only
/* Rolling back, once and in loops; beside tracking what is written with mprotect(2), and beside copying all. */
#include <cstring>

#include "row.hpp"
#include "trackers.hpp"

namespace cowsnap_bench {
namespace {

constexpr std::size_t some = 1000;

/* What was written since arm() is again what it was. */
void copy_back(const mapping &memory, mprotect_tracker &tracker)
{
	const pages &written = tracker.written();

	/* The latest first, so that of a page that stands there twice the oldest stays. */
	for (std::size_t i = written.size(); i-- > 0;)
		std::memcpy(memory.page(written[i]).data(), &tracker.old_contents()[i * page_size],
			    page_size);
}

result restore(stage &on)
{
	live &subject = on.region_of(on.size.big);
	mapping &memory = on.private_of(on.size.big);
	const pages which = at_random(memory.pages(), some);
	const region snapshot = subject.memory.snapshot();

	store(subject.map, which);

	const cost ours = meter::repeat(on.size.rounds, [&] {
		return on.measure.timed([&] {
			subject.memory.restore(snapshot);
			store(subject.map, which);
		});
	});

	mprotect_tracker tracker(memory, true);

	tracker.arm();
	store(memory, which);

	const cost peer = meter::repeat(on.size.rounds, [&] {
		return on.measure.timed([&] {
			copy_back(memory, tracker);
			tracker.arm();
			store(memory, which);
		});
	});

	return {ours / some, peer / some};
}

/* Faults at what was mapped before a RESTORE and is the same after it. */
result faults_after_restore(stage &on)
{
	live &subject = on.region_of(on.size.big);
	const pages all = at_random(subject.map.pages(), 2 * some);
	const std::span changed = std::span(all).first(some), same = std::span(all).subspan(some);
	const region snapshot = subject.memory.snapshot();

	load(subject.map, same);
	store(subject.map, changed);
	subject.memory.restore(snapshot);

	const std::uint64_t before = subject.memory.stat().faults;

	load(subject.map, same);
	return {.ours = amount(static_cast<double>(subject.memory.stat().faults - before))};
}

/* 170 MB, of which 1,500 pages at random are written a frame; every 8th goes 7 frames back. */
struct frame_loop {
	static constexpr std::size_t pages_in_all = 170'000'000 / 4096, ring = 8, back = 7;

	explicit frame_loop(std::size_t count) : frames(count / ring * ring)
	{
		for (std::size_t i = 0; i < frames; i++)
			writes.push_back(at_random(pages_in_all, 1500, i));
	}

	/* Writes, and has @keep called for each frame and @roll_back for each 8th, with its slot in the ring. */
	template <typename Keep, typename Roll>
	void run(const mapping &memory, Keep &&keep, Roll &&roll_back) const
	{
		for (std::size_t frame = 0; frame < frames; frame++) {
			store(memory, writes[frame]);
			keep(frame % ring);
			if (frame % ring == ring - 1)
				roll_back((frame - back) % ring);
		}
	}

	std::size_t frames;
	std::vector<pages> writes;
};

cost snapshot_frames(stage &on, const frame_loop &loop)
{
	live &subject = on.region_of(loop.pages_in_all * page_size);
	std::array<region, frame_loop::ring> ring;

	return meter::repeat(1, [&] {
		return on.measure.timed([&] {
			loop.run(
				subject.map, [&](std::size_t slot) { ring[slot] = subject.memory.snapshot(); },
				[&](std::size_t slot) { subject.memory.restore(ring[slot]); });
		}) / loop.frames;
	});
}

cost copied_frames(stage &on, const frame_loop &loop)
{
	const std::uint64_t size = loop.pages_in_all * page_size;
	const mapping memory = cowsnap_test::make_memfd(size).map();
	std::vector<mapping> ring;

	for (std::size_t i = 0; i < loop.ring; i++)
		ring.push_back(small_pages(size));
	return meter::repeat(1, [&] {
		return on.measure.timed([&] {
			loop.run(
				memory,
				[&](std::size_t slot) {
					std::memcpy(ring[slot].data(), memory.data(), size);
				},
				[&](std::size_t slot) {
					std::memcpy(memory.data(), ring[slot].data(), size);
				});
		}) / loop.frames;
	});
}

/* A log of the old contents for each frame, which going back undoes. */
cost logged_frames(stage &on, const frame_loop &loop)
{
	const mapping memory = small_pages(loop.pages_in_all * page_size);
	mprotect_tracker tracker(memory, true);
	std::array<std::pair<pages, std::vector<std::byte>>, frame_loop::ring> ring;

	tracker.arm();
	return meter::repeat(1, [&] {
		return on.measure.timed([&] {
			loop.run(
				memory,
				[&](std::size_t slot) {
					tracker.exchange(ring[slot].first, ring[slot].second);
					tracker.arm();
				},
				[&](std::size_t slot) {
					memory.protect(PROT_READ | PROT_WRITE);
					for (std::size_t i = loop.ring; --i > slot;)
						for (std::size_t at = ring[i].first.size(); at-- > 0;)
							std::memcpy(memory.page(ring[i].first[at]).data(),
								    &ring[i].second[at * page_size], page_size);
					tracker.arm();
				});
		}) / loop.frames;
	});
}

result frames(stage &on)
{
	const frame_loop loop(on.size.frames);
	const cost ours = snapshot_frames(on, loop);

	/* Nine times 170 MB are wanted now. */
	on.clear();
	return {.ours = ours,
		.peer = copied_frames(on, loop),
		.others = {{"mprotect + SIGSEGV and a log of old pages", logged_frames(on, loop)}}};
}

/* 1 to 50 pages are written and taken back, over and over. */
class reset_loop {
public:
	explicit reset_loop(std::size_t all_pages) : order_(at_random(all_pages, 4096)) {}

	/* What is written in round @round. */
	std::span<const std::size_t> writes(std::size_t round) const
	{
		const std::size_t count = 1 + round % 50;

		return std::span(order_).subspan(round * 61 % (order_.size() - 50), count);
	}

private:
	pages order_;
};

cost process_resets(stage &on, const reset_loop &loop, std::size_t rounds)
{
	const mapping memory = small_pages(on.size.small);
	mprotect_tracker tracker(memory, true);

	tracker.arm();
	return on.measure.timed([&] {
		for (std::size_t i = 0; i < rounds; i++) {
			store(memory, loop.writes(i));
			copy_back(memory, tracker);
			tracker.arm();
		}
	}) / rounds;
}

/* A server that forks a child for each round, as fuzzers do. */
cost fork_server(stage &on, const reset_loop &loop, std::size_t rounds)
{
	const mapping memory = small_pages(on.size.small);

	return on.measure.timed(
		[&] {
			for (std::size_t i = 0; i < rounds; i++)
				child([&] { store(memory, loop.writes(i)); }).finish();
		},
		whose::all) / rounds;
}

result resets(stage &on)
{
	live &subject = on.region_of(on.size.small);
	const reset_loop loop(subject.map.pages());
	const region snapshot = subject.memory.snapshot();
	const std::size_t tenth = on.size.resets / 10;
	cost all, first, last;

	for (std::size_t part = 0; part < 10; part++) {
		last = on.measure.timed([&] {
			for (std::size_t i = 0; i < tenth; i++) {
				store(subject.map, loop.writes(part * tenth + i));
				subject.memory.restore(snapshot);
			}
		});
		all += last;
		if (part == 1)
			first = last;
	}
	on.clear_private();
	return {.ours = all / (10 * tenth),
		.peer = process_resets(on, loop, 1000),
		.others = {{"a server that forks a process for each", fork_server(on, loop, 100)},
			   {"ours, of the 2nd tenth of all", first / tenth},
			   {"ours, of the last tenth", last / tenth}}};
}

} // namespace

std::vector<row> restore_rows(const sizes &size)
{
	const std::string big = named_size(size.big);

	return {
		{.name = "restore",
		 .what = "RESTORE of 1,000 pages at random in " + big + ", and all written again",
		 .peer = "mprotect + SIGSEGV, copied back",
		 .per = "dirty page",
		 .must = times_the_peer(0.5),
		 .measure = restore},
		{.name = "restore-same",
		 .what = "page faults by loads of 1,000 pages that a RESTORE did not change",
		 .per = "faults",
		 .aim = at_most(0),
		 .measure = faults_after_restore,
		 .quick = true},
		{.name = "frame-loop",
		 .what = "frame of a loop: 170 MB, 1,500 pages at random written, FORK, a ring of 8, "
			 "every 8th time RESTORE of 7 frames ago",
		 .peer = "memcpy from and to a ring of memory",
		 .measure = frames},
		{.name = "reset-loop",
		 .what = "reset of " + named_size(size.small) + ", 1 to 50 pages at random written, "
			 "RESTORE; " + named_count(size.resets) + " times",
		 .peer = "mprotect + SIGSEGV, copied back",
		 .measure = resets},
	};
}

} // namespace cowsnap_bench
