// SPDX-License-Identifier: GPL-2.0-only
/* Which mmap(2) the library serves, and that it is mmap(2) still. */
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "fault.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t KiB = 1 << 10, MiB = 1 << 20, GiB = 1 << 30;
constexpr int anonymous_flags = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr int both = PROT_READ | PROT_WRITE;

class served_mmap : public suite {};
class mmap_calls : public suite {};

void *map_at(void *address, std::size_t size, int flags = MAP_FIXED, int prot = both)
{
	return ::mmap(address, size, prot, anonymous_flags | flags, -1, 0);
}

/* The errno of a call, 0 where it succeeds. */
template <typename Call> int error_of(Call &&call)
{
	errno = 0;
	return call() == -1 ? errno : 0;
}

TEST_F(served_mmap, is_of_the_region_from_64_KiB_on)
{
	for (const std::size_t size : {64 * KiB, 68 * KiB, MiB, 2 * MiB, 100 * MiB + page_size})
		EXPECT_TRUE(served(anonymous(size).data(), size)) << size;
	for (const std::size_t size : {page_size, 32 * KiB, 60 * KiB})
		EXPECT_FALSE(served(anonymous(size).data())) << size;
}

TEST_F(served_mmap, has_the_programs_name)
{
	const std::vector<mapped_range> ranges = region_ranges();
	std::array<char, 16> name = {};

	check(::prctl(PR_GET_NAME, name.data()), "prctl");
	ASSERT_FALSE(ranges.empty());
	EXPECT_EQ(ranges.front().name, "/cowsnap:" + std::string(name.data()) + " (deleted)");
}

TEST_F(served_mmap, takes_what_is_anonymous_and_private_whatever_else_is_said)
{
	for (const int flags : {0, MAP_NORESERVE, MAP_POPULATE, MAP_NORESERVE | MAP_POPULATE})
		for (const int prot : {both, PROT_READ, PROT_WRITE, PROT_NONE})
			EXPECT_TRUE(served(mapping(-1, MiB, prot, anonymous_flags | flags).data(), MiB))
				<< flags << ' ' << prot;
}

TEST_F(served_mmap, leaves_other_kinds_to_the_kernel)
{
	const memory_file file = make_memfd(MiB);

	for (const int flags : {MAP_STACK, MAP_GROWSDOWN, MAP_32BIT, MAP_LOCKED, MAP_STACK | MAP_NORESERVE}) {
		const mapping map(-1, MiB, both, anonymous_flags | flags);

		EXPECT_FALSE(served(map.data())) << flags;
		map.store(0, 1);
		EXPECT_EQ(map.load(0), 1u);
	}
	EXPECT_FALSE(served(mapping(-1, MiB, both, MAP_SHARED | MAP_ANONYMOUS).data()));
	EXPECT_FALSE(served(mapping(-1, MiB, both | PROT_EXEC, anonymous_flags).data()));
	EXPECT_FALSE(served(mapping(file.fd(), MiB, both, MAP_SHARED).data()));
	EXPECT_FALSE(served(mapping(file.fd(), MiB, both, MAP_PRIVATE).data()));
}

TEST_F(served_mmap, has_what_it_was_asked_to_populate)
{
	const std::int64_t held = held_more();
	const mapping map = memory(8 * MiB, both, MAP_POPULATE);

	EXPECT_GE(held_more() - held, static_cast<std::int64_t>(8 * MiB));
	EXPECT_TRUE(is_all(map.bytes(), 0));
}

TEST_F(served_mmap, holds_only_what_is_touched)
{
	const std::int64_t held = held_more();
	const mapping map = memory(256 * MiB);

	for (std::size_t page = 0; page < map.pages(); page += 1024)
		map.store(page, page);
	EXPECT_LT(held_more() - held, held_slack);
}

TEST_F(served_mmap, leaves_what_does_not_fit_to_the_kernel_and_serves_again)
{
	std::vector<mapping> all;
	bool elsewhere = false;

	EXPECT_FALSE(served(mapping(-1, std::size_t{1} << 40, PROT_NONE, anonymous_flags | MAP_NORESERVE).data()));
	for (int i = 0; i < 100 && !elsewhere; i++) {
		all.emplace_back(-1, 256 * MiB, both, anonymous_flags | MAP_NORESERVE);
		all.back().store(7, 7);
		elsewhere = !served(all.back().data());
	}
	EXPECT_TRUE(elsewhere);
	/* What is the region's is forked by the library, the rest by the kernel. */
	expect_child([&] {
		for (const mapping &map : all) {
			require(map.load(7) == 7 && map.load(8) == 0, "all is there");
			map.store(7, 8);
		}
	});
	for (const mapping &map : all)
		EXPECT_EQ(map.load(7), 7u);
	all.clear();
	EXPECT_TRUE(served(anonymous(256 * MiB).data(), 256 * MiB));
}

TEST_F(mmap_calls, give_zeros_also_where_something_was_before)
{
	for (int round = 0; round < 50; round++) {
		const mapping map = memory(64 * KiB * static_cast<std::size_t>(1 + round % 7));

		ASSERT_TRUE(is_all(map.bytes(), 0));
		fill(map.bytes(), 0xab);
	}
}

TEST_F(mmap_calls, give_memory_of_their_own)
{
	std::vector<mapping> all;

	for (std::size_t i = 0; i < 200; i++) {
		all.push_back(memory(64 * KiB + i % 5 * page_size));
		paint(all.back(), i << 32);
	}
	for (std::size_t i = 0; i < all.size(); i++)
		EXPECT_TRUE(shows(all[i], i << 32)) << i;
}

TEST_F(mmap_calls, take_hints_for_what_they_are)
{
	const mapping used = memory(MiB);

	paint(used, 1);
	for (const std::uintptr_t hint :
	     {address_of(used.data()), address_of(used.data()) + 5 * page_size, address_of(used.data()) + 123,
	      std::uintptr_t{1} << 40, std::uintptr_t{0x10000}}) {
		void *const got = map_at(reinterpret_cast<void *>(hint), MiB, 0);

		ASSERT_NE(got, MAP_FAILED);
		EXPECT_EQ(address_of(got) % page_size, 0u);
		EXPECT_TRUE(address_of(got) + MiB <= address_of(used.data()) ||
			    address_of(used.data()) + MiB <= address_of(got));
		std::memset(got, 1, MiB);
		EXPECT_EQ(::munmap(got, MiB), 0);
	}
	EXPECT_TRUE(shows(used, 1));
}

TEST_F(mmap_calls, fixed_over_memory_that_is_there_zero_it)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	ASSERT_EQ(map_at(map.data() + 16 * page_size, 32 * page_size), map.data() + 16 * page_size);
	for (std::size_t page = 0; page < map.pages(); page++) {
		if (page >= 16 && page < 48)
			EXPECT_TRUE(is_all(map.page(page), 0)) << page;
		else
			EXPECT_TRUE(shows_page(map, page, 1 + page)) << page;
	}
	map.store(20, 5);
	expect_child([&] { require(map.load(20) == 5 && map.load(21) == 0 && map.load(0) == 1, "it is as it was"); });
}

TEST_F(mmap_calls, fixed_with_less_protection_keep_it)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	ASSERT_EQ(map_at(map.data(), 64 * KiB, MAP_FIXED, PROT_READ), map.data());
	EXPECT_EQ(signal_of_load(map.data()), 0);
	EXPECT_EQ(signal_of_store(map.data()), SIGSEGV);
	EXPECT_TRUE(shows_page(map, 16, 17));
	expect_child([&] {
		require(signal_of_store(map.data()) == SIGSEGV, "a store is refused in a child, too");
		require(shows_page(map, 16, 17), "the rest is there");
	});
	ASSERT_EQ(map_at(map.data(), 64 * KiB, MAP_FIXED, PROT_NONE), map.data());
	EXPECT_EQ(signal_of_load(map.data()), SIGSEGV);
	EXPECT_EQ(signal_of_load(map.data() + 64 * KiB), 0);
}

TEST_F(mmap_calls, that_must_not_replace_do_not)
{
	mapping map = memory(MiB);
	std::byte *const address = map.data();

	paint(map, 1);
	for (const std::size_t at : {std::size_t{0}, MiB - page_size, MiB / 2}) {
		EXPECT_EQ(error_of([&] {
				  return reinterpret_cast<long>(map_at(address + at, 64 * KiB, MAP_FIXED_NOREPLACE));
			  }),
			  EEXIST);
	}
	EXPECT_TRUE(shows(map, 1));
	ASSERT_EQ(::munmap(address + MiB / 4, MiB / 2), 0);
	ASSERT_EQ(map_at(address + MiB / 4, MiB / 2, MAP_FIXED_NOREPLACE), address + MiB / 4);
	EXPECT_TRUE(is_all(map.bytes().subspan(MiB / 4, MiB / 2), 0));
	map.store(MiB / 4 / page_size, 7);
	expect_child([&] { require(map.load(MiB / 4 / page_size) == 7 && map.load(0) == 1, "it is as it was"); });
}

TEST_F(mmap_calls, fixed_and_of_a_file_are_in_the_middle_of_memory)
{
	const memory_file file = make_memfd(16 * page_size);
	mapping map = memory(MiB);
	std::byte *const inside = map.data() + 32 * page_size;

	paint(map, 1);
	number_pages(file, 16, 100);
	ASSERT_EQ(::mmap(inside, 16 * page_size, both, MAP_SHARED | MAP_FIXED, file.fd(), 0), inside);
	EXPECT_FALSE(served(inside));
	EXPECT_TRUE(is_all(map.page(33), 101));
	EXPECT_TRUE(shows_page(map, 31, 32));
	EXPECT_TRUE(shows_page(map, 48, 49));
	expect_child([&] {
		require(is_all(map.page(33), 101), "the file is there in a child");
		require(shows_page(map, 31, 32) && shows_page(map, 48, 49), "what is around it is, too");
		fill(map.page(33), 7);
		paint_page(map, 31, 7);
	});
	EXPECT_TRUE(is_all(map.page(33), 7)) << "the file is shared";
	EXPECT_TRUE(shows_page(map, 31, 32)) << "the memory is not";

	ASSERT_EQ(::mmap(inside, 16 * page_size, both, MAP_PRIVATE | MAP_FIXED, file.fd(), 0), inside);
	fill(map.page(34), 55);
	expect_child([&] {
		require(is_all(map.page(34), 55), "a private mapping of a file is inherited as it is");
		fill(map.page(34), 8);
	});
	EXPECT_TRUE(is_all(map.page(34), 55));

	ASSERT_EQ(::munmap(inside, 16 * page_size), 0);
	EXPECT_EQ(signal_of_load(inside), SIGSEGV);
	expect_child([&] { require(signal_of_load(inside) == SIGSEGV, "nothing is there in a child, either"); });
	ASSERT_EQ(map_at(inside, 16 * page_size), inside);
	EXPECT_TRUE(is_all(map.page(33), 0));
	EXPECT_TRUE(shows_page(map, 31, 32));
}

TEST_F(mmap_calls, fixed_and_shared_are_shared_with_a_child)
{
	const mapping map = memory(MiB);

	ASSERT_EQ(::mmap(map.data(), 64 * KiB, both, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0), map.data());
	map.store(0, 1);
	map.store(16, 1);
	expect_child([&] {
		map.store(0, 2);
		map.store(16, 2);
	});
	EXPECT_EQ(map.load(0), 2u);
	EXPECT_EQ(map.load(16), 1u);
}

TEST_F(mmap_calls, of_a_page_inside_memory_are_inherited)
{
	const mapping map = memory(MiB);

	paint(map, 1);
	/* Less than what the library takes, and of a kind that it does not. */
	ASSERT_EQ(map_at(map.data() + 4 * page_size, page_size), map.data() + 4 * page_size);
	ASSERT_EQ(::mmap(map.data() + 8 * page_size, page_size, both | PROT_EXEC, anonymous_flags | MAP_FIXED, -1, 0),
		  map.data() + 8 * page_size);
	for (const std::size_t page : {std::size_t{4}, std::size_t{8}}) {
		EXPECT_TRUE(is_all(map.page(page), 0));
		map.store(page, 70 + page);
	}
	expect_child([&] {
		for (const std::size_t page : {std::size_t{4}, std::size_t{8}}) {
			require(map.load(page) == 70 + page, "a page in the middle is inherited");
			map.store(page, 1);
		}
		require(shows_page(map, 3, 4) && shows_page(map, 5, 6) && shows_page(map, 9, 10), "and its neighbours");
	});
	EXPECT_EQ(map.load(4), 74u);
	EXPECT_EQ(map.load(8), 78u);
}

TEST_F(mmap_calls, reserve_what_is_used_later)
{
	const mapping map = memory(GiB / 2, PROT_NONE, MAP_NORESERVE);

	EXPECT_EQ(signal_of_load(map.data()), SIGSEGV);
	ASSERT_EQ(::mprotect(map.data() + MiB, MiB, both), 0);
	EXPECT_EQ(signal_of_store(map.data() + MiB), 0);
	EXPECT_EQ(signal_of_store(map.data() + 2 * MiB), SIGSEGV);
	EXPECT_EQ(signal_of_store(map.data() + MiB - 1), SIGSEGV);
	expect_child([&] {
		require(map.load(MiB / page_size) == 1, "what was stored is there");
		require(signal_of_store(map.data() + 2 * MiB - 1) == 0, "what is open is open in a child");
		require(signal_of_load(map.data() + 2 * MiB) == SIGSEGV, "what is closed is closed in a child");
		require(::mprotect(map.data() + 2 * MiB, MiB, both) == 0, "a child opens more");
		require(signal_of_store(map.data() + 2 * MiB) == 0, "and uses it");
	});
	EXPECT_EQ(signal_of_load(map.data() + 2 * MiB), SIGSEGV);
	/* As an allocator does that opens by mmap(2). */
	ASSERT_EQ(map_at(map.data() + 4 * MiB, MiB), map.data() + 4 * MiB);
	EXPECT_EQ(signal_of_store(map.data() + 5 * MiB - 1), 0);
	EXPECT_EQ(signal_of_store(map.data() + 5 * MiB), SIGSEGV);
}

/* The same call on memory that was mapped behind the library's back is what the kernel says. */
TEST_F(mmap_calls, fail_as_the_kernels)
{
	const mapping map = memory(MiB);
	void *const page = map.data();
	constexpr std::size_t most = SIZE_MAX;

	const std::vector<std::tuple<const char *, void *, std::size_t, int, int, off_t>> all = {
		{"no length", nullptr, 0, both, anonymous_flags, 0},
		{"no length, fixed", page, 0, both, anonymous_flags | MAP_FIXED, 0},
		{"all lengths", nullptr, most, both, anonymous_flags, 0},
		{"a page less", nullptr, most - page_size + 1, both, anonymous_flags, 0},
		{"half of all", nullptr, most / 2, both, anonymous_flags, 0},
		{"half of all, fixed", page, most / 2, both, anonymous_flags | MAP_FIXED, 0},
		{"an address between pages", map.data() + 1, MiB, both, anonymous_flags | MAP_FIXED, 0},
		{"such a one, not to replace", map.data() + 1, MiB, both, anonymous_flags | MAP_FIXED_NOREPLACE, 0},
		{"an address of the kernel", reinterpret_cast<void *>(most << 40), MiB, both,
		 anonymous_flags | MAP_FIXED, 0},
		{"an offset between pages", nullptr, MiB, both, anonymous_flags, 1},
		{"neither private nor shared", nullptr, MiB, both, MAP_ANONYMOUS, 0},
		{"no file", nullptr, MiB, both, MAP_PRIVATE, 0},
		{"no file, fixed", page, MiB, both, MAP_PRIVATE | MAP_FIXED, 0},
		{"not to replace", page, MiB, both, anonymous_flags | MAP_FIXED_NOREPLACE, 0},
	};

	paint(map, 1);
	for (const auto &[name, address, size, prot, flags, offset] : all) {
		const int ours = error_of(
			[&] { return reinterpret_cast<long>(::mmap(address, size, prot, flags, -1, offset)); });
		const int theirs =
			error_of([&] { return ::syscall(SYS_mmap, address, size, prot, flags, -1, offset); });

		EXPECT_NE(theirs, 0) << name;
		EXPECT_EQ(ours, theirs) << name;
	}
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(mmap_calls, fail_as_the_kernels_when_they_unmap_protect_or_advise)
{
	mapping ours = memory(MiB);
	void *const raw = reinterpret_cast<void *>(::syscall(SYS_mmap, nullptr, MiB, both, anonymous_flags, -1, 0));

	ASSERT_NE(raw, MAP_FAILED);
	/* A hole of 16 pages in each. */
	ASSERT_EQ(::munmap(ours.data() + 64 * page_size, 16 * page_size), 0);
	ASSERT_EQ(::syscall(SYS_munmap, static_cast<std::byte *>(raw) + 64 * page_size, 16 * page_size), 0);

	const auto compare = [&](const char *name, std::ptrdiff_t at, std::size_t size, auto &&call, long number,
				 int argument) {
		const int wanted =
			error_of([&] { return ::syscall(number, static_cast<std::byte *>(raw) + at, size, argument); });

		EXPECT_EQ(error_of([&] { return call(ours.data() + at, size, argument); }), wanted) << name;
	};
	const auto unmap = [](void *address, std::size_t size, int) { return ::munmap(address, size); };

	compare("munmap of nothing", 0, 0, unmap, SYS_munmap, 0);
	compare("munmap between pages", 1, page_size, unmap, SYS_munmap, 0);
	compare("munmap of all", 0, SIZE_MAX, unmap, SYS_munmap, 0);
	compare("munmap of nearly all", 0, SIZE_MAX - MiB, unmap, SYS_munmap, 0);
	compare("munmap of a hole", 64 * static_cast<std::ptrdiff_t>(page_size), page_size, unmap, SYS_munmap, 0);
	compare("mprotect of nothing", 0, 0, ::mprotect, SYS_mprotect, PROT_READ);
	compare("mprotect between pages", 1, page_size, ::mprotect, SYS_mprotect, PROT_READ);
	compare("mprotect to what is none", 0, page_size, ::mprotect, SYS_mprotect, 0x1000);
	compare("mprotect of all", 0, SIZE_MAX - 2 * page_size, ::mprotect, SYS_mprotect, PROT_READ);
	compare("mprotect that grows down", 0, page_size, ::mprotect, SYS_mprotect, PROT_READ | PROT_GROWSDOWN);
	compare("mprotect of a hole", 64 * static_cast<std::ptrdiff_t>(page_size), page_size, ::mprotect, SYS_mprotect,
		both);
	compare("mprotect into a hole", 60 * static_cast<std::ptrdiff_t>(page_size), 8 * page_size, ::mprotect,
		SYS_mprotect, both);
	compare("madvise of nothing", 0, 0, ::madvise, SYS_madvise, MADV_DONTNEED);
	compare("madvise between pages", 1, page_size, ::madvise, SYS_madvise, MADV_DONTNEED);
	compare("madvise of what is none", 0, page_size, ::madvise, SYS_madvise, 12345);
	compare("madvise of all", 0, SIZE_MAX - 2 * page_size, ::madvise, SYS_madvise, MADV_DONTNEED);
	compare("madvise of a hole", 64 * static_cast<std::ptrdiff_t>(page_size), page_size, ::madvise, SYS_madvise,
		MADV_DONTNEED);
	compare("madvise into a hole", 60 * static_cast<std::ptrdiff_t>(page_size), 8 * page_size, ::madvise,
		SYS_madvise, MADV_DONTNEED);
	EXPECT_EQ(::syscall(SYS_munmap, raw, MiB), 0);
}

} // namespace
