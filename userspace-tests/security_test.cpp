// SPDX-License-Identifier: GPL-2.0-only
/*
 * What doc/security.md promises and no other program tries: nothing that others had is
 * seen, no number that a user chooses wraps, and who may not open the device does not.
 */
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

/* Leaves memory that is free, and has something in it. */
void leave_something(std::size_t size)
{
	const mapping memory = anonymous(size);

	fill(memory.bytes(), 0xa5);
}

/* A granule's size, as a shift. */
class fresh_granules : public cowsnap_fixture,
		       public testing::WithParamInterface<std::uint32_t> {
protected:
	static constexpr std::size_t count = 4;

	std::size_t granule() const { return std::size_t{1} << GetParam(); }
	region make() const
	{
		leave_something(16 << 20);
		return dev.create(count * granule(), 0, {}, GetParam());
	}
	/* Everything in @bytes is zero but the byte at each of @at. */
	static bool zero_but(std::span<const std::byte> bytes,
			     const std::vector<std::size_t> &at)
	{
		std::size_t start = 0;

		for (const std::size_t one : at) {
			if (!is_all(bytes.subspan(start, one - start), 0))
				return false;
			start = one + 1;
		}
		return is_all(bytes.subspan(start), 0);
	}
};

INSTANTIATE_TEST_SUITE_P(, fresh_granules, testing::Values(page_shift, page_shift + 2, page_shift + 4, 21u),
			 [](const auto &info) {
				 return "shift_" + std::to_string(info.param);
			 });

TEST_P(fresh_granules, hold_nothing_but_what_was_stored)
{
	const region subject = make();
	const mapping map = subject.map();
	std::vector<std::size_t> at;

	for (std::size_t i = 0; i < count; i++) {
		at.push_back(i * granule() + granule() / 2 + i);
		map.data()[at.back()] = std::byte{1};
	}
	EXPECT_TRUE(zero_but(map.bytes(), at));
	EXPECT_TRUE(zero_but(subject.read(0, map.size()), at));
	EXPECT_TRUE(zero_but(subject.snapshot().map(PROT_READ).bytes(), at));
}

TEST_P(fresh_granules, hold_nothing_but_what_was_written)
{
	const region subject = make();
	std::vector<std::size_t> at;

	for (std::size_t i = 0; i < count; i++) {
		at.push_back((i + 1) * granule() - 1 - i);
		subject.write(at.back(), bytes_of(1, 1));
	}
	EXPECT_TRUE(zero_but(subject.map(PROT_READ).bytes(), at));
}

TEST_P(fresh_granules, that_are_allocated_hold_nothing)
{
	const region subject = make();

	subject.allocate(0, count * granule());
	EXPECT_TRUE(zero_but(subject.map(PROT_READ).bytes(), {}));
}

/* Of a region that ends in the middle of a page, and of the granule. */
TEST_P(fresh_granules, have_tails_that_hold_nothing)
{
	const region subject = make();

	subject.truncate(granule() + 100);

	const mapping map = subject.map();

	map.data()[granule()] = std::byte{1};
	EXPECT_TRUE(zero_but(map.bytes(), {granule()}));
	subject.truncate(count * granule());
	EXPECT_TRUE(zero_but(subject.map(PROT_READ).bytes(), {granule()}));
}

TEST_P(fresh_granules, that_were_freed_show_nothing_to_another_family)
{
	{
		const region other = dev.create(count * granule(), 0, {}, GetParam());

		fill(other.map().bytes(), 0x5a);
		(void)other.snapshot();
	}

	const region subject = dev.create(count * granule(), 0, {}, GetParam());

	subject.write(0, bytes_of(1, 1));
	subject.map().data()[granule()] = std::byte{1};
	EXPECT_TRUE(zero_but(subject.map(PROT_READ).bytes(), {0, granule()}));
}

class answers : public cowsnap_fixture {
protected:
	/* What an ioctl makes of a struct whose out members were @before. */
	template <typename Struct>
	static Struct answer(int fd, unsigned long number, unsigned char before)
	{
		Struct arg;

		std::memset(&arg, before, sizeof(arg));
		arg.size = sizeof(arg);
		arg.flags = 0;
		if constexpr (requires { arg.__reserved; })
			arg.__reserved = 0;
		if constexpr (requires { arg.budget; })
			arg.budget = 1;
		check(::ioctl(fd, number, &arg), "ioctl");
		return arg;
	}

	template <typename Struct>
	static void expect_no_leak(int fd, unsigned long number)
	{
		const auto a = answer<Struct>(fd, number, 0x00);
		const auto b = answer<Struct>(fd, number, 0xcc);

		/* All of it was written: neither depends on what was there. */
		EXPECT_EQ(std::memcmp(&a, &b, sizeof(a)), 0) << number;
	}
};

TEST_F(answers, are_made_of_what_they_tell_alone)
{
	const region subject = dev.create_pages(8);

	subject.fill_page(0, 1);
	expect_no_leak<cowsnap_query>(dev.fd(), COWSNAP_IOC_QUERY);
	expect_no_leak<cowsnap_stat>(subject.fd(), COWSNAP_IOC_STAT);
	expect_no_leak<cowsnap_prepare>(subject.fd(), COWSNAP_IOC_PREPARE);
}

TEST_F(answers, of_diff_hold_nothing_else_and_end_where_they_say)
{
	const region subject = numbered(8);
	const region other = subject.fork();
	std::array<cowsnap_range, 4> ranges;
	cowsnap_diff arg = {};

	subject.fill_page(1, 9);
	subject.fill_page(3, 9);
	std::memset(ranges.data(), 0xcc, sizeof(ranges));
	arg.size = sizeof(arg);
	arg.other_fd = other.fd();
	arg.count = 3;
	arg.end = largest_length;
	arg.ranges = reinterpret_cast<std::uintptr_t>(ranges.data());
	check(::ioctl(subject.fd(), COWSNAP_IOC_DIFF, &arg), "COWSNAP_IOC_DIFF");
	ASSERT_EQ(arg.count, 2u);
	for (std::size_t i = 0; i < 2; i++) {
		EXPECT_EQ(ranges[i].__reserved, 0u);
		EXPECT_EQ(ranges[i].flags, 0u);
		EXPECT_EQ(ranges[i].length, page_size);
	}
	EXPECT_TRUE(is_all(std::as_bytes(std::span(ranges).subspan(2)), 0xcc));
}

/* Numbers at and around where they wrap, for 64 bits and for 32. */
std::vector<std::uint64_t> edges()
{
	std::vector<std::uint64_t> all;

	for (const std::uint64_t edge :
	     {std::uint64_t{0}, std::uint64_t{1} << 32, std::uint64_t{1} << 44,
	      std::uint64_t{1} << 63})
		for (const std::uint64_t off : {-page_size, std::uint64_t{0} - 1,
						std::uint64_t{0}, std::uint64_t{1}})
			all.push_back(edge + off);
	return all;
}

class edges_of_numbers : public cowsnap_fixture,
			 public testing::WithParamInterface<std::uint32_t> {
protected:
	/* A region whose first and second granule have data. */
	region make() const
	{
		region made = dev.create(std::uint64_t{4} << GetParam(), 0, {},
					 GetParam());

		made.write(0, bytes_of(1, 1));
		made.write(std::uint64_t{1} << GetParam(), bytes_of(1, 2));
		return made;
	}
	/* Which is all that it has still, whatever was tried. */
	static void expect_as_made(const region &subject)
	{
		EXPECT_EQ(subject.length(), std::uint64_t{4} << GetParam());
		EXPECT_EQ(subject.stat().referenced, std::uint64_t{2} << GetParam());
		EXPECT_EQ(subject.read(0, 1)[0], std::byte{1});
		EXPECT_EQ(subject.read(std::uint64_t{1} << GetParam(), 1)[0],
			  std::byte{2});
	}
};

INSTANTIATE_TEST_SUITE_P(, edges_of_numbers, testing::Values(page_shift, 21u),
			 [](const auto &info) {
				 return "shift_" + std::to_string(info.param);
			 });

/* What is found lies where it was asked for, and there is an end to it. */
TEST_P(edges_of_numbers, in_diff)
{
	const region subject = make();
	const region relative = subject.fork();
	std::array<cowsnap_range, 4> ranges = {};

	subject.write(0, bytes_of(1, 1));
	for (const std::uint64_t start : edges())
		for (const std::uint64_t end : edges()) {
			cowsnap_diff arg = {};

			arg.size = sizeof(arg);
			arg.other_fd = relative.fd();
			arg.start = start;
			arg.end = end;
			arg.count = static_cast<std::uint32_t>(ranges.size());
			arg.ranges = reinterpret_cast<std::uintptr_t>(ranges.data());

			const int result = ::ioctl(subject.fd(), COWSNAP_IOC_DIFF, &arg);

			if (start >= end || end > largest_length) {
				EXPECT_EQ(result, -1) << start << ' ' << end;
				EXPECT_EQ(errno, EINVAL) << start << ' ' << end;
				continue;
			}
			ASSERT_EQ(result, 0) << start << ' ' << end;
			EXPECT_GE(arg.next, end);
			EXPECT_EQ(arg.count, start >> GetParam() == 0 ? 1u : 0u)
				<< start << ' ' << end;
		}
	expect_as_made(subject);
}

TEST_P(edges_of_numbers, in_offsets_and_lengths)
{
	const region subject = make();
	const std::uint64_t behind = std::uint64_t{4} << GetParam();
	std::array<std::byte, 8> bytes = {};

	for (const std::uint64_t offset : edges()) {
		const auto at = static_cast<off_t>(offset);

		if (offset >= behind) {
			EXPECT_LE(::pread(subject.fd(), bytes.data(), bytes.size(), at),
				  0)
				<< offset;
		}
		for (const std::uint64_t length : edges()) {
			/* Behind the end, before the start, or with an end that wraps. */
			if (offset < behind && at >= 0)
				continue;
			(void)::fallocate(subject.fd(),
					  FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					  at, static_cast<off_t>(length));
		}
	}
	expect_as_made(subject);
}

TEST_P(edges_of_numbers, in_mappings)
{
	const region subject = make();

	for (const std::uint64_t offset : edges()) {
		void *const address = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE,
					     MAP_SHARED, subject.fd(),
					     static_cast<off_t>(offset));

		if (address == MAP_FAILED)
			continue;
		/* Beyond the end, or where it was asked for. */
		child reader([=] {
			(void)*static_cast<volatile std::byte *>(address);
		});

		if (offset < std::uint64_t{4} << GetParam())
			EXPECT_TRUE(reader.succeeded()) << offset;
		else
			EXPECT_TRUE(reader.killed_by(SIGBUS)) << offset;
		::munmap(address, page_size);
	}
	expect_as_made(subject);
}

TEST_P(edges_of_numbers, in_limits_and_budgets)
{
	for (const std::uint64_t number : edges()) {
		const region subject =
			dev.create(std::uint64_t{2} << GetParam(), number, {},
				   GetParam());
		const auto fits = [&] {
			return number == 0 || number >= std::uint64_t{1} << GetParam();
		};
		const std::byte one{1};

		EXPECT_EQ(::pwrite(subject.fd(), &one, 1, 0), fits() ? 1 : -1) << number;
		(void)subject.prepare(number);
		EXPECT_LE(subject.stat().referenced, std::uint64_t{1} << GetParam());
	}
}

TEST_F(answers, of_fork_many_are_not_for_more_than_it_makes)
{
	const region subject = dev.create_pages(1);
	std::vector<cowsnap_fork_entry> entries(COWSNAP_FORK_MANY_MAX + 1,
						{subject.fd(), 0, -1, 0});

	for (const std::uint32_t count :
	     {0u, COWSNAP_FORK_MANY_MAX + 1u, 1u << 28, 1u << 31,
	      std::numeric_limits<std::uint32_t>::max()}) {
		cowsnap_fork_many arg = {};

		arg.size = sizeof(arg);
		arg.count = count;
		arg.entries = reinterpret_cast<std::uintptr_t>(entries.data());
		EXPECT_EQ(::ioctl(dev.fd(), COWSNAP_IOC_FORK_MANY, &arg), -1);
		EXPECT_EQ(errno, EINVAL) << count;
	}
	EXPECT_EQ(subject.stat().forks, 0u);
}

/* As many mappings of one page as a process may have, less what it needs itself. */
TEST_F(answers, do_not_change_with_how_often_a_page_is_mapped)
{
	constexpr std::size_t often = 5000;
	const region subject = numbered(1);
	const region snapshot = subject.snapshot();

	child mapper([&] {
		std::vector<mapping> all;

		for (std::size_t i = 0; i < often; i++) {
			all.push_back((i % 2 ? subject : snapshot).map(PROT_READ));
			require(all.back().data()[0] == std::byte{1}, "something else");
		}
		/* The one page is shared still, and is taken when nobody else has it. */
		subject.fill_page(0, 2);
		for (std::size_t i = 0; i < often; i += often / 10) {
			require(all[i].data()[0] == std::byte{1}, "it changed");
			require(all[i + 1].data()[0] == std::byte{2}, "it did not");
		}
	});

	EXPECT_TRUE(mapper.succeeded());
	EXPECT_TRUE(is_all(snapshot.read_page(0), 1));
	EXPECT_EQ(held_pages(), 2u);
}

class nobody : public cowsnap_fixture {
protected:
	static void become_nobody()
	{
		check(::setgid(65534), "setgid");
		check(::setuid(65534), "setuid");
	}
};

TEST_F(nobody, opens_the_device)
{
	child other([] {
		become_nobody();
		require(::open(device_path, O_RDWR) < 0 && errno == EACCES,
			"the device is open to everybody");
		require(::open(device_path, O_RDONLY) < 0 && errno == EACCES,
			"the device can be read by everybody");
	});

	EXPECT_TRUE(other.succeeded());
}

/* A descriptor is the permission: it works for whom it was given to, and for that region. */
TEST_F(nobody, gets_further_than_the_descriptor_that_it_was_given)
{
	const region given = numbered(2);
	const region kept = numbered(2);
	const region snapshot = given.snapshot();

	child other([&] {
		become_nobody();
		require(misnumbered_page(given, 2, 1) == -1, "cannot be read");
		(void)given.fork();
		given.fill_page(0, 7);

		/* Neither by a name, nor through another member of the family. */
		const std::string name =
			"/proc/self/fd/" + std::to_string(snapshot.fd());

		require(::open(name.c_str(), O_RDWR) < 0, "opened by its name");
		require(::pwrite(snapshot.fd(), "x", 1, 0) < 0 && errno == EPERM,
			"a snapshot was written");
		require(::ftruncate(snapshot.fd(), 0) < 0, "a snapshot was cut off");
		require(::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			       snapshot.fd(), 0) == MAP_FAILED,
			"a snapshot can be mapped writable");
		try {
			given.restore(kept);
			require(false, "another family's region was restored");
		} catch (const std::system_error &error) {
			require(error.code().value() == EXDEV, error.what());
		}
		try {
			(void)given.diff(kept);
			require(false, "another family's region was compared");
		} catch (const std::system_error &error) {
			require(error.code().value() == EXDEV, error.what());
		}
	});

	EXPECT_TRUE(other.succeeded());
	EXPECT_EQ(misnumbered_page(kept, 2, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, 2, 1), -1);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
