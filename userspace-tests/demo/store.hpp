// SPDX-License-Identifier: GPL-2.0-only
/*
 * A store of records in one piece of memory, by offsets, so that it can be
 * mapped anywhere, and built so that a copy of it shows by itself whether it is
 * what the store was at one instant.
 *
 * Header, index and text lie in different pages.  One writer changes records,
 * one after another, by stores alone and in this order: the header says which
 * record and from which to which checksum (intent), then that the update began;
 * the record's text, word by word; the record's checksum; its count of updates;
 * last the header says that the update is done.  So at any one instant
 *
 * - all records but the one in flight match their checksums,
 * - the one in flight is changed up to some word and not behind it, and
 * - the counts of all records add up to the updates done;
 *
 * and where one page is older or younger than another, that does not hold.
 */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace cowsnap_demo {

using records = std::vector<std::string_view>;

/* The stanzas of a package index, or else blocks of lines; long ones in parts. */
records split(std::string_view text);

/* Bytes that a store of @from takes: whole pages. */
std::size_t store_size(const records &from);
/* Lays a store out in zeroed memory of that size. */
void fill_store(std::span<std::byte> memory, const records &from);

/* Makes update number updates_done() + 1: changes the text of one record. */
void update_record(std::span<std::byte> memory, std::size_t record);
/* May be called while another process updates. */
std::uint64_t updates_done(std::span<std::byte> memory);

struct findings {
	std::uint64_t updates = 0; /* done when the image was taken */
	std::uint64_t records = 0;
	std::uint64_t violations = 0;
	std::uint64_t hash = 0; /* of the whole image */
	bool in_flight = false; /* an update had begun and was not done */
	std::array<char, 96> first = {}; /* the first violation in words */
};

/* Verifies a whole image of a store, whatever it holds. */
findings examine(std::span<const std::byte> image);

} // namespace cowsnap_demo
