// SPDX-License-Identifier: GPL-2.0-only
/*
 * Granules are charged to the memory cgroup of who caused them, and its limit
 * kills that process and harms nobody else.
 */
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "fixture.hpp"
#include "ktap.hpp"
#include "memory_group.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

/* With granules of each size. */
class memory_cgroup : public cowsnap_fixture,
		      public testing::WithParamInterface<unsigned int> {
protected:
	static constexpr std::size_t size = 32 << 20;
	/* For nodes of the tree, stripes, page tables. */
	static constexpr std::size_t slack = 4 << 20;
	/* For what is charged in advance. */
	static constexpr std::size_t stock = 1 << 20;

	static std::size_t granule() { return std::size_t{1} << GetParam(); }
	region create() const { return dev.create(size, 0, {}, GetParam()); }

	void SetUp() override
	{
		if (const char *const obstacle = memory_group::obstacle())
			GTEST_SKIP() << obstacle;
		group.emplace(find_hierarchy().value());
	}

	std::optional<memory_group> group;
};

INSTANTIATE_TEST_SUITE_P(, memory_cgroup, testing::Values(page_shift, page_shift + 4, 21),
			 [](const auto &info) {
				 return std::to_string(1u << (info.param - 10)) +
					"_KiB";
			 });

TEST_P(memory_cgroup, is_charged_for_what_its_process_writes)
{
	const region subject = create();
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
	EXPECT_GE(group->current(), before_it + size - granule() - stock);
	EXPECT_LE(group->current(), before_it + size + slack);
	leave.tell();
	EXPECT_TRUE(writer.succeeded());
	/* The charge is the memory's, not the process's. */
	EXPECT_GE(group->current(), size - stock);
	subject.truncate(0);
	EXPECT_TRUE(eventually([&] { return group->current() < slack; }))
		<< group->current();
}

TEST_P(memory_cgroup, is_not_charged_for_what_its_process_shares)
{
	const region parent = create();

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
	EXPECT_LT(group->current(), slack);
	go.tell();
	written.wait();
	EXPECT_GE(group->current(), size / 4);
	EXPECT_LE(group->current(), size / 4 + slack);
	leave.tell();
	EXPECT_TRUE(user.succeeded());
}

TEST_P(memory_cgroup, kills_who_writes_beyond_its_limit_and_nobody_else)
{
	const region parent = create();
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
		const region own = create();
		const mapping own_map = own.map(), forked_map = forked.map();
		const std::size_t step = std::max<std::size_t>(
			1, granule() / page_size / 16);

		for (std::size_t page = 0; page < map.pages(); page += step) {
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
TEST_P(memory_cgroup, kills_a_writer_by_write)
{
	const region subject = create();

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
