// SPDX-License-Identifier: GPL-2.0-only
/* Programs that close what they did not open. */
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "suite.hpp"

using namespace cowsnap_test;

namespace {

class descriptors : public suite {};
class served_descriptors : public suite {};

/* In a child: the memory and all that is done with it goes on after @close. */
void expect_works_after(const std::string &name, const std::function<void()> &close)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	child process([&] {
		close();
		require(shows(map, 1), "the memory is there");
		require(::madvise(map.data(), MiB / 2, MADV_DONTNEED) == 0, "madvise");
		require(is_all(map.bytes().first(MiB / 2), 0), "what is dropped reads zeros");
		paint(map, 2);

		mapping more = memory(4 * MiB);

		paint(more, 3);
		more.shrink(MiB);
		require(child([&] {
				require(shows(map, 2) && shows(more, 3), "a child has it");
				close();
				paint(map, 5);
				require(child([&] { require(shows(map, 5), "and its child"); }).succeeded(),
					"a child's child");
			}).succeeded(),
			"a child after it");
		require(shows(map, 2) && shows(more, 3), "it is there still");
	});
	EXPECT_TRUE(process.succeeded()) << name;
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(descriptors, may_all_be_closed)
{
	expect_works_after("close_range", [] { require(::close_range(3, ~0U, 0) == 0, "close_range"); });
	expect_works_after("close_range of all that is high",
			   [] { require(::close_range(100, 1 << 20, 0) == 0, "close_range"); });
	expect_works_after("close_range, unshared",
			   [] { require(::close_range(3, ~0U, CLOSE_RANGE_UNSHARE) == 0, "close_range"); });
	expect_works_after("close_range at exec",
			   [] { require(::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) == 0, "close_range"); });
	expect_works_after("closefrom", [] { ::closefrom(3); });
	expect_works_after("close", [] {
		for (int fd = 3; fd < 70000; fd++)
			::close(fd);
	});
}

TEST_F(descriptors, may_be_replaced_one_and_all)
{
	expect_works_after("dup2", [] {
		for (int fd = 3; fd < 1100; fd++) {
			::dup2(1, fd);
			::close(fd);
		}
	});
	expect_works_after("dup3", [] {
		for (int fd = 3; fd < 1100; fd++)
			::dup3(1, fd, O_CLOEXEC);
		::closefrom(3);
	});
}

TEST_F(served_descriptors, of_the_library_cannot_be_closed)
{
	const int fd = library_descriptor();
	const auto refused = [](int result) { return result == -1 && errno == EBADF; };

	EXPECT_GE(fd, 100) << "it is out of the way";
	EXPECT_EQ(::fcntl(fd, F_GETFD), FD_CLOEXEC);
	EXPECT_TRUE(refused(::close(fd)));
	EXPECT_TRUE(refused(::dup2(1, fd)));
	EXPECT_TRUE(refused(::dup3(1, fd, 0)));
	EXPECT_EQ(::close_range(static_cast<unsigned int>(fd), static_cast<unsigned int>(fd), 0), 0);
	EXPECT_EQ(library_descriptor(), fd);
	expect_child([&] {
		require(refused(::close(fd)) && refused(::dup2(1, fd)), "in a child");
		::closefrom(3);
		require(library_descriptor() == fd, "it is there still");
	});
}

TEST_F(descriptors, of_the_program_are_closed_as_ever)
{
	const auto open_at = [](int fd) { require(::dup2(0, fd) == fd, "dup2"); };
	const auto is_open = [](int fd) { return ::fcntl(fd, F_GETFD) >= 0; };

	expect_child([&] {
		for (const int fd : {50, 51, 52, 60, 1020})
			open_at(fd);
		require(::close_range(51, 51, 0) == 0, "close_range");
		require(is_open(50) && !is_open(51) && is_open(52), "one is closed");
		require(::close_range(52, ~0U, 0) == 0, "close_range");
		require(is_open(50) && !is_open(52) && !is_open(60) && !is_open(1020), "all from there on are closed");
		open_at(60);
		require(::close_range(40, 100, CLOSE_RANGE_CLOEXEC) == 0, "close_range");
		require(::fcntl(60, F_GETFD) == FD_CLOEXEC && ::fcntl(50, F_GETFD) == FD_CLOEXEC, "at exec");
		require(::close_range(10, 5, 0) == -1 && errno == EINVAL, "a range that is none");
		require(::close_range(3, 5, 1U << 20) == -1 && errno == EINVAL, "a flag that is none");
		require(::close(51) == -1 && errno == EBADF, "close of what is not open");
		require(::dup2(51, 70) == -1 && errno == EBADF, "dup2 of what is not open");
		require(::dup3(50, 50, 0) == -1 && errno == EINVAL, "dup3 onto itself");
		require(::dup2(50, 50) == 50, "dup2 onto itself");
		require(::close(-1) == -1 && errno == EBADF, "close of what is no number");
		require(::close(50) == 0 && !is_open(50), "close");
	});
}

/* The number that the library has stays its own, though no other can have it then. */
TEST_F(descriptors, that_a_program_may_have_can_become_fewer)
{
	expect_child([] {
		const mapping map = memory(MiB);
		rlimit limit = {};

		paint(map, 1);
		check(::getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
		limit.rlim_cur = 64;
		check(::setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
		for (int round = 0; round < 3; round++) {
			require(child([&] {
					require(shows(map, 1), "a child has the memory");
					paint(map, 2);
					require(child([&] {
							require(shows(map, 2), "and its child");
							paint(map, 3);
						}).succeeded(),
						"a child's child");
					require(shows(map, 2), "and keeps it");
					map.advise(MADV_DONTNEED);
				}).succeeded(),
				"a child");
			require(shows(map, 1), "the memory is the parent's");
		}
	});
}

TEST_F(served_descriptors, are_few)
{
	/* As many as the limit says but for one. */
	expect_child([] {
		const rlimit many = {256, 4096};
		std::vector<unique_fd> all;

		require(::setrlimit(RLIMIT_NOFILE, &many) == 0, "setrlimit");
		for (int fd; (fd = ::dup(0)) >= 0;)
			all.emplace_back(fd);
		require(errno == EMFILE, "the limit is the program's");
		all.clear();
		require(child([] { require(served(memory(MiB).data()), "it is served"); }).succeeded(),
			"and forks go on");
	});
}

} // namespace
