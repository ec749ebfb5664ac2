// SPDX-License-Identifier: GPL-2.0-only
/*
 * Granules are charged to the memory cgroup of who caused them, and its limit
 * kills that process and harms nobody else.
 */
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include <sys/mount.h>

#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

namespace fs = std::filesystem;

/* Where the unified hierarchy is mounted. */
std::optional<fs::path> find_hierarchy()
{
	std::ifstream mounts("/proc/mounts");
	std::string device, where, type, rest;

	while (mounts >> device >> where >> type && std::getline(mounts, rest))
		if (type == "cgroup2")
			return where;
	return std::nullopt;
}

void put(const fs::path &file, const std::string &text)
{
	std::ofstream out(file);

	out << text << std::flush;
	if (!out)
		throw std::runtime_error("cannot write to " + file.string());
}

/* A cgroup of its own for the children of one test. */
class memory_group {
public:
	explicit memory_group(const fs::path &hierarchy)
		: path_(hierarchy / ("cowsnap-test-" + std::to_string(::getpid())))
	{
		fs::create_directory(path_);
	}
	~memory_group()
	{
		/* Its last process may still be on its way out. */
		eventually([this] { return ::rmdir(path_.c_str()) == 0; });
	}
	memory_group(const memory_group &) = delete;
	memory_group &operator=(const memory_group &) = delete;

	void enter() const { put(path_ / "cgroup.procs", "0"); }
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
	fs::path path_;
};

class memory_cgroup : public cowsnap_fixture {
protected:
	static constexpr std::size_t size = 32 << 20;

	void SetUp() override
	{
		const std::optional<fs::path> hierarchy = find_hierarchy();

		if (!hierarchy)
			GTEST_SKIP() << "no cgroup2 hierarchy is mounted";

		std::ifstream controllers(*hierarchy / "cgroup.controllers");
		std::string controller;
		bool found = false;

		while (controllers >> controller)
			found |= controller == "memory";
		if (!found)
			GTEST_SKIP() << "cgroup2 has no memory controller here";
		put(*hierarchy / "cgroup.subtree_control", "+memory");
		group.emplace(*hierarchy);
	}

	std::optional<memory_group> group;
};

TEST_F(memory_cgroup, is_charged_for_what_its_process_writes)
{
	const region subject = dev.create(size);
	const event entered, go, done, leave;
	child writer([&] {
		group->enter();

		const mapping map = subject.map();

		map.store(0, 1);
		entered.tell();
		go.wait();
		fill(map.bytes(), 1);
		done.tell();
		leave.wait();
	});

	entered.wait();

	const std::uint64_t before_it = group->current();

	go.tell();
	done.wait();
	EXPECT_GE(group->current(), before_it + size - (1 << 20));
	EXPECT_LE(group->current(), before_it + size + (4 << 20));
	leave.tell();
	EXPECT_TRUE(writer.succeeded());
	/* The charge is the memory's, not the process's. */
	EXPECT_GE(group->current(), size - (1 << 20));
	subject.truncate(0);
	EXPECT_TRUE(eventually([&] { return group->current() < (4 << 20); }))
		<< group->current();
}

TEST_F(memory_cgroup, is_not_charged_for_what_its_process_shares)
{
	const region parent = dev.create(size);

	fill(parent.map().bytes(), 1);

	const region forked = parent.fork();
	const event read, go, written, leave;
	child user([&] {
		group->enter();

		const mapping map = forked.map();

		require(is_all(map.bytes(), 1), "the fork holds something else");
		read.tell();
		go.wait();
		fill(map.bytes().first(size / 4), 2);
		written.tell();
		leave.wait();
	});

	read.wait();
	EXPECT_LT(group->current(), 4u << 20);
	go.tell();
	written.wait();
	EXPECT_GE(group->current(), size / 4);
	EXPECT_LE(group->current(), size / 4 + (4 << 20));
	leave.tell();
	EXPECT_TRUE(user.succeeded());
}

TEST_F(memory_cgroup, kills_who_writes_beyond_its_limit_and_nobody_else)
{
	const region parent = dev.create(size);
	const mapping map = parent.map();

	/* The OOM killer prints the stack of who met the limit. */
	quiet = false;
	fill(map.bytes(), 1);

	const region snapshot = parent.snapshot();
	region forked = parent.fork();
	const counters count(dev);

	group->limit(size / 2);

	const std::uint64_t kills = group->oom_kills();
	child greedy([&] {
		group->enter();
		/* On both sides of the family, and in a region of its own. */
		const region own = dev.create(size);
		const mapping own_map = own.map(), forked_map = forked.map();

		for (std::size_t page = 0; page < map.pages(); page++) {
			forked_map.store(page, 2);
			own_map.store(page, 3);
			(void)own.snapshot();
		}
	});

	EXPECT_TRUE(greedy.killed_by(SIGKILL));
	EXPECT_EQ(group->oom_kills(), kills + 1);
	EXPECT_TRUE(is_all(map.bytes(), 1));
	EXPECT_TRUE(is_all(snapshot.map(PROT_READ).bytes(), 1));
	EXPECT_EQ(misnumbered_page(snapshot, 1, 1), -1);
	EXPECT_EQ(counters(dev).regions, count.regions);
	EXPECT_EQ(counters(dev).held_bytes - count.held_bytes,
		  forked.stat().exclusive);
	EXPECT_GT(forked.stat().exclusive, 0u);
	/* What it got to is there: nothing is half written. */
	for (std::size_t page = 0; page < map.pages(); page += 16) {
		const std::vector<std::byte> bytes = forked.read_page(page);

		EXPECT_TRUE(is_all(std::span(bytes).subspan(8), 1));
	}
	forked.close();
	EXPECT_EQ(counters(dev).held_bytes, count.held_bytes);
}

/* write(2) meets the limit outside a fault. */
TEST_F(memory_cgroup, kills_a_writer_by_write)
{
	const region subject = dev.create(size);

	quiet = false;
	group->limit(size / 2);
	child greedy([&] {
		group->enter();
		for (std::size_t page = 0; page < size / page_size; page++)
			subject.fill_page(page, 1);
	});

	EXPECT_TRUE(greedy.killed_by(SIGKILL));
	EXPECT_LT(subject.stat().referenced, size);
	EXPECT_GT(subject.stat().referenced, 0u);
	EXPECT_TRUE(is_all(subject.read_page(0), 1));
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
