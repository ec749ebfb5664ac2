// SPDX-License-Identifier: GPL-2.0-only
/*
 * The interface once over, by a program of either word size: the same source is
 * built for 32 bits as well, and must find the same structs behind the same
 * numbers, and regions far larger than what it can address.
 */
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"

using namespace cowsnap_test;

static_assert(sizeof(off_t) == 8);

/* As in ioctl_test, where the compiler might have laid them out differently. */
static_assert(sizeof(cowsnap_query) == 64);
static_assert(alignof(cowsnap_query) == 8);
static_assert(offsetof(cowsnap_query, features) == 24);
static_assert(offsetof(cowsnap_query, nodes) == 56);
static_assert(sizeof(cowsnap_create) == 64);
static_assert(alignof(cowsnap_create) == 8);
static_assert(offsetof(cowsnap_create, length) == 8);
static_assert(offsetof(cowsnap_create, name) == 32);
static_assert(sizeof(cowsnap_fork) == 16);
static_assert(offsetof(cowsnap_fork, fd) == 8);
static_assert(sizeof(cowsnap_fork_entry) == 16);
static_assert(offsetof(cowsnap_fork_entry, fd) == 8);
static_assert(sizeof(cowsnap_fork_many) == 24);
static_assert(alignof(cowsnap_fork_many) == 8);
static_assert(offsetof(cowsnap_fork_many, entries) == 16);
static_assert(sizeof(cowsnap_restore) == 24);
static_assert(alignof(cowsnap_restore) == 8);
static_assert(offsetof(cowsnap_restore, changed) == 16);
static_assert(sizeof(cowsnap_range) == 24);
static_assert(alignof(cowsnap_range) == 8);
static_assert(offsetof(cowsnap_range, flags) == 16);
static_assert(sizeof(cowsnap_diff) == 48);
static_assert(alignof(cowsnap_diff) == 8);
static_assert(offsetof(cowsnap_diff, start) == 16);
static_assert(offsetof(cowsnap_diff, ranges) == 40);
static_assert(sizeof(cowsnap_prepare) == 24);
static_assert(alignof(cowsnap_prepare) == 8);
static_assert(offsetof(cowsnap_prepare, left) == 16);
static_assert(sizeof(cowsnap_stat) == 128);
static_assert(alignof(cowsnap_stat) == 8);
static_assert(offsetof(cowsnap_stat, id) == 16);
static_assert(offsetof(cowsnap_stat, bytes_copied) == 120);

namespace {

/* Beyond what 32 bits can say, and with bits on both sides of them. */
constexpr std::uint64_t far_away = (std::uint64_t{0x123} << 32) + 0x48000;
constexpr std::uint64_t large = std::uint64_t{1} << 44;

class abi : public cowsnap_fixture {
protected:
	void TearDown() override
	{
		subject.close();
		cowsnap_fixture::TearDown();
	}

	mapping map_far(const region &file, int prot = PROT_READ | PROT_WRITE) const
	{
		return {file.fd(), 2 * page_size, prot, MAP_SHARED, far_away};
	}

	region subject = dev.create(large, 0, "large");
};

TEST_F(abi, query)
{
	const cowsnap_query query = dev.query();

	EXPECT_EQ(query.size, sizeof(query));
	EXPECT_EQ(query.abi_version, std::uint32_t{COWSNAP_ABI_VERSION});
	EXPECT_EQ(query.granule_shift_min, page_shift);
	EXPECT_EQ(query.granule_shift_max, 21u);
	EXPECT_GT(query.max_bytes, page_size);
	EXPECT_EQ(query.regions, before.regions + 1);
}

TEST_F(abi, create_and_stat)
{
	const region made = dev.create(large + 5, far_away, "named");
	const cowsnap_stat stat = made.stat();

	EXPECT_EQ(stat.length, large + 5);
	EXPECT_EQ(made.length(), large + 5);
	EXPECT_EQ(stat.family_id, stat.id);
	EXPECT_GT(stat.id, subject.stat().id);
	EXPECT_EQ(stat.granule_shift, page_shift);
	EXPECT_EQ(stat.parent_id, 0u);
	EXPECT_EQ(dev.create(0, 0, {}, 21).stat().granule_shift, 21u);
}

TEST_F(abi, fork)
{
	const mapping map = map_far(subject);

	map.store(0, 1);

	const region child = subject.fork();
	const region snapshot = subject.snapshot();

	map.store(0, 2);
	EXPECT_EQ(map_far(child).load(0), 1u);
	EXPECT_EQ(map_far(snapshot, PROT_READ).load(0), 1u);
	EXPECT_EQ(snapshot.stat().state, std::uint32_t{COWSNAP_STAT_F_READONLY});
	EXPECT_EQ(child.stat().length, large);
	EXPECT_EQ(subject.stat().copies, 1u);
	EXPECT_EQ(subject.stat().bytes_copied, page_size);
}

TEST_F(abi, fork_many)
{
	const region other = dev.create(2 * page_size);

	subject.write(far_away, bytes_of(page_size, 1));
	other.fill_page(1, 2);

	const std::vector<region> forks = dev.fork_all(
		{&subject, &other, &subject}, COWSNAP_FORK_F_READONLY);

	subject.write(far_away, bytes_of(page_size, 3));
	other.fill_page(1, 3);
	EXPECT_TRUE(is_all(forks[0].read(far_away, page_size), 1));
	EXPECT_TRUE(is_all(forks[1].read_page(1), 2));
	EXPECT_TRUE(is_all(forks[2].read(far_away, page_size), 1));
}

TEST_F(abi, restore)
{
	const mapping map = map_far(subject);

	map.store(0, 1);

	const region snapshot = subject.snapshot();

	map.store(0, 2);
	map.store(1, 2);
	EXPECT_EQ(subject.restore(snapshot), 2 * page_size);
	EXPECT_EQ(map.load(0), 1u);
	EXPECT_EQ(map.load(1), 0u);
}

TEST_F(abi, diff)
{
	const region child = subject.fork();

	child.write(far_away, bytes_of(2 * page_size, 1));
	child.write(far_away + 8 * page_size, bytes_of(1, 1));
	child.write(0, bytes_of(1, 0));

	const std::vector<cowsnap_range> ranges =
		child.diff(subject, COWSNAP_DIFF_F_EXACT, page_size,
			   largest_length, 1);

	ASSERT_EQ(ranges.size(), 2u);
	EXPECT_EQ(ranges[0].offset, far_away);
	EXPECT_EQ(ranges[0].length, 2 * page_size);
	EXPECT_EQ(ranges[0].flags, 0u);
	EXPECT_EQ(ranges[1].offset, far_away + 8 * page_size);
	EXPECT_EQ(subject.diff(child, COWSNAP_DIFF_F_EXACT)[0].flags,
		  COWSNAP_RANGE_F_HOLE);
}

TEST_F(abi, prepare)
{
	const mapping map = map_far(subject);

	map.store(0, 1);
	map.store(1, 1);
	EXPECT_EQ(subject.prepare(1), 1u);
	EXPECT_EQ(subject.prepare(std::uint64_t{1} << 32), 0u);
}

TEST_F(abi, structs_are_of_known_sizes)
{
	cowsnap_stat arg = {};

	for (const std::uint32_t size :
	     {0u, static_cast<std::uint32_t>(sizeof(arg)) - 1}) {
		arg.size = size;
		EXPECT_EQ(::ioctl(subject.fd(), COWSNAP_IOC_STAT, &arg), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	EXPECT_EQ(::ioctl(subject.fd(), _IO(COWSNAP_IOC_MAGIC, 0x7f), &arg), -1);
	EXPECT_EQ(errno, ENOTTY);
	EXPECT_EQ(::ioctl(subject.fd(), COWSNAP_IOC_STAT, nullptr), -1);
	EXPECT_EQ(errno, EFAULT);
}

TEST_F(abi, reading_and_writing_far_away)
{
	subject.write(far_away - 5, bytes_of(10, 7));
	EXPECT_TRUE(is_all(subject.read(far_away - 5, 10), 7));
	/* Not what a truncated offset would reach. */
	EXPECT_TRUE(is_all(subject.read(far_away & 0xffffffff, 10), 0));
	EXPECT_EQ(map_far(subject).data()[4], std::byte{7});
	EXPECT_EQ(subject.stat().referenced, 2 * page_size);
}

TEST_F(abi, seeking_far_away)
{
	const auto far = static_cast<off_t>(far_away);

	subject.write(far_away, bytes_of(1, 7));
	EXPECT_EQ(::lseek(subject.fd(), 0, SEEK_DATA), far);
	EXPECT_EQ(::lseek(subject.fd(), far, SEEK_HOLE),
		  far + static_cast<off_t>(page_size));
	EXPECT_EQ(::lseek(subject.fd(), -5, SEEK_END),
		  static_cast<off_t>(large - 5));
	EXPECT_EQ(::lseek(subject.fd(), far, SEEK_SET), far);
	EXPECT_EQ(::read(subject.fd(), std::vector<char>(5).data(), 5), 5);
	EXPECT_EQ(::lseek(subject.fd(), 0, SEEK_CUR), far + 5);
}

TEST_F(abi, mapping_far_away)
{
	const mapping map = map_far(subject);
	const region snapshot = subject.snapshot();

	fill(map.bytes(), 7);
	EXPECT_TRUE(is_all(subject.read(far_away, 2 * page_size), 7));
	EXPECT_TRUE(is_all(snapshot.read(far_away, 2 * page_size), 0));
	subject.truncate(far_away + page_size);
	EXPECT_EQ(signal_of_load(&map.page(0)[0]), 0);
	EXPECT_EQ(signal_of_load(&map.page(1)[0]), SIGBUS);
	EXPECT_EQ(::mmap(nullptr, page_size, PROT_READ, MAP_PRIVATE, subject.fd(),
			 0),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 snapshot.fd(), static_cast<off_t>(far_away)),
		  MAP_FAILED);
	EXPECT_EQ(errno, EPERM);
}

TEST_F(abi, truncating_far_away)
{
	for (const std::uint64_t length :
	     {far_away + 17, std::uint64_t{0}, std::uint64_t{0x100000000},
	      largest_length}) {
		subject.truncate(length);
		EXPECT_EQ(subject.length(), length);
		EXPECT_EQ(subject.stat().length, length);
	}
}

TEST_F(abi, allocating_far_away)
{
	const auto far = static_cast<off_t>(far_away);

	subject.truncate(page_size);
	subject.allocate(far_away, 3 * page_size);
	EXPECT_EQ(subject.length(), far_away + 3 * page_size);
	EXPECT_EQ(subject.stat().referenced, 3 * page_size);
	subject.write(far_away, bytes_of(3 * page_size, 7));
	subject.punch(far_away + page_size, page_size);
	EXPECT_EQ(::lseek(subject.fd(), far, SEEK_HOLE),
		  far + static_cast<off_t>(page_size));
	subject.zero(far_away, 10);
	EXPECT_TRUE(is_all(subject.read(far_away, 10), 0));
	EXPECT_TRUE(is_all(subject.read(far_away + 10, page_size - 10), 7));

	const region snapshot = subject.snapshot();

	subject.unshare(far_away, page_size);
	EXPECT_EQ(subject.stat().exclusive, page_size);
	EXPECT_EQ(::fallocate(snapshot.fd(), 0, far, 1), -1);
	EXPECT_EQ(errno, EPERM);
}

TEST_F(abi, sending_from_far_away)
{
	const memory_file other = make_memfd(0);
	auto from = static_cast<off_t>(far_away);

	subject.write(far_away, bytes_of(100, 7));
	EXPECT_EQ(::sendfile(other.fd(), subject.fd(), &from, 100), 100);
	EXPECT_EQ(from, static_cast<off_t>(far_away + 100));
	EXPECT_TRUE(is_all(other.read(0, 100), 7));
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
