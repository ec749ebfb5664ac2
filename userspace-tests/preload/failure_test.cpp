// SPDX-License-Identifier: GPL-2.0-only
/* Forks that fail leave everything as it was, and no child. */
#include <array>
#include <string>
#include <vector>

#include <fcntl.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "descriptors.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

class failing : public suite {};
class served_failing : public suite {};

/*
 * What all regions may hold, set without an allocation in between: where the allocator
 * uses the region it could not get any more.
 */
class cap {
public:
	cap() : fd_(check(::open("/sys/module/cowsnap/parameters/max_bytes", O_RDWR | O_CLOEXEC), "max_bytes"))
	{
		size_ = static_cast<std::size_t>(
			check(::pread(fd_.get(), before_.data(), before_.size(), 0), "read max_bytes"));
	}
	~cap() { lift(); }
	cap(const cap &) = delete;
	cap &operator=(const cap &) = delete;

	void lower() const noexcept { write("4096", 4); }
	void lift() const noexcept { write(before_.data(), size_); }

private:
	void write(const char *text, std::size_t size) const noexcept
	{
		if (::pwrite(fd_.get(), text, size, 0) < 0)
			::abort();
	}

	unique_fd fd_;
	std::array<char, 32> before_ = {};
	std::size_t size_ = 0;
};

/* What a call that makes a process ended with; a child that there should not be ends with 0. */
struct outcome {
	pid_t pid = 0;
	int error = 0;

	template <typename Call> static outcome of(Call &&call)
	{
		outcome result;

		errno = 0;
		result.pid = call();
		result.error = errno;
		if (result.pid == 0)
			::_exit(0);
		return result;
	}
};

TEST_F(served_failing, at_the_modules_limit_is_told)
{
	const mapping map = memory(MiB);
	const cap limit;
	std::array<outcome, 4> results;
	int errors_of_wait = 0;

	paint(map, 1);

	const std::uint64_t regions = counters(*dev).regions;
	const std::size_t descriptors = descriptor_count();

	limit.lower();
	results[0] = outcome::of(::fork);
	results[1] = outcome::of(::_Fork);
	results[2] = outcome::of([&map] {
		return ::clone(
			+[](void *) { return 0; }, map.data() + map.size(), SIGCHLD, nullptr);
	});
	results[3] = outcome::of(::fork);
	errors_of_wait = ::waitpid(-1, nullptr, WNOHANG) == -1 ? errno : 0;
	paint(map, 2); /* what it has it can write still */
	limit.lift();

	for (std::size_t i = 0; i < results.size(); i++) {
		EXPECT_EQ(results[i].pid, -1) << i;
		EXPECT_EQ(results[i].error, ENOSPC) << i;
	}
	EXPECT_EQ(errors_of_wait, ECHILD) << "there is a child";
	EXPECT_TRUE(shows(map, 2));
	EXPECT_EQ(counters(*dev).regions, regions);
	EXPECT_EQ(descriptor_count(), descriptors);
	expect_child([&] {
		require(shows(map, 2), "it goes on when the limit is lifted");
		paint(map, 3);
	});
	EXPECT_TRUE(shows(map, 2));
}

TEST_F(served_failing, of_a_child_at_the_limit_is_told)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	expect_child([&] {
		const cap limit;

		limit.lower();

		const outcome result = outcome::of(::fork);

		limit.lift();
		require(result.pid == -1 && result.error == ENOSPC, "a child cannot fork");
		require(shows(map, 1), "its memory is there");
		require(child([&] { require(shows(map, 1), "then it can"); }).succeeded(), "a child's child");
	});
}

TEST_F(served_failing, runs_the_handlers_that_a_failed_fork_runs)
{
	static std::string order;
	static const int installed = ::pthread_atfork([] { order += 'p'; }, [] { order += 'a'; }, [] { order += 'c'; });
	const mapping map = memory(MiB);
	const cap limit;

	ASSERT_EQ(installed, 0);
	paint(map, 1);
	order.reserve(16);
	order.clear();
	limit.lower();

	const outcome result = outcome::of(::fork);

	limit.lift();
	EXPECT_EQ(result.pid, -1);
	EXPECT_EQ(order, "pa");
}

TEST_F(served_failing, for_want_of_a_descriptor_is_told)
{
	const mapping map = memory(MiB);
	outcome result;

	paint(map, 1);
	{
		const descriptor_limit none = descriptor_limit::leaving(0);

		/* The next one is not there, so this is as many as there are. */
		std::vector<unique_fd> rest;

		for (int fd; (fd = ::dup(0)) >= 0;)
			rest.emplace_back(fd);
		result = outcome::of(::fork);
	}
	EXPECT_EQ(result.pid, -1);
	EXPECT_EQ(result.error, EMFILE);
	EXPECT_TRUE(shows(map, 1));
	expect_child([&] { require(shows(map, 1), "then it works again"); });
}

TEST_F(failing, in_the_kernel_leaves_nothing_behind)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	expect_child([&] {
		rlimit before = {};

		check(::getrlimit(RLIMIT_NPROC, &before), "getrlimit");

		const rlimit none = {0, before.rlim_max}, many = before;
		const std::size_t descriptors = descriptor_count();

		require(::setgroups(0, nullptr) == 0 && ::setresgid(65534, 65534, 65534) == 0, "setresgid");
		require(::setrlimit(RLIMIT_NPROC, &none) == 0, "setrlimit");
		require(::setresuid(65534, 65534, 65534) == 0, "setresuid");

		const std::uint64_t regions = dev ? counters(*dev).regions : 0;

		for (int round = 0; round < 20; round++) {
			const outcome result = round % 2 ? outcome::of(::fork) : outcome::of(::_Fork);

			require(result.pid == -1 && result.error == EAGAIN, "the kernel refuses it, and that is told");
		}
		require(!dev || counters(*dev).regions == regions, "no region is left");
		require(descriptor_count() == descriptors, "no descriptor is left");
		require(shows(map, 1), "the memory is there");
		paint(map, 2);
		require(::setrlimit(RLIMIT_NPROC, &many) == 0, "setrlimit");
		require(child([&] { require(shows(map, 2), "then it works"); }).succeeded(), "a child's child");
	});
	EXPECT_TRUE(shows(map, 1));
}

} // namespace
