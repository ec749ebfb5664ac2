// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsnap-demo [FILE]: what snapshots of memory do for a store made of FILE, and
 * what they cost.  In the environment: COWSNAP_DEMO_NAME, what to call FILE;
 * COWSNAP_ICOUNT=1, the clock counts instructions, as QEMU's -icount makes it.
 */
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "costs.hpp"
#include "measure.hpp"
#include "meminfo.hpp"
#include "region.hpp"
#include "snapshots.hpp"
#include "store.hpp"

namespace {

using namespace cowsnap_demo;
using cowsnap_test::device;
using cowsnap_test::mapping;
using cowsnap_test::region;
using cowsnap_test::unique_fd;

device open_device()
{
	if (::access(cowsnap_test::device_path, R_OK | W_OK) == 0)
		return {};
	throw std::runtime_error(
		errno == EACCES
			? "/dev/cowsnap is not for this user: run this as root"
			: "there is no /dev/cowsnap: load the module: sudo insmod cowsnap.ko");
}

mapping map_input(const std::string &path)
{
	const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
	struct stat status = {};

	if (!fd)
		throw std::runtime_error("cannot read " + path + " (" +
					 std::generic_category().message(errno) +
					 "): name a file that can be read");
	cowsnap_test::check(::fstat(fd.get(), &status), "fstat");
	if (!S_ISREG(status.st_mode) || status.st_size == 0)
		throw std::runtime_error(
			path + " holds no data: name a regular file that is not empty");
	return {fd.get(), static_cast<std::size_t>(status.st_size), PROT_READ,
		MAP_PRIVATE};
}

/* For the store and what its snapshots keep, and for two copies to compare with. */
void require_memory(const device &module, std::size_t size)
{
	const std::uint64_t held = size + most_kept(size), needed = held + 2 * size;
	const cowsnap_query query = module.query();
	const std::uint64_t left = query.max_bytes - std::min(query.max_bytes, query.held_bytes);
	const std::uint64_t available = cowsnap_test::available_memory();

	if (query.max_bytes && held > left)
		throw std::runtime_error(
			"regions may hold " + mebibytes(left) + " MiB more and this takes " +
			mebibytes(held) + ": take a smaller FILE, or raise "
			"/sys/module/cowsnap/parameters/max_bytes");
	if (needed > available)
		throw std::runtime_error("there are " + mebibytes(available) +
					 " MiB of free memory and this takes " +
					 mebibytes(needed) + ": take a smaller FILE");
}

bool is_emulated()
{
	std::ifstream file("/proc/cpuinfo");
	std::string line;

	while (std::getline(file, line))
		if (line.find("QEMU TCG") != std::string::npos)
			return true;
	return false;
}

/* Then a nanosecond of the clock is an instruction. */
bool counts_instructions()
{
	const char *const value = std::getenv("COWSNAP_ICOUNT");

	return value && std::string_view(value) == "1";
}

const char *unit()
{
	return counts_instructions() ? "instructions" : "\u00b5s";
}

std::string in_units(double nanoseconds)
{
	return counts_instructions()
		       ? grouped(static_cast<std::uint64_t>(nanoseconds))
		       : one_decimal(nanoseconds / 1000);
}

/* As exact as it is worth: 1.2, 12, 1/1,234. */
std::string ratio(double value, double to)
{
	const double times = std::max(value / to, to / value);

	return (value < to ? "1/" : "") +
	       (times < 10 ? one_decimal(times)
			   : grouped(static_cast<std::uint64_t>(std::lround(times))));
}

void print_costs(const costs &cost, std::size_t size)
{
	const auto row = [&](const std::string &what, double taking, double write) {
		std::printf("  %-52s %12s %10s %12s\n", what.c_str(),
			    in_units(taking).c_str(),
			    ratio(taking, cost.process_fork).c_str(),
			    write > 0 ? in_units(write).c_str() : "-");
	};

	std::printf("\nWHAT ONE SNAPSHOT of these %s MiB costs, in %s (median of %zu)\n",
		    mebibytes(size).c_str(), unit(), rounds);
	std::printf("  %-52s %12s %10s %12s\n", "", "", "beside", "first write");
	std::printf("  %-52s %12s %10s %12s\n", "", "taking it", "fork(2)", "to a page");
	for (const costs::region &region : cost.regions) {
		const std::string changed = region.dirty_pages
						    ? grouped(region.dirty_pages) + " pages"
						    : "nothing";

		row("cowsnap, " + changed + " changed since the last one", region.fork,
		    region.first_write);
	}
	row("fork(2) of a process that holds the data", cost.process_fork,
	    cost.process_first_write);
	row("memcpy into memory that is there already", cost.copy, 0);
	if (is_emulated() && !counts_instructions())
		std::printf("  This machine is emulated: its times are not those of real "
			    "hardware; look at the ratios.\n");
}

void print_row(const char *what, const std::string &value, const char *of = "")
{
	std::printf("  %-52s %12s%s\n", what, value.c_str(), of);
}

void print_memory(const snapshot_report &found, std::size_t size)
{
	std::printf("\nWHAT %zu SNAPSHOTS hold, after %s updates\n", snapshot_count,
		    grouped(found.updates).c_str());
	print_row("data that only they hold", mebibytes(found.held_bytes), " MiB");
	print_row("tree nodes that lead to it", grouped(found.nodes));
	print_row("by how much the free memory of the machine fell",
		  mebibytes(found.memory), " MiB");
	print_row("what as many copies would take", mebibytes(snapshot_count * size),
		  " MiB");
	print_row("what is left of it when they are closed",
		  mebibytes(found.left_bytes), " MiB");
	print_row("pages changed from one to the next (median)",
		  grouped(found.dirty_pages));
	print_row("taking one, while the writer writes (median)",
		  in_units(found.fork_ns), counts_instructions() ? "" : " \u00b5s");
}

void print_verdicts(const snapshot_report &found, const control_report &control)
{
	std::printf("\nWHETHER THEY ARE RIGHT, as found by the process that received "
		    "them\n");
	print_row("snapshots verified, each of them twice", grouped(snapshot_count));
	print_row("records verified", grouped(found.records_verified));
	print_row("snapshots that caught an update half made", grouped(found.in_flight));
	print_row("violations found", grouped(found.violations));
	print_row("snapshots of another moment than their FORK", grouped(found.untimely));
	print_row("snapshots that ever changed", grouped(found.changed));
	std::printf("\nWHETHER IT WOULD BE FOUND if they were not: copies that are no "
		    "snapshots, with %s updates meanwhile\n",
		    grouped(control.updates_between).c_str());
	print_row("a copy made in two halves: violations found",
		  grouped(control.torn_violations));
	print_row("memfd mapped MAP_PRIVATE: found to have changed",
		  control.private_changed ? "yes" : "no");
	std::printf("\n%s\n",
		    !found.is_right() ? "NOT RIGHT: see above what is not 0."
		    : !control.is_right()
			    ? "NOT RIGHT: the verification does not find what is wrong."
			    : "All right: every snapshot holds one instant, and none ever "
			      "changed.");
}

bool run(const std::string &path)
{
	const char *const given = std::getenv("COWSNAP_DEMO_NAME");
	const device module = open_device();
	const mapping input = map_input(path);
	const std::string_view text(reinterpret_cast<const char *>(input.data()),
				    input.size());
	const records from = split(text);
	const std::size_t size = store_size(from);

	require_memory(module, size);
	std::printf("Loading %s (%s MiB) into a region\n", given ? given : path.c_str(),
		    mebibytes(input.size()).c_str());

	const region live = module.create(size, 0, "demo");

	fill_store(live.map().bytes(), from);
	std::printf("  %s records, each with a checksum and a count of its updates\n"
		    "Taking %zu snapshots while a process changes records; another process "
		    "receives and verifies them\n",
		    grouped(from.size()).c_str(), snapshot_count);

	const snapshot_report snapshots = take_snapshots(module, live, from.size());

	std::printf("Verifying copies that are no snapshots, which must be found out\n");

	const control_report control = verify_controls(live, from.size());

	std::printf("Measuring what a snapshot costs\n");
	print_costs(measure_costs(live, snapshots.dirty_pages), size);
	print_memory(snapshots, size);
	print_verdicts(snapshots, control);
	return snapshots.is_right() && control.is_right();
}

} // namespace

int main(int argc, char **argv)
{
	std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
	try {
		if (argc > 2)
			throw std::runtime_error("too many arguments: name one FILE");
		return run(argc == 2 ? argv[1] : "/data/input") ? EXIT_SUCCESS
								: EXIT_FAILURE;
	} catch (const std::exception &error) {
		std::fprintf(stderr, "cowsnap-demo: %s\n", error.what());
		return EXIT_FAILURE;
	}
}
