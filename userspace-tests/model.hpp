// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the members of families should hold, and what STAT should tell of them: the
 * promises of the interface, done with plain numbers.
 *
 * A granule is an object that the members who have it point to: a fork to its
 * parent's; what is filled or copied is a new one.
 */
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <ranges>
#include <vector>

#include <fcntl.h>

#include <linux/cowsnap.h>

#include "mapping.hpp"
#include "painted.hpp"

namespace cowsnap_test {

struct byte_range {
	std::uint64_t start, end;

	std::uint64_t size() const { return end - start; }
};

/*
 * The granules that are used, called slots: four runs, three of which lie across
 * the borders of what nodes of the tree stand for.
 */
struct geometry {
	unsigned int shift;
	std::size_t run_slots;

	static constexpr std::size_t runs = 4;

	std::uint64_t granule() const { return 1ull << shift; }
	std::size_t slots() const { return runs * run_slots; }
	byte_range run(std::size_t number) const
	{
		constexpr std::array<std::uint64_t, runs> borders = {
			0, 1 << 10, 1 << 16, 1ull << 34};
		const std::uint64_t start =
			number ? borders[number] - run_slots / 2 : 0;

		return {start << shift, (start + run_slots) << shift};
	}
	byte_range slot(std::size_t number) const
	{
		const std::uint64_t start = run(number / run_slots).start +
					    ((number % run_slots) << shift);

		return {start, start + granule()};
	}
	std::uint64_t end() const { return run(runs - 1).end; }
};

/* Has nothing but an identity. */
class granule {
public:
	explicit granule(std::uint64_t &alive) : alive_(alive) { alive_++; }
	granule(const granule &) = delete;
	granule &operator=(const granule &) = delete;
	~granule() { alive_--; }

private:
	std::uint64_t &alive_;
};

/* What one member has in a slot. */
struct slot_state {
	std::shared_ptr<granule> held; /* nothing is a hole */
	bool dirty = false; /* changed since the last fork */
	bool open = false; /* written since the last fork or PREPARE */
};

struct member {
	std::uint64_t id = 0, parent_id = 0, family_id = 0, generation = 0;
	bool read_only = false;
	std::uint64_t length = 0;
	painted content;
	std::vector<slot_state> slots;
	std::uint64_t forks = 0, copies = 0, reuses = 0, zero_fills = 0;
	std::uint64_t prepare_next = 0;
};

/* A page that something refers to without a mapping. */
struct pinned_page {
	std::weak_ptr<granule> of;
	std::uint64_t offset = 0;
	painted content;
};

class model {
public:
	explicit model(geometry shape) : shape_(shape)
	{
		for (std::size_t slot = 0; slot < shape.slots(); slot++)
			places_.push_back(shape.slot(slot));
	}

	void add(pinned_page &page) { pins_.push_back(&page); }
	void remove(pinned_page &page) { std::erase(pins_, &page); }

	/* The slots that @range touches. */
	auto touched(byte_range range) const
	{
		return std::views::iota(std::size_t{0}, places_.size()) |
		       std::views::filter([this, range](std::size_t slot) {
			       const byte_range place = places_[slot];

			       return std::max(place.start, range.start) <
				      std::min(place.end, range.end);
		       });
	}

	/* A store: what is touched becomes the member's own, and has the bytes. */
	void store(member &one, byte_range range, unsigned int value)
	{
		own(one, range);
		paint(one, range, value);
	}

	/* As a store that leaves the bytes as they are. */
	void own(member &one, byte_range range)
	{
		for (const std::size_t slot : touched(range))
			take(one, slot);
	}

	/* A write(2): it may make the file longer. */
	void write(member &one, byte_range range, unsigned int value)
	{
		if (range.start > one.length)
			clear_tail(one);
		store(one, range, value);
		one.length = std::max(one.length, range.end);
	}

	void truncate(member &one, std::uint64_t length)
	{
		if (length > one.length) {
			clear_tail(one);
		} else {
			own_parts(one, {length, UINT64_MAX});
			drop(one, {length, UINT64_MAX});
		}
		one.length = length;
	}

	/* fallocate(2) */
	void allocate(member &one, byte_range range, int mode)
	{
		const bool grows = !(mode & FALLOC_FL_KEEP_SIZE) &&
				   range.end > one.length;

		if (grows)
			clear_tail(one);
		if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
			own_parts(one, range);
			drop(one, range);
		}
		for (const std::size_t slot : touched(range))
			if (!(mode & FALLOC_FL_PUNCH_HOLE) &&
			    (!one.slots[slot].held ||
			     (mode & FALLOC_FL_UNSHARE_RANGE)))
				take(one, slot);
		if (grows)
			one.length = range.end;
	}

	/*
	 * What @parent holds now, for its forks of one instant, or for whom it is
	 * restored to.
	 */
	std::vector<slot_state> image(member &parent)
	{
		std::vector<slot_state> taken(parent.slots.size());

		for (std::size_t slot = 0; slot < taken.size(); slot++) {
			slot_state &state = parent.slots[slot];

			if (state.open && is_pinned(state.held)) {
				parent.copies++;
				taken[slot].held = new_granule();
				continue;
			}
			taken[slot].held = state.held;
			state.dirty = state.open = false;
		}
		return taken;
	}

	static void fork(member &parent, const std::vector<slot_state> &image,
			 member &made)
	{
		made.length = parent.length;
		made.content = parent.content;
		made.slots = image;
		made.parent_id = parent.id;
		made.family_id = parent.family_id;
		made.generation = parent.generation + 1;
		parent.forks++;
	}

	/* Returns the bytes that RESTORE should tell. */
	std::uint64_t restore(member &one, member &source)
	{
		if (&one == &source)
			return 0;

		const std::vector<slot_state> taken = image(source);
		std::uint64_t changed = 0;

		for (std::size_t slot = 0; slot < taken.size(); slot++)
			if (one.slots[slot].held != taken[slot].held)
				changed += shape_.granule();
		one.slots = taken;
		one.length = source.length;
		one.content = source.content;
		return changed;
	}

	/* Returns the granules that PREPARE should tell to be left. */
	std::uint64_t prepare(member &one, std::uint64_t budget)
	{
		for (int ends = 0; ends < 2; ends++) {
			const std::uint64_t done = close_some(one, budget);

			if (budget && done == budget)
				break;
			one.prepare_next = 0;
			if (!open_slots(one))
				break;
			budget -= budget ? done : 0;
		}
		return open_slots(one);
	}

	/* What all members together hold. */
	std::uint64_t held_bytes() const { return alive_ << shape_.shift; }

	/* What STAT should tell, but for the faults. */
	cowsnap_stat stat(const member &one) const
	{
		cowsnap_stat stat = {};

		stat.size = sizeof(stat);
		stat.state = one.read_only ? COWSNAP_STAT_F_READONLY : 0;
		stat.granule_shift = shape_.shift;
		stat.id = one.id;
		stat.parent_id = one.parent_id;
		stat.family_id = one.family_id;
		stat.length = one.length;
		stat.generation = one.generation;
		stat.forks = one.forks;
		stat.copies = one.copies;
		stat.reuses = one.reuses;
		stat.zero_fills = one.zero_fills;
		stat.bytes_copied = one.copies << shape_.shift;
		for (std::size_t slot = 0; slot < one.slots.size(); slot++) {
			const slot_state &state = one.slots[slot];

			if (!state.held)
				continue;
			stat.referenced += shape_.granule();
			if (state.held.use_count() == 1)
				stat.exclusive += shape_.granule();
			if (state.dirty)
				stat.dirty += shape_.granule();
		}
		return stat;
	}

	/* What DIFF should tell. */
	std::vector<cowsnap_range> diff(const member &one, const member &other,
					bool exact, byte_range asked) const
	{
		std::vector<cowsnap_range> ranges;

		for (const std::size_t slot : touched(asked)) {
			const auto [start, end] = places_[slot];
			const auto &held = one.slots[slot].held;
			const std::uint32_t flags = held ? 0 : COWSNAP_RANGE_F_HOLE;

			if (held == other.slots[slot].held ||
			    (exact && one.content.same_as(other.content, start, end)))
				continue;
			if (!ranges.empty() && ranges.back().flags == flags &&
			    ranges.back().offset + ranges.back().length == start)
				ranges.back().length += end - start;
			else
				ranges.push_back({start, end - start, flags, 0});
		}
		return ranges;
	}

	/* What lseek(2) should return. */
	std::int64_t seek_data(const member &one, std::uint64_t from) const
	{
		for (const std::size_t slot : touched({from, one.length}))
			if (one.slots[slot].held)
				return static_cast<std::int64_t>(
					std::max(from, places_[slot].start));
		return -1;
	}
	std::int64_t seek_hole(const member &one, std::uint64_t from) const
	{
		std::uint64_t end = from;

		if (from >= one.length)
			return -1;
		for (const std::size_t slot : touched({from, one.length})) {
			const byte_range place = places_[slot];

			if (place.start > end || !one.slots[slot].held)
				break;
			end = place.end;
		}
		return static_cast<std::int64_t>(std::min(end, one.length));
	}

private:
	bool covers(byte_range range, std::size_t slot) const
	{
		const byte_range place = places_[slot];

		return range.start <= place.start && place.end <= range.end;
	}

	std::shared_ptr<granule> new_granule()
	{
		return std::make_shared<granule>(alive_);
	}

	static bool is_of(const pinned_page &page,
			  const std::shared_ptr<granule> &held)
	{
		return held && page.of.lock() == held;
	}

	bool is_pinned(const std::shared_ptr<granule> &held) const
	{
		return std::ranges::any_of(pins_, [&](const pinned_page *page) {
			return is_of(*page, held);
		});
	}

	/* Makes a slot one that @one may write. */
	void take(member &one, std::size_t slot)
	{
		slot_state &state = one.slots[slot];

		if (!state.held) {
			one.zero_fills++;
			state.held = new_granule();
		} else if (!state.dirty) {
			if (state.held.use_count() == 1 &&
			    !is_pinned(state.held)) {
				one.reuses++;
			} else {
				one.copies++;
				state.held = new_granule();
			}
		}
		state.dirty = state.open = true;
	}

	/*
	 * A granule that is cleared in part becomes the member's own, unless there
	 * is nothing to clear.
	 */
	void own_parts(member &one, byte_range range)
	{
		for (const std::size_t slot : touched(range)) {
			const byte_range place = places_[slot];

			if (!covers(range, slot) && one.slots[slot].held &&
			    !one.content.is_zero(std::max(place.start, range.start),
						 std::min(place.end, range.end)))
				take(one, slot);
		}
	}

	/* Growing clears the rest of the last granule. */
	void clear_tail(member &one)
	{
		const std::uint64_t mask = shape_.granule() - 1;

		own_parts(one, {one.length, (one.length + mask) & ~mask});
	}

	/* Who sees a granule by a pin sees what is stored there. */
	void paint(member &one, byte_range range, unsigned int value)
	{
		one.content.paint(range.start, range.end, value);
		for (pinned_page *page : pins_) {
			const byte_range seen = {page->offset,
						 page->offset + page_size};

			for (const std::size_t slot : touched(seen))
				if (is_of(*page, one.slots[slot].held))
					page->content.paint(
						std::max(seen.start, range.start),
						std::min(seen.end, range.end),
						value);
		}
	}

	/* Whole granules go, with all bytes; of others the bytes are cleared. */
	void drop(member &one, byte_range range)
	{
		for (const std::size_t slot : touched(range))
			if (covers(range, slot))
				one.slots[slot] = {};
		paint(one, range, 0);
	}

	static std::uint64_t open_slots(const member &one)
	{
		return static_cast<std::uint64_t>(
			std::ranges::count(one.slots, true, &slot_state::open));
	}

	/* Closes up to @budget slots, 0 for all; what is pinned stays open. */
	std::uint64_t close_some(member &one, std::uint64_t budget)
	{
		std::uint64_t done = 0;

		for (const std::size_t slot :
		     touched({one.prepare_next, UINT64_MAX})) {
			slot_state &state = one.slots[slot];

			if (budget && done == budget)
				break;
			if (!state.open)
				continue;
			state.open = is_pinned(state.held);
			one.prepare_next = places_[slot].end;
			done++;
		}
		return done;
	}

	geometry shape_;
	std::vector<byte_range> places_;
	std::vector<pinned_page *> pins_;
	std::uint64_t alive_ = 0;
};

} // namespace cowsnap_test
