// SPDX-License-Identifier: GPL-2.0-only
/* The regions that processes hold, as /proc shows them. */
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace cowsnap_command {

/* The lines of a region's fdinfo; see cowsnap(4). */
struct region_info {
	std::uint64_t id = 0;
	std::uint64_t parent = 0;
	std::uint64_t family = 0;
	std::string name;
	bool readonly = false;
	std::uint64_t generation = 0;
	std::uint64_t length = 0;
	std::uint64_t granule = 0;
	std::uint64_t referenced = 0;
	std::uint64_t exclusive = 0;
	std::uint64_t dirty = 0;
	std::uint64_t forks = 0;
	std::uint64_t faults = 0;
	std::uint64_t copies = 0;
	std::uint64_t reuses = 0;
	std::uint64_t zero_fills = 0;
	std::uint64_t bytes_copied = 0;
};

/* Who holds one: by a descriptor, or without one by mappings alone. */
struct holder {
	int pid = 0;
	int fd = -1;
	std::string command;
};

struct held_region {
	/* Only a descriptor tells it; one that is mapped alone has a name and no more. */
	std::optional<region_info> info;
	std::string name;
	std::vector<holder> holders;
};

struct regions_found {
	std::vector<held_region> regions;
	/* Processes that may not be looked into. */
	std::size_t unreadable = 0;
};

regions_found find_regions();

/* What is known of @fd of this process; nothing when it is no region. */
std::optional<region_info> info_of(int fd);

/* The figures of a region by their names, in the order in which they are shown. */
struct figure {
	const char *name;
	std::uint64_t region_info::*value;
};
extern const std::vector<figure> figures;

} // namespace cowsnap_command
