// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C++ library, call by call, each by both of its forms: the device, and what members
 * of a family do. What the module makes of the calls is for the other tests.
 * library_view_test.cpp has mappings, differences and FORK_MANY, library_memory_test.cpp
 * containers in regions.
 */
#include <algorithm>
#include <array>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>

#include <cowsnap/cowsnap.hpp>

#include "alarm_storm.hpp"
#include "descriptors.hpp"
#include "ktap.hpp"
#include "library.hpp"

namespace {

using cowsnap::create_options;
using cowsnap::descriptor;
using cowsnap::device;
using cowsnap::region;
using cowsnap::snapshot;
using cowsnap_test::alarm_storm;
using cowsnap_test::descriptor_limit;
using cowsnap_test::page_size;
using namespace cowsnap_test::of_library;

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

TEST_F(library, descriptor_is_closed_once_by_its_last_owner)
{
	const int fd = another(0).release();
	descriptor owner(fd);

	ASSERT_TRUE(owner);
	EXPECT_EQ(owner.get(), fd);

	descriptor next(given(owner));

	EXPECT_FALSE(owner);
	EXPECT_LT(owner.get(), 0);
	EXPECT_EQ(next.get(), fd);

	descriptor &same = next;

	next = given(same);
	EXPECT_EQ(next.get(), fd);
	EXPECT_TRUE(is_open(fd));

	descriptor last = another(0);
	const int replaced = last.get();

	last = given(next);
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
	device adopted = device::adopt(given(own));

	EXPECT_FALSE(own);
	EXPECT_EQ(adopted.fd(), fd);
	own = adopted.release();
	EXPECT_FALSE(adopted);
	EXPECT_EQ(own.get(), fd);

	region made = lib.create({.length = 1});
	descriptor other = made.release();

	expect_error(ENOTTY, "adopt", [&](auto &...error) {
		(void)device::adopt(given(other), error...);
	});
	EXPECT_TRUE(other);
}

TEST_F(library, device_moves_and_closes)
{
	const int fd = lib.fd();
	device other(given(lib));

	EXPECT_FALSE(lib);
	EXPECT_EQ(other.fd(), fd);

	device &same = other;

	other = given(same);
	EXPECT_EQ(other.fd(), fd);
	lib = given(other);
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
	const std::size_t granule = 4 * page_size;
	const create_options options = {.length = 3 * page_size + 1,
					.limit = 5 * granule,
					.granule = granule,
					.name = std::string_view("hours and more", 5)};
	region made = both([&](auto &...error) { return lib.create(options, error...); });
	const cowsnap_stat stat = made.stat();

	EXPECT_EQ(made.length(), options.length);
	EXPECT_EQ(std::uint64_t(1) << stat.granule_shift, granule);
	EXPECT_EQ(stat.parent_id, 0u);
	EXPECT_EQ(std::filesystem::read_symlink("/proc/self/fd/" +
						std::to_string(made.fd())),
		  "/cowsnap:hours (deleted)");
	made.truncate(6 * granule);

	const auto too_much = cowsnap_test::bytes_of(6 * granule, 1);
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
	region other(given(subject));

	EXPECT_FALSE(subject);
	EXPECT_EQ(other.fd(), fd);

	region &same = other;

	other = given(same);
	EXPECT_EQ(other.fd(), fd);
	subject = other.fork();

	const int replaced = subject.fd();

	subject = given(other);
	EXPECT_FALSE(is_open(replaced));
	EXPECT_EQ(subject.fd(), fd);

	snapshot taken = subject.take_snapshot();
	snapshot moved = given(taken);

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
		EXPECT_FALSE(region::adopt(given(of_snapshot), error...));
	});
	expect_error(EINVAL, "adopt", [&](auto &...error) {
		EXPECT_FALSE(snapshot::adopt(given(of_region), error...));
	});
	expect_error(ENOTTY, "adopt", [&](auto &...error) {
		EXPECT_FALSE(region::adopt(given(of_device), error...));
	});
	expect_error(ENOTTY, "adopt", [&](auto &...error) {
		EXPECT_FALSE(snapshot::adopt(given(of_device), error...));
	});
	expect_error(EBADF, "adopt", [&](auto &...error) {
		EXPECT_FALSE(region::adopt(given(none), error...));
	});
	EXPECT_TRUE(of_region);
	EXPECT_TRUE(of_snapshot);
	EXPECT_TRUE(of_device);

	std::error_code error;

	made = region::adopt(given(of_region), error);
	EXPECT_FALSE(error);
	EXPECT_FALSE(of_region);
	taken = snapshot::adopt(given(of_snapshot));
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
	});
	EXPECT_EQ(subject.length(), page_size + 3);
	both([&](auto &...error) {
		EXPECT_EQ(subject.read(page_size - 3, bytes, error...), 6u);
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
	});
	EXPECT_EQ(first_byte(subject), std::byte(1));
	EXPECT_EQ(first_byte(subject, page_size), std::byte(0));
}

TEST_F(library, holes_are_made_and_found)
{
	region subject = numbered_pages(4);

	both([&](auto &...error) {
		subject.punch(page_size, page_size, error...);
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
