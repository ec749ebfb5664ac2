// SPDX-License-Identifier: GPL-2.0-only
/*
 * Granules from a page to 2 MiB: what is copied, filled, mapped and counted at
 * once, and what stays exact to the page and to the byte all the same.
 */
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <fstream>
#include <map>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "huge_pages.hpp"
#include "ktap.hpp"
#include "memory_group.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"
#include "sequence.hpp"
#include "view.hpp"
#include "waiting_memory.hpp"

using namespace cowsnap_test;

namespace {

constexpr unsigned int huge_shift = 21;

/* What page @page has where the first has @first. */
unsigned int value_of(std::size_t page, unsigned int first = 1)
{
	return static_cast<unsigned int>(first + page) & 0xff;
}

template <typename Byte>
std::span<Byte> page_of(std::span<Byte> bytes, std::size_t page)
{
	const std::size_t start = page * page_size;

	return bytes.subspan(start, std::min(page_size, bytes.size() - start));
}

void number(std::span<std::byte> bytes, unsigned int first)
{
	for (std::size_t page = 0; page * page_size < bytes.size(); page++)
		fill(page_of(bytes, page), value_of(page, first));
}

/* The first page that number() would have filled otherwise, or -1. */
int misnumbered(std::span<const std::byte> bytes, unsigned int first)
{
	for (std::size_t page = 0; page * page_size < bytes.size(); page++)
		if (!is_all(page_of(bytes, page), value_of(page, first)))
			return static_cast<int>(page);
	return -1;
}

/*
 * Runs @first here and @second in another thread at the same time, @rounds times,
 * each time after @prepare.  None of them may throw.
 */
template <typename Prepare, typename First, typename Second>
void together(std::size_t rounds, Prepare &&prepare, First &&first,
	      Second &&second)
{
	std::atomic<std::size_t> ready = 0, done = 0;
	const auto wait_for_both = [&](std::size_t round) {
		ready++;
		while (ready < 2 * round)
			;
	};
	std::thread other([&] {
		for (std::size_t round = 1; round <= rounds; round++) {
			while (done < round - 1)
				std::this_thread::yield();
			wait_for_both(round);
			second();
			done++;
		}
	});

	for (std::size_t round = 1; round <= rounds; round++) {
		prepare();
		wait_for_both(round);
		first();
		while (done < round)
			std::this_thread::yield();
	}
	other.join();
}

/*
 * How large granules are, and whether there are large folios for them: where there
 * are none they are put together of what there is.
 */
struct kind {
	unsigned int shift;
	bool in_pieces;
};

std::string name_of(const testing::TestParamInfo<kind> &info)
{
	return std::to_string(1u << (info.param.shift - 10)) + "_KiB" +
	       (info.param.in_pieces ? "_in_pieces" : "");
}

class granules : public cowsnap_fixture, public testing::WithParamInterface<kind> {
protected:
	void SetUp() override
	{
		if (GetParam().in_pieces)
			make_scarce(scarce, 16 * granule() + (4 << 20));
	}

	static unsigned int shift() { return GetParam().shift; }
	static std::size_t granule() { return std::size_t{1} << shift(); }
	/* In a granule. */
	static std::size_t pages() { return granule() / page_size; }
	/* That a reading fault maps, of a hole, or of a granule alone. */
	static std::size_t pages_at_once()
	{
		return std::min<std::size_t>(pages(), 16);
	}
	/* Faults that it takes to read @count granules of data in a row. */
	static std::size_t faults_to_read(std::size_t count)
	{
		return (count * pages() + 15) / 16;
	}

	region create(std::size_t count) const
	{
		return dev.create(count * granule(), 0, {}, shift());
	}
	/* Its pages have their numbers, from 1 on. */
	region filled(std::size_t count) const
	{
		region made = create(count);

		number(made.map().bytes(), 1);
		return made;
	}

	std::uint64_t held() const
	{
		return (counters(dev).held_bytes - before.held_bytes) / granule();
	}

	/* Expects that @access takes @count faults of @member's mappings. */
	template <typename Access>
	static void expect_faults(const region &member, std::uint64_t count,
				  Access &&access)
	{
		const std::uint64_t faults = member.stat().faults;

		access();
		EXPECT_EQ(member.stat().faults - faults, count);
	}

	/* To one page of each granule, somewhere in the middle. */
	template <typename Map>
	static void store_once(const Map &map)
	{
		for (std::size_t page = pages() / 3; page < map.pages();
		     page += pages())
			store(map, page);
	}
	template <typename Map>
	static void store_all(const Map &map, unsigned int first = 1)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			store(map, page, first);
	}
	template <typename Map>
	static void load_all(const Map &map)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			load(map, page);
	}
	/* What number() does, to the first byte. */
	template <typename Map>
	static void store(const Map &map, std::size_t page, unsigned int first = 1)
	{
		*static_cast<volatile std::byte *>(map.page(page).data()) =
			static_cast<std::byte>(value_of(page, first));
	}
	template <typename Map>
	static void load(const Map &map, std::size_t page)
	{
		(void)*static_cast<volatile std::byte *>(map.page(page).data());
	}

	std::optional<scarce_memory> scarce;
};

INSTANTIATE_TEST_SUITE_P(, granules,
			 testing::Values(kind{page_shift, false}, kind{page_shift + 2, false},
					 kind{page_shift + 4, false}, kind{page_shift + 6, true},
					 kind{huge_shift, false}),
			 name_of);

class granule_sizes : public cowsnap_fixture {};

TEST_F(granule_sizes, are_all_powers_of_two_from_a_page_to_2_MiB)
{
	const cowsnap_query query = dev.query();

	EXPECT_EQ(std::size_t{1} << query.granule_shift_min, page_size);
	EXPECT_EQ(query.granule_shift_max, huge_shift);
	for (unsigned int shift = query.granule_shift_min;
	     shift <= query.granule_shift_max; shift++) {
		const std::uint64_t granule = 1ull << shift;
		const region parent = dev.create(3 * granule, 0, {}, shift);
		const mapping map = parent.map();

		EXPECT_EQ(parent.stat().granule_shift, shift);
		map.page(map.pages() / 2)[5] = std::byte{7};

		const region child = parent.fork();

		EXPECT_EQ(child.stat().granule_shift, shift);
		EXPECT_EQ(child.stat().referenced, granule);
		map.page(map.pages() / 2)[5] = std::byte{8};
		EXPECT_EQ(parent.stat().bytes_copied, granule);
		EXPECT_EQ(counters(dev).held_bytes - before.held_bytes, 2 * granule);
		EXPECT_EQ(child.map().page(map.pages() / 2)[5], std::byte{7});
	}
}

TEST_P(granules, are_copied_one_at_a_time)
{
	const region parent = filled(4);
	const mapping map = parent.map();
	const region snapshot = parent.snapshot();

	for (const std::size_t index : {1, 3}) {
		const cowsnap_stat stat = parent.stat();
		const std::size_t page = index * pages() + pages() / 2;
		const std::byte old = map.page(page)[100];

		if (index == 1)
			map.page(page)[100] = std::byte{0xee};
		else
			parent.write(page * page_size + 100, bytes_of(1, 0xee));

		const cowsnap_stat now = parent.stat();

		EXPECT_EQ(now.copies, stat.copies + 1);
		EXPECT_EQ(now.bytes_copied, stat.bytes_copied + granule());
		EXPECT_EQ(now.dirty, stat.dirty + granule());
		EXPECT_EQ(now.exclusive, stat.exclusive + granule());
		EXPECT_EQ(now.referenced, 4 * granule());
		EXPECT_EQ(now.zero_fills, stat.zero_fills);
		EXPECT_EQ(misnumbered(map.bytes(), 1), static_cast<int>(page));
		map.page(page)[100] = old;
		EXPECT_EQ(misnumbered(map.bytes(), 1), -1);
	}
	EXPECT_EQ(held(), 6u);
	EXPECT_EQ(snapshot.stat().exclusive, 2 * granule());
	EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
}

TEST_P(granules, are_filled_one_at_a_time)
{
	const region subject = create(4);
	const mapping map = subject.map(), other = subject.map();

	/* The zero page is mapped, here and there. */
	load_all(map);
	load_all(other);
	EXPECT_EQ(subject.stat().referenced, 0u);
	for (const std::size_t index : {2, 0}) {
		const std::size_t page = index * pages() + pages() - 1;
		const std::uint64_t referenced = subject.stat().referenced;

		if (index == 2)
			map.page(page)[100] = std::byte{0xee};
		else
			subject.write(page * page_size + 100, bytes_of(1, 0xee));
		EXPECT_EQ(subject.stat().referenced, referenced + granule());
		EXPECT_EQ(other.page(page)[100], std::byte{0xee});
		other.page(page)[100] = std::byte{0};
		EXPECT_EQ(map.page(page)[100], std::byte{0});
		EXPECT_TRUE(is_all(map.bytes(), 0));
		/* And so wherever else the granule is written. */
		other.page(index * pages())[0] = std::byte{1};
		EXPECT_EQ(map.page(index * pages())[0], std::byte{1});
		other.page(index * pages())[0] = std::byte{0};
	}
	EXPECT_EQ(subject.stat().zero_fills, 2u);
	EXPECT_EQ(subject.stat().copies, 0u);
	EXPECT_EQ(held(), 2u);
}

/* The neighbours in the granule may be written then. */
TEST_P(granules, fault_once_when_they_are_written)
{
	const auto expect_one_each = [](const region &member, const mapping &map) {
		expect_faults(member, map.pages() / pages(),
			      [&] { store_once(map); });
		expect_faults(member, 0, [&] { store_all(map); });
		expect_faults(member, 0, [&] { load_all(map); });
	};
	const region subject = create(3);
	const mapping map = subject.map(), other = subject.map();

	expect_one_each(subject, map);
	/* Each mapping for itself. */
	expect_one_each(subject, other);
	EXPECT_EQ(subject.stat().zero_fills, 3u);

	/* A copy where there are no entries any more. */
	region child = subject.fork();

	expect_one_each(subject, map);
	EXPECT_EQ(subject.stat().copies, 3u);
	EXPECT_EQ(subject.stat().reuses, 0u);

	/* A copy of what was read. */
	const mapping child_map = child.map();

	load_all(child_map);
	(void)subject.snapshot();
	load_all(map);

	region second = subject.fork();

	expect_one_each(subject, map);
	EXPECT_EQ(subject.stat().copies, 6u);

	/* What has no other owner is taken as it is, read before or not. */
	second.close();
	(void)subject.fork();
	expect_one_each(subject, map);
	(void)subject.fork();
	load_all(map);
	load_all(other);
	expect_one_each(subject, map);
	EXPECT_EQ(subject.stat().copies, 6u);
	EXPECT_EQ(subject.stat().reuses, 6u);

	/* A hole that was read. */
	subject.punch(0, 3 * granule());
	load_all(map);
	expect_one_each(subject, map);
	EXPECT_EQ(subject.stat().zero_fills, 6u);
}

/* So they do where a few pages of them were read. */
TEST_P(granules, that_were_read_in_part_fault_once_when_they_are_written)
{
	const region subject = filled(2);
	const mapping map = subject.map();
	const auto expect_one_each = [&] {
		load(map, 0);
		load(map, map.pages() - 1);
		expect_faults(subject, 2, [&] {
			store(map, 0);
			store_all(map);
		});
	};

	/* The region's own, and then a copy. */
	(void)subject.snapshot();
	expect_one_each();

	const region child = subject.fork();

	expect_one_each();
	EXPECT_EQ(subject.stat().reuses, 2u);
	EXPECT_EQ(subject.stat().copies, 2u);
}

TEST_P(granules, are_read_several_pages_at_a_time)
{
	const region parent = filled(2);
	const region snapshot = parent.snapshot();
	const region holes = create(2);
	const region no_data = holes.snapshot();

	for (const region *member : {&parent, &snapshot, &holes, &no_data}) {
		/* At an address that no PMD can map. */
		const view shown(member->fd(), 0, 2 * granule(), PROT_READ,
				 MAP_SHARED, 2 << 20, page_size);

		expect_faults(*member,
			      member == &parent || member == &snapshot ?
				      faults_to_read(2) :
				      2 * pages() / pages_at_once(),
			      [&] { load_all(shown); });
		expect_faults(*member, 0, [&] { load_all(shown); });
	}
	/* Around the page, not from it on. */
	const view shown(parent.fd(), 0, 2 * granule(), PROT_READ);

	expect_faults(parent, 1, [&] {
		load(shown, pages_at_once() - 1);
		load(shown, 0);
	});
}

/* What may be written anyhow does not fault for it after it was read. */
TEST_P(granules, that_are_dirty_are_mapped_writable_by_a_read)
{
	const region subject = create(1);
	const mapping map = subject.map(), other = subject.map();

	store_once(map);
	expect_faults(subject, pages() / pages_at_once(), [&] { load_all(other); });
	expect_faults(subject, 0, [&] { store_all(other); });
}

/* At the end it is pages that count. */
class region_end : public granules {
protected:
	/* In the middle of a granule and of a page. */
	static std::size_t whole_pages() { return 2 * pages() + pages() / 2; }
	static std::uint64_t length() { return whole_pages() * page_size + 100; }

	/* Expects that @map shows @count pages and raises SIGBUS behind. */
	static void expect_pages(const mapping &map, std::size_t count)
	{
		for (const std::size_t page : {std::size_t{0}, count / 2, count - 1}) {
			EXPECT_EQ(signal_of_load(map.page(page).data()), 0);
			EXPECT_EQ(signal_of_store(map.page(page).data()), 0);
		}
		for (const std::size_t page : {count, map.pages() - 1}) {
			EXPECT_EQ(signal_of_load(map.page(page).data()), SIGBUS);
			EXPECT_EQ(signal_of_store(map.page(page).data()), SIGBUS);
		}
	}
};

INSTANTIATE_TEST_SUITE_P(, region_end,
			 testing::Values(kind{page_shift, false}, kind{page_shift + 2, false},
					 kind{page_shift + 6, true}, kind{huge_shift, false}),
			 name_of);

TEST_P(region_end, may_be_in_the_middle_of_a_granule)
{
	const region subject = dev.create(length(), 0, {}, shift());
	const mapping map(subject.fd(), 4 * granule());

	expect_pages(map, whole_pages() + 1);
	EXPECT_EQ(subject.stat().referenced, 3 * granule());
	/* The granule has more pages than are mapped. */
	if (pages() > 1) {
		const mapping other(subject.fd(), 4 * granule());

		store(other, 2 * pages());
		EXPECT_EQ(smaps(other.data())["Rss:"],
			  (pages() / 2 + 1) * page_size);
	}
}

TEST_P(region_end, moves_through_a_granule)
{
	const region parent = filled(4);
	const mapping map = parent.map();
	const region snapshot = parent.snapshot();
	const std::size_t last = whole_pages();

	load_all(map);
	parent.truncate(length());
	EXPECT_EQ(parent.stat().copies, 1u);
	EXPECT_EQ(parent.stat().referenced, 3 * granule());
	EXPECT_EQ(misnumbered(map.bytes().first(last * page_size), 1), -1);
	EXPECT_TRUE(is_all(map.page(last).first(100),
			   value_of(last)));
	EXPECT_TRUE(is_all(map.page(last).subspan(100), 0));
	EXPECT_EQ(signal_of_load(map.page(last + 1).data()), SIGBUS);

	/* Beyond the end, in its page: allowed, and lost. */
	fill(map.page(last).subspan(100), 0xff);
	parent.truncate(4 * granule());
	EXPECT_TRUE(is_all(map.bytes().subspan(length()), 0));
	EXPECT_TRUE(is_all(parent.read(length(), 4 * granule() - length()), 0));
	EXPECT_EQ(parent.stat().referenced, 3 * granule());
	expect_pages(mapping(parent.fd(), 5 * granule()), 4 * pages());

	/* To the page, without the rest of the granule. */
	parent.truncate(last * page_size);
	if (last % pages()) {
		EXPECT_EQ(signal_of_load(map.page(last - 1).data()), 0);
	}
	EXPECT_EQ(signal_of_load(map.page(last).data()), SIGBUS);
	EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
}

/* A snapshot ends where its parent ended, whoever grows. */
TEST_P(region_end, stays_in_a_snapshot)
{
	/* Of the last granule there is half, a page, or none. */
	for (const std::size_t whole : {whole_pages(), 2 * pages(), 2 * pages() - 1}) {
		const std::size_t length = whole * page_size + 100;
		const region parent = dev.create(length, 0, {}, shift());
		const mapping map(parent.fd(), 4 * granule());

		fill(map.bytes().first(length), 1);

		const region snapshot = parent.snapshot();
		const view shown(snapshot.fd(), 0, 4 * granule(), PROT_READ,
				 MAP_SHARED, granule());
		const view copied(snapshot.fd(), 0, 4 * granule(),
				  PROT_READ | PROT_WRITE, MAP_PRIVATE, granule());

		parent.truncate(4 * granule());
		fill(map.bytes(), 2);
		for (const view *of : {&shown, &copied}) {
			std::byte *const behind = of->page(whole + 1).data();

			EXPECT_EQ(signal_of_load(of->page(whole).data()), 0);
			EXPECT_EQ(signal_of_load(behind), SIGBUS);
			EXPECT_TRUE(is_all(of->bytes().first(length), 1));
			EXPECT_TRUE(is_all(of->page(whole).subspan(100), 0));
			EXPECT_EQ(signal_of_load(behind), SIGBUS);
		}
		fill(copied.bytes().first(length), 3);
		EXPECT_EQ(signal_of_store(copied.page(whole + 1).data()), SIGBUS);
		EXPECT_TRUE(is_all(shown.bytes().first(length), 1));
		EXPECT_EQ(snapshot.length(), length);
	}
}

/* What the two share is mapped still, but not beyond the end any more. */
TEST_P(region_end, is_restored)
{
	const region parent = filled(3);

	parent.truncate(length());

	const region snapshot = parent.snapshot();
	const mapping map(parent.fd(), 4 * granule());
	const std::size_t last = whole_pages();

	parent.truncate(4 * granule());
	load_all(map);
	EXPECT_TRUE(is_all(map.bytes().subspan(length()), 0));
	parent.restore(snapshot);
	EXPECT_EQ(parent.length(), length());
	EXPECT_EQ(misnumbered(map.bytes().first(last * page_size), 1), -1);
	EXPECT_EQ(map.page(last)[99], static_cast<std::byte>(value_of(last)));
	expect_pages(map, last + 1);
}

/* What was cut off is gone, though somebody stored to it until then. */
TEST_P(region_end, leaves_nothing_behind)
{
	const region subject = create(4);
	const mapping map = subject.map();

	for (std::size_t round = 0; round < scaled(8); round++) {
		const event stored;
		child writer([&] {
			for (unsigned int value = 1;; value = value % 255 + 1) {
				fill(map.bytes(), value);
				if (value == 1)
					stored.tell();
			}
		});

		stored.wait();
		subject.truncate(length());
		EXPECT_TRUE(writer.killed_by(SIGBUS));
		subject.truncate(4 * granule());
		EXPECT_NE(map.bytes()[length() - 1], std::byte{0});
		EXPECT_TRUE(is_all(map.bytes().subspan(length()), 0));
	}
}

/* What one page of a granule is needed for all of it is copied. */
class pinned_granules : public granules {};

INSTANTIATE_TEST_SUITE_P(, pinned_granules,
			 testing::Values(kind{page_shift + 2, false}, kind{page_shift + 6, true},
					 kind{huge_shift, false}),
			 name_of);

TEST_P(pinned_granules, are_copied_for_the_child)
{
	const region parent = filled(3);
	const mapping map = parent.map();

	store_all(map);

	const std::size_t last = 2 * pages() - 1;
	const page_in_a_pipe held_page(map.page(last));
	const region child = parent.fork();
	const mapping child_map = child.map();

	EXPECT_EQ(parent.stat().copies, 1u);
	EXPECT_EQ(parent.stat().dirty, granule());
	EXPECT_EQ(child.stat().exclusive, granule());
	EXPECT_EQ(held(), 4u);
	/* The parent's pages are where they were: the pipe sees what it writes. */
	fill(map.page(last), 0xee);
	fill(map.page(pages()), 0xef);
	EXPECT_EQ(parent.stat().copies, 1u);
	fill(child_map.page(last), 0xdd);
	EXPECT_EQ(child.stat().copies, 0u);
	EXPECT_TRUE(is_all(held_page.read(), 0xee));
	fill(child_map.page(last), value_of(last));
	EXPECT_EQ(misnumbered(child_map.bytes(), 1), -1);
	EXPECT_EQ(misnumbered(map.bytes(), 1), static_cast<int>(pages()));

	/* Nobody holds it any more: it is shared as any other. */
	const region next = parent.snapshot();

	EXPECT_EQ(next.stat().exclusive, 0u);
	EXPECT_TRUE(is_all(next.read_page(last), 0xee));
}

/* A pipe got a page from a member that is closed now, and must not see more. */
TEST_P(pinned_granules, are_not_reused)
{
	const region parent = filled(2);
	const mapping map = parent.map();
	const std::size_t page = pages() - 1;
	std::optional<page_in_a_pipe> held_page;

	{
		const region snapshot = parent.snapshot();

		held_page.emplace(snapshot.map(PROT_READ).page(page));
	}
	load_all(map);
	/* Any page of the granule. */
	store(map, 1);
	store(map, pages() + 1);
	EXPECT_EQ(parent.stat().copies, 1u);
	EXPECT_EQ(parent.stat().reuses, 1u);
	fill(map.page(page), 0xee);
	EXPECT_TRUE(is_all(held_page->read(),
			   value_of(page)));
	EXPECT_EQ(held(), 2u);
}

/* By splice(2), which took pages before Linux 6.5, and copies since. */
TEST_P(pinned_granules, in_a_pipe_by_splice_show_no_later_write)
{
	region parent = filled(2);
	const region child = parent.fork();
	const page_in_a_pipe before_it(parent, pages() - 1);

	fill(child.map().bytes(), 0xee);
	EXPECT_TRUE(is_all(before_it.read(), value_of(pages() - 1)));

	const page_in_a_pipe after_it(parent, pages() + 1);

	{
		const region third = parent.fork();

		parent.close();
		fill(third.map().bytes(), 0xee);
	}
	EXPECT_TRUE(is_all(after_it.read(), value_of(pages() + 1)));
}

class granule_mappings : public granules {};

INSTANTIATE_TEST_SUITE_P(, granule_mappings,
			 testing::Values(kind{page_shift + 2, false}, kind{page_shift + 6, true},
					 kind{huge_shift, false}),
			 name_of);

/* Every entry is accounted for, in whatever mapping and process. */
TEST_P(granule_mappings, of_the_sole_owner_do_not_count)
{
	const region parent = filled(2);
	const mapping map = parent.map(), other = parent.map();
	const event read, done;
	const view part(parent.fd(), page_size, granule(), PROT_READ);
	child reader([&] {
		const mapping own = parent.map(PROT_READ);

		load_all(own);
		load_all(map);
		read.tell();
		done.wait();
		require(misnumbered(own.bytes(), 1) == 1, "a store does not show");
		require(own.page(1)[0] == std::byte{99}, "it shows otherwise");
	});

	read.wait();
	load_all(map);
	load_all(other);
	load_all(part);
	(void)parent.snapshot();
	load_all(other);
	load_all(part);
	fill(map.page(1), 99);
	store(map, pages());
	EXPECT_EQ(parent.stat().copies, 0u);
	EXPECT_EQ(parent.stat().reuses, 2u);
	EXPECT_TRUE(is_all(other.page(1), 99));
	EXPECT_TRUE(is_all(part.page(0), 99));
	done.tell();
	EXPECT_TRUE(reader.succeeded());
}

/* A page of another member's mapping is another owner's. */
TEST_P(granule_mappings, of_others_keep_what_they_show)
{
	const region parent = filled(2);
	const mapping map = parent.map();
	region child = parent.fork();
	view child_part(child.fd(), (pages() - 1) * page_size, 2 * page_size,
			PROT_READ);

	load_all(child_part);
	child.close();
	store_once(map);
	EXPECT_EQ(parent.stat().copies, 2u);
	fill(map.bytes(), 0xee);
	EXPECT_EQ(misnumbered(child_part.bytes(), static_cast<unsigned int>(pages())),
		  -1);
}

TEST_P(granule_mappings, are_closed_by_a_fork_whatever_mprotect_does)
{
	const region parent = filled(3);
	const mapping map = parent.map();
	const std::size_t half = granule() / 2;

	store_all(map);
	/* All of it, and from the middle of a granule to the middle of another. */
	for (const auto &[start, size] :
	     {std::pair{std::size_t{0}, map.size()}, {half, 2 * granule()}}) {
		const auto protect = [&](int prot) {
			check(::mprotect(map.data() + start, size, prot), "mprotect");
		};

		number(map.bytes(), 1);
		protect(PROT_READ);

		const region snapshot = parent.snapshot();
		const region child = parent.fork();

		protect(PROT_READ | PROT_WRITE);
		fill(map.bytes(), 0xee);
		EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
		EXPECT_EQ(misnumbered(child.map().bytes(), 1), -1);

		/* The other way round: what was written is made writable again. */
		number(map.bytes(), 1);

		const region second = parent.snapshot();

		load_all(map);
		protect(PROT_NONE);
		protect(PROT_READ | PROT_WRITE);
		fill(map.bytes(), 0xee);
		EXPECT_EQ(misnumbered(second.map(PROT_READ).bytes(), 1), -1);
	}
}

/* They begin and end where they like, and map nothing around them. */
TEST_P(granule_mappings, are_of_parts_of_granules)
{
	const region parent = filled(3);
	const std::size_t first = pages() - 2, count = pages() + 3;
	const std::uint64_t offset = first * page_size;
	const view part(parent.fd(), offset, count * page_size,
			PROT_READ | PROT_WRITE);
	/* As the granule lies, and as it does not. */
	const view straight(parent.fd(), offset, count * page_size,
			    PROT_READ | PROT_WRITE, MAP_SHARED, granule());
	const view askew(parent.fd(), offset, count * page_size,
			 PROT_READ | PROT_WRITE, MAP_SHARED, granule(), page_size);
	const view within(parent.fd(), granule() + page_size, page_size,
			  PROT_READ | PROT_WRITE);
	const region snapshot = parent.snapshot();

	expect_faults(parent, 3, [&] {
		for (const std::size_t page : {std::size_t{0}, pages() / 2, count - 1})
			store(part, page);
		store_all(part);
	});
	EXPECT_EQ(smaps(part.data())["Rss:"], part.size());
	EXPECT_EQ(parent.stat().copies, 3u);
	fill(part.bytes(), 0xee);
	for (const view *other : {&straight, &askew, &within}) {
		expect_faults(parent, other == &within ? 1 : 3,
			      [&] { fill(other->bytes(), 0xef); });
		EXPECT_EQ(is_all(part.bytes(), 0xef), other != &within);
		EXPECT_TRUE(is_all(part.page(3), 0xef));
		fill(part.bytes(), 0xee);
		EXPECT_TRUE(is_all(other->bytes(), 0xee));
	}
	EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
	number(part.bytes(), value_of(first));
	EXPECT_EQ(misnumbered(parent.map().bytes(), 1), -1);
}

TEST_P(granule_mappings, in_other_processes_show_the_same)
{
	const region parent = filled(2);
	const mapping map = parent.map();
	const event stored, forked;
	const region snapshot = parent.snapshot();

	store(map, 0);
	/* One by a mapping that it inherits, one by one of its own. */
	child other([&] {
		const view own(parent.fd(), page_size, granule(),
			       PROT_READ | PROT_WRITE);

		fill(map.page(1), 0xee);
		fill(own.page(pages() - 1), 0xef);
		stored.tell();
		forked.wait();
		fill(map.page(1), 0xdd);
		fill(own.page(pages() - 1), 0xdd);
	});

	stored.wait();
	EXPECT_EQ(parent.stat().copies, 2u);
	EXPECT_TRUE(is_all(map.page(1), 0xee));
	EXPECT_TRUE(is_all(map.page(pages()), 0xef));

	const region second = parent.fork();

	forked.tell();
	EXPECT_TRUE(other.succeeded());
	EXPECT_TRUE(is_all(second.read_page(1), 0xee));
	EXPECT_TRUE(is_all(second.read_page(pages()), 0xef));
	EXPECT_TRUE(is_all(map.page(1), 0xdd));
	EXPECT_TRUE(is_all(map.page(pages()), 0xdd));
	EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
}

TEST_P(granule_mappings, move)
{
	const region parent = filled(2);
	view moved(parent.fd(), page_size, granule(), PROT_READ | PROT_WRITE,
		   MAP_SHARED, 2 << 20);

	store_all(moved, 2);
	for (const std::size_t shift : {0u, 1u}) {
		moved.move(page_size + shift * page_size, 2 << 20);
		expect_faults(parent, 0, [&] { store_all(moved, 2); });
		EXPECT_EQ(misnumbered(moved.bytes(), 2), -1);

		const region snapshot = parent.snapshot();

		fill(moved.bytes(), 0xee);
		EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
		number(moved.bytes(), 2);
	}
}

/* What the kernel would split a large folio for, or write out. */
TEST_P(granule_mappings, are_not_harmed_by_advice)
{
	if (GetParam().in_pieces && lockdep_objects_to_splits())
		GTEST_SKIP() << "lockdep objects to how the kernel splits what a "
				"cgroup is charged for";

	const region parent = filled(3);
	const region snapshot = parent.snapshot();
	const view map(parent.fd(), 0, 3 * granule(), PROT_READ | PROT_WRITE,
		       MAP_SHARED, granule());
	const view shown(snapshot.fd(), 0, 3 * granule(), PROT_READ, MAP_SHARED,
			 granule());

	store_once(map);
	for (const int advice : {MADV_COLD, MADV_PAGEOUT, MADV_DONTNEED}) {
		for (const view *of : {&map, &shown}) {
			load_all(*of);
			check(::madvise(of->data() + granule() / 2,
					granule() + page_size, advice),
			      "madvise");
			EXPECT_EQ(misnumbered(of->bytes(), 1), -1);
		}
	}
	EXPECT_EQ(parent.stat().copies, 3u);
	fill(map.bytes(), 0xee);
	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
}

/* Pages and shares, not granules and owners. */
TEST_P(granule_mappings, are_counted_in_pages)
{
	const region parent = filled(2);
	const mapping map = parent.map();
	const auto rss = [](const mapping &of) { return smaps(of.data())["Rss:"]; };
	const auto pss = [](const mapping &of) { return smaps(of.data())["Pss:"]; };

	EXPECT_EQ(rss(map), 0u);
	load(map, 0);
	/* Mapped by a read of what is dirty, so that no write changes it. */
	EXPECT_EQ(rss(map), std::min<std::size_t>(2 * pages(), 16) * page_size);
	store_once(map);
	EXPECT_EQ(rss(map), 2 * granule());
	EXPECT_EQ(pss(map), 2 * granule());

	const region child = parent.fork();
	const mapping child_map = child.map();

	/* But for a page of 512 each, which may be how the CPUs were told. */
	EXPECT_GE(rss(map) + 2 * page_size, 2 * granule());
	EXPECT_EQ(rss(child_map), 0u);
	load_all(map);
	load_all(child_map);
	for (const mapping *of : {&map, &child_map}) {
		EXPECT_EQ(rss(*of), 2 * granule());
		EXPECT_EQ(pss(*of), granule());
	}
	store(child_map, 3);
	EXPECT_EQ(rss(child_map), 2 * granule());
	for (const mapping *of : {&map, &child_map})
		EXPECT_EQ(pss(*of), granule() + granule() / 2);
}

TEST_P(granules, are_the_unit_of_a_limit)
{
	/* Room for three, not for a fourth. */
	const region subject =
		dev.create(8 * granule(), 4 * granule() - page_size, {}, shift());
	const mapping map = subject.map();
	const std::vector<std::byte> byte = bytes_of(1, 0xee);

	for (std::size_t index = 0; index < 3; index++)
		subject.write(index * granule() + granule() / 2, byte);
	/* What is there may be written, all of it. */
	store_all(mapping(subject.fd(), 3 * granule()));
	EXPECT_EQ(::pwrite(subject.fd(), byte.data(), 1,
			   static_cast<off_t>(5 * granule())),
		  -1);
	EXPECT_EQ(errno, ENOSPC);
	EXPECT_EQ(signal_of_store(map.page(5 * pages()).data()), SIGBUS);
	EXPECT_EQ(signal_of_load(map.page(5 * pages()).data()), 0);
	EXPECT_EQ(subject.stat().referenced, 3 * granule());

	/* A copy takes a whole one as well. */
	subject.punch(2 * granule(), granule());

	region snapshot = subject.snapshot();

	EXPECT_EQ(signal_of_store(map.page(0).data()), 0);
	EXPECT_EQ(signal_of_store(map.page(pages()).data()), SIGBUS);
	EXPECT_EQ(held(), 3u);
	snapshot.close();
	EXPECT_EQ(signal_of_store(map.page(pages()).data()), 0);
	EXPECT_EQ(held(), 2u);
}

TEST_P(granules, are_restored_and_stay_mapped_where_nothing_changed)
{
	const region parent = filled(4);
	const mapping map = parent.map();
	const region snapshot = parent.snapshot();

	load_all(map);
	fill(map.page(pages()).subspan(7, 1), 0xee);
	parent.write(4 * granule() - 1, bytes_of(2, 0xee));
	EXPECT_EQ(parent.stat().referenced, 5 * granule());
	EXPECT_EQ(parent.restore(snapshot), 3 * granule());
	EXPECT_EQ(parent.stat().dirty, 0u);
	EXPECT_EQ(parent.stat().exclusive, 0u);
	EXPECT_EQ(parent.length(), 4 * granule());
	expect_faults(parent, faults_to_read(2), [&] { load_all(map); });
	EXPECT_EQ(misnumbered(map.bytes(), 1), -1);

	/* And the other way round, with what is mapped writable in the source. */
	const region child = parent.fork();
	const mapping child_map = child.map();

	fill(child_map.page(pages() - 1), 0xee);
	EXPECT_EQ(parent.restore(child), granule());
	fill(child_map.page(0), 0xef);
	fill(child_map.page(pages() - 1), 0xef);
	EXPECT_TRUE(is_all(map.page(pages() - 1), 0xee));
	fill(map.page(pages() - 1), value_of(pages() - 1));
	EXPECT_EQ(misnumbered(map.bytes(), 1), -1);
}

TEST_P(granules, differ_as_a_whole)
{
	const region parent = filled(6);
	const region snapshot = parent.snapshot();
	const auto ranges = [&](std::uint32_t flags) {
		std::vector<std::pair<std::uint64_t, std::uint64_t>> found;

		for (const cowsnap_range &range : parent.diff(snapshot, flags))
			found.emplace_back(range.offset / granule(),
					   range.length / granule());
		return found;
	};
	using pairs = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

	/* One that is the same after all, and one that is not in its last byte. */
	parent.write(2 * granule() + page_size / 2, parent.read(2 * granule() +
								page_size / 2, 1));
	parent.write(4 * granule() - 1, bytes_of(1, 0x55));
	EXPECT_EQ(ranges(0), (pairs{{2, 2}}));
	EXPECT_EQ(ranges(COWSNAP_DIFF_F_EXACT), (pairs{{3, 1}}));
	EXPECT_EQ(parent.diff(snapshot, 0, 3 * granule() + 1, 3 * granule() + 2).size(),
		  1u);
	/* A hole reads as zero; of another with zeroes it is no different. */
	parent.punch(0, granule());
	EXPECT_EQ(ranges(COWSNAP_DIFF_F_EXACT), (pairs{{0, 1}, {3, 1}}));

	const region zeroes = create(1);
	const region hole = zeroes.fork();

	zeroes.write(granule() / 2, bytes_of(1, 0));
	EXPECT_EQ(zeroes.diff(hole).size(), 1u);
	EXPECT_EQ(zeroes.diff(hole, COWSNAP_DIFF_F_EXACT).size(), 0u);
	zeroes.write(granule() - 1, bytes_of(1, 1));
	EXPECT_EQ(zeroes.diff(hole, COWSNAP_DIFF_F_EXACT).size(), 1u);
}

TEST_P(granules, are_what_seek_finds)
{
	const region subject = create(5);
	const auto seek = [&](std::uint64_t from, int whence) {
		return ::lseek(subject.fd(), static_cast<off_t>(from), whence);
	};
	const auto size = static_cast<off_t>(granule());

	subject.write(2 * granule() - 1, bytes_of(2, 1));
	EXPECT_EQ(seek(0, SEEK_DATA), size);
	EXPECT_EQ(seek(granule() + 5, SEEK_DATA), size + 5);
	EXPECT_EQ(seek(granule() + 5, SEEK_HOLE), 3 * size);
	EXPECT_EQ(seek(5, SEEK_HOLE), 5);
	EXPECT_EQ(seek(3 * granule(), SEEK_DATA), -1);
	EXPECT_EQ(errno, ENXIO);
	subject.truncate(3 * granule() - page_size / 2);
	EXPECT_EQ(seek(granule(), SEEK_HOLE),
		  3 * size - static_cast<off_t>(page_size) / 2);
}

/* Bytes, across pages and granules. */
TEST_P(granules, are_read_and_written_in_any_parts)
{
	const region subject = filled(4);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const std::uint64_t start = granule() - 100;
	const std::size_t size = 2 * granule() + 300;
	std::vector<std::byte> bytes(size);

	EXPECT_EQ(subject.read(start, size),
		  std::vector<std::byte>(map.data() + start,
					 map.data() + start + size));
	number(bytes, 77);
	subject.write(start, bytes);
	EXPECT_EQ(subject.read(start, size), bytes);
	EXPECT_TRUE(std::ranges::equal(map.bytes().subspan(start, size), bytes));
	EXPECT_EQ(misnumbered(map.bytes().first(granule() - page_size), 1), -1);

	/* Out of the region itself, by pages that are looked up. */
	const iovec local = {map.data(), granule() / 2};
	const iovec remote = {map.data() + 3 * granule() - 200, granule() / 2};

	EXPECT_EQ(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0),
		  static_cast<ssize_t>(granule() / 2));
	EXPECT_TRUE(std::ranges::equal(
		map.bytes().first(granule() / 2),
		subject.read(3 * granule() - 200, granule() / 2)));
	EXPECT_EQ(misnumbered(snapshot.map(PROT_READ).bytes(), 1), -1);
	EXPECT_EQ(misnumbered(map.bytes().subspan(3 * granule() + granule() / 2),
			      value_of(3 * pages() + pages() / 2)),
		  -1);
}

/* A region whose granules had no large folios is no different. */
class granules_in_pieces : public granules {};

INSTANTIATE_TEST_SUITE_P(, granules_in_pieces,
			 testing::Values(kind{huge_shift, true}), name_of);

TEST_P(granules_in_pieces, are_what_the_tests_get)
{
	const region parent = filled(2);
	const region snapshot = parent.snapshot();
	const view shown(snapshot.fd(), 0, 2 * granule(), PROT_READ, MAP_SHARED,
			 granule());

	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
	EXPECT_EQ(smaps(shown.data())["Rss:"], 2 * granule());
	EXPECT_EQ(smaps(shown.data())["FilePmdMapped:"], 0u);
}

/* Whole ones are copied to such in pieces, and such in pieces to whole ones. */
TEST_P(granules_in_pieces, live_beside_others)
{
	const region first = filled(4);
	const region second = first.fork();
	const mapping map = first.map(), second_map = second.map();

	store(map, 0);
	store(map, pages());
	scarce.reset();
	store(second_map, 1);
	store(second_map, 2 * pages());
	scarce.emplace(16 * granule());
	store(second_map, 3 * pages());

	const region third = second.fork();
	const mapping third_map = third.map();

	store_all(third_map);
	for (const mapping *of : {&map, &second_map, &third_map})
		EXPECT_EQ(misnumbered(of->bytes(), 1), -1);
	EXPECT_EQ(third.stat().copies, 4u);
}

/*
 * A whole granule of a snapshot is mapped at once where the address allows it, by
 * the kernels at hand.
 */
class huge_mappings : public cowsnap_fixture {
protected:
	static constexpr std::size_t granule = 1 << huge_shift;
	static constexpr std::size_t count = 4;

	void SetUp() override
	{
		std::string modes;

		std::getline(std::ifstream(
				     "/sys/kernel/mm/transparent_hugepage/enabled"),
			     modes);
		if (modes.find("[always]") == std::string::npos)
			GTEST_SKIP() << "transparent huge pages are not enabled";
		if (huge_page_size() != granule)
			GTEST_SKIP() << "no granule is as large as what a PMD maps";
		/* Large folios to be had, if there are any. */
		std::ofstream("/proc/sys/vm/compact_memory") << 1;

		parent = dev.create(count * granule, 0, {}, huge_shift);
		number(parent.map().bytes(), 1);
		snapshot = parent.snapshot();
	}

	void TearDown() override
	{
		parent.close();
		snapshot.close();
		cowsnap_fixture::TearDown();
	}

	view map_snapshot(int prot = PROT_READ, int flags = MAP_SHARED,
			  std::size_t shift = 0) const
	{
		return view(snapshot.fd(), 0, count * granule, prot, flags, granule,
			    shift);
	}

	static std::uint64_t mapped_by_pmd(const view &of)
	{
		return smaps(of.data())["FilePmdMapped:"];
	}

	static void touch_each(const view &of)
	{
		for (std::size_t offset = 5 * page_size; offset < of.size();
		     offset += granule)
			(void)*static_cast<volatile std::byte *>(of.data() +
								 offset);
	}

	region parent, snapshot;
};

TEST_F(huge_mappings, take_one_fault_each)
{
	const view shown = map_snapshot();
	const std::uint64_t faults = snapshot.stat().faults;

	touch_each(shown);
	EXPECT_EQ(mapped_by_pmd(shown), count * granule);
	EXPECT_EQ(smaps(shown.data())["Rss:"], count * granule);
	EXPECT_EQ(smaps(shown.data())["Pss:"], count * granule);
	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
	EXPECT_EQ(snapshot.stat().faults, faults + count);

	/* Shared with small entries of others. */
	const mapping map = parent.map(PROT_READ);

	EXPECT_EQ(misnumbered(map.bytes(), 1), -1);
	EXPECT_EQ(smaps(map.data())["Rss:"], count * granule);
	EXPECT_EQ(smaps(shown.data())["Pss:"], count * granule / 2);
	EXPECT_EQ(smaps(map.data())["Pss:"], count * granule / 2);
}

TEST_F(huge_mappings, are_not_where_memory_failed)
{
	constexpr std::size_t broken = 100;
	/* By pages, and kept: it is not the mapping that is looked at. */
	const mapping small = parent.map(PROT_READ);
	const view shown = map_snapshot();

	for (std::size_t page = 0; page < granule / page_size; page++)
		(void)small.load(page);
	if (::madvise(small.page(broken).data(), page_size, MADV_HWPOISON) < 0 &&
	    errno == EINVAL)
		GTEST_SKIP() << "this kernel does not handle memory errors";

	touch_each(shown);
	EXPECT_EQ(mapped_by_pmd(shown), (count - 1) * granule);
	EXPECT_EQ(signal_of_load(shown.data() + broken * page_size), SIGBUS);
	EXPECT_EQ(signal_of_load(shown.data() + (broken + 1) * page_size), 0);
	EXPECT_EQ(misnumbered(shown.bytes().subspan(granule), 513), -1);
}

TEST_F(huge_mappings, are_not_where_the_address_does_not_allow_it)
{
	const view shown = map_snapshot(PROT_READ, MAP_SHARED, page_size);

	touch_each(shown);
	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
	EXPECT_EQ(mapped_by_pmd(shown), 0u);
}

/* Once a part of a granule is mapped by pages, the rest is, too. */
TEST_F(huge_mappings, are_of_whole_granules_only)
{
	const view front(snapshot.fd(), 0, granule - page_size, PROT_READ, MAP_SHARED,
			 granule);
	const view back(snapshot.fd(), page_size, granule - page_size, PROT_READ,
			MAP_SHARED, granule);

	EXPECT_EQ(misnumbered(front.bytes(), 1), -1);
	EXPECT_EQ(misnumbered(back.bytes(), 2), -1);
	EXPECT_EQ(mapped_by_pmd(front), 0u);
	EXPECT_EQ(mapped_by_pmd(back), 0u);
}

TEST_F(huge_mappings, end_with_the_region)
{
	parent.truncate(2 * granule + 5 * page_size + 1);

	const region cut = parent.snapshot();
	const view shown(cut.fd(), 0, 3 * granule, PROT_READ, MAP_SHARED, granule);
	const std::size_t last = 2 * granule / page_size + 5;

	touch_each(shown);
	EXPECT_EQ(mapped_by_pmd(shown), 2 * granule);
	EXPECT_EQ(misnumbered(shown.bytes().first(last * page_size), 1), -1);
	EXPECT_TRUE(is_all(shown.page(last).subspan(1), 0));
	EXPECT_EQ(signal_of_load(shown.page(last + 1).data()), SIGBUS);
}

TEST_F(huge_mappings, end_with_the_first_page_of_a_granule)
{
	parent.truncate(2 * granule + page_size);

	const region cut = parent.snapshot();
	const view shown(cut.fd(), 0, 3 * granule, PROT_READ, MAP_SHARED, granule);
	const std::size_t last = 2 * granule / page_size;

	EXPECT_EQ(misnumbered(shown.page(last), static_cast<unsigned int>(last) + 1),
		  -1);
	EXPECT_EQ(mapped_by_pmd(shown), 0u);
	EXPECT_EQ(signal_of_load(shown.page(last + 1).data()), SIGBUS);
}

/* The kernel compares what a page frame says of its place with the file's end. */
TEST_F(huge_mappings, do_not_depend_on_who_had_the_memory_before)
{
	constexpr std::size_t many = 40;
	constexpr std::uint64_t far_out = std::uint64_t{1} << 40;

	make_memfd(0).allocate(far_out, 500 << 20);

	const region large = dev.create(many * granule, 0, {}, huge_shift);

	for (std::size_t offset = 0; offset < many * granule; offset += granule)
		large.fill_page(offset / page_size, 1);

	const region frozen = large.snapshot();
	const view shown(frozen.fd(), 0, many * granule, PROT_READ, MAP_SHARED,
			 granule);

	touch_each(shown);
	EXPECT_EQ(mapped_by_pmd(shown), many * granule);
}

/* munmap, mprotect, mremap and madvise of parts make small entries of them. */
TEST_F(huge_mappings, are_split)
{
	view shown = map_snapshot();
	const std::size_t part = granule / 2;

	touch_each(shown);
	check(::mprotect(shown.data() + granule - part, granule, PROT_NONE),
	      "mprotect");
	EXPECT_EQ(signal_of_load(shown.data() + granule), SIGSEGV);
	EXPECT_EQ(misnumbered(shown.bytes().first(granule - part), 1), -1);
	check(::mprotect(shown.data() + granule - part, granule, PROT_READ),
	      "mprotect");
	check(::madvise(shown.data() + 3 * granule, part, MADV_DONTNEED), "madvise");
	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);

	view whole = map_snapshot();

	touch_each(whole);
	whole.move(0, granule);
	EXPECT_EQ(misnumbered(whole.bytes(), 1), -1);
	whole.move(page_size, granule);
	EXPECT_EQ(misnumbered(whole.bytes(), 1), -1);

	view cut = map_snapshot();

	touch_each(cut);
	cut.shrink(part, 2 * granule);
	EXPECT_EQ(misnumbered(cut.bytes(),
			      static_cast<unsigned int>(part / page_size + 1)),
		  -1);
}

TEST_F(huge_mappings, that_are_private_are_copied_by_the_page)
{
	const view copied = map_snapshot(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const view shown = map_snapshot();
	const std::size_t page = granule / page_size + 7;

	touch_each(copied);
	touch_each(shown);
	EXPECT_EQ(mapped_by_pmd(copied), count * granule);
	fill(copied.page(page), 0xee);
	EXPECT_EQ(misnumbered(copied.bytes(), 1), static_cast<int>(page));
	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
	EXPECT_EQ(snapshot.stat().copies, 0u);
	EXPECT_EQ(smaps(copied.data())["Anonymous:"], page_size);
	EXPECT_EQ(mapped_by_pmd(copied), (count - 1) * granule);

	/* fork(2) of who maps it: each has its own from then on. */
	child other([&] {
		require(is_all(copied.page(page), 0xee), "it is not there");
		fill(copied.page(page), 0xdd);
		fill(copied.page(0), 0xdd);
		require(misnumbered(shown.bytes(), 1) == -1, "the snapshot changed");
	});

	EXPECT_TRUE(other.succeeded());
	EXPECT_EQ(misnumbered(copied.bytes(), 1), static_cast<int>(page));
	EXPECT_TRUE(is_all(copied.page(page), 0xee));

	/* What was written goes, and what the snapshot holds is there again. */
	check(::madvise(copied.data(), copied.size(), MADV_DONTNEED), "madvise");
	EXPECT_EQ(misnumbered(copied.bytes(), 1), -1);
}

/* The pages that one entry maps are their owner's like others. */
TEST_F(huge_mappings, do_not_keep_the_parent_from_its_own)
{
	{
		const view shown = map_snapshot();
		const mapping map = parent.map();

		touch_each(shown);
		(void)signal_of_load(map.data());
		/* Shared: copied, and the entry stays as it is. */
		fill(map.page(3), 0xee);
		EXPECT_EQ(parent.stat().copies, 1u);
		EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
		EXPECT_EQ(mapped_by_pmd(shown), count * granule);
	}
	snapshot.close();

	const mapping map = parent.map();

	fill(map.bytes(), 0xee);
	EXPECT_EQ(parent.stat().copies, 1u);
	EXPECT_EQ(parent.stat().reuses, count - 1);
}

/* Whoever is first makes the entry for both. */
TEST_F(huge_mappings, are_made_by_two_threads_at_once)
{
	const view shown = map_snapshot();
	const view copied = map_snapshot(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const std::size_t last = shown.pages() - 1;
	const std::size_t rounds = scaled(60);

	for (const view *of : {&shown, &copied}) {
		std::size_t wrong = 0;

		together(
			rounds,
			[&] { ::madvise(of->data(), of->size(), MADV_DONTNEED); },
			[&] { touch_each(*of); },
			[&] {
				for (std::size_t page = 3; page < of->pages();
				     page += granule / page_size)
					wrong += !is_all(of->page(page),
							 value_of(page));
			});
		EXPECT_EQ(wrong, 0u);
		EXPECT_EQ(misnumbered(of->bytes(), 1), -1);
	}

	/* One looks at what the other replaces. */
	together(
		rounds,
		[&] { ::madvise(copied.data(), copied.size(), MADV_DONTNEED); },
		[&] { touch_each(copied); },
		[&] { fill(copied.page(last), 0xee); });
	EXPECT_EQ(misnumbered(copied.bytes(), 1), static_cast<int>(last));
	EXPECT_EQ(misnumbered(shown.bytes(), 1), -1);
}

/* vmsplice of a page that a PMD maps holds the granule. */
TEST_F(huge_mappings, can_be_pinned)
{
	view shown = map_snapshot();

	touch_each(shown);

	const page_in_a_pipe held_page(shown.page(9));

	shown = view();
	snapshot.close();
	fill(parent.map().bytes(), 0xee);
	EXPECT_EQ(parent.stat().copies, 1u);
	EXPECT_TRUE(is_all(held_page.read(), 10));
}

/* Who wants none of it gets the same bytes. */
TEST_F(huge_mappings, may_be_refused_by_a_process)
{
	child other([&] {
		check(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl");

		const view shown = map_snapshot();
		const view copied = map_snapshot(PROT_READ | PROT_WRITE, MAP_PRIVATE);

		require(misnumbered(shown.bytes(), 1) == -1, "shows something else");
		fill(copied.page(3), 0xee);
		require(misnumbered(copied.bytes(), 1) == 3, "shows something else");
		require(misnumbered(shown.bytes(), 1) == -1, "the snapshot changed");
	});

	EXPECT_TRUE(other.succeeded());
}

/* A FORK is of one instant, however much a fault makes writable. */
class granules_of_one_instant : public granules {
protected:
	/* Stores the number of the round to every second page in turn. */
	class writer {
	public:
		writer(const mapping &map, std::size_t first)
			: map_(map), first_(first), thread_([this] { run(); })
		{
		}
		~writer()
		{
			if (thread_.joinable())
				stop();
		}

		/* After the round that it is in; returns its number. */
		std::uint64_t stop()
		{
			stop_ = true;
			thread_.join();
			return round_;
		}

	private:
		void run()
		{
			while (!stop_) {
				round_++;
				for (std::size_t page = first_; page < map_.pages();
				     page += 2)
					map_.store(page, round_);
			}
		}

		const mapping &map_;
		std::size_t first_;
		std::atomic<bool> stop_ = false;
		std::uint64_t round_ = 0;
		std::thread thread_;
	};

	/* What the writer who began at page @first has stored. */
	static std::vector<std::uint64_t> words_of(const region &file,
						   std::size_t first)
	{
		const mapping map = file.map(PROT_READ);
		std::vector<std::uint64_t> words;

		for (std::size_t page = first; page < map.pages(); page += 2)
			words.push_back(map.load(page));
		return words;
	}

	static void expect_one_instant(const region &file)
	{
		for (const std::size_t first : {0, 1}) {
			const std::vector<std::uint64_t> words =
				words_of(file, first);
			const std::optional<std::string> wrong = torn(words);

			ASSERT_FALSE(wrong) << *wrong;
			/* And it does not change any more. */
			ASSERT_EQ(words_of(file, first), words);
		}
	}
};

INSTANTIATE_TEST_SUITE_P(, granules_of_one_instant,
			 testing::Values(kind{page_shift + 4, false}, kind{page_shift + 6, true},
					 kind{huge_shift, false}),
			 name_of);

/* By two threads that meet in every granule. */
TEST_P(granules_of_one_instant, are_forked_and_restored)
{
	const region parent = create(2);
	const region restored = parent.fork();
	const mapping map = parent.map();
	const deadline end = scaled_deadline(std::chrono::milliseconds(700));
	writer even(map, 0), odd(map, 1);

	do {
		expect_one_instant(parent.fork());
		restored.restore(parent);
		expect_one_instant(restored);
	} while (!passed(end) && !HasFatalFailure());

	/* No store is lost. */
	for (const auto &[thread, first] : {std::pair{&even, 0}, {&odd, 1}}) {
		const std::uint64_t last = thread->stop();

		for (const std::uint64_t word :
		     words_of(parent, static_cast<std::size_t>(first)))
			EXPECT_EQ(word, last);
	}
}

/* Two mappings of one granule, one of which is always about to be made. */
TEST_P(granules_of_one_instant, are_shown_alike_by_all_mappings)
{
	const region parent = create(1);
	const mapping map = parent.map();
	const deadline end = scaled_deadline(std::chrono::milliseconds(400));
	chance random(shift());

	do {
		const std::size_t page = random.below(pages());
		const view other(parent.fd(), 0, granule(), PROT_READ | PROT_WRITE,
				 MAP_SHARED, 2 << 20,
				 random.below(2) * page_size);
		region snapshot;
		std::thread forker([&] { snapshot = parent.snapshot(); });
		const auto value = static_cast<unsigned int>(random.between(1, 255));

		fill(other.page(page), value);
		EXPECT_TRUE(is_all(map.page(page), value));
		forker.join();

		/* It came before some of the bytes and after others. */
		const std::vector<std::byte> then = snapshot.read_page(page);

		fill(map.page(page), 0);
		EXPECT_TRUE(is_all(other.page(page), 0));
		EXPECT_EQ(snapshot.read_page(page), then);
		EXPECT_EQ(std::ranges::count(then, std::byte{0}) +
				  std::ranges::count(then,
						     static_cast<std::byte>(value)),
			  std::ssize(then));
	} while (!passed(end));
}

/*
 * Two threads may find a granule unshared at the same time.  The page that the core
 * holds for the other one looks like a pin, so it is taken as it is or is copied; but
 * once, and nothing is lost.
 */
class granules_of_two_threads : public granules {};

INSTANTIATE_TEST_SUITE_P(, granules_of_two_threads,
			 testing::Values(kind{page_shift, false}, kind{page_shift + 4, false},
					 kind{huge_shift, false}),
			 name_of);

TEST_P(granules_of_two_threads, are_made_writable_once)
{
	const region parent = filled(1);
	const mapping map = parent.map();
	const std::size_t rounds = scaled(100);

	together(
		rounds,
		[&] {
			(void)parent.fork();
			load(map, 0);
			load(map, map.pages() - 1);
		},
		[&] { store(map, 0); },
		[&] { map.bytes().back() = std::byte{1}; });
	EXPECT_EQ(parent.stat().reuses + parent.stat().copies, rounds);
}

using cut_granule = cowsnap_fixture;

/* As in a file: what is written to a page that was cut off does not come back. */
TEST_F(cut_granule, keeps_nothing_that_a_pin_writes_behind_its_end)
{
	const region parent = dev.create(16 * page_size, 0, {}, page_shift + 4);
	const mapping map = parent.map();

	fill(map.bytes(), 1);

	pinned_write pin(map.page(3));

	parent.truncate(page_size);
	pin.write(7);
	parent.truncate(16 * page_size);
	EXPECT_TRUE(is_all(parent.read_page(3), 0));
	EXPECT_TRUE(is_all(map.page(3), 0));
}

class granule_memory : public granules {};

INSTANTIATE_TEST_SUITE_P(, granule_memory,
			 testing::Values(kind{page_shift + 4, false}, kind{huge_shift, false}),
			 name_of);

/* A leak of a tenth would be a multiple of the slack. */
TEST_P(granule_memory, returns_to_where_it_was)
{
	const std::size_t count = std::max<std::size_t>(2, (4 << 20) / granule());
	std::uint64_t available = 0;

	for (int round = 0; round < 8; round++) {
		/* The first rounds are for what the kernel keeps. */
		if (round == 2)
			available = available_memory();

		const region parent = create(count);

		store_once(parent.map());

		const region child = parent.fork();
		const mapping child_map = child.map();

		store_once(child_map);
		store_once(parent.map());

		const region snapshot = child.snapshot();

		load_all(snapshot.map(PROT_READ));
		store(child_map, 0);
	}
	expect_back(dev, before);
	expect_memory_back(available, 4 << 20);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
