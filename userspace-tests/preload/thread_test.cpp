// SPDX-License-Identifier: GPL-2.0-only
/* Forks in a process of several threads, in signal handlers, and on stacks in the memory. */
#include <array>
#include <atomic>
#include <csignal>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "alarm_storm.hpp"
#include "chance.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t KiB = 1 << 10, MiB = 1 << 20;

class threads : public suite {};
class served_threads : public suite {};
class signals : public suite {};
class stacks : public suite {};
class atfork : public suite {};

/* Threads that do the same again and again until the object goes. */
class busy {
public:
	template <typename Body> busy(std::size_t count, Body body)
	{
		for (std::size_t i = 0; i < count; i++)
			threads_.emplace_back([this, body, i] {
				while (!stop_) {
					body(i);
					rounds_++;
				}
			});
		/* All of them are under way. */
		eventually([this, count] { return rounds_ > 10 * count; });
	}
	~busy()
	{
		stop_ = true;
		for (std::thread &thread : threads_)
			thread.join();
	}
	busy(const busy &) = delete;
	busy &operator=(const busy &) = delete;

private:
	std::atomic<bool> stop_ = false;
	std::atomic<std::size_t> rounds_ = 0;
	std::vector<std::thread> threads_;
};

/* Handlers cannot be taken back, so there are some for all cases, which do what is set. */
struct fork_handlers {
	std::function<void()> prepare, parent, child;

	static fork_handlers &first()
	{
		static fork_handlers one;

		return one;
	}
	static fork_handlers &second()
	{
		static fork_handlers one;

		return one;
	}
	static void install()
	{
		static const int done = [] {
			return ::pthread_atfork([] { run(first().prepare); }, [] { run(first().parent); },
						[] { run(first().child); }) +
			       ::pthread_atfork([] { run(second().prepare); }, [] { run(second().parent); },
						[] { run(second().child); });
		}();

		require(done == 0, "pthread_atfork");
	}

private:
	static void run(const std::function<void()> &handler)
	{
		if (handler)
			handler();
	}
};

/* Sets the handlers, and takes them back. */
class handlers_set {
public:
	handlers_set(fork_handlers first, fork_handlers second = {})
	{
		fork_handlers::install();
		fork_handlers::first() = std::move(first);
		fork_handlers::second() = std::move(second);
	}
	~handlers_set() { fork_handlers::first() = fork_handlers::second() = {}; }
	handlers_set(const handlers_set &) = delete;
	handlers_set &operator=(const handlers_set &) = delete;
};

/* The exit status of a child that is told whether what it sees is right. */
template <typename Right> int forked_status(Right &&right)
{
	const pid_t pid = ::fork();

	if (pid == 0)
		::_exit(right() ? 0 : 1);
	return exit_status(status_of(pid));
}

/* Pairs that are equal whenever nobody has the lock, which lies beside them. */
struct locked_pair {
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	volatile std::uint64_t first = 0;
	std::array<std::byte, 8192> between = {};
	volatile std::uint64_t second = 0;
};

TEST_F(threads, that_fork_at_once_see_what_a_lock_protects_whole)
{
	const mapping map = memory(MiB);
	locked_pair &pair = *std::construct_at(reinterpret_cast<locked_pair *>(map.data()));
	const auto lock = [&pair] { ::pthread_mutex_lock(&pair.lock); };
	const auto unlock = [&pair] { ::pthread_mutex_unlock(&pair.lock); };
	const handlers_set handlers({lock, unlock, unlock});
	std::atomic<int> failed = 0;

	{
		const busy writers(2, [&](std::size_t) {
			lock();
			pair.first = pair.first + 1;
			pair.second = pair.second + 1;
			unlock();
		});
		std::vector<std::thread> forkers;

		for (int i = 0; i < 3; i++)
			forkers.emplace_back([&] {
				for (std::size_t round = 0; round < scaled(30); round++)
					failed += forked_status([&] {
							  /* The lock is free in the child. */
							  lock();
							  const bool equal = pair.first == pair.second;
							  unlock();
							  return equal;
						  }) != 0;
			});
		for (std::thread &forker : forkers)
			forker.join();
	}
	EXPECT_EQ(failed, 0);
	EXPECT_EQ(pair.first, pair.second);
}

TEST_F(served_threads, that_fork_at_once_hand_nothing_to_each_others_children)
{
	std::atomic<int> failed = 0;
	std::vector<std::thread> forkers;

	for (int i = 0; i < 4; i++)
		forkers.emplace_back([&, i] {
			const mapping map = memory(MiB);

			for (std::size_t round = 0; round < scaled(25); round++) {
				paint(map, round << (8 * i));
				failed +=
					forked_status([&] {
						return region_descriptors().size() == 1 && shows(map, round << (8 * i));
					}) != 0;
			}
		});
	for (std::thread &forker : forkers)
		forker.join();
	EXPECT_EQ(failed, 0);
}

/* By fork(2) itself a child may have a later store and not an earlier one. */
TEST_F(served_threads, stop_at_one_instant)
{
	const mapping map = memory(4 * MiB);
	std::atomic<std::uint64_t> value = 0;
	int failed = 0;

	const busy writer(1, [&](std::size_t) {
		const std::uint64_t now = ++value;

		for (std::size_t page = 0; page < map.pages(); page += 7)
			map.store(page, now);
	});

	for (std::size_t round = 0; round < scaled(40); round++)
		failed += forked_status([&] {
				  const std::uint64_t newest = map.load(0);
				  std::uint64_t last = newest;

				  for (std::size_t page = 0; page < map.pages(); page += 7) {
					  const std::uint64_t now = map.load(page);

					  if (now > last || now + 1 < newest)
						  return false;
					  last = now;
				  }
				  return true;
			  }) != 0;
	EXPECT_EQ(failed, 0);
}

TEST_F(threads, that_map_and_unmap_leave_a_child_able_to)
{
	const mapping stable = memory(MiB);
	int failed = 0;

	paint(stable, 1);

	const busy mappers(3, [](std::size_t number) {
		mapping map = memory(128 * KiB + number * 256 * KiB);

		paint(map, 1);
		map.protect(PROT_READ);
		map.shrink(64 * KiB);
	});

	for (std::size_t round = 0; round < scaled(60); round++)
		failed +=
			forked_status([&] {
				/* The one thread of a child; whatever the others held is let go of. */
				const mapping map(-1, MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
				const bool zero = is_all(map.bytes(), 0);

				paint(map, 7);
				return zero && shows(map, 7) && shows(stable, 1) && ::munmap(map.data(), 64 * KiB) == 0;
			}) != 0;
	EXPECT_EQ(failed, 0);
	EXPECT_TRUE(shows(stable, 1));
}

TEST_F(threads, that_allocate_leave_a_child_able_to)
{
	int failed = 0;
	const busy allocators(3, [](std::size_t number) {
		std::vector<std::string> some;

		for (std::size_t i = 0; i < 50; i++)
			some.emplace_back((i + 1) * (1 + number * 300), 'x');
	});

	for (std::size_t round = 0; round < scaled(30); round++)
		failed += forked_status([&] {
				  std::vector<std::string> some;

				  for (std::size_t i = 0; i < 100; i++)
					  some.emplace_back(i * 97, static_cast<char>('a' + i % 26));
				  for (std::size_t i = 0; i < some.size(); i++)
					  if (some[i] != std::string(i * 97, static_cast<char>('a' + i % 26)))
						  return false;
				  return true;
			  }) != 0;
	EXPECT_EQ(failed, 0);
}

TEST_F(threads, that_write_to_streams_leave_a_child_able_to)
{
	std::FILE *const common = std::tmpfile();
	int failed = 0;

	ASSERT_NE(common, nullptr);
	EXPECT_TRUE(this_kind() != kind::jemalloc || served(common));
	{
		const busy printers(2, [common](std::size_t number) { std::fprintf(common, "%zu ", number); });

		for (std::size_t round = 0; round < scaled(40); round++)
			failed += forked_status([&] {
					  std::FILE *const own = std::tmpfile();
					  char text[32] = {};

					  if (!own || std::fprintf(own, "round %zu\n", round) < 0 ||
					      std::fseek(own, 0, SEEK_SET) != 0)
						  return false;
					  if (!std::fgets(text, sizeof(text), own) ||
					      "round " + std::to_string(round) + "\n" != text || std::fclose(own) != 0)
						  return false;
					  /* Of the stream that the others print to the lock is free. */
					  return std::fprintf(common, "x") == 1;
				  }) != 0;
	}
	EXPECT_EQ(failed, 0);
	std::fclose(common);
}

TEST_F(threads, can_be_made_by_a_child_of_a_thread)
{
	const mapping map = memory(MiB);

	paint(map, 1);

	const busy others(2, [](std::size_t) { std::this_thread::yield(); });

	std::thread([&] {
		expect_child([&] {
			std::atomic<int> good = 0;
			std::vector<std::thread> own;

			for (int i = 0; i < 4; i++)
				own.emplace_back([&, i] {
					const mapping more = memory(MiB);

					paint(more, 1000);
					map.store(static_cast<std::size_t>(i), 70);
					good += shows(more, 1000);
				});
			for (std::thread &thread : own)
				thread.join();
			require(good == 4 && map.load(3) == 70 && map.load(4) == 5, "a child's threads work");
			require(child([&] { require(map.load(2) == 70, "and a child of it forks"); }).succeeded(),
				"again");
		});
	}).join();
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(threads, have_their_own_data_in_a_child)
{
	static thread_local std::vector<int> numbers;
	std::array<pthread_key_t, 100> keys = {};

	for (pthread_key_t &key : keys)
		require(::pthread_key_create(&key, nullptr) == 0, "pthread_key_create");
	std::thread([&] {
		numbers.assign(100'000, 7);
		for (const pthread_key_t key : keys)
			require(::pthread_setspecific(key, &numbers) == 0, "pthread_setspecific");
		expect_child([&] {
			require(numbers.size() == 100'000 && numbers[99'999] == 7, "a thread's own data is there");
			for (const pthread_key_t key : keys)
				require(::pthread_getspecific(key) == &numbers, "and what it set for its keys");
			numbers.assign(10, 8);
			require(::pthread_setspecific(keys[99], nullptr) == 0, "and it can be changed");
		});
		EXPECT_EQ(numbers.size(), 100'000u);
		EXPECT_EQ(::pthread_getspecific(keys[99]), &numbers);
	}).join();
	for (const pthread_key_t key : keys)
		::pthread_key_delete(key);
}

TEST_F(atfork, runs_its_handlers_in_order_and_lets_them_map)
{
	std::string order;
	std::vector<mapping> mapped;
	const auto note = [&](char letter) {
		return [&order, &mapped, letter] {
			mapping map = memory(MiB);

			paint(map, static_cast<std::uint64_t>(letter));
			mapped.push_back(std::move(map));
			order += letter;
		};
	};
	const auto all_right = [&](const std::string &wanted) {
		if (order != wanted || mapped.size() != wanted.size())
			return false;
		for (std::size_t i = 0; i < wanted.size(); i++)
			if (!shows(mapped[i], static_cast<std::uint64_t>(wanted[i])))
				return false;
		return true;
	};
	const handlers_set handlers({note('P'), note('a'), note('1')}, {note('Q'), note('b'), note('2')});

	for (int round = 0; round < 5; round++) {
		order.clear();
		mapped.clear();
		EXPECT_EQ(forked_status([&] { return all_right("QP12"); }), 0) << round;
		EXPECT_TRUE(all_right("QPab")) << round << ": " << order;
	}
}

TEST_F(atfork, lets_a_handler_fork)
{
	const mapping map = memory(MiB);
	int depth = 0, inner = -1;

	paint(map, 1);

	const handlers_set handlers({[&] {
					     if (depth++ == 0)
						     inner = forked_status([&] { return shows(map, 1); });
					     depth--;
				     },
				     {},
				     {}});

	EXPECT_EQ(forked_status([&] { return shows(map, 1) && inner == 0; }), 0);
	EXPECT_EQ(inner, 0);
}

TEST_F(signals, that_are_all_blocked_hinder_nothing)
{
	const mapping map = memory(MiB);
	sigset_t all, before;

	paint(map, 1);
	::sigfillset(&all);
	check(::sigprocmask(SIG_SETMASK, &all, &before), "sigprocmask");
	expect_child([&] {
		sigset_t now;

		require(::sigprocmask(SIG_SETMASK, nullptr, &now) == 0, "sigprocmask");
		for (const int signal : {SIGUSR1, SIGSYS, SIGALRM, SIGSEGV, SIGRTMAX})
			require(::sigismember(&now, signal), "a child has them blocked as well");
		require(shows(map, 1), "and its memory");
		require(child([&] { require(shows(map, 1), "and a child's child"); }).succeeded(), "it forks");
	});

	sigset_t after;

	check(::sigprocmask(SIG_SETMASK, &before, &after), "sigprocmask");
	for (const int signal : {SIGUSR1, SIGSYS, SIGALRM, SIGSEGV, SIGRTMAX})
		EXPECT_TRUE(::sigismember(&after, signal)) << signal;
}

TEST_F(signals, that_are_not_blocked_are_not_in_a_child)
{
	sigset_t none;

	::sigemptyset(&none);
	check(::sigprocmask(SIG_SETMASK, &none, nullptr), "sigprocmask");
	expect_child([] {
		sigset_t now;

		require(::sigprocmask(SIG_SETMASK, nullptr, &now) == 0, "sigprocmask");
		for (int signal = 1; signal < SIGRTMAX; signal++)
			require(signal == 32 || signal == 33 || !::sigismember(&now, signal),
				"signal " + std::to_string(signal) + " is blocked");
	});
}

void fork_in_a_storm(int flags, std::size_t threads)
{
	const mapping map = memory(4 * MiB);
	std::atomic<int> failed = 0;
	std::atomic<std::uint64_t> round = 0;

	{
		const alarm_storm storm(700, flags);
		std::vector<std::thread> others;
		const auto fork_often = [&](std::size_t first) {
			for (std::size_t i = 0; i < scaled(60) / threads; i++) {
				const std::uint64_t now = ++round;

				for (std::size_t page = first; page < map.pages(); page += threads)
					map.store(page, now);

				const pid_t pid = ::fork();

				if (pid == 0) {
					for (std::size_t page = first; page < map.pages(); page += threads)
						if (map.load(page) != now)
							::_exit(1);
					map.store(first, 0);
					::_exit(0);
				}
				if (pid < 0)
					failed++;
				else
					failed += exit_status(status_of(pid)) != 0;
			}
		};

		for (std::size_t i = 1; i < threads; i++)
			others.emplace_back(fork_often, i);
		fork_often(0);
		for (std::thread &other : others)
			other.join();
		EXPECT_GT(alarm_storm::count(), 0u);
	}
	EXPECT_EQ(failed, 0);
}

TEST_F(signals, in_a_storm_do_not_make_a_fork_fail)
{
	fork_in_a_storm(0, 1);
	fork_in_a_storm(SA_RESTART, 1);
}

TEST_F(signals, in_a_storm_do_not_make_forks_of_threads_fail)
{
	fork_in_a_storm(0, 3);
}

TEST_F(signals, can_have_handlers_that_fork)
{
	static const mapping *memory_of_handler;
	static std::atomic<int> good, bad;
	const mapping map = memory(MiB);
	struct sigaction action = {}, before = {};

	good = bad = 0;
	memory_of_handler = &map;
	paint(map, 1);
	action.sa_handler = [](int) {
		const int status = forked_status([] { return shows(*memory_of_handler, 1); });

		(status == 0 ? good : bad)++;
	};
	check(::sigaction(SIGUSR1, &action, &before), "sigaction");
	for (int i = 0; i < 10; i++)
		::raise(SIGUSR1);
	check(::sigaction(SIGUSR1, &before, nullptr), "sigaction");
	EXPECT_EQ(good, 10);
	EXPECT_EQ(bad, 0);
}

TEST_F(signals, can_have_handlers_that_fork_wherever_they_come)
{
	static const mapping *memory_of_handler;
	static std::atomic<int> good, bad;
	const mapping map = memory(MiB);

	good = bad = 0;
	memory_of_handler = &map;

	/* In between stores and system calls that the library has a part in, of a thread that allocates nothing. */
	struct sigaction action = {}, before = {};
	static const itimerval timer = {{0, 20'000}, {0, 20'000}}, never = {};

	action.sa_handler = [](int) {
		const std::uint64_t now = memory_of_handler->load(1);
		const pid_t pid = ::_Fork();

		if (pid == 0) {
			memory_of_handler->store(1, 1);
			::_exit(memory_of_handler->load(1) == 1 ? 0 : 1);
		}
		(pid > 0 && exit_status(status_of(pid)) == 0 && memory_of_handler->load(1) == now ? good : bad)++;
		/* Where a fork takes longer than the interval nobody else comes to do so. */
		if (good + bad >= 20)
			(void)::setitimer(ITIMER_REAL, &never, nullptr);
	};
	check(::sigaction(SIGALRM, &action, &before), "sigaction");
	check(::setitimer(ITIMER_REAL, &timer, nullptr), "setitimer");
	for (std::uint64_t i = 0; good + bad < 20; i++) {
		map.store(1, i);
		map.store(2, i);
	}
	check(::sigaction(SIGALRM, &before, nullptr), "sigaction");
	EXPECT_EQ(bad, 0);
}

TEST_F(signals, of_bad_system_calls_stay_the_programs)
{
	static std::atomic<int> caught;
	const mapping map = memory(MiB);
	struct sigaction action = {}, before = {}, now = {};

	caught = 0;
	paint(map, 1);
	action.sa_handler = [](int) { caught++; };
	check(::sigaction(SIGSYS, &action, &before), "sigaction");
	for (int i = 0; i < 3; i++) {
		expect_child([&] {
			require(shows(map, 1), "a child's memory");
			::raise(SIGSYS);
			require(caught == 1 + i, "its handler is the program's");
		});
		::raise(SIGSYS);
		EXPECT_EQ(caught, 1 + i) << "only what the program raised";
	}
	check(::sigaction(SIGSYS, nullptr, &now), "sigaction");
	EXPECT_EQ(now.sa_handler, action.sa_handler);
	action.sa_handler = SIG_IGN;
	check(::sigaction(SIGSYS, &action, nullptr), "sigaction");
	expect_child([&] { require(shows(map, 1), "a child of who ignores it"); });
	check(::sigaction(SIGSYS, &before, nullptr), "sigaction");
	EXPECT_TRUE(child([] { ::raise(SIGSYS); }).killed_by(SIGSYS));
}

TEST_F(stacks, of_other_contexts_may_lie_in_the_memory)
{
	static ucontext_t back, there;
	static int status, depth;
	const mapping stack = memory(MiB);

	there = {};
	check(::getcontext(&there), "getcontext");
	there.uc_stack.ss_sp = stack.data();
	there.uc_stack.ss_size = stack.size();
	there.uc_link = &back;
	::makecontext(
		&there,
		+[] {
			std::array<volatile std::uint64_t, 1000> numbers = {};

			for (int round = 0; round < 5; round++) {
				for (std::size_t i = 0; i < numbers.size(); i++)
					numbers[i] = i + static_cast<std::uint64_t>(round);

				const auto right = [&](std::uint64_t add) {
					for (std::size_t i = 0; i < numbers.size(); i++)
						if (numbers[i] != i + add)
							return false;
					return true;
				};
				const pid_t pid = ::fork();

				if (pid == 0) {
					if (!right(static_cast<std::uint64_t>(round)))
						::_exit(1);
					for (std::size_t i = 0; i < numbers.size(); i++)
						numbers[i] = 0;
					/* Back to the stack that is not the memory's. */
					depth = 1;
					::swapcontext(&there, &back);
				}
				if (exit_status(status_of(pid)) != 0 || !right(static_cast<std::uint64_t>(round)))
					status++;
			}
		},
		0);
	status = depth = 0;
	check(::swapcontext(&back, &there), "swapcontext");
	if (depth)
		::_exit(0); /* the child */
	EXPECT_EQ(status, 0);
}

struct thread_on_memory {
	static void *run(void *)
	{
		std::array<volatile char, 100'000> local;
		long failed = 0;

		for (char round = 1; round < 10; round++) {
			for (volatile char &byte : local)
				byte = round;
			failed += forked_status([&] {
					  for (const volatile char &byte : local)
						  if (byte != round)
							  return false;
					  /* A child of it forks on the same stack. */
					  return forked_status([&] { return local[77] == round; }) == 0;
				  }) != 0;
			for (const volatile char &byte : local)
				failed += byte != round;
		}
		return reinterpret_cast<void *>(failed);
	}
};

/* A thread on that stack, which is waited for. */
void run_on(std::span<std::byte> stack)
{
	pthread_attr_t attributes;
	pthread_t id = {};
	void *failed = nullptr;

	require(::pthread_attr_init(&attributes) == 0, "pthread_attr_init");
	require(::pthread_attr_setstack(&attributes, stack.data(), stack.size()) == 0, "pthread_attr_setstack");
	require(::pthread_create(&id, &attributes, thread_on_memory::run, nullptr) == 0, "pthread_create");
	require(::pthread_join(id, &failed) == 0, "pthread_join");
	::pthread_attr_destroy(&attributes);
	EXPECT_EQ(failed, nullptr);
}

TEST_F(stacks, of_threads_may_lie_in_the_memory)
{
	run_on(memory(MiB).bytes());
}

TEST_F(stacks, of_threads_may_end_between_pages)
{
	run_on(memory(MiB).bytes().subspan(64, MiB - 4096 + 1856 - 64));
}

TEST_F(stacks, of_threads_may_have_a_guard_page)
{
	const mapping stack = memory(MiB);

	check(::mprotect(stack.data(), page_size, PROT_NONE), "mprotect");
	run_on(stack.bytes());
}

TEST_F(stacks, of_signals_may_lie_in_the_memory)
{
	static std::atomic<int> failed;
	const mapping stack = memory(MiB);
	const stack_t alternate = {stack.data(), 0, stack.size()}, none = {nullptr, SS_DISABLE, 0};
	struct sigaction action = {}, before = {};

	failed = 0;
	action.sa_flags = SA_ONSTACK;
	action.sa_handler = [](int) {
		volatile int local = 5;

		failed += forked_status([&] { return local == 5; });
		failed += local != 5;
	};
	check(::sigaltstack(&alternate, nullptr), "sigaltstack");
	check(::sigaction(SIGUSR1, &action, &before), "sigaction");
	for (int i = 0; i < 5; i++)
		::raise(SIGUSR1);
	check(::sigaction(SIGUSR1, &before, nullptr), "sigaction");
	/* And one that is only there while a fork is made. */
	expect_child([] {
		stack_t now = {};

		require(::sigaltstack(nullptr, &now) == 0 && now.ss_size == MiB, "a child has the stack for signals");
	});
	check(::sigaltstack(&none, nullptr), "sigaltstack");
	EXPECT_EQ(failed, 0);
}

} // namespace
