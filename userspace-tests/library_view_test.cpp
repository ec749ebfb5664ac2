// SPDX-License-Identifier: GPL-2.0-only
/* The C++ library's mappings, differences as ranges, and FORK_MANY. */
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <new>
#include <ranges>
#include <span>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cowsnap/cowsnap.hpp>

#include "descriptors.hpp"
#include "ktap.hpp"
#include "library.hpp"

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

using cowsnap::member;
using cowsnap::region;
using cowsnap::snapshot;
using cowsnap_test::descriptor_limit;
using cowsnap_test::page_size;
using namespace cowsnap_test::of_library;

/* More differences than one call of DIFF has room for. */
constexpr std::size_t many_pages = 402;

void write_every_other_page(region &subject)
{
	for (std::size_t page = 0; page < many_pages; page += 2)
		subject.write(page * page_size, page_of(1));
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
	cowsnap::mapping other(given(map));

	EXPECT_FALSE(map);
	EXPECT_EQ(map.data(), nullptr);
	EXPECT_EQ(other.data(), address);

	cowsnap::mapping &same = other;

	other = given(same);
	EXPECT_EQ(other.data(), address);
	EXPECT_TRUE(is_mapped(address));
	map = subject.map();

	const std::byte *const replaced = map.data();

	map = given(other);
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
	});
	EXPECT_EQ(subject.stat().referenced, 8 * page_size);

	const snapshot taken = subject.take_snapshot();
	const cowsnap::const_mapping then = taken.map();

	both([&](auto &...error) {
		then.populate(error...);
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
	region subject = lib.create({.length = many_pages * page_size});
	const snapshot taken = subject.take_snapshot();

	write_every_other_page(subject);

	std::vector<cowsnap::range> found;

	std::ranges::copy(subject.diff(taken), std::back_inserter(found));
	ASSERT_EQ(found.size(), many_pages / 2);
	for (std::size_t i = 0; i < found.size(); i++)
		ASSERT_EQ(found[i], (cowsnap::range{2 * i * page_size, page_size, false}));
}

TEST_F(library, diff_is_lazy_and_goes_with_adaptors)
{
	region subject = lib.create({.length = many_pages * page_size});
	const snapshot taken = subject.take_snapshot();

	write_every_other_page(subject);

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
	subject.truncate(many_pages * page_size);

	region other = subject.fork();

	write_every_other_page(subject);

	std::error_code error;
	std::size_t found = 0;
	auto differences = subject.diff(other, error);
	auto at = differences.begin();

	cowsnap_test::check(::dup2(stranger.fd(), other.fd()), "dup2");
	for (; at != differences.end(); ++at)
		found++;
	EXPECT_EQ(error, std::errc::cross_device_link);
	EXPECT_GT(found, 0u);
	EXPECT_LT(found, many_pages / 2);
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

	owned.push_back(given(first));
	owned.push_back(given(second));
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
			ASSERT_EQ(open_descriptors(), open);
			ASSERT_TRUE(cowsnap_test::eventually(
				[&] { return lib.query().regions == regions; }));
		}
	}
	/* The entries, and the forks. */
	EXPECT_GT(failed, 2);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
