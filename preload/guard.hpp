// SPDX-License-Identifier: MIT
/* The library's only lock. */
#pragma once

#include <cstdint>

#include <pthread.h>
#include <signal.h>

#include "system.hpp"

namespace cowsnap_preload {

/*
 * While there is one, no other thread has one, and no signal handler runs in this thread, which might
 * need one, too.
 */
class guard {
public:
	guard() noexcept
	{
		const std::uint64_t all = ~std::uint64_t(0);

		system_call(SYS_rt_sigprocmask, SIG_BLOCK, &all, &blocked_, sizeof(blocked_));
		::pthread_mutex_lock(&mutex_);
	}
	~guard()
	{
		::pthread_mutex_unlock(&mutex_);
		system_call(SYS_rt_sigprocmask, SIG_SETMASK, &blocked_, nullptr, sizeof(blocked_));
	}
	/* In a child, for whom nobody may give back what another thread of its parent had. */
	static void forget() noexcept { mutex_ = PTHREAD_MUTEX_INITIALIZER; }

	guard(const guard &) = delete;
	guard &operator=(const guard &) = delete;

private:
	static inline pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;

	/* What was blocked before. */
	std::uint64_t blocked_ = 0;
};

} // namespace cowsnap_preload
