// SPDX-License-Identifier: GPL-2.0-only
/*
 * Signals in the middle: a FORK succeeds or says EINTR and leaves nothing, and
 * a process that is killed at any point leaves the others' data whole.
 */
#include <atomic>
#include <csignal>
#include <cstdint>
#include <ostream>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "alarm_storm.hpp"
#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

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

			/* On a slow machine the signals come closer together. */
			while (!passed(end, [&] {
				return made && alarm_storm::count();
			})) {
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

struct waiting_call {
	const char *name;
	/* On a region that is kept busy, and a relative of it that is not. */
	void (*make)(const device &dev, const region &busy, const region &relative);
};

void PrintTo(const waiting_call &call, std::ostream *out)
{
	*out << call.name;
}

constexpr waiting_call waiting_fork = {
	"fork",
	[](const device &, const region &busy, const region &) {
		(void)busy.fork();
	}};
constexpr waiting_call waiting_fork_many = {
	"fork_many",
	[](const device &dev, const region &busy, const region &relative) {
		dev.fork_all({&relative, &busy});
	}};
constexpr waiting_call waiting_stat = {
	"stat",
	[](const device &, const region &busy, const region &) {
		(void)busy.stat();
	}};
constexpr waiting_call waiting_prepare = {
	"prepare",
	[](const device &, const region &busy, const region &) {
		busy.prepare();
	}};
constexpr waiting_call waiting_restore = {
	"restore",
	[](const device &, const region &busy, const region &relative) {
		relative.restore(busy);
	}};

/* Signals for who waits for another operation on the region. */
class waits : public signals, public testing::WithParamInterface<waiting_call> {
protected:
	/* Calls until it is @enough of how the calls ended. */
	template <typename Enough>
	void call_while_busy(int flags, Enough &&enough)
	{
		const region busy = dev.create_pages(1);
		const region relative = busy.fork();
		const shared<std::atomic<bool>> stop;
		std::vector<child> others;

		others.emplace_back([&] { keep_busy(busy, *stop); });
		/* The kernel does not look for signals while it waits awake. */
		for (unsigned int i = 0; i < std::thread::hardware_concurrency();
		     i++)
			others.emplace_back([&] {
				while (!*stop)
					;
			});
		{
			const alarm_storm storm(3000, flags);
			int error = 0;

			do {
				error = error_of([&] {
					GetParam().make(dev, busy, relative);
				});
			} while (!enough(error) || !alarm_storm::count());
		}
		*stop = true;
		for (child &other : others)
			EXPECT_TRUE(other.succeeded());
	}

private:
	static constexpr std::uint32_t granule_shift = 21;
	static constexpr std::size_t granule = 1 << granule_shift;
	static constexpr std::size_t granules = 8;

	/*
	 * Keeps the region busy while another is forked with it, of which much
	 * has to be copied: a page of each granule is in a pipe.
	 */
	void keep_busy(const region &busy, const std::atomic<bool> &stop) const
	{
		const region heavy = dev.create(granules * granule, 0, {},
						granule_shift);
		const mapping map = heavy.map();
		std::vector<page_in_a_pipe> held;

		for (std::size_t i = 0; i < granules; i++) {
			fill(map.bytes().subspan(i * granule, 1), 1);
			held.emplace_back(
				map.bytes().subspan(i * granule, page_size));
		}
		while (!stop)
			dev.fork_all({&busy, &heavy});
	}

	template <typename Call>
	static int error_of(Call &&call)
	{
		try {
			call();
		} catch (const std::system_error &failed) {
			return failed.code().value();
		}
		return 0;
	}
};

INSTANTIATE_TEST_SUITE_P(, waits,
			 testing::Values(waiting_fork, waiting_fork_many,
					 waiting_stat, waiting_prepare,
					 waiting_restore),
			 [](const auto &info) { return info.param.name; });

TEST_P(waits, end_with_eintr_unless_it_is_a_fork_many)
{
	const bool never = GetParam().make == waiting_fork_many.make;
	const deadline end = scaled_deadline(std::chrono::seconds(20));
	const deadline soon = scaled_deadline(std::chrono::milliseconds(500));
	int last = 0;

	call_while_busy(0, [&](int error) {
		last = error;
		return error || passed(never ? soon : end, alarm_storm::count);
	});
	EXPECT_EQ(last, never ? 0 : EINTR);
}

TEST_P(waits, go_on_with_sa_restart)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(300));
	int last = 0;

	call_while_busy(SA_RESTART, [&](int error) {
		last = error;
		return error || passed(end, alarm_storm::count);
	});
	EXPECT_EQ(last, 0);
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
		own.allocate(0, 128 * page_size);
		child.punch(page_size, 300 * page_size);
		child.zero(50, 20 * page_size);
		child.unshare(0, 512 * page_size);
		dev.fork_all({&parent, &own, &child, &parent});
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
