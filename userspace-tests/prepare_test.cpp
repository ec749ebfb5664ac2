// SPDX-License-Identifier: GPL-2.0-only
/*
 * PREPARE: what is left, what the next store costs, and that nobody sees anything
 * else.  consistent_cut_test.cpp has PREPARE and FORK together under writers.
 */
#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>

#include <sys/mman.h>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

class preparing : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 64;

	static void store_all(const mapping &map, std::uint64_t value)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			map.store(page, value + page);
	}

	/* How many of the pages [@first, @last] fault when they are stored to. */
	static std::uint64_t faults_of_stores(const region &file, const mapping &map,
					      std::size_t first, std::size_t last)
	{
		const std::uint64_t faults = file.stat().faults;

		for (std::size_t page = first; page <= last; page++)
			map.store(page, 7);
		return file.stat().faults - faults;
	}
};

TEST_F(preparing, leaves_nothing_and_changes_nothing_that_anyone_sees)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	store_all(map, 100);

	const cowsnap_stat stat = subject.stat();
	const counters count(dev);

	EXPECT_EQ(subject.prepare(), 0u);
	EXPECT_EQ(subject.prepare(), 0u);

	const cowsnap_stat after = subject.stat();

	EXPECT_EQ(std::memcmp(&stat, &after, sizeof(stat)), 0);
	EXPECT_EQ(counters(dev), count);
	for (std::size_t page = 0; page < pages; page++) {
		EXPECT_EQ(map.load(page), 100 + page);
		EXPECT_EQ(subject.map(PROT_READ).load(page), 100 + page);
	}
}

TEST_F(preparing, makes_the_next_store_fault_once_and_copy_nothing)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	store_all(map, 100);
	ASSERT_EQ(subject.prepare(), 0u);

	const cowsnap_stat stat = subject.stat();

	EXPECT_EQ(faults_of_stores(subject, map, 0, pages - 1), pages);
	EXPECT_EQ(faults_of_stores(subject, map, 0, pages - 1), 0u);

	const cowsnap_stat after = subject.stat();

	EXPECT_EQ(after.copies, stat.copies);
	EXPECT_EQ(after.reuses, stat.reuses);
	EXPECT_EQ(after.zero_fills, stat.zero_fills);
	EXPECT_EQ(after.dirty, stat.dirty);
	EXPECT_EQ(after.referenced, stat.referenced);
	EXPECT_EQ(after.exclusive, stat.exclusive);
	EXPECT_EQ(subject.prepare(1), pages - 1);
}

TEST_F(preparing, respects_its_budget)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	/* Not all together: every second one. */
	for (std::size_t page = 0; page < pages; page += 2)
		map.store(page, 1);
	for (std::uint64_t left = pages / 2; left > 0;) {
		left -= std::min<std::uint64_t>(left, 5);
		EXPECT_EQ(subject.prepare(5), left);
	}
	EXPECT_EQ(subject.prepare(5), 0u);
	EXPECT_EQ(subject.stat().dirty, pages / 2 * page_size);
}

TEST_F(preparing, takes_any_budget)
{
	const region subject = dev.create_pages(5000);
	const mapping map = subject.map();

	store_all(map, 1);
	EXPECT_EQ(subject.prepare(1), 4999u);
	EXPECT_EQ(subject.prepare(999), 4000u);
	EXPECT_EQ(subject.prepare(1500), 2500u);
	EXPECT_EQ(subject.prepare(std::numeric_limits<std::uint64_t>::max()), 0u);
	store_all(map, 2);
	EXPECT_EQ(subject.prepare(), 0u);
	store_all(map, 3);
	EXPECT_EQ(subject.prepare(4999), 1u);
}

TEST_F(preparing, goes_on_where_it_stopped)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	store_all(map, 1);
	EXPECT_EQ(subject.prepare(10), pages - 10);
	/* Written again behind it: their turn comes when it is round. */
	EXPECT_EQ(faults_of_stores(subject, map, 0, 9), 10u);
	EXPECT_EQ(subject.prepare(20), pages - 20);
	EXPECT_EQ(faults_of_stores(subject, map, 0, 9), 0u);
	EXPECT_EQ(faults_of_stores(subject, map, 10, 29), 20u);
	EXPECT_EQ(faults_of_stores(subject, map, 30, pages - 1), 0u);
	EXPECT_EQ(subject.prepare(pages - 30 + 5), 25u);
	EXPECT_EQ(faults_of_stores(subject, map, 5, 29), 0u);
	EXPECT_EQ(faults_of_stores(subject, map, 0, 4), 5u);
	EXPECT_EQ(faults_of_stores(subject, map, 30, pages - 1), pages - 30);
}

TEST_F(preparing, counts_what_write_and_other_processes_wrote)
{
	const region subject = dev.create_pages(pages);
	child other([&] { store_all(subject.map(), 1); });

	EXPECT_TRUE(other.succeeded());
	EXPECT_EQ(subject.prepare(4), pages - 4);
	EXPECT_EQ(subject.prepare(), 0u);
	subject.fill_page(3, 1);
	subject.fill_page(33, 1);
	EXPECT_EQ(subject.prepare(1), 1u);
	EXPECT_EQ(subject.prepare(1), 0u);
}

TEST_F(preparing, has_nothing_to_do_where_nothing_was_written)
{
	const region subject = dev.create_pages(pages);

	EXPECT_EQ(subject.prepare(), 0u);
	EXPECT_EQ(dev.create(0).prepare(3), 0u);

	const mapping map = subject.map();

	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(map.load(page), 0u);
	EXPECT_EQ(subject.prepare(), 0u);
	store_all(map, 1);

	const region snapshot = subject.snapshot();
	const region child = subject.fork();

	for (const region *each : {&subject, &snapshot, &child}) {
		EXPECT_EQ(each->prepare(), 0u);
		EXPECT_EQ(each->prepare(1), 0u);
	}
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(map.load(page), 1 + page);
	EXPECT_EQ(subject.prepare(), 0u);
}

TEST_F(preparing, of_a_snapshot_leaves_its_mappings_alone)
{
	const region subject = dev.create_pages(pages);

	store_all(subject.map(), 1);

	const region snapshot = subject.snapshot();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping own = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

	for (std::size_t page = 0; page < pages; page++)
		(void)shown.load(page);
	own.store(3, 5);

	const std::uint64_t faults = snapshot.stat().faults;

	EXPECT_EQ(snapshot.prepare(), 0u);
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(shown.load(page), 1 + page);
	EXPECT_EQ(own.load(3), 5u);
	EXPECT_EQ(snapshot.stat().faults, faults);
}

/* How the pages that were prepared are used before and after the FORK. */
class before_a_fork : public preparing,
		      public testing::WithParamInterface<std::string> {};

INSTANTIATE_TEST_SUITE_P(, before_a_fork,
			 testing::Values("untouched", "loaded", "stored", "toggled",
					 "loaded_and_toggled", "written", "moved",
					 "stored_by_another"),
			 [](const auto &info) { return info.param; });

TEST_P(before_a_fork, is_in_the_fork_and_what_comes_after_is_not)
{
	const std::string use = GetParam();
	const region parent = dev.create_pages(pages);
	mapping map = parent.map();
	std::uint64_t value = 100;

	store_all(map, value);
	ASSERT_EQ(parent.prepare(), 0u);
	if (use.starts_with("loaded")) {
		for (std::size_t page = 0; page < pages; page++)
			ASSERT_EQ(map.load(page), value + page);
	}
	if (use.ends_with("toggled")) {
		map.protect(PROT_READ);
		map.protect(PROT_READ | PROT_WRITE);
	}
	if (use == "moved")
		map.move();
	if (use == "stored")
		store_all(map, value = 200);
	if (use == "stored_by_another") {
		child other([&] { store_all(parent.map(), 200); });

		ASSERT_TRUE(other.succeeded());
		value = 200;
	}
	if (use == "written") {
		value = 200;
		for (std::uint64_t page = 0; page < pages; page++) {
			const std::uint64_t word = value + page;

			parent.write(page * page_size,
				     std::as_bytes(std::span(&word, 1)));
		}
	}

	const region forked = parent.fork();
	const mapping forked_map = forked.map();

	if (use.ends_with("toggled")) {
		map.protect(PROT_READ);
		map.protect(PROT_READ | PROT_WRITE);
	}
	EXPECT_EQ(parent.stat().dirty, 0u);
	EXPECT_EQ(forked.stat().exclusive, 0u);
	store_all(map, 300);
	EXPECT_EQ(parent.stat().copies, pages);
	for (std::size_t page = 0; page < pages; page++) {
		EXPECT_EQ(map.load(page), 300 + page);
		EXPECT_EQ(forked_map.load(page), value + page);
	}
}

TEST_F(preparing, between_stores_of_two_processes)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	const event stored, prepared, forked;
	child other([&] {
		const mapping own = parent.map();

		store_all(own, 100);
		stored.tell();
		prepared.wait();
		for (std::size_t page = 0; page < pages; page += 2)
			own.store(page, 200 + page);
		stored.tell();
		forked.wait();
		store_all(own, 300);
		stored.tell();
	});

	stored.wait();
	(void)map.load(0);
	ASSERT_EQ(parent.prepare(), 0u);
	prepared.tell();
	stored.wait();
	EXPECT_EQ(parent.prepare(1), pages / 2 - 1);

	const region snapshot = parent.snapshot();

	forked.tell();
	stored.wait();
	EXPECT_TRUE(other.succeeded());

	const mapping shown = snapshot.map(PROT_READ);

	for (std::size_t page = 0; page < pages; page++) {
		EXPECT_EQ(map.load(page), 300 + page);
		EXPECT_EQ(shown.load(page), (page % 2 ? 100 : 200) + page);
	}
}

/* Comes back, however busy the writers are, and loses none of their stores. */
TEST_F(preparing, under_writers)
{
	const region subject = dev.create_pages(2000);
	std::atomic<bool> stop = false;
	std::atomic<std::uint64_t> lost = 0;
	std::thread writer([&] {
		const mapping map = subject.map();

		for (std::uint64_t round = 1; !stop; round++) {
			for (std::size_t page = 0; page < map.pages(); page++) {
				lost += map.load(page) != round - 1;
				map.store(page, round);
			}
		}
	});
	const deadline end = scaled_deadline(std::chrono::milliseconds(800));
	std::uint64_t calls = 0;

	for (; !passed(end, [&] { return calls >= 10; }); calls++)
		EXPECT_LE(subject.prepare(calls % 3 * 700), 2000u);
	stop = true;
	writer.join();
	EXPECT_EQ(lost, 0u);
	EXPECT_GE(calls, 10u);
	EXPECT_EQ(subject.prepare(), 0u);
}

TEST_F(preparing, leaves_pinned_pages_to_the_fork)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	for (std::size_t page = 0; page < pages; page++)
		fill(map.page(page), static_cast<unsigned int>(page + 1));

	const page_in_a_pipe held(map.page(3));
	const page_in_a_pipe held_on(map.page(20));

	EXPECT_EQ(parent.prepare(), 2u);
	EXPECT_EQ(parent.prepare(), 2u);
	fill(map.page(20), 50);

	const region child = parent.fork();

	EXPECT_EQ(child.stat().exclusive, 2 * page_size);
	EXPECT_EQ(parent.stat().exclusive, 2 * page_size);
	EXPECT_EQ(parent.prepare(), 2u);
	EXPECT_EQ(child.prepare(), 0u);
	fill(map.page(3), 60);
	fill(child.map().page(20), 70);
	/* Still where the pipe looks, and the child is not. */
	EXPECT_TRUE(is_all(held.read(), 60));
	EXPECT_TRUE(is_all(child.read_page(3), 4));
	EXPECT_EQ(parent.prepare(), 1u);
	EXPECT_TRUE(is_all(held_on.read(), 50));
	EXPECT_TRUE(is_all(parent.read_page(20), 50));
	EXPECT_EQ(parent.prepare(), 0u);
	EXPECT_EQ(parent.snapshot().stat().exclusive, 0u);
}

/* Each pinned page is seen to, and paid for, although it stays. */
TEST_F(preparing, counts_pinned_pages_in_its_budget)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	store_all(map, 1);

	const page_in_a_pipe held(map.page(3));

	EXPECT_EQ(subject.prepare(10), pages - 9);
	EXPECT_EQ(subject.prepare(), 1u);
}

/* Pinned only after PREPARE: whoever holds it does not see later writes. */
TEST_F(preparing, before_a_page_is_pinned)
{
	region parent = dev.create_pages(pages);
	mapping map = parent.map();

	for (std::size_t page = 0; page < pages; page++)
		fill(map.page(page), 1);
	ASSERT_EQ(parent.prepare(), 0u);

	const page_in_a_pipe held(map.page(0));
	const page_in_a_pipe held_on(map.page(1));
	const region child = parent.fork();

	fill(child.map().page(0), 2);
	map.reset();
	parent.close();
	fill(child.map().page(1), 3);
	EXPECT_TRUE(is_all(held.read(), 1));
	EXPECT_TRUE(is_all(held_on.read(), 1));
}

TEST_F(preparing, and_truncation)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	store_all(map, 1);
	EXPECT_EQ(subject.prepare(10), pages - 10);
	/* What is cut off, open or not, is not left any more. */
	subject.truncate(20 * page_size);
	EXPECT_EQ(subject.prepare(1), 9u);
	subject.truncate(0);
	EXPECT_EQ(subject.prepare(1), 0u);
	subject.truncate(pages * page_size);
	EXPECT_EQ(map.load(3), 0u);
	map.store(3, 3);
	map.store(40, 40);
	EXPECT_EQ(subject.prepare(1), 1u);
	EXPECT_EQ(subject.prepare(1), 0u);

	const region snapshot = subject.snapshot();

	store_all(map, 9);
	EXPECT_EQ(snapshot.map(PROT_READ).load(3), 3u);
	EXPECT_EQ(snapshot.map(PROT_READ).load(40), 40u);
}

TEST_F(preparing, far_away)
{
	const region subject = dev.create(largest_length);

	for (const std::uint64_t offset :
	     {std::uint64_t{0}, std::uint64_t{1} << 32, std::uint64_t{1} << 60,
	      (std::uint64_t{1} << 63) - 2 * page_size})
		subject.write(offset, bytes_of(8, 1));
	EXPECT_EQ(subject.prepare(1), 3u);
	EXPECT_EQ(subject.prepare(2), 1u);
	EXPECT_EQ(subject.prepare(), 0u);
}

/* What FORK does first by itself, when there is much, is no less right. */
TEST_F(preparing, is_what_a_fork_of_much_does)
{
	constexpr std::size_t many = 3000;
	const region parent = dev.create_pages(many);
	const mapping map = parent.map();

	for (std::uint64_t round = 1; round <= 3; round++) {
		store_all(map, round << 32);
		if (round == 2) {
			EXPECT_EQ(parent.prepare(1234), many - 1234);
		}

		const region child = parent.fork();
		const mapping shown = child.map(PROT_READ);

		EXPECT_EQ(parent.stat().dirty, 0u);
		EXPECT_EQ(parent.prepare(), 0u);
		store_all(map, 5);
		for (std::size_t page = 0; page < many; page++)
			ASSERT_EQ(shown.load(page),
				  (round << 32) + page);
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
