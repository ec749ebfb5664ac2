// SPDX-License-Identifier: GPL-2.0-only
/* munmap(2), whole and in parts, and calls at random against a model. */
#include <map>
#include <optional>
#include <vector>

#include <sys/mman.h>
#include <sys/syscall.h>

#include "chance.hpp"
#include "fault.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t KiB = 1 << 10, MiB = 1 << 20;
constexpr int both = PROT_READ | PROT_WRITE;
constexpr int anonymous_flags = MAP_PRIVATE | MAP_ANONYMOUS;

class served_munmap : public suite {};
class munmap_calls : public suite {};
class random_calls : public suite {};

/* In this process and in a child of it. */
void expect_gone(const std::byte *address, std::source_location where = std::source_location::current())
{
	EXPECT_EQ(signal_of_load(address), SIGSEGV) << "line " << where.line();
	EXPECT_TRUE(child([&] { (void)*const_cast<const volatile std::byte *>(address); }).killed_by(SIGSEGV))
		<< "in a child, line " << where.line();
}

TEST_F(munmap_calls, take_all_of_it)
{
	mapping map = memory(MiB);
	const std::byte *const address = map.data();

	paint(map, 1);
	map.reset();
	expect_gone(address);
	expect_gone(address + MiB - 1);
}

TEST_F(munmap_calls, take_the_start_the_middle_and_the_end)
{
	mapping map = memory(MiB);
	const std::size_t pages = map.pages();

	paint(map, 1);
	ASSERT_EQ(::munmap(map.data(), 3 * page_size), 0);
	ASSERT_EQ(::munmap(map.data() + 100 * page_size, page_size), 0);
	/* The length may be any. */
	ASSERT_EQ(::munmap(map.data() + (pages - 2) * page_size, page_size + 1), 0);
	for (const std::size_t gone : {std::size_t{0}, std::size_t{2}, std::size_t{100}, pages - 2, pages - 1})
		expect_gone(map.page(gone).data());

	const auto shows_the_rest = [&] {
		for (std::size_t page = 3; page < pages - 2; page++)
			if (page != 100 && !shows_page(map, page, 1 + page))
				return false;
		return true;
	};

	EXPECT_TRUE(shows_the_rest());
	expect_child([&] { require(shows_the_rest(), "the rest is there"); });
	/* What is gone can be unmapped, too. */
	EXPECT_EQ(::munmap(map.data(), 3 * page_size), 0);
}

TEST_F(served_munmap, gives_the_memory_back)
{
	const std::int64_t held = held_more();
	mapping map = memory(64 * MiB);

	paint(map, 1);
	EXPECT_GE(held_more() - held, static_cast<std::int64_t>(64 * MiB) - held_slack);
	map.shrink(32 * MiB);
	EXPECT_LE(held_more() - held, static_cast<std::int64_t>(32 * MiB) + held_slack);
	map.reset();
	EXPECT_LE(held_more() - held, held_slack);
}

TEST_F(served_munmap, lets_its_addresses_be_used_again)
{
	/* Many times what there is. */
	for (int round = 0; round < 200; round++) {
		const mapping map = memory(128 * MiB);

		map.store(0, 1);
		map.store(map.pages() - 1, 1);
		ASSERT_EQ(map.load(1), 0u);
	}
}

TEST_F(served_munmap, of_the_region_and_of_what_the_kernel_mapped_beside_it)
{
	/* Allocators use the ends, too; in a child nobody does. */
	expect_child([] {
		const std::vector<mapped_range> ranges = region_ranges();
		const auto at = [](std::uintptr_t address) { return reinterpret_cast<void *>(address); };
		const auto try_end = [&](std::uintptr_t inside, std::uintptr_t outside) {
			if (::mmap(at(inside), 64 * KiB, both, anonymous_flags | MAP_FIXED_NOREPLACE, -1, 0) ==
			    MAP_FAILED)
				return false;
			require(served(at(inside)), "it is the region's");
			if (::syscall(SYS_mmap, outside, 64 * KiB, both, anonymous_flags | MAP_FIXED_NOREPLACE, -1,
				      0) == -1)
				return ::munmap(at(inside), 64 * KiB) != 0;
			require(!served(at(outside)), "it is not the region's");
			*static_cast<char *>(at(inside)) = *static_cast<char *>(at(outside)) = 1;
			require(::munmap(at(std::min(inside, outside)), 128 * KiB) == 0,
				"both are unmapped by one call");
			require(signal_of_load(static_cast<std::byte *>(at(inside))) == SIGSEGV,
				"what was inside is gone");
			require(signal_of_load(static_cast<std::byte *>(at(outside))) == SIGSEGV,
				"what was outside is gone");
			return true;
		};
		const std::uintptr_t start = ranges.front().start, end = ranges.back().end;

		require(try_end(end - 64 * KiB, end) || try_end(start, start - 64 * KiB),
			"there is an end of the region to try it at");
	});
}

TEST_F(munmap_calls, over_several_mappings_take_them_all)
{
	mapping map = memory(4 * MiB);
	std::byte *const kernels = map.data() + MiB;

	paint(map, 1);
	ASSERT_EQ(::mmap(kernels, MiB, both, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0), kernels);
	ASSERT_EQ(::mprotect(map.data() + 2 * MiB, MiB, PROT_READ), 0);
	ASSERT_EQ(::munmap(map.data() + MiB / 2, 3 * MiB), 0);
	for (const std::size_t gone : {MiB / 2, MiB, 2 * MiB - 1, 2 * MiB, 3 * MiB + MiB / 2 - 1})
		expect_gone(map.data() + gone);
	EXPECT_TRUE(shows_page(map, 0, 1));
	EXPECT_TRUE(shows_page(map, map.pages() - 1, map.pages()));
}

struct page_state {
	std::uint64_t value = 0;
	int prot = both;
};

/*
 * Memory that is mapped, unmapped, protected, moved and written at random, and what each
 * page of it should show.
 */
class random_memory {
public:
	explicit random_memory(std::uint64_t stream) : dice_(stream) {}

	void step()
	{
		switch (dice_.below(12)) {
		case 0:
		case 1:
		case 2:
			map();
			break;
		case 3:
			unmap();
			break;
		case 4:
			map_over();
			break;
		case 5:
			drop();
			break;
		case 6:
			protect();
			break;
		case 7:
			resize();
			break;
		default:
			write();
		}
	}

	/* The first page that is not as it should be. */
	std::optional<std::uintptr_t> wrong_page() const
	{
		for (const auto &[address, state] : pages_)
			if ((state.prot & PROT_READ) && word(address) != state.value)
				return address;
		return {};
	}

	/* Whether all accesses that a page at random takes and refuses are the right ones. */
	bool protects_right()
	{
		if (pages_.empty())
			return true;

		const auto [address, state] = *any_page();

		if (signal_of_load(bytes(address)) != (state.prot & PROT_READ ? 0 : SIGSEGV))
			return false;
		/* What is there is stored once more, or there is no right to. */
		const unsigned int first = state.prot & PROT_READ ? static_cast<unsigned int>(*bytes(address)) : 0;

		return signal_of_store(bytes(address), first) == (state.prot & PROT_WRITE ? 0 : SIGSEGV);
	}

	std::size_t size() const { return pages_.size(); }

	void clear()
	{
		while (!pages_.empty())
			remove(pages_.begin()->first, page_size);
	}

private:
	using page_map = std::map<std::uintptr_t, page_state>;
	static constexpr std::size_t most_pages = 16384;

	static std::byte *bytes(std::uintptr_t address) { return reinterpret_cast<std::byte *>(address); }
	static volatile std::uint64_t &word(std::uintptr_t address)
	{
		return *reinterpret_cast<volatile std::uint64_t *>(address);
	}

	page_map::iterator any_page()
	{
		const auto found = pages_.lower_bound(pages_.begin()->first +
						      dice_.below(pages_.rbegin()->first - pages_.begin()->first + 1));

		return found == pages_.end() ? pages_.begin() : found;
	}

	/* Pages from one at random on that are mapped without a hole, one at least. */
	std::pair<std::uintptr_t, std::size_t> any_range(std::size_t most)
	{
		const auto first = any_page();
		const std::size_t wanted = dice_.between(1, most);
		std::size_t count = 0;

		for (auto page = first;
		     page != pages_.end() && count < wanted && page->first == first->first + count * page_size; ++page)
			count++;
		return {first->first, count * page_size};
	}

	void add(std::uintptr_t start, std::size_t size, page_state state = {})
	{
		for (std::uintptr_t address = start; address < start + size; address += page_size)
			pages_[address] = state;
	}

	void map()
	{
		const std::size_t size =
			dice_.one_in(4) ? dice_.between(1, 1024) * page_size : dice_.between(16, 64) * page_size;

		if (pages_.size() + size / page_size > most_pages)
			return clear_some();

		const std::uintptr_t start = address_of(::mmap(nullptr, size, both, anonymous_flags, -1, 0));

		require(start != address_of(MAP_FAILED), "mmap");
		const auto next = pages_.lower_bound(start);

		require(next == pages_.end() || next->first >= start + size, "what is mapped was mapped already");
		add(start, size);
	}

	void clear_some()
	{
		while (pages_.size() > most_pages / 2) {
			const auto [start, size] = any_range(4096);

			remove(start, size);
		}
	}

	void remove(std::uintptr_t start, std::size_t size)
	{
		require(::munmap(bytes(start), size) == 0, "munmap");
		pages_.erase(pages_.lower_bound(start), pages_.lower_bound(start + size));
	}

	void unmap()
	{
		if (pages_.empty())
			return;
		const auto [start, size] = any_range(128);

		remove(start, size);
	}

	void map_over()
	{
		if (pages_.empty())
			return;
		const auto [start, size] = any_range(64);
		const int prot = dice_.one_in(3) ? PROT_READ : both;

		require(::mmap(bytes(start), size, prot, anonymous_flags | MAP_FIXED, -1, 0) == bytes(start),
			"mmap over");
		add(start, size, {0, prot});
	}

	void drop()
	{
		if (pages_.empty())
			return;
		const auto [start, size] = any_range(64);

		require(::madvise(bytes(start), size, MADV_DONTNEED) == 0, "madvise");
		for (std::uintptr_t address = start; address < start + size; address += page_size)
			pages_[address].value = 0;
	}

	void protect()
	{
		if (pages_.empty())
			return;
		const auto [start, size] = any_range(64);
		const int prot = dice_.one_in(3) ? PROT_READ : dice_.one_in(4) ? PROT_NONE : both;

		require(::mprotect(bytes(start), size, prot) == 0, "mprotect");
		for (std::uintptr_t address = start; address < start + size; address += page_size)
			pages_[address].prot = prot;
	}

	/* Of one protection, since others are not one mapping. */
	void resize()
	{
		if (pages_.empty())
			return;
		const auto [start, most] = any_range(64);
		std::size_t size = page_size;

		while (size < most && pages_[start + size].prot == pages_[start].prot)
			size += page_size;
		/* Where it was put together from several, the kernel may have more than one mapping. */
		const std::size_t now = dice_.between(1, 128) * page_size;
		const std::vector<page_state> before = states(start, size);
		void *const got = ::mremap(bytes(start), size, now, MREMAP_MAYMOVE);

		if (got == MAP_FAILED) {
			require(errno == EFAULT || errno == EINVAL, "mremap");
			return;
		}
		pages_.erase(pages_.lower_bound(start), pages_.lower_bound(start + size));

		const std::uintptr_t to = address_of(got);
		const auto next = pages_.lower_bound(to);

		require(next == pages_.end() || next->first >= to + now, "what is moved went where something was");
		for (std::size_t page = 0; page < now / page_size; page++)
			pages_[to + page * page_size] =
				page < before.size() ? before[page] : page_state{0, before[0].prot};
	}

	std::vector<page_state> states(std::uintptr_t start, std::size_t size) const
	{
		std::vector<page_state> found;

		for (auto page = pages_.find(start); page != pages_.end() && page->first < start + size; ++page)
			found.push_back(page->second);
		return found;
	}

	void write()
	{
		if (pages_.empty())
			return;
		const auto [start, size] = any_range(16);

		for (std::uintptr_t address = start; address < start + size; address += page_size) {
			page_state &state = pages_[address];

			if ((state.prot & both) != both)
				continue;
			state.value = ++last_value_;
			word(address) = state.value;
		}
	}

	chance dice_;
	page_map pages_;
	std::uint64_t last_value_ = 0;
};

TEST_F(random_calls, leave_what_the_model_has)
{
	const std::size_t steps = scaled(this_kind() == kind::jemalloc ? 2000 : 6000);
	random_memory memory(1);

	for (std::size_t i = 0; i < steps; i++) {
		memory.step();
		ASSERT_TRUE(i % 16 || memory.protects_right()) << i;
		ASSERT_FALSE(i % 100 == 0 && memory.wrong_page()) << i;
	}
	ASSERT_FALSE(memory.wrong_page());
	EXPECT_GT(memory.size(), 0u);
	memory.clear();
}

TEST_F(random_calls, in_parents_and_children_leave_each_its_own)
{
	const std::size_t rounds = scaled(this_kind() == kind::jemalloc ? 10 : 30);
	random_memory memory(2);

	for (std::size_t round = 0; round < rounds; round++) {
		for (int i = 0; i < 60; i++)
			memory.step();

		const auto go_on = [&memory](int steps) {
			require(!memory.wrong_page(), "a child has what the parent had");
			for (int i = 0; i < steps; i++) {
				memory.step();
				require(memory.protects_right(), "a child has the parent's protection");
			}
			require(!memory.wrong_page(), "a child has what it made of it");
		};
		child one([&] { go_on(60); });
		child two([&] {
			go_on(30);
			require(child([&] { go_on(30); }).succeeded(), "a child's child");
			go_on(30);
		});

		for (int i = 0; i < 60; i++)
			memory.step();
		ASSERT_FALSE(memory.wrong_page()) << round;
		ASSERT_TRUE(memory.protects_right()) << round;
		ASSERT_TRUE(one.succeeded()) << round;
		ASSERT_TRUE(two.succeeded()) << round;
		ASSERT_FALSE(memory.wrong_page()) << round;
	}
	memory.clear();
}

} // namespace
