// SPDX-License-Identifier: GPL-2.0-only
/*
 * What may be mapped how, and what the calls that work on mappings do to a
 * region's: each works or is refused.
 */
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/userfaultfd.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "huge_pages.hpp"
#include "ktap.hpp"
#include "machine_code.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

class mappings : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 20;

	/* errno of mmap, 0 when it works. */
	static int map_error(const region &file, int prot, int flags)
	{
		void *const address = ::mmap(nullptr, page_size, prot, flags,
					     file.fd(), 0);

		if (address == MAP_FAILED)
			return errno;
		::munmap(address, page_size);
		return 0;
	}

	/* errno of mprotect. */
	static int protect_error(const mapping &map, int prot)
	{
		return ::mprotect(map.data(), map.size(), prot) ? errno : 0;
	}

	static bool shows_numbers(const mapping &map, unsigned int first = 1)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			if (!is_all(map.page(page),
				    static_cast<unsigned int>(first + page)))
				return false;
		return true;
	}
};

TEST_F(mappings, of_a_writable_region_are_shared)
{
	const region subject = numbered(pages);

	EXPECT_EQ(map_error(subject, PROT_READ, MAP_SHARED), 0);
	EXPECT_EQ(map_error(subject, PROT_READ | PROT_WRITE, MAP_SHARED), 0);
	EXPECT_EQ(map_error(subject, PROT_WRITE, MAP_SHARED), 0);
	EXPECT_EQ(map_error(subject, PROT_NONE, MAP_SHARED), 0);
	EXPECT_EQ(map_error(subject, PROT_READ, MAP_SHARED_VALIDATE), 0);
	EXPECT_EQ(map_error(subject, PROT_READ, MAP_PRIVATE), EINVAL);
	EXPECT_EQ(map_error(subject, PROT_READ | PROT_WRITE, MAP_PRIVATE), EINVAL);
	EXPECT_EQ(map_error(subject.fork(), PROT_READ, MAP_PRIVATE), EINVAL);
}

TEST_F(mappings, of_a_snapshot_are_private_or_read_only)
{
	const region snapshot = numbered(pages).snapshot();

	EXPECT_EQ(map_error(snapshot, PROT_READ, MAP_SHARED), 0);
	EXPECT_EQ(map_error(snapshot, PROT_READ | PROT_WRITE, MAP_SHARED), EPERM);
	EXPECT_EQ(map_error(snapshot, PROT_WRITE, MAP_SHARED), EPERM);
	EXPECT_EQ(map_error(snapshot, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE),
		  EPERM);
	EXPECT_EQ(map_error(snapshot, PROT_READ, MAP_PRIVATE), 0);
	EXPECT_EQ(map_error(snapshot, PROT_READ | PROT_WRITE, MAP_PRIVATE), 0);
}

TEST_F(mappings, take_what_flags_a_memfd_takes)
{
	const region subject = numbered(pages);
	constexpr int prot = PROT_READ | PROT_WRITE;

	EXPECT_EQ(map_error(subject, prot, MAP_SHARED | MAP_NORESERVE), 0);
	EXPECT_EQ(map_error(subject, prot, MAP_SHARED | MAP_POPULATE), 0);
	EXPECT_EQ(map_error(subject, prot, MAP_SHARED | MAP_NONBLOCK), 0);
	EXPECT_EQ(map_error(subject, prot, MAP_SHARED | MAP_STACK), 0);
	EXPECT_EQ(map_error(subject, prot, MAP_SHARED | MAP_HUGETLB), EINVAL);
	EXPECT_EQ(map_error(subject, prot, MAP_SHARED | MAP_GROWSDOWN), EINVAL);
	EXPECT_EQ(map_error(subject, prot, MAP_SHARED_VALIDATE | MAP_SYNC),
		  EOPNOTSUPP);
	/* Nothing lies beyond the largest offset. */
	EXPECT_EQ(::mmap(nullptr, 2 * page_size, prot, MAP_SHARED, subject.fd(),
			 static_cast<off_t>(largest_length - page_size + 1)),
		  MAP_FAILED);
	EXPECT_EQ(errno, EOVERFLOW);
}

#ifdef __aarch64__
/* A copy of a page has no tags of the other's, so a region has none at all. */
TEST_F(mappings, have_no_memory_tags)
{
	constexpr unsigned long cpu_has_tags = 1UL << 18;
	constexpr int prot_tagged = PROT_READ | PROT_WRITE | 0x20;

	if (!(::getauxval(AT_HWCAP2) & cpu_has_tags))
		GTEST_SKIP() << "this CPU has no memory tags";

	const region subject = numbered(pages);
	const mapping map = subject.map();

	EXPECT_EQ(map_error(subject, prot_tagged, MAP_SHARED), EINVAL);
	EXPECT_EQ(::mprotect(map.data(), page_size, prot_tagged), -1);
	EXPECT_EQ(errno, EINVAL);
	anonymous(page_size).protect(prot_tagged);
}
#endif

/* A region may hold code, and a fork of it other code. */
TEST_F(mappings, are_executed)
{
	const region parent = dev.create_pages(1);

	parent.write(0, function_that_returns(1));

	const int refused = map_error(parent, PROT_READ | PROT_EXEC, MAP_SHARED);

	if (refused == EPERM)
		GTEST_SKIP() << "this kernel executes nothing from pseudo files";
	ASSERT_EQ(refused, 0);

	const mapping map = parent.map(PROT_READ | PROT_WRITE | PROT_EXEC);
	const region child = parent.fork();
	const mapping child_map = child.map(PROT_READ | PROT_EXEC);
	const region snapshot = parent.snapshot();
	const mapping shown =
		snapshot.map(PROT_READ | PROT_EXEC, MAP_PRIVATE);

	EXPECT_EQ(call(map), 1);
	EXPECT_EQ(call(child_map), 1);
	std::ranges::copy(function_that_returns(2), map.data());
	child.write(0, function_that_returns(3));
	EXPECT_EQ(call(map), 2);
	EXPECT_EQ(call(child_map), 3);
	EXPECT_EQ(call(shown), 1);
}

TEST_F(mappings, of_a_snapshot_do_not_become_writable)
{
	const region snapshot = numbered(pages).snapshot();
	const mapping map = snapshot.map(PROT_READ);

	EXPECT_TRUE(shows_numbers(map));
	EXPECT_EQ(protect_error(map, PROT_READ | PROT_WRITE), EACCES);
	EXPECT_EQ(protect_error(map, PROT_NONE), 0);
	EXPECT_EQ(protect_error(map, PROT_READ | PROT_WRITE), EACCES);
	EXPECT_EQ(protect_error(map, PROT_READ), 0);
	EXPECT_EQ(signal_of_store(map.data()), SIGSEGV);
	EXPECT_TRUE(shows_numbers(map));

	/* A child process inherits no more. */
	child heir([&] {
		require(protect_error(map, PROT_READ | PROT_WRITE) == EACCES,
			"a child made the mapping writable");
	});
	EXPECT_TRUE(heir.succeeded());
}

TEST_F(mappings, have_the_protection_that_they_were_given)
{
	const region subject = numbered(pages);
	const mapping map = subject.map(PROT_READ);

	EXPECT_EQ(signal_of_store(map.data()), SIGSEGV);
	EXPECT_EQ(protect_error(map, PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(signal_of_store(map.data(), 77), 0);
	EXPECT_EQ(protect_error(map, PROT_NONE), 0);
	EXPECT_EQ(signal_of_load(map.data()), SIGSEGV);
	EXPECT_EQ(protect_error(map, PROT_READ), 0);
	EXPECT_EQ(map.data()[0], std::byte{77});
}

/* A mapping may be longer than the region. */
TEST_F(mappings, reach_to_the_end_of_the_region)
{
	const region subject = dev.create(page_size + 10);
	const mapping map(subject.fd(), 4 * page_size);
	const region snapshot = subject.snapshot();
	const mapping shown(snapshot.fd(), 4 * page_size, PROT_READ);
	const mapping copied(snapshot.fd(), 4 * page_size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE);

	EXPECT_EQ(signal_of_store(map.page(1).data()), 0);
	EXPECT_EQ(signal_of_load(map.page(2).data()), SIGBUS);
	EXPECT_EQ(signal_of_store(map.page(2).data()), SIGBUS);
	EXPECT_EQ(signal_of_load(shown.page(1).data()), 0);
	EXPECT_EQ(signal_of_load(shown.page(2).data()), SIGBUS);
	EXPECT_EQ(signal_of_store(copied.page(1).data()), 0);
	EXPECT_EQ(signal_of_store(copied.page(3).data()), SIGBUS);
	subject.write(3 * page_size, bytes_of(1, 1));
	EXPECT_EQ(signal_of_store(map.page(2).data()), 0);
	EXPECT_EQ(signal_of_load(map.page(3).data()), 0);
	EXPECT_EQ(signal_of_load(shown.page(2).data()), SIGBUS);
}

/* A system call that meets such a page gets an errno, not a signal. */
TEST_F(mappings, beyond_the_end_fail_system_calls)
{
	const region subject = dev.create_pages(1);
	const mapping map(subject.fd(), 2 * page_size);
	const pipe_pair pipe;
	const std::vector<std::byte> bytes = bytes_of(100, 1);

	check(::write(pipe.write_end.get(), bytes.data(), 100), "write");
	EXPECT_EQ(::read(pipe.read_end.get(), map.page(1).data(), 100), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(::write(pipe.write_end.get(), map.page(1).data(), 100), -1);
	EXPECT_EQ(errno, EFAULT);
}

TEST_F(mappings, of_a_part_show_that_part)
{
	const region subject = numbered(pages);
	const mapping map(subject.fd(), 3 * page_size, PROT_READ | PROT_WRITE,
			  MAP_SHARED, 7 * page_size);

	EXPECT_TRUE(shows_numbers(map, 8));

	const region snapshot = subject.snapshot();

	fill(map.bytes(), 99);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_TRUE(is_all(subject.read_page(6), 7));
	EXPECT_TRUE(is_all(subject.read_page(7), 99));
	EXPECT_TRUE(is_all(subject.read_page(9), 99));
	EXPECT_TRUE(is_all(subject.read_page(10), 11));
}

TEST_F(mappings, are_unmapped_in_parts)
{
	const region subject = numbered(pages);
	mapping map = subject.map();
	const region snapshot = subject.snapshot();

	fill(map.bytes(), 50);
	check(::munmap(map.page(5).data(), 3 * page_size), "munmap");
	EXPECT_EQ(signal_of_load(map.page(5).data()), SIGSEGV);
	EXPECT_EQ(signal_of_load(map.page(7).data()), SIGSEGV);
	EXPECT_TRUE(is_all(map.page(4), 50));
	EXPECT_TRUE(is_all(map.page(8), 50));

	const region second = subject.snapshot();

	fill(map.bytes().first(5 * page_size), 51);
	fill(map.bytes().subspan(8 * page_size), 51);
	EXPECT_TRUE(is_all(subject.read_page(5), 50));
	EXPECT_TRUE(is_all(subject.read_page(8), 51));
	EXPECT_TRUE(is_all(second.read(0, pages * page_size), 50));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

TEST_F(mappings, move_and_shrink_but_do_not_grow)
{
	const region subject = numbered(pages);
	mapping map(subject.fd(), 4 * page_size);

	map.move();
	EXPECT_TRUE(shows_numbers(map));
	EXPECT_EQ(::mremap(map.data(), map.size(), 8 * page_size, MREMAP_MAYMOVE),
		  MAP_FAILED);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(::mremap(map.data(), map.size(), 8 * page_size, 0), MAP_FAILED);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(::mremap(map.data(), map.size(), map.size(),
			   MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_TRUE(shows_numbers(map));
	EXPECT_EQ(::mremap(map.data(), map.size(), 2 * page_size, 0), map.data());
	EXPECT_TRUE(is_all(map.page(1), 2));
	EXPECT_EQ(signal_of_load(map.data() + 2 * page_size), SIGSEGV);
}

/* What others may do with a length of 0 is to grow as well. */
TEST_F(mappings, are_not_doubled_by_mremap)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();

	EXPECT_EQ(::mremap(map.data(), 0, page_size, MREMAP_MAYMOVE), MAP_FAILED);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_TRUE(shows_numbers(map));
}

TEST_F(mappings, move_in_parts_and_over_others)
{
	constexpr int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	const region first = numbered(pages);
	const region second = dev.create_pages(pages);
	const mapping from = first.map();
	const mapping to = second.map();

	number_pages(second, pages, 101);
	EXPECT_TRUE(shows_numbers(to, 101));
	fill(from.page(5), 55);
	ASSERT_EQ(::mremap(from.page(4).data(), 3 * page_size, 3 * page_size,
			   flags, to.page(9).data()),
		  to.page(9).data());
	EXPECT_EQ(signal_of_load(from.page(4).data()), SIGSEGV);
	EXPECT_TRUE(is_all(from.page(7), 8));
	EXPECT_TRUE(is_all(to.page(8), 109));
	EXPECT_TRUE(is_all(to.page(9), 5));
	EXPECT_TRUE(is_all(to.page(10), 55));
	EXPECT_TRUE(is_all(to.page(12), 113));

	/* Each of the two still forks what is its own. */
	const region first_then = first.snapshot();
	const region second_then = second.snapshot();

	fill(to.bytes(), 99);
	EXPECT_TRUE(is_all(first.read_page(4), 99));
	EXPECT_TRUE(is_all(second.read_page(12), 99));
	EXPECT_TRUE(is_all(first_then.read_page(4), 5));
	EXPECT_TRUE(is_all(first_then.read_page(5), 55));
	EXPECT_EQ(misnumbered_page(second_then, pages, 101), -1);
	/* What was overlaid is not gone, only not mapped there any more. */
	EXPECT_TRUE(is_all(second.read_page(10), 111));
}

/* mmap(2) over a part of a region's mapping with another region's. */
TEST_F(mappings, are_replaced_in_place)
{
	const region first = numbered(pages);
	const region second = dev.create_pages(pages);
	const mapping map = first.map();

	number_pages(second, pages, 101);
	fill(map.page(6), 77);
	ASSERT_NE(::mmap(map.page(5).data(), 5 * page_size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, second.fd(),
			 static_cast<off_t>(5 * page_size)),
		  MAP_FAILED);
	EXPECT_TRUE(is_all(map.page(4), 5));
	EXPECT_TRUE(is_all(map.page(6), 107));
	fill(map.page(6), 88);
	EXPECT_TRUE(is_all(first.read_page(6), 77));
	EXPECT_TRUE(is_all(second.read_page(6), 88));
}

/* The snapshot at the address that the region had: a process's rollback. */
TEST_F(mappings, of_a_fork_take_the_place_of_its_parent)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	const region child = parent.fork();

	fill(map.bytes(), 99);
	ASSERT_NE(::mmap(map.data(), map.size(), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, child.fd(), 0),
		  MAP_FAILED);
	EXPECT_TRUE(shows_numbers(map));
	fill(map.page(0), 55);
	EXPECT_TRUE(is_all(parent.read_page(0), 99));
	EXPECT_TRUE(is_all(child.read_page(0), 55));
}

TEST_F(mappings, are_rearranged_by_remap_file_pages)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();

	fill(map.page(3), 44);
	ASSERT_EQ(::syscall(SYS_remap_file_pages, map.page(3).data(), page_size, 0,
			    7, 0),
		  0);
	EXPECT_TRUE(is_all(map.page(3), 8));
	EXPECT_TRUE(is_all(subject.read_page(3), 44));

	const region snapshot = subject.snapshot();

	fill(map.page(3), 66);
	EXPECT_TRUE(is_all(map.page(7), 66));
	EXPECT_TRUE(is_all(snapshot.read_page(7), 8));
	EXPECT_TRUE(is_all(snapshot.read_page(3), 44));
}

/* How many page faults of @file's mappings @access takes. */
template <typename Access>
std::uint64_t faults_of(const region &file, Access &&access)
{
	const std::uint64_t before = file.stat().faults;

	access();
	return file.stat().faults - before;
}

/* A fork takes the right to write away, and leaves what can be read. */
TEST_F(mappings, can_be_read_on_after_a_fork)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	fill(map.bytes(), 1);

	const region snapshot = parent.snapshot();

	/* The core is told of the protection by way of one page. */
	EXPECT_LE(faults_of(parent, [&] { EXPECT_TRUE(is_all(map.bytes(), 1)); }),
		  1u);
	EXPECT_EQ(faults_of(parent, [&] { fill(map.bytes(), 2); }), pages);
	EXPECT_EQ(faults_of(parent, [&] { fill(map.bytes(), 3); }), 0u);
	EXPECT_TRUE(is_all(snapshot.read(0, map.size()), 1));
}

/* Neighbours are mapped together; more of them for who reads on and on. */
TEST_F(mappings, of_what_is_read_take_few_faults)
{
	constexpr std::size_t block = 64, around = 16, many = 4 * block;
	const region parent = dev.create_pages(many);

	number_pages(parent, many, 1);

	const region child = parent.fork();
	const region snapshot = parent.snapshot();
	const auto read_on = [](const mapping &map) {
		for (std::size_t page = 0; page < map.pages(); page++)
			(void)map.load(page);
	};

	for (const region *file : {&parent, &child, &snapshot}) {
		const mapping map = file->map(PROT_READ);

		EXPECT_EQ(faults_of(*file, [&] { read_on(map); }),
			  many / block + 1);
		EXPECT_EQ(misnumbered_page(*file, many, 1), -1);
	}
	/* Here and there. */
	for (const region *file : {&parent, &child, &snapshot}) {
		const mapping map = file->map(PROT_READ);

		EXPECT_EQ(faults_of(*file,
				    [&] {
					    for (std::size_t page = many - around / 2;
						 page < many; page -= 2 * around)
						    (void)map.load(page);
				    }),
			  many / (2 * around));
		EXPECT_EQ(smaps(map.data())["Rss:"], many / 2 * page_size);
	}
	/* Not what there is not. */
	child.punch(0, around * page_size);

	const mapping map = child.map();
	const std::uint64_t held = child.stat().referenced;

	EXPECT_EQ(faults_of(child, [&] { read_on(map); }),
		  around + many / block);
	EXPECT_EQ(child.stat().referenced, held);
}

TEST_F(mappings, keep_what_they_hold_through_madvise)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();
	const region snapshot = subject.snapshot();
	unsigned int value = 50;

	for (const int advice :
	     {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED,
	      MADV_DONTNEED, MADV_COLD, MADV_PAGEOUT, MADV_DONTDUMP}) {
		fill(map.bytes(), value);
		ASSERT_EQ(::madvise(map.data(), map.size(), advice), 0) << advice;
		EXPECT_TRUE(is_all(map.bytes(), value)) << advice;

		const region second = subject.snapshot();

		ASSERT_EQ(::madvise(map.data(), map.size(), advice), 0) << advice;
		fill(map.bytes(), 99);
		EXPECT_TRUE(is_all(second.read(0, map.size()), value)) << advice;
		value++;
	}
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

/* Not in the headers of every libc. */
constexpr int advice_dontneed_locked = 24;
constexpr int advice_collapse = 25;
constexpr int advice_guard_install = 102;
constexpr int advice_guard_remove = 103;

/* Pages of a region are neither merged with others nor made huge ones later. */
TEST_F(mappings, ignore_the_advice_of_khugepaged_and_ksm)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();
	const region snapshot = subject.snapshot();

	fill(map.bytes(), 50);
	for (const int advice :
	     {MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_UNMERGEABLE,
	      MADV_KEEPONFORK, advice_dontneed_locked}) {
		const bool unknown =
			(advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE) &&
			!kernel_has_huge_pages();

		EXPECT_EQ(::madvise(map.data(), map.size(), advice),
			  unknown ? -1 : 0)
			<< advice;
		EXPECT_TRUE(is_all(map.bytes(), 50)) << advice;
	}
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

TEST_F(mappings, refuse_the_advice_that_would_lose_data)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const mapping shown = snapshot.map(PROT_READ);

	for (const mapping *target : {&map, &shown}) {
		for (const int advice :
		     {MADV_FREE, MADV_WIPEONFORK, advice_collapse,
		      advice_guard_install, advice_guard_remove, 12345}) {
			EXPECT_EQ(::madvise(target->data(), target->size(), advice),
				  -1)
				<< advice;
			EXPECT_EQ(errno, EINVAL) << advice;
		}
		EXPECT_TRUE(shows_numbers(*target));
	}
}

TEST_F(mappings, are_populated)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	/* Reading makes nothing. */
	check(::madvise(map.data(), map.size(), MADV_POPULATE_READ), "populate");
	EXPECT_EQ(subject.stat().referenced, 0u);
	EXPECT_TRUE(is_all(map.bytes(), 0));
	check(::madvise(map.data(), map.size(), MADV_POPULATE_WRITE), "populate");
	EXPECT_EQ(subject.stat().referenced, pages * page_size);

	/* MAP_POPULATE reads what is shared. */
	const region second = dev.create_pages(pages);
	const mapping populated =
		second.map(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE);

	EXPECT_GT(second.stat().faults, 0u);
	EXPECT_EQ(second.stat().referenced, 0u);

	/* A fork's pages become its own so, before they are needed. */
	const region child = subject.fork();
	const mapping child_map = child.map();

	check(::madvise(child_map.data(), child_map.size(), MADV_POPULATE_WRITE),
	      "populate");
	EXPECT_EQ(child.stat().copies, pages);
	EXPECT_EQ(child.stat().exclusive, pages * page_size);
}

TEST_F(mappings, of_a_snapshot_are_populated)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping copied = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

	check(::madvise(shown.data(), shown.size(), MADV_POPULATE_READ), "populate");
	EXPECT_EQ(::madvise(shown.data(), shown.size(), MADV_POPULATE_WRITE), -1);
	EXPECT_EQ(errno, EINVAL);
	check(::madvise(copied.data(), copied.size(), MADV_POPULATE_WRITE),
	      "populate");

	const std::uint64_t faults = snapshot.stat().faults;

	EXPECT_TRUE(shows_numbers(shown));
	fill(copied.bytes(), 99);
	EXPECT_EQ(snapshot.stat().faults, faults);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

/* mincore(2) tells what this process has mapped; a region has no page cache. */
TEST_F(mappings, tell_what_is_mapped_by_mincore)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();
	const auto resident = [&map] {
		std::vector<unsigned char> pages_in(map.pages());

		check(::mincore(map.data(), map.size(), pages_in.data()), "mincore");
		return std::ranges::count_if(pages_in,
					     [](unsigned char in) { return in & 1; });
	};

	EXPECT_EQ(resident(), 0);
	for (std::size_t page = 0; page < 5; page++)
		map.store(page, 1);
	EXPECT_EQ(resident(), 5);

	/* With what is around it. */
	EXPECT_EQ(map.load(7), 0x0808080808080808u);
	EXPECT_EQ(resident(), 16);
	map.advise(MADV_DONTNEED);
	EXPECT_EQ(resident(), 0);
	map.store(7, 1);

	/* Of another mapping it knows nothing. */
	const mapping other = subject.map();

	EXPECT_EQ(other.load(0), 1u);
	EXPECT_EQ(resident(), 1);
}

TEST_F(mappings, beyond_the_end_are_not_populated)
{
	const region subject = dev.create_pages(1);
	const mapping map(subject.fd(), 2 * page_size);

	EXPECT_EQ(::madvise(map.data(), map.size(), MADV_POPULATE_WRITE), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(::madvise(map.data(), map.size(), MADV_POPULATE_READ), -1);
	EXPECT_EQ(errno, EFAULT);
}

TEST_F(mappings, can_be_locked)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();

	EXPECT_EQ(::mlock(map.data(), map.size()), 0);
	EXPECT_TRUE(shows_numbers(map));

	const region snapshot = subject.snapshot();

	fill(map.bytes(), 99);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_EQ(::munlock(map.data(), map.size()), 0);
	EXPECT_EQ(::mlock2(map.data(), map.size(), MLOCK_ONFAULT), 0);
	fill(map.bytes(), 98);
	EXPECT_EQ(::munlock(map.data(), map.size()), 0);

	const mapping locked = subject.map(PROT_READ, MAP_SHARED | MAP_LOCKED);

	EXPECT_TRUE(is_all(locked.bytes(), 98));
}

/* They stay in memory anyhow, so that nothing is counted against a limit. */
TEST_F(mappings, are_not_counted_as_locked)
{
	const auto locked = [] { return sum_of("/proc/self/status", "VmLck:"); };
	const region subject = dev.create_pages(pages);
	const region snapshot = numbered(pages).snapshot();
	const mapping map = subject.map();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping copied = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const std::uint64_t locked_before = locked();

	for (const mapping *target : {&map, &shown, &copied}) {
		EXPECT_EQ(::mlock(target->data(), target->size()), 0);
		/* It is mapped all the same, and a hole stays one. */
		for (std::size_t page = 0; page < pages; page++)
			EXPECT_TRUE(page_entry(target->page(page).data()).present());
		EXPECT_EQ(::mlock2(target->data(), target->size(), MLOCK_ONFAULT),
			  0);
	}
	EXPECT_EQ(subject.stat().referenced, 0u);

	const mapping at_once = subject.map(PROT_READ, MAP_SHARED | MAP_LOCKED);

	EXPECT_TRUE(page_entry(at_once.page(1).data()).present());
	EXPECT_EQ(locked(), locked_before);
	/* What no lock holds is not kept from being dropped. */
	EXPECT_EQ(::madvise(map.data(), map.size(), MADV_DONTNEED), 0);
	EXPECT_EQ(::msync(map.data(), map.size(), MS_INVALIDATE), 0);
	EXPECT_EQ(::munlock(map.data(), map.size()), 0);
}

/* Every entry has the key, those that a store makes after a FORK as well. */
TEST_F(mappings, keep_their_protection_key)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();
	const int key = ::pkey_alloc(0, 0);
	/* After a signal that was not returned from no key allows anything. */
	const auto allow = [key](unsigned int refused) {
		check(::pkey_set(key, refused), "pkey_set");
	};

	if (key < 0)
		GTEST_SKIP() << "this CPU has no protection keys";
	check(::pkey_mprotect(map.data(), map.size(), PROT_READ | PROT_WRITE, key),
	      "pkey_mprotect");

	const region snapshot = subject.snapshot();

	for (const bool read_before : {false, true}) {
		std::byte *const page = map.page(read_before).data();

		allow(PKEY_DISABLE_WRITE);
		if (read_before) {
			EXPECT_EQ(signal_of_load(page), 0);
		}
		EXPECT_EQ(signal_of_store(page), SIGSEGV);
		EXPECT_EQ(subject.stat().copies, read_before ? 1u : 0u);
		allow(0);
		EXPECT_EQ(signal_of_store(page, 99), 0);
		allow(PKEY_DISABLE_WRITE);
		EXPECT_EQ(signal_of_store(page, 98), SIGSEGV);
		allow(PKEY_DISABLE_ACCESS);
		EXPECT_EQ(signal_of_load(page), SIGSEGV);
		allow(0);
		EXPECT_EQ(*page, std::byte{99});
	}
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	check(::pkey_mprotect(map.data(), map.size(), PROT_READ | PROT_WRITE, 0),
	      "pkey_mprotect");
	check(::pkey_free(key), "pkey_free");
}

/* mseal(2) fixes what is mapped where, not what it holds. */
TEST_F(mappings, can_be_sealed)
{
	constexpr long mseal_number = 462;
	const region subject = numbered(pages);

	if (::syscall(mseal_number, nullptr, 0, 0) != 0)
		GTEST_SKIP() << "this kernel has no mseal";

	/* There is no way back but the end of the process. */
	child sealer([&] {
		const mapping map = subject.map();
		const region snapshot = subject.snapshot();

		require(::syscall(mseal_number, map.data(), map.size(), 0) == 0,
			"it cannot be sealed");
		require(::munmap(map.data(), map.size()) < 0 && errno == EPERM,
			"it was unmapped");
		require(protect_error(map, PROT_READ) == EPERM, "it was protected");
		fill(map.bytes(), 99);
		require(misnumbered_page(snapshot, pages, 1) == -1,
			"the snapshot changed");
		require(subject.restore(snapshot) == pages * page_size,
			"it was not restored");
		require(shows_numbers(map), "it does not show what was restored");
	});
	EXPECT_TRUE(sealer.succeeded());
}

TEST_F(mappings, are_left_to_the_parent_by_dontfork)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();

	map.advise(MADV_DONTFORK);
	child without([&] {
		require(signal_of_load(map.data()) == SIGSEGV,
			"the child inherited the mapping");
	});
	EXPECT_TRUE(without.succeeded());
	/* By 7.3 there is no way back for a special mapping, which a region's is. */
	if (::madvise(map.data(), map.size(), MADV_DOFORK) != 0) {
		EXPECT_EQ(errno, EINVAL);
		return;
	}
	child with([&] { require(shows_numbers(map), "not inherited"); });
	EXPECT_TRUE(with.succeeded());
}

/*
 * Whatever a userfaultfd promises: one that only writes down what is written, and asks
 * nobody, is registered by 6.7 on any VMA that is not special.  It would put entries where
 * there are none, over which no fault inserts another.
 */
void expect_no_userfaultfd_with(std::uint64_t features, std::uint64_t modes,
				const std::vector<const mapping *> &targets)
{
	const mapping plain = anonymous(page_size);
	const unique_fd uffd(
		static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
	uffdio_api api = {UFFD_API, features, 0};

	const auto registers = [&](const mapping &target) {
		uffdio_register arg = {
			{reinterpret_cast<std::uintptr_t>(target.data()), target.size()},
			modes,
			0};

		return ::ioctl(uffd.get(), UFFDIO_REGISTER, &arg) == 0;
	};

	check(uffd.get(), "userfaultfd");
	if (::ioctl(uffd.get(), UFFDIO_API, &api) != 0)
		return; /* A kernel that does not know them. */
	if (modes != UFFDIO_REGISTER_MODE_MINOR) {
		EXPECT_TRUE(registers(plain)) << features << ' ' << modes;
	}
	for (const mapping *target : targets) {
		EXPECT_FALSE(registers(*target)) << features << ' ' << modes;
		EXPECT_TRUE(errno == EINVAL || errno == EPERM) << errno;
	}
}

TEST_F(mappings, refuse_userfaultfd)
{
	/* UFFD_FEATURE_WP_ASYNC of 6.7; of 7.x _RWP and _RWP_ASYNC, and their mode. */
	constexpr std::uint64_t wp_async = 1 << 15;
	constexpr std::uint64_t rwp = 1 << 17;
	constexpr std::uint64_t rwp_async = 1 << 18;
	constexpr std::uint64_t mode_rwp = 1 << 3;
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping copied = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const std::vector<const mapping *> all = {&map, &shown, &copied};

	if (!unique_fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC))))
		GTEST_SKIP() << "this kernel has no userfaultfd";
	for (const std::uint64_t mode :
	     {UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
	      UFFDIO_REGISTER_MODE_MINOR})
		expect_no_userfaultfd_with(0, mode, all);
	expect_no_userfaultfd_with(wp_async, UFFDIO_REGISTER_MODE_WP, all);
	expect_no_userfaultfd_with(rwp, mode_rwp, all);
	expect_no_userfaultfd_with(rwp | rwp_async, mode_rwp, all);
}

TEST_F(mappings, are_read_and_written_from_another_process)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();
	const event done;
	child target([&] { done.wait(); });
	const region snapshot = subject.snapshot();
	std::vector<std::byte> bytes(2 * page_size);
	const iovec local = {bytes.data(), bytes.size()};
	const iovec remote = {map.page(4).data(), bytes.size()};

	EXPECT_EQ(::process_vm_readv(target.pid(), &local, 1, &remote, 1, 0),
		  static_cast<ssize_t>(bytes.size()));
	EXPECT_TRUE(is_all(std::span(bytes).first(page_size), 5));
	EXPECT_TRUE(is_all(std::span(bytes).subspan(page_size), 6));
	fill(bytes, 99);
	EXPECT_EQ(::process_vm_writev(target.pid(), &local, 1, &remote, 1, 0),
		  static_cast<ssize_t>(bytes.size()));
	EXPECT_TRUE(is_all(map.page(4), 99));
	EXPECT_TRUE(is_all(subject.read_page(5), 99));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	done.tell();
	EXPECT_TRUE(target.succeeded());
}

/* The bytes at @address of the process that left the core file. */
std::vector<std::byte> read_core(const std::string &file, const std::byte *address,
				 std::size_t size)
{
	std::ifstream core(file, std::ios::binary);
	Elf64_Ehdr header = {};
	const auto wanted = reinterpret_cast<std::uintptr_t>(address);

	core.read(reinterpret_cast<char *>(&header), sizeof(header));
	if (!core)
		throw std::runtime_error("no core file was written");
	for (unsigned int i = 0; i < header.e_phnum; i++) {
		Elf64_Phdr segment = {};

		core.seekg(static_cast<std::streamoff>(header.e_phoff +
						       i * sizeof(segment)));
		core.read(reinterpret_cast<char *>(&segment), sizeof(segment));
		if (segment.p_type != PT_LOAD || wanted < segment.p_vaddr ||
		    wanted + size > segment.p_vaddr + segment.p_filesz)
			continue;

		std::vector<std::byte> bytes(size);

		core.seekg(static_cast<std::streamoff>(segment.p_offset + wanted -
						       segment.p_vaddr));
		core.read(reinterpret_cast<char *>(bytes.data()),
			  static_cast<std::streamsize>(size));
		return bytes;
	}
	return {};
}

class core_dumps : public mappings {
protected:
	static constexpr const char *default_filter = "0x33";

	void SetUp() override
	{
		std::getline(std::ifstream(pattern_file), pattern);
		std::ofstream(pattern_file) << core;
	}
	void TearDown() override
	{
		std::ofstream(pattern_file) << pattern << '\n';
		std::filesystem::remove(dumped);
		mappings::TearDown();
	}

	/* Has a child with this process's mappings leave a core file. */
	void dump(const char *filter)
	{
		child aborted([filter] {
			const rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};

			check(::setrlimit(RLIMIT_CORE, &unlimited), "setrlimit");
			std::ofstream("/proc/self/coredump_filter") << filter;
			::abort();
		});
		const std::string with_pid =
			core + "." + std::to_string(aborted.pid());
		const int status = aborted.finish();

		ASSERT_TRUE(WIFSIGNALED(status));
		ASSERT_TRUE(WCOREDUMP(status));
		dumped = std::filesystem::exists(with_pid) ? with_pid : core;
	}

	bool holds(const mapping &map) const
	{
		return std::ranges::equal(
			read_core(dumped, map.data(), map.size()), map.bytes());
	}
	bool leaves_out(const mapping &map) const
	{
		return read_core(dumped, map.data(), map.size()).empty();
	}

private:
	static constexpr const char *pattern_file = "/proc/sys/kernel/core_pattern";
	const std::string core =
		std::filesystem::temp_directory_path() / "cowsnap-test-core";
	std::string pattern, dumped;
};

/* As a memfd's, holes and all; of a private mapping what was written to it. */
TEST_F(core_dumps, hold_what_a_memfds_would_by_default)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	fill(map.page(1), 21);

	const region snapshot = subject.snapshot();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping private_read = snapshot.map(PROT_READ, MAP_PRIVATE);
	const mapping private_written =
		snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

	fill(map.page(2), 22);
	fill(private_written.page(3), 23);
	ASSERT_NO_FATAL_FAILURE(dump(default_filter));
	EXPECT_TRUE(holds(map));
	EXPECT_TRUE(holds(shown));
	EXPECT_TRUE(holds(private_written));
	EXPECT_TRUE(leaves_out(private_read));
	/* The holes were not filled for it. */
	EXPECT_EQ(subject.stat().referenced, 2 * page_size);
}

/* The bits: 1 anonymous shared, which a file without a name is; 2 file private. */
TEST_F(core_dumps, hold_what_the_filter_lets_in)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const mapping private_read = snapshot.map(PROT_READ, MAP_PRIVATE);
	const mapping left_out = subject.map();

	left_out.advise(MADV_DONTDUMP);
	ASSERT_NO_FATAL_FAILURE(dump("0x06"));
	EXPECT_TRUE(holds(map));
	EXPECT_TRUE(holds(private_read));
	EXPECT_TRUE(leaves_out(left_out));
	ASSERT_NO_FATAL_FAILURE(dump("0x09"));
	EXPECT_TRUE(leaves_out(map));
	EXPECT_TRUE(leaves_out(private_read));
	/* There is no way back for a special mapping, which a region's is. */
	EXPECT_EQ(::madvise(left_out.data(), left_out.size(), MADV_DODUMP), -1);
	EXPECT_EQ(errno, EINVAL);
}

/* A process that only has the mapping, after all else is gone. */
TEST_F(mappings, outlive_who_made_them)
{
	region subject = numbered(pages);
	mapping map = subject.map();
	const event gone;
	child heir([&] {
		subject.close();
		gone.wait();
		require(shows_numbers(map), "the region is gone");
		fill(map.bytes(), 99);
		require(is_all(map.bytes(), 99), "the region cannot be written");
	});

	subject.close();
	map.reset();
	EXPECT_EQ(counters(dev).regions, before.regions + 1);
	gone.tell();
	EXPECT_TRUE(heir.succeeded());
	EXPECT_EQ(counters(dev).regions, before.regions);
}

TEST_F(mappings, of_many_forks_at_once)
{
	std::vector<region> members;
	std::vector<mapping> maps;

	members.push_back(numbered(pages));
	maps.push_back(members.back().map());
	for (unsigned int i = 1; i < 100; i++) {
		members.push_back(members[i / 2].fork());
		maps.push_back(members.back().map());
		maps.back().store(i % pages, i);
	}
	EXPECT_TRUE(shows_numbers(maps[0]));
	for (unsigned int i = 1; i < 100; i++)
		EXPECT_EQ(maps[i].load(i % pages), i);
	EXPECT_EQ(misnumbered_page(members[0], pages, 1), -1);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
