// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C++ library, call by call, each by both of its forms. What the module makes of
 * the calls is for the other tests; library_memory_test.cpp has containers in regions.
 */
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <new>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cowsnap/cowsnap.hpp>

#include "alarm_storm.hpp"
#include "descriptors.hpp"
#include "fixture.hpp"
#include "ktap.hpp"

namespace {

/* How many allocations succeed from now on before one fails; negative for all. */
int allocations_left = -1;

} // namespace

/* Inlined, they would have g++ 12 warn that they are mixed with others. */
[[gnu::noinline]] void *operator new(std::size_t size)
{
	if (allocations_left == 0)
		throw std::bad_alloc();
	if (allocations_left > 0)
		allocations_left--;
	if (void *const made = std::malloc(size ? size : 1))
		return made;
	throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void *made) noexcept { std::free(made); }
[[gnu::noinline]] void operator delete(void *made, std::size_t) noexcept
{
	std::free(made);
}

namespace {

using cowsnap::create_options;
using cowsnap::descriptor;
using cowsnap::device;
using cowsnap::member;
using cowsnap::region;
using cowsnap::snapshot;
using cowsnap_test::alarm_storm;
using cowsnap_test::descriptor_limit;
using cowsnap_test::page_size;

/* What no object of a type can be told to do. */
template <typename Member>
concept can_be_written = requires(Member &subject, std::span<const std::byte> bytes) {
	subject.write(0, bytes);
};
template <typename Member>
concept can_be_truncated = requires(Member &subject) { subject.truncate(0); };
template <typename Member>
concept can_be_punched = requires(Member &subject) { subject.punch(0, 1); };
template <typename Member>
concept can_be_restored = requires(Member &subject) { subject.restore(subject); };
template <typename Member>
concept can_be_stored_to = requires(Member &subject) {
	{ subject.map() } -> std::same_as<cowsnap::mapping>;
};
template <typename Member>
concept can_be_mapped_privately = requires(Member &subject) { subject.map_private(); };

template <typename Member>
constexpr bool is_constant = !can_be_written<Member> && !can_be_truncated<Member> &&
			     !can_be_punched<Member> && !can_be_restored<Member> &&
			     !can_be_stored_to<Member>;

static_assert(is_constant<snapshot> && is_constant<const region>);
static_assert(can_be_written<region> && can_be_truncated<region> && can_be_punched<region> &&
	      can_be_restored<region> && can_be_stored_to<region>);
static_assert(can_be_mapped_privately<snapshot> && !can_be_mapped_privately<region>);
static_assert(!std::is_convertible_v<region, snapshot> &&
	      !std::is_convertible_v<snapshot, region>);

template <typename Type>
constexpr bool moves_only = std::is_nothrow_move_constructible_v<Type> &&
			    std::is_nothrow_move_assignable_v<Type> &&
			    std::is_nothrow_default_constructible_v<Type> &&
			    !std::is_copy_constructible_v<Type> &&
			    !std::is_copy_assignable_v<Type>;

static_assert(moves_only<descriptor> && moves_only<device> && moves_only<region> &&
	      moves_only<snapshot> && moves_only<cowsnap::mapping> &&
	      moves_only<cowsnap::const_mapping>);

static_assert(noexcept(std::declval<region &>().fork(std::declval<std::error_code &>())));
static_assert(noexcept(std::declval<device &>().create({}, std::declval<std::error_code &>())));

/* Whether @fd is open. */
bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

descriptor another(int fd)
{
	return descriptor(cowsnap_test::check(::fcntl(fd, F_DUPFD_CLOEXEC, 0), "fcntl"));
}

std::size_t open_descriptors()
{
	return static_cast<std::size_t>(std::ranges::distance(
		std::filesystem::directory_iterator("/proc/self/fd"),
		std::filesystem::directory_iterator()));
}

std::vector<std::byte> page_of(unsigned int value)
{
	return cowsnap_test::bytes_of(page_size, value);
}

std::byte first_byte(const member &of, std::uint64_t offset = 0)
{
	std::array<std::byte, 1> byte = {};

	EXPECT_EQ(of.read(offset, byte), 1u);
	return byte[0];
}

/* @call, which is given an error_code or nothing, fails with @code, and says that it is @name. */
template <typename Call>
void expect_error(int code, std::string_view name, Call &&call)
{
	const std::error_code expected(code, std::generic_category());
	std::error_code error;

	SCOPED_TRACE(name);
	call(error);
	EXPECT_EQ(error, expected) << error.message();
	try {
		call();
		ADD_FAILURE() << "did not throw";
	} catch (const std::system_error &thrown) {
		EXPECT_EQ(thrown.code(), expected) << thrown.what();
		EXPECT_TRUE(std::string_view(thrown.what())
				    .starts_with("cowsnap: " + std::string(name) + ": "))
			<< thrown.what();
	}
}

/* Returns what the second form gives; both forms succeed, and an old error is gone. */
template <typename Call> auto both(Call &&call)
{
	std::error_code error(EIO, std::generic_category());

	call(error);
	EXPECT_EQ(error, std::error_code());
	return call();
}

class library : public cowsnap_test::cowsnap_fixture {
protected:
	void TearDown() override
	{
		lib.close();
		EXPECT_EQ(open_descriptors(), descriptors);
		cowsnap_fixture::TearDown();
	}

	/* A region of @pages, each filled with its number, from 1 on. */
	region numbered_pages(std::size_t pages) const
	{
		region made = lib.create({.length = pages * page_size});

		for (std::size_t page = 0; page < pages; page++)
			made.write(page * page_size,
				   page_of(static_cast<unsigned int>(page + 1) & 0xff));
		return made;
	}

	std::size_t descriptors = open_descriptors();
	device lib = device::open();
};

TEST_F(library, descriptor_is_closed_once_by_its_last_owner)
{
	const int fd = another(0).release();
	descriptor owner(fd);

	ASSERT_TRUE(owner);
	EXPECT_EQ(owner.get(), fd);

	descriptor next(std::move(owner));

	EXPECT_FALSE(owner);
	EXPECT_LT(owner.get(), 0);
	EXPECT_EQ(next.get(), fd);

	descriptor &same = next;

	next = std::move(same);
	EXPECT_EQ(next.get(), fd);
	EXPECT_TRUE(is_open(fd));

	descriptor last = another(0);
	const int replaced = last.get();

	last = std::move(next);
	EXPECT_FALSE(is_open(replaced));
	EXPECT_EQ(last.get(), fd);
	EXPECT_TRUE(is_open(fd));
	EXPECT_EQ(last.release(), fd);
	EXPECT_TRUE(is_open(fd));
	last = descriptor(fd);
	last.close();
	EXPECT_FALSE(last);
	EXPECT_FALSE(is_open(fd));
	last.close();
}

TEST_F(library, device_opens_nothing_but_itself)
{
	const device opened = both([](auto &...error) { return device::open(error...); });

	EXPECT_TRUE(opened);
	EXPECT_EQ(::fcntl(opened.fd(), F_GETFD), FD_CLOEXEC);
	expect_error(ENOENT, "open", [](auto &...error) {
		(void)device::open("/no/such/file", error...);
	});
	expect_error(ENOTTY, "open", [](auto &...error) {
		(void)device::open("/dev/null", error...);
	});
}

TEST_F(library, device_takes_over_a_descriptor_of_its_own_only)
{
	descriptor own = another(lib.fd());
	const int fd = own.get();
	device adopted = device::adopt(std::move(own));

	EXPECT_FALSE(own);
	EXPECT_EQ(adopted.fd(), fd);
	own = adopted.release();
	EXPECT_FALSE(adopted);
	EXPECT_EQ(own.get(), fd);

	region made = lib.create({.length = 1});
	descriptor other = made.release();

	expect_error(ENOTTY, "adopt", [&](auto &...error) {
		(void)device::adopt(std::move(other), error...);
	});
	EXPECT_TRUE(other);
}

TEST_F(library, device_moves_and_closes)
{
	const int fd = lib.fd();
	device other(std::move(lib));

	EXPECT_FALSE(lib);
	EXPECT_EQ(other.fd(), fd);

	device &same = other;

	other = std::move(same);
	EXPECT_EQ(other.fd(), fd);
	lib = std::move(other);
	EXPECT_EQ(lib.fd(), fd);
	lib.close();
	EXPECT_FALSE(lib);
	EXPECT_FALSE(is_open(fd));
	expect_error(EBADF, "query", [&](auto &...error) { lib.query(error...); });
	expect_error(EBADF, "create", [&](auto &...error) {
		(void)lib.create({.length = 1}, error...);
	});
	expect_error(EBADF, "fork_many", [&](auto &...error) {
		(void)lib.fork_many(region(), 1, error...);
	});
}

TEST_F(library, device_tells_what_the_module_is)
{
	const region made = lib.create({.length = 1});
	const cowsnap_query query =
		both([&](auto &...error) { return lib.query(error...); });

	EXPECT_EQ(query.abi_version, static_cast<__u32>(COWSNAP_ABI_VERSION));
	EXPECT_EQ(query.regions, before.regions + 1);
}

TEST_F(library, device_creates_what_the_options_say)
{
	const create_options options = {.length = 3 * page_size + 1,
					.limit = 5 * 4 * page_size,
					.granule = 4 * page_size,
					.name = std::string_view("hours and more", 5)};
	region made = both([&](auto &...error) { return lib.create(options, error...); });
	const cowsnap_stat stat = made.stat();

	EXPECT_EQ(made.length(), options.length);
	EXPECT_EQ(std::uint64_t(1) << stat.granule_shift, options.granule);
	EXPECT_EQ(stat.parent_id, 0u);
	EXPECT_EQ(std::filesystem::read_symlink("/proc/self/fd/" +
						std::to_string(made.fd())),
		  "/cowsnap:hours (deleted)");
	made.truncate(6 * options.granule);

	const auto too_much = cowsnap_test::bytes_of(6 * options.granule, 1);
	std::error_code error;

	EXPECT_EQ(made.write(0, too_much, error), options.limit);
	EXPECT_EQ(error, std::errc::no_space_on_device);
	EXPECT_THROW(made.write(0, too_much), std::system_error);
	EXPECT_EQ(std::uint64_t(1) << lib.create({}).stat().granule_shift, page_size);
}

TEST_F(library, device_creates_nothing_of_what_cannot_be)
{
	const std::vector<create_options> wrong = {
		{.length = cowsnap::largest_length + 1},
		{.granule = 1},
		{.granule = page_size / 2},
		{.granule = page_size + 1},
		{.granule = std::uint64_t(1) << 63},
		{.name = "a name with more than 31 letters"},
		{.name = std::string_view("with\0in", 7)}};

	for (const create_options &options : wrong)
		expect_error(EINVAL, "create", [&](auto &...error) {
			EXPECT_FALSE(lib.create(options, error...));
		});
	EXPECT_TRUE(lib.create({.name = "a name that has all 31 letters."}));

	const descriptor_limit limit = descriptor_limit::leaving(0);

	expect_error(EMFILE, "create", [&](auto &...error) {
		(void)lib.create({.length = 1}, error...);
	});
}

TEST_F(library, empty_members_give_EBADF)
{
	region subject;
	const region real = lib.create({.length = page_size});
	std::array<std::byte, 1> byte = {};

	EXPECT_FALSE(subject);
	expect_error(EBADF, "length", [&](auto &...error) { subject.length(error...); });
	expect_error(EBADF, "stat", [&](auto &...error) { subject.stat(error...); });
	expect_error(EBADF, "fork", [&](auto &...error) {
		EXPECT_FALSE(subject.fork(error...));
	});
	expect_error(EBADF, "take_snapshot", [&](auto &...error) {
		EXPECT_FALSE(subject.take_snapshot(error...));
	});
	expect_error(EBADF, "read",
		     [&](auto &...error) { subject.read(0, byte, error...); });
	expect_error(EBADF, "write",
		     [&](auto &...error) { subject.write(0, byte, error...); });
	expect_error(EBADF, "next_data",
		     [&](auto &...error) { subject.next_data(0, error...); });
	expect_error(EBADF, "next_hole",
		     [&](auto &...error) { subject.next_hole(0, error...); });
	expect_error(EBADF, "truncate",
		     [&](auto &...error) { subject.truncate(0, error...); });
	expect_error(EBADF, "punch", [&](auto &...error) { subject.punch(0, 1, error...); });
	expect_error(EBADF, "restore",
		     [&](auto &...error) { subject.restore(real, error...); });
	expect_error(EBADF, "prepare", [&](auto &...error) { subject.prepare(0, error...); });
	expect_error(EBADF, "map", [&](auto &...error) {
		EXPECT_FALSE(subject.map({}, error...));
	});
	expect_error(EBADF, "map", [&](auto &...error) {
		EXPECT_FALSE(std::as_const(subject).map({}, error...));
	});
	expect_error(EBADF, "map_private", [&](auto &...error) {
		EXPECT_FALSE(snapshot().map_private({.length = 1}, error...));
	});
	expect_error(EBADF, "diff", [&](auto &...error) {
		for (const cowsnap::range &found : real.diff(subject, {}, error...))
			ADD_FAILURE() << found.offset;
	});
}

TEST_F(library, offsets_that_off_t_cannot_hold_give_EOVERFLOW)
{
	constexpr std::uint64_t much = cowsnap::largest_length + 1;
	region subject = lib.create({.length = page_size});
	std::array<std::byte, 2> bytes = {};

	expect_error(EOVERFLOW, "read",
		     [&](auto &...error) { subject.read(much, bytes, error...); });
	expect_error(EOVERFLOW, "write",
		     [&](auto &...error) { subject.write(much, bytes, error...); });
	expect_error(EOVERFLOW, "next_data",
		     [&](auto &...error) { subject.next_data(much, error...); });
	expect_error(EOVERFLOW, "next_hole",
		     [&](auto &...error) { subject.next_hole(much, error...); });
	expect_error(EOVERFLOW, "truncate",
		     [&](auto &...error) { subject.truncate(much, error...); });
	expect_error(EOVERFLOW, "punch",
		     [&](auto &...error) { subject.punch(much, 1, error...); });
	expect_error(EOVERFLOW, "punch",
		     [&](auto &...error) { subject.punch(0, much, error...); });
	expect_error(EOVERFLOW, "map", [&](auto &...error) {
		(void)subject.map({.offset = much}, error...);
	});
	EXPECT_EQ(subject.length(), page_size);
}

TEST_F(library, fork_and_its_parent_go_their_own_ways)
{
	region parent = numbered_pages(2);
	region child = both([&](auto &...error) { return parent.fork(error...); });

	parent.write(0, page_of(8));
	child.write(page_size, page_of(9));
	EXPECT_EQ(first_byte(parent), std::byte(8));
	EXPECT_EQ(first_byte(parent, page_size), std::byte(2));
	EXPECT_EQ(first_byte(child), std::byte(1));
	EXPECT_EQ(first_byte(child, page_size), std::byte(9));

	const cowsnap_stat stat = both([&](auto &...error) { return child.stat(error...); });

	EXPECT_EQ(stat.parent_id, parent.stat().id);
	EXPECT_EQ(stat.state, 0u);

	const descriptor_limit limit = descriptor_limit::leaving(0);

	expect_error(EMFILE, "fork", [&](auto &...error) { (void)parent.fork(error...); });
	expect_error(EMFILE, "take_snapshot",
		     [&](auto &...error) { (void)parent.take_snapshot(error...); });
}

TEST_F(library, snapshot_keeps_what_it_has_and_can_be_forked)
{
	region parent = numbered_pages(2);
	const snapshot taken =
		both([&](auto &...error) { return parent.take_snapshot(error...); });

	parent.write(0, page_of(8));
	EXPECT_EQ(first_byte(taken), std::byte(1));
	EXPECT_EQ(taken.stat().state, COWSNAP_STAT_F_READONLY);
	EXPECT_EQ(taken.length(), 2 * page_size);

	region child = taken.fork();

	child.write(0, page_of(9));
	EXPECT_EQ(first_byte(taken), std::byte(1));
	EXPECT_EQ(first_byte(taken.take_snapshot()), std::byte(1));
}

TEST_F(library, members_move_and_close)
{
	region subject = numbered_pages(1);
	const int fd = subject.fd();
	region other(std::move(subject));

	EXPECT_FALSE(subject);
	EXPECT_EQ(other.fd(), fd);

	region &same = other;

	other = std::move(same);
	EXPECT_EQ(other.fd(), fd);
	subject = other.fork();

	const int replaced = subject.fd();

	subject = std::move(other);
	EXPECT_FALSE(is_open(replaced));
	EXPECT_EQ(subject.fd(), fd);

	snapshot taken = subject.take_snapshot();
	snapshot moved = std::move(taken);

	EXPECT_FALSE(taken);
	EXPECT_TRUE(moved);
	moved.close();
	EXPECT_FALSE(moved);
	subject.close();
	EXPECT_FALSE(is_open(fd));
}

TEST_F(library, members_are_adopted_for_what_they_are)
{
	region made = numbered_pages(1);
	snapshot taken = made.take_snapshot();
	descriptor of_region = made.release();
	descriptor of_snapshot = taken.release();
	descriptor of_device = another(lib.fd());
	descriptor none;

	EXPECT_FALSE(made);
	EXPECT_FALSE(taken);
	expect_error(EPERM, "adopt", [&](auto &...error) {
		EXPECT_FALSE(region::adopt(std::move(of_snapshot), error...));
	});
	expect_error(EINVAL, "adopt", [&](auto &...error) {
		EXPECT_FALSE(snapshot::adopt(std::move(of_region), error...));
	});
	expect_error(ENOTTY, "adopt", [&](auto &...error) {
		EXPECT_FALSE(region::adopt(std::move(of_device), error...));
	});
	expect_error(ENOTTY, "adopt", [&](auto &...error) {
		EXPECT_FALSE(snapshot::adopt(std::move(of_device), error...));
	});
	expect_error(EBADF, "adopt", [&](auto &...error) {
		EXPECT_FALSE(region::adopt(std::move(none), error...));
	});
	EXPECT_TRUE(of_region);
	EXPECT_TRUE(of_snapshot);
	EXPECT_TRUE(of_device);

	std::error_code error;

	made = region::adopt(std::move(of_region), error);
	EXPECT_FALSE(error);
	EXPECT_FALSE(of_region);
	taken = snapshot::adopt(std::move(of_snapshot));
	EXPECT_FALSE(of_snapshot);
	made.write(0, page_of(8));
	EXPECT_EQ(first_byte(taken), std::byte(1));
}

TEST_F(library, region_reads_and_writes)
{
	region subject = lib.create({.length = 1});
	std::vector<std::byte> bytes = page_of(7);

	both([&](auto &...error) {
		EXPECT_EQ(subject.write(page_size - 2, std::span(bytes).first(5), error...), 5u);
		return 0;
	});
	EXPECT_EQ(subject.length(), page_size + 3);
	both([&](auto &...error) {
		EXPECT_EQ(subject.read(page_size - 3, bytes, error...), 6u);
		return 0;
	});
	EXPECT_EQ(bytes[0], std::byte(0));
	EXPECT_EQ(bytes[1], std::byte(7));
	EXPECT_EQ(subject.read(page_size + 3, bytes), 0u);
	EXPECT_EQ(subject.write(0, {}), 0u);
}

TEST_F(library, region_changes_its_length)
{
	region subject = numbered_pages(2);

	both([&](auto &...error) {
		subject.truncate(1, error...);
		EXPECT_EQ(subject.length(error...), 1u);
		subject.truncate(2 * page_size, error...);
		return 0;
	});
	EXPECT_EQ(first_byte(subject), std::byte(1));
	EXPECT_EQ(first_byte(subject, page_size), std::byte(0));
}

TEST_F(library, holes_are_made_and_found)
{
	region subject = numbered_pages(4);

	both([&](auto &...error) {
		subject.punch(page_size, page_size, error...);
		return 0;
	});
	EXPECT_EQ(both([&](auto &...error) { return subject.next_hole(0, error...); }),
		  page_size);
	EXPECT_EQ(both([&](auto &...error) {
			  return subject.next_data(page_size, error...);
		  }),
		  2 * page_size);
	EXPECT_EQ(subject.next_data(5), 5u);
	EXPECT_EQ(subject.next_hole(2 * page_size), 4 * page_size);
	EXPECT_EQ(subject.next_hole(4 * page_size), std::nullopt);
	subject.punch(2 * page_size, 2 * page_size);
	EXPECT_EQ(both([&](auto &...error) {
			  return subject.next_data(page_size, error...);
		  }),
		  std::nullopt);
	expect_error(EINVAL, "punch", [&](auto &...error) { subject.punch(0, 0, error...); });
}

TEST_F(library, region_is_restored_to_a_relative_only)
{
	region subject = numbered_pages(3);
	const snapshot taken = subject.take_snapshot();
	const region stranger = lib.create({.length = 1});
	std::error_code error;

	subject.write(0, page_of(8));
	subject.truncate(page_size);
	EXPECT_GE(subject.restore(taken, error), page_size);
	EXPECT_FALSE(error);
	EXPECT_EQ(subject.length(), 3 * page_size);
	EXPECT_EQ(first_byte(subject), std::byte(1));
	subject.write(2 * page_size, page_of(8));
	EXPECT_EQ(subject.restore(taken), page_size);
	expect_error(EXDEV, "restore",
		     [&](auto &...error) { subject.restore(stranger, error...); });
	expect_error(EBADF, "restore",
		     [&](auto &...error) { subject.restore(snapshot(), error...); });
}

TEST_F(library, region_is_prepared_as_far_as_the_budget_goes)
{
	region subject = lib.create({.length = 8 * page_size});
	const cowsnap::mapping map = subject.map();

	std::ranges::fill(map.bytes(), std::byte(1));

	std::error_code error;

	EXPECT_EQ(subject.prepare(3, error), 5u);
	EXPECT_FALSE(error);
	EXPECT_EQ(subject.prepare(), 0u);
}

TEST_F(library, mapping_shows_all_or_a_part)
{
	region subject = numbered_pages(3);
	cowsnap::mapping all = both([&](auto &...error) { return subject.map(error...); });
	const cowsnap::const_mapping last = both([&](auto &...error) {
		return std::as_const(subject).map({.offset = 2 * page_size}, error...);
	});
	const cowsnap::mapping middle =
		subject.map({.offset = page_size, .length = page_size});

	ASSERT_EQ(all.size(), 3 * page_size);
	ASSERT_EQ(last.size(), page_size);
	ASSERT_EQ(middle.size(), page_size);
	EXPECT_EQ(all.bytes().size(), all.size());
	EXPECT_EQ(all.bytes().data(), all.data());
	EXPECT_EQ(last.bytes()[0], std::byte(3));
	middle.bytes()[5] = std::byte(77);
	all.bytes()[2 * page_size] = std::byte(78);
	EXPECT_EQ(all.bytes()[page_size + 5], std::byte(77));
	EXPECT_EQ(last.bytes()[0], std::byte(78));
	EXPECT_EQ(first_byte(subject, page_size + 5), std::byte(77));
	subject.close();
	EXPECT_EQ(all.bytes()[0], std::byte(1));
}

TEST_F(library, mapping_of_nothing_or_from_the_midst_of_a_page_is_refused)
{
	region subject = numbered_pages(1);

	expect_error(EINVAL, "map", [&](auto &...error) {
		EXPECT_FALSE(subject.map({.offset = 1}, error...));
	});
	expect_error(EINVAL, "map", [&](auto &...error) {
		EXPECT_FALSE(subject.map({.offset = page_size}, error...));
	});
	expect_error(EINVAL, "map", [&](auto &...error) {
		EXPECT_FALSE(subject.map({.offset = 9 * page_size}, error...));
	});
	EXPECT_EQ(subject.map({.length = 9 * page_size}).size(), 9 * page_size);
}

TEST_F(library, mapping_goes_where_it_is_told_to_if_nothing_is_there)
{
	region subject = numbered_pages(2);
	const snapshot taken = subject.take_snapshot();
	cowsnap::mapping map = subject.map();
	const void *const address = map.data();

	expect_error(EEXIST, "map", [&](auto &...error) {
		EXPECT_FALSE(taken.map({.address = address}, error...));
	});
	EXPECT_EQ(map.bytes()[0], std::byte(1));
	map.bytes()[0] = std::byte(8);
	map.unmap();
	EXPECT_FALSE(map);
	EXPECT_EQ(map.size(), 0u);
	map.unmap();

	const cowsnap::const_mapping then = taken.map({.address = address});

	EXPECT_EQ(then.data(), address);
	EXPECT_EQ(then.bytes()[0], std::byte(1));
	expect_error(EINVAL, "map", [&](auto &...error) {
		EXPECT_FALSE(taken.map(
			{.address = static_cast<const std::byte *>(address) + 1}, error...));
	});
}

TEST_F(library, mapping_moves_and_unmaps)
{
	const auto is_mapped = [](const void *address) {
		unsigned char resident = 0;

		return ::mincore(const_cast<void *>(address), page_size, &resident) == 0;
	};
	region subject = numbered_pages(1);
	cowsnap::mapping map = subject.map();
	const std::byte *const address = map.data();
	cowsnap::mapping other(std::move(map));

	EXPECT_FALSE(map);
	EXPECT_EQ(map.data(), nullptr);
	EXPECT_EQ(other.data(), address);

	cowsnap::mapping &same = other;

	other = std::move(same);
	EXPECT_EQ(other.data(), address);
	EXPECT_TRUE(is_mapped(address));
	map = subject.map();

	const std::byte *const replaced = map.data();

	map = std::move(other);
	EXPECT_FALSE(is_mapped(replaced));
	EXPECT_TRUE(is_mapped(address));
	map = {};
	EXPECT_FALSE(is_mapped(address));
}

TEST_F(library, private_mapping_of_a_snapshot_is_the_process_s_own)
{
	const snapshot taken = numbered_pages(2).take_snapshot();
	const cowsnap::mapping own =
		both([&](auto &...error) { return taken.map_private(error...); });

	own.bytes()[0] = std::byte(8);
	EXPECT_EQ(own.bytes()[0], std::byte(8));
	EXPECT_EQ(own.bytes()[page_size], std::byte(2));
	EXPECT_EQ(first_byte(taken), std::byte(1));
	EXPECT_EQ(taken.map().bytes()[0], std::byte(1));
}

TEST_F(library, mapping_is_viewed_as_what_fits)
{
	region subject = lib.create({.length = page_size});
	const cowsnap::mapping map = subject.map();
	const cowsnap::const_mapping seen = std::as_const(subject).map();
	const std::span<std::uint32_t> words =
		both([&](auto &...error) { return map.as<std::uint32_t>(error...); });

	static_assert(std::is_same_v<decltype(seen.as<std::uint32_t>()),
				     std::span<const std::uint32_t>>);
	ASSERT_EQ(words.size(), page_size / 4);
	words[3] = 33;
	words.back() = 44;

	const auto two = both(
		[&](auto &...error) { return seen.as<std::uint32_t>(12, 2, error...); });

	ASSERT_EQ(two.size(), 2u);
	EXPECT_EQ(two[0], 33u);
	EXPECT_EQ(seen.as<std::uint32_t>().back(), 44u);
	EXPECT_EQ(map.as<std::uint32_t>(page_size - 4, 1)[0], 44u);
	EXPECT_EQ(map.as<std::uint32_t>(page_size, 0).size(), 0u);

	constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
	const std::vector<std::pair<std::size_t, std::size_t>> wrong = {
		{2, 1}, {page_size - 4, 2}, {page_size, 1}, {page_size + 4, 0},
		{0, most / 4 + 2}, {most - 3, 1}};

	for (const auto &[offset, count] : wrong)
		expect_error(EINVAL, "as", [&, at = offset, of = count](auto &...error) {
			EXPECT_TRUE(map.as<std::uint32_t>(at, of, error...).empty());
		});

	using three = std::array<std::byte, 3>;

	expect_error(EINVAL, "as", [&](auto &...error) {
		EXPECT_TRUE(map.as<three>(error...).empty());
	});
	EXPECT_EQ(map.as<three>(1, 2).size(), 2u);
}

TEST_F(library, mapping_is_populated)
{
	region subject = lib.create({.length = 8 * page_size, .limit = 8 * page_size});
	const cowsnap::mapping map = subject.map();

	both([&](auto &...error) {
		map.populate_write(error...);
		return 0;
	});
	EXPECT_EQ(subject.stat().referenced, 8 * page_size);

	const snapshot taken = subject.take_snapshot();
	const cowsnap::const_mapping then = taken.map();

	both([&](auto &...error) {
		then.populate(error...);
		return 0;
	});

	const std::uint64_t faults = taken.stat().faults;

	EXPECT_TRUE(cowsnap_test::is_all(then.bytes(), 0));
	EXPECT_EQ(taken.stat().faults, faults);
	expect_error(EFAULT, "populate_write",
		     [&](auto &...error) { map.populate_write(error...); });
	expect_error(EFAULT, "populate", [&](auto &...error) {
		taken.map({.length = 9 * page_size}).populate(error...);
	});
}

TEST_F(library, diff_is_a_range_of_what_differs)
{
	region subject = numbered_pages(8);
	const snapshot taken = subject.take_snapshot();

	subject.write(page_size, page_of(8));
	subject.write(2 * page_size, page_of(3));
	subject.punch(5 * page_size, page_size);

	const std::vector<cowsnap::range> expected = {
		{page_size, 2 * page_size, false}, {5 * page_size, page_size, true}};
	std::vector<cowsnap::range> found;

	std::ranges::copy(subject.diff(taken), std::back_inserter(found));
	EXPECT_EQ(found, expected);

	std::error_code error(EIO, std::generic_category());

	found.clear();
	std::ranges::copy(subject.diff(taken, error), std::back_inserter(found));
	EXPECT_FALSE(error);
	EXPECT_EQ(found, expected);
	found.clear();
	std::ranges::copy(subject.diff(taken, {.exact = true}), std::back_inserter(found));
	EXPECT_EQ(found, (std::vector<cowsnap::range>{{page_size, page_size, false},
						      expected[1]}));
	found.clear();
	std::ranges::copy(subject.diff(taken, {.start = 2 * page_size + 1, .end = 5 * page_size}),
			  std::back_inserter(found));
	EXPECT_EQ(found, (std::vector<cowsnap::range>{{2 * page_size, page_size, false}}));
	for (const cowsnap::range &none : taken.diff(taken))
		ADD_FAILURE() << none.offset;
}

TEST_F(library, diff_goes_on_where_one_call_s_room_ends)
{
	constexpr std::size_t pages = 402;
	region subject = lib.create({.length = pages * page_size});
	const snapshot taken = subject.take_snapshot();

	for (std::size_t page = 0; page < pages; page += 2)
		subject.write(page * page_size, page_of(1));

	std::vector<cowsnap::range> found;

	std::ranges::copy(subject.diff(taken), std::back_inserter(found));
	ASSERT_EQ(found.size(), pages / 2);
	for (std::size_t i = 0; i < found.size(); i++)
		ASSERT_EQ(found[i], (cowsnap::range{2 * i * page_size, page_size, false}));
}

TEST_F(library, diff_is_lazy_and_goes_with_adaptors)
{
	constexpr std::size_t pages = 402;
	region subject = lib.create({.length = pages * page_size});
	const snapshot taken = subject.take_snapshot();

	for (std::size_t page = 0; page < pages; page += 2)
		subject.write(page * page_size, page_of(1));

	auto late = subject.diff(taken) |
		    std::views::filter([](const cowsnap::range &part) {
			    return part.offset % (4 * page_size) == 0;
		    }) |
		    std::views::transform(
			    [](const cowsnap::range &part) { return part.offset / page_size; }) |
		    std::views::drop(1) | std::views::take(3);
	std::vector<std::uint64_t> found;

	/* What changes before the range is gone through is found. */
	subject.punch(4 * page_size, page_size);
	subject.restore(taken);
	for (std::size_t page = 8; page < 48; page += 2)
		subject.write(page * page_size, page_of(1));
	std::ranges::copy(late, std::back_inserter(found));
	EXPECT_EQ(found, (std::vector<std::uint64_t>{12, 16, 20}));
}

TEST_F(library, diff_tells_what_is_wrong_when_it_is_gone_through)
{
	region subject = numbered_pages(1);
	const region stranger = lib.create({.length = 1});
	const auto go_through = [](auto &&differences) {
		for (const cowsnap::range &none : differences)
			ADD_FAILURE() << none.offset;
	};

	expect_error(EXDEV, "diff", [&](auto &...error) {
		go_through(subject.diff(stranger, {}, error...));
	});
	expect_error(EINVAL, "diff", [&](auto &...error) {
		go_through(subject.diff(subject, {.start = 5, .end = 5}, error...));
	});
	expect_error(EINVAL, "diff", [&](auto &...error) {
		go_through(subject.diff(subject, {.end = cowsnap::largest_length + 1},
					error...));
	});
	/* And in the midst of it. */
	constexpr std::size_t pages = 402;

	subject.truncate(pages * page_size);

	region other = subject.fork();

	for (std::size_t page = 0; page < pages; page += 2)
		subject.write(page * page_size, page_of(1));

	std::error_code error;
	std::size_t found = 0;
	auto differences = subject.diff(other, error);
	auto at = differences.begin();

	cowsnap_test::check(::dup2(stranger.fd(), other.fd()), "dup2");
	for (; at != differences.end(); ++at)
		found++;
	EXPECT_EQ(error, std::errc::cross_device_link);
	EXPECT_GT(found, 0u);
	EXPECT_LT(found, pages / 2);
}

TEST_F(library, fork_many_takes_any_range_of_members)
{
	region first = numbered_pages(1), second = lib.create({.length = 2 * page_size});
	const snapshot third = first.take_snapshot();
	const std::vector<std::uint64_t> lengths = {page_size, 2 * page_size, page_size};
	const auto expect_forks = [&](const auto &forks, std::uint32_t state) {
		ASSERT_EQ(forks.size(), lengths.size());
		for (std::size_t i = 0; i < lengths.size(); i++) {
			EXPECT_EQ(forks[i].length(), lengths[i]);
			EXPECT_EQ(forks[i].stat().state, state);
			EXPECT_EQ(::fcntl(forks[i].fd(), F_GETFD), FD_CLOEXEC);
		}
		EXPECT_EQ(forks[1].stat().parent_id, second.stat().id);
	};

	expect_forks(both([&](auto &...error) {
			     return lib.fork_many({first, second, third}, error...);
		     }),
		     0);
	expect_forks(lib.fork_many<snapshot>({first, second, third}),
		     COWSNAP_STAT_F_READONLY);

	const std::list<std::reference_wrapper<const member>> references = {first, second,
									    third};

	expect_forks(both([&](auto &...error) {
			     return lib.fork_many<snapshot>(references, error...);
		     }),
		     COWSNAP_STAT_F_READONLY);

	std::vector<region> owned;

	owned.push_back(std::move(first));
	owned.push_back(std::move(second));
	EXPECT_EQ(lib.fork_many(owned).size(), 2u);
	EXPECT_EQ(lib.fork_many(std::views::reverse(owned))[0].length(), 2 * page_size);
}

TEST_F(library, fork_many_makes_many_of_one)
{
	region parent = numbered_pages(1);
	std::vector<region> forks =
		both([&](auto &...error) { return lib.fork_many(parent, 5, error...); });

	ASSERT_EQ(forks.size(), 5u);
	forks[0].write(0, page_of(8));
	EXPECT_EQ(first_byte(forks[4]), std::byte(1));

	const std::vector<snapshot> taken = lib.fork_many<snapshot>(
		parent, COWSNAP_FORK_MANY_MAX - 100);

	EXPECT_EQ(taken.size(), COWSNAP_FORK_MANY_MAX - 100u);
}

TEST_F(library, fork_many_makes_all_or_none)
{
	region real = numbered_pages(1);
	const region empty;
	const std::uint64_t regions = lib.query().regions;
	const std::size_t open = open_descriptors();

	expect_error(EBADF, "fork_many", [&](auto &...error) {
		EXPECT_TRUE(lib.fork_many({real, real, empty}, error...).empty());
	});
	for (const std::size_t count :
	     {std::size_t(0), std::size_t(COWSNAP_FORK_MANY_MAX + 1),
	      std::numeric_limits<std::size_t>::max()})
		expect_error(EINVAL, "fork_many", [&](auto &...error) {
			EXPECT_TRUE(lib.fork_many(real, count, error...).empty());
		});
	expect_error(EINVAL, "fork_many", [&](auto &...error) {
		(void)lib.fork_many(std::vector<region>(), error...);
	});
	{
		const descriptor_limit limit = descriptor_limit::leaving(3);

		expect_error(EMFILE, "fork_many", [&](auto &...error) {
			EXPECT_TRUE(lib.fork_many(real, 4, error...).empty());
		});
		EXPECT_EQ(lib.fork_many(real, 3).size(), 3u);
	}
	EXPECT_TRUE(cowsnap_test::eventually([&] { return lib.query().regions == regions; }));
	EXPECT_EQ(open_descriptors(), open);
}

TEST_F(library, fork_many_leaves_nothing_behind_when_memory_is_short)
{
	region real = numbered_pages(1);
	const std::uint64_t regions = lib.query().regions;
	const std::size_t open = open_descriptors();
	int failed = 0;

	for (bool done = false; !done; failed++) {
		allocations_left = failed;
		try {
			const std::vector<region> forks = lib.fork_many({real, real, real});

			allocations_left = -1;
			EXPECT_EQ(forks.size(), 3u);
			done = true;
		} catch (const std::bad_alloc &) {
			allocations_left = -1;
			EXPECT_EQ(open_descriptors(), open);
			EXPECT_TRUE(cowsnap_test::eventually(
				[&] { return lib.query().regions == regions; }));
		}
	}
	/* The entries, and the forks. */
	EXPECT_GT(failed, 2);
}

TEST_F(library, calls_are_made_again_after_a_signal)
{
	region subject = lib.create({.length = 16 << 20});
	const cowsnap::mapping map = subject.map();

	std::ranges::fill(map.bytes(), std::byte(1));

	const alarm_storm storm(3000, 0);
	const auto interrupted = [&] {
		cowsnap_stat arg = {};

		arg.size = sizeof(arg);
		return ::ioctl(subject.fd(), COWSNAP_IOC_STAT, &arg) == -1 &&
		       errno == EINTR;
	};

	/* The library's calls meet as many signals as one by hand needs to fail ten times. */
	for (int times = 0; times < 10; times++) {
		ASSERT_TRUE(cowsnap_test::eventually(interrupted));
		const unsigned long signals = alarm_storm::count();

		while (alarm_storm::count() < signals + 20)
			ASSERT_NO_THROW(subject.stat());
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
