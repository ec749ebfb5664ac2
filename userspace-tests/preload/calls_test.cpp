// SPDX-License-Identifier: GPL-2.0-only
/* All the other ways to make a process. */
#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <fcntl.h>
#include <pty.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "suite.hpp"

using namespace cowsnap_test;

namespace {

class calls : public suite {};
class served_calls : public suite {};

/* All that is written into a pipe or a terminal until nobody can write any more. */
std::string all_of(int fd)
{
	std::array<char, 256> some;
	std::string text;

	for (ssize_t got; (got = ::read(fd, some.data(), some.size())) > 0;)
		text.append(some.data(), static_cast<std::size_t>(got));
	return text;
}

/* Says in a process that a call made whether the memory is as it should be, and a fork of it, too. */
int verdict(const mapping &map, std::uint64_t first)
{
	if (!shows(map, first))
		return 1;
	paint(map, 7);

	const pid_t pid = ::fork();

	if (pid == 0)
		::_exit(shows(map, 7) ? 0 : 1);
	return exit_status(status_of(pid)) == 0 && shows(map, 7) ? 0 : 2;
}

TEST_F(calls, such_as_fork_without_handlers)
{
	const mapping map = memory(MiB);

	for (std::uint64_t round = 0; round < 5; round++) {
		paint(map, round);

		const pid_t pid = ::_Fork();

		if (pid == 0)
			::_exit(verdict(map, round));
		EXPECT_EQ(exit_status(status_of(pid)), 0);
		EXPECT_TRUE(shows(map, round));
	}
}

TEST_F(calls, such_as_daemon)
{
	const mapping map = memory(MiB);
	pipe_pair report;

	paint(map, 1);
	child process([&] {
		if (::daemon(1, 1) != 0)
			::_exit(1);

		const char result = static_cast<char>('0' + verdict(map, 1));

		::_exit(::write(report.write_end.get(), &result, 1) != 1);
	});
	/* The one that called it. */
	EXPECT_TRUE(process.succeeded());
	report.write_end.reset();
	EXPECT_EQ(all_of(report.read_end.get()), "0");
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(calls, such_as_forkpty)
{
	const mapping map = memory(MiB);
	int terminal = -1;

	paint(map, 1);
	std::fflush(stdout);

	const pid_t pid = ::forkpty(&terminal, nullptr, nullptr, nullptr);

	if (pid == 0) {
		const int result = ::isatty(1) ? verdict(map, 1) : 3;

		std::printf("verdict %d\n", result);
		std::fflush(stdout);
		::_exit(result);
	}
	check(pid, "forkpty");

	const unique_fd owner(terminal);

	EXPECT_EQ(all_of(terminal), "verdict 0\r\n");
	EXPECT_EQ(exit_status(status_of(pid)), 0);
	EXPECT_TRUE(shows(map, 1));
}

struct cloned {
	const mapping *map;
	int extra;

	static int run(void *argument)
	{
		const cloned &what = *static_cast<cloned *>(argument);
		/* More than what fits into registers. */
		std::array<volatile int, 1000> local;

		for (volatile int &each : local)
			each = what.extra;

		const int result = verdict(*what.map, 1);

		for (const volatile int &each : local)
			if (each != what.extra)
				return 4;
		return result;
	}
};

/* The status of a process that clone(2) makes on that stack. */
int clone_on(std::span<std::byte> stack, int flags, const mapping &map)
{
	cloned what = {&map, 42};
	const pid_t pid = ::clone(cloned::run, stack.data() + stack.size(), flags, &what);

	return status_of(pid);
}

TEST_F(calls, such_as_clone_with_a_stack)
{
	const mapping map = memory(MiB), own_stack = memory(MiB);
	const mapping kernels(-1, MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK);

	paint(map, 1);
	EXPECT_EQ(exit_status(clone_on(kernels.bytes(), SIGCHLD, map)), 0);
	EXPECT_EQ(exit_status(clone_on(own_stack.bytes(), SIGCHLD, map)), 0);
	/* But for what clone(3) itself puts there, for the child to find. */
	EXPECT_TRUE(is_all(own_stack.bytes().first(MiB - page_size), 0)) << "a child's stack is not the parent's";
	EXPECT_TRUE(shows(map, 1));
}

/* Where the kernel is to write in the child, the child has no memory yet. */
TEST_F(calls, such_as_clone_with_identifiers)
{
	struct identifiers {
		pid_t parent_sees, child_sees;
	};
	const mapping map = memory(MiB), stack = memory(MiB);
	identifiers &ids = *std::construct_at(reinterpret_cast<identifiers *>(map.data()));
	const pid_t pid = ::clone(
		+[](void *argument) {
			const identifiers &all = *static_cast<identifiers *>(argument);

			return all.child_sees == ::getpid() && all.parent_sees == 0 ? 0 : 1;
		},
		stack.data() + stack.size(), CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, &ids, &ids.parent_sees,
		nullptr, &ids.child_sees);

	EXPECT_EQ(exit_status(status_of(pid)), 0);
	EXPECT_EQ(ids.parent_sees, pid);
	EXPECT_EQ(ids.child_sees, 0);
}

TEST_F(calls, such_as_clone_that_shares_memory)
{
	const mapping map = memory(MiB), stack = memory(MiB);

	paint(map, 1);
	/* vfork() in all but the name: the child is on another stack, in the parent's memory. It may fork, too. */
	const pid_t pid = ::clone(
		+[](void *argument) {
			const mapping &memory_of_both = *static_cast<const mapping *>(argument);

			paint(memory_of_both, 77);

			const pid_t inner = ::_Fork();

			if (inner == 0)
				::_exit(shows(memory_of_both, 77) ? 0 : 1);
			return exit_status(status_of(inner));
		},
		stack.data() + stack.size(), CLONE_VM | CLONE_VFORK | SIGCHLD, const_cast<mapping *>(&map));

	EXPECT_EQ(exit_status(status_of(pid)), 0);
	EXPECT_TRUE(shows(map, 77));
	expect_child([&] { require(shows(map, 77), "and fork goes on"); });
	EXPECT_EQ(served(anonymous(MiB).data()), this_kind() != kind::plain);
}

/* What does not come by the C library has nothing there, and above all not the parent's memory. */
TEST_F(served_calls, that_nobody_sees_leave_a_hole)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	for (const bool store : {false, true}) {
		const pid_t pid = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));

		if (pid == 0) {
			if (store)
				map.store(0, 5);
			else
				(void)map.load(0);
			::_exit(0);
		}

		const int status = status_of(pid);

		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
		EXPECT_TRUE(shows(map, 1));
	}
	expect_child([&] { require(shows(map, 1), "and fork goes on"); });
}

/* Nor does it reach the parent's by calls. */
TEST_F(served_calls, that_nobody_sees_do_not_change_the_parent)
{
	const mapping map = memory(MiB);
	const auto call_kernel = [&](int which) {
		constexpr int both = PROT_READ | PROT_WRITE, anew = MAP_PRIVATE | MAP_ANONYMOUS;

		switch (which) {
		case 0: ::munmap(map.data(), MiB); break;
		case 1: ::madvise(map.data(), MiB, MADV_DONTNEED); break;
		case 2:
			if (::mmap(map.data(), MiB, both, anew | MAP_FIXED, -1, 0) != MAP_FAILED)
				std::memset(map.data(), 7, MiB);
			break;
		default: ::munmap(map.data(), MiB); anonymous(MiB).store(0, 5);
		}
	};

	paint(map, 1);
	for (int which = 0; which < 4; which++) {
		const pid_t pid = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));

		if (pid == 0) {
			call_kernel(which);
			::_exit(0);
		}
		EXPECT_EQ(exit_status(status_of(pid)), 0) << which;
		EXPECT_TRUE(shows(map, 1)) << which;
	}
}

const role right_role("right", [] {
	const mapping map = anonymous(MiB);

	return verdict(map, 0) == 2 || (this_kind() != kind::plain && !served(map.data())) ? 1 : 0;
});

TEST_F(calls, such_as_vfork)
{
	const mapping map = memory(MiB);
	environment settings({});
	std::array<char *, 4> arguments = {const_cast<char *>("preload_test"), const_cast<char *>("--role"),
					   const_cast<char *>("right"), nullptr};

	paint(map, 1);

	const pid_t pid = ::vfork(); // NOLINT(bugprone-unsafe-functions): it is what is tested

	if (pid == 0) {
		::execve("/proc/self/exe", arguments.data(), settings.get());
		::_exit(127);
	}
	EXPECT_EQ(exit_status(status_of(pid)), 0);

	const pid_t second = ::vfork(); // NOLINT(bugprone-unsafe-functions)

	if (second == 0)
		::_exit(9);
	EXPECT_EQ(exit_status(status_of(second)), 9);
	EXPECT_TRUE(shows(map, 1));
	expect_child([&] { require(shows(map, 1), "and fork goes on"); });
}

TEST_F(calls, such_as_posix_spawn)
{
	const mapping map = memory(MiB);
	std::array<char *, 4> arguments = {const_cast<char *>("preload_test"), const_cast<char *>("--role"),
					   const_cast<char *>("right"), nullptr};
	pid_t pid = -1;

	paint(map, 1);
	for (int round = 0; round < 3; round++) {
		ASSERT_EQ(::posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments.data(), environ), 0);
		EXPECT_EQ(exit_status(status_of(pid)), 0);
	}
	EXPECT_TRUE(shows(map, 1));
	expect_child([&] { require(shows(map, 1), "and fork goes on"); });
}

TEST_F(calls, such_as_exec_have_their_own_memory)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	EXPECT_EQ(played("right"), 0);
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(calls, such_as_system)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	EXPECT_EQ(exit_status(std::system("exit 5")), 5);
	/* A shell that forks by itself. */
	EXPECT_EQ(exit_status(std::system("a=$(echo 4); (exit $a); b=$?; [ $b = 4 ] && exit 6")), 6);
	EXPECT_EQ(exit_status(std::system("/proc/$$/exe -c 'exit 3'")), 3);
	EXPECT_TRUE(shows(map, 1));
	expect_child([&] {
		require(exit_status(std::system("exit 8")) == 8, "in a child, too");
		require(shows(map, 1), "and the memory is there");
	});
}

TEST_F(calls, such_as_popen)
{
	const mapping map = memory(MiB);
	std::array<char, 32> line = {};

	paint(map, 1);
	std::FILE *const output = ::popen("echo hello", "r");

	ASSERT_NE(output, nullptr);
	EXPECT_NE(std::fgets(line.data(), line.size(), output), nullptr);
	EXPECT_STREQ(line.data(), "hello\n");
	EXPECT_EQ(::pclose(output), 0);
	EXPECT_TRUE(shows(map, 1));
}

} // namespace
