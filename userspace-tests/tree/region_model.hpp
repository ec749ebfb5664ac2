// SPDX-License-Identifier: GPL-2.0-only
/*
 * A tree, and beside it what it must hold: every call is made on both.
 *
 * The module's own users are stood in for: write() follows the sole-owner rule
 * and opens what it changes, and holes and granules, charges and releases balance as they must there.
 */
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "shim/shim.h"

extern "C" {
#include "account.h"
#include "tree.h"
}

namespace tree_test {

struct granule {
	cowsnap_granule *page;
	u64 content;
};

/* Its use count says how many trees reach the granule. */
using granule_ref = std::shared_ptr<const granule>;
using holding = std::map<u64, granule_ref>;

/* Of a node on level 1, the leaves, 2, ...: log2 of the indices it stands for. */
constexpr unsigned int level_bits(unsigned int level)
{
	return COWSNAP_LEAF_SHIFT + (level - 1) * COWSNAP_NODE_SHIFT;
}

constexpr unsigned int levels_for(u64 index)
{
	unsigned int level = 1;

	while (index >> level_bits(level))
		++level;
	return level;
}

/* The nodes of a tree of that height in which nothing is empty. */
inline u64 nodes_for(const holding &held, unsigned int levels)
{
	u64 nodes = 0;

	for (unsigned int level = 1; level <= levels; ++level) {
		std::optional<u64> last;

		for (const auto &[index, granule] : held) {
			const u64 node = index >> level_bits(level);

			nodes += node != last;
			last = node;
		}
	}
	return nodes;
}

class region;

/* What remove() took out and is not let go of yet. */
class removed {
public:
	removed(region &from, cowsnap_trash trash, holding held, u64 dirty,
		u64 open)
		: from_(&from), trash_(trash), held_(std::move(held)),
		  dirty_(dirty), open_(open)
	{
	}
	void destroy();

private:
	region *from_;
	cowsnap_trash trash_;
	holding held_;
	u64 dirty_;
	u64 open_;
};

/* What differs: so many indices of one leaf, data all of them or holes. */
struct difference {
	u64 first;
	u64 nr;
	bool data;

	bool operator==(const difference &) const = default;
};

class region {
public:
	explicit region(cowsnap_account &account)
	{
		cowsnap_tree_init(&tree_, &account);
	}
	region(const region &) = delete;
	region &operator=(const region &) = delete;
	~region() { cowsnap_tree_destroy(&tree_); }

	/* The two halves of a fork. */
	std::unique_ptr<region> share()
	{
		auto child = std::make_unique<region>(*tree_.account);

		cowsnap_tree_share(&child->tree_, &tree_);
		child->held_ = held_;
		child->lowest_ = lowest_;
		child->highest_ = highest_;
		return child;
	}
	void seal()
	{
		cowsnap_tree_seal(&tree_);
		dirty_.clear();
		open_.clear();
	}
	std::unique_ptr<region> fork()
	{
		auto child = share();

		seal();
		return child;
	}

	void swap(region &other) noexcept
	{
		cowsnap_tree_swap(&tree_, &other.tree_);
		std::swap(held_, other.held_);
		std::swap(lowest_, other.lowest_);
		std::swap(highest_, other.highest_);
		for (region *one : {this, &other}) {
			one->dirty_.clear();
			one->open_.clear();
		}
	}

	/* The two halves of write(). */
	cowsnap_node *own(u64 index)
	{
		const unsigned int levels = levels_for(index);
		cowsnap_granule *there = nullptr;
		cowsnap_node *leaf = cowsnap_tree_find(&tree_, index, &there);

		EXPECT_EQ(there, page(index));
		EXPECT_EQ(leaf, cowsnap_tree_owned(&tree_, index));
		if (!leaf)
			leaf = cowsnap_tree_take(&tree_, index);
		/* Growth may have been cut short, but only of what is there. */
		if (leaf)
			lowest_ = std::max(lowest_, levels);
		if (leaf || !held_.empty())
			highest_ = std::max(highest_, levels);
		return leaf;
	}
	void store(cowsnap_node *leaf, u64 index, bool replace = false)
	{
		cowsnap_granule *old = cowsnap_leaf_granule(leaf, index);

		EXPECT_EQ(old, page(index));
		EXPECT_EQ(old && shim_granule_shared(old),
			  old && held_.at(index).use_count() > 1);
		if (!old || replace || shim_granule_shared(old)) {
			const u64 content = ++last_content;
			cowsnap_granule *fresh = shim_granule_new(content);

			atomic_long_inc(&tree_.account->held);
			EXPECT_EQ(cowsnap_leaf_store(leaf, index, fresh), old);
			held_[index] = std::make_shared<granule>(granule{fresh, content});
			if (old && shim_granule_put(old))
				cowsnap_account_uncharge(tree_.account, 1);
		}
		EXPECT_EQ(cowsnap_leaf_is_dirty(leaf, index),
			  dirty_.contains(index));
		EXPECT_EQ(cowsnap_leaf_set_dirty(leaf, index),
			  dirty_.insert(index).second);
		EXPECT_EQ(cowsnap_tree_open(&tree_, leaf, index),
			  open_.insert(index).second);
	}
	/* False when out of memory. */
	bool write(u64 index, bool replace = false)
	{
		cowsnap_node *leaf = own(index);

		if (leaf)
			store(leaf, index, replace);
		return leaf;
	}

	/* In the leaf of @index, where something is open. */
	void close(u64 index, unsigned long slots)
	{
		const u64 allocations = shim_allocations();

		cowsnap_tree_close(&tree_, index, slots);
		EXPECT_EQ(shim_allocations(), allocations);
		std::erase_if(open_, [&](u64 open) {
			return (open & ~leaf_mask) == (index & ~leaf_mask) &&
			       (slots >> (open & leaf_mask) & 1);
		});
	}

	std::optional<removed> take(u64 first, u64 last)
	{
		cowsnap_trash trash;

		if (cowsnap_tree_remove(&tree_, first, last, &trash)) {
			EXPECT_EQ(trash.nr, 0U);
			return std::nullopt;
		}
		const u64 dirty = dirty_.size();
		const u64 open = open_.size();
		holding taken;

		for (std::set<u64> *marked : {&dirty_, &open_})
			marked->erase(marked->lower_bound(first),
				      marked->upper_bound(last));
		for (auto at = held_.lower_bound(first), end = held_.upper_bound(last);
		     at != end;)
			taken.insert(held_.extract(at++));
		if (held_.empty())
			lowest_ = highest_ = 0;
		return removed(*this, trash, std::move(taken),
			       dirty - dirty_.size(), open - open_.size());
	}
	/* False when out of memory. */
	bool remove(u64 first, u64 last)
	{
		auto taken = take(first, last);

		if (taken)
			taken->destroy();
		return taken.has_value();
	}

	cowsnap_granule *lookup(u64 index)
	{
		return cowsnap_tree_lookup(&tree_, index);
	}
	std::optional<u64> next(u64 index, bool data)
	{
		if (!cowsnap_tree_next(&tree_, &index, data))
			return std::nullopt;
		return index;
	}
	/* What the model says that lookup() must return. */
	cowsnap_granule *page(u64 index) const
	{
		const auto at = held_.find(index);

		return at == held_.end() ? nullptr : at->second->page;
	}

	void check_index(u64 index)
	{
		EXPECT_EQ(lookup(index), page(index)) << "index " << index;
		EXPECT_EQ(cowsnap_tree_is_open(&tree_, index),
			  open_.contains(index))
			<< "index " << index;
	}
	/* Of what is open from @first on, the first run, but at most @most. */
	void check_open(u64 first, u64 most)
	{
		const auto at = open_.lower_bound(first);
		u64 expected = 0;
		u64 nr = most;

		while (at != open_.end() && expected < most &&
		       open_.contains(*at + expected))
			++expected;
		EXPECT_EQ(cowsnap_tree_next_open(&tree_, &first, &nr), expected > 0);
		EXPECT_EQ(nr, expected);
		if (expected) {
			EXPECT_EQ(first, *at);
		}
	}
	void check_open()
	{
		auto expected = open_.begin();
		u64 first = 0;
		u64 nr = ~0ULL;

		for (; cowsnap_tree_next_open(&tree_, &first, &nr); nr = ~0ULL) {
			ASSERT_TRUE(expected != open_.end()) << "closed: " << first;
			ASSERT_EQ(first, *expected);
			for (; nr; --nr, ++first) {
				ASSERT_TRUE(expected != open_.end() &&
					    *expected == first)
					<< "closed: " << first;
				++expected;
			}
			ASSERT_FALSE(expected != open_.end() && *expected == first)
				<< "the run goes on at " << first;
		}
		EXPECT_TRUE(expected == open_.end()) << *expected << " is not found";
		EXPECT_EQ(nr, 0U);
	}
	/* From @from on: that is where this region and @other are not the same. */
	void check_diff(region &other, u64 from = 0)
	{
		const std::vector<difference> expected = diff(other, from);
		std::vector<difference> found;
		difference next{from, 0, false};

		while (found.size() <= expected.size() &&
		       cowsnap_tree_next_diff(&tree_, &other.tree_, &next.first,
					      &next.nr, &next.data)) {
			found.push_back(next);
			next.first += next.nr;
		}
		for (std::size_t i = 0; i < expected.size() && i < found.size(); ++i)
			ASSERT_EQ(found[i], expected[i])
				<< found[i].first << " + " << found[i].nr << ", not "
				<< expected[i].first << " + " << expected[i].nr;
		EXPECT_EQ(found.size(), expected.size());
	}
	void check()
	{
		check_data();
		check_holes();
		check_dirty();
		check_open();
		check_exclusive();
	}
	/* For the only tree that there is: no node is empty, none too many. */
	void check_shape() const
	{
		bool fits = held_.empty() && cowsnap_tree_nodes() == 0;

		for (unsigned int levels = std::max(lowest_, 1U);
		     levels <= highest_; ++levels)
			fits |= cowsnap_tree_nodes() == nodes_for(held_, levels);
		EXPECT_TRUE(fits) << cowsnap_tree_nodes() << " nodes for "
				  << held_.size() << " granules, " << lowest_
				  << " to " << highest_ << " levels";
	}

	cowsnap_tree &tree() { return tree_; }
	const std::set<u64> &dirty() const { return dirty_; }
	const std::set<u64> &open() const { return open_; }

private:
	void check_data()
	{
		auto expected = held_.begin();

		for (auto at = next(0, true); at; at = next(*at + 1, true)) {
			ASSERT_TRUE(expected != held_.end()) << "no data at " << *at;
			ASSERT_EQ(*at, expected->first);
			ASSERT_EQ(lookup(*at), expected->second->page);
			ASSERT_EQ(shim_granule_content(expected->second->page),
				  expected->second->content);
			++expected;
			if (*at == COWSNAP_INDEX_MAX)
				break;
		}
		EXPECT_TRUE(expected == held_.end()) << expected->first << " is lost";
	}
	void check_holes()
	{
		for (auto at = held_.begin(); at != held_.end(); ++at) {
			const u64 first = at->first;

			if (first) {
				EXPECT_EQ(next(first - 1, false), first - 1);
			}
			while (std::next(at) != held_.end() &&
			       std::next(at)->first == at->first + 1)
				++at;
			EXPECT_EQ(next(first, false),
				  at->first == COWSNAP_INDEX_MAX
					  ? std::nullopt
					  : std::optional(at->first + 1));
		}
	}
	void check_dirty()
	{
		const u64 allocations = shim_allocations();

		for (const u64 dirty : dirty_) {
			/* It has this leaf already. */
			cowsnap_node *const leaf = cowsnap_tree_own(&tree_, dirty);

			for (u64 slot = 0; slot < COWSNAP_LEAF_SLOTS; ++slot) {
				const u64 index = (dirty & ~leaf_mask) + slot;

				ASSERT_EQ(cowsnap_leaf_is_dirty(leaf, index),
					  dirty_.contains(index))
					<< "index " << index;
			}
		}
		EXPECT_EQ(shim_allocations(), allocations);
	}
	void check_exclusive()
	{
		std::map<u64, unsigned int> expected;
		std::map<u64, unsigned int> found;

		for (const auto &[index, granule] : held_)
			expected[index & ~leaf_mask] += granule.use_count() == 1;
		for (const auto &[first, nr] : expected)
			EXPECT_EQ(cowsnap_tree_leaf_exclusive(&tree_, first), nr);
		std::erase_if(expected, [](const auto &leaf) { return !leaf.second; });

		for (u64 at = 0; at <= COWSNAP_INDEX_MAX &&
				 cowsnap_tree_next_exclusive(&tree_, &at);
		     at = (at | leaf_mask) + 1) {
			const unsigned int nr =
				cowsnap_tree_leaf_exclusive(&tree_, at);

			EXPECT_NE(held_.lower_bound(at),
				  held_.upper_bound(at | leaf_mask))
				<< "an empty leaf at " << at;
			if (nr)
				found[at] = nr;
		}
		EXPECT_EQ(found, expected);
	}

	std::vector<difference> diff(const region &other, u64 from) const
	{
		std::set<u64> indices;
		std::vector<difference> found;

		for (const holding *held : {&held_, &other.held_})
			for (auto at = held->lower_bound(from); at != held->end(); ++at)
				if (page(at->first) != other.page(at->first))
					indices.insert(at->first);
		for (const u64 index : indices) {
			const bool data = page(index);

			if (!found.empty() && index & leaf_mask &&
			    found.back().first + found.back().nr == index &&
			    found.back().data == data)
				++found.back().nr;
			else
				found.push_back({index, 1, data});
		}
		return found;
	}

	static constexpr u64 leaf_mask = COWSNAP_LEAF_SLOTS - 1;
	static inline u64 last_content = 0;

	cowsnap_tree tree_;
	holding held_;
	std::set<u64> dirty_;
	std::set<u64> open_;
	/* The tree has at least and at most so many levels. */
	unsigned int lowest_ = 0;
	unsigned int highest_ = 0;
};

inline void removed::destroy()
{
	cowsnap_tally tally = {1, 1, 1};

	cowsnap_trash_tally(&from_->tree(), &trash_, &tally);
	/* Added to what was there. */
	EXPECT_EQ(tally.granules, 1 + held_.size());
	EXPECT_EQ(tally.dirty, 1 + dirty_);
	EXPECT_EQ(tally.open, 1 + open_);
	cowsnap_trash_destroy(&from_->tree(), &trash_);
	EXPECT_EQ(trash_.nr, 0U);
	held_.clear();
}

} // namespace tree_test
