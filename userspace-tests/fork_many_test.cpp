// SPDX-License-Identifier: GPL-2.0-only
/*
 * FORK_MANY: many forks of one instant, of one region or of many, and all of
 * them or none.
 *
 * Of one instant: writers count rounds (sequence.hpp), each round in one region
 * after another.  Forks that are not of one instant show it, as a control proves.
 */
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "chance.hpp"
#include "descriptors.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "max_bytes.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"
#include "sequence.hpp"
#include "waiting_memory.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::uint32_t read_only = COWSNAP_FORK_F_READONLY;

cowsnap_fork_entry entry_for(int fd, std::uint32_t flags = 0)
{
	return {fd, flags, -1, 0};
}

class fork_many : public cowsnap_fixture {
protected:
	/* errno of FORK_MANY, 0 when it worked; then @entries have descriptors. */
	int error_of(std::uint64_t entries, std::size_t count) const
	{
		cowsnap_fork_many arg = {};

		arg.size = sizeof(arg);
		arg.count = static_cast<std::uint32_t>(count);
		arg.entries = entries;
		return ::ioctl(dev.fd(), COWSNAP_IOC_FORK_MANY, &arg) < 0 ? errno
									   : 0;
	}
	int error_of(std::span<cowsnap_fork_entry> entries) const
	{
		return error_of(reinterpret_cast<std::uintptr_t>(entries.data()),
				entries.size());
	}

	region numbered_from(unsigned int first, std::size_t pages = 4,
			std::uint64_t limit = 0) const
	{
		region made = dev.create(pages * page_size, limit);

		number_pages(made, pages, first);
		return made;
	}
};

TEST_F(fork_many, makes_children_of_each_region)
{
	const region first = numbered_from(10);
	const region second = numbered_from(20);
	const region child = first.fork();
	const region snapshot = second.snapshot();
	const std::array<const region *, 6> parents = {
		&first, &second, &child, &first, &snapshot, &second};
	std::vector<cowsnap_fork_entry> entries;

	for (std::size_t i = 0; i < parents.size(); i++)
		entries.push_back(
			entry_for(parents[i]->fd(), i % 2 ? read_only : 0));

	const auto given = entries;

	ASSERT_EQ(error_of(entries), 0);
	for (std::size_t i = 0; i < parents.size(); i++) {
		const region made(unique_fd(entries[i].fd));
		const cowsnap_stat stat = made.stat();
		const cowsnap_stat of_parent = parents[i]->stat();

		EXPECT_EQ(entries[i].region_fd, given[i].region_fd);
		EXPECT_EQ(entries[i].flags, given[i].flags);
		EXPECT_EQ(entries[i].__reserved, 0u);
		EXPECT_EQ(stat.parent_id, of_parent.id);
		EXPECT_EQ(stat.family_id, of_parent.family_id);
		EXPECT_EQ(stat.generation, of_parent.generation + 1);
		EXPECT_EQ(stat.state,
			  i % 2 ? std::uint32_t{COWSNAP_STAT_F_READONLY} : 0u);
		EXPECT_EQ(stat.length, 4 * page_size);
		EXPECT_EQ(stat.referenced, 4 * page_size);
		EXPECT_EQ(check(::fcntl(made.fd(), F_GETFD), "F_GETFD"),
			  FD_CLOEXEC);
		EXPECT_EQ(misnumbered_page(made, 4,
					   of_parent.family_id == first.stat().id
						   ? 10
						   : 20),
			  -1);
	}
	/* Those of FORK count as well. */
	EXPECT_EQ(first.stat().forks, 3u);
	EXPECT_EQ(second.stat().forks, 3u);
	EXPECT_EQ(child.stat().forks, 1u);
	EXPECT_EQ(snapshot.stat().forks, 1u);
	for (const region *parent : parents)
		EXPECT_EQ(parent->stat().dirty, 0u);
}

TEST_F(fork_many, of_one_region_is_a_fork)
{
	const region parent = numbered_from(1);
	const std::vector<region> forks = dev.fork_all({&parent}, read_only);

	number_pages(parent, 4, 50);
	EXPECT_EQ(misnumbered_page(forks[0], 4, 1), -1);
	EXPECT_EQ(forks[0].stat().exclusive, 4 * page_size);
}

TEST_F(fork_many, takes_regions_that_nobody_has_used)
{
	const region empty = dev.create(0);
	const region unused = dev.create_pages(9);
	const std::vector<region> forks =
		dev.fork_all({&empty, &unused, &empty});

	EXPECT_EQ(forks[0].length(), 0u);
	EXPECT_EQ(forks[1].length(), 9 * page_size);
	forks[1].fill_page(8, 1);
	forks[2].fill_page(0, 2);
	EXPECT_TRUE(is_all(unused.read_page(8), 0));
	EXPECT_EQ(empty.length(), 0u);
	EXPECT_EQ(forks[0].length(), 0u);
}

/* What makes siblings of each other are the same granules, not the same region. */
TEST_F(fork_many, makes_siblings_that_go_their_own_ways)
{
	region parent = numbered_from(1);
	std::vector<region> forks =
		dev.fork_all({&parent, &parent, &parent, &parent});
	const mapping map = forks[0].map();

	for (std::size_t i = 1; i < forks.size(); i++)
		number_pages(forks[i], 4, static_cast<unsigned int>(50 * i));
	fill(map.page(0), 200);
	EXPECT_EQ(misnumbered_page(parent, 4, 1), -1);
	for (std::size_t i = 1; i < forks.size(); i++)
		EXPECT_EQ(misnumbered_page(forks[i], 4,
					   static_cast<unsigned int>(50 * i)),
			  -1);
	EXPECT_TRUE(is_all(forks[0].read_page(0), 200));
	EXPECT_TRUE(is_all(forks[0].read_page(1), 2));
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  (4 + 3 * 4 + 1) * page_size);

	/* Closed in whatever order, each gives back what only it had. */
	forks.erase(forks.begin() + 1);
	parent.close();
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  (3 + 2 * 4 + 1) * page_size);
	EXPECT_EQ(forks[0].stat().exclusive, 4 * page_size);
}

TEST_F(fork_many, makes_as_many_as_it_says)
{
	const descriptor_limit enough(4ul * COWSNAP_FORK_MANY_MAX);
	std::vector<region> parents;
	std::vector<cowsnap_fork_entry> entries;

	for (unsigned int i = 0; i < COWSNAP_FORK_MANY_MAX; i++) {
		parents.push_back(dev.create_pages(1));
		parents.back().fill_page(0, i % 251);
		entries.push_back(entry_for(parents.back().fd(),
					    i % 3 ? read_only : 0));
	}
	/* Not in the order that they were made in. */
	std::ranges::reverse(entries);
	ASSERT_EQ(error_of(entries), 0);
	EXPECT_EQ(counters(dev).regions,
		  before.regions + 2ul * COWSNAP_FORK_MANY_MAX);
	std::ranges::reverse(entries);
	for (unsigned int i = 0; i < COWSNAP_FORK_MANY_MAX; i++) {
		const region made(unique_fd(entries[i].fd));

		parents[i].fill_page(0, 252);
		ASSERT_TRUE(is_all(made.read_page(0), i % 251)) << i;
		ASSERT_EQ(made.stat().parent_id, parents[i].stat().id) << i;
	}
}

TEST_F(fork_many, makes_as_many_as_it_says_of_one_region)
{
	const descriptor_limit enough(2ul * COWSNAP_FORK_MANY_MAX);
	const region parent = numbered_from(1);
	const std::vector<const region *> parents(COWSNAP_FORK_MANY_MAX, &parent);
	const std::vector<region> forks = dev.fork_all(parents, read_only);
	std::set<std::uint64_t> ids;

	EXPECT_EQ(parent.stat().forks, std::uint64_t{COWSNAP_FORK_MANY_MAX});
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes, 4 * page_size);
	number_pages(parent, 4, 99);
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes, 8 * page_size);
	for (const region &made : forks) {
		ids.insert(made.stat().id);
		ASSERT_EQ(misnumbered_page(made, 4, 1), -1);
	}
	EXPECT_EQ(ids.size(), forks.size());
}

TEST_F(fork_many, makes_neither_none_nor_too_many)
{
	const region parent = numbered_from(1);
	std::vector<cowsnap_fork_entry> entries(COWSNAP_FORK_MANY_MAX + 1,
						entry_for(parent.fd()));
	const std::uint64_t address =
		reinterpret_cast<std::uintptr_t>(entries.data());

	for (const std::size_t count :
	     {std::size_t{0}, entries.size(), std::size_t{0x80000000},
	      std::size_t{0xffffffff}})
		EXPECT_EQ(error_of(address, count), EINVAL) << count;
	EXPECT_EQ(parent.stat().forks, 0u);
}

/* What it tells is in the entries. */
TEST_F(fork_many, does_not_write_its_struct)
{
	const region parent = numbered_from(1);
	cowsnap_fork_entry entry = entry_for(parent.fd());
	const mapping memory = anonymous(page_size);
	cowsnap_fork_many arg = {};

	arg.size = sizeof(arg);
	arg.count = 1;
	arg.entries = reinterpret_cast<std::uintptr_t>(&entry);
	std::memcpy(memory.data(), &arg, sizeof(arg));
	memory.protect(PROT_READ);
	ASSERT_EQ(::ioctl(dev.fd(), COWSNAP_IOC_FORK_MANY, memory.data()), 0);
	EXPECT_EQ(misnumbered_page(region(unique_fd(entry.fd)), 4, 1), -1);
}

/*
 * Writers in processes of their own and in threads, each of which counts its
 * rounds in a page of its own of one region after another.
 */
class one_instant : public fork_many {
protected:
	static constexpr std::size_t writers = 4;
	static constexpr std::size_t processes = 2;
	/* Pages apart, and in different stripes. */
	static constexpr std::size_t stride = 131;
	static constexpr std::size_t pages = writers * stride;

	one_instant()
	{
		/* Two of one family, and two others; ids do not rise with i. */
		std::vector<region> made;

		made.push_back(dev.create_pages(pages));
		made.push_back(dev.create_pages(pages));
		made.push_back(made[1].fork());
		made.push_back(dev.create_pages(pages));
		for (const std::size_t i : {3u, 1u, 0u, 2u})
			regions.push_back(std::move(made[i]));
		for (std::size_t i = 0; i < processes; i++)
			children_.push_back(std::make_unique<child>(
				[this, i] { count_rounds(i); }));
		for (std::size_t i = processes; i < writers; i++)
			threads_.emplace_back([this, i] { count_rounds(i); });
	}
	~one_instant() override
	{
		*stop_ = true;
		for (std::thread &thread : threads_)
			thread.join();
	}
	void TearDown() override
	{
		*stop_ = true;
		for (const auto &process : children_)
			EXPECT_TRUE(process->succeeded());
		for (std::thread &thread : threads_)
			thread.join();
		threads_.clear();
		regions.clear();
		fork_many::TearDown();
	}

	/* All have begun, so that rounds are being counted from now on. */
	void wait_for_writers() const
	{
		for (std::size_t i = 0; i < writers; i++)
			ASSERT_TRUE(eventually(
				[&] {
					return regions.back().read_page(
						       i * stride)[0] !=
					       std::byte{0};
				},
				std::chrono::seconds(20)));
	}

	/* What a writer's page has in each of @forks, in the regions' order. */
	static std::optional<std::string>
	torn_at(const std::vector<region> &forks, std::size_t writer)
	{
		std::vector<std::uint64_t> values;

		for (const region &fork : forks) {
			std::uint64_t value = 0;

			fork.read(writer * stride * page_size,
				  std::as_writable_bytes(std::span(&value, 1)));
			values.push_back(value);
		}
		return torn(values);
	}
	static std::optional<std::string>
	torn_anywhere(const std::vector<region> &forks)
	{
		for (std::size_t i = 0; i < writers; i++)
			if (const auto where = torn_at(forks, i))
				return "writer " + std::to_string(i) + ": " +
				       *where;
		return std::nullopt;
	}

	std::vector<region> regions;

private:
	void count_rounds(std::size_t writer)
	{
		std::vector<mapping> maps;

		for (const region &file : regions)
			maps.push_back(file.map());
		for (std::uint64_t round = 1; !*stop_; round++)
			for (std::size_t i = 0; i < maps.size(); i++)
				store(maps[i], regions[i], writer, round);
	}

	/* One of the threads stores by write(2). */
	static void store(const mapping &map, const region &file,
			  std::size_t writer, std::uint64_t round)
	{
		if (writer + 1 < writers)
			map.store(writer * stride, round);
		else
			file.write(writer * stride * page_size,
				   std::as_bytes(std::span(&round, 1)));
	}

	const shared<std::atomic<bool>> stop_;
	std::vector<std::unique_ptr<child>> children_;
	std::vector<std::thread> threads_;
};

TEST_F(one_instant, control_forks_one_by_one_are_not_of_it)
{
	const deadline end = scaled_deadline(std::chrono::seconds(20));
	bool seen = false;

	wait_for_writers();
	while (!seen && !passed(end)) {
		std::vector<region> forks;

		for (const region &parent : regions)
			forks.push_back(parent.snapshot());
		seen = torn_anywhere(forks).has_value();
	}
	EXPECT_TRUE(seen) << "the writers do not show what the tests look for";
}

TEST_F(one_instant, is_what_all_forks_are_of)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(2500));
	std::array<std::size_t, 4> order = {0, 1, 2, 3};
	std::size_t rounds = 0;
	chance random(1);

	wait_for_writers();
	for (; rounds < 10 || !passed(end); rounds++) {
		std::vector<const region *> parents;
		std::vector<region> forks(regions.size());

		std::next_permutation(order.begin(), order.end());
		for (const std::size_t i : order)
			parents.push_back(&regions[i]);
		if (random.one_in(4))
			regions[random.below(4)].prepare();

		std::vector<region> made = dev.fork_all(
			parents, random.one_in(2) ? read_only : 0);

		for (std::size_t i = 0; i < order.size(); i++)
			forks[order[i]] = std::move(made[i]);

		const auto where = torn_anywhere(forks);

		ASSERT_FALSE(where) << *where;
	}
}

/* Many children of one region are the same, to the byte. */
TEST_F(one_instant, is_what_all_children_of_a_region_are_of)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(1000));
	const std::vector<const region *> parents(6, &regions[1]);
	std::size_t rounds = 0;

	wait_for_writers();
	for (; rounds < 10 || !passed(end); rounds++) {
		const std::vector<region> forks = dev.fork_all(parents);

		for (std::size_t i = 0; i < writers; i++)
			for (const region &fork : forks)
				ASSERT_EQ(fork.read_page(i * stride),
					  forks[0].read_page(i * stride));
		for (const region &fork : forks)
			ASSERT_TRUE(forks[0].diff(fork).empty());
	}
}

/* What a FORK_MANY must not have done when it says that it failed. */
class all_or_none : public fork_many {
protected:
	all_or_none()
	{
		for (const unsigned int first : {10u, 20u, 30u})
			parents.push_back(numbered_from(first));
		for (const region &parent : parents)
			maps.push_back(parent.map());
	}
	void TearDown() override
	{
		maps.clear();
		parents.clear();
		fork_many::TearDown();
	}

	std::vector<cowsnap_fork_entry> entries() const
	{
		std::vector<cowsnap_fork_entry> made;

		for (const region &parent : parents)
			made.push_back(entry_for(parent.fd()));
		return made;
	}

	/* @fails fails with @error and leaves everything as it was. */
	template <typename Failing>
	void expect_none(int error, Failing &&fails)
	{
		std::vector<cowsnap_stat> stats;
		const int next = next_descriptor();
		const counters count(dev);

		for (const region &parent : parents)
			stats.push_back(parent.stat());
		EXPECT_EQ(fails(), error);
		expect_back(dev, count);
		EXPECT_EQ(next_descriptor(), next);
		for (std::size_t i = 0; i < parents.size(); i++) {
			const cowsnap_stat now = parents[i].stat();

			EXPECT_EQ(now.forks, stats[i].forks) << i;
			EXPECT_EQ(now.referenced, stats[i].referenced) << i;
			EXPECT_EQ(now.exclusive, stats[i].exclusive) << i;
			EXPECT_EQ(misnumbered_page(parents[i], 4, first_of(i)),
				  -1);
			/* It takes stores still, and no copies for them. */
			fill(maps[i].page(0), first_of(i));
			EXPECT_EQ(parents[i].stat().copies, stats[i].copies) << i;
		}
	}
	void expect_none(int error, std::vector<cowsnap_fork_entry> wrong)
	{
		expect_none(error, [&] { return error_of(wrong); });
	}

	static unsigned int first_of(std::size_t parent)
	{
		return static_cast<unsigned int>(10 * (parent + 1));
	}

	std::vector<region> parents;
	std::vector<mapping> maps;
};

TEST_F(all_or_none, when_one_is_no_descriptor)
{
	for (const int fd : {-1, 1'000'000, std::numeric_limits<int>::max(),
			     std::numeric_limits<int>::min()}) {
		for (std::size_t i = 0; i < parents.size(); i++) {
			auto wrong = entries();

			wrong[i].region_fd = fd;
			expect_none(EBADF, wrong);
		}
	}
}

TEST_F(all_or_none, when_one_is_a_path_alone)
{
	const unique_fd path(check(::open("/", O_PATH | O_CLOEXEC), "open"));
	auto wrong = entries();

	wrong.back().region_fd = path.get();
	expect_none(EBADF, wrong);
}

TEST_F(all_or_none, when_one_is_no_region)
{
	const memory_file file = make_memfd(page_size);
	const pipe_pair pipe;

	for (const int fd : {file.fd(), pipe.read_end.get(), dev.fd()}) {
		for (std::size_t i = 0; i < parents.size(); i++) {
			auto wrong = entries();

			wrong[i].region_fd = fd;
			expect_none(EINVAL, wrong);
		}
	}
}

TEST_F(all_or_none, when_one_has_unknown_flags)
{
	for (unsigned int bit = 0; bit < 32; bit++) {
		auto wrong = entries();

		wrong[bit % 3].flags = 1u << bit;
		if (wrong[bit % 3].flags != COWSNAP_FORK_F_READONLY)
			expect_none(EINVAL, wrong);
	}
}

TEST_F(all_or_none, when_one_has_a_reserved_member_that_is_not_0)
{
	for (const std::uint32_t value : {1u, 0x80000000u, 0xffffffffu}) {
		auto wrong = entries();

		wrong.back().__reserved = value;
		expect_none(EINVAL, wrong);
	}
}

/* What is wrong with the values of any entry is told before its descriptors. */
TEST_F(all_or_none, with_the_values_looked_at_before_the_descriptors)
{
	auto wrong = entries();

	wrong.front().region_fd = -1;
	wrong.back().flags = 0x80;
	expect_none(EINVAL, wrong);
	wrong.back().flags = 0;
	wrong.back().__reserved = 1;
	expect_none(EINVAL, wrong);
	wrong.back().__reserved = 0;
	expect_none(EBADF, wrong);
	/* Of two wrong descriptors the first is told. */
	wrong.back().region_fd = dev.fd();
	expect_none(EBADF, wrong);
	wrong.front().region_fd = dev.fd();
	wrong.back().region_fd = -1;
	expect_none(EINVAL, wrong);
}

TEST_F(all_or_none, when_descriptors_run_out)
{
	auto many = entries();

	for (const std::size_t spare : {0u, 1u, 2u})
		expect_none(EMFILE, [&] {
			const auto limit = descriptor_limit::leaving(spare);

			return error_of(many);
		});

	const auto limit = descriptor_limit::leaving(3);

	ASSERT_EQ(error_of(many), 0);
	for (const cowsnap_fork_entry &entry : many)
		unique_fd made(entry.fd);
}

TEST_F(all_or_none, when_the_entries_cannot_be_read)
{
	auto good = entries();
	mapping memory = anonymous(2 * page_size);
	const std::uint64_t address =
		reinterpret_cast<std::uintptr_t>(memory.data());
	std::byte *const last =
		memory.data() + page_size - sizeof(cowsnap_fork_entry);

	/* The first entry is there, the others lie where nothing is. */
	std::memcpy(last, good.data(), good.size() * sizeof(good[0]));
	memory.shrink(page_size);
	for (const std::uint64_t wrong :
	     {std::uint64_t{0}, address + page_size,
	      address + page_size - sizeof(cowsnap_fork_entry),
	      std::uint64_t{1} << 63, ~std::uint64_t{0},
	      ~std::uint64_t{0} - sizeof(cowsnap_fork_entry)})
		expect_none(EFAULT, [&] { return error_of(wrong, 3); });
	memory.protect(PROT_NONE);
	expect_none(EFAULT, [&] { return error_of(address, 3); });
}

TEST_F(all_or_none, when_the_entries_cannot_be_written)
{
	auto good = entries();
	const mapping memory = anonymous(2 * page_size);

	check(::mprotect(memory.data() + page_size, page_size, PROT_READ),
	      "mprotect");
	for (const std::size_t writable : {2u, 1u}) {
		/* Some can be written, the others cannot. */
		std::byte *const first =
			memory.data() + page_size - writable * sizeof(good[0]);

		check(::mprotect(memory.data() + page_size, page_size,
				 PROT_READ | PROT_WRITE),
		      "mprotect");
		std::memcpy(first, good.data(), good.size() * sizeof(good[0]));
		check(::mprotect(memory.data() + page_size, page_size, PROT_READ),
		      "mprotect");
		expect_none(EFAULT, [&] {
			return error_of(reinterpret_cast<std::uintptr_t>(first),
					good.size());
		});
	}
	std::memcpy(memory.data(), good.data(), good.size() * sizeof(good[0]));
	memory.protect(PROT_READ);
	expect_none(EFAULT, [&] {
		return error_of(reinterpret_cast<std::uintptr_t>(memory.data()),
				good.size());
	});
}

/* A pinned page takes a copy, for which one of the families has no room. */
TEST_F(all_or_none, when_a_family_is_full)
{
	parents.push_back(numbered_from(40, 4, 4 * page_size));
	maps.push_back(parents.back().map());

	{
		const page_in_a_pipe held(maps[3].page(2));
		auto many = entries();

		for (std::size_t i = 0; i < many.size(); i++) {
			expect_none(ENOSPC, many);
			std::ranges::rotate(many, many.begin() + 1);
		}
		/* Not even when it is there twice, and fits once. */
		const page_in_a_pipe other(maps[0].page(2));

		expect_none(ENOSPC, many);
		many.push_back(many.back());
		expect_none(ENOSPC, many);
		EXPECT_TRUE(is_all(held.read(), 42));
		EXPECT_TRUE(is_all(other.read(), 12));
	}

	auto many = entries();

	ASSERT_EQ(error_of(many), 0);
	for (const cowsnap_fork_entry &entry : many)
		unique_fd made(entry.fd);
}

TEST_F(all_or_none, when_all_regions_hold_too_much)
{
	const max_bytes_parameter lowered(counters(dev).held_bytes - page_size);

	expect_none(ENOSPC, entries());
}

/* A pinned page is copied once for all the children of its region. */
TEST_F(fork_many, copies_what_is_pinned_for_the_children)
{
	const region first = numbered_from(10);
	const region second = numbered_from(20);
	const mapping map = first.map();

	fill(map.page(1), 11);
	{
		const page_in_a_pipe held(map.page(1));
		const std::vector<region> forks =
			dev.fork_all({&first, &second, &first, &first});

		EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
			  9 * page_size);
		EXPECT_EQ(first.stat().exclusive, page_size);
		EXPECT_EQ(first.stat().copies, 1u);
		fill(map.page(1), 99);
		forks[2].fill_page(1, 98);
		EXPECT_TRUE(is_all(held.read(), 99));
		EXPECT_TRUE(is_all(forks[2].read_page(1), 98));
		for (const std::size_t i : {0u, 3u})
			EXPECT_EQ(misnumbered_page(forks[i], 4, 10), -1);
		EXPECT_EQ(misnumbered_page(forks[1], 4, 20), -1);
	}
	/* Nobody holds it now. */
	const std::vector<region> forks = dev.fork_all({&first, &first});

	fill(map.page(1), 97);
	EXPECT_TRUE(is_all(forks[0].read_page(1), 99));
	EXPECT_TRUE(is_all(forks[1].read_page(1), 99));
}

/*
 * What is written through a pin to the first region comes before a store to the last
 * one; those in between give the writer the time to do both.
 */
TEST_F(fork_many, is_of_one_instant_for_pins_too)
{
	constexpr std::size_t much = 500;
	const region first = dev.create_pages(1), last = dev.create_pages(1);
	const mapping first_map = first.map(), last_map = last.map();
	std::vector<const region *> parents = {&first};
	std::list<std::pair<region, mapping>> between;

	for (int i = 0; i < 60; i++) {
		region one = dev.create_pages(much);
		mapping map = one.map();

		between.emplace_back(std::move(one), std::move(map));
		parents.push_back(&between.back().first);
	}
	parents.push_back(&last);
	for (unsigned int round = 1; round <= 10; round++) {
		for (const auto &[one, map] : between)
			for (std::size_t page = 0; page < much; page++)
				map.store(page, round);
		first_map.store(0, 0);
		last_map.store(0, 0);

		pinned_write pin(first_map.page(0));
		std::jthread writer([&] {
			std::this_thread::sleep_for(
				std::chrono::milliseconds(round * 10));
			pin.write(round);
			last_map.store(0, round);
		});
		const std::vector<region> forks = dev.fork_all(parents);

		writer.join();
		EXPECT_FALSE(forks.back().map().load(0) == round &&
			     !is_all(forks.front().read_page(0), round))
			<< "the fork of the last region has the later store, that "
			   "of the first one lacks the earlier one";
	}
}

/*
 * Everything that takes the locks of more than one region, from both ends at
 * once: they all come to an end.
 */
TEST_F(fork_many, and_others_in_opposite_orders_do_not_wait_for_each_other)
{
	const region first = numbered_from(1, 64);
	const region other = numbered_from(1, 64);
	const region second = first.fork();
	const std::vector<const region *> up = {&first, &other, &second};
	const std::vector<const region *> down = {&second, &other, &first, &second};
	const deadline end = scaled_deadline(std::chrono::milliseconds(1500));
	const std::vector<std::function<void()>> actions = {
		[&] { dev.fork_all(up); },
		[&] { dev.fork_all(down, read_only); },
		[&] { first.restore(second); },
		[&] { second.restore(first); },
		[&] {
			first.diff(second);
			second.diff(first, COWSNAP_DIFF_F_EXACT);
		},
		[&] {
			const mapping map = first.map();
			const mapping other_map = second.map();

			for (std::size_t page = 0; page < 64; page++) {
				map.store(page, page);
				other_map.store(63 - page, page);
			}
			second.prepare();
		},
		[&] {
			other.truncate(10);
			other.write(0, bytes_of(64 * page_size, 1));
			first.stat();
		},
		[&] {
			const region child = second.fork();

			dev.fork_all({&child, &first, &child, &other});
			child.restore(first);
		},
	};
	std::vector<std::atomic<std::size_t>> done(actions.size());
	std::vector<std::thread> threads;

	for (std::size_t i = 0; i < actions.size(); i++)
		threads.emplace_back([&, i] {
			for (; !passed(end, [&] { return done[i] > 0; }); done[i]++)
				actions[i]();
		});
	for (std::thread &thread : threads)
		thread.join();
	for (const std::atomic<std::size_t> &count : done)
		EXPECT_GT(count, 0u);
}

/* The descriptors of the regions go while the call is under way. */
TEST_F(fork_many, keeps_the_regions_that_others_close)
{
	const deadline end = scaled_deadline(std::chrono::milliseconds(500));
	const region first = numbered_from(10);
	const region second = numbered_from(20);
	const unique_fd slot(check(::dup(first.fd()), "dup"));
	std::atomic<bool> stop = false;
	std::thread changer([&] {
		while (!stop) {
			::dup2(second.fd(), slot.get());
			::dup2(dev.fd(), slot.get());
			::dup2(first.fd(), slot.get());
		}
	});
	std::size_t good = 0;

	while (!passed(end, [&] { return good > 0; })) {
		std::array entries = {entry_for(first.fd()), entry_for(slot.get()),
				      entry_for(second.fd())};
		const int error = error_of(entries);

		EXPECT_TRUE(error == 0 || error == EINVAL) << error;
		if (error)
			continue;
		good++;
		EXPECT_EQ(misnumbered_page(region(unique_fd(entries[0].fd)), 4, 10),
			  -1);
		unique_fd made(entries[1].fd);
		EXPECT_EQ(misnumbered_page(region(unique_fd(entries[2].fd)), 4, 20),
			  -1);
	}
	stop = true;
	changer.join();
	EXPECT_GT(good, 0u);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
