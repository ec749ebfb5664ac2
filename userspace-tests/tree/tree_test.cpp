// SPDX-License-Identifier: GPL-2.0-only
// The persistent radix tree against a model of what it must hold.
#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <thread>

#include "../chance.hpp"
#include "../ktap.hpp"
#include "random_step.hpp"
#include "region_model.hpp"

namespace tree_test {
namespace {

using cowsnap_test::chance;
using cowsnap_test::scaled;

/* Runs each test twice: RCU callbacks come as early as they may, and late. */
class tree : public testing::TestWithParam<bool> {
protected:
	void SetUp() override
	{
		ASSERT_EQ(cowsnap_tree_module_init(), 0);
		shim_rcu_eager(GetParam());
	}
	void TearDown() override
	{
		EXPECT_EQ(cowsnap_tree_nodes(), 0U);
		check_account();
		EXPECT_EQ(shim_live_pages(), 0U);
		cowsnap_tree_module_exit();
		EXPECT_EQ(shim_live_objects(), 0U);
	}

	void check_account() const
	{
		EXPECT_EQ(static_cast<u64>(atomic_long_read(&account.held)),
			  shim_live_pages());
	}
	void check(const regions &family) const
	{
		check_account();
		for (std::size_t i = 0; i < family.size(); ++i) {
			family[i]->check();
			family[i]->check_diff(*family[(i + 1) % family.size()]);
		}
		if (family.size() == 1)
			family.front()->check_shape();
	}
	std::unique_ptr<region> make(std::initializer_list<u64> indices)
	{
		auto made = std::make_unique<region>(account);

		for (const u64 index : indices)
			EXPECT_TRUE(made->write(index));
		return made;
	}

	cowsnap_account account{};
};

INSTANTIATE_TEST_SUITE_P(rcu, tree, testing::Bool(), [](const auto &info) {
	return std::string(info.param ? "early" : "late");
});

TEST_P(tree, holds_what_the_model_holds)
{
	chance chance(GetParam());

	for (std::size_t round = 0; round < scaled(100); ++round) {
		const std::size_t steps = chance.between(10, 1000);
		regions family;

		family.push_back(make({}));
		for (std::size_t i = 0; i < steps; ++i) {
			step(family, chance, index_bits[round % index_bits.size()]);
			if (chance.one_in(64))
				check(family);
			if (HasFailure())
				return;
		}
		check(family);
		while (!family.empty()) {
			family.erase(family.begin() +
				     static_cast<long>(chance.below(family.size())));
			check(family);
		}
	}
}

/* The same with one tree only, whose nodes can be counted after each step. */
TEST_P(tree, keeps_no_empty_node)
{
	chance chance(2 + GetParam());

	for (std::size_t round = 0; round < scaled(60); ++round) {
		const unsigned int bits[] = {5, 11, 17, 24, 36, 52};
		regions family;

		family.push_back(make({}));
		for (std::size_t i = 0; i < 200; ++i) {
			const u64 index = pick(chance, bits[round % std::size(bits)]);

			if (chance.one_in(2))
				shim_fail_allocation(static_cast<unsigned int>(
					chance.between(1, 10)));
			if (chance.one_in(12))
				family[0]->remove(index / 2, index);
			else if (chance.one_in(8))
				close(*family[0], chance, index);
			else
				family[0]->write(index);
			shim_fail_allocation(0);
			family[0]->check_shape();
			family[0]->check_open();
			if (HasFailure())
				return;
		}
		check(family);
	}
}

TEST_P(tree, is_empty_at_first)
{
	auto empty = make({});
	auto child = empty->fork();

	for (const auto &one : {empty.get(), child.get()}) {
		one->check();
		one->check_index(0);
		one->check_index(max);
		EXPECT_EQ(one->next(0, false), 0U);
		EXPECT_EQ(one->next(max, false), max);
		EXPECT_TRUE(one->remove(0, max));
		one->check_diff(*child);
		one->check_open(max, 1);
		one->swap(*child);
	}
	EXPECT_EQ(cowsnap_tree_nodes(), 0U);
}

TEST_P(tree, takes_the_first_and_the_last_index)
{
	auto both = make({0, max});
	auto last = make({max});

	both->check();
	last->check();
	both->check_diff(*last);
	last->check_diff(*both, max);
	both->check_open(max, 2);
	both->check_open(max + 1, 1);
	EXPECT_EQ(last->next(0, true), max);
	EXPECT_EQ(last->next(max, false), std::nullopt);
	/* All the levels, and the leaf besides the first one's. */
	EXPECT_EQ(cowsnap_tree_nodes(), 2U * COWSNAP_TREE_HEIGHT - 1 +
						COWSNAP_TREE_HEIGHT);
	EXPECT_TRUE(both->remove(max, max));
	EXPECT_TRUE(last->remove(0, max - 1));
	both->check();
	last->check();
}

TEST_P(tree, grows_by_every_level)
{
	auto grown = make({});

	for (unsigned int level = 1; level <= COWSNAP_TREE_HEIGHT; ++level) {
		EXPECT_TRUE(grown->write((1ULL << level_bits(level)) - 1));
		grown->check_shape();
		grown->check();
		/* A quarter of the time with nothing open below the new root. */
		if (level % 4 == 0)
			while (!grown->open().empty())
				grown->close(*grown->open().begin(), ~0UL);
		/* Half of the time on a root that is not owned any more. */
		if (level % 2)
			grown->seal();
	}
	for (unsigned int level = COWSNAP_TREE_HEIGHT; level > 1; --level) {
		EXPECT_TRUE(grown->remove(1ULL << level_bits(level - 1), max));
		grown->check();
		grown->check_shape();
	}
}

/* A class's leaf is made, then others change the tree around it. */
TEST_P(tree, keeps_a_leaf_that_is_empty_yet)
{
	for (const u64 other : {leaf, node, max}) {
		auto one = make({});
		cowsnap_node *const first = one->own(0);

		ASSERT_NE(first, nullptr);
		shim_fail_allocation(1);
		EXPECT_FALSE(one->write(other));
		shim_fail_allocation(2);
		one->write(other);
		shim_fail_allocation(0);
		EXPECT_TRUE(one->write(other));
		EXPECT_EQ(one->own(0), first);
		one->store(first, 0);
		one->check();
		one->check_shape();
	}
}

TEST_P(tree, counts_what_was_changed_in_a_row)
{
	auto parent = make({});

	for (u64 index = 0; index < 3 * leaf; ++index)
		ASSERT_TRUE(parent->write(index));

	auto child = parent->fork();
	const auto before = [](region &of, u64 index) {
		return cowsnap_tree_dirty_run(
			&of.tree(), cowsnap_tree_owned(&of.tree(), index), index);
	};
	const auto clean_from = [](region &of, u64 index) {
		return cowsnap_leaf_clean_run(
			cowsnap_tree_owned(&of.tree(), index), index);
	};

	EXPECT_EQ(cowsnap_tree_owned(&child->tree(), leaf), nullptr);
	for (u64 index = leaf - 3; index < leaf + 5; ++index)
		EXPECT_TRUE(child->write(index));
	EXPECT_EQ(before(*child, 0), 0U);
	EXPECT_EQ(before(*child, leaf - 3), 0U);
	EXPECT_EQ(before(*child, leaf - 1), 2U);
	EXPECT_EQ(before(*child, leaf), 3U);
	EXPECT_EQ(before(*child, leaf + 5), 8U);
	EXPECT_EQ(before(*child, leaf + 6), 0U);
	EXPECT_EQ(clean_from(*child, 0), leaf - 3);
	EXPECT_EQ(clean_from(*child, leaf - 3), 0U);
	EXPECT_EQ(clean_from(*child, leaf + 5), leaf - 5);
	/* Not beyond the leaf before; and what is shared is not changed. */
	for (u64 index = leaf + 5; index <= 2 * leaf; ++index)
		EXPECT_TRUE(child->write(index));
	EXPECT_EQ(before(*child, 2 * leaf), leaf);
	EXPECT_EQ(before(*child, 2 * leaf + 1), leaf + 1);
	EXPECT_TRUE(parent->write(leaf));
	EXPECT_EQ(before(*parent, leaf), 0U);
	child->check();
	parent->check();
}

TEST_P(tree, looks_around_in_a_leaf)
{
	auto parent = make({0, 3, leaf + 1, max});
	auto child = parent->fork();
	std::array<cowsnap_granule *, leaf> around;
	const auto look = [&around](region &of, u64 index) {
		return cowsnap_tree_look_around(&of.tree(), index, around.data());
	};

	EXPECT_TRUE(child->write(2));
	for (region *of : {parent.get(), child.get()}) {
		const unsigned long open = of == child.get() ? 1UL << 2 : 0;

		EXPECT_EQ(look(*of, 5), open);
		for (u64 slot = 0; slot < leaf; ++slot)
			EXPECT_EQ(around[slot], of->lookup(slot));
		EXPECT_EQ(look(*of, leaf), 0U);
		EXPECT_EQ(around[1], of->lookup(leaf + 1));
		EXPECT_EQ(around[0], nullptr);
		/* Where there is no leaf. */
		EXPECT_EQ(look(*of, 1ULL << 40), 0U);
		EXPECT_EQ(std::ranges::count(around, nullptr), leaf);
	}
}

TEST_P(tree, isolates_both_sides_of_a_fork)
{
	for (const bool parent_first : {false, true}) {
		auto parent = make({0, 1, leaf, 5 * node, max});
		auto child = parent->fork();
		region &one = parent_first ? *parent : *child;
		region &two = parent_first ? *child : *parent;

		EXPECT_EQ(parent->lookup(1), child->lookup(1));
		EXPECT_TRUE(one.write(1));
		EXPECT_TRUE(one.write(2));
		EXPECT_NE(parent->lookup(1), child->lookup(1));
		EXPECT_TRUE(two.remove(leaf, max - 1));
		EXPECT_TRUE(two.write(3));
		parent->check();
		child->check();
	}
}

TEST_P(tree, forks_without_allocating_or_visiting)
{
	auto parent = make({});

	for (u64 index = 0; index < 4096; ++index)
		EXPECT_TRUE(parent->write(index));
	for (int i = 0; i < 3; ++i) {
		const u64 allocations = shim_allocations();
		const u64 dereferences = shim_dereferences();
		const u64 nodes = cowsnap_tree_nodes();
		auto child = parent->fork();
		u64 first = 0;
		u64 nr = 1;

		for (const auto &one : {parent.get(), child.get()})
			EXPECT_FALSE(cowsnap_tree_next_open(&one->tree(), &first, &nr));
		EXPECT_EQ(shim_allocations(), allocations);
		EXPECT_EQ(cowsnap_tree_nodes(), nodes);
		/* The root, on both sides, to see that it is not owned. */
		EXPECT_LE(shim_dereferences() - dereferences, 2U);
	}
}

/* What a write allocates in nodes. */
u64 cost(region &member, u64 index)
{
	const u64 before = shim_allocations();

	EXPECT_TRUE(member.write(index));
	return shim_allocations() - before;
}

TEST_P(tree, copies_the_path_once)
{
	constexpr u64 high = 1ULL << (COWSNAP_INDEX_BITS - 1);
	auto parent = make({0, leaf, node, high, high + leaf, high + node});
	auto child = parent->fork();

	EXPECT_EQ(cost(*child, high), u64{COWSNAP_TREE_HEIGHT});
	EXPECT_EQ(cost(*child, high), 0U);
	EXPECT_EQ(cost(*child, high + 1), 0U);
	EXPECT_EQ(cost(*child, high + leaf), 1U);
	EXPECT_EQ(cost(*child, high + node), 2U);
	/* The parent alone has the old path now: it takes it over. */
	EXPECT_EQ(cost(*parent, high), 0U);
	EXPECT_EQ(cost(*parent, high + node), 0U);
	/* The root is the parent's, what is below is shared. */
	EXPECT_EQ(cost(*parent, 0), COWSNAP_TREE_HEIGHT - 1U);
	EXPECT_EQ(cost(*child, 0), 0U);
	parent->check();
	child->check();
}

TEST_P(tree, copies_nothing_for_a_sole_owner)
{
	for (const bool child_survives : {false, true}) {
		auto parent = make({0, leaf, max});
		auto child = parent->fork();
		auto &closed = child_survives ? parent : child;
		region &left = child_survives ? *child : *parent;

		closed.reset();
		for (const u64 index : {u64{0}, leaf, max, max}) {
			const cowsnap_granule *const held = left.lookup(index);

			EXPECT_EQ(cost(left, index), 0U);
			EXPECT_EQ(left.lookup(index), held);
		}
		left.check();
		left.check_shape();
	}
}

/*
 * Granules that are copied for the child during a fork stay dirty in the parent,
 * which must be able to say so without memory.
 */
TEST_P(tree, keeps_dirty_what_a_fork_copied)
{
	auto parent = make({0, leaf, node, 7 * node + 3, max});
	auto child = parent->share();

	for (const u64 index : {leaf, 7 * node + 3, max})
		EXPECT_TRUE(child->write(index, true));
	parent->seal();
	shim_fail_allocation(1);
	for (const u64 index : {leaf, 7 * node + 3, max}) {
		const cowsnap_granule *const pinned = parent->lookup(index);

		EXPECT_TRUE(parent->write(index));
		EXPECT_EQ(parent->lookup(index), pinned);
	}
	EXPECT_FALSE(shim_allocation_failed());
	shim_fail_allocation(0);
	child->seal();
	EXPECT_EQ(parent->dirty().size(), 3U);
	parent->check();
	child->check();
}

TEST_P(tree, gives_up_a_fork_without_a_trace)
{
	auto parent = make({0, 1, leaf, max});

	EXPECT_TRUE(parent->fork()->write(0));
	EXPECT_TRUE(parent->write(1));
	const auto dirty = parent->dirty();
	const auto open = parent->open();
	{
		auto child = parent->share();

		EXPECT_TRUE(child->write(1, true));
		EXPECT_TRUE(child->write(5 * node));
	}
	EXPECT_EQ(parent->dirty(), dirty);
	EXPECT_EQ(parent->open(), open);
	EXPECT_EQ(cost(*parent, 1), 0U);
	parent->check();
	parent->check_shape();
}

/* A thousand generations, each of which changed a little of not much. */
regions chain(std::unique_ptr<region> first, chance &chance)
{
	regions family;

	family.push_back(std::move(first));
	while (family.size() < 1000) {
		const u64 index = chance.below(24) * 5 * leaf;

		family.push_back(family.back()->fork());
		EXPECT_TRUE(family.back()->write(index));
		if (chance.one_in(4)) {
			EXPECT_TRUE(family.back()->remove(index + 1, index + node));
		}
	}
	return family;
}

TEST_P(tree, outlives_a_thousand_generations)
{
	chance chance(4 + GetParam());
	using chooser = std::function<std::size_t(std::size_t)>;
	const chooser choosers[] = {
		[](std::size_t) { return 0; },
		[](std::size_t size) { return size - 1; },
		[](std::size_t size) { return size / 2; },
		[&](std::size_t size) { return chance.below(size); },
	};

	for (const chooser &choose : choosers) {
		regions family = chain(make({0, leaf, node, max}), chance);

		check(family);
		while (!family.empty()) {
			const std::size_t gone = choose(family.size());

			family.erase(family.begin() + static_cast<long>(gone));
			check_account();
			/* The neighbours shared most with it. */
			if (gone < family.size())
				family[gone]->check();
			if (gone)
				family[gone - 1]->check();
			if (family.size() % 250 == 0)
				check(family);
			ASSERT_FALSE(HasFailure());
		}
		EXPECT_EQ(cowsnap_tree_nodes(), 0U);
	}
}

TEST_P(tree, destroys_three_in_every_order)
{
	std::vector<std::size_t> order = {0, 1, 2};

	do {
		regions family;

		family.push_back(make({0, leaf, node, max}));
		family.push_back(family[0]->fork());
		family.push_back(family[1]->fork());
		for (u64 i = 0; i < 3; ++i) {
			EXPECT_TRUE(family[i]->write(i));
			EXPECT_TRUE(family[i]->write(leaf));
			EXPECT_TRUE(family[i]->remove(node - i, node + i));
		}
		for (const std::size_t gone : order) {
			family[gone].reset();
			check_account();
			for (const auto &left : family)
				if (left)
					left->check();
		}
	} while (std::next_permutation(order.begin(), order.end()));
}

/* Every range between edges of slots, leaves and nodes, shared and not. */
TEST_P(tree, removes_ranges_at_all_edges)
{
	std::vector<u64> edges = {0, 1, max - 1, max};

	for (unsigned int level = 1; level < COWSNAP_TREE_HEIGHT; level += 2)
		for (u64 off = 0; off < 3; ++off)
			edges.push_back((1ULL << level_bits(level)) + off - 1);
	std::sort(edges.begin(), edges.end());
	for (auto first = edges.begin(); first != edges.end(); ++first) {
		for (auto last = first; last != edges.end(); ++last) {
			regions family;

			family.push_back(make({}));
			for (const u64 index : edges)
				EXPECT_TRUE(family[0]->write(index));
			if (*last % 2) {
				family.push_back(family[0]->fork());
				EXPECT_TRUE(family[0]->write(*first));
			}
			EXPECT_TRUE(family[0]->remove(*first, *last));
			check(family);
			/* Nothing is there: nothing changes. */
			EXPECT_TRUE(family[0]->remove(*first, *last));
			check(family);
		}
	}
}

TEST_P(tree, keeps_what_was_removed_until_it_is_let_go)
{
	auto parent = make({0, 1, leaf, 3 * node, max});
	auto child = parent->fork();

	EXPECT_TRUE(parent->write(1));
	EXPECT_TRUE(parent->write(leaf));
	auto taken = parent->take(1, 4 * node);
	ASSERT_TRUE(taken);
	parent->check();
	child->check();
	EXPECT_TRUE(parent->write(1));
	EXPECT_TRUE(child->write(3 * node));
	child->check();
	taken->destroy();
	parent->check();
	child->check();
	check_account();
}

/*
 * Lets the nth allocation fail for n = 1, 2, ... until there is no nth any more;
 * what did not work must have changed nothing, and must work afterwards.
 */
template <typename Setup, typename Operation>
void sweep(const Setup &setup, Operation operation)
{
	for (unsigned int nth = 1; nth < 100; ++nth) {
		regions family = setup();

		shim_fail_allocation(nth);
		const bool done = operation(*family[0]);
		const bool failed = shim_allocation_failed();
		shim_fail_allocation(0);

		EXPECT_NE(done, failed) << "allocation " << nth;
		for (const auto &member : family)
			member->check();
		if (family.size() == 1)
			family[0]->check_shape();
		if (!failed)
			return;
		EXPECT_TRUE(operation(*family[0]));
		for (const auto &member : family)
			member->check();
	}
	ADD_FAILURE() << "allocations never end";
}

TEST_P(tree, survives_every_failed_allocation)
{
	const std::vector<u64> indices = {0,	1,	  leaf - 1,  leaf,
					  node, 3 * node, 70 * node, max};
	const auto lone = [&] {
		regions family;

		family.push_back(make({0, 1, leaf, 3 * node, 70 * node + 5}));
		return family;
	};
	const auto shared = [&] {
		regions family = lone();

		family.push_back(family[0]->fork());
		return family;
	};
	const auto empty = [&] {
		regions family;

		family.push_back(make({}));
		return family;
	};

	for (const std::function<regions()> &setup :
	     {std::function<regions()>(lone), {shared}, {empty}}) {
		for (const u64 index : indices) {
			sweep(setup, [&](region &one) { return one.write(index); });
			sweep(setup, [&](region &one) {
				return one.remove(index, max);
			});
			sweep(setup, [&](region &one) {
				return one.remove(index / 2, index);
			});
		}
	}
	check_account();
}

/* A leaf that could not be copied, or made, is not among those with open ones. */
TEST_P(tree, opens_nothing_without_memory)
{
	auto parent = make({0, leaf, max});
	auto child = parent->fork();

	EXPECT_TRUE(child->write(leaf));
	for (const u64 index : {u64{0}, 2 * leaf, node}) {
		shim_fail_allocation(1);
		EXPECT_FALSE(child->write(index));
		shim_fail_allocation(0);
		child->check_open();
	}
}

TEST(tree_module, undoes_a_failed_start)
{
	for (unsigned int nth = 1; nth <= 3; ++nth) {
		shim_fail_allocation(nth);
		EXPECT_EQ(cowsnap_tree_module_init(), -ENOMEM);
		EXPECT_EQ(shim_live_objects(), 0U);
	}
	shim_fail_allocation(4);
	EXPECT_EQ(cowsnap_tree_module_init(), 0);
	EXPECT_FALSE(shim_allocation_failed());
	shim_fail_allocation(0);
	cowsnap_tree_module_exit();
}

/* Pointers that are followed stand for nodes that are visited. */
template <typename Operation> u64 visits(Operation operation)
{
	const u64 before = shim_dereferences();

	operation();
	return shim_dereferences() - before;
}

u64 count_open(region &member)
{
	u64 first = 0;
	u64 nr = ~0ULL;
	u64 found = 0;

	for (; cowsnap_tree_next_open(&member.tree(), &first, &nr); nr = ~0ULL) {
		first += nr;
		found += nr;
	}
	return found;
}

TEST_P(tree, visits_the_path_alone_to_read)
{
	auto deep = make({0, max});

	for (int generation = 0; generation < 100; ++generation) {
		deep = deep->fork();
		EXPECT_TRUE(deep->write(0));
	}
	for (const u64 index : {u64{0}, u64{1}, node, max})
		EXPECT_LE(visits([&] { deep->check_index(index); }),
			  2U * (COWSNAP_TREE_HEIGHT + 1));
	/* From one end to the other, over an empty slot at most once. */
	EXPECT_LE(visits([&] { EXPECT_EQ(deep->next(1, true), max); }),
		  2UL * COWSNAP_TREE_HEIGHT * COWSNAP_NODE_SLOTS);
}

TEST_P(tree, visits_what_is_open_alone)
{
	auto parent = make({max});

	for (u64 index = 0; index < 64 * node; index += 3)
		EXPECT_TRUE(parent->write(index));
	auto child = parent->fork();

	for (u64 open = 0; open < 40; ++open) {
		u64 found = 0;
		const u64 seen = visits([&] { found = count_open(*child); });

		EXPECT_EQ(found, open);
		/* Down again from the root at the end of every node at most. */
		EXPECT_LE(seen, (open + 1) * (COWSNAP_TREE_HEIGHT + 1) *
					COWSNAP_TREE_HEIGHT);
		EXPECT_TRUE(child->write(open * 2 * node + open % leaf));
	}
	/* What is closed costs nothing, in whatever order. */
	for (u64 open = 40; open; --open) {
		const u64 closed = open * 7 % 41 - 1;
		u64 found = 0;

		child->close(closed * 2 * node, 1UL << closed % leaf);
		child->check_open();
		const u64 seen = visits([&] { found = count_open(*child); });

		EXPECT_EQ(found, open - 1);
		EXPECT_LE(seen, open * (COWSNAP_TREE_HEIGHT + 1) *
					COWSNAP_TREE_HEIGHT);
	}
	EXPECT_LE(visits([&] { EXPECT_EQ(count_open(*child), 0U); }), 2U);
	/* To open it again needs no memory and no visit but of the path. */
	for (u64 open = 0; open < 40; ++open)
		EXPECT_EQ(cost(*child, open * 2 * node + open % leaf), 0U);
	child->check();
}

TEST_P(tree, finds_what_is_open_wherever_it_is_asked)
{
	auto one = make({});

	for (u64 index = 0; index < 4 * node; ++index)
		if (index < 3 * leaf || index >= node - 3 || index % 100 < 50) {
			EXPECT_TRUE(one->write(index));
		}
	for (const u64 first : {u64{0}, leaf - 1, leaf, 3 * leaf, node - 4, node,
				2 * node - 1, 4 * node - 1, 4 * node, max})
		for (const u64 most : {u64{0}, u64{1}, leaf - 1, leaf, leaf + 1,
				       node, node + 1, max})
			one->check_open(first, most);
}

TEST_P(tree, visits_what_differs_alone)
{
	auto parent = make({max});

	for (u64 index = 0; index < 64 * node; index += 3)
		EXPECT_TRUE(parent->write(index));
	auto child = parent->fork();

	for (u64 changed = 0; changed < 40; ++changed) {
		for (const auto &[one, two] : {std::pair(&*parent, &*child),
					       std::pair(&*child, &*parent)}) {
			const u64 seen = visits([&] { one->check_diff(*two); });

			if (!changed) {
				EXPECT_LE(seen, 2U);
			}
			/* In both, every slot on the way there and on. */
			EXPECT_LE(seen, (changed + 1) * 4 * COWSNAP_TREE_HEIGHT *
						(COWSNAP_NODE_SLOTS + 1));
		}
		EXPECT_TRUE(child->write(changed * 2 * node + changed % leaf, true));
	}
}

TEST_P(tree, finds_what_differs_at_every_height)
{
	regions family;

	/* Each has the one before in it, shared, and a higher root. */
	family.push_back(make({}));
	for (unsigned int level = 1; level <= COWSNAP_TREE_HEIGHT; ++level) {
		family.push_back(family.back()->fork());
		EXPECT_TRUE(family.back()->write((1ULL << level_bits(level)) - 1));
		family.push_back(family.back()->fork());
		EXPECT_TRUE(family.back()->write(0, true));
	}
	family.push_back(make({max}));
	family.push_back(make({0, 1, node + 2}));
	for (const auto &one : family)
		for (const auto &two : family)
			for (const u64 from : {u64{0}, u64{1}, leaf, node, 70 * node,
					       max, max + 1})
				one->check_diff(*two, from);
}

TEST_P(tree, swaps_what_two_hold)
{
	auto parent = make({0, 1, leaf, 3 * node});
	auto child = parent->fork();
	auto fresh = parent->fork();

	EXPECT_TRUE(child->write(max));
	EXPECT_TRUE(fresh->write(leaf));
	const u64 allocations = shim_allocations();
	const u64 nodes = cowsnap_tree_nodes();

	child->swap(*fresh);
	EXPECT_EQ(shim_allocations(), allocations);
	EXPECT_EQ(cowsnap_tree_nodes(), nodes);
	child->check();
	fresh->check();
	child->check_diff(*fresh);
	child->check_diff(*parent);
	/* Either alone reaches its path, and takes it over. */
	EXPECT_EQ(cost(*child, leaf), 0U);
	EXPECT_EQ(cost(*fresh, max), 0U);
	/* Back again, neither owns what it did before. */
	for (region *const forked : {&*child, &*fresh}) {
		EXPECT_TRUE(child->write(leaf));
		EXPECT_TRUE(fresh->write(leaf));
		child->swap(*fresh);
		auto third = forked->fork();

		child->swap(*fresh);
		child->check();
		fresh->check();
		EXPECT_TRUE(child->write(leaf));
		EXPECT_TRUE(fresh->write(leaf));
		third->check();
	}
	fresh.reset();
	child->check();
	parent->check();
}

TEST_P(tree, destroys_what_it_alone_reached)
{
	auto parent = make({max});

	for (u64 index = 0; index < 16 * node; ++index)
		EXPECT_TRUE(parent->write(index));
	const u64 nodes = cowsnap_tree_nodes();
	auto child = parent->fork();

	EXPECT_TRUE(child->write(0));
	EXPECT_EQ(cowsnap_tree_nodes(), nodes + COWSNAP_TREE_HEIGHT);
	EXPECT_EQ(shim_live_pages(), 16 * node + 2);
	child.reset();
	EXPECT_EQ(cowsnap_tree_nodes(), nodes);
	EXPECT_EQ(shim_live_pages(), 16 * node + 1);
	parent->check_shape();
}

/*
 * Others run while a reader is between two reads, at every place where it can
 * be.  @setup makes the two of a fork; @others may do what the locks that
 * @reader stands for allow.
 */
template <typename Setup, typename Reader, typename Others>
void overtake(Setup setup, Reader reader, Others others)
{
	bool overtaken = true;

	for (unsigned int place = 1; overtaken; ++place) {
		const auto [parent, child] = setup();
		std::function<void()> run = [&, &parent = parent, &child = child] {
			overtaken = true;
			std::thread([&others, &parent = *parent, &child = *child] {
				others(parent, child);
			}).join();
		};

		overtaken = false;
		shim_hook_lockless_read(
			place,
			[](void *arg) {
				(*static_cast<std::function<void()> *>(arg))();
			},
			&run);
		{
			SCOPED_TRACE("overtaken after " + std::to_string(place) +
				     " reads");
			reader(*child);
		}
		shim_hook_lockless_read(0, nullptr, nullptr);
		parent->check();
		child->check();
		ASSERT_LT(place, 1000U);
	}
}

class overtaken : public tree {
protected:
	/* Two members that share everything. */
	std::pair<std::unique_ptr<region>, std::unique_ptr<region>> fork_of(
		std::initializer_list<u64> indices)
	{
		auto parent = make(indices);
		auto child = parent->fork();

		return {std::move(parent), std::move(child)};
	}

	/* Leaves of one node, in a tree with a few levels above. */
	static constexpr u64 mine = 3 * node + 1;
	static constexpr u64 other = mine + 2 * leaf;
	static constexpr u64 far = 200 * node;
};

INSTANTIATE_TEST_SUITE_P(rcu, overtaken, testing::Bool(), [](const auto &info) {
	return std::string(info.param ? "early" : "late");
});

/*
 * The child writes elsewhere and so leaves shared nodes, which the parent takes
 * over and changes: the child's reader may not see that.
 */
TEST_P(overtaken, lookup_sees_its_own_tree)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 EXPECT_EQ(child.lookup(mine), child.page(mine));
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.write(mine));
		 });
}

TEST_P(overtaken, lookup_keeps_its_granule)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 EXPECT_EQ(child.lookup(mine), child.page(mine));
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.remove(mine, mine));
		 });
}

TEST_P(overtaken, lookup_finds_no_data_in_its_hole)
{
	overtake([&] { return fork_of({mine + 1, other, far}); },
		 [&](region &child) { EXPECT_EQ(child.lookup(mine), nullptr); },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.write(mine));
		 });
}

TEST_P(overtaken, exclusive_counts_its_own_tree)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 EXPECT_LE(cowsnap_tree_leaf_exclusive(&child.tree(), mine),
				   1U);
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 for (u64 i = 0; i < 4; ++i)
				 EXPECT_TRUE(parent.write(mine + i));
		 });
}

TEST_P(overtaken, next_finds_data_that_stays)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) { EXPECT_EQ(child.next(mine, true), mine); },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.remove(0, max));
		 });
}

TEST_P(overtaken, next_finds_a_hole_that_stays)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 EXPECT_EQ(child.next(mine + leaf, false), mine + leaf);
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.write(mine + leaf));
		 });
}

TEST_P(overtaken, next_ends_in_a_tree_that_vanishes)
{
	overtake(
		[&] {
			auto two = fork_of({mine, other, far, max});

			/* The ends of what is removed are owned, the rest shared. */
			EXPECT_TRUE(two.second->write(0));
			EXPECT_TRUE(two.second->write(max - 1));
			return two;
		},
		[&](region &child) {
			const auto found = child.next(1, true);

			EXPECT_TRUE(found == mine || found == max) << *found;
		},
		[&](region &parent, region &child) {
			EXPECT_TRUE(child.remove(0, max - 1));
			/* The parent has it alone now. */
			EXPECT_TRUE(parent.write(mine - 1));
		});
}

TEST_P(overtaken, is_open_sees_its_own_tree)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 EXPECT_FALSE(cowsnap_tree_is_open(&child.tree(), mine));
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.write(mine));
		 });
	overtake(
		[&] {
			auto two = fork_of({mine, other, far});

			EXPECT_TRUE(two.second->write(mine));
			return two;
		},
		[&](region &child) {
			EXPECT_TRUE(cowsnap_tree_is_open(&child.tree(), mine));
		},
		[&](region &parent, region &child) {
			EXPECT_TRUE(child.write(other));
			EXPECT_TRUE(parent.write(mine));
			EXPECT_TRUE(child.write(max));
		});
}

/* A restore leaves all the old nodes to the parent, which changes them. */
TEST_P(overtaken, next_sees_one_side_of_a_swap)
{
	for (const bool data : {true, false})
		overtake([&] { return fork_of({mine, mine + 1, other, far}); },
			 [&](region &child) {
				 EXPECT_EQ(child.next(mine, data),
					   data ? mine : mine + 2);
			 },
			 [&](region &parent, region &child) {
				 child.swap(*make({mine, mine + 1, far}));
				 EXPECT_TRUE(parent.remove(mine, mine));
				 EXPECT_TRUE(parent.write(mine + 2));
			 });
}

TEST_P(overtaken, next_exclusive_ends_in_a_tree_that_is_swapped)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 u64 at = 0;

			 if (cowsnap_tree_next_exclusive(&child.tree(), &at)) {
				 EXPECT_EQ(at, max & ~(leaf - 1));
			 }
		 },
		 [&](region &parent, region &child) {
			 child.swap(*make({max}));
			 EXPECT_TRUE(parent.write(mine));
		 });
}

/* One granule is there in the first of two, but not in the second. */
u64 first_diff(region &one, region &two, u64 first)
{
	u64 nr = 0;
	bool data = false;

	EXPECT_TRUE(cowsnap_tree_next_diff(&one.tree(), &two.tree(), &first, &nr,
					   &data));
	EXPECT_EQ(nr, 1U);
	EXPECT_TRUE(data);
	return first;
}

/*
 * Somebody else takes over and changes what both trees, or one, have left: that
 * is no difference between the two.
 */
TEST_P(overtaken, next_diff_sees_its_own_trees)
{
	for (const bool swap : {false, true}) {
		for (const bool swapped : {false, true}) {
			std::unique_ptr<region> base;

			overtake(
				[&] {
					auto two = fork_of({mine, other, far});

					base = two.first->fork();
					EXPECT_TRUE(two.second->write(far));
					if (swap) {
						EXPECT_TRUE(base->write(other));
					}
					return two;
				},
				[&](region &child) {
					const u64 first =
						swapped ? first_diff(*base, child, mine)
							: first_diff(child, *base, mine);

					EXPECT_TRUE(first == other || first == far)
						<< first;
				},
				[&](region &parent, region &child) {
					if (swap) {
						auto fresh = base->fork();

						EXPECT_TRUE(fresh->write(far));
						child.swap(*fresh);
					} else {
						EXPECT_TRUE(base->write(other));
						EXPECT_TRUE(child.write(other));
					}
					EXPECT_TRUE(parent.write(mine));
				});
		}
	}
}

TEST_P(overtaken, next_diff_finds_what_stays)
{
	overtake([&] { return fork_of({mine, other, far}); },
		 [&](region &child) {
			 EXPECT_EQ(first_diff(child, *make({}), mine), mine);
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(other));
			 EXPECT_TRUE(parent.remove(0, max));
		 });
}

TEST_P(overtaken, next_diff_ends_in_trees_that_vanish)
{
	overtake(
		[&] {
			auto two = fork_of({0, mine, other, far, max});

			EXPECT_TRUE(two.second->write(0));
			EXPECT_TRUE(two.second->write(max));
			return two;
		},
		[&](region &child) {
			const u64 first = first_diff(child, *make({}), 1);

			EXPECT_TRUE(first == mine || first == max) << first;
		},
		[&](region &parent, region &child) {
			EXPECT_TRUE(child.remove(0, max - 1));
			EXPECT_TRUE(parent.write(mine - 1));
		});
}

TEST_P(overtaken, own_finds_its_leaf)
{
	overtake(
		[&] {
			auto two = fork_of({mine, other, far});

			EXPECT_TRUE(two.second->write(far));
			return two;
		},
		[&](region &child) { EXPECT_TRUE(child.write(mine)); },
		[&](region &parent, region &child) {
			EXPECT_TRUE(child.write(other));
			EXPECT_TRUE(parent.write(mine));
			EXPECT_TRUE(child.write(max));
		});
}

/* Nodes that are not owned are taken over in front of who looks for owned ones. */
TEST_P(overtaken, own_finds_its_leaf_in_a_sealed_tree)
{
	overtake(
		[&] {
			auto child = make({mine, other, far});

			child->seal();
			return std::pair(make({}), std::move(child));
		},
		[&](region &child) { EXPECT_TRUE(child.write(mine)); },
		[&](region &, region &child) { EXPECT_TRUE(child.write(other)); });
}

TEST_P(overtaken, lookup_survives_growth)
{
	overtake([&] { return fork_of({mine, other}); },
		 [&](region &child) {
			 EXPECT_EQ(child.lookup(mine), child.page(mine));
		 },
		 [&](region &parent, region &child) {
			 EXPECT_TRUE(child.write(max));
			 EXPECT_TRUE(parent.write(mine));
		 });
}

} // namespace
} // namespace tree_test

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
