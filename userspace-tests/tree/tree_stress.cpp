// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads write, read, close, remove from, fork, restore and compare a family as
 * the module does: a leaf under its class's lock, forks, restores and removals
 * under all of them, the search for data, holes and differences under none.  For
 * ThreadSanitizer, and for what each must find.
 */
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../chance.hpp"
#include "../ktap.hpp"
#include "shim/shim.h"

extern "C" {
#include "account.h"
#include "tree.h"
}

namespace {

using cowsnap_test::chance;
using cowsnap_test::scaled;

constexpr std::size_t nr_classes = 4;
constexpr std::size_t nr_threads = 4;
constexpr std::size_t nr_regions = 4;

/*
 * What is used: in each of a few nodes, near and far, leaves that are neighbours
 * and of different classes, and of each leaf four slots.  The first of the four
 * holds data always, the last never, except that all of the last node's may go.
 */
constexpr u64 leaf_slots = COWSNAP_LEAF_SLOTS;
constexpr std::array<u64, 4> nodes = {
	0, 5ULL << (COWSNAP_LEAF_SHIFT + COWSNAP_NODE_SHIFT), 1ULL << 40,
	COWSNAP_INDEX_MAX + 1 - 8 * leaf_slots};
constexpr std::size_t nr_leaves = nodes.size() * 8;
constexpr std::size_t nr_places = nr_leaves * 4;
constexpr std::size_t first_that_goes = nr_places - std::size_t{8} * 4;

constexpr u64 index_of(std::size_t place)
{
	return nodes[place / 32] + place / 4 % 8 * leaf_slots + place % 4 * 5;
}

/* One place in each second leaf of those that stay is never written again. */
constexpr bool is_constant(std::size_t place)
{
	return place < first_that_goes && place % 8 == 0;
}

/* nr_places when it is none. */
constexpr std::size_t place_of(u64 index)
{
	std::size_t place = 0;

	while (place < nr_places && index_of(place) != index)
		++place;
	return place;
}

constexpr std::size_t class_of(u64 index)
{
	return (index >> COWSNAP_LEAF_SHIFT) % nr_classes;
}

class region {
public:
	/* Holds what stays. */
	explicit region(cowsnap_account &account)
	{
		cowsnap_tree_init(&tree_, &account);
		for (std::size_t place = 0; place < nr_places; place += 4)
			write(place, 1);
	}
	explicit region(region *parent)
	{
		cowsnap_tree_init(&tree_, parent->tree_.account);

		const std::lock_guard forks(parent->forks_);
		const auto locks = parent->lock_all();

		cowsnap_tree_share(&tree_, &parent->tree_);
		parent->close(nr_places);
		cowsnap_tree_seal(&parent->tree_);
		contents_ = parent->contents_;
	}
	region(const region &) = delete;
	region &operator=(const region &) = delete;
	~region() { cowsnap_tree_destroy(&tree_); }

	/* Does nothing when out of memory. */
	void write(std::size_t place, u64 content)
	{
		const u64 index = index_of(place);
		const std::lock_guard lock(classes_[class_of(index)]);
		cowsnap_granule *old = nullptr;
		cowsnap_node *leaf = cowsnap_tree_find(&tree_, index, &old);

		if (!leaf)
			leaf = cowsnap_tree_take(&tree_, index);
		if (!leaf)
			return;
		EXPECT_EQ(cowsnap_leaf_granule(leaf, index), old);
		if (old && !shim_granule_shared(old)) {
			shim_granule_write(old, content);
		} else {
			atomic_long_inc(&tree_.account->held);
			cowsnap_leaf_store(leaf, index, shim_granule_new(content));
			if (old && shim_granule_put(old))
				cowsnap_account_uncharge(tree_.account, 1);
		}
		cowsnap_leaf_set_dirty(leaf, index);
		EXPECT_EQ(cowsnap_tree_open(&tree_, leaf, index), !open_[place]);
		contents_[place] = content;
		open_[place] = true;
	}
	void read(std::size_t place)
	{
		const u64 index = index_of(place);
		const std::lock_guard lock(classes_[class_of(index)]);
		cowsnap_granule *const granule =
			cowsnap_tree_lookup(&tree_, index);

		EXPECT_EQ(granule ? shim_granule_content(granule) : 0,
			  contents_[place]);
		EXPECT_EQ(cowsnap_tree_is_open(&tree_, index), open_[place]);
	}
	/* As a fork does, and as what unmaps may. */
	void close_some(std::size_t most)
	{
		const auto locks = lock_all();

		close(most);
	}
	/* What was here before lives on in @by, for its destructor. */
	void restore(region &by)
	{
		const std::lock_guard forks(forks_);
		const auto locks = lock_all();

		cowsnap_tree_swap(&tree_, &by.tree_);
		contents_ = by.contents_;
		open_.fill(false);
	}
	void compare(region &other)
	{
		u64 first = 0;
		u64 nr;
		bool data;

		while (cowsnap_tree_next_diff(&tree_, &other.tree_, &first, &nr,
					      &data)) {
			const std::size_t place = place_of(first);

			EXPECT_EQ(nr, 1U);
			ASSERT_LT(place, nr_places) << first;
			EXPECT_FALSE(is_constant(place)) << place;
			EXPECT_NE(place % 4, 3U);
			EXPECT_TRUE(data || place % 4 || place >= first_that_goes);
			first += nr;
		}
	}
	void remove(std::size_t first, std::size_t last)
	{
		cowsnap_trash trash;

		{
			const auto locks = lock_all();

			if (cowsnap_tree_remove(&tree_, index_of(first),
						index_of(last), &trash))
				return;
			std::fill(&contents_[first], &contents_[last] + 1, 0);
			std::fill(&open_[first], &open_[last] + 1, false);
		}
		cowsnap_trash_destroy(&tree_, &trash);
	}
	void search(std::size_t leaf)
	{
		u64 data = index_of(leaf * 4);
		u64 hole = index_of(leaf * 4 + 3);

		if (leaf * 4 < first_that_goes) {
			EXPECT_TRUE(cowsnap_tree_next(&tree_, &data, true));
			EXPECT_EQ(data, index_of(leaf * 4));
		}
		EXPECT_TRUE(cowsnap_tree_next(&tree_, &hole, false));
		EXPECT_EQ(hole, index_of(leaf * 4 + 3));
	}
	/* As STAT does, with forks kept out. */
	void count()
	{
		const std::lock_guard forks(forks_);

		for (u64 at = 0; cowsnap_tree_next_exclusive(&tree_, &at);
		     at = (at | (leaf_slots - 1)) + 1) {
			const std::lock_guard lock(classes_[class_of(at)]);

			EXPECT_LE(cowsnap_tree_leaf_exclusive(&tree_, at), 3U);
		}
	}

private:
	/* Under all class locks: closes so many, leaf by leaf, the first ones. */
	void close(std::size_t most)
	{
		u64 first = 0;
		std::size_t place = 0;

		for (u64 nr = 2; cowsnap_tree_next_open(&tree_, &first, &nr); nr = 2) {
			const std::size_t found = place_of(first);

			EXPECT_EQ(nr, 1U);
			ASSERT_LT(found, nr_places) << first;
			EXPECT_TRUE(open_[found]);
			while (place < found)
				EXPECT_FALSE(open_[place++]);
			++place;
			if (found < most) {
				cowsnap_tree_close(&tree_, first,
						   1UL << first % leaf_slots);
				open_[found] = false;
			}
			++first;
		}
		while (place < nr_places)
			EXPECT_FALSE(open_[place++]);
	}
	std::vector<std::unique_lock<std::mutex>> lock_all()
	{
		std::vector<std::unique_lock<std::mutex>> locks;

		for (std::mutex &one : classes_)
			locks.emplace_back(one);
		return locks;
	}

	cowsnap_tree tree_;
	std::mutex forks_;
	std::array<std::mutex, nr_classes> classes_;
	/* Of each place, protected by the class lock; 0 is a hole. */
	std::array<u64, nr_places> contents_{};
	/* Likewise. */
	std::array<bool, nr_places> open_{};
};

/* The members that are open; who uses one keeps it from being destroyed. */
class family {
public:
	explicit family(cowsnap_account &account)
	{
		members_[0] = std::make_shared<region>(account);
		for (std::size_t i = 1; i < nr_regions; ++i)
			members_[i] = std::make_shared<region>(members_[0].get());
	}
	std::shared_ptr<region> get(std::size_t which)
	{
		const std::lock_guard lock(lock_);

		return members_[which];
	}
	/* Returns what was there: the caller may be the last to know it. */
	[[nodiscard]] std::shared_ptr<region> exchange(std::size_t which,
						       std::shared_ptr<region> by)
	{
		const std::lock_guard lock(lock_);

		return std::exchange(members_[which], std::move(by));
	}

private:
	std::mutex lock_;
	std::array<std::shared_ptr<region>, nr_regions> members_;
};

void work(family &family, std::size_t thread)
{
	chance chance(100 + thread);

	for (std::size_t i = 0; i < scaled(25000); ++i) {
		const auto member = family.get(chance.below(nr_regions));
		const std::size_t place = chance.below(nr_places);

		if (chance.one_in(32))
			shim_fail_allocation(
				static_cast<unsigned int>(chance.between(1, 8)));
		/* Stands between two pointers long enough to be overtaken. */
		if (chance.one_in(16))
			shim_hook_lockless_read(
				static_cast<unsigned int>(chance.between(1, 20)),
				[](void *) {
					std::this_thread::sleep_for(
						std::chrono::microseconds(50));
				},
				nullptr);
		switch (chance.below(32)) {
		case 0:
			static_cast<void>(family.exchange(
				chance.below(nr_regions),
				std::make_shared<region>(member.get())));
			break;
		case 1:
			member->remove(first_that_goes, nr_places - 1);
			break;
		case 2:
			member->remove(place / 4 * 4 + 1, place / 4 * 4 + 2);
			break;
		case 3:
			member->count();
			break;
		case 4: case 5: case 6: case 7:
			member->search(place / 4);
			break;
		case 8: {
			region fresh(family.get(chance.below(nr_regions)).get());

			member->restore(fresh);
			break;
		}
		case 9:
			member->close_some(place);
			break;
		case 10:
			member->compare(*family.get(chance.below(nr_regions)));
			break;
		default:
			if (chance.one_in(2))
				member->read(place);
			else if (place % 4 != 3 && !is_constant(place))
				member->write(place, i * nr_threads + thread + 2);
		}
		shim_fail_allocation(0);
		shim_hook_lockless_read(0, nullptr, nullptr);
		if (testing::Test::HasFailure())
			return;
	}
}

TEST(tree_stress, each_thread_finds_what_it_must)
{
	cowsnap_account account{};

	ASSERT_EQ(cowsnap_tree_module_init(), 0);
	/* Grace periods come from a thread of their own. */
	shim_rcu_eager(false);
	{
		std::jthread reclaimer([](const std::stop_token &stop) {
			while (!stop.stop_requested()) {
				shim_rcu_grace_period();
				std::this_thread::sleep_for(
					std::chrono::microseconds(200));
			}
		});
		family family(account);
		{
			std::vector<std::jthread> threads;

			for (std::size_t i = 0; i < nr_threads; ++i)
				threads.emplace_back([&family, i] {
					work(family, i);
				});
		}
		for (std::size_t i = 0; i < nr_regions; ++i)
			for (std::size_t place = 0; place < nr_places; ++place)
				family.get(i)->read(place);
		EXPECT_EQ(static_cast<u64>(atomic_long_read(&account.held)),
			  shim_live_pages());
	}
	EXPECT_EQ(cowsnap_tree_nodes(), 0U);
	EXPECT_EQ(shim_live_pages(), 0U);
	cowsnap_tree_module_exit();
	EXPECT_EQ(shim_live_objects(), 0U);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
