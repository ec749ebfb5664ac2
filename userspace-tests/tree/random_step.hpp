// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is done to a family of trees at random, step by step.  Chance is what
 * decides: a random number generator, or a fuzzer's input.
 */
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "region_model.hpp"

namespace tree_test {

inline constexpr u64 leaf = COWSNAP_LEAF_SLOTS;
/* What one node above the leaves stands for. */
inline constexpr u64 node = leaf * COWSNAP_NODE_SLOTS;
inline constexpr u64 max = COWSNAP_INDEX_MAX;

/* How large the indices are that a run uses. */
inline constexpr std::array<unsigned int, 7> index_bits = {5, 9, 11, 17, 24, 36, 52};

using regions = std::vector<std::unique_ptr<region>>;

/* An index below 1 << @bits, often next to others or at a node's edge. */
template <typename Chance>
u64 pick(Chance &chance, unsigned int bits)
{
	const u64 mask = (1ULL << bits) - 1;
	const u64 edge = 1ULL << level_bits(
				 static_cast<unsigned int>(chance.between(1, 8)));

	switch (chance.below(5)) {
	case 0:
		return chance.below(4 * leaf) & mask;
	case 1:
		return chance.below(3 * node) & mask;
	case 2:
		return (edge * chance.between(1, 3) + chance.below(3) - 1) & mask;
	case 3:
		return mask - (chance.below(2 * node) & mask);
	default:
		return chance.below(mask + 1);
	}
}

template <typename Chance>
std::pair<u64, u64> pick_range(Chance &chance, unsigned int bits)
{
	u64 first = pick(chance, bits);
	u64 last = pick(chance, bits);

	switch (chance.below(5)) {
	case 0:
		return {0, max};
	case 1:
		return {first, first};
	case 2: /* whole leaves or nodes */
		first &= ~(chance.one_in(2) ? leaf - 1 : node - 1);
		return {first, std::min(first + leaf * chance.between(1, 80) - 1,
					max)};
	default:
		return std::minmax(first, last);
	}
}

/* Some or all of what is open in some leaf, sometimes everything. */
template <typename Chance>
void close(region &member, Chance &chance, u64 index)
{
	const bool all = chance.one_in(8);

	while (!member.open().empty()) {
		const auto at = member.open().lower_bound(index);
		const u64 open = at == member.open().end() ? *member.open().begin()
							   : *at;

		member.close(open, all || chance.one_in(2)
					   ? (1UL << leaf) - 1
					   : chance.below(1UL << leaf));
		if (!all)
			return;
	}
}

/* One thing that is done to some member, perhaps without the memory for it. */
template <typename Chance>
void step(regions &family, Chance &chance, unsigned int bits)
{
	region &member = *family[chance.below(family.size())];
	const u64 index = pick(chance, bits);
	const auto [first, last] = pick_range(chance, bits);

	if (chance.one_in(8))
		shim_fail_allocation(
			static_cast<unsigned int>(chance.between(1, 12)));
	switch (chance.below(30)) {
	case 0:
	case 1:
		if (family.size() < 8)
			family.push_back(member.fork());
		break;
	case 2: { /* a fork in which the child is changed halfway */
		auto child = member.share();

		EXPECT_TRUE(child->write(index, true) || shim_allocation_failed());
		if (chance.one_in(2) || family.size() == 8)
			break; /* given up */
		member.seal();
		child->seal();
		family.push_back(std::move(child));
		break;
	}
	case 3:
		if (family.size() > 1)
			std::erase_if(family, [&](const auto &other) {
				return other.get() == &member;
			});
		break;
	case 4:
	case 5:
		EXPECT_TRUE(member.remove(first, last) || shim_allocation_failed());
		break;
	case 6:
		member.seal();
		break;
	case 7:
		shim_rcu_grace_period();
		break;
	case 8: { /* a restore, before which what is brought in may change */
		auto fresh = family[chance.below(family.size())]->fork();

		if (chance.one_in(2)) {
			EXPECT_TRUE(fresh->write(index) || shim_allocation_failed());
		}
		member.swap(*fresh);
		if (chance.one_in(2) && family.size() < 8)
			family.push_back(std::move(fresh));
		break;
	}
	case 9:
	case 10:
	case 11:
	case 12:
		close(member, chance, index);
		break;
	default:
		EXPECT_TRUE(member.write(index, chance.one_in(4)) ||
			    shim_allocation_failed());
	}
	shim_fail_allocation(0);
	for (const auto &other : family) {
		other->check_index(index);
		other->check_open();
		other->check_open(first, chance.below(2 * leaf));
	}
	if (chance.one_in(8))
		family[chance.below(family.size())]->check_diff(
			*family[chance.below(family.size())], first);
}

} // namespace tree_test
