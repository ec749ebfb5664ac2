// SPDX-License-Identifier: GPL-2.0-only
/* Programs that the library can do nothing for, and that these cases notice when it does nothing. */
#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "suite.hpp"

using namespace cowsnap_test;

namespace {

class served_control : public suite {};
class served_device : public suite {};

/* What a process wrote to its standard error, and its exit status. */
struct run_result {
	int status = -1;
	std::string errors;
};

template <typename Body> run_result run_with_errors_read(Body &&body)
{
	pipe_pair pipe;
	run_result result;
	std::array<char, 256> some;

	child process([&] {
		::dup2(pipe.write_end.get(), 2);
		body();
	});
	pipe.write_end.reset();
	for (ssize_t got; (got = ::read(pipe.read_end.get(), some.data(), some.size())) > 0;)
		result.errors.append(some.data(), static_cast<std::size_t>(got));
	result.status = exit_status(process.finish());
	return result;
}

/* Threads that map while others fork leave nothing locked in the children. */
void fork_beside_threads()
{
	std::atomic<bool> stop = false;
	std::vector<std::thread> mappers;

	for (int i = 0; i < 3; i++)
		mappers.emplace_back([&stop] {
			while (!stop)
				(void)anonymous(128 << 10);
		});
	for (int round = 0; round < 200; round++) {
		const pid_t pid = ::fork();

		if (pid == 0) {
			(void)anonymous(128 << 10);
			::_exit(0);
		}

		int status = -1;

		if (!eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; })) {
			::kill(pid, SIGKILL);
			status_of(pid);
			require(false, "a child hangs");
		}
		require(exit_status(status) == 0, "a child maps");
	}
	stop = true;
	for (std::thread &mapper : mappers)
		mapper.join();
}

/* The library serves nothing, and nothing is different for it. */
const role unserved_role("unserved", [] {
	const mapping map = anonymous(16 * MiB);
	std::vector<std::thread> threads;

	require(region_ranges().empty(), "there is no region");
	require(region_descriptors().empty(), "nor a descriptor of one");
	require(thread_count() == 1, "nor a thread");
	paint(map, 1);
	for (int round = 0; round < 3; round++) {
		child process([&] {
			require(shows(map, 1), "a child has the memory");
			paint(map, 2);
			require(child([&] { require(shows(map, 2), "and its child"); }).succeeded(), "a child's child");
			map.advise(MADV_DONTNEED);
		});

		require(process.succeeded(), "a child");
		require(shows(map, 1), "the memory is the parent's");
	}
	for (int i = 0; i < 3; i++)
		threads.emplace_back([&] {
			mapping more = anonymous(MiB);

			paint(more, 1);
			more.shrink(MiB / 2);
		});
	for (std::thread &thread : threads)
		thread.join();
	fork_beside_threads();
	map.protect(PROT_READ);
	require(::madvise(map.data(), MiB, MADV_DONTFORK) == 0, "advice is the kernel's");
	require(::close_range(3, ~0U, 0) == 0, "close_range");
	return 0;
});

[[noreturn]] void become_nobody(std::initializer_list<std::string> changes = {})
{
	require(::setgroups(0, nullptr) == 0 && ::setresgid(65534, 65534, 65534) == 0 &&
			::setresuid(65534, 65534, 65534) == 0,
		"setresuid");
	become({"--role", "unserved"}, changes);
}

TEST_F(served_device, that_may_not_be_opened_is_done_without)
{
	struct stat status = {};

	ASSERT_EQ(::stat(device_path, &status), 0);
	ASSERT_EQ(status.st_mode & 07, 0u) << "others could open it";
	for (const std::string rate : {"COWSNAP_FORK_PREPARE", "COWSNAP_FORK_PREPARE=100000000"}) {
		const run_result result = run_with_errors_read([&] { become_nobody({rate}); });

		EXPECT_EQ(result.status, 0) << rate;
		EXPECT_EQ(result.errors, "") << rate;
	}
}

TEST_F(served_device, of_the_same_name_that_is_another_is_done_without)
{
	/* What was mapped by then stays as it is; a program that begins finds the other one. */
	expect_child([] {
		require(::unshare(CLONE_NEWNS) == 0, "unshare");
		require(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "mount");
		require(::mount("/dev/null", device_path, nullptr, MS_BIND, nullptr) == 0, "mount");

		const run_result result = run_with_errors_read([] { become({"--role", "unserved"}); });

		require(result.status == 0 && result.errors.empty(), "it is done without: " + result.errors);
	});
}

/* The status of some of these cases, run in a program of their own. */
int run_cases(const std::string &filter, std::initializer_list<std::string> more)
{
	child process([&] {
		std::vector<std::string> none;

		::setenv("GTEST_FILTER", filter.c_str(), 1);
		/* Its results are not those of this run. */
		::dup2(check(::open("/dev/null", O_WRONLY), "/dev/null"), 1);
		become(none, more);
	});

	return exit_status(process.finish());
}

TEST_F(served_control, passes_with_the_library_and_fails_without)
{
	for (const std::string filter :
	     {"served_mmap.is_of_the_region_from_64_KiB_on", "served_forking.shares_what_nobody_wrote",
	      "served_calls.that_nobody_sees_leave_a_hole", "served_threads.stop_at_one_instant"}) {
		EXPECT_EQ(run_cases(filter, {}), 0) << filter;
		EXPECT_EQ(run_cases(filter, {"LD_PRELOAD"}), 1) << filter;
	}
}

} // namespace
