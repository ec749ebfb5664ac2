// SPDX-License-Identifier: GPL-2.0-only
/*
 * fallocate(2): holes that are filled, and made, against a model, under limits,
 * in mappings, under signals and against FORKs.  What a memfd can do, too, is
 * compared with one in file_test.
 */
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "alarm_storm.hpp"
#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "max_bytes.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

constexpr int keep_size = FALLOC_FL_KEEP_SIZE;
constexpr int punch_hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int zero_range = FALLOC_FL_ZERO_RANGE;
constexpr int unshare_range = FALLOC_FL_UNSHARE_RANGE;

/* All that regions can do. */
constexpr std::array<int, 7> modes = {
	0,
	keep_size,
	punch_hole,
	zero_range,
	zero_range | keep_size,
	unshare_range,
	unshare_range | keep_size,
};

/* errno of fallocate(2), 0 when it worked. */
int error_of(int fd, int mode, off_t offset, off_t length)
{
	return ::fallocate(fd, mode, offset, length) < 0 ? errno : 0;
}
int error_of(const region &file, int mode, std::uint64_t offset,
	     std::uint64_t length)
{
	return error_of(file.fd(), mode, static_cast<off_t>(offset),
			static_cast<off_t>(length));
}

/* The tests that count granules go over several sizes of them. */
class fallocating : public cowsnap_fixture,
		    public testing::WithParamInterface<std::uint32_t> {
protected:
	region create(std::size_t granules, std::size_t limit = 0) const
	{
		return dev.create(granules * granule, limit * granule, {},
				  GetParam());
	}
	/* All granules written, each with its number. */
	region full(std::size_t granules, std::size_t limit = 0) const
	{
		region made = create(granules, limit);

		for (std::size_t i = 0; i < granules; i++)
			fill_granule(made, i, numbered(i));
		return made;
	}
	static unsigned int numbered(std::size_t index)
	{
		return static_cast<unsigned int>(index + 1) & 0xff;
	}
	/* Much at once goes by a mapping: emulated CPUs take a while to copy. */
	void fill_granule(const region &file, std::size_t index,
			  unsigned int value) const
	{
		if (granule < much)
			file.write(index * granule, bytes_of(granule, value));
		else
			fill(mapping(file.fd(), granule, PROT_READ | PROT_WRITE,
				     MAP_SHARED, index * granule)
				     .bytes(),
			     value);
	}
	static bool range_is(const region &file, std::size_t offset,
			     std::size_t size, unsigned int value)
	{
		const std::size_t in_page = offset % page_size;

		if (size < much)
			return is_all(file.read(offset, size), value);
		return is_all(mapping(file.fd(), in_page + size, PROT_READ,
				      MAP_SHARED, offset - in_page)
				      .bytes()
				      .subspan(in_page),
			      value);
	}
	bool granule_is(const region &file, std::size_t index,
			unsigned int value) const
	{
		return range_is(file, index * granule, granule, value);
	}
	/* The first granule that is not as full() left it, or -1. */
	int changed_granule(const region &file, std::size_t granules) const
	{
		for (std::size_t i = 0; i < granules; i++)
			if (!granule_is(file, i, numbered(i)))
				return static_cast<int>(i);
		return -1;
	}
	std::span<std::byte> in(const mapping &map, std::size_t index) const
	{
		return map.bytes().subspan(index * granule, granule);
	}

	std::uint64_t referenced(const region &file) const
	{
		return file.stat().referenced / granule;
	}
	std::uint64_t exclusive(const region &file) const
	{
		return file.stat().exclusive / granule;
	}
	std::uint64_t dirty(const region &file) const
	{
		return file.stat().dirty / granule;
	}
	/* Granules that all regions hold together. */
	std::uint64_t held() const
	{
		return (counters(dev).held_bytes - before.held_bytes) / granule;
	}

	static constexpr std::size_t much = 1 << 18;
	const std::size_t granule = std::size_t{1} << GetParam();
};

std::string name_of(const testing::TestParamInfo<std::uint32_t> &info)
{
	return "granule_" + std::to_string(info.param);
}

INSTANTIATE_TEST_SUITE_P(, fallocating, testing::Values(page_shift, page_shift + 4), name_of);

/* Where a huge page makes a difference; emulated CPUs take long to fill it. */
class fallocating_huge : public fallocating {};

INSTANTIATE_TEST_SUITE_P(, fallocating_huge,
			 testing::Values(page_shift, page_shift + 4, 21), name_of);

TEST_P(fallocating, fills_holes_and_nothing_else)
{
	for (const int mode : {0, keep_size, unshare_range,
			       unshare_range | keep_size}) {
		const region subject = create(8);

		fill_granule(subject, 2, 7);
		subject.allocate(granule, 4 * granule, mode);
		EXPECT_EQ(referenced(subject), 4u);
		EXPECT_EQ(exclusive(subject), 4u);
		EXPECT_EQ(dirty(subject), 4u);
		EXPECT_EQ(held(), 4u);
		EXPECT_EQ(subject.stat().zero_fills, 4u);
		EXPECT_EQ(subject.stat().copies, 0u);
		EXPECT_EQ(subject.length(), 8 * granule);
		for (std::size_t i = 0; i < 8; i++)
			EXPECT_TRUE(granule_is(subject, i, i == 2 ? 7 : 0)) << i;
		/* Again there is nothing to do. */
		subject.allocate(granule, 4 * granule, mode);
		EXPECT_EQ(subject.stat().zero_fills, 4u);
		EXPECT_EQ(held(), 4u);
	}
}

TEST_P(fallocating, takes_every_granule_that_it_touches)
{
	for (const int mode : {0, unshare_range, zero_range}) {
		const region subject = create(8);

		subject.allocate(granule - 1, 1, mode);
		EXPECT_EQ(referenced(subject), 1u);
		subject.allocate(3 * granule - 1, 2, mode);
		EXPECT_EQ(referenced(subject), 3u);
		subject.allocate(6 * granule, 1, mode);
		EXPECT_EQ(referenced(subject), 4u);
		EXPECT_EQ(::lseek(subject.fd(), 0, SEEK_HOLE),
			  static_cast<off_t>(granule));
		EXPECT_TRUE(range_is(subject, 0, 8 * granule, 0));
	}
}

TEST_P(fallocating, leaves_what_is_shared_shared)
{
	for (const int mode : {0, keep_size}) {
		const region parent = full(4);
		const region child = parent.fork();

		parent.truncate(6 * granule);
		parent.allocate(0, 6 * granule, mode);
		EXPECT_EQ(referenced(parent), 6u);
		EXPECT_EQ(exclusive(parent), 2u);
		EXPECT_EQ(dirty(parent), 2u);
		EXPECT_EQ(parent.stat().copies, 0u);
		EXPECT_EQ(referenced(child), 4u);
		EXPECT_EQ(dirty(child), 0u);
		EXPECT_EQ(held(), 6u);
		EXPECT_EQ(changed_granule(parent, 4), -1);
		EXPECT_EQ(changed_granule(child, 4), -1);
	}
}

TEST_P(fallocating_huge, unshares)
{
	for (const int mode : {unshare_range, unshare_range | keep_size}) {
		const region parent = full(6);
		const region child = parent.fork();
		const mapping shown = child.map(PROT_READ);

		parent.truncate(8 * granule);
		EXPECT_EQ(shown.data()[0], std::byte{1});
		/* Parts of granules at both ends. */
		parent.allocate(granule + 1, 6 * granule, mode);
		EXPECT_EQ(referenced(parent), 8u);
		EXPECT_EQ(exclusive(parent), 7u);
		EXPECT_EQ(dirty(parent), 7u);
		EXPECT_EQ(parent.stat().copies, 5u);
		EXPECT_EQ(parent.stat().bytes_copied, 5 * granule);
		EXPECT_EQ(exclusive(child), 5u);
		EXPECT_EQ(held(), 13u);
		EXPECT_EQ(changed_granule(parent, 6), -1);
		EXPECT_EQ(changed_granule(child, 6), -1);
		EXPECT_TRUE(range_is(parent, 6 * granule, 2 * granule, 0));

		/* It is its own from now on. */
		fill_granule(parent, 3, 99);
		EXPECT_EQ(parent.stat().copies, 5u);
		EXPECT_EQ(changed_granule(child, 6), -1);
		EXPECT_EQ(shown.data()[3 * granule], std::byte{4});
	}
}

TEST_P(fallocating, unshares_without_a_copy_what_nobody_else_has)
{
	const region parent = full(4);

	{
		const region child = parent.fork();
	}
	parent.unshare(0, 4 * granule);
	EXPECT_EQ(parent.stat().copies, 0u);
	EXPECT_EQ(dirty(parent), 4u);
	EXPECT_EQ(held(), 4u);
	EXPECT_EQ(changed_granule(parent, 4), -1);
}

TEST_P(fallocating_huge, punches_whole_granules_out)
{
	const region parent = full(8);
	region snapshot = parent.snapshot();

	parent.punch(2 * granule, 3 * granule);
	EXPECT_EQ(referenced(parent), 5u);
	EXPECT_EQ(exclusive(parent), 0u);
	EXPECT_EQ(parent.stat().copies, 0u);
	EXPECT_EQ(exclusive(snapshot), 3u);
	EXPECT_EQ(held(), 8u);
	EXPECT_EQ(parent.length(), 8 * granule);
	EXPECT_EQ(::lseek(parent.fd(), 0, SEEK_HOLE),
		  static_cast<off_t>(2 * granule));
	EXPECT_EQ(::lseek(parent.fd(), static_cast<off_t>(2 * granule), SEEK_DATA),
		  static_cast<off_t>(5 * granule));
	for (std::size_t i = 0; i < 8; i++)
		EXPECT_TRUE(granule_is(parent, i,
				       i < 2 || i > 4 ? numbered(i) : 0))
			<< i;
	EXPECT_EQ(changed_granule(snapshot, 8), -1);
	/* Again, and where there never was anything. */
	parent.punch(2 * granule, 3 * granule);
	EXPECT_EQ(referenced(parent), 5u);
	snapshot.close();
	EXPECT_EQ(held(), 5u);
	EXPECT_EQ(exclusive(parent), 5u);
}

TEST_P(fallocating_huge, zeroes_parts_of_granules_at_both_ends)
{
	const std::size_t half = granule / 2;

	for (const int mode : {punch_hole, zero_range}) {
		const region parent = full(4);
		const region snapshot = parent.snapshot();

		parent.allocate(half, 2 * granule, mode);
		EXPECT_TRUE(range_is(parent, 0, half, 1));
		EXPECT_TRUE(range_is(parent, half, 2 * granule, 0));
		EXPECT_TRUE(range_is(parent, 2 * granule + half, half, 3));
		EXPECT_TRUE(granule_is(parent, 3, 4));
		EXPECT_EQ(referenced(parent), mode == punch_hole ? 3u : 4u);
		EXPECT_EQ(exclusive(parent), mode == punch_hole ? 2u : 3u);
		EXPECT_EQ(parent.stat().copies, 2u);
		EXPECT_EQ(changed_granule(snapshot, 4), -1);

		/* In the middle of one. */
		parent.allocate(3 * granule + 5, 7, mode);
		EXPECT_TRUE(range_is(parent, 3 * granule, 5, 4));
		EXPECT_TRUE(range_is(parent, 3 * granule + 5, 7, 0));
		EXPECT_TRUE(range_is(parent, 3 * granule + 12, granule - 12,
				   4));
		EXPECT_EQ(changed_granule(snapshot, 4), -1);
	}
}

TEST_P(fallocating, punches_parts_of_holes_without_memory)
{
	const region subject = create(4);

	subject.punch(granule / 2, 2 * granule);
	subject.punch(1, 1);
	EXPECT_EQ(referenced(subject), 0u);
	EXPECT_EQ(held(), 0u);
	EXPECT_EQ(subject.stat().zero_fills, 0u);
}

TEST_P(fallocating, zeroes_and_keeps_the_memory)
{
	for (const int flags : {0, keep_size}) {
		const region parent = full(4);
		const region snapshot = parent.snapshot();

		parent.truncate(6 * granule);
		parent.zero(granule, 5 * granule, flags);
		EXPECT_EQ(referenced(parent), 6u);
		EXPECT_EQ(exclusive(parent), 5u);
		EXPECT_EQ(dirty(parent), 5u);
		EXPECT_EQ(held(), 9u);
		EXPECT_TRUE(granule_is(parent, 0, 1));
		EXPECT_TRUE(range_is(parent, granule, 5 * granule, 0));
		EXPECT_EQ(changed_granule(snapshot, 4), -1);
	}
}

TEST_P(fallocating, grows_the_region)
{
	for (const int mode : {0, zero_range, unshare_range}) {
		const region subject = full(2);

		subject.truncate(granule + 10);
		subject.allocate(granule, granule + 17, mode);
		EXPECT_EQ(subject.length(), 2 * granule + 17);
		EXPECT_EQ(referenced(subject), 3u);
		EXPECT_TRUE(range_is(subject, granule + 10, granule + 7, 0));
		EXPECT_EQ(subject.read(granule, 1)[0],
			  static_cast<std::byte>(mode == zero_range ? 0 : 2));
		/* Away from its end, too. */
		subject.allocate(7 * granule, 1, mode);
		EXPECT_EQ(subject.length(), 7 * granule + 1);
		EXPECT_EQ(referenced(subject), 4u);
	}
}

TEST_P(fallocating, keeps_the_size_and_what_it_allocated_beyond)
{
	for (const int mode : {keep_size, zero_range | keep_size,
			       unshare_range | keep_size}) {
		const region subject = create(2);
		const mapping map(subject.fd(), 4 * granule);

		fill_granule(subject, 0, 1);
		subject.allocate(granule, 3 * granule, mode);
		EXPECT_EQ(subject.length(), 2 * granule);
		EXPECT_EQ(referenced(subject), 4u);
		EXPECT_EQ(signal_of_load(&in(map, 1)[0]), 0);
		/* It is allocated, and beyond the end all the same. */
		EXPECT_EQ(signal_of_load(&in(map, 2)[0]), SIGBUS);
		EXPECT_EQ(signal_of_store(&in(map, 2)[0]), SIGBUS);
		EXPECT_EQ(::lseek(subject.fd(), 0, SEEK_HOLE),
			  static_cast<off_t>(2 * granule));

		/* The fork has it as well. */
		const region child = subject.fork();

		EXPECT_EQ(referenced(child), 4u);
		subject.truncate(3 * granule);
		EXPECT_EQ(referenced(subject), 4u);
		EXPECT_TRUE(granule_is(subject, 2, 0));
		subject.truncate(3 * granule);
		EXPECT_EQ(referenced(subject), 3u);
		child.truncate(granule + 1);
		EXPECT_EQ(referenced(child), 2u);
		child.truncate(4 * granule);
		EXPECT_TRUE(range_is(child, granule, 3 * granule, 0));
		EXPECT_EQ(referenced(child), 2u);
	}
}

/* A store may reach the rest of the last page; it does not stay there. */
TEST_P(fallocating, does_not_bring_back_what_was_stored_beyond_the_end)
{
	for (const int mode : modes) {
		const region subject = create(1);

		subject.truncate(100);

		const mapping map(subject.fd(), granule);

		fill(map.page(0), 0xff);
		subject.allocate(0, 2 * granule, mode);
		if (subject.length() == 100)
			subject.truncate(2 * granule);
		EXPECT_TRUE(range_is(subject, 100, 2 * granule - 100, 0))
			<< mode;
	}
}

TEST_P(fallocating, punches_nothing_beyond_the_end)
{
	const region subject = full(2);

	subject.truncate(granule + 10);
	subject.punch(2 * granule, 5 * granule);
	EXPECT_EQ(subject.length(), granule + 10);
	EXPECT_EQ(referenced(subject), 2u);
	subject.punch(granule + 5, 9 * granule);
	EXPECT_EQ(subject.length(), granule + 10);
	EXPECT_TRUE(range_is(subject, granule, 5, 2));
	EXPECT_TRUE(range_is(subject, granule + 5, 5, 0));
	/* What KEEP_SIZE allocated there is something. */
	subject.allocate(2 * granule, 2 * granule, keep_size);
	EXPECT_EQ(referenced(subject), 4u);
	subject.punch(2 * granule, 2 * granule);
	EXPECT_EQ(referenced(subject), 2u);
	subject.punch(0, largest_length);
	EXPECT_EQ(referenced(subject), 0u);
	EXPECT_EQ(held(), 0u);
}

/* What is in the page tables when it happens. */
TEST_P(fallocating_huge, is_seen_through_mappings)
{
	const region parent = create(4);
	const mapping map = parent.map();

	/* The zero page, then a page. */
	EXPECT_TRUE(is_all(in(map, 0), 0));
	parent.allocate(0, granule);
	EXPECT_TRUE(is_all(in(map, 0), 0));
	fill(in(map, 0), 5);
	EXPECT_TRUE(granule_is(parent, 0, 5));
	parent.write(3, bytes_of(1, 6));
	EXPECT_EQ(in(map, 0)[3], std::byte{6});

	/* A dirty page, then the zero page, then another page. */
	for (const int mode : {punch_hole, zero_range}) {
		fill(in(map, 1), 7);
		parent.allocate(granule, granule, mode);
		EXPECT_TRUE(is_all(in(map, 1), 0));
		EXPECT_TRUE(granule_is(parent, 1, 0));
		fill(in(map, 1), 8);
		EXPECT_TRUE(granule_is(parent, 1, 8));
	}

	/* Parts, of pages that are mapped writable or read-only, or shared. */
	fill(in(map, 2), 9);
	parent.punch(2 * granule + 10, 10);

	const region snapshot = parent.snapshot();
	const mapping shown = snapshot.map(PROT_READ);

	EXPECT_EQ(in(map, 2)[9], std::byte{9});
	EXPECT_EQ(in(map, 2)[10], std::byte{0});
	EXPECT_EQ(in(shown, 2)[10], std::byte{0});
	parent.punch(2 * granule + 20, 10);
	EXPECT_EQ(in(map, 2)[20], std::byte{0});
	EXPECT_EQ(in(shown, 2)[20], std::byte{9});
	fill(in(map, 2), 1);
	parent.punch(0, 4 * granule);
	EXPECT_TRUE(is_all(map.bytes(), 0));
	EXPECT_EQ(in(shown, 2)[20], std::byte{9});
	EXPECT_TRUE(is_all(in(shown, 1), 8));
	EXPECT_EQ(in(shown, 0)[3], std::byte{6});
}

TEST_P(fallocating, unshares_under_mappings)
{
	const region parent = full(3);
	const mapping map = parent.map();

	EXPECT_TRUE(is_all(in(map, 0), 1));

	const region child = parent.fork();
	const mapping child_map = child.map();

	/* Mapped read-only on both sides. */
	EXPECT_TRUE(is_all(in(map, 1), 2));
	EXPECT_TRUE(is_all(in(child_map, 1), 2));
	parent.unshare(0, 3 * granule);
	fill(in(map, 1), 50);
	parent.write(2 * granule, bytes_of(granule, 51));
	fill(in(child_map, 0), 52);
	EXPECT_TRUE(is_all(in(child_map, 1), 2));
	EXPECT_TRUE(is_all(in(child_map, 2), 3));
	EXPECT_TRUE(is_all(in(map, 0), 1));
	EXPECT_TRUE(granule_is(parent, 1, 50));
	EXPECT_TRUE(is_all(in(map, 2), 51));
	EXPECT_EQ(parent.stat().copies, 3u);
	EXPECT_EQ(child.stat().copies, 0u);
}

TEST_P(fallocating, is_found_by_diff_and_taken_back_by_restore)
{
	const region parent = full(6);
	const region snapshot = parent.snapshot();

	parent.punch(granule, 2 * granule);
	parent.zero(4 * granule, granule);

	const std::vector<cowsnap_range> ranges = parent.diff(snapshot);

	ASSERT_EQ(ranges.size(), 2u);
	EXPECT_EQ(ranges[0].offset, granule);
	EXPECT_EQ(ranges[0].length, 2 * granule);
	EXPECT_EQ(ranges[0].flags, COWSNAP_RANGE_F_HOLE);
	EXPECT_EQ(ranges[1].offset, 4 * granule);
	EXPECT_EQ(ranges[1].length, granule);
	EXPECT_EQ(ranges[1].flags, 0u);
	EXPECT_EQ(parent.restore(snapshot), 3 * granule);
	EXPECT_EQ(changed_granule(parent, 6), -1);
	EXPECT_EQ(held(), 6u);
}

TEST_P(fallocating, leaves_a_page_to_who_holds_it)
{
	const region subject = full(2);
	const mapping map = subject.map();
	const page_in_a_pipe held(map.page(0));

	subject.punch(0, granule);
	EXPECT_EQ(referenced(subject), 1u);
	fill(in(map, 0), 9);
	EXPECT_TRUE(is_all(held.read(), 1));
	EXPECT_TRUE(granule_is(subject, 0, 9));
}

TEST_P(fallocating_huge, makes_room_that_cannot_be_lost)
{
	const region subject = create(8, 6);
	const mapping map = subject.map();

	subject.allocate(0, 4 * granule);
	fill_granule(subject, 6, 1);
	fill_granule(subject, 7, 1);
	/* The family is full, and what was allocated takes stores and writes. */
	EXPECT_EQ(signal_of_store(&in(map, 4)[0]), SIGBUS);
	for (std::size_t i = 0; i < 4; i++)
		EXPECT_EQ(signal_of_store(&in(map, i)[0]), 0) << i;
	fill_granule(subject, 3, 2);
	EXPECT_EQ(held(), 6u);
}

TEST_P(fallocating, unshares_what_then_cannot_fail_at_a_limit)
{
	const region parent = full(4, 6);
	const mapping map = parent.map();
	const region snapshot = parent.snapshot();

	parent.unshare(0, 2 * granule);
	EXPECT_EQ(held(), 6u);
	EXPECT_EQ(signal_of_store(&in(map, 2)[0]), SIGBUS);
	EXPECT_EQ(signal_of_store(&in(map, 0)[0], 1), 0);
	EXPECT_EQ(signal_of_store(&in(map, 1)[0], 2), 0);
	fill_granule(parent, 0, 1);
	EXPECT_EQ(changed_granule(parent, 4), -1);
	EXPECT_EQ(changed_granule(snapshot, 4), -1);
}

TEST_P(fallocating, stops_at_a_limit_and_keeps_what_it_has)
{
	const region subject = create(8, 4);

	fill_granule(subject, 1, 9);
	EXPECT_EQ(error_of(subject, 0, 0, 8 * granule), ENOSPC);
	EXPECT_EQ(referenced(subject), 4u);
	EXPECT_EQ(held(), 4u);
	EXPECT_TRUE(granule_is(subject, 0, 0));
	EXPECT_TRUE(granule_is(subject, 1, 9));
	EXPECT_EQ(::lseek(subject.fd(), 0, SEEK_HOLE),
		  static_cast<off_t>(4 * granule));
	/* What there is is there already. */
	EXPECT_EQ(error_of(subject, 0, 0, 4 * granule), 0);
	/* The length does not grow for what is not there. */
	EXPECT_EQ(error_of(subject, 0, 6 * granule, 4 * granule), ENOSPC);
	EXPECT_EQ(subject.length(), 8 * granule);
	/* No more than that is wrong with an offset far away. */
	EXPECT_EQ(error_of(subject, keep_size, 0, largest_length), ENOSPC);
	subject.punch(0, granule);
	EXPECT_EQ(error_of(subject, 0, 5 * granule, granule), 0);
	EXPECT_EQ(held(), 4u);
}

TEST_P(fallocating, stops_unsharing_at_a_limit_and_keeps_what_it_has)
{
	const region parent = full(4, 6);
	const region snapshot = parent.snapshot();

	EXPECT_EQ(error_of(parent, unshare_range, 0, 4 * granule), ENOSPC);
	EXPECT_EQ(exclusive(parent), 2u);
	EXPECT_EQ(held(), 6u);
	EXPECT_EQ(changed_granule(parent, 4), -1);
	EXPECT_EQ(changed_granule(snapshot, 4), -1);
}

TEST_P(fallocating, punches_at_a_limit)
{
	const region parent = full(4, 4);
	const region snapshot = parent.snapshot();

	/* Half of a shared granule stays, in a copy that there is no room for. */
	EXPECT_EQ(error_of(parent, punch_hole, granule / 2, 2 * granule), ENOSPC);
	EXPECT_EQ(changed_granule(parent, 4), -1);
	EXPECT_EQ(error_of(parent, punch_hole, 0, 2 * granule + granule / 2),
		  ENOSPC);
	EXPECT_EQ(changed_granule(parent, 4), -1);
	EXPECT_EQ(changed_granule(snapshot, 4), -1);
	EXPECT_EQ(error_of(parent, punch_hole, granule, 2 * granule), 0);
	EXPECT_TRUE(range_is(parent, granule, 2 * granule, 0));
	EXPECT_EQ(changed_granule(snapshot, 4), -1);
	EXPECT_EQ(held(), 4u);
}

TEST_P(fallocating, zeroes_at_a_limit)
{
	region parent = full(4, 4);

	/* It gives back before it takes. */
	EXPECT_EQ(error_of(parent, zero_range, 0, 3 * granule), 0);
	EXPECT_TRUE(range_is(parent, 0, 3 * granule, 0));
	EXPECT_TRUE(granule_is(parent, 3, 4));
	EXPECT_EQ(held(), 4u);

	const region snapshot = parent.snapshot();

	EXPECT_EQ(error_of(parent, zero_range, 3 * granule, granule), ENOSPC);
	EXPECT_TRUE(granule_is(snapshot, 3, 4));
	EXPECT_EQ(held(), 4u);
}

TEST_P(fallocating, keeps_to_max_bytes)
{
	const region subject = create(8);

	{
		const max_bytes_parameter lowered(counters(dev).held_bytes +
						  3 * granule);

		EXPECT_EQ(error_of(subject, 0, 0, 8 * granule), ENOSPC);
		EXPECT_EQ(referenced(subject), 3u);
	}
	EXPECT_EQ(error_of(subject, 0, 0, 8 * granule), 0);
	EXPECT_EQ(referenced(subject), 8u);
}

TEST_P(fallocating_huge, is_what_madv_remove_does)
{
	const region parent = full(4);
	const mapping map = parent.map();
	const region snapshot = parent.snapshot();
	const mapping shown = snapshot.map(PROT_READ);

	EXPECT_EQ(::madvise(in(map, 1).data(), 2 * granule, MADV_REMOVE), 0);
	EXPECT_TRUE(is_all(in(map, 1), 0));
	EXPECT_TRUE(granule_is(parent, 2, 0));
	EXPECT_TRUE(granule_is(parent, 3, 4));
	EXPECT_EQ(referenced(parent), 2u);
	EXPECT_EQ(changed_granule(snapshot, 4), -1);
	/* A single page of a larger granule is zeroed. */
	EXPECT_EQ(::madvise(in(map, 3).data(), page_size, MADV_REMOVE), 0);
	EXPECT_TRUE(is_all(in(map, 3).first(page_size), 0));
	EXPECT_TRUE(is_all(in(map, 3).subspan(page_size), 4));
	/* What cannot be written is not removed. */
	EXPECT_EQ(::madvise(shown.data(), granule, MADV_REMOVE), -1);
	EXPECT_EQ(errno, EACCES);
	EXPECT_EQ(changed_granule(snapshot, 4), -1);
}

/*
 * What a region must hold: bytes, and granules that are there.  Beyond the end
 * the bytes are zero.
 */
class model {
public:
	model(std::size_t granule, std::size_t granules)
		: granule_(granule), bytes_(granule * granules)
	{
	}

	std::uint64_t length() const { return length_; }
	std::size_t room() const { return bytes_.size(); }
	const std::set<std::size_t> &there() const { return there_; }
	std::span<const std::byte> bytes() const
	{
		return std::span(bytes_).first(length_);
	}

	void write(std::size_t offset, std::span<const std::byte> bytes)
	{
		std::ranges::copy(bytes, bytes_.begin() +
						 static_cast<std::ptrdiff_t>(offset));
		touch(offset, bytes.size());
		length_ = std::max<std::uint64_t>(length_, offset + bytes.size());
	}
	void truncate(std::size_t length)
	{
		if (length <= length_) {
			fill(std::span(bytes_).subspan(length), 0);
			there_.erase(there_.lower_bound(
					     (length + granule_ - 1) / granule_),
				     there_.end());
		}
		length_ = length;
	}
	void allocate(int mode, std::size_t offset, std::size_t size)
	{
		if (mode == punch_hole || (mode & zero_range))
			punch(offset, size);
		if (mode != punch_hole)
			touch(offset, size);
		if (!(mode & keep_size))
			length_ = std::max<std::uint64_t>(length_, offset + size);
	}

private:
	void touch(std::size_t offset, std::size_t size)
	{
		for (std::size_t i = offset / granule_;
		     i <= (offset + size - 1) / granule_; i++)
			there_.insert(i);
	}
	void punch(std::size_t offset, std::size_t size)
	{
		fill(std::span(bytes_).subspan(offset, size), 0);
		for (std::size_t i = (offset + granule_ - 1) / granule_;
		     (i + 1) * granule_ <= offset + size; i++)
			there_.erase(i);
	}

	std::size_t granule_;
	std::vector<std::byte> bytes_;
	std::uint64_t length_ = 0;
	std::set<std::size_t> there_;
};

/* Random calls on a region, each compared with what the model has. */
class fallocating_at_random : public fallocating {
protected:
	void expect_same(const region &file, const model &wanted) const
	{
		const std::uint64_t length = wanted.length();

		ASSERT_EQ(file.length(), length);
		if (length) {
			const std::vector<std::byte> bytes = file.read(0, length);
			const mapping map = file.map(PROT_READ);

			ASSERT_TRUE(std::ranges::equal(bytes, wanted.bytes()));
			ASSERT_TRUE(std::ranges::equal(map.bytes().first(length),
						       wanted.bytes()));
		}
		ASSERT_EQ(referenced(file), wanted.there().size());
		for (std::size_t i = 0; i * granule < length; i++)
			ASSERT_EQ(is_data(file, i), wanted.there().contains(i))
				<< i;
	}
	bool is_data(const region &file, std::size_t index) const
	{
		const auto offset = static_cast<off_t>(index * granule);

		return ::lseek(file.fd(), offset, SEEK_DATA) == offset;
	}

	/* A place to begin at or to end at: often where granules meet. */
	std::size_t place(const model &state)
	{
		const std::size_t at = random_.below(state.room() + 1);

		return random_.one_in(2) ? at / granule * granule : at;
	}

	void step(const region &file, model &state)
	{
		const std::size_t first = place(state), second = place(state);
		const std::size_t offset = std::min(first, second);
		const std::size_t size = std::max(first, second) - offset;

		if (random_.one_in(6)) {
			file.truncate(offset);
			state.truncate(offset);
		} else if (!size) {
			return;
		} else if (random_.one_in(3)) {
			write(file, state, offset,
			      std::min(size, 2 * granule));
		} else {
			const int mode = modes[random_.below(modes.size())];

			file.allocate(offset, size, mode);
			state.allocate(mode, offset, size);
		}
	}

	chance random_{GetParam()};

private:
	void write(const region &file, model &state, std::size_t offset,
		   std::size_t size)
	{
		const auto bytes = bytes_of(
			size, static_cast<unsigned int>(random_.between(1, 255)));

		if (random_.one_in(2) && offset + size <= state.length())
			std::ranges::copy(bytes,
					  file.map().data() + offset);
		else
			file.write(offset, bytes);
		state.write(offset, bytes);
	}
};

INSTANTIATE_TEST_SUITE_P(, fallocating_at_random,
			 testing::Values(page_shift, page_shift + 2, page_shift + 6),
			 name_of);

TEST_P(fallocating_at_random, does_what_the_model_does)
{
	constexpr std::size_t granules = 24;
	const std::size_t rounds = scaled(GetParam() < page_shift + 2   ? 400
					  : GetParam() < page_shift + 6 ? 200
									: 25);
	const region subject = create(0);
	/* The zero page and others' pages are mapped over all of it. */
	const mapping map(subject.fd(), granules * granule);
	model state(granule, granules);
	std::optional<std::pair<region, model>> snapshot;

	for (std::size_t round = 0; round < rounds; round++) {
		SCOPED_TRACE("round " + std::to_string(round));
		step(subject, state);
		for (std::size_t page = 0; page * page_size < state.length();
		     page += 3)
			(void)map.load(page);
		if (round % 4 == 3) {
			ASSERT_NO_FATAL_FAILURE(expect_same(subject, state));
		}
		if (!random_.one_in(20))
			continue;
		if (snapshot) {
			ASSERT_NO_FATAL_FAILURE(
				expect_same(snapshot->first, snapshot->second));
		}
		snapshot.emplace(subject.snapshot(), state);
	}
	ASSERT_NO_FATAL_FAILURE(expect_same(subject, state));
}

class fallocate_errors : public cowsnap_fixture {
protected:
	void TearDown() override
	{
		subject.close();
		cowsnap_fixture::TearDown();
	}

	region subject = dev.create_pages(4);
};

TEST_F(fallocate_errors, einval_for_a_range_that_is_none)
{
	for (const int mode : modes) {
		EXPECT_EQ(error_of(subject.fd(), mode, -1, 1), EINVAL) << mode;
		EXPECT_EQ(error_of(subject.fd(), mode, 0, 0), EINVAL) << mode;
		EXPECT_EQ(error_of(subject.fd(), mode, 0, -1), EINVAL) << mode;
	}
	EXPECT_EQ(subject.stat().referenced, 0u);
}

TEST_F(fallocate_errors, efbig_for_a_range_that_no_file_has)
{
	constexpr off_t last = std::numeric_limits<off_t>::max();

	for (const int mode : modes) {
		EXPECT_EQ(error_of(subject.fd(), mode, last, 1), EFBIG) << mode;
		EXPECT_EQ(error_of(subject.fd(), mode, 1, last), EFBIG) << mode;
		EXPECT_EQ(error_of(subject.fd(), mode, last, last), EFBIG) << mode;
	}
	EXPECT_EQ(subject.length(), 4 * page_size);
	/* The last byte that a file can have. */
	EXPECT_EQ(error_of(subject.fd(), 0, last - 1, 1), 0);
	EXPECT_EQ(subject.length(), largest_length);
	EXPECT_EQ(subject.stat().referenced, page_size);
	EXPECT_EQ(error_of(subject.fd(), punch_hole, 1, last - 1), 0);
	EXPECT_EQ(error_of(subject.fd(), punch_hole, 0, last), 0);
}

TEST_F(fallocate_errors, efbig_beyond_the_file_size_limit)
{
	rlimit before_it = {};

	std::signal(SIGXFSZ, SIG_IGN);
	check(::getrlimit(RLIMIT_FSIZE, &before_it), "getrlimit");
	{
		const rlimit low = {6 * page_size, before_it.rlim_max};

		check(::setrlimit(RLIMIT_FSIZE, &low), "setrlimit");
	}
	for (const int mode : {0, zero_range, unshare_range}) {
		EXPECT_EQ(error_of(subject, mode, 0, 6 * page_size + 1), EFBIG)
			<< mode;
		EXPECT_EQ(error_of(subject, mode, 100 * page_size, 1), EFBIG)
			<< mode;
	}
	EXPECT_EQ(subject.length(), 4 * page_size);
	EXPECT_EQ(subject.stat().referenced, 0u);
	EXPECT_EQ(error_of(subject, punch_hole, 0, 100 * page_size), 0);
	EXPECT_EQ(error_of(subject, 0, 0, 6 * page_size), 0);
	EXPECT_EQ(subject.length(), 6 * page_size);
	check(::setrlimit(RLIMIT_FSIZE, &before_it), "setrlimit");
	std::signal(SIGXFSZ, SIG_DFL);
}

TEST_F(fallocate_errors, eperm_on_a_snapshot)
{
	subject.fill_page(1, 1);

	const region snapshot = subject.snapshot();

	for (const int mode : modes) {
		EXPECT_EQ(error_of(snapshot, mode, 0, page_size), EPERM) << mode;
		EXPECT_EQ(error_of(snapshot, mode, page_size, 10), EPERM) << mode;
		EXPECT_EQ(error_of(snapshot, mode, 9 * page_size, 10), EPERM)
			<< mode;
		/* What the core looks at is told first. */
		EXPECT_EQ(error_of(snapshot, mode, 0, 0), EINVAL) << mode;
		EXPECT_EQ(error_of(snapshot, mode, 1, largest_length), EFBIG)
			<< mode;
	}
	EXPECT_TRUE(is_all(snapshot.read_page(1), 1));
	EXPECT_EQ(snapshot.stat().referenced, page_size);
	EXPECT_EQ(snapshot.length(), 4 * page_size);
}

TEST_F(fallocate_errors, eopnotsupp_for_what_regions_cannot_do)
{
	subject.fill_page(1, 1);
	for (const int mode :
	     {FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE,
	      /* A punch keeps the size, and says so. */
	      FALLOC_FL_PUNCH_HOLE, punch_hole | zero_range,
	      FALLOC_FL_NO_HIDE_STALE, 0x80, 0x100, 0x40000000}) {
		EXPECT_EQ(error_of(subject, mode, 0, page_size), EOPNOTSUPP)
			<< mode;
		EXPECT_EQ(error_of(subject, mode, 0, 0), EINVAL) << mode;
	}
	EXPECT_TRUE(is_all(subject.read_page(1), 1));
	EXPECT_EQ(subject.length(), 4 * page_size);
	EXPECT_EQ(subject.stat().referenced, page_size);
}

/* Combinations for which the kernels have different words. */
TEST_F(fallocate_errors, refuse_modes_that_exclude_each_other)
{
	for (const int mode :
	     {punch_hole | unshare_range, zero_range | unshare_range,
	      FALLOC_FL_COLLAPSE_RANGE | keep_size,
	      FALLOC_FL_INSERT_RANGE | keep_size,
	      FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE}) {
		const int error = error_of(subject, mode, 0, page_size);

		EXPECT_TRUE(error == EOPNOTSUPP || error == EINVAL)
			<< mode << ": " << error;
	}
	EXPECT_EQ(subject.stat().referenced, 0u);
}

TEST_F(fallocate_errors, ebadf_and_enodev_for_other_files)
{
	EXPECT_EQ(error_of(-1, 0, 0, 1), EBADF);
	EXPECT_EQ(error_of(dev.fd(), 0, 0, 1), ENODEV);
	EXPECT_EQ(error_of(dev.fd(), punch_hole, 0, 1), ENODEV);
}

TEST_F(fallocate_errors, posix_fallocate_tells_them_too)
{
	const auto page = static_cast<off_t>(page_size);
	const region snapshot = subject.snapshot();
	const region limited = dev.create(0, page_size);

	EXPECT_EQ(::posix_fallocate(subject.fd(), 10, 5 * page), 0);
	EXPECT_EQ(subject.length(), 5 * page_size + 10);
	EXPECT_EQ(subject.stat().referenced, 6 * page_size);
	EXPECT_EQ(::posix_fallocate(subject.fd(), 0, 0), EINVAL);
	EXPECT_EQ(::posix_fallocate(subject.fd(), -1, 1), EINVAL);
	EXPECT_EQ(::posix_fallocate(snapshot.fd(), 0, 1), EPERM);
	EXPECT_EQ(::posix_fallocate(limited.fd(), 0, 2 * page), ENOSPC);
	EXPECT_EQ(limited.length(), 0u);
}

class long_allocations : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 16384;
};

TEST_F(long_allocations, are_not_interrupted_by_signals_that_do_not_kill)
{
	const region subject = dev.create(0);

	do {
		subject.truncate(0);
		{
			const alarm_storm storm(500, 0);

			ASSERT_EQ(error_of(subject, 0, 0, pages * page_size), 0);
		}
		ASSERT_EQ(subject.stat().referenced, pages * page_size);
	} while (!alarm_storm::count());
}

TEST_F(long_allocations, end_when_they_are_killed)
{
	const std::uint64_t cap = dev.query().max_bytes;
	const region subject = dev.create(0);
	std::size_t cut_short = 0;

	for (std::size_t round = 0; round < 5; round++) {
		subject.truncate(0);

		/* More than there is room for: left alone it would meet the cap. */
		child process([&] {
			(void)::fallocate(subject.fd(), keep_size, 0,
					  off_t{1} << 40);
			::pause();
		});

		ASSERT_TRUE(eventually([&] {
			return counters(dev).held_bytes >=
			       before.held_bytes + 100 * page_size;
		}));
		process.finish(SIGKILL);
		EXPECT_TRUE(process.killed_by(SIGKILL));

		/* What it allocated stays, and is all there is. */
		const std::uint64_t left = subject.stat().referenced;

		EXPECT_EQ(counters(dev).held_bytes, before.held_bytes + left);
		EXPECT_GE(left, 100 * page_size);
		EXPECT_EQ(subject.length(), 0u);
		cut_short += left < cap / 2;
	}
	EXPECT_GT(cut_short, 0u);
	subject.fill_page(0, 1);
	EXPECT_TRUE(is_all(subject.read_page(0), 1));
}

/*
 * A thread stores words in the order of their places, and others in the opposite
 * order, from the end of a page that is punched in part to the beginning of
 * another; and punches them all.  At any instant the words that come first have
 * the round's number and the others are zero, in either order.
 */
class punching : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 400;

	struct pair {
		std::uint64_t up, down;
	};

	/* A half of the first and of the last page stay. */
	static std::vector<std::size_t> places()
	{
		std::vector<std::size_t> made = {page_size - sizeof(pair)};

		for (std::size_t page = 1; page < pages - 1; page += 17)
			made.push_back(page * page_size);
		made.push_back((pages - 1) * page_size);
		return made;
	}

	/* Where something comes after nothing, or another round's. */
	static std::optional<std::string>
	out_of_order(const std::vector<std::uint64_t> &values)
	{
		for (std::size_t i = 1; i < values.size(); i++)
			if (values[i] && values[i] != values[i - 1])
				return "position " + std::to_string(i) + " has " +
				       std::to_string(values[i]) + " after " +
				       std::to_string(values[i - 1]);
		return std::nullopt;
	}

	/* Where a punch was seen in part. */
	static std::optional<std::string> halfway(const region &snapshot)
	{
		std::vector<std::uint64_t> up, down;

		for (const std::size_t place : places()) {
			pair words = {};

			snapshot.read(place, std::as_writable_bytes(
						     std::span(&words, 1)));
			up.push_back(words.up);
			down.push_back(words.down);
		}
		std::ranges::reverse(down);

		const auto where = out_of_order(up);

		return where ? where : out_of_order(down);
	}

	static void fill_in(const mapping &map, std::uint64_t round)
	{
		const std::vector<std::size_t> all = places();
		const auto at = [&map](std::size_t place) {
			return reinterpret_cast<pair *>(map.data() + place);
		};

		for (std::size_t i = 0; i < all.size(); i++)
			__atomic_store_n(&at(all[i])->up, round, __ATOMIC_RELEASE);
		for (std::size_t i = all.size(); i-- > 0;)
			__atomic_store_n(&at(all[i])->down, round,
					 __ATOMIC_RELEASE);
	}

	/* Snapshots, until it is @enough of them, beside who fills and @punches. */
	template <typename Punches, typename Enough>
	void snapshots_beside(Punches &&punches, Enough &&enough)
	{
		const region parent = dev.create_pages(pages);
		std::atomic<bool> stop = false;
		std::thread puncher([&] {
			const mapping map = parent.map();

			for (std::uint64_t round = 1; !stop; round++) {
				fill_in(map, round);
				punches(parent);
			}
		});

		while (!enough(parent.snapshot()))
			;
		stop = true;
		puncher.join();
	}
};

TEST_F(punching, control_in_two_calls_is_seen_halfway)
{
	const deadline end = scaled_deadline(std::chrono::seconds(20));
	const std::size_t middle = pages / 2 * page_size;
	bool seen = false;

	snapshots_beside(
		[=](const region &file) {
			file.punch(page_size / 2, middle);
			file.punch(page_size / 2 + middle,
				   (pages - 1) * page_size - middle);
		},
		[&](const region &snapshot) {
			seen = halfway(snapshot).has_value();
			return seen || passed(end);
		});
	EXPECT_TRUE(seen) << "the snapshots do not show what the test looks for";
}

TEST_F(punching, is_seen_by_a_fork_as_a_whole_or_not_at_all)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(2000));
	std::size_t snapshots = 0;

	snapshots_beside(
		[](const region &file) {
			file.punch(page_size / 2, (pages - 1) * page_size);
		},
		[&](const region &snapshot) {
			const auto where = halfway(snapshot);

			EXPECT_FALSE(where) << *where;
			snapshots++;
			return where || (snapshots > 10 && passed(end));
		});
}

/* Whoever stores at the time: what a mapping shows is what the region holds. */
TEST_F(punching, leaves_no_page_in_a_mapping)
{
	constexpr std::size_t count = 256;
	const std::size_t rounds = scaled(50);
	const region subject = dev.create_pages(count);
	const mapping map = subject.map();
	std::atomic<bool> stop = false, pause = false, paused = false;
	std::thread writer([&] {
		for (std::uint64_t value = 1; !stop; value++) {
			for (std::size_t page = 0; page < count && !pause; page++)
				map.store(page, value);
			if (!pause)
				continue;
			paused = true;
			while (pause && !stop)
				std::this_thread::yield();
			paused = false;
		}
	});

	for (std::size_t round = 0; round < rounds; round++) {
		if (round % 3)
			subject.punch(0, count * page_size);
		else
			subject.zero(0, count * page_size);
		pause = true;
		while (!paused)
			std::this_thread::yield();
		for (std::size_t page = 0; page < count; page++) {
			std::uint64_t value = 0;

			subject.read(page * page_size,
				     std::as_writable_bytes(
					     std::span(&value, 1)));
			EXPECT_EQ(value, map.load(page)) << page;
		}
		pause = false;
		while (paused)
			std::this_thread::yield();
	}
	stop = true;
	writer.join();
}

/* Everything at once on the same pages; what is left in the end is nothing. */
TEST_F(punching, and_storing_at_the_same_time_leaves_nothing_behind)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(1500));
	const region subject = dev.create_pages(64);
	const mapping map = subject.map();
	std::vector<std::thread> threads;

	for (std::size_t thread = 0; thread < 2; thread++)
		threads.emplace_back([&, thread] {
			chance random(50 + thread);

			while (!passed(end)) {
				const std::size_t page = random.below(64);

				if (random.one_in(8))
					subject.fill_page(page, 1);
				else if (random.one_in(2))
					map.store(page, 1);
				else
					(void)map.load(page);
			}
		});

	chance random(60);
	region child = subject.fork();

	while (!passed(end)) {
		const std::size_t first = random.below(64 * page_size);
		const std::size_t size =
			random.between(1, 64 * page_size - first);

		subject.allocate(first, size, modes[random.below(modes.size())]);
		if (random.one_in(8))
			child = subject.fork();
		if (random.one_in(8))
			child.punch(first, size);
	}
	for (std::thread &thread : threads)
		thread.join();
	child.close();
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  subject.stat().referenced);
	subject.punch(0, 64 * page_size);
	EXPECT_EQ(subject.stat().referenced, 0u);
	EXPECT_EQ(subject.stat().dirty, 0u);
	EXPECT_EQ(counters(dev).held_bytes, before.held_bytes);
	EXPECT_TRUE(is_all(map.bytes(), 0));
	EXPECT_TRUE(is_all(subject.read(0, 64 * page_size), 0));
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
