// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a piece of work costs.
 *
 * In the test VM (run-vm --icount) a nanosecond is an instruction of the guest, the same ones on every run, so the
 * clock is all that is needed.  On a real machine the clock is a clock, and perf's counters go with it.
 */
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <ctime>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "profile.hpp"
#include "unique_fd.hpp"

namespace cowsnap_bench {

/* Of the clock, and then of the counters in the order of meter::counters. */
struct cost {
	std::array<double, 4> of = {};

	double time() const { return of[0]; }

	cost &operator+=(const cost &other)
	{
		for (std::size_t i = 0; i < of.size(); i++)
			of[i] += other.of[i];
		return *this;
	}
	cost operator+(const cost &other) const { return cost(*this) += other; }
	cost operator*(double factor) const
	{
		cost result = *this;

		for (double &value : result.of)
			value *= factor;
		return result;
	}
	cost operator-(const cost &other) const { return *this + other * -1; }
	template <typename Number>
	cost operator/(Number divisor) const
	{
		return *this * (1 / static_cast<double>(divisor));
	}
};

/* A figure that is no cost of its own: bytes, or a number of things. */
inline cost amount(double value)
{
	return {{value, 0, 0, 0}};
}

inline cost median(std::vector<cost> costs)
{
	const auto middle = static_cast<std::ptrdiff_t>(costs.size() / 2);
	cost result;

	for (std::size_t i = 0; i < result.of.size(); i++) {
		std::ranges::nth_element(costs, costs.begin() + middle, {},
					 [i](const cost &one) { return one.of[i]; });
		result.of[i] = costs[static_cast<std::size_t>(middle)].of[i];
	}
	return result;
}

/* Whose work is measured. */
enum class whose {
	/* of this thread */
	thread,
	/* of all, while it lasts: in the VM, which has one CPU, that of the others too */
	all,
};

class meter {
public:
	static constexpr std::array<std::string_view, 3> counters = {
		"instructions", "cycles", "dTLB-load-misses"};

	/* Are instructions counted? */
	explicit meter(bool counted);

	bool counted() const noexcept { return counted_; }
	/* Does the machine have perf's counters? */
	bool has_counters() const noexcept { return static_cast<bool>(leader_); }
	/* What measuring nothing costs; it is taken off. */
	const cost &own_cost(whose who) const
	{
		return who == whose::thread ? own_cost_thread_ : own_cost_all_;
	}

	/* From now on what is timed is told as a part of @row, for the profiler. */
	void profile(const std::string &row) { profiled_ = row; }

	template <typename Work>
	cost timed(Work &&work, whose who = whose::thread) const
	{
		/* One for each place where something is timed. */
		static const std::size_t place = ++places_;

		if (!profiled_.empty())
			std::printf("# @run %s/%zu\n", profiled_.c_str(), place);

		const cost before = now(who);

		marker<marker_begin>();
		work();
		marker<marker_end>();

		const cost after = now(who);
		cost result = after - before - own_cost(who);

		for (double &value : result.of)
			value = std::max(value, 0.0);
		return result;
	}

	/* By CLOCK_MONOTONIC, which processes share. */
	static double shared_clock()
	{
		timespec time = {};

		::clock_gettime(CLOCK_MONOTONIC, &time);
		return static_cast<double>(time.tv_sec) * 1e9 +
		       static_cast<double>(time.tv_nsec);
	}

	/*
	 * Leaves the kernel time to finish what it put off, such as freeing by RCU what
	 * was closed: that is part of the closing, and not of what comes after it.
	 */
	static void settle() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }

	/*
	 * The median of what @round returns, which is called once more first: the
	 * first time is never like the others.
	 */
	template <typename Round>
	static cost repeat(std::size_t rounds, Round &&round)
	{
		std::vector<cost> costs;

		round();
		for (std::size_t i = 0; i < rounds; i++)
			costs.push_back(round());
		return median(std::move(costs));
	}

private:
	cost now(whose who) const;
	cost measure_nothing(whose who) const;

	static inline std::size_t places_ = 0;

	bool counted_;
	std::string profiled_;
	cowsnap_test::unique_fd leader_;
	std::array<cowsnap_test::unique_fd, counters.size() - 1> followers_;
	cost own_cost_thread_, own_cost_all_;
};

} // namespace cowsnap_bench
