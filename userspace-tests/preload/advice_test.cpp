// SPDX-License-Identifier: GPL-2.0-only
/* madvise(2), mprotect(2) and mremap(2) of the memory, here and in children. */
#include <array>
#include <cstring>
#include <vector>

#include <sys/mman.h>

#include "fault.hpp"
#include "machine_code.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

constexpr int both = PROT_READ | PROT_WRITE;

class served_advice : public suite {};
class advice : public suite {};
class protection : public suite {};
class remapping : public suite {};
class served_remapping : public suite {};

TEST_F(advice, that_it_is_not_needed_makes_it_read_zeros)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	ASSERT_EQ(::madvise(map.data() + 8 * page_size, 8 * page_size, MADV_DONTNEED), 0);
	/* Whole pages, whatever the length. */
	ASSERT_EQ(::madvise(map.data() + 32 * page_size, 1, MADV_DONTNEED), 0);
	for (std::size_t page = 0; page < map.pages(); page++) {
		if ((page >= 8 && page < 16) || page == 32)
			EXPECT_TRUE(is_all(map.page(page), 0)) << page;
		else
			EXPECT_TRUE(shows_page(map, page, 1 + page)) << page;
	}
	map.store(8, 9);
	EXPECT_EQ(map.load(8), 9u);
}

TEST_F(advice, of_one_process_is_none_of_the_other)
{
	const mapping map = memory(MiB);
	const event dropped, seen;

	paint(map, 1);

	child process([&] {
		map.advise(MADV_DONTNEED);
		require(is_all(map.bytes(), 0), "a child's memory reads zeros");
		map.store(3, 3);
		dropped.tell();
		seen.wait();
		require(map.load(3) == 3 && map.load(4) == 0, "and what it stores afterwards");
	});

	dropped.wait();
	EXPECT_TRUE(shows(map, 1));
	seen.tell();
	EXPECT_TRUE(process.succeeded());

	child other([&] {
		dropped.wait();
		require(shows(map, 1), "a child keeps what its parent drops");
	});

	map.advise(MADV_DONTNEED);
	EXPECT_TRUE(is_all(map.bytes(), 0));
	dropped.tell();
	EXPECT_TRUE(other.succeeded());
}

TEST_F(advice, of_what_is_read_only_or_closed_is_taken)
{
	for (const int prot : {PROT_READ, PROT_NONE}) {
		const mapping map = memory(MiB);

		paint(map, 1);
		map.protect(prot);
		EXPECT_EQ(::madvise(map.data(), MiB / 2, MADV_DONTNEED), 0);
		map.protect(PROT_READ);
		EXPECT_TRUE(is_all(map.bytes().first(MiB / 2), 0));
		EXPECT_TRUE(shows_page(map, map.pages() - 1, map.pages()));
	}
}

TEST_F(served_advice, gives_the_memory_back)
{
	for (const int how : {MADV_DONTNEED, MADV_FREE, MADV_DONTNEED_LOCKED}) {
		const std::int64_t held = held_more();
		const mapping map = memory(16 * MiB);

		paint(map, 1);
		EXPECT_GE(held_more() - held, static_cast<std::int64_t>(16 * MiB) - held_slack);
		map.advise(how);
		EXPECT_LE(held_more() - held, held_slack) << how;
		EXPECT_TRUE(is_all(map.bytes(), 0)) << how;
	}
}

TEST_F(served_advice, about_forks_is_refused_but_for_the_default)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	EXPECT_EQ(::madvise(map.data(), MiB, MADV_DOFORK), 0);
	for (const int how : {MADV_DONTFORK, MADV_WIPEONFORK, MADV_KEEPONFORK}) {
		errno = 0;
		EXPECT_EQ(::madvise(map.data(), MiB, how), -1) << how;
		EXPECT_EQ(errno, EINVAL) << how;
	}
	expect_child([&] { require(shows(map, 1), "it is forked as before"); });
}

TEST_F(advice, that_changes_nothing_is_taken)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	for (const int how : {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_COLD, MADV_HUGEPAGE,
			      MADV_NOHUGEPAGE, MADV_DONTDUMP})
		EXPECT_EQ(::madvise(map.data(), MiB, how), 0) << how;
	EXPECT_TRUE(shows(map, 1));
	expect_child([&] { require(shows(map, 1), "nor for a child"); });
}

TEST_F(protection, is_the_childs_too)
{
	const mapping map = memory(MiB);
	const auto at = [&](std::size_t page) { return map.page(page).data(); };

	paint(map, 1);
	ASSERT_EQ(::mprotect(at(4), 4 * page_size, PROT_READ), 0);
	ASSERT_EQ(::mprotect(at(16), 4 * page_size, PROT_NONE), 0);

	const auto right = [&] {
		return !signal_of_load(at(4)) && signal_of_store(at(4)) == SIGSEGV &&
		       signal_of_store(at(7)) == SIGSEGV && !signal_of_load(at(8)) &&
		       signal_of_load(at(16)) == SIGSEGV && signal_of_load(at(19)) == SIGSEGV &&
		       shows_page(map, 5, 6) && shows_page(map, 3, 4) && shows_page(map, 20, 21);
	};

	EXPECT_TRUE(right());
	expect_child([&] {
		require(right(), "a child has its parent's protection");
		require(child([&] { require(right(), "and so has a child's child"); }).succeeded(), "a child's child");
		require(::mprotect(at(4), 16 * page_size, both) == 0, "a child lifts it");
		for (std::size_t page = 0; page < map.pages(); page++)
			require(shows_page(map, page, 1 + page), "below it is what was there");
		paint(map, 1000);
		require(child([&] {
				paint_page(map, 4, 1);
				paint_page(map, 16, 1);
			}).succeeded(),
			"its child has it lifted");
		require(::mprotect(at(0), page_size, PROT_NONE) == 0, "a child protects more");
	});
	EXPECT_TRUE(right());
	EXPECT_EQ(signal_of_store(at(0)), 0);
	map.protect(both);
	paint(map, 7);
	expect_child([&] {
		require(shows(map, 7), "what is lifted is lifted for a child");
		paint(map, 8);
	});
}

TEST_F(protection, lets_code_be_run)
{
	const mapping map = memory(MiB);
	const std::vector<std::byte> code = function_that_returns(42);

	std::ranges::copy(code, map.data());
	map.protect(PROT_READ | PROT_EXEC);
	EXPECT_EQ(call(map), 42);
	expect_child([&] {
		require(call(map) == 42, "a child runs it");
		require(signal_of_store(map.data()) == SIGSEGV, "and does not write it");
	});
	map.protect(both);
	EXPECT_TRUE(child([&] { call(map); }).killed_by(SIGSEGV));
}

TEST_F(remapping, shrinks)
{
	mapping map = memory(MiB);

	paint(map, 1);
	ASSERT_EQ(::mremap(map.data(), MiB, MiB / 2, 0), map.data());
	EXPECT_EQ(signal_of_load(map.data() + MiB / 2), SIGSEGV);
	EXPECT_TRUE(shows_page(map, map.pages() / 2 - 1, map.pages() / 2));
	expect_child([&] {
		require(signal_of_load(map.data() + MiB / 2) == SIGSEGV, "a child has as little");
		require(shows_page(map, 0, 1), "and the rest");
	});
}

TEST_F(remapping, grows_in_place_where_there_is_room)
{
	mapping map = memory(2 * MiB);

	paint(map, 1);
	/* The room is what it had itself. */
	map.shrink(MiB);
	ASSERT_EQ(::mremap(map.data(), MiB, 2 * MiB, 0), map.data());

	const std::span<std::byte> more(map.data() + MiB, MiB);

	EXPECT_TRUE(is_all(more, 0));
	EXPECT_TRUE(shows(map, 1));
	fill(more, 5);
	expect_child([&] {
		require(is_all(more, 5), "what it grew by is there");
		require(shows(map, 1), "what it was, too");
	});
	ASSERT_EQ(::munmap(more.data(), MiB), 0);
}

TEST_F(remapping, that_may_not_move_fails_where_there_is_no_room)
{
	const mapping map = memory(2 * MiB);

	paint(map, 1);
	EXPECT_EQ(::mremap(map.data(), MiB, 2 * MiB, 0), MAP_FAILED);
	EXPECT_EQ(errno, ENOMEM);
	EXPECT_TRUE(shows(map, 1));
}

/* A mapping grows by being moved, with another one behind it. */
TEST_F(remapping, moves_what_it_holds)
{
	const mapping map = memory(4 * MiB);
	const std::size_t pages = MiB / page_size;

	paint(map, 1);
	ASSERT_EQ(::madvise(map.data() + 5 * page_size, 3 * page_size, MADV_DONTNEED), 0);

	void *const got = ::mremap(map.data(), MiB, 8 * MiB, MREMAP_MAYMOVE);

	ASSERT_NE(got, MAP_FAILED);
	ASSERT_NE(got, map.data());

	const std::byte *const moved = static_cast<std::byte *>(got);
	const auto right = [&] {
		for (std::size_t page = 0; page < 8 * pages; page++) {
			std::uint64_t word = 0;

			std::memcpy(&word, moved + page * page_size, sizeof(word));
			if (word != (page < pages && (page < 5 || page >= 8) ? 1 + page : 0))
				return false;
		}
		return true;
	};

	EXPECT_TRUE(right());
	EXPECT_EQ(signal_of_load(map.data()), SIGSEGV) << "where it was nothing is left";
	EXPECT_TRUE(shows_page(map, pages, 1 + pages)) << "what is behind it stays";
	expect_child([&] {
		require(right(), "a child has it where it is");
		require(signal_of_load(map.data()) == SIGSEGV, "and not where it was");
		fill({static_cast<std::byte *>(got), 8 * MiB}, 3);
	});
	EXPECT_TRUE(right());
	EXPECT_EQ(::munmap(got, 8 * MiB), 0);
}

TEST_F(served_remapping, keeps_holes_and_holds_nothing_twice)
{
	const std::int64_t held = held_more();
	const mapping map = memory(128 * MiB);

	map.store(0, 1);
	map.store(20000, 2);

	/* Something behind it. */
	mapping behind = memory(MiB);
	void *const got = ::mremap(map.data(), 100 * MiB, 160 * MiB, MREMAP_MAYMOVE);

	ASSERT_NE(got, MAP_FAILED);
	EXPECT_TRUE(served(got, 160 * MiB));
	EXPECT_LE(held_more() - held, held_slack);
	EXPECT_EQ(*reinterpret_cast<std::uint64_t *>(static_cast<std::byte *>(got) + 20000 * page_size), 2u);
	EXPECT_EQ(::munmap(got, 160 * MiB), 0);
}

TEST_F(remapping, keeps_the_protection)
{
	const mapping map = memory(2 * MiB);

	paint(map, 1);
	ASSERT_EQ(::mprotect(map.data(), MiB, PROT_READ), 0);

	std::byte *const moved = static_cast<std::byte *>(::mremap(map.data(), MiB, 4 * MiB, MREMAP_MAYMOVE));

	ASSERT_NE(moved, MAP_FAILED);

	const auto right = [&] {
		return signal_of_store(moved) == SIGSEGV && signal_of_store(moved + 4 * MiB - 1) == SIGSEGV &&
		       !signal_of_load(moved) && moved[0] == std::byte{1};
	};

	EXPECT_TRUE(right());
	expect_child([&] { require(right(), "for a child, too"); });
	EXPECT_EQ(::munmap(moved, 4 * MiB), 0);
}

TEST_F(remapping, goes_where_it_is_told_to)
{
	const mapping target = memory(4 * MiB);

	fill(target.bytes(), 9);
	for (const std::size_t size : {MiB / 2, MiB, 2 * MiB}) {
		const mapping map = memory(MiB);

		paint(map, 1);

		std::byte *const to = target.data() + MiB;

		ASSERT_EQ(::mremap(map.data(), MiB, size, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);

		const auto right = [&] {
			const std::size_t kept = std::min(size, MiB);

			for (std::size_t page = 0; page < kept / page_size; page++)
				if (target.load(MiB / page_size + page) != 1 + page)
					return false;
			return is_all({to + kept, size - kept}, 0) && is_all(target.bytes().first(MiB), 9) &&
			       is_all(target.bytes().subspan(3 * MiB), 9);
		};

		EXPECT_TRUE(right()) << size;
		EXPECT_EQ(signal_of_load(map.data()), SIGSEGV) << size;
		expect_child([&] { require(right(), "a child has it there"); });
		EXPECT_TRUE(::mmap(to, 2 * MiB, both, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == to);
	}
}

TEST_F(remapping, to_what_overlaps_it_is_refused)
{
	const mapping map = memory(4 * MiB);

	paint(map, 1);
	EXPECT_EQ(::mremap(map.data(), 2 * MiB, 2 * MiB, MREMAP_MAYMOVE | MREMAP_FIXED, map.data() + MiB), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(served_remapping, does_not_leave_the_old_place_mapped)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	EXPECT_EQ(::mremap(map.data(), MiB, MiB, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(remapping, with_what_is_wrong_fails_as_the_kernels)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	const auto error_of = [](void *result) { return result == MAP_FAILED ? errno : 0; };

	EXPECT_EQ(error_of(::mremap(map.data() + 1, MiB, MiB, 0)), EINVAL);
	EXPECT_EQ(error_of(::mremap(map.data(), MiB, 0, 0)), EINVAL);
	EXPECT_EQ(error_of(::mremap(map.data(), MiB, MiB, 0x100)), EINVAL);
	/* Sizes with which addresses begin anew. */
	EXPECT_NE(error_of(::mremap(map.data(), MiB, ~std::size_t(0) - 0xffff, MREMAP_MAYMOVE)), 0);
	EXPECT_NE(error_of(::mremap(map.data(), MiB, ~std::size_t(0), MREMAP_MAYMOVE)), 0);
	EXPECT_EQ(error_of(::mremap(map.data(), MiB, MiB, MREMAP_FIXED, map.data() + 8 * MiB)), EINVAL);
	EXPECT_EQ(error_of(::mremap(map.data(), MiB, MiB, MREMAP_MAYMOVE | MREMAP_FIXED, map.data() + 8 * MiB + 1)),
		  EINVAL);
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(remapping, of_the_kernels_memory_is_the_kernels)
{
	void *const small = ::mmap(nullptr, 4 * page_size, both, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(small, MAP_FAILED);
	std::memset(small, 3, 4 * page_size);

	std::byte *const big = static_cast<std::byte *>(::mremap(small, 4 * page_size, MiB, MREMAP_MAYMOVE));

	ASSERT_NE(big, MAP_FAILED);
	EXPECT_TRUE(is_all({big, 4 * page_size}, 3));
	EXPECT_TRUE(is_all({big + 4 * page_size, MiB - 4 * page_size}, 0));
	expect_child([&] {
		require(is_all({big, 4 * page_size}, 3), "a child has it");
		big[0] = std::byte{4};
	});
	EXPECT_EQ(big[0], std::byte{3});

	/* Into memory of the region. */
	const mapping target = memory(2 * MiB);

	paint(target, 1);
	ASSERT_EQ(::mremap(big, MiB, MiB, MREMAP_MAYMOVE | MREMAP_FIXED, target.data()), target.data());
	EXPECT_TRUE(is_all(target.bytes().first(4 * page_size), 3));
	expect_child([&] {
		require(is_all(target.bytes().first(4 * page_size), 3), "a child has it there");
		require(shows_page(target, target.pages() - 1, target.pages()), "and what is behind it");
	});
}

} // namespace
