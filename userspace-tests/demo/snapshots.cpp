// SPDX-License-Identifier: GPL-2.0-only
#include "snapshots.hpp"

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "measure.hpp"
#include "meminfo.hpp"
#include "party.hpp"
#include "store.hpp"

namespace cowsnap_demo {
namespace {

using cowsnap_test::mapping;
using cowsnap_test::memory_file;
using cowsnap_test::region;

/* How many updates to make; the answer, when they are made, is the same. */
using order = std::uint64_t;

/* Two of them lie between two snapshots; fewer for a small store. */
constexpr order longest_burst = 50;
/* While one snapshot is verified once more. */
constexpr order burst_at_the_end = 5;

/* Makes as many random updates as it is told to. */
party start_writer(const memory_file &file, std::size_t records)
{
	return party("writer", [&file, records](int socket) {
		const mapping memory = file.map();
		std::mt19937_64 engine(records);
		order updates = 0;

		while (receive_message(socket, updates)) {
			for (order i = 0; i < updates; i++)
				update_record(memory.bytes(), engine() % records);
			send_message(socket, updates);
		}
	});
}

/* Verifies each snapshot that it is given, and then those that it is asked about. */
party start_reader()
{
	return party("reader", [](int socket) {
		std::vector<mapping> snapshots;
		const auto verify = [&](std::size_t which) {
			send_message(socket, examine(snapshots.at(which).bytes()));
		};

		for (std::size_t i = 0; i < snapshot_count; i++) {
			const region snapshot(cowsnap_test::receive_fd(socket));

			/* From here on the mapping keeps it. */
			snapshots.push_back(
				snapshot.map(PROT_READ, MAP_SHARED | MAP_POPULATE));
			verify(i);
		}
		for (std::size_t which = 0; receive_message(socket, which);)
			verify(which);
	});
}

struct taken {
	region snapshot;
	std::uint64_t dirty_pages = 0;
	double fork_ns = 0;
	/* Updates done just before and just after the FORK. */
	std::uint64_t before = 0, after = 0;
	findings found = {};
};

class snapshot_run {
public:
	snapshot_run(const region &live, std::size_t records)
		: live_(live), writer_(start_writer(live, records)),
		  reader_(start_reader()), header_(live.fd(), cowsnap_test::page_size),
		  burst_(std::clamp<order>(records / 1000, 1, longest_burst))
	{
	}

	snapshot_report verify()
	{
		/* The reader may be so many snapshots behind. */
		constexpr std::size_t lag = 2;

		for (std::size_t i = 0; i < snapshot_count + lag; i++) {
			if (i < snapshot_count)
				take_one();
			if (i >= lag)
				hear_findings(i - lag);
		}
		for (std::size_t i = 0; i < snapshot_count; i++)
			verify_again(i);
		reader_.end();
		report_.updates = done();
		report_.dirty_pages = median_of(&taken::dirty_pages);
		report_.fork_ns = median_of(&taken::fork_ns);
		return report_;
	}

private:
	/* The writer gets two bursts to do, and when the first is done it goes on. */
	void take_one()
	{
		taken next;

		writer_.tell(burst_);
		writer_.tell(burst_);
		writer_.hear<order>();
		wait_for_update();
		next.dirty_pages = live_.stat().dirty / cowsnap_test::page_size;
		next.before = done();
		next.fork_ns = nanoseconds([&] { next.snapshot = live_.snapshot(); });
		next.after = done();
		reader_.give(next.snapshot.fd());
		taken_.push_back(std::move(next));
		writer_.hear<order>();
	}

	/* Until the writer is at work again, or has nothing more to do. */
	void wait_for_update() const
	{
		const std::uint64_t start = done();
		const clock::time_point end = clock::now() + std::chrono::milliseconds(10);

		/* Asleep, for on one CPU only who wakes up interrupts the writer. */
		while (done() == start && clock::now() < end)
			std::this_thread::sleep_for(std::chrono::microseconds(20));
	}

	void hear_findings(std::size_t i)
	{
		taken &snapshot = taken_[i];
		const findings &found = snapshot.found = reader_.hear<findings>();

		note(found, "taken and verified", i);
		report_.in_flight += found.in_flight;
		if (found.updates < snapshot.before || found.updates > snapshot.after) {
			report_.untimely++;
			complain(i, "holds " + grouped(found.updates) + " updates; " +
					    grouped(snapshot.before) +
					    " were done before its FORK and " +
					    grouped(snapshot.after) + " after it");
		}
	}

	/* The writer goes on meanwhile. */
	void verify_again(std::size_t i)
	{
		writer_.tell(burst_at_the_end);
		reader_.tell(i);

		const auto again = reader_.hear<findings>();

		note(again, "verified once more", i);
		if (again.hash != taken_[i].found.hash) {
			report_.changed++;
			complain(i, "changed");
		}
		writer_.hear<order>();
	}

	void note(const findings &found, const char *what, std::size_t i)
	{
		report_.records_verified += found.records;
		report_.violations += found.violations;
		if (found.violations)
			complain(i, "has " + grouped(found.violations) +
					    " violations, the first: " +
					    found.first.data());
		if (clock::now() < next_line_ && i + 1 < snapshot_count)
			return;
		next_line_ = clock::now() + std::chrono::seconds(1);
		std::printf("  %3zu of %zu snapshots %s, %s updates made\n", i + 1,
			    snapshot_count, what, grouped(done()).c_str());
	}

	/* The first few say it all. */
	void complain(std::size_t i, const std::string &what)
	{
		if (complaints_++ < 10)
			std::printf("  WRONG: snapshot %zu %s\n", i + 1, what.c_str());
	}

	template <typename Value>
	Value median_of(Value taken::*member) const
	{
		std::vector<Value> values;

		for (const taken &one : taken_)
			values.push_back(one.*member);
		return median(std::move(values));
	}

	std::uint64_t done() const { return updates_done(header_.bytes()); }

	const region &live_;
	party writer_, reader_;
	/* Mapped after the processes were made, which would have it as well. */
	mapping header_;
	order burst_;
	std::vector<taken> taken_;
	snapshot_report report_;
	clock::time_point next_line_ = clock::now();
	std::size_t complaints_ = 0;
};

} // namespace

std::uint64_t most_kept(std::size_t size)
{
	constexpr std::size_t updates = 2 * longest_burst + burst_at_the_end;
	/* Each changes two pages of text and one of the index, and all the header. */
	constexpr std::size_t pages = snapshot_count * (3 * updates + 1);

	return std::min(snapshot_count * size, pages * cowsnap_test::page_size);
}

snapshot_report take_snapshots(const cowsnap_test::device &module, const region &live,
			       std::size_t records)
{
	const cowsnap_query before = module.query();
	const std::uint64_t free_before = cowsnap_test::available_memory();
	snapshot_report report;

	{
		snapshot_run run(live, records);

		report = run.verify();

		const cowsnap_query after = module.query();

		report.held_bytes = after.held_bytes - before.held_bytes;
		report.nodes = after.nodes - before.nodes;
		report.memory = free_before - std::min(free_before, cowsnap_test::available_memory());
	}
	report.left_bytes = module.query().held_bytes - before.held_bytes;
	return report;
}

control_report verify_controls(const region &live, std::size_t records)
{
	control_report report;
	/* Odd, so that not every record can come out as it was. */
	report.updates_between = 201;

	const memory_file file = cowsnap_test::make_memfd(live.length());
	const mapping store = file.map();

	std::ranges::copy(live.map(PROT_READ).bytes(), store.data());

	party writer = start_writer(file, records);
	const auto let_writer_go_on = [&] {
		writer.tell(report.updates_between);
		writer.hear<order>();
	};

	const mapping copy = cowsnap_test::anonymous(store.size());
	const std::size_t half = store.size() / 2;

	std::ranges::copy(store.bytes().first(half), copy.data());
	let_writer_go_on();
	std::ranges::copy(store.bytes().subspan(half), copy.data() + half);
	report.torn_violations = examine(copy.bytes()).violations;

	const mapping seeming = file.map(PROT_READ, MAP_PRIVATE);
	const findings at_first = examine(seeming.bytes());

	let_writer_go_on();
	report.private_changed = !at_first.violations &&
				 examine(seeming.bytes()).hash != at_first.hash;
	return report;
}

} // namespace cowsnap_demo
