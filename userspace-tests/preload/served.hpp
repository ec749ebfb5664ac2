// SPDX-License-Identifier: GPL-2.0-only
/* Which memory of this process the preloaded library serves. */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "mapping.hpp"
#include "process.hpp"

namespace cowsnap_test {

inline constexpr std::size_t MiB = 1 << 20;

/*
 * What the program was started as: with the library, with jemalloc behind it, or without
 * either, where the cases have to hold of the kernel's own memory.
 */
enum class kind { library, jemalloc, plain };

inline constexpr const char *kind_variable = "COWSNAP_PRELOAD_KIND";

inline kind this_kind()
{
	const char *const text = std::getenv(kind_variable);
	const std::string_view name = text ? text : "";

	return name == "plain" ? kind::plain : name == "jemalloc" ? kind::jemalloc : kind::library;
}

/* A line of /proc/PID/maps. */
struct mapped_range {
	std::uintptr_t start = 0, end = 0;
	std::string prot;
	std::uint64_t offset = 0;
	std::string name;

	bool holds(std::uintptr_t address) const { return start <= address && address < end; }
	bool is_region() const { return name.starts_with("/cowsnap"); }
	bool operator==(const mapped_range &) const = default;
};

inline std::uintptr_t address_of(const volatile void *pointer)
{
	return reinterpret_cast<std::uintptr_t>(pointer);
}

inline std::vector<mapped_range> mapped_ranges()
{
	std::ifstream file("/proc/self/maps");
	std::vector<mapped_range> ranges;

	for (std::string text; std::getline(file, text);) {
		std::istringstream line(text);
		mapped_range range;
		std::string device, inode;
		char dash = 0;

		line >> std::hex >> range.start >> dash >> range.end >> range.prot >> range.offset >> device >> inode;
		std::getline(line >> std::ws, range.name);
		ranges.push_back(std::move(range));
	}
	return ranges;
}

/* Those of the region, where neighbours that are alike are one. */
inline std::vector<mapped_range> region_ranges()
{
	std::vector<mapped_range> found;

	for (mapped_range &range : mapped_ranges()) {
		if (!range.is_region())
			continue;
		if (!found.empty() && found.back().end == range.start && found.back().prot == range.prot &&
		    found.back().offset + (range.start - found.back().start) == range.offset)
			found.back().end = range.end;
		else
			found.push_back(std::move(range));
	}
	return found;
}

inline bool served(const volatile void *pointer)
{
	for (const mapped_range &range : mapped_ranges())
		if (range.holds(address_of(pointer)))
			return range.is_region();
	return false;
}

/* All of [@pointer, @pointer + @size) is of the region. */
inline bool served(const volatile void *pointer, std::size_t size)
{
	std::uintptr_t next = address_of(pointer);
	const std::uintptr_t end = next + size;

	for (const mapped_range &range : mapped_ranges())
		if (range.holds(next) && range.is_region())
			next = range.end;
	return next >= end;
}

/* Private memory, which has to be the region's where there is one. */
inline mapping memory(std::size_t size, int prot = PROT_READ | PROT_WRITE, int flags = 0)
{
	mapping made(-1, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags);

	if (this_kind() != kind::plain)
		require(served(made.data(), size), "the memory is not of the region");
	return made;
}

/* The numbers of the descriptors of regions that this process has. */
inline std::vector<int> region_descriptors()
{
	std::vector<int> found;

	for (const auto &entry : std::filesystem::directory_iterator("/proc/self/fd")) {
		std::error_code gone;

		if (std::filesystem::read_symlink(entry.path(), gone).string().starts_with("/cowsnap"))
			found.push_back(std::stoi(entry.path().filename().string()));
	}
	return found;
}

inline int library_descriptor()
{
	const std::vector<int> all = region_descriptors();

	require(all.size() == 1, "there is not one descriptor of a region, but " + std::to_string(all.size()));
	return all.front();
}

inline std::size_t descriptor_count()
{
	const std::filesystem::directory_iterator all("/proc/self/fd");

	return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

inline std::size_t thread_count()
{
	const std::filesystem::directory_iterator all("/proc/self/task");

	return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

/* Gives each page its number, in its first word and in its last. */
inline void paint_page(const mapping &map, std::size_t page, std::uint64_t value)
{
	map.store(page, value);
	std::memcpy(map.page(page).last(sizeof(value)).data(), &value, sizeof(value));
}

inline bool shows_page(const mapping &map, std::size_t page, std::uint64_t value)
{
	std::uint64_t last = 0;

	std::memcpy(&last, map.page(page).last(sizeof(last)).data(), sizeof(last));
	return map.load(page) == value && last == value;
}

inline void paint(const mapping &map, std::uint64_t first)
{
	for (std::size_t page = 0; page < map.pages(); page++)
		paint_page(map, page, first + page);
}

inline bool shows(const mapping &map, std::uint64_t first)
{
	for (std::size_t page = 0; page < map.pages(); page++)
		if (!shows_page(map, page, first + page))
			return false;
	return true;
}

} // namespace cowsnap_test
