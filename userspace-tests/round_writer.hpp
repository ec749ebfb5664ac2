// SPDX-License-Identifier: GPL-2.0-only
/*
 * Processes that count rounds in pages of a region (sequence.hpp), disturbed in several
 * ways, and pictures of what other members hold there, which show whether that was taken
 * at one instant.
 */
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <sys/uio.h>

#include "chance.hpp"
#include "process.hpp"
#include "region.hpp"
#include "sequence.hpp"

namespace cowsnap_test {

/* What a writer does to its mapping, or by what it writes, now and then. */
enum class disturbance {
	none,
	mprotect,
	remap,
	dontneed,
	mremap,
	process_fork,
	second_mapping,
	write_calls,
	remote_writes,
	grow_and_truncate,
};

inline const char *name_of(disturbance how)
{
	switch (how) {
	case disturbance::none:
		return "undisturbed";
	case disturbance::mprotect:
		return "mprotect";
	case disturbance::remap:
		return "remap";
	case disturbance::dontneed:
		return "dontneed";
	case disturbance::mremap:
		return "mremap";
	case disturbance::process_fork:
		return "process_fork";
	case disturbance::second_mapping:
		return "second_mapping";
	case disturbance::write_calls:
		return "write_calls";
	case disturbance::remote_writes:
		return "remote_writes";
	case disturbance::grow_and_truncate:
		return "grow_and_truncate";
	}
	return "";
}

/*
 * Who writes what: the writers' pages alternate, in one dense run that several of
 * them share a tree node in, and in a sparse one; the copier's lie behind them.
 */
inline constexpr std::size_t writers = 2;
inline constexpr std::size_t dense_pages = 40;
inline constexpr std::size_t sparse_pages = 12;
inline constexpr std::size_t copied_pages = 16;
inline constexpr std::size_t copies_start = 2000;
inline constexpr std::size_t region_pages = copies_start + copied_pages;

inline std::vector<std::size_t> pages_of(std::size_t writer)
{
	std::vector<std::size_t> pages;

	for (std::size_t i = 0; i < dense_pages; i++)
		pages.push_back(i * writers + writer);
	for (std::size_t i = 0; i < sparse_pages; i++)
		pages.push_back(200 + 37 * i * writers + writer);
	return pages;
}

/* The first writer's page that the copier's page @i is a copy of. */
inline std::size_t original_of(std::size_t i)
{
	return pages_of(0)[i * 3];
}

struct progress {
	std::atomic<bool> stop = false;
	/* Rounds that a writer has finished. */
	std::array<std::atomic<std::uint64_t>, writers> rounds = {};
};

/* A process that counts rounds in its pages until it is told to stop. */
class round_writer {
public:
	round_writer(const region &file, std::size_t number, disturbance how,
		     progress &state)
		: file_(file), number_(number), how_(how), state_(state),
		  pages_(pages_of(number)), chance_(10 + number), map_(file.map())
	{
	}

	/* Goes on where another, which was killed, was. */
	void resume()
	{
		round_ = map_.load(pages_.back());
		if (map_.load(pages_.front()) == round_)
			return;
		round_++;
		for (const std::size_t page : pages_)
			if (map_.load(page) != round_)
				store(page);
		state_.rounds[number_] = round_;
	}

	void run()
	{
		if (how_ == disturbance::second_mapping)
			second_ = file_.map();
		while (!state_.stop) {
			const std::size_t disturbed = chance_.below(pages_.size());

			round_++;
			for (std::size_t i = 0; i < pages_.size(); i++) {
				if (i == disturbed)
					disturb(i);
				if (i >= handed_over_)
					store(pages_[i]);
			}
			handed_over_ = 0;
			state_.rounds[number_] = round_;
		}
	}

private:
	/* Stores the round; the page still has the round before it. */
	void store(std::size_t page)
	{
		const mapping &map = second_.data() && chance_.one_in(2) ? second_
									 : map_;
		const std::uint64_t value = round_;
		const auto bytes = std::as_bytes(std::span(&value, 1));

		require(map.load(page) == round_ - 1, "a store was lost");
		if (how_ == disturbance::write_calls) {
			file_.write(page * page_size, bytes);
		} else if (how_ == disturbance::remote_writes) {
			const iovec local = {const_cast<std::uint64_t *>(&value),
					     sizeof(value)};
			const iovec remote = {map.page(page).data(), sizeof(value)};

			check(::process_vm_writev(::getpid(), &local, 1, &remote, 1,
						  0),
			      "process_vm_writev");
		} else {
			map.store(page, value);
		}
		require(map.load(page) == round_, "a store does not show");
	}

	void disturb(std::size_t position)
	{
		switch (how_) {
		case disturbance::mprotect:
			map_.protect(PROT_READ);
			map_.protect(PROT_READ | PROT_WRITE);
			break;
		case disturbance::remap:
			map_.reset();
			map_ = file_.map();
			break;
		case disturbance::dontneed:
			map_.advise(MADV_DONTNEED);
			break;
		case disturbance::mremap:
			map_.move();
			break;
		case disturbance::process_fork: {
			/* The rest of the round is a child's. */
			child rest([this, position] {
				for (std::size_t i = position; i < pages_.size(); i++)
					store(pages_[i]);
			});

			require(rest.succeeded(), "the forked writer failed");
			handed_over_ = pages_.size();
			break;
		}
		case disturbance::grow_and_truncate:
			/* Only one may: the other would cut off what this adds. */
			if (number_ == 0) {
				file_.fill_page(region_pages + 5, 1);
				file_.truncate(region_pages * page_size);
			}
			break;
		default:
			break;
		}
	}

	const region &file_;
	std::size_t number_;
	disturbance how_;
	progress &state_;
	std::vector<std::size_t> pages_;
	chance chance_;
	mapping map_;
	mapping second_;
	std::uint64_t round_ = 0;
	/* Positions from here on were stored by a child already. */
	std::size_t handed_over_ = 0;
};

/* What a member of the family holds, as far as it matters here. */
struct picture {
	std::array<std::vector<std::uint64_t>, writers> rounds;
	std::vector<std::uint64_t> originals, copies;

	bool operator==(const picture &) const = default;
};

/* By the snapshot's mapping, or by read(2), which must not differ. */
inline picture picture_of(const region &member, bool by_mapping)
{
	const mapping map = by_mapping ? member.map(PROT_READ) : mapping();
	picture taken;

	const auto value = [&](std::size_t page) {
		std::uint64_t word = 0;

		if (by_mapping)
			return map.load(page);
		member.read(page * page_size,
			    std::as_writable_bytes(std::span(&word, 1)));
		return word;
	};

	for (std::size_t writer = 0; writer < writers; writer++)
		for (const std::size_t page : pages_of(writer))
			taken.rounds[writer].push_back(value(page));
	for (std::size_t i = 0; i < copied_pages; i++) {
		taken.copies.push_back(value(copies_start + i));
		taken.originals.push_back(value(original_of(i)));
	}
	return taken;
}

/* Why @taken is not of one instant. */
inline std::optional<std::string> fault_of(const picture &taken)
{
	for (std::size_t writer = 0; writer < writers; writer++) {
		if (const auto where = torn(taken.rounds[writer]))
			return "writer " + std::to_string(writer) + ": " + *where;
	}
	/* A copy that was made before the instant was made of something older. */
	for (std::size_t i = 0; i < copied_pages; i++) {
		if (taken.copies[i] > taken.originals[i])
			return "copy " + std::to_string(i) + " has " +
			       std::to_string(taken.copies[i]) +
			       ", which its original gets later than " +
			       std::to_string(taken.originals[i]);
	}
	return std::nullopt;
}

} // namespace cowsnap_test
