// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memory a family takes, what a region alone gives back, and when a write
 * copies: holes, sharing, the sole-owner rule, faults.
 */
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

class sharing : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 64;

	/* Expects that closing @member gives back what it calls exclusive. */
	void expect_close_gives_exclusive(region &member) const
	{
		const std::uint64_t exclusive = member.stat().exclusive;
		const std::uint64_t held = counters(dev).held_bytes;

		member.close();
		EXPECT_EQ(held - counters(dev).held_bytes, exclusive);
	}
};

TEST_F(sharing, a_hole_takes_no_memory)
{
	constexpr std::size_t size = 64 << 20;
	const region subject = dev.create(size);
	const std::uint64_t available = available_memory();
	const mapping map = subject.map();
	std::uint64_t sum = 0;

	for (std::size_t page = 0; page < map.pages(); page++)
		sum += map.load(page);
	EXPECT_EQ(sum, 0u);
	EXPECT_EQ(held_pages(), 0u);
	EXPECT_EQ(subject.stat().referenced, 0u);
	EXPECT_EQ(subject.stat().zero_fills, 0u);
	/* The page tables, and what others do. */
	EXPECT_GT(available_memory() + (8 << 20), available);
	EXPECT_TRUE(is_all(subject.read(size / 2, 1 << 20), 0));
	EXPECT_EQ(held_pages(), 0u);
}

TEST_F(sharing, a_fork_takes_no_memory)
{
	constexpr std::size_t size = 16 << 20;
	const region parent = dev.create(size);
	const mapping map = parent.map();
	std::vector<region> forks;

	fill(map.bytes(), 1);
	EXPECT_EQ(held_pages(), size / page_size);

	const std::uint64_t available = available_memory();

	for (int i = 0; i < 20; i++) {
		forks.push_back(i % 2 ? parent.fork() : parent.snapshot());
		EXPECT_TRUE(is_all(forks.back().map(PROT_READ).bytes(), 1));
		EXPECT_EQ(forks.back().stat().referenced, size);
		EXPECT_EQ(forks.back().stat().exclusive, 0u);
	}
	EXPECT_EQ(held_pages(), size / page_size);
	EXPECT_GT(available_memory() + (8 << 20), available);
}

TEST_F(sharing, a_write_takes_what_is_written)
{
	const region parent = numbered(pages);
	const region child = parent.fork();
	const mapping map = child.map();

	for (std::size_t page = 0; page < 10; page++)
		map.store(page * 5, 1);
	EXPECT_EQ(held_pages(), pages + 10);
	EXPECT_EQ(child.stat().exclusive, 10 * page_size);
	EXPECT_EQ(child.stat().referenced, pages * page_size);
	EXPECT_EQ(child.stat().dirty, 10 * page_size);
	EXPECT_EQ(child.stat().copies, 10u);
	EXPECT_EQ(child.stat().bytes_copied, 10 * page_size);
	EXPECT_EQ(parent.stat().exclusive, 10 * page_size);
	EXPECT_EQ(parent.stat().dirty, 0u);
	EXPECT_EQ(parent.stat().copies, 0u);
}

TEST_F(sharing, dirty_is_what_changed_since_the_last_fork)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	EXPECT_EQ(parent.stat().dirty, 0u);
	map.store(3, 1);
	map.store(4, 1);
	parent.fill_page(5, 1);
	EXPECT_EQ(parent.stat().dirty, 3 * page_size);

	const region first = parent.snapshot();

	EXPECT_EQ(parent.stat().dirty, 0u);
	EXPECT_EQ(first.stat().dirty, 0u);
	map.store(4, 2);
	map.store(4, 3);
	map.store(40, 1);
	(void)map.load(5);
	EXPECT_EQ(parent.stat().dirty, 2 * page_size);
	EXPECT_EQ(first.stat().dirty, 0u);

	const region second = parent.fork();

	EXPECT_EQ(parent.stat().dirty, 0u);
	second.fill_page(50, 1);
	EXPECT_EQ(second.stat().dirty, page_size);

	/* Forking the fork settles the fork, not its parent. */
	map.store(6, 1);

	const region third = second.snapshot();

	EXPECT_EQ(second.stat().dirty, 0u);
	EXPECT_EQ(third.stat().dirty, 0u);
	EXPECT_EQ(parent.stat().dirty, page_size);
}

TEST_F(sharing, exclusive_is_what_closing_gives_back)
{
	region parent = numbered(pages);
	region child = parent.fork();
	region grandchild = child.fork();
	region snapshot = child.snapshot();

	child.fill_page(0, 99);
	child.fill_page(1, 99);
	grandchild.fill_page(1, 98);
	parent.fill_page(2, 97);
	/* Page 0: parent, child, the two others; and so on. */
	EXPECT_EQ(held_pages(), pages + 4);
	EXPECT_EQ(parent.stat().exclusive, 1 * page_size);
	EXPECT_EQ(child.stat().exclusive, 2 * page_size);
	EXPECT_EQ(grandchild.stat().exclusive, 1 * page_size);
	EXPECT_EQ(snapshot.stat().exclusive, 0u);
	expect_close_gives_exclusive(child);
	expect_close_gives_exclusive(parent);
	expect_close_gives_exclusive(snapshot);
	EXPECT_EQ(grandchild.stat().exclusive, pages * page_size);
	expect_close_gives_exclusive(grandchild);
	EXPECT_EQ(held_pages(), 0u);
}

TEST_F(sharing, shows_in_smaps)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();

	EXPECT_EQ(map.load(0), 0x0101010101010101u);
	for (std::size_t page = 0; page < pages; page++)
		map.store(page, page);
	EXPECT_EQ(smaps(map.data())["Rss:"], pages * page_size);
	EXPECT_EQ(smaps(map.data())["Pss:"], pages * page_size);

	const region child = parent.fork();
	const mapping child_map = child.map();

	for (std::size_t page = 0; page < pages; page++)
		ASSERT_EQ(map.load(page), child_map.load(page));
	for (const mapping *shown : {&map, &child_map}) {
		EXPECT_EQ(smaps(shown->data())["Rss:"], pages * page_size);
		EXPECT_EQ(smaps(shown->data())["Pss:"], pages * page_size / 2);
	}
	/* A quarter of it is not shared any more. */
	for (std::size_t page = 0; page < pages / 4; page++)
		child_map.store(page, 1);
	for (const mapping *shown : {&map, &child_map}) {
		EXPECT_EQ(smaps(shown->data())["Rss:"], pages * page_size);
		EXPECT_EQ(smaps(shown->data())["Pss:"],
			  pages * page_size / 4 + pages * page_size * 3 / 8);
	}
}

class sole_owner : public sharing {
protected:
	/* Expects that writing every page by @write copies nothing. */
	template <typename Write>
	void expect_reuse(const region &owner, std::size_t count, Write &&write)
	{
		const cowsnap_stat stat = owner.stat();
		const std::uint64_t held = held_pages();

		write();

		const cowsnap_stat now = owner.stat();

		EXPECT_EQ(now.copies, stat.copies);
		EXPECT_EQ(now.bytes_copied, stat.bytes_copied);
		EXPECT_EQ(now.zero_fills, stat.zero_fills);
		EXPECT_EQ(now.reuses, stat.reuses + count);
		EXPECT_EQ(now.dirty, stat.dirty + count * page_size);
		EXPECT_EQ(held_pages(), held);
	}

	static void store_all(const mapping &map)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			map.store(page, 100 + page);
	}

	static void load_all(const mapping &map)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			(void)map.load(page);
	}
};

TEST_F(sole_owner, writes_in_place_after_its_child_closed)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();

	store_all(map);
	parent.fork();
	expect_reuse(parent, pages, [&] { store_all(map); });
	/* Only the first write counts as one. */
	expect_reuse(parent, 0, [&] { store_all(map); });
	EXPECT_EQ(parent.stat().exclusive, pages * page_size);
}

TEST_F(sole_owner, writes_in_place_where_it_has_read)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	const mapping second = parent.map();

	store_all(map);
	parent.snapshot();
	load_all(map);
	load_all(second);
	expect_reuse(parent, pages, [&] { store_all(map); });
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(second.load(page), 100 + page);
}

TEST_F(sole_owner, writes_in_place_where_another_process_has_read)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	const event read, done;
	child other([&] {
		load_all(map);
		read.tell();
		done.wait();
		for (std::size_t page = 0; page < pages; page++)
			require(map.load(page) == 100 + page, "a store does not show");
	});

	read.wait();
	parent.fork();
	expect_reuse(parent, pages, [&] { store_all(map); });
	done.tell();
	EXPECT_TRUE(other.succeeded());
}

TEST_F(sole_owner, writes_in_place_by_write)
{
	const region parent = numbered(pages);

	parent.fork();
	expect_reuse(parent, pages, [&] {
		for (std::size_t page = 0; page < pages; page++)
			parent.write(page * page_size + 7, bytes_of(10, 99));
	});
}

TEST_F(sole_owner, is_the_child_when_its_parent_closed)
{
	region parent = numbered(pages);
	const region child = parent.fork();
	const mapping map = child.map();

	load_all(map);
	parent.close();
	expect_reuse(child, pages, [&] { store_all(map); });
}

TEST_F(sole_owner, is_who_keeps_what_all_others_replaced)
{
	const region parent = numbered(pages);
	const region first = parent.fork();
	const region second = first.fork();
	const mapping map = parent.map();

	store_all(first.map());
	for (std::size_t page = 0; page < pages; page++)
		second.write(page * page_size, bytes_of(5, 3));
	expect_reuse(parent, pages, [&] { store_all(map); });
}

/* A write of one page in a leaf says nothing about its neighbours. */
TEST_F(sole_owner, is_decided_page_by_page)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	region child = parent.fork();

	for (std::size_t page = 0; page < pages; page += 2)
		map.store(page, 1);
	EXPECT_EQ(parent.stat().copies, pages / 2);
	child.close();
	expect_reuse(parent, pages / 2, [&] { store_all(map); });
}

TEST_F(sole_owner, is_nobody_while_a_grandchild_lives)
{
	const region parent = numbered(pages);
	region child = parent.fork();
	region grandchild = child.snapshot();
	const mapping map = parent.map();

	child.close();
	for (std::size_t page = 0; page < pages / 2; page++)
		map.store(page, 1);
	EXPECT_EQ(parent.stat().copies, pages / 2);
	EXPECT_EQ(parent.stat().reuses, 0u);
	EXPECT_EQ(misnumbered_page(grandchild, pages, 1), -1);
	grandchild.close();
	expect_reuse(parent, pages / 2, [&] { store_all(map); });
}

TEST_F(sole_owner, is_nobody_while_the_others_mapping_lives)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	region child = parent.fork();
	mapping child_map = child.map(PROT_READ);

	load_all(child_map);
	child.close();
	map.store(0, 1);
	EXPECT_EQ(parent.stat().copies, 1u);
	EXPECT_TRUE(is_all(child_map.page(0), 1));
	child_map.reset();
	expect_reuse(parent, pages - 1, [&] { store_all(map); });
}

/*
 * A pipe that got the page from a member that is closed now must not see what the
 * remaining member writes: CVE-2020-29374.
 */
TEST_F(sole_owner, is_nobody_while_a_pipe_has_the_page)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();

	{
		const page_in_a_pipe held(parent.fork().map().page(3));

		load_all(map);
		fill(map.page(3), 99);
		EXPECT_EQ(parent.stat().copies, 1u);
		EXPECT_EQ(parent.stat().reuses, 0u);
		EXPECT_TRUE(is_all(held.read(), 4));
	}
	expect_reuse(parent, pages - 1, [&] {
		for (std::size_t page = 0; page < pages; page++)
			if (page != 3)
				map.store(page, 1);
	});
}

/* The same where the write finds no entry, and where it is a write(2). */
TEST_F(sole_owner, is_nobody_while_a_pipe_has_the_page_of_an_absent_entry)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	region child = parent.snapshot();
	mapping child_map = child.map(PROT_READ);
	const page_in_a_pipe stored(child_map.page(3));
	const page_in_a_pipe written(child_map.page(4));

	child_map.reset();
	child.close();
	fill(map.page(3), 99);
	parent.write(4 * page_size, bytes_of(100, 98));
	EXPECT_EQ(parent.stat().copies, 2u);
	EXPECT_TRUE(is_all(stored.read(), 4));
	EXPECT_TRUE(is_all(written.read(), 5));
}

class fault_counts : public sole_owner {
protected:
	static std::uint64_t minor_faults()
	{
		rusage usage = {};

		check(::getrusage(RUSAGE_THREAD, &usage), "getrusage");
		return static_cast<std::uint64_t>(usage.ru_minflt);
	}

	void SetUp() override
	{
		/* The code and the stack that are used below have faulted in. */
		const mapping memory = anonymous(page_size);

		store_all(memory);
		load_all(memory);
		minor_faults();
		dev.create_pages(1).stat();
	}

	/* Expects that @access takes @count faults, by both accounts. */
	template <typename Access>
	static void expect_faults(const region &member, std::uint64_t count,
				  Access &&access)
	{
		const std::uint64_t stat = member.stat().faults;
		const std::uint64_t process = minor_faults();

		access();
		EXPECT_EQ(minor_faults() - process, count);
		EXPECT_EQ(member.stat().faults - stat, count);
	}
};

TEST_F(fault_counts, one_for_the_first_write_of_a_hole)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	expect_faults(subject, pages, [&] { store_all(map); });
	expect_faults(subject, 0, [&] { store_all(map); });
	expect_faults(subject, 0, [&] { load_all(map); });
}

TEST_F(fault_counts, one_for_the_write_of_a_hole_that_was_read)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	load_all(map);
	expect_faults(subject, 0, [&] { load_all(map); });
	expect_faults(subject, pages, [&] { store_all(map); });
}

TEST_F(fault_counts, one_for_a_copy_of_an_absent_page)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();

	store_all(map);

	const region child = parent.fork();

	expect_faults(parent, pages, [&] { store_all(map); });
	EXPECT_EQ(parent.stat().copies, pages);
	expect_faults(parent, 0, [&] { store_all(map); });
}

TEST_F(fault_counts, one_for_a_copy_of_a_present_page)
{
	const region parent = numbered(pages);
	const region child = parent.fork();
	const mapping map = child.map();

	load_all(map);
	expect_faults(child, pages, [&] { store_all(map); });
	EXPECT_EQ(child.stat().copies, pages);
	expect_faults(child, 0, [&] { load_all(map); });
	expect_faults(child, 0, [&] { store_all(map); });
}

TEST_F(fault_counts, one_for_a_reuse)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();

	store_all(map);
	parent.fork();
	expect_faults(parent, pages, [&] { store_all(map); });
	parent.fork();
	load_all(map);
	expect_faults(parent, pages, [&] { store_all(map); });
	EXPECT_EQ(parent.stat().copies, 0u);
}

/* A snapshot's and a clean region's pages may come several at a time. */
TEST_F(fault_counts, none_for_what_was_read_already)
{
	const region parent = numbered(pages);
	const region snapshot = parent.snapshot();

	for (const region *member : {&parent, &snapshot}) {
		const mapping map = member->map(PROT_READ);
		const std::uint64_t faults = member->stat().faults;

		load_all(map);
		EXPECT_GE(member->stat().faults, faults + 1);
		EXPECT_LE(member->stat().faults, faults + pages);
		expect_faults(*member, 0, [&] { load_all(map); });
	}
}

/* A FORK takes nothing from who maps the other members. */
TEST_F(fault_counts, none_in_a_sibling)
{
	const region parent = numbered(pages);
	const region sibling = parent.fork();
	const mapping map = sibling.map();

	store_all(map);
	parent.map().store(0, 1);

	const region child = parent.fork();

	expect_faults(sibling, 0, [&] { store_all(map); });
}

TEST_F(sharing, memory_returns_to_where_it_was)
{
	constexpr std::size_t size = 8 << 20;
	std::uint64_t available = 0;

	/*
	 * A leak of a tenth would be a multiple of the slack.  The first rounds are
	 * for what the kernel keeps free for each CPU, which is not available.
	 */
	for (int i = 0; i < 22; i++) {
		if (i == 2)
			available = available_memory();

		const region parent = dev.create(size);
		const mapping map = parent.map();

		fill(map.bytes(), 1);

		const region child = parent.fork();
		const mapping child_map = child.map();

		for (std::size_t page = 0; page < map.pages(); page++) {
			map.store(page, page);
			child_map.store(page, page);
		}
	}
	expect_back(dev, before);
	expect_memory_back(available, 8 << 20);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
