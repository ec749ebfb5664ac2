// SPDX-License-Identifier: GPL-2.0-only
/* Signals that come again and again. */
#pragma once

#include <atomic>
#include <csignal>

#include <sys/time.h>

#include "unique_fd.hpp"

namespace cowsnap_test {

/* SIGALRM every so often, for as long as it lives. */
class alarm_storm {
public:
	alarm_storm(suseconds_t every, int flags)
	{
		struct sigaction action = {};
		const itimerval timer = {{0, every}, {0, every}};

		action.sa_handler = [](int) { count_++; };
		action.sa_flags = flags;
		count_ = 0;
		check(::sigaction(SIGALRM, &action, nullptr), "sigaction");
		check(::setitimer(ITIMER_REAL, &timer, nullptr), "setitimer");
	}
	~alarm_storm()
	{
		const itimerval never = {};

		::setitimer(ITIMER_REAL, &never, nullptr);
		std::signal(SIGALRM, SIG_DFL);
	}
	alarm_storm(const alarm_storm &) = delete;
	alarm_storm &operator=(const alarm_storm &) = delete;

	static unsigned long count() { return count_; }

private:
	static inline std::atomic<unsigned long> count_ = 0;
};

} // namespace cowsnap_test
