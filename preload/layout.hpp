// SPDX-License-Identifier: MIT
/*
 * What each part of a range of addresses is used for.
 */
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "node_pool.hpp"

namespace cowsnap_preload {

using address = std::uintptr_t;

/* x86-64's. */
inline constexpr std::size_t page_size = 4096;

struct range {
	address start = 0;
	address end = 0;

	std::size_t size() const noexcept { return end - start; }
	bool empty() const noexcept { return start >= end; }
	bool has(const range &other) const noexcept
	{
		return start <= other.start && other.end <= end;
	}
	range common(const range &other) const noexcept
	{
		return {std::max(start, other.start), std::min(end, other.end)};
	}
	bool operator==(const range &) const = default;
};

enum class use {
	/* Never was taken: a hole that may be read and written. */
	fresh,
	/* Was given back: a hole that may not be touched. */
	closed,
	/* The program's, out of the region. */
	taken,
	/* The program's, mapped over the region: not the region's to care for. */
	foreign,
};

struct part {
	use used = use::fresh;
	/* PROT_ bits, of what is taken. */
	int protection = 0;

	bool is_free() const noexcept { return used == use::fresh || used == use::closed; }
	bool operator==(const part &) const = default;
};

/* The parts cover all of the range, and neighbours differ. */
class layout {
public:
	/* The most nodes that one call of assign() allocates. */
	static constexpr std::size_t nodes_per_change = 6;

	/* The pool has as many to spare. */
	layout(range all, node_pool *pool)
		: all_(all), parts_(part_map::allocator_type(pool)),
		  free_(free_set::allocator_type(pool))
	{
		insert(all.start, all.end, part());
	}

	range all() const noexcept { return all_; }

	/* The smallest free part with room for that many bytes, if any. */
	std::optional<address> find_free(std::size_t size) const
	{
		const auto found = free_.lower_bound({size, 0});

		if (found == free_.end())
			return std::nullopt;
		return found->second;
	}

	/* Makes all of @wanted, which is not empty, a part of that kind. */
	void assign(range wanted, part kind)
	{
		split(wanted.start);
		split(wanted.end);

		auto at = parts_.find(wanted.start);

		while (at != parts_.end() && at->first < wanted.end)
			at = erase(at);
		if (at != parts_.end() && at->second.second == kind) {
			wanted.end = at->second.first;
			at = erase(at);
		}
		if (at != parts_.begin()) {
			const auto before = std::prev(at);

			if (before->second.second == kind) {
				wanted.start = before->first;
				erase(before);
			}
		}
		insert(wanted.start, wanted.end, kind);
	}

	/* The part that has that address, whole. */
	std::pair<range, part> at(address wanted) const
	{
		const auto found = std::prev(parts_.upper_bound(wanted));

		return {{found->first, found->second.first}, found->second.second};
	}

	/* Calls @visit(range, part) for what @wanted has of each part, which it may assign anew. */
	template <typename Visit> void visit(range wanted, Visit &&visit) const
	{
		wanted = wanted.common(all_);
		while (!wanted.empty()) {
			const auto [whole, kind] = at(wanted.start);
			const range some = whole.common(wanted);

			visit(some, kind);
			wanted.start = some.end;
		}
	}

	/* Whether @holds(part) of all that @wanted has. */
	template <typename Condition> bool all_of(range wanted, Condition &&holds) const
	{
		bool all = true;

		visit(wanted, [&](range, const part &kind) { all = all && holds(kind); });
		return all;
	}

	bool is_free(range wanted) const
	{
		return all_of(wanted, [](const part &kind) { return kind.is_free(); });
	}

private:
	/* By where they start; where they end, and what they are. */
	using part_value = std::pair<address, part>;
	using part_map = std::map<address, part_value, std::less<>,
				  node_allocator<std::pair<const address, part_value>>>;
	/* By their sizes, where they start. */
	using free_value = std::pair<std::size_t, address>;
	using free_set = std::set<free_value, std::less<>, node_allocator<free_value>>;

	void insert(address start, address end, const part &kind)
	{
		parts_.insert({start, {end, kind}});
		if (kind.is_free())
			free_.insert({end - start, start});
	}

	part_map::iterator erase(part_map::iterator at)
	{
		if (at->second.second.is_free())
			free_.erase({at->second.first - at->first, at->first});
		return parts_.erase(at);
	}

	/* Has a part begin there. */
	void split(address where)
	{
		if (where >= all_.end || parts_.contains(where))
			return;

		const auto [whole, kind] = at(where);

		erase(parts_.find(whole.start));
		insert(whole.start, where, kind);
		insert(where, whole.end, kind);
	}

	range all_;
	part_map parts_;
	free_set free_;
};

} // namespace cowsnap_preload
