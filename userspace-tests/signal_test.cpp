// SPDX-License-Identifier: GPL-2.0-only
/*
 * Signals in the middle: a FORK succeeds or says EINTR and leaves nothing, and
 * a process that is killed at any point leaves the others' data whole.
 */
#include <atomic>
#include <csignal>
#include <cstdint>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/time.h>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

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

class signals : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 512;

	/* Forks under alarms while another process keeps the region busy. */
	void fork_in_a_storm(int flags)
	{
		const region parent = dev.create_pages(pages);
		const mapping map = parent.map();
		const shared<std::atomic<bool>> stop;
		const shared<std::atomic<std::uint64_t>> others;
		child other([&] {
			while (!*stop) {
				(void)parent.fork();
				(*others)++;
				(void)parent.stat();
			}
		});
		const deadline end = scaled_deadline(std::chrono::milliseconds(1500));
		std::uint64_t made = 0, interrupted = 0;

		{
			const alarm_storm storm(700, flags);

			while (!passed(end)) {
				for (std::size_t page = 0; page < pages; page += 8)
					map.store(page, made + 1);
				try {
					const region snapshot = parent.snapshot();

					made++;
					ASSERT_EQ(snapshot.map(PROT_READ).load(
							  pages - 8),
						  made);
					(void)parent.stat();
				} catch (const std::system_error &error) {
					ASSERT_EQ(error.code().value(), EINTR);
					interrupted++;
				}
			}
			EXPECT_GT(alarm_storm::count(), 0u);
		}
		*stop = true;
		EXPECT_TRUE(other.succeeded());
		if (flags & SA_RESTART) {
			EXPECT_EQ(interrupted, 0u);
		}
		EXPECT_GT(made, 0u);
		EXPECT_EQ(parent.stat().forks, made + *others);
		EXPECT_EQ(counters(dev).regions, before.regions + 1);
		EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
			  pages / 8 * page_size);
		std::printf("# %llu forks, %llu interrupted, by %lu signals\n",
			    static_cast<unsigned long long>(made),
			    static_cast<unsigned long long>(interrupted),
			    alarm_storm::count());
	}
};

TEST_F(signals, interrupt_a_fork_or_do_not)
{
	fork_in_a_storm(0);
}

TEST_F(signals, are_not_noticed_with_sa_restart)
{
	fork_in_a_storm(SA_RESTART);
}

/* Faults, reads and writes go on as if there were no signals. */
TEST_F(signals, do_not_disturb_faults_and_writes)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(500));
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	unsigned int value = 0;

	do {
		const alarm_storm storm(700, 0);
		const region snapshot = [&] {
			for (;;) {
				try {
					return parent.snapshot();
				} catch (const std::system_error &error) {
					if (error.code().value() != EINTR)
						throw;
				}
			}
		}();

		value = value % 200 + 1;
		fill(map.bytes().first(map.size() / 2), value);
		for (std::size_t page = pages / 2; page < pages; page++)
			parent.fill_page(page, value);
		ASSERT_TRUE(is_all(map.bytes(), value));
		ASSERT_TRUE(is_all(snapshot.read(0, map.size()), value - 1) ||
			    value == 1);
	} while (!passed(end));
}

/* A process that does all it can to a family, until it is killed. */
[[noreturn]] void work(const device &dev, const region &parent)
{
	const mapping map = parent.map();

	for (std::uint64_t round = 1;; round++) {
		const region own = dev.create_pages(64);
		const region child = parent.fork();
		const mapping child_map = child.map();
		const region snapshot = child.snapshot();
		const mapping shown = snapshot.map(PROT_READ);

		for (std::size_t page = 0; page < 64; page++) {
			child_map.store(page * 8, round);
			require(shown.load(page * 8) != round, "a snapshot changed");
			own.fill_page(page, 1);
		}
		/* Half of the parent is this process's to write. */
		for (std::size_t page = 1; page < 512; page += 2)
			map.store(page, round);
		child.truncate(100);
	}
}

TEST_F(signals, that_kill_leave_the_others_data_whole)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	chance random(1);

	for (std::size_t page = 0; page < pages; page++)
		map.store(page, 1'000'000 + page);

	const region snapshot = parent.snapshot();
	const mapping shown = snapshot.map(PROT_READ);
	const counters all_written = [&] {
		for (std::size_t page = 1; page < pages; page += 2)
			map.store(page, 0);
		return counters(dev);
	}();
	const std::size_t rounds = scaled(40);

	for (std::size_t round = 0; round < rounds; round++) {
		child first([&] { work(dev, parent); });
		child second([&] { work(dev, parent); });

		std::this_thread::sleep_for(
			std::chrono::microseconds(random.below(30'000)));
		EXPECT_TRUE(first.finish(SIGKILL) && first.killed_by(SIGKILL));
		for (std::size_t page = 0; page < pages; page += 2)
			ASSERT_EQ(map.load(page), 1'000'000 + page);
		EXPECT_TRUE(second.finish(SIGKILL) && second.killed_by(SIGKILL));
		for (std::size_t page = 0; page < pages; page++)
			ASSERT_EQ(shown.load(page), 1'000'000 + page);
		eventually([&] { return counters(dev).regions == all_written.regions; });
		ASSERT_EQ(counters(dev).regions, all_written.regions);
		ASSERT_EQ(counters(dev).held_bytes, all_written.held_bytes);
	}
	EXPECT_EQ(parent.stat().referenced, pages * page_size);
}

/* A thread faults while another takes the mapping and the descriptor away. */
TEST_F(signals, and_unmapping_do_not_leave_a_fault_behind)
{
	const std::size_t rounds = scaled(60);
	const deadline end = scaled_deadline(std::chrono::seconds(3));

	for (std::size_t round = 0; round < rounds && !passed(end); round++) {
		child process([&] {
			region subject = dev.create_pages(pages);
			mapping map = subject.map();
			const region other = subject.fork();
			std::thread toucher([&map] {
				const mapping &same = map;
				std::byte *const data = same.data();

				/* Ends with SIGSEGV, which ends the process. */
				for (;;)
					for (std::size_t page = 0; page < pages;
					     page++)
						*static_cast<volatile std::byte *>(
							data + page * page_size) =
							std::byte{1};
			});

			std::this_thread::sleep_for(
				std::chrono::microseconds(round * 20));
			subject.close();
			map.reset();
			::pause();
		});

		ASSERT_TRUE(process.killed_by(SIGSEGV));
		expect_back(dev, before);
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
