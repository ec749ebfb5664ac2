// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tests' own tools, tested where they must find something: on memory that is
 * no snapshot, in children that fail, on pages that cannot be reached.
 */
#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

#include <gtest/gtest-spi.h>

#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"
#include "sequence.hpp"

using namespace cowsnap_test;

namespace {

using values = std::vector<std::uint64_t>;

TEST(torn_sequences, are_told_from_whole_ones)
{
	EXPECT_FALSE(torn(values{}));
	EXPECT_FALSE(torn(values{5}));
	EXPECT_FALSE(torn(values{0, 0, 0}));
	EXPECT_FALSE(torn(values{5, 5, 5}));
	EXPECT_FALSE(torn(values{5, 4, 4}));
	EXPECT_FALSE(torn(values{5, 5, 4}));
	EXPECT_FALSE(torn(values{1, 0}));
	EXPECT_TRUE(torn(values{4, 5}));
	EXPECT_TRUE(torn(values{5, 4, 5}));
	EXPECT_TRUE(torn(values{5, 5, 4, 5}));
	EXPECT_TRUE(torn(values{6, 4}));
	EXPECT_TRUE(torn(values{6, 5, 4}));
	EXPECT_TRUE(torn(values{5, 4, 0}));
}

/* Reads the pages of memory that another process writes: not one instant. */
TEST(torn_sequences, are_found_in_a_copy_without_a_fork)
{
	constexpr std::size_t pages = 64;
	const memory_file file = make_memfd(pages * page_size);
	const mapping map = file.map();
	const shared<std::atomic<bool>> stop;
	child writer([&] {
		for (std::uint64_t round = 1; !*stop; round++)
			for (std::size_t page = 0; page < pages; page++)
				map.store(page, round);
	});
	bool found = false;

	ASSERT_TRUE(eventually([&] { return map.load(0) > 0; }));
	for (int attempt = 0; attempt < 100 && !found; attempt++) {
		values copy;

		for (std::size_t page = 0; page < pages; page++) {
			copy.push_back(map.load(page));
			if (page == pages / 2)
				std::this_thread::sleep_for(
					std::chrono::milliseconds(1));
		}
		found = torn(copy).has_value();
	}
	*stop = true;
	EXPECT_TRUE(writer.succeeded());
	EXPECT_TRUE(found);
}

/* What a private mapping shows of a page that it has not written changes. */
TEST(torn_sequences, are_found_in_a_private_mapping_of_a_memfd)
{
	constexpr std::size_t pages = 64;
	const memory_file file = make_memfd(pages * page_size);
	const mapping map = file.map();
	const mapping no_snapshot = file.map(PROT_READ, MAP_PRIVATE);
	values early, late;

	for (std::size_t page = 0; page < pages; page++) {
		map.store(page, 1);
		early.push_back(no_snapshot.load(page));
	}
	map.store(pages - 1, 2);
	for (std::size_t page = 0; page < pages; page++)
		late.push_back(no_snapshot.load(page));
	EXPECT_FALSE(torn(early));
	EXPECT_TRUE(torn(late));
	EXPECT_NE(early, late);
}

TEST(children, tell_how_they_ended)
{
	EXPECT_TRUE(child([] {}).succeeded());
	EXPECT_FALSE(child([] { ::_exit(1); }).succeeded());
	EXPECT_FALSE(child([] { ::abort(); }).succeeded());

	child waiting([] { ::pause(); });

	waiting.finish(SIGKILL);
	EXPECT_TRUE(waiting.killed_by(SIGKILL));
	EXPECT_FALSE(waiting.succeeded());
}

TEST(children, that_throw_fail)
{
	child failing([] {
		std::fclose(stdout); /* what it prints is no news here */
		require(false, "as it should be");
	});

	EXPECT_FALSE(failing.succeeded());
}

TEST(faults, are_caught)
{
	const mapping memory = anonymous(page_size);
	const memory_file file = make_memfd(page_size);
	const mapping longer(file.fd(), 2 * page_size);

	EXPECT_EQ(signal_of_load(memory.data()), 0);
	EXPECT_EQ(signal_of_store(memory.data(), 5), 0);
	EXPECT_EQ(memory.data()[0], std::byte{5});
	EXPECT_EQ(signal_of_load(longer.page(1).data()), SIGBUS);
	EXPECT_EQ(signal_of_store(longer.page(1).data()), SIGBUS);
	memory.protect(PROT_READ);
	EXPECT_EQ(signal_of_load(memory.data()), 0);
	EXPECT_EQ(signal_of_store(memory.data()), SIGSEGV);
	memory.protect(PROT_NONE);
	EXPECT_EQ(signal_of_load(memory.data()), SIGSEGV);
}

TEST(faults, are_fatal_where_nobody_expects_them)
{
	const mapping memory(-1, page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
	child failing([&] {
		fault_catcher catcher;

		memory.store(0, 1);
	});

	EXPECT_TRUE(failing.killed_by(SIGSEGV));
}

TEST(counters_of_the_module, notice_a_leak)
{
	const device dev;
	const counters before(dev);
	const region leaked = dev.create_pages(1);

	EXPECT_NE(counters(dev), before);
	EXPECT_NONFATAL_FAILURE(
		expect_back(dev, before, std::chrono::milliseconds(10)), "regions");
	leaked.fill_page(0, 1);
	EXPECT_EQ(counters(dev).held_bytes, before.held_bytes + page_size);
}

TEST(memory, notices_a_leak)
{
	const std::uint64_t available = available_memory();
	/* More than the kernel may take from what it keeps for each CPU. */
	const mapping leaked = anonymous(192 << 20);

	fill(leaked.bytes(), 1);
	EXPECT_LT(available_memory() + (32 << 20), available);
}

TEST(kernel_messages, are_read)
{
	kernel_log log;
	const unique_fd writer(
		check(::open("/dev/kmsg", O_WRONLY | O_CLOEXEC), "open /dev/kmsg"));
	const std::string message = "<6>a test of the tests says hello\n";

	check(::write(writer.get(), message.data(), message.size()), "write");
	EXPECT_EQ(log.lines_with({"says hello"}).size(), 1u);
	EXPECT_TRUE(log.lines_with({"says hello"}).empty());
}

TEST(random_numbers, can_be_had_again)
{
	chance first(1), again(1), other(2);
	std::vector<std::size_t> drawn, drawn_again, drawn_otherwise;

	for (int i = 0; i < 100; i++) {
		drawn.push_back(first.below(1000));
		drawn_again.push_back(again.below(1000));
		drawn_otherwise.push_back(other.below(1000));
	}
	EXPECT_EQ(drawn, drawn_again);
	EXPECT_NE(drawn, drawn_otherwise);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
