// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsnap-prefork: has Python's workers serve a heap that they are forked with,
 * with and without forks of memory, in a VM that is there for that. In the
 * environment: PREFORK_DO=checks or figures, PREFORK_ITEMS, PREFORK_WORKERS,
 * PREFORK_HEAP, the bytes that the heap has at least, PREFORK_TIMES, how many
 * times shorter the forks are where all memory is cowsnap's.
 */
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include <sched.h>

#include "demo/measure.hpp"
#include "meminfo.hpp"
#include "python.hpp"
#include "region.hpp"
#include "demo/results.hpp"
#include "demo/setting.hpp"
#include "table.hpp"
#include "unique_fd.hpp"

namespace {

using namespace cowsnap_prefork;
using cowsnap_demo::mebibytes;

/* Python's own allocator has small objects, by mmap(), and malloc() has what is larger; jemalloc's uses mmap(), too. */
const std::vector<flavour> flavours = {
	{"plain", ""},
	{"cowsnap", "/usr/lib/cowsnap/libcowsnap-fork.so"},
	{"cowsnap+jemalloc", "/usr/lib/cowsnap/libcowsnap-fork.so libjemalloc.so.2"},
};

/* For what warm.py asks of it. */
constexpr std::uint64_t fewest_items = 501;
constexpr double mebibyte = 1 << 20;

struct run {
	served open;
	closed end;
	/* Nanoseconds: from its start to its end. */
	double whole = 0;
	/* Bytes: in regions, and in use on the machine, while all workers lived. */
	std::uint64_t held = 0, used = 0;
	/* How many of the workers have the region. */
	std::ptrdiff_t with_region = 0;
	/* Nanoseconds: of a fork of the same without the heap. */
	double bare_pause = 0;

	double pause() const { return std::accumulate(open.pauses.begin(), open.pauses.end(), 0.0); }
	double first_pause() const { return open.pauses.front(); }
	double later_pause() const
	{
		return cowsnap_demo::median(std::vector<double>(open.pauses.begin() + 1, open.pauses.end()));
	}
};

bool has_region(pid_t process)
{
	std::ifstream maps("/proc/" + std::to_string(process) + "/maps");

	for (std::string line; std::getline(maps, line);)
		if (line.find(" /cowsnap") != std::string::npos)
			return true;
	return false;
}

run run_as(const flavour &memory, const size &size)
{
	const std::uint64_t available = cowsnap_test::available_memory();
	run result;
	double looked = 0;

	result.whole = cowsnap_demo::nanoseconds([&] {
		python program(memory, size);

		result.open = program.wait_until_served();
		looked = cowsnap_demo::nanoseconds([&] {
			result.held = cowsnap_test::device().query().held_bytes;
			result.used = available - std::min(available, cowsnap_test::available_memory());
			result.with_region = std::ranges::count_if(result.open.workers, has_region);
		});
		result.end = program.close();
	});
	result.whole -= looked;
	return result;
}

void check(const std::string &name, const run &plain, const run &it, bool forked, cowsnap_demo::results &results)
{
	const auto add = [&](bool holds, const std::string &what) { results.add(holds, name + ": " + what); };
	const auto workers = static_cast<std::ptrdiff_t>(it.open.workers.size());

	if (forked) {
		add(it.with_region == workers && it.held >= it.open.heap / 2,
		    std::to_string(it.with_region) + " of " + std::to_string(workers) +
			    " workers have the region, regions hold " + mebibytes(it.held) + " MiB, the heap has " +
			    mebibytes(it.open.heap));
		add(it.open.answers == plain.open.answers,
		    std::to_string(it.open.answers.size()) + " answers, as without it");
		add(it.end.heaps == plain.end.heaps,
		    "all of the first worker's heap, of the last one's and of the parent's, as without it");
	} else {
		add(it.with_region == 0 && it.held == 0, "no region");
	}
	add(it.open.unchanged, "what workers changed did not change the parent's heap");
	add(std::ranges::all_of(it.end.statuses, [](int status) { return status == 0; }), "all workers ended well");
}

void check_pauses(const std::vector<run> &runs, double times, cowsnap_demo::results &results)
{
	const auto add = [&](std::size_t which, double wanted, const std::string &what, double found) {
		results.add(found > wanted, flavours[which].name + ": " + what + " shorter than plain by a factor of " +
						    cowsnap_demo::one_decimal(found) + ", at least " +
						    cowsnap_demo::one_decimal(wanted) + " is wanted");
	};

	for (std::size_t i = 1; i < runs.size(); i++) {
		/* The C library's part of the heap is forked as ever. */
		const double wanted = i + 1 == runs.size() ? times : times * 3 / 4;

		add(i, wanted, "all forks together are", runs[0].pause() / runs[i].pause());
		add(i, times, "a later fork is", runs[0].later_pause() / runs[i].later_pause());
	}
}

void print(const std::vector<run> &runs)
{
	const auto row = [&](const std::string &what, double unit, const std::function<double(const run &)> &of) {
		std::vector<double> values;

		for (const run &run : runs)
			values.push_back(of(run) / unit);
		print_row(what, values);
	};
	const auto head = [](const std::string &what) {
		std::vector<std::string> names;

		for (const flavour &memory : flavours)
			names.push_back(memory.name);
		print_head(what, names);
	};

	head("The pause of a fork: thousands of instructions");
	row("the first worker's", 1e3, &run::first_pause);
	row("a later worker's (median)", 1e3, &run::later_pause);
	row("all workers'", 1e3, &run::pause);
	row("a later worker's, where there is no heap", 1e3, [](const run &it) { return it.bare_pause; });
	head("Work: millions of instructions");
	row("making the heap", 1e6, [](const run &it) { return it.open.made; });
	row("the first requests, forks not counted", 1e6, [](const run &it) { return it.open.work; });
	row("the forks and the first requests", 1e6, [](const run &it) { return it.pause() + it.open.work; });
	row("the parent reads all, and so writes to all", 1e6, [](const run &it) { return it.open.read; });
	row("the whole run", 1e6, [](const run &it) { return it.whole; });
	head("Memory: MiB");
	row("the heap", mebibyte, [](const run &it) { return static_cast<double>(it.open.heap); });
	row("Pss of all processes, after the first requests", mebibyte,
	    [](const run &it) { return static_cast<double>(it.open.pss); });
	row("in use on the machine, after the parent's reading", mebibyte,
	    [](const run &it) { return static_cast<double>(it.used); });
	std::cout << '\n';
}

/*
 * For where instructions are counted, on one CPU: there a new worker would run
 * before its parent sees that fork() is over, and count as part of it.
 */
void do_not_preempt()
{
	const sched_param lowest = {1};

	cowsnap_test::check(::sched_setscheduler(0, SCHED_FIFO, &lowest), "sched_setscheduler");
}

int run_all()
{
	const std::string what = cowsnap_demo::setting("PREFORK_DO");
	const size size = {std::stoull(cowsnap_demo::setting("PREFORK_ITEMS")),
			   std::stoull(cowsnap_demo::setting("PREFORK_WORKERS"))};
	const std::uint64_t heap = std::stoull(cowsnap_demo::setting("PREFORK_HEAP"));
	const double times = std::stod(cowsnap_demo::setting("PREFORK_TIMES"));
	const bool counts = what == "figures";
	std::vector<run> runs;
	cowsnap_demo::results results;

	if (counts)
		do_not_preempt();
	for (const flavour &memory : flavours) {
		runs.push_back(run_as(memory, size));
		if (counts)
			runs.back().bare_pause = run_as(memory, {fewest_items, size.workers}).later_pause();
		check(memory.name, runs.front(), runs.back(), !memory.libraries.empty(), results);
	}
	if (counts) {
		std::cout << "\nPYTHON with " << cowsnap_demo::grouped(size.items) << " items and " << size.workers
			  << " workers\n";
		print(runs);
		check_pauses(runs, times, results);
	}
	if (heap)
		results.add(runs.front().open.heap >= heap, "the heap has " + mebibytes(heap) + " MiB or more");
	std::cout << "prefork-" << what << ": " << results.passed() << " passed, " << results.failed() << " failed\n";
	return results.failed() ? EXIT_FAILURE : EXIT_SUCCESS;
}

} // namespace

int main()
{
	/* For who watches. */
	std::cout << std::unitbuf;
	try {
		return run_all();
	} catch (const std::exception &error) {
		std::cout << "cowsnap-prefork: " << error.what() << '\n';
		return EXIT_FAILURE;
	}
}
