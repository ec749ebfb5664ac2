// SPDX-License-Identifier: GPL-2.0-only
/*
 * RESTORE: what a region holds afterwards, what it costs, and who sees it.
 * consistent_cut_test.cpp has it from a source that others write meanwhile.
 */
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

std::uint64_t minor_faults()
{
	rusage usage = {};

	check(::getrusage(RUSAGE_SELF, &usage), "getrusage");
	return static_cast<std::uint64_t>(usage.ru_minflt);
}

class restoring : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 64;

	static void load_all(const mapping &map)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			(void)map.load(page);
	}

	/* The first page that @map does not show as number_pages() filled it. */
	static int misshown_page(const mapping &map, unsigned int first)
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			if (!is_all(map.page(page),
				    static_cast<unsigned int>(first + page) & 0xff))
				return static_cast<int>(page);
		return -1;
	}

	/* errno of a RESTORE, 0 when it worked. */
	static int error_of(const region &subject, int source)
	{
		cowsnap_restore arg = {};

		arg.size = sizeof(arg);
		arg.src_fd = source;
		return ::ioctl(subject.fd(), COWSNAP_IOC_RESTORE, &arg) < 0 ? errno
									    : 0;
	}
};

TEST_F(restoring, rolls_back_to_a_snapshot)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const cowsnap_stat stat = subject.stat();

	for (const std::size_t page : {3, 7, 8, 20, 63})
		fill(map.page(page), 99);
	subject.fill_page(30, 99);
	EXPECT_EQ(held_pages(), pages + 6);
	EXPECT_EQ(subject.restore(snapshot), 6 * page_size);
	EXPECT_EQ(misshown_page(map, 1), -1);
	EXPECT_EQ(misnumbered_page(subject, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_EQ(held_pages(), pages);

	const cowsnap_stat after = subject.stat();

	EXPECT_EQ(after.referenced, pages * page_size);
	EXPECT_EQ(after.exclusive, 0u);
	EXPECT_EQ(after.dirty, 0u);
	EXPECT_EQ(subject.prepare(), 0u);
	/* It is who it was. */
	EXPECT_EQ(after.id, stat.id);
	EXPECT_EQ(after.parent_id, stat.parent_id);
	EXPECT_EQ(after.generation, stat.generation);
	EXPECT_EQ(after.forks, stat.forks);
	EXPECT_EQ(snapshot.stat().forks, 0u);
	EXPECT_EQ(subject.restore(snapshot), 0u);
}

/* Whatever the two are to each other. */
class from_relative : public restoring,
		      public testing::WithParamInterface<std::string> {};

INSTANTIATE_TEST_SUITE_P(, from_relative,
			 testing::Values("child", "snapshot", "grandchild", "parent",
					 "sibling", "cousin"),
			 [](const auto &info) { return info.param; });

TEST_P(from_relative, takes_what_it_holds)
{
	const std::string relation = GetParam();
	const region first = numbered(pages);
	const region one = first.fork();
	const region other = first.fork();
	region made;

	if (relation == "grandchild")
		made = one.snapshot().fork().fork();
	else if (relation == "cousin")
		made = other.snapshot().fork();
	else
		made = relation == "child" ? one.fork() : region();

	const region &source = relation == "parent"    ? first
			       : relation == "sibling" ? other
						       : made;
	const region subject = one.fork();
	const region &target = relation == "child" || relation == "grandchild" ||
					       relation == "snapshot"
				       ? one
				       : subject;
	const mapping map = target.map();

	for (std::size_t page = 0; page < 10; page++)
		fill(map.page(page), 200);
	if (relation == "snapshot") {
		/* Of what is in it now; then more is written. */
		made = target.snapshot();
		for (std::size_t page = 5; page < 15; page++)
			fill(map.page(page), 201);
		EXPECT_EQ(target.restore(made), 10 * page_size);
		EXPECT_TRUE(is_all(map.bytes().first(10 * page_size), 200));
		EXPECT_TRUE(is_all(map.page(10), 11));
		return;
	}
	for (std::size_t page = 5; page < 15; page++)
		source.fill_page(page, 100);
	EXPECT_EQ(target.restore(source), 15 * page_size);
	EXPECT_EQ(target.stat().exclusive, 0u);
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_TRUE(is_all(map.page(page), page >= 5 && page < 15
							   ? 100
							   : static_cast<unsigned int>(
								     page + 1)))
			<< page;
	EXPECT_TRUE(std::ranges::equal(map.bytes(), source.read(0, map.size())));
	EXPECT_EQ(misnumbered_page(relation == "parent" ? other : first, pages, 1),
		  -1);
}

TEST_F(restoring, from_itself_changes_nothing)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();

	fill(map.page(3), 99);

	const cowsnap_stat stat = subject.stat();

	EXPECT_EQ(subject.restore(subject), 0u);

	const cowsnap_stat after = subject.stat();

	EXPECT_EQ(std::memcmp(&stat, &after, sizeof(stat)), 0);
	EXPECT_TRUE(is_all(map.page(3), 99));
}

/* Not sharing is what counts, not bytes. */
TEST_F(restoring, tells_what_was_written_with_the_same_bytes)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();

	subject.fill_page(3, 4);
	subject.fill_page(4, 5);
	EXPECT_EQ(subject.restore(snapshot), 2 * page_size);
	EXPECT_EQ(misnumbered_page(subject, pages, 1), -1);
}

TEST_F(restoring, makes_only_fault_again_what_changed)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const event loaded, restored;
	child other([&] {
		const mapping own = subject.map(PROT_READ);

		load_all(own);
		loaded.tell();
		restored.wait();
		minor_faults();

		const std::uint64_t faults = minor_faults();

		load_all(own);
		require(minor_faults() - faults == 3, "not three faults");
		loaded.tell();
	});

	for (const std::size_t page : {0, 15, 16, 17, 63})
		map.store(page, 99);
	load_all(map);
	loaded.wait();
	ASSERT_EQ(subject.restore(snapshot), 5 * page_size);
	minor_faults();

	const std::uint64_t by_region = subject.stat().faults;
	const std::uint64_t by_process = minor_faults();

	load_all(map);
	/* What is missing of sixteen neighbours comes back together. */
	EXPECT_EQ(minor_faults() - by_process, 3u);
	EXPECT_EQ(subject.stat().faults - by_region, 3u);
	restored.tell();
	loaded.wait();
	EXPECT_EQ(subject.stat().faults - by_region, 6u);
	EXPECT_TRUE(other.succeeded());

	/* And nothing in the source, which was not written. */
	const mapping shown = snapshot.map(PROT_READ);

	load_all(shown);
	map.store(3, 99);
	ASSERT_EQ(subject.restore(snapshot), page_size);

	const std::uint64_t by_snapshot = snapshot.stat().faults;

	load_all(shown);
	EXPECT_EQ(snapshot.stat().faults, by_snapshot);
}

TEST_F(restoring, shows_in_all_mappings_of_all_processes)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping first = subject.map();
	const mapping second = subject.map(PROT_READ);
	const event changed, restored, stored;
	child other([&] {
		const mapping own = subject.map();

		fill(own.bytes(), 99);
		changed.tell();
		restored.wait();
		require(misshown_page(own, 1) == -1, "something else is shown");
		require(misshown_page(first, 1) == -1,
			"something else is shown where it was inherited");
		own.store(3, 1234);
		first.store(4, 5678);
		stored.tell();
	});

	changed.wait();
	EXPECT_TRUE(is_all(first.bytes(), 99));
	EXPECT_TRUE(is_all(second.bytes(), 99));
	EXPECT_EQ(subject.restore(snapshot), pages * page_size);
	EXPECT_EQ(misshown_page(first, 1), -1);
	EXPECT_EQ(misshown_page(second, 1), -1);
	restored.tell();
	stored.wait();
	EXPECT_EQ(first.load(3), 1234u);
	EXPECT_EQ(second.load(4), 5678u);
	EXPECT_TRUE(other.succeeded());
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

TEST_F(restoring, makes_and_fills_holes)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	subject.fill_page(3, 4);

	const region empty = subject.fork();
	const mapping empty_map = empty.map();

	/* The zero page is mapped where data will be, and the other way round. */
	load_all(map);
	load_all(empty_map);
	empty.fill_page(10, 11);
	empty.fill_page(40, 41);
	subject.fill_page(20, 21);
	subject.fill_page(40, 99);
	EXPECT_EQ(subject.restore(empty), 3 * page_size);
	EXPECT_EQ(subject.stat().referenced, 3 * page_size);
	EXPECT_EQ(held_pages(), 3u);
	EXPECT_TRUE(is_all(map.page(3), 4));
	EXPECT_TRUE(is_all(map.page(10), 11));
	EXPECT_TRUE(is_all(map.page(20), 0));
	EXPECT_TRUE(is_all(map.page(40), 41));
	EXPECT_EQ(::lseek(subject.fd(), static_cast<off_t>(11 * page_size),
			  SEEK_DATA),
		  static_cast<off_t>(40 * page_size));
	/* A hole again, which a store fills without a copy. */
	fill(map.page(20), 22);
	EXPECT_EQ(subject.stat().referenced, 4 * page_size);
	EXPECT_TRUE(is_all(empty_map.page(20), 0));
}

TEST_F(restoring, takes_over_the_length)
{
	const region subject = numbered(pages);
	const region whole = subject.snapshot();
	const mapping map = subject.map();

	subject.truncate(10 * page_size + 100);

	const region cut = subject.snapshot();

	load_all(mapping(subject.fd(), 11 * page_size));
	EXPECT_EQ(subject.restore(whole), (pages - 10) * page_size);
	EXPECT_EQ(subject.length(), pages * page_size);
	EXPECT_EQ(misshown_page(map, 1), -1);
	fill(map.bytes(), 99);
	subject.restore(cut);
	EXPECT_EQ(subject.length(), 10 * page_size + 100);
	EXPECT_EQ(subject.stat().length, 10 * page_size + 100);
	EXPECT_EQ(subject.stat().referenced, 11 * page_size);
	EXPECT_EQ(misnumbered_page(subject, 10, 1), -1);
	EXPECT_TRUE(is_all(map.page(10).first(100), 11));
	EXPECT_TRUE(is_all(map.page(10).subspan(100), 0));
	for (const std::size_t page : {std::size_t{11}, std::size_t{30}, pages - 1}) {
		EXPECT_EQ(signal_of_load(map.page(page).data()), SIGBUS);
		EXPECT_EQ(signal_of_store(map.page(page).data()), SIGBUS);
	}
	/* What lay behind does not come back. */
	subject.truncate(pages * page_size);
	EXPECT_TRUE(is_all(map.bytes().subspan(10 * page_size + 100), 0));
	EXPECT_EQ(misnumbered_page(whole, pages, 1), -1);
	subject.restore(whole);
	EXPECT_EQ(misshown_page(map, 1), -1);
}

/* The zero page too is gone behind the end, where neither has data. */
TEST_F(restoring, leaves_nothing_mapped_behind_the_end)
{
	const region subject = dev.create_pages(4);
	const region shorter = subject.fork();

	shorter.truncate(2 * page_size);

	const mapping map = subject.map();

	load_all(map);
	EXPECT_EQ(subject.restore(shorter), 0u);
	EXPECT_EQ(map.load(1), 0u);
	EXPECT_EQ(signal_of_load(map.page(2).data()), SIGBUS);
	EXPECT_EQ(signal_of_load(map.page(3).data()), SIGBUS);
}

TEST_F(restoring, shares_nothing_that_is_written_later)
{
	const region subject = numbered(pages);
	const region source = subject.fork();
	const mapping map = subject.map();
	const mapping source_map = source.map();

	/* Both have entries that are writable and dirty. */
	for (std::size_t page = 0; page < pages; page++) {
		fill(map.page(page), 99);
		fill(source_map.page(page), 100);
	}
	ASSERT_EQ(subject.restore(source), pages * page_size);
	EXPECT_EQ(source.stat().dirty, 0u);
	EXPECT_EQ(held_pages(), pages);
	for (const mapping *each : {&map, &source_map}) {
		each->protect(PROT_READ);
		each->protect(PROT_READ | PROT_WRITE);
	}
	for (std::size_t page = 0; page < pages; page += 2)
		fill(source_map.page(page), 101);
	for (std::size_t page = 1; page < pages; page += 4)
		fill(map.page(page), 102);
	source.fill_page(3, 103);
	subject.fill_page(7, 104);
	for (std::size_t page = 0; page < pages; page++) {
		const bool even = page % 2 == 0;

		EXPECT_TRUE(is_all(source_map.page(page), even	       ? 101
							  : page == 3 ? 103
								      : 100));
		EXPECT_TRUE(is_all(map.page(page), page % 4 == 1 ? 102
						   : page == 7	 ? 104
								 : 100));
	}
	EXPECT_EQ(source.stat().copies, pages / 2 + 1);
	EXPECT_EQ(subject.stat().copies, pages + pages / 4 + 1);
}

TEST_F(restoring, outlives_its_source)
{
	const region subject = numbered(pages);
	region source = subject.fork();
	const mapping map = subject.map();

	for (std::size_t page = 0; page < pages; page++)
		source.fill_page(page, 50);
	subject.restore(source);
	source.close();
	EXPECT_EQ(held_pages(), pages);
	EXPECT_EQ(subject.stat().exclusive, pages * page_size);
	EXPECT_TRUE(is_all(map.bytes(), 50));

	const std::uint64_t copies = subject.stat().copies;

	fill(map.bytes(), 51);
	EXPECT_EQ(subject.stat().copies, copies);
	EXPECT_EQ(subject.stat().reuses, pages);
}

TEST_F(restoring, gives_memory_back)
{
	constexpr std::size_t size = 16 << 20;
	const region subject = dev.create(size);
	const region empty = subject.snapshot();
	const mapping map = subject.map();
	const std::uint64_t available = available_memory();
	const counters count(dev);

	for (int round = 0; round < 3; round++) {
		fill(map.bytes(), 1);
		EXPECT_EQ(held_pages(), size / page_size);
		EXPECT_EQ(subject.restore(empty), size);
		EXPECT_TRUE(is_all(map.bytes(), 0));
		expect_back(dev, count);
	}
	expect_memory_back(available, 4 << 20);
}

TEST_F(restoring, of_a_region_that_nobody_used)
{
	const region first = numbered(pages);
	const region second = first.fork();
	const region third = first.fork();

	first.fill_page(3, 99);
	EXPECT_EQ(second.restore(first), page_size);
	EXPECT_TRUE(is_all(second.read_page(3), 99));
	/* From one that nobody used either. */
	EXPECT_EQ(second.restore(third), page_size);
	EXPECT_EQ(misnumbered_page(second, pages, 1), -1);
	EXPECT_TRUE(is_all(first.read_page(3), 99));
}

TEST_F(restoring, far_away)
{
	const region subject = dev.create(largest_length);
	const region snapshot = subject.snapshot();
	const std::uint64_t offsets[] = {0, std::uint64_t{1} << 32,
					 std::uint64_t{1} << 60,
					 (std::uint64_t{1} << 63) - 2 * page_size};

	for (const std::uint64_t offset : offsets)
		subject.write(offset, bytes_of(8, 1));

	const region written = subject.snapshot();

	EXPECT_EQ(subject.restore(snapshot), 4 * page_size);
	EXPECT_EQ(subject.stat().referenced, 0u);
	for (const std::uint64_t offset : offsets)
		EXPECT_TRUE(is_all(subject.read(offset, 8), 0));
	EXPECT_EQ(subject.restore(written), 4 * page_size);
	for (const std::uint64_t offset : offsets)
		EXPECT_TRUE(is_all(subject.read(offset, 8), 1));
}

TEST_F(restoring, again_and_again)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	const std::vector<std::byte> original = snapshot.read(0, map.size());
	chance random(1);

	for (std::size_t round = 0; round < scaled(2000); round++) {
		std::array<bool, pages> dirty = {};
		std::size_t count = random.between(1, 50);

		for (std::size_t i = 0; i < count; i++) {
			const std::size_t page = random.below(pages);

			if (random.one_in(8))
				subject.write(page * page_size, bytes_of(9, 200));
			else
				map.store(page, round << 8);
			dirty[page] = true;
		}
		ASSERT_EQ(subject.restore(snapshot),
			  static_cast<std::uint64_t>(
				  std::ranges::count(dirty, true)) *
				  page_size);
		ASSERT_EQ(std::memcmp(map.data(), original.data(), map.size()), 0)
			<< round;
	}
	EXPECT_EQ(held_pages(), pages);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

/* A page of the source that somebody holds stays the source's own. */
TEST_F(restoring, from_a_source_with_pinned_pages)
{
	const region subject = numbered(pages);
	const region source = subject.fork();
	const mapping map = subject.map();
	const mapping source_map = source.map();

	fill(source_map.page(3), 50);
	fill(source_map.page(4), 51);

	const page_in_a_pipe held(source_map.page(3));

	EXPECT_EQ(subject.restore(source), 2 * page_size);
	EXPECT_EQ(source.stat().exclusive, page_size);
	EXPECT_EQ(subject.stat().exclusive, page_size);
	EXPECT_TRUE(is_all(map.page(3), 50));
	fill(source_map.page(3), 60);
	EXPECT_TRUE(is_all(map.page(3), 50));
	fill(map.page(3), 70);
	EXPECT_TRUE(is_all(held.read(), 60));
	EXPECT_TRUE(is_all(source.read_page(3), 60));
	EXPECT_TRUE(is_all(source.read_page(4), 51));
}

/* A page of the region that somebody holds is not its page any more. */
TEST_F(restoring, of_a_region_with_pinned_pages)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();

	fill(map.page(3), 50);

	const page_in_a_pipe held(map.page(3));
	const page_in_a_pipe held_on(map.page(4));

	EXPECT_EQ(subject.restore(snapshot), page_size);
	EXPECT_EQ(misshown_page(map, 1), -1);
	fill(map.page(3), 60);
	fill(map.page(4), 61);
	EXPECT_TRUE(is_all(held.read(), 50));
	EXPECT_TRUE(is_all(held_on.read(), 5));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

TEST_F(restoring, without_room_for_a_pinned_page_changes_nothing)
{
	const region subject = dev.create(pages * page_size, 5 * page_size);

	number_pages(subject, 3, 1);

	const region source = subject.fork();
	const mapping map = subject.map();
	const mapping source_map = source.map();

	fill(map.page(0), 99);
	fill(source_map.page(2), 50);
	EXPECT_EQ(held_pages(), 5u);

	{
		const page_in_a_pipe held(source_map.page(2));

		EXPECT_EQ(error_of(subject, source.fd()), ENOSPC);
	}
	EXPECT_TRUE(is_all(map.page(0), 99));
	EXPECT_TRUE(is_all(map.page(2), 3));
	EXPECT_TRUE(is_all(source_map.page(2), 50));
	EXPECT_EQ(subject.stat().dirty, page_size);
	EXPECT_EQ(subject.restore(source), 2 * page_size);
	EXPECT_TRUE(is_all(map.page(2), 50));
	EXPECT_EQ(held_pages(), 3u);
}

using restore_errors = restoring;

TEST_F(restore_errors, no_descriptor)
{
	const region subject = numbered(pages);

	EXPECT_EQ(error_of(subject, -1), EBADF);
	EXPECT_EQ(error_of(subject, 1'000'000), EBADF);

	const unique_fd path(check(::open("/", O_PATH | O_CLOEXEC), "open"));

	EXPECT_EQ(error_of(subject, path.get()), EBADF);
}

TEST_F(restore_errors, no_region)
{
	const region subject = numbered(pages);
	const memory_file file = make_memfd(page_size);
	const pipe_pair pipe;

	EXPECT_EQ(error_of(subject, file.fd()), EINVAL);
	EXPECT_EQ(error_of(subject, pipe.read_end.get()), EINVAL);
	EXPECT_EQ(error_of(subject, dev.fd()), EINVAL);
}

TEST_F(restore_errors, another_family)
{
	const region subject = numbered(pages);
	const region other = numbered(pages);

	fill(subject.map().page(3), 99);
	EXPECT_EQ(error_of(subject, other.fd()), EXDEV);
	EXPECT_EQ(error_of(subject, other.fork().fd()), EXDEV);
	EXPECT_TRUE(is_all(subject.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(other, pages, 1), -1);
}

TEST_F(restore_errors, a_snapshot)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();

	subject.fill_page(3, 99);
	EXPECT_EQ(error_of(snapshot, subject.fd()), EPERM);
	EXPECT_EQ(error_of(snapshot, snapshot.fd()), EPERM);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_EQ(snapshot.stat().forks, 0u);
}

TEST_F(restore_errors, a_result_that_cannot_be_written)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping memory = anonymous(page_size);
	cowsnap_restore arg = {};

	arg.size = sizeof(arg);
	arg.src_fd = snapshot.fd();
	std::memcpy(memory.data(), &arg, sizeof(arg));
	memory.protect(PROT_READ);
	subject.fill_page(3, 99);

	const cowsnap_stat stat = subject.stat();

	EXPECT_EQ(::ioctl(subject.fd(), COWSNAP_IOC_RESTORE, memory.data()), -1);
	EXPECT_EQ(errno, EFAULT);

	const cowsnap_stat after = subject.stat();

	EXPECT_EQ(std::memcmp(&stat, &after, sizeof(stat)), 0);
	EXPECT_TRUE(is_all(subject.read_page(3), 99));
}

/*
 * Under writers of the region: a store that came before the restore is gone, and
 * one that came after is there, for one instant T.  Each writer stores the numbers
 * of its rounds, page after page, so what it stored last before T are the pages
 * that hold the snapshot's zero, and what it stored since are those that do not.
 */
struct progress {
	std::atomic<bool> stop = false;
	/* Odd while a RESTORE runs. */
	std::atomic<std::uint64_t> epoch = 0;
	std::atomic<std::uint64_t> checks = 0;
	std::atomic<std::uint64_t> cuts = 0;
};

class overwritten_writer {
public:
	static constexpr std::size_t own_pages = 45;
	static constexpr std::size_t writers = 2;

	overwritten_writer(const region &file, std::size_t number, bool calls,
			   progress &state)
		: file_(file), number_(number), calls_(calls), state_(state),
		  map_(file.map())
	{
	}

	void run()
	{
		for (round_ = 1; !state_.stop; round_++)
			for (std::size_t i = 0; i < own_pages; i++) {
				store(i);
				examine(i + 1);
			}
	}

private:
	std::size_t page(std::size_t i) const { return i * writers + number_; }

	void store(std::size_t i)
	{
		const std::uint64_t epoch = state_.epoch;

		if (calls_)
			file_.write(page(i) * page_size,
				    std::as_bytes(std::span(&round_, 1)));
		else
			map_.store(page(i), round_);

		const std::uint64_t value = map_.load(page(i));

		if (epoch % 2 == 0 && state_.epoch == epoch)
			require(value == round_, "a store after RESTORE is lost");
		else
			require(value == round_ || value == 0,
				"a page holds what nobody stored");
	}

	/* In the order of their stores; @next is where the next store goes. */
	void examine(std::size_t next)
	{
		const std::uint64_t epoch = state_.epoch;
		std::array<std::uint64_t, own_pages> values;

		for (std::size_t i = 0; i < own_pages; i++)
			values[i] = map_.load(page((next + i) % own_pages));
		if (epoch % 2 || state_.epoch != epoch)
			return;

		std::size_t restored = 0;

		while (restored < own_pages && !values[restored])
			restored++;
		for (std::size_t i = restored; i < own_pages; i++)
			require(values[i] ==
					(next + i < own_pages ? round_ - 1 : round_),
				"RESTORE took another page than those before it");
		state_.checks++;
		state_.cuts += restored > 0 && restored < own_pages;
	}

	const region &file_;
	std::size_t number_;
	bool calls_;
	progress &state_;
	mapping map_;
	std::uint64_t round_ = 0;
};

class under_writers : public restoring, public testing::WithParamInterface<bool> {};

INSTANTIATE_TEST_SUITE_P(, under_writers, testing::Bool(), [](const auto &info) {
	return info.param ? "by_write" : "by_stores";
});

TEST_P(under_writers, is_of_one_instant)
{
	const region subject = dev.create_pages(100);
	const region empty = subject.snapshot();
	const shared<progress> state;
	std::vector<child> processes;

	for (std::size_t i = 0; i < overwritten_writer::writers; i++)
		processes.emplace_back([&, i] {
			overwritten_writer(subject, i, GetParam(), *state).run();
		});

	chance random(5);
	const deadline end = scaled_deadline(std::chrono::seconds(3));
	std::uint64_t restores = 0;
	const auto enough = [&] {
		return restores >= 10 && state->checks >= 10 && state->cuts >= 1;
	};

	for (; !passed(end, enough); restores++) {
		std::this_thread::sleep_for(
			std::chrono::microseconds(random.below(8000)));
		state->epoch++;
		subject.restore(empty);
		state->epoch++;
	}
	state->stop = true;
	for (child &process : processes)
		EXPECT_TRUE(process.succeeded());
	EXPECT_GE(restores, 10u);
	EXPECT_GE(state->checks, 10u);
	EXPECT_GE(state->cuts, 1u) << "no RESTORE came between two stores";
	std::printf("# %llu restores, %llu checks, %llu of them across a cut\n",
		    static_cast<unsigned long long>(restores),
		    static_cast<unsigned long long>(state->checks),
		    static_cast<unsigned long long>(state->cuts));
}

/* What RESTORE gets is all of one or all of the other; nobody waits for ever. */
TEST_F(restoring, three_in_a_ring_at_once)
{
	const region first = dev.create_pages(pages);
	const region second = first.fork();
	const region third = first.fork();
	std::atomic<bool> torn = false;

	fill(first.map().bytes(), 1);
	fill(second.map().bytes(), 2);
	fill(third.map().bytes(), 3);

	const auto follow = [&](const region &to, const region &from) {
		for (std::size_t round = 0; round < scaled(50); round++) {
			to.restore(from);
			to.prepare(7);

			const mapping map = to.fork().map(PROT_READ);

			if (!is_all(map.bytes(),
				    static_cast<unsigned int>(*map.data())))
				torn = true;
		}
	};
	std::thread one([&] { follow(first, second); });
	std::thread two([&] { follow(second, third); });

	follow(third, first);
	one.join();
	two.join();
	EXPECT_FALSE(torn);
}

TEST_F(restoring, two_from_each_other_at_once)
{
	const region first = numbered(pages);
	const region second = first.fork();
	const auto follow = [](const region &to, const region &from,
			       std::size_t page) {
		const mapping map = to.map();

		for (std::size_t round = 0; round < scaled(300); round++) {
			to.restore(from);
			map.store(page, 1);
		}
	};
	std::thread one([&] { follow(first, second, 3); });

	follow(second, first, 4);
	one.join();
	for (const region *each : {&first, &second}) {
		for (std::size_t page = 5; page < pages; page++)
			EXPECT_TRUE(is_all(each->read_page(page),
					   static_cast<unsigned int>(page + 1)));
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
