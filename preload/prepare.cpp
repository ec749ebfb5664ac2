// SPDX-License-Identifier: MIT
/*
 * A thread that makes the next fork short, where COWSNAP_FORK_PREPARE says how many bytes it may see to
 * in a second. A child has none: it has its parent's time, and seldom forks.
 */
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "heap.hpp"
#include "system.hpp"

namespace cowsnap_preload {
namespace {

/* Granules for each call: a fork that comes meanwhile waits for it. */
constexpr std::uint64_t budget = 256;
constexpr std::uint64_t granule = 4096;
constexpr std::uint64_t second = 1'000'000'000;
/* Between two looks when there was nothing to do. */
constexpr std::uint64_t idle = second / 10;

std::uint64_t rate;

void pause_for(std::uint64_t nanoseconds) noexcept
{
	const timespec time = {static_cast<time_t>(nanoseconds / second),
			       static_cast<long>(nanoseconds % second)};

	system_call(SYS_nanosleep, &time, nullptr);
}

void *run(void *) noexcept
{
	const std::uint64_t busy = second * budget * granule / rate;

	for (;;) {
		const heap *const memory = heap::existing();
		const long left = memory ? memory->prepare(budget) : 0;

		pause_for(left > 0 ? busy : idle);
	}
	return nullptr;
}

__attribute__((constructor)) void start() noexcept
{
	const char *const text = std::getenv("COWSNAP_FORK_PREPARE");
	sigset_t all, old;
	pthread_t thread;

	if (!text)
		return;
	std::from_chars(text, text + std::strlen(text), rate);
	/* Where there can be no heap there is nothing to prepare, ever. */
	if (rate < granule || !heap::get())
		return;
	/* The program's signals are for its own threads. */
	::sigfillset(&all);
	::pthread_sigmask(SIG_BLOCK, &all, &old);
	if (::pthread_create(&thread, nullptr, run, nullptr) == 0) {
		::pthread_setname_np(thread, "cowsnap-prepare");
		::pthread_detach(thread);
	}
	::pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

} // namespace
} // namespace cowsnap_preload
