// SPDX-License-Identifier: GPL-2.0-only
/*
 * A process that stores to a page every so often, and finds out for how long it could not.  It comes before everybody
 * else (SCHED_FIFO), so that on one CPU what it waits for is what the kernel does not interrupt.
 */
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <ctime>

#include <sched.h>
#include <unistd.h>

#include "stage.hpp"

namespace cowsnap_bench {

class watched_writer {
public:
	/* Writes to @memory, which is the region's or the process's own. */
	explicit watched_writer(const mapping &memory)
		: process_([this, &memory] { run(memory); })
	{
	}
	~watched_writer() { state_->stop = true; }

	/* The longest time between a moment when it wanted to store and when it had, while @work ran. */
	template <typename Work>
	double longest_stall(Work &&work)
	{
		wait_for_stores();
		state_->longest = 0;
		state_->watching = true;
		work();
		/* A store that was wanted meanwhile may be done only now. */
		wait_for_stores();
		state_->watching = false;
		return state_->longest;
	}

private:
	static constexpr long period = 50'000;

	struct shared_state {
		std::atomic<bool> watching = false, stop = false;
		std::atomic<double> longest = 0;
		std::atomic<std::uint64_t> stores = 0;
	};

	/* Until it has begun and ended one from now on. */
	void wait_for_stores() const
	{
		const std::uint64_t before = state_->stores;

		while (state_->stores < before + 2)
			::usleep(1000);
	}

	void run(const mapping &memory)
	{
		const sched_param first = {1};
		std::mt19937_64 engine(1);
		timespec next = {};
		std::uint64_t value = 0;

		cowsnap_test::check(::sched_setscheduler(0, SCHED_FIFO, &first), "sched_setscheduler");
		::clock_gettime(CLOCK_MONOTONIC, &next);
		while (!state_->stop) {
			next.tv_nsec += period;
			if (next.tv_nsec >= 1'000'000'000) {
				next.tv_nsec -= 1'000'000'000;
				next.tv_sec++;
			}
			while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, nullptr) == EINTR)
				;
			memory.store(engine() % memory.pages(), ++value);

			const double late = meter::shared_clock() - as_nanoseconds(next);

			if (state_->watching && late > state_->longest)
				state_->longest = late;
			state_->stores++;
			/* After a stall from now on, not for all moments that were missed. */
			if (late > static_cast<double>(period))
				::clock_gettime(CLOCK_MONOTONIC, &next);
		}
	}

	static double as_nanoseconds(const timespec &time)
	{
		return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
	}

	cowsnap_test::shared<shared_state> state_;
	child process_;
};

} // namespace cowsnap_bench
