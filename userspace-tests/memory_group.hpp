// SPDX-License-Identifier: GPL-2.0-only
/* A memory cgroup, and a process that is short of memory in one. */
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include "fixture.hpp"
#include "huge_pages.hpp"
#include "mapping.hpp"

namespace cowsnap_test {

/* Where the unified hierarchy is mounted. */
inline std::optional<std::filesystem::path> find_hierarchy()
{
	std::ifstream mounts("/proc/mounts");
	std::string device, where, type, rest;

	while (mounts >> device >> where >> type && std::getline(mounts, rest))
		if (type == "cgroup2")
			return where;
	return std::nullopt;
}

/* A cgroup of its own for the processes of one test. */
class memory_group {
public:
	explicit memory_group(const std::filesystem::path &hierarchy)
		: hierarchy_(hierarchy),
		  path_(hierarchy / ("cowsnap-test-" + std::to_string(::getpid())))
	{
		put(hierarchy / "cgroup.subtree_control", "+memory");
		std::filesystem::create_directory(path_);
	}
	~memory_group()
	{
		/* Its last process may still be on its way out. */
		eventually([this] { return ::rmdir(path_.c_str()) == 0; });
	}
	memory_group(const memory_group &) = delete;
	memory_group &operator=(const memory_group &) = delete;

	/* Why there can be none, nothing when there can. */
	static const char *obstacle()
	{
		const auto hierarchy = find_hierarchy();

		if (!hierarchy)
			return "no cgroup2 hierarchy is mounted";

		std::ifstream controllers(*hierarchy / "cgroup.controllers");
		std::string controller;

		while (controllers >> controller)
			if (controller == "memory")
				return nullptr;
		return "cgroup2 has no memory controller here";
	}

	void enter() const { put(path_ / "cgroup.procs", "0"); }
	/* Back to where the process was before. */
	void leave(const std::string &home) const
	{
		put(std::filesystem::path(hierarchy_.string() + home) /
			    "cgroup.procs",
		    "0");
	}
	void limit(std::uint64_t bytes) const
	{
		put(path_ / "memory.max", std::to_string(bytes));
	}
	std::uint64_t current() const
	{
		std::uint64_t bytes = 0;

		std::ifstream(path_ / "memory.current") >> bytes;
		return bytes;
	}
	std::uint64_t oom_kills() const
	{
		std::ifstream events(path_ / "memory.events");
		std::string key;
		std::uint64_t count = 0;

		while (events >> key >> count)
			if (key == "oom_kill")
				return count;
		throw std::runtime_error("memory.events has no oom_kill");
	}

private:
	static void put(const std::filesystem::path &file, const std::string &text)
	{
		std::ofstream out(file);

		out << text << std::flush;
		if (!out)
			throw std::runtime_error("cannot write to " + file.string());
	}

	std::filesystem::path hierarchy_, path_;
};

/*
 * While it lives, what this process gets is small pages: its cgroup is full of
 * memory that can be taken back, which the kernel does for a page, but not for a
 * large folio that is only welcome.
 */
class scarce_memory {
public:
	/* @bytes can be taken back. */
	explicit scarce_memory(std::size_t bytes)
		: group_(find_hierarchy().value()), home_(find_home())
	{
		group_.enter();
		filler_ = anonymous(bytes);
		if (kernel_has_huge_pages())
			check(::madvise(filler_.data(), bytes, MADV_NOHUGEPAGE),
			      "MADV_NOHUGEPAGE");
		for (std::size_t page = 0; page < filler_.pages(); page++)
			filler_.store(page, 1);
		check(::madvise(filler_.data(), bytes, MADV_FREE), "MADV_FREE");
		group_.limit(group_.current());
	}
	~scarce_memory() { group_.leave(home_); }

private:
	/* This process's place in the hierarchy. */
	static std::string find_home()
	{
		std::ifstream places("/proc/self/cgroup");
		std::string line;

		while (std::getline(places, line))
			if (line.starts_with("0::"))
				return line.substr(3);
		throw std::runtime_error("/proc/self/cgroup has no cgroup2 line");
	}

	memory_group group_;
	std::string home_;
	mapping filler_;
};

/* For a SetUp(): from now on memory is scarce, or the test is skipped. */
inline void make_scarce(std::optional<scarce_memory> &memory, std::size_t bytes)
{
	if (const char *const obstacle = memory_group::obstacle())
		GTEST_SKIP() << obstacle;
	memory.emplace(bytes);
}

} // namespace cowsnap_test
