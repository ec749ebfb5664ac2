// SPDX-License-Identifier: GPL-2.0-only
/*
 * The main job: one process changes a store in a region, another takes
 * snapshots of it, a third gets their descriptors and verifies them.
 */
#pragma once

#include <cstdint>

#include "region.hpp"

namespace cowsnap_demo {

inline constexpr std::size_t snapshot_count = 100;

struct snapshot_report {
	std::uint64_t updates = 0; /* while they were taken and verified */
	std::uint64_t dirty_pages = 0; /* at a FORK, median */
	double fork_ns = 0; /* median, while the writer writes */
	std::uint64_t held_bytes = 0; /* by the snapshots alone */
	std::uint64_t nodes = 0;
	std::uint64_t memory = 0; /* by which the free memory fell */
	std::uint64_t left_bytes = 0; /* of held_bytes, once they are closed */
	std::uint64_t records_verified = 0;
	std::uint64_t in_flight = 0;
	std::uint64_t violations = 0;
	std::uint64_t untimely = 0; /* not of an instant while the ioctl ran */
	std::uint64_t changed = 0;

	bool is_right() const
	{
		return !left_bytes && !violations && !untimely && !changed;
	}
};

/* Bytes at most that the snapshots of a store of @size bytes keep for themselves. */
std::uint64_t most_kept(std::size_t size);

snapshot_report take_snapshots(const cowsnap_test::device &module,
			       const cowsnap_test::region &live,
			       std::size_t records);

/* Whether the verification finds what it must find elsewhere. */
struct control_report {
	std::uint64_t updates_between = 0;
	std::uint64_t torn_violations = 0; /* in a copy made in two halves */
	bool private_changed = false; /* a MAP_PRIVATE mapping of a memfd */

	bool is_right() const { return torn_violations && private_changed; }
};

control_report verify_controls(const cowsnap_test::region &live, std::size_t records);

} // namespace cowsnap_demo
