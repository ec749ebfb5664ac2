// SPDX-License-Identifier: GPL-2.0-only
/* Memory accesses that are meant to raise SIGBUS or SIGSEGV. */
#pragma once

#include <array>
#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstddef>

#include "unique_fd.hpp"

namespace cowsnap_test {

/*
 * Catches SIGBUS and SIGSEGV of the whole process while it lives; only one at a
 * time.  A fault of a thread that is not in raised() is still fatal.
 */
class fault_catcher {
public:
	fault_catcher()
	{
		struct sigaction action = {};

		action.sa_sigaction = &fault_catcher::caught;
		action.sa_flags = SA_SIGINFO | SA_NODEFER;
		for (std::size_t i = 0; i < signals.size(); i++)
			check(::sigaction(signals[i], &action, &before_[i]),
			      "sigaction");
	}
	fault_catcher(const fault_catcher &) = delete;
	fault_catcher &operator=(const fault_catcher &) = delete;
	~fault_catcher()
	{
		for (std::size_t i = 0; i < signals.size(); i++)
			::sigaction(signals[i], &before_[i], nullptr);
	}

	/* The signal that @access raised, 0 when it raised none. */
	template <typename Access>
	[[gnu::noinline]] int raised(Access &&access)
	{
		sigjmp_buf here;
		const int signal = sigsetjmp(here, 1);

		if (!signal) {
			landing_ = &here;
			/* The handler reads it, of which the compiler knows nothing. */
			std::atomic_signal_fence(std::memory_order_seq_cst);
			access();
			std::atomic_signal_fence(std::memory_order_seq_cst);
		}
		landing_ = nullptr;
		return signal;
	}

private:
	static constexpr std::array<int, 2> signals = {SIGBUS, SIGSEGV};

	static void caught(int signal, siginfo_t *, void *)
	{
		if (landing_)
			siglongjmp(*landing_, signal);
		::signal(signal, SIG_DFL);
	}

	static inline thread_local sigjmp_buf *landing_ = nullptr;
	std::array<struct sigaction, 2> before_ = {};
};

inline int signal_of_load(const volatile std::byte *address)
{
	return fault_catcher().raised([address] { (void)*address; });
}

inline int signal_of_store(volatile std::byte *address, unsigned int value = 1)
{
	return fault_catcher().raised(
		[=] { *address = static_cast<std::byte>(value); });
}

} // namespace cowsnap_test
