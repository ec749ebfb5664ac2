// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ioctls' calling convention and errnos: each test has one thing wrong.
 */
#include <array>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <tuple>

#include <fcntl.h>
#include <grp.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "descriptors.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

static_assert(sizeof(cowsnap_query) == 64);
static_assert(sizeof(cowsnap_create) == 64);
static_assert(sizeof(cowsnap_fork) == 16);
static_assert(sizeof(cowsnap_fork_many) == 24);
static_assert(sizeof(cowsnap_fork_entry) == 16);
static_assert(sizeof(cowsnap_stat) == 128);
static_assert(sizeof(cowsnap_prepare) == 24);
static_assert(sizeof(cowsnap_restore) == 24);
static_assert(sizeof(cowsnap_diff) == 48);
static_assert(sizeof(cowsnap_range) == 24);
static_assert(offsetof(cowsnap_create, name) == 32);
static_assert(offsetof(cowsnap_fork, fd) == 8);
static_assert(offsetof(cowsnap_fork_many, entries) == 16);
static_assert(offsetof(cowsnap_fork_entry, fd) == 8);
static_assert(offsetof(cowsnap_stat, id) == 16);
static_assert(offsetof(cowsnap_prepare, left) == 16);
static_assert(offsetof(cowsnap_restore, changed) == 16);
static_assert(offsetof(cowsnap_diff, start) == 16);
static_assert(offsetof(cowsnap_range, flags) == 16);

namespace {

enum class target { device, region };

struct command {
	const char *name;
	unsigned long number;
	std::size_t size;
	target on;
	bool makes_fd;
};

constexpr command query_command = {"query", COWSNAP_IOC_QUERY,
				   sizeof(cowsnap_query), target::device, false};
constexpr command create_command = {"create", COWSNAP_IOC_CREATE,
				    sizeof(cowsnap_create), target::device, true};
constexpr command fork_command = {"fork", COWSNAP_IOC_FORK, sizeof(cowsnap_fork),
				  target::region, true};
constexpr command fork_many_command = {"fork_many", COWSNAP_IOC_FORK_MANY,
				       sizeof(cowsnap_fork_many), target::device,
				       true};
constexpr command stat_command = {"stat", COWSNAP_IOC_STAT, sizeof(cowsnap_stat),
				  target::region, false};
constexpr command prepare_command = {"prepare", COWSNAP_IOC_PREPARE,
				     sizeof(cowsnap_prepare), target::region,
				     false};
constexpr command restore_command = {"restore", COWSNAP_IOC_RESTORE,
				     sizeof(cowsnap_restore), target::region,
				     false};
constexpr command diff_command = {"diff", COWSNAP_IOC_DIFF, sizeof(cowsnap_diff),
				  target::region, false};

/* errno of an ioctl, 0 when it worked. */
int error_of(int fd, unsigned long number, void *argument)
{
	return ::ioctl(fd, number, argument) < 0 ? errno : 0;
}

class ioctls : public cowsnap_fixture {
protected:
	int fd_of(const command &which) const
	{
		return which.on == target::device ? dev.fd() : subject.fd();
	}

	/* The bytes that a correct call starts with, as many as there is room for. */
	void prepare(const command &which, std::span<std::byte> argument,
		     std::size_t size)
	{
		union {
			std::uint32_t size;
			cowsnap_fork_many fork_many;
			cowsnap_restore restore;
			cowsnap_diff diff;
		} correct = {};

		if (which.number == COWSNAP_IOC_RESTORE) {
			correct.restore.src_fd = subject.fd();
		} else if (which.number == COWSNAP_IOC_FORK_MANY) {
			entry_ = {subject.fd(), 0, -1, 0};
			correct.fork_many.count = 1;
			correct.fork_many.entries =
				reinterpret_cast<std::uintptr_t>(&entry_);
		} else if (which.number == COWSNAP_IOC_DIFF) {
			correct.diff.other_fd = subject.fd();
			correct.diff.count = 1;
			correct.diff.end = page_size;
			correct.diff.ranges = reinterpret_cast<std::uintptr_t>(&range_);
		}
		correct.size = static_cast<std::uint32_t>(size);
		fill(argument, 0);
		std::memcpy(argument.data(), &correct,
			    std::min(sizeof(correct), argument.size()));
	}

	/* Calls with @size bytes, of which @change changes some first. */
	template <typename Change>
	int call(const command &which, std::size_t size, Change &&change)
	{
		std::vector<std::byte> argument(std::max<std::size_t>(size, 256));

		prepare(which, argument, size);
		change(std::span(argument));

		const int error =
			error_of(fd_of(which), which.number, argument.data());

		if (!error && which.makes_fd)
			unique_fd made(fd_in(which, argument));
		return error;
	}
	int call(const command &which, std::size_t size)
	{
		return call(which, size, [](std::span<std::byte>) {});
	}

	int fd_in(const command &which, std::span<const std::byte> argument) const
	{
		if (which.number == COWSNAP_IOC_FORK_MANY)
			return entry_.fd;

		const std::size_t offset = which.number == COWSNAP_IOC_CREATE
						   ? offsetof(cowsnap_create, fd)
						   : offsetof(cowsnap_fork, fd);
		int fd = -1;

		std::memcpy(&fd, argument.data() + offset, sizeof(fd));
		return fd;
	}

	void TearDown() override
	{
		subject.close();
		cowsnap_fixture::TearDown();
	}

	region subject = dev.create_pages(4);

private:
	cowsnap_fork_entry entry_ = {};
	cowsnap_range range_ = {};
};

class every_ioctl : public ioctls, public testing::WithParamInterface<command> {};

INSTANTIATE_TEST_SUITE_P(, every_ioctl,
			 testing::Values(query_command, create_command,
					 fork_command, fork_many_command,
					 stat_command, prepare_command,
					 restore_command, diff_command),
			 [](const auto &info) { return info.param.name; });

/* All but FORK_MANY: what that tells is in its entries, see fork_many_test. */
class every_ioctl_that_answers : public every_ioctl {};

INSTANTIATE_TEST_SUITE_P(, every_ioctl_that_answers,
			 testing::Values(query_command, create_command,
					 fork_command, stat_command,
					 prepare_command, restore_command,
					 diff_command),
			 [](const auto &info) { return info.param.name; });

TEST_P(every_ioctl, takes_its_size)
{
	EXPECT_EQ(call(GetParam(), GetParam().size), 0);
}

TEST_P(every_ioctl, refuses_size_zero)
{
	EXPECT_EQ(call(GetParam(), 0), EINVAL);
}

TEST_P(every_ioctl, refuses_a_size_too_small)
{
	for (std::size_t size = 1; size < GetParam().size; size++)
		EXPECT_EQ(call(GetParam(), size), EINVAL) << size;
}

TEST_P(every_ioctl, takes_a_larger_struct_that_is_zero_behind)
{
	for (const std::size_t more : {std::size_t{1}, std::size_t{8}})
		EXPECT_EQ(call(GetParam(), GetParam().size + more), 0) << more;
	EXPECT_EQ(call(GetParam(), page_size), 0);
}

TEST_P(every_ioctl, refuses_a_larger_struct_that_is_not_zero_behind)
{
	for (const std::size_t size :
	     {GetParam().size + 1, GetParam().size + 8, page_size})
		EXPECT_EQ(call(GetParam(), size,
			       [size](std::span<std::byte> argument) {
				       argument[size - 1] = std::byte{1};
			       }),
			  E2BIG)
			<< size;
}

TEST_P(every_ioctl, refuses_a_struct_larger_than_a_page)
{
	for (const std::size_t size : {page_size + 1, 2 * page_size})
		EXPECT_EQ(call(GetParam(), size), E2BIG) << size;
	EXPECT_EQ(call(GetParam(), page_size,
		       [](std::span<std::byte> argument) {
			       fill(argument.first(4), 0xff);
		       }),
		  E2BIG);
}

TEST_P(every_ioctl, ignores_what_lies_behind_its_size)
{
	EXPECT_EQ(call(GetParam(), GetParam().size,
		       [](std::span<std::byte> argument) {
			       fill(argument.subspan(GetParam().size), 0xff);
		       }),
		  0);
}

TEST_P(every_ioctl, writes_no_more_than_it_knows)
{
	const std::size_t size = GetParam().size + 32;
	std::vector<std::byte> argument(size + 32);

	prepare(GetParam(), argument, size);
	fill(std::span(argument).subspan(size), 0xcc);
	ASSERT_EQ(error_of(fd_of(GetParam()), GetParam().number, argument.data()), 0);
	if (GetParam().makes_fd)
		unique_fd made(fd_in(GetParam(), argument));
	EXPECT_TRUE(is_all(std::span(argument).subspan(GetParam().size, 32), 0));
	EXPECT_TRUE(is_all(std::span(argument).subspan(size), 0xcc));
}

TEST_P(every_ioctl, refuses_unknown_flags)
{
	for (unsigned int bit = 0; bit < 32; bit++) {
		const std::uint32_t flag = 1u << bit;

		if ((GetParam().number == COWSNAP_IOC_FORK &&
		     flag == COWSNAP_FORK_F_READONLY) ||
		    (GetParam().number == COWSNAP_IOC_DIFF &&
		     flag == COWSNAP_DIFF_F_EXACT))
			continue;
		EXPECT_EQ(call(GetParam(), GetParam().size,
			       [flag](std::span<std::byte> argument) {
				       std::memcpy(&argument[4], &flag,
						   sizeof(flag));
			       }),
			  EINVAL)
			<< bit;
	}
}

TEST_P(every_ioctl, tells_of_a_size_too_large_before_unknown_flags)
{
	EXPECT_EQ(call(GetParam(), GetParam().size + 8,
		       [](std::span<std::byte> argument) {
			       argument[4] = std::byte{0x80};
			       argument[GetParam().size] = std::byte{1};
		       }),
		  E2BIG);
}

TEST_P(every_ioctl, refuses_a_null_pointer)
{
	EXPECT_EQ(error_of(fd_of(GetParam()), GetParam().number, nullptr), EFAULT);
}

TEST_P(every_ioctl, refuses_an_unmapped_pointer)
{
	mapping memory = anonymous(page_size);
	void *const address = memory.data();

	memory.reset();
	EXPECT_EQ(error_of(fd_of(GetParam()), GetParam().number, address), EFAULT);
}

TEST_P(every_ioctl, refuses_a_kernel_pointer)
{
	const auto address =
		std::numeric_limits<std::uintptr_t>::max() - page_size + 1;

	EXPECT_EQ(error_of(fd_of(GetParam()), GetParam().number,
			   reinterpret_cast<void *>(address)),
		  EFAULT);
}

TEST_P(every_ioctl, refuses_a_struct_that_ends_in_nowhere)
{
	mapping memory = anonymous(2 * page_size);
	std::byte *const argument = memory.data() + page_size - 8;

	prepare(GetParam(), std::span(argument, 8), GetParam().size);
	memory.shrink(page_size);
	EXPECT_EQ(error_of(fd_of(GetParam()), GetParam().number, argument), EFAULT);
}

/* A half-made child must not appear: no descriptor, no region, no node. */
TEST_P(every_ioctl_that_answers,
       leaves_nothing_when_the_result_cannot_be_written)
{
	const mapping memory = anonymous(page_size);

	subject.fill_page(0, 1);
	prepare(GetParam(), memory.bytes(), GetParam().size);
	memory.protect(PROT_READ);

	const counters count(dev);
	const int next = next_descriptor();
	const std::uint64_t forks = subject.stat().forks;

	EXPECT_EQ(error_of(fd_of(GetParam()), GetParam().number, memory.data()),
		  EFAULT);
	expect_back(dev, count);
	EXPECT_EQ(next_descriptor(), next);
	EXPECT_EQ(subject.stat().forks, forks);
	EXPECT_TRUE(is_all(subject.read_page(0), 1));
}

/* The same with a result that straddles into a page that is read-only. */
TEST_P(every_ioctl_that_answers,
       leaves_nothing_when_the_end_of_the_result_cannot_be_written)
{
	const mapping memory = anonymous(2 * page_size);
	const auto argument = memory.bytes().subspan(page_size - 8, GetParam().size);

	prepare(GetParam(), argument, GetParam().size);
	check(::mprotect(memory.data() + page_size, page_size, PROT_READ),
	      "mprotect");

	const counters count(dev);
	const int next = next_descriptor();

	EXPECT_EQ(error_of(fd_of(GetParam()), GetParam().number, argument.data()),
		  EFAULT);
	expect_back(dev, count);
	EXPECT_EQ(next_descriptor(), next);
}

TEST_P(every_ioctl, is_unknown_to_the_other_kind_of_file)
{
	const int wrong =
		GetParam().on == target::device ? subject.fd() : dev.fd();
	std::array<std::byte, 256> argument = {};

	prepare(GetParam(), argument, GetParam().size);
	EXPECT_EQ(error_of(wrong, GetParam().number, argument.data()), ENOTTY);
}

/* The number is _IO(): the same with a size or a direction is another one. */
TEST_P(every_ioctl, is_unknown_with_a_size_in_its_number)
{
	std::array<std::byte, 256> argument = {};

	prepare(GetParam(), argument, GetParam().size);
	EXPECT_EQ(error_of(fd_of(GetParam()),
			   _IOC(_IOC_READ | _IOC_WRITE, COWSNAP_IOC_MAGIC,
				_IOC_NR(GetParam().number), GetParam().size),
			   argument.data()),
		  ENOTTY);
}

TEST_F(ioctls, unknown_numbers)
{
	std::array<std::byte, 256> argument = {};

	prepare(query_command, argument, argument.size());
	for (const int fd : {dev.fd(), subject.fd()}) {
		for (const unsigned int number : {0x7fu, 0xffu}) {
			EXPECT_EQ(error_of(fd, _IO(COWSNAP_IOC_MAGIC, number),
					   argument.data()),
				  ENOTTY);
			/* Unknown wins over a pointer that is not one. */
			EXPECT_EQ(error_of(fd, _IO(COWSNAP_IOC_MAGIC, number),
					   nullptr),
				  ENOTTY);
		}
		EXPECT_EQ(error_of(fd, _IO(0xE8, 0x00), argument.data()), ENOTTY);
		EXPECT_EQ(error_of(fd, _IO(0xE8, 0x10), argument.data()), ENOTTY);
	}
}

TEST_F(ioctls, query_refuses_reserved)
{
	cowsnap_query arg = {};

	arg.size = sizeof(arg);
	arg.__reserved = 1;
	EXPECT_EQ(error_of(dev.fd(), COWSNAP_IOC_QUERY, &arg), EINVAL);
}

TEST_F(ioctls, fork_refuses_reserved)
{
	cowsnap_fork arg = {};

	arg.size = sizeof(arg);
	arg.__reserved = 1;
	EXPECT_EQ(error_of(subject.fd(), COWSNAP_IOC_FORK, &arg), EINVAL);
}

TEST_F(ioctls, fork_many_refuses_reserved)
{
	cowsnap_fork_entry entry = {subject.fd(), 0, -1, 0};
	cowsnap_fork_many arg = {};

	arg.size = sizeof(arg);
	arg.count = 1;
	arg.__reserved = 1;
	arg.entries = reinterpret_cast<std::uintptr_t>(&entry);
	EXPECT_EQ(error_of(dev.fd(), COWSNAP_IOC_FORK_MANY, &arg), EINVAL);
}

TEST_F(ioctls, restore_refuses_reserved)
{
	cowsnap_restore arg = {};

	arg.size = sizeof(arg);
	arg.src_fd = subject.fd();
	arg.__reserved = 1;
	EXPECT_EQ(error_of(subject.fd(), COWSNAP_IOC_RESTORE, &arg), EINVAL);
}

TEST_F(ioctls, query_fills_every_out_member)
{
	cowsnap_query arg;

	std::memset(&arg, 0xcc, sizeof(arg));
	arg.size = sizeof(arg);
	arg.flags = 0;
	arg.__reserved = 0;
	subject.fill_page(0, 1);
	ASSERT_EQ(error_of(dev.fd(), COWSNAP_IOC_QUERY, &arg), 0);
	EXPECT_EQ(arg.size, sizeof(arg));
	EXPECT_EQ(arg.flags, 0u);
	EXPECT_EQ(arg.abi_version, 1u);
	EXPECT_EQ(std::size_t{1} << arg.granule_shift_min, page_size);
	EXPECT_EQ(arg.granule_shift_max, 21u);
	EXPECT_EQ(arg.__reserved, 0u);
	EXPECT_EQ(arg.features, 0u);
	EXPECT_EQ(arg.held_bytes, before.held_bytes + page_size);
	EXPECT_EQ(arg.regions, before.regions + 1);
	EXPECT_GT(arg.nodes, before.nodes);

	std::ifstream parameter("/sys/module/cowsnap/parameters/max_bytes");
	std::uint64_t max_bytes = 0;

	parameter >> max_bytes;
	EXPECT_TRUE(parameter);
	EXPECT_EQ(arg.max_bytes, max_bytes);
}

TEST_F(ioctls, stat_fills_every_out_member)
{
	cowsnap_stat arg;

	std::memset(&arg, 0xcc, sizeof(arg));
	arg.size = sizeof(arg);
	arg.flags = 0;
	subject.fill_page(1, 1);
	ASSERT_EQ(error_of(subject.fd(), COWSNAP_IOC_STAT, &arg), 0);
	EXPECT_EQ(arg.size, sizeof(arg));
	EXPECT_EQ(arg.flags, 0u);
	EXPECT_EQ(arg.state, 0u);
	EXPECT_EQ(std::size_t{1} << arg.granule_shift, page_size);
	EXPECT_NE(arg.id, 0u);
	EXPECT_NE(arg.id, 0xccccccccccccccccu);
	EXPECT_EQ(arg.parent_id, 0u);
	EXPECT_EQ(arg.family_id, arg.id);
	EXPECT_EQ(arg.length, 4 * page_size);
	EXPECT_EQ(arg.referenced, page_size);
	EXPECT_EQ(arg.exclusive, page_size);
	EXPECT_EQ(arg.dirty, page_size);
	EXPECT_EQ(arg.generation, 0u);
	EXPECT_EQ(arg.forks, 0u);
	EXPECT_EQ(arg.faults, 0u);
	EXPECT_EQ(arg.copies, 0u);
	EXPECT_EQ(arg.reuses, 0u);
	EXPECT_EQ(arg.zero_fills, 1u);
	EXPECT_EQ(arg.bytes_copied, 0u);
}

/* out members are ignored on the way in */
TEST_F(ioctls, create_and_fork_fill_the_descriptor)
{
	cowsnap_create create = {};
	cowsnap_fork fork = {};

	create.size = sizeof(create);
	create.length = page_size;
	std::memset(&create.fd, 0xcc, sizeof(create.fd));
	ASSERT_EQ(error_of(dev.fd(), COWSNAP_IOC_CREATE, &create), 0);

	const region made{unique_fd(create.fd)};

	EXPECT_EQ(made.length(), page_size);
	fork.size = sizeof(fork);
	std::memset(&fork.fd, 0xcc, sizeof(fork.fd));
	ASSERT_EQ(error_of(made.fd(), COWSNAP_IOC_FORK, &fork), 0);

	const region forked{unique_fd(fork.fd)};

	EXPECT_EQ(forked.length(), page_size);
	EXPECT_EQ(forked.stat().parent_id, made.stat().id);
}

TEST_F(ioctls, descriptors_are_close_on_exec)
{
	const region forked = subject.fork();
	const region snapshot = subject.snapshot();

	for (const int fd : {subject.fd(), forked.fd(), snapshot.fd()}) {
		EXPECT_EQ(check(::fcntl(fd, F_GETFD), "F_GETFD"), FD_CLOEXEC);
		EXPECT_EQ(check(::fcntl(fd, F_GETFL), "F_GETFL") & O_ACCMODE,
			  O_RDWR);
	}
}

TEST_F(ioctls, stat_tells_who_descends_from_whom)
{
	const region child = subject.fork();
	const region grandchild = child.snapshot();
	const region great_grandchild = grandchild.fork();
	const region sibling = subject.fork();
	const cowsnap_stat first = subject.stat();

	const auto expect = [&](const region &member, const region &parent,
				std::uint64_t generation, std::uint32_t state) {
		const cowsnap_stat stat = member.stat();

		EXPECT_GT(stat.id, parent.stat().id);
		EXPECT_EQ(stat.parent_id, parent.stat().id);
		EXPECT_EQ(stat.family_id, first.id);
		EXPECT_EQ(stat.generation, generation);
		EXPECT_EQ(stat.state, state);
		EXPECT_EQ(stat.length, first.length);
	};

	expect(child, subject, 1, 0);
	expect(grandchild, child, 2, COWSNAP_STAT_F_READONLY);
	expect(great_grandchild, grandchild, 3, 0);
	expect(sibling, subject, 1, 0);
	EXPECT_EQ(first.forks, 2u);
	EXPECT_EQ(child.stat().forks, 1u);
	EXPECT_EQ(grandchild.stat().forks, 1u);
	EXPECT_EQ(sibling.stat().forks, 0u);
}

TEST_F(ioctls, ids_are_not_used_again)
{
	std::uint64_t last = subject.stat().id;

	for (int i = 0; i < 10; i++) {
		const std::uint64_t created = dev.create(0).stat().id;
		const std::uint64_t forked = subject.fork().stat().id;

		EXPECT_GT(created, last);
		EXPECT_GT(forked, created);
		last = forked;
	}
}

TEST_F(ioctls, create_takes_every_length_that_a_file_can_have)
{
	const auto largest = static_cast<std::uint64_t>(
		std::numeric_limits<std::int64_t>::max());

	for (const std::uint64_t length :
	     {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{page_size - 1},
	      std::uint64_t{1} << 40, largest})
		EXPECT_EQ(dev.create(length).length(), length);
}

TEST_F(ioctls, create_refuses_a_length_that_no_file_can_have)
{
	for (const std::uint64_t length :
	     {std::uint64_t{1} << 63, std::numeric_limits<std::uint64_t>::max()}) {
		cowsnap_create arg = {};

		arg.size = sizeof(arg);
		arg.length = length;
		EXPECT_EQ(error_of(dev.fd(), COWSNAP_IOC_CREATE, &arg), EINVAL);
	}
}

TEST_F(ioctls, create_takes_granules_within_the_limits_of_query)
{
	const cowsnap_query query = dev.query();

	for (std::uint32_t shift = 0; shift < 64; shift++) {
		cowsnap_create arg = {};
		const bool good = shift == 0 || (shift >= query.granule_shift_min &&
						 shift <= query.granule_shift_max);

		arg.size = sizeof(arg);
		arg.granule_shift = shift;
		ASSERT_EQ(error_of(dev.fd(), COWSNAP_IOC_CREATE, &arg),
			  good ? 0 : EINVAL)
			<< shift;
		if (!good)
			continue;

		const region made{unique_fd(arg.fd)};

		EXPECT_EQ(made.stat().granule_shift,
			  shift ? shift : query.granule_shift_min);
	}
	for (const std::uint32_t shift : {64u, 0x100u, 0x8000000cu, 0xffffffffu}) {
		cowsnap_create arg = {};

		arg.size = sizeof(arg);
		arg.granule_shift = shift;
		EXPECT_EQ(error_of(dev.fd(), COWSNAP_IOC_CREATE, &arg), EINVAL)
			<< shift;
	}
}

TEST_F(ioctls, create_refuses_a_name_without_nul)
{
	cowsnap_create arg = {};

	arg.size = sizeof(arg);
	std::memset(arg.name, 'x', sizeof(arg.name));
	EXPECT_EQ(error_of(dev.fd(), COWSNAP_IOC_CREATE, &arg), EINVAL);
}

TEST_F(ioctls, create_takes_the_longest_name)
{
	const std::string name(COWSNAP_NAME_MAX - 1, 'x');
	const region named = dev.create(page_size, 0, name);

	EXPECT_EQ(std::filesystem::read_symlink("/proc/self/fd/" +
						std::to_string(named.fd())),
		  "/cowsnap:" + name + " (deleted)");
}

class makes_fd : public ioctls, public testing::WithParamInterface<command> {};

INSTANTIATE_TEST_SUITE_P(, makes_fd,
			 testing::Values(create_command, fork_command,
					 fork_many_command),
			 [](const auto &info) { return info.param.name; });

TEST_P(makes_fd, emfile_leaves_nothing)
{
	subject.fill_page(0, 1);

	const counters count(dev);
	const cowsnap_stat stat = subject.stat();

	{
		const auto limit = descriptor_limit::leaving(0);

		EXPECT_EQ(call(GetParam(), GetParam().size), EMFILE);
		/* What is wrong with the argument is told first. */
		EXPECT_EQ(call(GetParam(), GetParam().size,
			       [](std::span<std::byte> argument) {
				       argument[4] = std::byte{0x80};
			       }),
			  EINVAL);
	}
	EXPECT_EQ(counters(dev), count);
	EXPECT_EQ(subject.stat().forks, stat.forks);
	EXPECT_EQ(call(GetParam(), GetParam().size), 0);
}

TEST_P(makes_fd, the_last_descriptor_can_be_had)
{
	const auto limit = descriptor_limit::leaving(1);

	EXPECT_EQ(call(GetParam(), GetParam().size), 0);
}

/* Only who is not privileged can run out of files. */
TEST_P(makes_fd, enfile_leaves_nothing)
{
	constexpr const char *path = "/proc/sys/fs/file-max";
	constexpr uid_t nobody = 65534;
	std::string files;

	std::ifstream(path) >> files;
	ASSERT_FALSE(files.empty());

	const counters count(dev);
	const event unprivileged, low;
	child user([&] {
		check(::setgroups(0, nullptr), "setgroups");
		check(::setuid(nobody), "setuid");
		unprivileged.tell();
		low.wait();
		require(call(GetParam(), GetParam().size) == ENFILE,
			"the ioctl did not fail with ENFILE");
	});

	unprivileged.wait();
	std::ofstream(path) << 0;
	low.tell();
	EXPECT_TRUE(user.succeeded());
	std::ofstream(path) << files;
	expect_back(dev, count);
}

TEST_F(ioctls, the_node_is_not_for_others)
{
	struct stat status = {};

	check(::fstat(dev.fd(), &status), "fstat");
	EXPECT_TRUE(S_ISCHR(status.st_mode));
	EXPECT_EQ(status.st_mode & 07777, 0660u);
}

#ifdef __x86_64__
/* An ioctl as a 32-bit program makes it; @argument lies below 4 GiB. */
int error_of_32_bit_ioctl(int fd, unsigned long number, const void *argument)
{
	long result = 54; /* ioctl */

	asm volatile("int $0x80"
		     : "+a"(result)
		     : "b"(fd), "c"(number), "d"(argument)
		     : "memory", "r8", "r9", "r10", "r11");
	return static_cast<int>(-result);
}

TEST_F(ioctls, are_the_same_for_32_bit_programs)
{
	const mapping low(-1, page_size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT);
	int error = 0;

	if (fault_catcher().raised([&] {
		    error_of_32_bit_ioctl(-1, COWSNAP_IOC_STAT, low.data());
	    }))
		GTEST_SKIP() << "this kernel runs no 32-bit programs";
	subject.fill_page(2, 2);

	const auto call_32 = [&](const command &which) {
		prepare(which, low.bytes(), which.size);
		error = error_of_32_bit_ioctl(fd_of(which), which.number, low.data());
		EXPECT_EQ(error, 0) << which.name;
	};

	call_32(query_command);
	EXPECT_EQ(reinterpret_cast<cowsnap_query *>(low.data())->regions,
		  before.regions + 1);
	call_32(create_command);
	EXPECT_EQ(region(unique_fd(fd_in(create_command, low.bytes()))).length(), 0u);
	call_32(fork_command);
	EXPECT_TRUE(is_all(region(unique_fd(fd_in(fork_command, low.bytes())))
				   .read_page(2),
			   2));
	call_32(fork_many_command);
	EXPECT_TRUE(is_all(region(unique_fd(fd_in(fork_many_command, low.bytes())))
				   .read_page(2),
			   2));
	call_32(stat_command);
	EXPECT_EQ(reinterpret_cast<cowsnap_stat *>(low.data())->referenced,
		  page_size);
	call_32(prepare_command);
	EXPECT_EQ(reinterpret_cast<cowsnap_prepare *>(low.data())->left, 0u);
	call_32(restore_command);
	EXPECT_EQ(reinterpret_cast<cowsnap_restore *>(low.data())->changed, 0u);
	call_32(diff_command);
	EXPECT_GE(reinterpret_cast<cowsnap_diff *>(low.data())->next, page_size);
	EXPECT_EQ(error_of_32_bit_ioctl(subject.fd(), _IO(COWSNAP_IOC_MAGIC, 0x7f),
					low.data()),
		  ENOTTY);
}
#endif

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
