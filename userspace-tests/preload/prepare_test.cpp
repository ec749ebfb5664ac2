// SPDX-License-Identifier: GPL-2.0-only
/* The thread that prepares forks, where COWSNAP_FORK_PREPARE asks for it. */
#include <atomic>
#include <chrono>
#include <csignal>
#include <string>

#include <sys/ioctl.h>

#include <linux/cowsnap.h>

#include "suite.hpp"

using namespace cowsnap_test;

namespace {

class served_preparing : public suite {};

/* Bytes of the region that a fork would have to see to, but for one page that this sees to itself. */
std::size_t left_bytes()
{
	cowsnap_prepare argument = {};

	argument.size = sizeof(argument);
	argument.budget = 1;
	check(::ioctl(library_descriptor(), COWSNAP_IOC_PREPARE, &argument), "COWSNAP_IOC_PREPARE");
	return static_cast<std::size_t>(argument.left) * page_size;
}

double seconds_since(std::chrono::steady_clock::time_point start)
{
	return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/* An allocator's pages, which are written again and again. */
constexpr std::size_t slack = MiB;

const role prepared_role("prepared", [] {
	constexpr double rate = 8 * MiB; /* as the case says */
	const mapping map = memory(16 * MiB);

	require(thread_count() == 2, "there is a thread more");
	paint(map, 1);

	/* What it saw to while the memory was being written is not counted. */
	const auto start = std::chrono::steady_clock::now();
	const std::size_t first = left_bytes();
	std::size_t calls = 1;

	require(first > slack, "there is something to do");
	while (left_bytes() > slack) {
		calls++;
		require(seconds_since(start) < 60, "it gets done");
		std::this_thread::sleep_for(std::chrono::milliseconds(20));
	}

	/* A tenth of the rate each time, and one time more than there are tenths. */
	const double most = rate * (seconds_since(start) + 0.2) + static_cast<double>(calls * page_size);

	require(static_cast<double>(first - slack) <= most, "it does not do more than the rate says");
	require(shows(map, 1), "nobody sees it");

	/* It goes on. */
	paint(map, 2);
	require(eventually([] { return left_bytes() <= slack; }), "it sees to what is written again");
	for (int round = 0; round < 5; round++) {
		child process([&] {
			require(thread_count() == 1, "a child has no such thread");
			require(shows(map, 2), "it has the memory");
			paint(map, 3);
			require(child([&] { require(thread_count() == 1 && shows(map, 3), "its child"); }).succeeded(),
				"a child's child");
		});

		require(process.succeeded(), "a child");
	}
	require(thread_count() == 2, "the thread is there still");
	return 0;
});

std::atomic<int> caught = 0;

/* A signal that the program's own threads block is not for others to take. */
const role blocking_role("blocking", [] {
	const mapping map = memory(MiB);
	sigset_t one, pending;

	require(thread_count() == 2, "there is a thread more");
	std::signal(SIGUSR1, [](int) { caught++; });
	::sigemptyset(&one);
	::sigaddset(&one, SIGUSR1);
	check(::sigprocmask(SIG_BLOCK, &one, nullptr), "sigprocmask");
	::kill(::getpid(), SIGUSR1);
	std::this_thread::sleep_for(std::chrono::milliseconds(300));
	check(::sigpending(&pending), "sigpending");
	require(caught == 0 && ::sigismember(&pending, SIGUSR1), "the signal waits for the program");
	check(::sigprocmask(SIG_UNBLOCK, &one, nullptr), "sigprocmask");
	require(caught == 1, "and is the program's");
	return 0;
});

const role single_role("single", [] {
	const mapping map = memory(MiB);

	return thread_count() == 1 ? 0 : 1;
});

TEST_F(served_preparing, sees_to_what_is_written_at_the_rate_that_is_asked_for)
{
	EXPECT_EQ(played("prepared", {"COWSNAP_FORK_PREPARE=" + std::to_string(8 * MiB)}), 0);
}

TEST_F(served_preparing, takes_no_signal)
{
	EXPECT_EQ(played("blocking", {"COWSNAP_FORK_PREPARE=" + std::to_string(8 * MiB)}), 0);
}

TEST_F(served_preparing, is_not_done_where_nobody_asks)
{
	EXPECT_EQ(played("single", {"COWSNAP_FORK_PREPARE"}), 0);
	for (const std::string rate : {"", "0", "none"})
		EXPECT_EQ(played("single", {"COWSNAP_FORK_PREPARE=" + rate}), 0) << rate;
}

} // namespace
