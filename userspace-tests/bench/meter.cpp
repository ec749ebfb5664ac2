// SPDX-License-Identifier: GPL-2.0-only
#include "meter.hpp"

#include <cstdint>

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cowsnap_bench {
namespace {

using cowsnap_test::check;
using cowsnap_test::unique_fd;

unique_fd open_counter(std::uint32_t type, std::uint64_t config, const unique_fd &leader)
{
	perf_event_attr wanted = {};

	wanted.size = sizeof(wanted);
	wanted.type = type;
	wanted.config = config;
	wanted.read_format = PERF_FORMAT_GROUP;
	wanted.exclude_hv = 1;
	return unique_fd(static_cast<int>(::syscall(SYS_perf_event_open, &wanted, 0, -1,
						    leader.get(), PERF_FLAG_FD_CLOEXEC)));
}

} // namespace

meter::meter(bool counted) : counted_(counted)
{
	if (!counted_) {
		/* A machine that has them not, as most virtual ones, is measured by the clock. */
		leader_ = open_counter(PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, leader_);
		followers_[0] = open_counter(PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES, leader_);
		followers_[1] = open_counter(PERF_TYPE_HW_CACHE,
					     PERF_COUNT_HW_CACHE_DTLB |
						     PERF_COUNT_HW_CACHE_OP_READ << 8 |
						     PERF_COUNT_HW_CACHE_RESULT_MISS << 16,
					     leader_);
		if (!followers_[0] || !followers_[1])
			leader_.reset();
	}
	own_cost_thread_ = measure_nothing(whose::thread);
	own_cost_all_ = measure_nothing(whose::all);
}

cost meter::now(whose who) const
{
	timespec time = {};
	cost result;

	if (leader_) {
		std::array<std::uint64_t, 1 + counters.size()> values = {};

		check(::read(leader_.get(), values.data(), sizeof(values)), "read of perf's counters");
		for (std::size_t i = 0; i < counters.size(); i++)
			result.of[i + 1] = static_cast<double>(values[i + 1]);
	}
	/* A thread's own time leaves out what the VM's other threads do. */
	::clock_gettime(counted_ && who == whose::thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC,
			&time);
	result.of[0] = static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
	return result;
}

cost meter::measure_nothing(whose who) const
{
	return repeat(15, [&] {
		const cost before = now(who);

		return now(who) - before;
	});
}

} // namespace cowsnap_bench
