// SPDX-License-Identifier: GPL-2.0-only
/*
 * The caps: CREATE's limit on a family, max_bytes on all of them.  At a cap what
 * needs memory fails, all else goes on, and room that is given back can be used.
 */
#include <atomic>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/uio.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "max_bytes.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

ssize_t pwrite_pages(const region &file, std::size_t page, std::size_t count,
		     unsigned int value = 0xaa)
{
	const std::vector<std::byte> bytes = bytes_of(count * page_size, value);

	return ::pwrite(file.fd(), bytes.data(), bytes.size(),
			static_cast<off_t>(page * page_size));
}

/* errno of FORK, 0 when it worked. */
int fork_error(const region &parent)
{
	try {
		parent.fork();
	} catch (const std::system_error &error) {
		return error.code().value();
	}
	return 0;
}

void expect_no_space(ssize_t result)
{
	EXPECT_EQ(result, -1);
	EXPECT_EQ(errno, ENOSPC);
}

class family_limit : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 64;
	static constexpr std::size_t room = 16;

	region limited(std::uint64_t limit = room * page_size) const
	{
		return dev.create(pages * page_size, limit);
	}

	/* Filled to its limit, each page with its number. */
	region full() const
	{
		region made = limited();

		number_pages(made, room, 1);
		return made;
	}
};

TEST_F(family_limit, is_reached_by_write_and_not_passed)
{
	const region subject = limited();

	for (std::size_t page = 0; page < room; page++)
		EXPECT_EQ(pwrite_pages(subject, page, 1),
			  static_cast<ssize_t>(page_size));
	EXPECT_EQ(subject.stat().referenced, room * page_size);
	expect_no_space(pwrite_pages(subject, room, 1));
	expect_no_space(pwrite_pages(subject, pages + 10, 1));
	EXPECT_EQ(subject.stat().referenced, room * page_size);
	EXPECT_EQ(subject.length(), pages * page_size);
	EXPECT_TRUE(is_all(subject.read_page(room), 0));
}

TEST_F(family_limit, cuts_a_write_short)
{
	const region subject = limited();

	EXPECT_EQ(pwrite_pages(subject, 2, 2), static_cast<ssize_t>(2 * page_size));
	EXPECT_EQ(pwrite_pages(subject, 10, 20),
		  static_cast<ssize_t>((room - 2) * page_size));
	EXPECT_EQ(subject.stat().referenced, room * page_size);
	/* From a page that is there into one that cannot be. */
	EXPECT_EQ(::pwrite(subject.fd(), bytes_of(100, 1).data(), 100,
			   static_cast<off_t>(4 * page_size - 30)),
		  30);
	expect_no_space(pwrite_pages(subject, 4, 1));
}

TEST_F(family_limit, raises_sigbus)
{
	const region subject = limited();
	const mapping map = subject.map();

	for (std::size_t page = 0; page < room; page++)
		EXPECT_EQ(signal_of_store(map.page(page).data()), 0);
	EXPECT_EQ(signal_of_store(map.page(room).data()), SIGBUS);
	/* Where the hole has been read, too, and again. */
	EXPECT_EQ(signal_of_load(map.page(room).data()), 0);
	EXPECT_EQ(signal_of_store(map.page(room).data()), SIGBUS);
	EXPECT_EQ(signal_of_load(map.page(room).data()), 0);
	EXPECT_TRUE(is_all(map.page(room), 0));
	EXPECT_EQ(subject.stat().referenced, room * page_size);
}

TEST_F(family_limit, fails_calls_that_would_need_memory)
{
	const region subject = full();
	const mapping map = subject.map();
	const pipe_pair pipe;
	const std::vector<std::byte> bytes = bytes_of(10, 1);
	const iovec local = {const_cast<std::byte *>(bytes.data()), 10};
	const iovec remote = {map.page(room).data(), 10};

	EXPECT_EQ(::madvise(map.data(), map.size(), MADV_POPULATE_WRITE), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0), -1);
	EXPECT_EQ(errno, EFAULT);
	check(::write(pipe.write_end.get(), bytes.data(), 10), "write");
	EXPECT_EQ(::read(pipe.read_end.get(), map.page(room).data(), 10), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(misnumbered_page(subject, room, 1), -1);
}

TEST_F(family_limit, leaves_what_is_held_in_use)
{
	const region subject = full();
	const mapping map = subject.map();

	EXPECT_EQ(misnumbered_page(subject, room, 1), -1);
	EXPECT_TRUE(is_all(map.page(3), 4));
	EXPECT_TRUE(is_all(map.page(40), 0));
	fill(map.page(3), 50);
	EXPECT_EQ(pwrite_pages(subject, 4, 2), static_cast<ssize_t>(2 * page_size));
	EXPECT_TRUE(is_all(subject.read_page(3), 50));
	EXPECT_TRUE(is_all(map.page(4), 0xaa));
}

TEST_F(family_limit, allows_forks_that_write_nothing)
{
	const region parent = full();
	const mapping map = parent.map();

	EXPECT_EQ(fork_error(parent), 0);

	const region child = parent.fork();
	const region snapshot = child.snapshot();
	const mapping child_map = child.map();

	EXPECT_EQ(misnumbered_page(child, room, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, room, 1), -1);
	/* A write would have to copy now, on either side. */
	expect_no_space(pwrite_pages(parent, 0, 1));
	expect_no_space(pwrite_pages(child, 0, 1));
	EXPECT_EQ(signal_of_store(map.page(0).data()), SIGBUS);
	EXPECT_TRUE(is_all(map.page(0), 1));
	EXPECT_EQ(signal_of_store(map.page(0).data()), SIGBUS);
	EXPECT_EQ(signal_of_store(child_map.page(0).data()), SIGBUS);
	EXPECT_EQ(misnumbered_page(parent, room, 1), -1);
	EXPECT_EQ(misnumbered_page(child, room, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, room, 1), -1);
}

TEST_F(family_limit, has_room_again_after_a_member_closed)
{
	const region parent = full();
	const mapping map = parent.map();

	{
		const region child = parent.fork();

		EXPECT_EQ(signal_of_store(map.page(0).data()), SIGBUS);
	}
	/* Nothing is shared any more: no memory is needed. */
	fill(map.page(0), 50);
	EXPECT_TRUE(is_all(parent.read_page(0), 50));
	expect_no_space(pwrite_pages(parent, room, 1));

	/* A truncated region gives its room to the others. */
	region child = parent.fork();

	parent.truncate(0);
	parent.truncate(pages * page_size);
	expect_no_space(pwrite_pages(parent, 0, 1));
	child.truncate(10 * page_size);
	EXPECT_EQ(pwrite_pages(parent, 0, pages),
		  static_cast<ssize_t>((room - 10) * page_size));
	child.close();
	EXPECT_EQ(pwrite_pages(parent, 20, pages),
		  static_cast<ssize_t>(10 * page_size));
	expect_no_space(pwrite_pages(parent, 40, 1));
}

/* Half a page that is shared has to be copied before it can be cut, or grow. */
TEST_F(family_limit, stops_changes_of_the_length_that_have_to_copy)
{
	const region parent = full();
	const region snapshot = parent.snapshot();

	EXPECT_EQ(::ftruncate(parent.fd(), 100), -1);
	EXPECT_EQ(errno, ENOSPC);
	EXPECT_EQ(parent.length(), pages * page_size);
	EXPECT_EQ(misnumbered_page(parent, room, 1), -1);
	/* Whole pages need nothing. */
	parent.truncate(3 * page_size);
	EXPECT_EQ(misnumbered_page(parent, 3, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, room, 1), -1);

	const region child = snapshot.fork();

	/* Nor does one that only this one has. */
	snapshot.fork().truncate(2 * page_size);
	EXPECT_EQ(::ftruncate(child.fd(), 5 * page_size + 7), -1);
	EXPECT_EQ(errno, ENOSPC);
	EXPECT_EQ(misnumbered_page(child, room, 1), -1);
	EXPECT_EQ(child.length(), pages * page_size);
}

/* What was stored behind the end has to be cleared, in a copy. */
TEST_F(family_limit, stops_what_grows_beyond_a_shared_end)
{
	const region parent = dev.create(3 * page_size + 100, 4 * page_size);
	const mapping map = parent.map();

	fill(map.bytes(), 1);

	const region snapshot = parent.snapshot();

	EXPECT_EQ(::ftruncate(parent.fd(), static_cast<off_t>(9 * page_size)), -1);
	EXPECT_EQ(errno, ENOSPC);
	expect_no_space(pwrite_pages(parent, 9, 1));
	expect_no_space(::fallocate(parent.fd(), 0, 0,
				    static_cast<off_t>(9 * page_size)));
	EXPECT_EQ(parent.length(), 3 * page_size + 100);
	EXPECT_TRUE(is_all(parent.read(0, 3 * page_size + 100), 1));
	EXPECT_TRUE(is_all(snapshot.read(0, 3 * page_size + 100), 1));
}

/* What was asked for and not granted is not held. */
TEST_F(family_limit, refused_writes_do_not_stop_forks)
{
	const region subject = dev.create(2 * page_size, page_size);
	std::atomic<std::uint64_t> refused = 0;

	subject.fill_page(0, 1);

	const std::jthread writer([&](const std::stop_token &stop) {
		while (!stop.stop_requested())
			refused += pwrite_pages(subject, 1, 1) < 0;
	});

	for (int i = 0; i < 20'000; i++)
		ASSERT_NO_THROW(subject.snapshot()) << "the FORK numbered " << i;
	EXPECT_GT(refused, 0u);
}

TEST_F(family_limit, counts_the_family_together)
{
	region parent = limited();
	const region child = parent.fork();
	const region grandchild = child.fork();

	EXPECT_EQ(pwrite_pages(parent, 0, 5), static_cast<ssize_t>(5 * page_size));
	EXPECT_EQ(pwrite_pages(child, 0, 5), static_cast<ssize_t>(5 * page_size));
	EXPECT_EQ(pwrite_pages(grandchild, 0, 10),
		  static_cast<ssize_t>(6 * page_size));
	expect_no_space(pwrite_pages(parent, 9, 1));
	/* The limit outlives the region that it was given to. */
	parent.close();
	EXPECT_EQ(pwrite_pages(child, 20, 10), static_cast<ssize_t>(5 * page_size));
	expect_no_space(pwrite_pages(grandchild, 9, 1));
	/* Another family has its own. */
	EXPECT_EQ(pwrite_pages(limited(), 0, pages),
		  static_cast<ssize_t>(room * page_size));
}

TEST_F(family_limit, is_in_whole_granules)
{
	EXPECT_EQ(pwrite_pages(limited(3 * page_size - 1), 0, 5),
		  static_cast<ssize_t>(2 * page_size));
	EXPECT_EQ(pwrite_pages(limited(3 * page_size + 1), 0, 5),
		  static_cast<ssize_t>(3 * page_size));
	expect_no_space(pwrite_pages(limited(1), 0, 1));
	/* However little of a large one is used. */
	const region large = dev.create(1 << 20, (3 << 16) - 1, {}, 16);

	large.write(0, bytes_of(1, 1));
	large.write(1 << 16, bytes_of(1, 1));
	expect_no_space(::pwrite(large.fd(), "", 1, 2 << 16));
	EXPECT_EQ(pwrite_pages(limited(std::numeric_limits<std::uint64_t>::max()), 0,
			       5),
		  static_cast<ssize_t>(5 * page_size));
}

class all_regions_limit : public family_limit {
protected:
	/* Leaves room for @count pages beyond what is held now. */
	void leave_room(std::size_t count) const
	{
		const std::uint64_t bytes =
			counters(dev).held_bytes + count * page_size;

		max_bytes_parameter::set(bytes);
		EXPECT_EQ(dev.query().max_bytes, bytes);
	}

	max_bytes_parameter restored;
};

TEST_F(all_regions_limit, is_half_of_the_memory_unless_it_is_set)
{
	std::ifstream file("/proc/meminfo");
	std::string key;
	std::uint64_t kilobytes = 0;

	file >> key >> kilobytes;
	ASSERT_EQ(key, "MemTotal:");
	EXPECT_NEAR(static_cast<double>(dev.query().max_bytes),
		    static_cast<double>(kilobytes * 1024) / 2,
		    static_cast<double>(kilobytes * 1024) / 100);
}

TEST_F(all_regions_limit, holds_for_all_families_together)
{
	const region first = dev.create_pages(pages);
	const region second = dev.create_pages(pages);
	const mapping map = second.map();

	leave_room(10);
	EXPECT_EQ(pwrite_pages(first, 0, 6), static_cast<ssize_t>(6 * page_size));
	EXPECT_EQ(pwrite_pages(second, 0, 6), static_cast<ssize_t>(4 * page_size));
	expect_no_space(pwrite_pages(first, 20, 1));
	EXPECT_EQ(signal_of_store(map.page(20).data()), SIGBUS);
	EXPECT_TRUE(is_all(map.page(20), 0));
	first.truncate(0);
	EXPECT_EQ(signal_of_store(map.page(20).data()), 0);
	EXPECT_EQ(pwrite_pages(second, 30, 10), static_cast<ssize_t>(5 * page_size));
}

TEST_F(all_regions_limit, lowered_below_what_is_held_stops_forks)
{
	const region parent = dev.create_pages(pages);

	number_pages(parent, room, 1);

	const mapping map = parent.map();
	region child = parent.fork();

	map.store(0, 50);
	max_bytes_parameter::set(counters(dev).held_bytes - page_size);

	const counters count(dev);

	EXPECT_EQ(fork_error(parent), ENOSPC);
	EXPECT_EQ(fork_error(child), ENOSPC);
	EXPECT_EQ(counters(dev), count);
	EXPECT_EQ(parent.stat().forks, 1u);
	/* What is held is read, and written where nothing else shares it. */
	EXPECT_EQ(misnumbered_page(child, room, 1), -1);
	EXPECT_TRUE(is_all(map.page(1), 2));
	EXPECT_TRUE(is_all(map.page(50), 0));
	map.store(0, 51);
	EXPECT_EQ(pwrite_pages(parent, 0, 1), static_cast<ssize_t>(page_size));
	expect_no_space(pwrite_pages(parent, 1, 1));
	EXPECT_EQ(signal_of_store(map.page(1).data()), SIGBUS);
	/* A region that holds nothing can be made; a file can be truncated. */
	EXPECT_NO_THROW(dev.create_pages(1));
	child.truncate(0);
	EXPECT_EQ(pwrite_pages(parent, 1, 1), static_cast<ssize_t>(page_size));
	EXPECT_EQ(fork_error(parent), 0);
	expect_no_space(pwrite_pages(parent, 20, 1));
}

/* Exactly at the cap a FORK needs nothing more. */
TEST_F(all_regions_limit, reached_exactly_allows_forks)
{
	const region parent = full();

	leave_room(0);
	EXPECT_EQ(fork_error(parent), 0);
	expect_no_space(pwrite_pages(parent, 20, 1));
}

TEST_F(all_regions_limit, raised_lets_writes_go_on)
{
	const region subject = dev.create_pages(pages);
	const mapping map = subject.map();

	leave_room(1);
	map.store(0, 1);
	EXPECT_EQ(signal_of_store(map.page(1).data()), SIGBUS);
	leave_room(1);
	EXPECT_EQ(signal_of_store(map.page(1).data()), 0);
	EXPECT_EQ(signal_of_store(map.page(2).data()), SIGBUS);
	max_bytes_parameter::set(0);
	EXPECT_EQ(dev.query().max_bytes, 0u);
	fill(map.bytes(), 1);
	EXPECT_EQ(fork_error(subject), 0);
}

/* A page that is pinned while the FORK happens takes a copy, which has to fit. */
TEST_F(all_regions_limit, stops_a_fork_that_has_to_copy)
{
	const region parent = full();
	const mapping map = parent.map();
	const pipe_pair pipe;
	const iovec part = {map.page(3).data(), page_size};

	ASSERT_EQ(::vmsplice(pipe.write_end.get(), &part, 1, 0),
		  static_cast<ssize_t>(page_size));
	leave_room(0);

	const counters count(dev);

	EXPECT_EQ(fork_error(parent), ENOSPC);
	EXPECT_EQ(counters(dev), count);
	EXPECT_EQ(misnumbered_page(parent, room, 1), -1);
	fill(map.page(3), 50);
	EXPECT_EQ(pwrite_pages(parent, 4, 1), static_cast<ssize_t>(page_size));
	EXPECT_EQ(parent.stat().copies, 0u);
	max_bytes_parameter::set(0);

	/* The family's own limit is reached as well. */
	EXPECT_EQ(fork_error(parent), ENOSPC);
	parent.truncate((room - 1) * page_size);
	EXPECT_EQ(fork_error(parent), 0);
	EXPECT_TRUE(is_all(parent.read_page(3), 50));
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
