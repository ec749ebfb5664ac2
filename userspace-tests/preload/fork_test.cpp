// SPDX-License-Identifier: GPL-2.0-only
/* fork(2): who has what afterwards. */
#include <array>
#include <atomic>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <sys/prctl.h>

#include "chance.hpp"
#include "fault.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

constexpr int both = PROT_READ | PROT_WRITE;

class forking : public suite {};
class served_forking : public suite {};

/* Memory, and what its pages should show. */
class tracked {
public:
	explicit tracked(std::size_t size) : map_(memory(size)), values_(map_.pages(), 0) {}

	void write_at_random(chance &dice, std::size_t count)
	{
		for (std::size_t i = 0; i < count; i++) {
			const std::size_t page = dice.below(values_.size());

			values_[page] = dice.number();
			paint_page(map_, page, values_[page]);
		}
	}
	bool right() const
	{
		for (std::size_t page = 0; page < values_.size(); page++)
			if (!shows_page(map_, page, values_[page]))
				return false;
		return true;
	}

private:
	mapping map_;
	std::vector<std::uint64_t> values_;
};

TEST_F(forking, parts_what_parent_and_child_write)
{
	tracked memory(16 * MiB);
	chance dice(3);
	const event parent_wrote, child_wrote;

	for (std::size_t round = 0; round < scaled(6); round++) {
		memory.write_at_random(dice, 2000);

		child process([&] {
			chance own(100 + round);

			require(memory.right(), "a child has what its parent had");
			memory.write_at_random(own, 1500);
			child_wrote.tell();
			parent_wrote.wait();
			require(memory.right(), "a child does not see what its parent writes");
			memory.write_at_random(own, 1500);
			require(memory.right(), "a child sees what it writes");
		});

		memory.write_at_random(dice, 1500);
		child_wrote.wait();
		ASSERT_TRUE(memory.right()) << "a parent does not see what its child writes";
		memory.write_at_random(dice, 1500);
		parent_wrote.tell();
		ASSERT_TRUE(process.succeeded());
		ASSERT_TRUE(memory.right());
	}
}

TEST_F(served_forking, shares_what_nobody_wrote)
{
	const mapping map = memory(32 * MiB);
	const event done;

	paint(map, 1);

	const std::int64_t held = held_more();

	child process([&] {
		require(served(map.data(), map.size()), "a child's memory is of a region");
		require(shows(map, 1), "and holds what it should");
		done.wait();
	});

	EXPECT_EQ(counters(*dev).regions, before->regions + 1);
	EXPECT_LE(held_more() - held, held_slack);
	for (std::size_t page = 0; page < 1000; page++)
		map.store(page, 5);
	EXPECT_GE(held_more() - held, static_cast<std::int64_t>(1000 * page_size));
	done.tell();
	EXPECT_TRUE(process.succeeded());
	EXPECT_TRUE(eventually([&] { return held_more() - held <= held_slack; })) << "memory does not come back";
}

TEST_F(served_forking, is_of_a_region_of_the_same_name)
{
	const std::vector<mapped_range> ranges = region_ranges();

	expect_child([&] { require(region_ranges().front().name == ranges.front().name, "the name is the parent's"); });
}

void descend(const mapping &map, std::size_t depth, std::size_t most)
{
	for (std::size_t page = 0; page < map.pages(); page++)
		require(map.load(page) == (page < depth ? 100 + page : 1 + page), "each generation left its mark");
	if (depth == most)
		return;
	map.store(depth, 100 + depth);
	require(child([&] { descend(map, depth + 1, most); }).succeeded(), "a generation more");
	for (std::size_t page = depth + 1; page < map.pages(); page++)
		require(map.load(page) == 1 + page, "descendants change nothing here");
}

TEST_F(forking, goes_on_for_eight_generations)
{
	const mapping map = memory(2 * MiB);

	for (std::size_t page = 0; page < map.pages(); page++)
		map.store(page, 1 + page);
	EXPECT_NO_THROW(descend(map, 0, 8));
}

TEST_F(forking, gives_each_of_fifty_children_its_instant)
{
	const mapping map = memory(MiB);
	const event go;
	std::vector<child> children;

	for (std::uint64_t number = 1; number <= 50; number++) {
		paint(map, number << 32);
		children.emplace_back([&map, &go, number] {
			go.wait();
			require(shows(map, number << 32), "a child has what was there when it was made");
			paint(map, number << 40);
			require(shows(map, number << 40), "and what it makes of it");
		});
	}
	paint(map, 7);
	for (std::size_t i = 0; i < children.size(); i++)
		go.tell();
	for (child &each : children)
		EXPECT_TRUE(each.succeeded());
	EXPECT_TRUE(shows(map, 7));
}

/* Each generation ends before the next one goes on; the last one tells. */
[[noreturn]] void outlive(const mapping &map, std::uint64_t generations, int report)
{
	for (std::uint64_t generation = 1; generation <= generations; generation++) {
		std::array<int, 2> alive = {};

		if (::pipe(alive.data()) != 0)
			::_exit(1);
		paint(map, generation << 32);

		const pid_t pid = ::fork();

		if (pid != 0)
			::_exit(pid < 0); /* closes the pipe */
		::close(alive[1]);

		char nothing = 0;
		const bool alone = ::read(alive[0], &nothing, 1) == 0;

		::close(alive[0]);
		if (!alone || !shows(map, generation << 32))
			::_exit(1);
	}
	paint(map, 7);

	const char good = shows(map, 7) ? 'y' : 'n';

	::_exit(::write(report, &good, 1) != 1);
}

TEST_F(forking, goes_on_when_the_parent_is_gone)
{
	const mapping map = memory(4 * MiB);
	pipe_pair report;
	char good = 0;

	paint(map, 1);
	child process([&] { outlive(map, 5, report.write_end.get()); });
	EXPECT_TRUE(process.succeeded());
	report.write_end.reset();
	EXPECT_EQ(::read(report.read_end.get(), &good, 1), 1);
	EXPECT_EQ(good, 'y');
	EXPECT_TRUE(shows(map, 1));
}

TEST_F(forking, lets_each_map_and_unmap_on_its_own)
{
	mapping map = memory(4 * MiB);
	mapping other = memory(MiB);
	const event mapped, seen;

	paint(map, 1);
	paint(other, 5000);

	child process([&] {
		std::vector<mapping> mine;

		map.shrink(MiB);
		other.reset();
		for (std::uint64_t i = 0; i < 20; i++) {
			mine.push_back(memory(MiB / 2));
			require(is_all(mine.back().bytes(), 0), "what a child maps is zero");
			paint(mine.back(), i << 40);
		}
		mapped.tell();
		seen.wait();
		for (std::uint64_t i = 0; i < 20; i++)
			require(shows(mine[i], i << 40), "a child's memory stays");
		require(shows(map, 1), "and what it left mapped");
	});

	std::vector<mapping> mine;

	for (std::uint64_t i = 0; i < 20; i++) {
		mine.push_back(memory(MiB / 4));
		ASSERT_TRUE(is_all(mine.back().bytes(), 0));
		paint(mine.back(), i << 41);
	}
	mapped.wait();
	EXPECT_TRUE(shows(map, 1));
	EXPECT_TRUE(shows(other, 5000));
	for (std::uint64_t i = 0; i < 20; i++)
		EXPECT_TRUE(shows(mine[i], i << 41));
	seen.tell();
	EXPECT_TRUE(process.succeeded());
}

TEST_F(served_forking, gives_back_what_children_held)
{
	const mapping map = memory(16 * MiB);

	paint(map, 1);

	const std::int64_t held = held_more();

	for (int round = 0; round < 20; round++) {
		child process([&] {
			paint(map, 3);
			const mapping more = memory(4 * MiB);

			paint(more, 1);
		});

		paint(map, 2);
		ASSERT_TRUE(process.succeeded());
	}
	EXPECT_TRUE(eventually([&] { return held_more() - held <= held_slack; })) << held_more() - held;
	eventually([&] { return counters(*dev).regions == before->regions; });
	EXPECT_EQ(counters(*dev).regions, before->regions);
}

TEST_F(served_forking, keeps_the_layout)
{
	const memory_file file = make_memfd(16 * page_size);
	mapping map = memory(4 * MiB);
	const auto at = [&](std::size_t page) { return map.data() + page * page_size; };

	ASSERT_EQ(::munmap(at(10), 3 * page_size), 0);
	ASSERT_EQ(::mprotect(at(20), 7 * page_size, PROT_READ), 0);
	ASSERT_EQ(::mprotect(at(40), page_size, PROT_NONE), 0);
	ASSERT_EQ(::mprotect(at(50), page_size, PROT_READ | PROT_EXEC), 0);
	ASSERT_EQ(::mmap(at(100), 16 * page_size, both, MAP_SHARED | MAP_FIXED, file.fd(), 0), at(100));
	ASSERT_EQ(::mprotect(at(300), 100 * page_size, PROT_READ), 0);

	/* An allocator's memory may change meanwhile. */
	const auto ranges = [&map] {
		std::vector<mapped_range> found;

		for (mapped_range &range : region_ranges()) {
			const std::uintptr_t start = std::max(range.start, address_of(map.data()));

			range.offset += start - range.start;
			range.start = start;
			range.end = std::min(range.end, address_of(map.data() + map.size()));
			if (range.start < range.end)
				found.push_back(std::move(range));
		}
		return found;
	};
	const std::vector<mapped_range> wanted = ranges();
	const auto same = [&] {
		const std::vector<mapped_range> found = ranges();

		for (std::size_t i = 0; i < std::min(found.size(), wanted.size()); i++)
			require(found[i] == wanted[i],
				"range " + std::to_string(i) + " is " + found[i].prot + " in the child");
		require(found.size() == wanted.size(), "there are as many ranges");
	};

	EXPECT_GE(wanted.size(), 9u);
	expect_child([&] {
		same();
		require(child(same).succeeded(), "a child's child");
	});
}

TEST_F(served_forking, leaves_one_descriptor_to_each)
{
	const std::size_t count = descriptor_count();
	const int descriptor = library_descriptor();

	for (int round = 0; round < 10; round++)
		expect_child([&] {
			require(library_descriptor() == descriptor, "a child's is where its parent's is");
			require(descriptor_count() == count, "a child has no more descriptors");
			require(::fcntl(descriptor, F_GETFD) == FD_CLOEXEC || errno == EBADF, "it is closed by exec");
		});
	EXPECT_EQ(descriptor_count(), count);
}

TEST_F(forking, many_times_one_after_the_other)
{
	const mapping map = memory(8 * MiB);
	const std::size_t rounds = scaled(300);

	paint(map, 1);
	for (std::size_t round = 0; round < rounds; round++) {
		const std::size_t page = round % map.pages();

		map.store(page, round);

		const pid_t pid = ::fork();

		if (pid == 0) {
			const bool good = map.load(page) == round;

			map.store(page, 0);
			::_exit(!good);
		}
		ASSERT_EQ(exit_status(status_of(pid)), 0) << round;
		ASSERT_EQ(map.load(page), round);
	}
}

TEST_F(forking, of_memory_that_is_being_filled_by_the_kernel)
{
	const mapping map = memory(MiB);
	pipe_pair pipe;

	/* read(2) and write(2) of the memory, on both sides. */
	expect_child([&] {
		fill(map.page(0), 7);
		require(::write(pipe.write_end.get(), map.data(), page_size) == static_cast<ssize_t>(page_size),
			"write");
	});
	ASSERT_EQ(::read(pipe.read_end.get(), map.page(3).data(), page_size), static_cast<ssize_t>(page_size));
	EXPECT_TRUE(is_all(map.page(3), 7));
	EXPECT_TRUE(is_all(map.page(0), 0));
}

} // namespace
