// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who gets at a region's pages by get_user_pages(): each case of the kernel's own
 * tests of copy-on-write (tools/testing/selftests/mm/cow.c) with FORK and RESTORE
 * in the place of fork(2), or the reason why there is none; then io_uring,
 * debuggers and futexes.  pin_test.cpp has pins that last over a FORK.
 */
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "fixture.hpp"
#include "frame_loop.hpp"
#include "io_ring.hpp"
#include "ktap.hpp"
#include "machine_code.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"
#include "relatives.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t pages = 12;

/* Only there the core refuses long-term pins of pages that a file writes back. */
bool kernel_refuses_long_term_pins()
{
	utsname name = {};
	int major = 0, minor = 0;

	check(::uname(&name), "uname");
	if (std::sscanf(name.release, "%d.%d", &major, &minor) != 2)
		throw std::runtime_error("no kernel's version");
	return std::pair(major, minor) >= std::pair(6, 5);
}

enum class side { source, copy };

const char *name_of(side which)
{
	return which == side::source ? "source" : "copy";
}

/* When the side that does not write puts its page into a pipe, and unmaps it. */
enum class vmsplice_call { none, before, after };

struct cow_case {
	const char *name;
	side writer;
	vmsplice_call vmsplice;
	/* Makes the mapping read-only and writable again before it writes. */
	bool mprotect;

	friend void PrintTo(const cow_case &value, std::ostream *out)
	{
		*out << value.name;
	}
};

constexpr cow_case cow_cases[] = {
	{"basic", side::source, vmsplice_call::none, false},
	{"basic_with_mprotect", side::source, vmsplice_call::none, true},
	{"basic_in_the_copy", side::copy, vmsplice_call::none, false},
	{"basic_in_the_copy_with_mprotect", side::copy, vmsplice_call::none, true},
	{"vmsplice_in_the_copy", side::source, vmsplice_call::after, false},
	{"vmsplice_in_the_copy_with_mprotect", side::source, vmsplice_call::after,
	 true},
	{"vmsplice_before", side::copy, vmsplice_call::before, false},
	{"vmsplice_before_with_mprotect", side::copy, vmsplice_call::before, true},
	{"vmsplice_after", side::copy, vmsplice_call::after, false},
	{"vmsplice_after_with_mprotect", side::copy, vmsplice_call::after, true},
};

class cow : public cowsnap_fixture,
	    public testing::WithParamInterface<std::tuple<cow_case, sharing>> {};

/* The granules are what THP are in cow.c: a page alone, some, as many as PMDs map. */
INSTANTIATE_TEST_SUITE_P(
	, cow,
	testing::Combine(testing::ValuesIn(cow_cases),
			 testing::Values(sharing{operation::fork},
					 sharing{operation::restore},
					 sharing{operation::fork, page_shift + 4},
					 sharing{operation::restore, page_shift + 4},
					 sharing{operation::fork, 21},
					 sharing{operation::restore, 21})),
	[](const auto &info) {
		return std::string(std::get<0>(info.param).name) + "_over_" +
		       name_of(std::get<1>(info.param));
	});

TEST_P(cow, leaks_nothing_to_another_process)
{
	const auto [tried, how] = GetParam();
	relatives both(dev, how, pages);
	const bool source_writes = tried.writer == side::source;
	const event ready, written;
	std::optional<page_in_a_pipe> held;

	if (tried.vmsplice == vmsplice_call::before)
		held.emplace(both.source_map.page(0));
	both.share();

	const region &reader = source_writes ? both.copy : both.source;
	const mapping &map = source_writes ? both.source_map : both.copy_map;

	(source_writes ? both.copy_map : both.source_map).reset();
	child other([&] {
		mapping own = reader.map();
		const std::vector<std::byte> old(own.bytes().begin(),
						 own.bytes().end());

		require(is_all(own.page(0), 1), "the old bytes are not there");
		if (tried.vmsplice == vmsplice_call::after)
			held.emplace(own.page(0));
		if (held)
			own.reset();
		ready.tell();
		written.wait();
		require(held ? is_all(held->read(), 1)
			     : std::ranges::equal(own.bytes(), old),
			"it sees what the other side writes");
	});
	ready.wait();
	if (tried.mprotect) {
		map.protect(PROT_READ);
		map.protect(PROT_READ | PROT_WRITE);
	}
	fill(map.bytes(), 0xff);
	written.tell();
	EXPECT_TRUE(other.succeeded());
	EXPECT_EQ(misnumbered_page(reader, pages, 1), -1);
}

/* Private mappings of a snapshot, in which page 0 is a hole. */
class private_mappings : public cowsnap_fixture {
protected:
	region with_a_hole() const
	{
		const region parent = dev.create_pages(2);

		parent.fill_page(1, 2);
		return parent.snapshot();
	}

	static void expect_untouched(const region &snapshot)
	{
		EXPECT_TRUE(is_all(snapshot.read_page(0), 0));
		EXPECT_TRUE(is_all(snapshot.read_page(1), 2));
	}
};

TEST_F(private_mappings, are_copied_for_who_writes)
{
	const region snapshot = with_a_hole();
	const mapping shown = snapshot.map(PROT_READ);

	for (const bool touch_first : {false, true}) {
		const mapping map =
			snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

		if (touch_first) {
			EXPECT_TRUE(is_all(map.page(0), 0));
			EXPECT_TRUE(is_all(map.page(1), 2));
		}
		fill(map.bytes(), 0xff);
		EXPECT_TRUE(is_all(map.bytes(), 0xff));
		EXPECT_TRUE(is_all(shown.page(0), 0));
		EXPECT_TRUE(is_all(shown.page(1), 2));
	}
	expect_untouched(snapshot);
}

/* The core takes a copy first, for a pin too, so that it is of the right page. */
TEST_F(private_mappings, are_reliably_pinned_for_good)
{
	const region snapshot = with_a_hole();
	const mapping map = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	frame_loop frames;

	if (!frames.supported())
		GTEST_SKIP() << "this kernel has no AF_XDP";
	EXPECT_TRUE(is_all(map.page(0), 0));
	EXPECT_TRUE(is_all(map.page(1), 2));
	ASSERT_EQ(frames.pin(map.bytes()), 0);
	map.protect(PROT_READ);
	map.protect(PROT_READ | PROT_WRITE);
	fill(map.page(0), 50);
	fill(map.page(1), 51);
	frames.copy(0, 1, 100);
	EXPECT_TRUE(is_all(map.page(1).first(frame_loop::room), 51));
	EXPECT_TRUE(is_all(map.page(1).subspan(frame_loop::room, 100), 50));
	expect_untouched(snapshot);
}

TEST_F(private_mappings, are_io_urings_fixed_buffers_where_files_can_be)
{
	const region snapshot = with_a_hole();
	const mapping map = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const mapping read_only = snapshot.map(PROT_READ);
	const memory_file file = make_memfd(2 * page_size);
	io_ring ring;

	if (!ring.supported())
		GTEST_SKIP() << "this kernel has no io_uring";
	EXPECT_EQ(ring.register_buffer(read_only.bytes()), EFAULT);
	if (!kernel_refuses_long_term_pins()) {
		/* It looks for any file but those of shmem and hugetlbfs. */
		EXPECT_EQ(ring.register_buffer(map.bytes()), EOPNOTSUPP);
		return;
	}
	ASSERT_EQ(ring.register_buffer(map.bytes()), 0);
	fill(map.page(0), 50);
	ring.submit(IORING_OP_WRITE_FIXED, file.fd(), map.page(0), 0);
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(file.read_page(0), 50));
	ring.submit(IORING_OP_READ_FIXED, file.fd(), map.page(1), 0);
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(map.page(1), 50));
	expect_untouched(snapshot);
}

class pinned_for_good : public cowsnap_fixture {
protected:
	/* What arrives in @page of @map, through the pin, is @value. */
	static void expect_arrived(const mapping &map, std::size_t page,
				   unsigned int value)
	{
		EXPECT_TRUE(is_all(map.page(page).subspan(frame_loop::room, 100),
				   value));
	}
};

class long_term_pins : public pinned_for_good,
		       public testing::WithParamInterface<sharing> {};

const auto each_sharing =
	testing::Values(sharing{operation::fork}, sharing{operation::restore});
const auto name_of_sharing = [](const auto &info) {
	return "over_" + name_of(info.param);
};

INSTANTIATE_TEST_SUITE_P(, long_term_pins, each_sharing, name_of_sharing);

/* io_uring cannot know, and so refuses; one kernel's io_uring, the other's core. */
TEST_P(long_term_pins, by_io_uring_are_refused)
{
	relatives both(dev, GetParam(), pages);
	const io_ring ring;
	const int expected = kernel_refuses_long_term_pins() ? EFAULT : EOPNOTSUPP;

	if (!ring.supported())
		GTEST_SKIP() << "this kernel has no io_uring";
	EXPECT_EQ(ring.register_buffer(both.source_map.page(3)), expected);
	both.share();
	EXPECT_EQ(both.copy.stat().exclusive, 0u);
	EXPECT_EQ(ring.register_buffer(both.source_map.page(3)), expected);
	EXPECT_EQ(ring.register_buffer(both.copy_map.page(4)), expected);
	EXPECT_EQ(misnumbered_page(both.source, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(both.copy, pages, 1), -1);
}

/* Where they are not refused, they are as good as in shared memory. */
TEST_P(long_term_pins, are_refused_or_stay_the_sources)
{
	relatives both(dev, GetParam(), pages);
	const mapping &map = both.source_map;
	frame_loop frames;

	if (!frames.supported())
		GTEST_SKIP() << "this kernel has no AF_XDP";
	if (kernel_refuses_long_term_pins()) {
		EXPECT_EQ(frames.pin(map.bytes()), EFAULT);
		both.share();
		EXPECT_EQ(both.copy.stat().exclusive, 0u);
		EXPECT_EQ(frames.pin(both.copy_map.bytes()), EFAULT);
		EXPECT_EQ(both.copy.stat().exclusive, 0u);
		return;
	}
	ASSERT_EQ(frames.pin(map.bytes().first(3 * page_size)), 0);
	both.share();
	EXPECT_EQ(both.copy.stat().exclusive, 3 * page_size);
	frames.copy(0, 1, 100);
	expect_arrived(map, 1, 1);
	/* A page that is mapped read-only, and written again, is still the one. */
	map.protect(PROT_READ);
	map.protect(PROT_READ | PROT_WRITE);
	fill(map.page(0), 50);
	fill(both.copy_map.page(0), 60);
	frames.copy(0, 1, 100);
	expect_arrived(map, 1, 50);
	EXPECT_TRUE(is_all(both.copy.read_page(1), 2));

	/* And so over one FORK more, and what moves the entries about. */
	both.source.prepare();

	const region snapshot = both.source.snapshot();

	map.advise(MADV_DONTNEED);
	fill(map.page(0), 51);
	frames.copy(0, 2, 100);
	expect_arrived(map, 2, 51);
	expect_arrived(map, 1, 50);
	EXPECT_TRUE(is_all(snapshot.read_page(0), 50));
	EXPECT_TRUE(is_all(snapshot.read_page(2), 3));
	EXPECT_TRUE(is_all(both.copy.read_page(0), 60));
}

/* A RESTORE takes the page away; what is pinned is nobody's then. */
TEST_F(pinned_for_good, lasts_no_longer_than_until_a_restore)
{
	const region subject = numbered(pages);
	const region snapshot = subject.snapshot();
	const mapping map = subject.map();
	frame_loop frames;

	if (!frames.supported())
		GTEST_SKIP() << "this kernel has no AF_XDP";
	if (kernel_refuses_long_term_pins())
		GTEST_SKIP() << "this kernel refuses them";
	ASSERT_EQ(frames.pin(map.bytes().first(2 * page_size)), 0);
	EXPECT_EQ(subject.restore(snapshot), 2 * page_size);
	fill(map.page(0), 50);
	frames.copy(0, 1, 100);
	EXPECT_TRUE(is_all(map.page(0), 50));
	EXPECT_TRUE(is_all(map.page(1), 2));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

class io_uring_requests : public cowsnap_fixture,
			  public testing::WithParamInterface<sharing> {};

INSTANTIATE_TEST_SUITE_P(, io_uring_requests, each_sharing, name_of_sharing);

/* A read that ends later writes to the side that began it alone. */
TEST_P(io_uring_requests, that_wait_do_not_reach_the_copy)
{
	relatives both(dev, GetParam(), pages);
	const pipe_pair pipe;
	std::vector<std::byte> bytes = bytes_of(page_size, 99);
	io_ring ring;

	if (!ring.supported())
		GTEST_SKIP() << "this kernel has no io_uring";
	ring.submit(IORING_OP_READ, pipe.read_end.get(), both.source_map.page(3), 0);
	both.share();
	EXPECT_EQ(both.copy.stat().exclusive, 0u);

	const region snapshot = both.source.snapshot();

	check(::write(pipe.write_end.get(), bytes.data(), page_size), "write");
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(both.source_map.page(3), 99));
	EXPECT_TRUE(is_all(both.source.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(both.copy, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);

	/* And on the descriptors: a write to one side, a read of the other. */
	ring.submit(IORING_OP_WRITE, both.copy.fd(), bytes, 5 * page_size);
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(both.copy.read_page(5), 99));
	ring.submit(IORING_OP_READ, both.source.fd(), bytes, 5 * page_size);
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(bytes, 6));
	ring.submit(IORING_OP_WRITE, snapshot.fd(), bytes, 0);
	EXPECT_EQ(ring.result(), -EPERM);
}

/* A process that is stopped and traced, with the regions mapped as they are here. */
class traced_process {
public:
	/* It runs @before, stops, and once it may go on runs @after. */
	template <typename Before, typename After>
	traced_process(Before &&before, After &&after)
		: process_([&] {
			  check(::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr),
				"PTRACE_TRACEME");
			  before();
			  ::raise(SIGSTOP);
			  after();
		  })
	{
		expect_stop(SIGSTOP);
		memory_ = unique_fd(
			check(::open(("/proc/" + std::to_string(pid()) + "/mem")
					     .c_str(),
				     O_RDWR | O_CLOEXEC),
			      "open mem"));
	}

	pid_t pid() const { return process_.pid(); }
	int memory() const { return memory_.get(); }

	/* Waits until @signal has stopped it. */
	void expect_stop(int signal) const
	{
		int status = 0;

		check(::waitpid(pid(), &status, 0), "waitpid");
		if (!WIFSTOPPED(status) || WSTOPSIG(status) != signal)
			throw std::runtime_error("it did not stop as it should");
	}

	void go_on() const
	{
		check(::ptrace(PTRACE_CONT, pid(), nullptr, nullptr), "PTRACE_CONT");
	}

	bool succeeds()
	{
		go_on();
		return process_.succeeded();
	}

private:
	child process_;
	unique_fd memory_;
};

enum class access_by { ptrace, proc_mem, process_vm };

const char *name_of(access_by how)
{
	switch (how) {
	case access_by::ptrace:
		return "ptrace";
	case access_by::proc_mem:
		return "proc_mem";
	case access_by::process_vm:
		return "process_vm";
	}
	return "";
}

off_t offset_of(const std::byte *address)
{
	return static_cast<off_t>(reinterpret_cast<std::uintptr_t>(address));
}

/* Writes a word where @address is in @target; errno, 0 when it worked. */
int poke(access_by how, const traced_process &target, std::byte *address,
	 std::uint64_t value)
{
	const iovec local = {&value, sizeof(value)};
	const iovec remote = {address, sizeof(value)};
	long done = -1;

	switch (how) {
	case access_by::ptrace:
		done = ::ptrace(PTRACE_POKEDATA, target.pid(), address, value);
		break;
	case access_by::proc_mem:
		done = ::pwrite(target.memory(), &value, sizeof(value),
				offset_of(address));
		break;
	case access_by::process_vm:
		done = ::process_vm_writev(target.pid(), &local, 1, &remote, 1, 0);
		break;
	}
	return done < 0 ? errno : 0;
}

std::uint64_t peek(access_by how, const traced_process &target, std::byte *address)
{
	std::uint64_t value = 0;
	const iovec local = {&value, sizeof(value)};
	const iovec remote = {address, sizeof(value)};

	switch (how) {
	case access_by::ptrace:
		errno = 0;
		value = static_cast<std::uint64_t>(::ptrace(
			PTRACE_PEEKDATA, target.pid(), address, nullptr));
		if (errno)
			check(-1, "PTRACE_PEEKDATA");
		break;
	case access_by::proc_mem:
		check(::pread(target.memory(), &value, sizeof(value),
			      offset_of(address)),
		      "pread of mem");
		break;
	case access_by::process_vm:
		check(::process_vm_readv(target.pid(), &local, 1, &remote, 1, 0),
		      "process_vm_readv");
		break;
	}
	return value;
}

/* The word that each byte of a page filled with @value makes. */
constexpr std::uint64_t word_of(std::uint64_t value)
{
	return value * 0x0101010101010101;
}

using debugging = std::tuple<access_by, sharing, side>;

class debugger : public cowsnap_fixture,
		 public testing::WithParamInterface<debugging> {};

const auto each_access = testing::Values(access_by::ptrace, access_by::proc_mem,
					 access_by::process_vm);

INSTANTIATE_TEST_SUITE_P(
	, debugger,
	testing::Combine(each_access, each_sharing,
			 testing::Values(side::source, side::copy)),
	[](const auto &info) {
		return std::string(name_of(std::get<0>(info.param))) +
		       "_over_" + name_of(std::get<1>(info.param)) + "_to_the_" +
		       name_of(std::get<2>(info.param));
	});

TEST_P(debugger, sees_and_changes_the_one_side)
{
	const auto [how, shared_by, side_written] = GetParam();
	relatives both(dev, shared_by, pages);

	both.share();

	const bool of_source = side_written == side::source;
	const region &written = of_source ? both.source : both.copy;
	const region &other = of_source ? both.copy : both.source;
	const mapping &map = of_source ? both.source_map : both.copy_map;
	const mapping &other_map = of_source ? both.copy_map : both.source_map;
	traced_process target(
		[&] {
			/* Half of the entries are there. */
			for (std::size_t page = 0; page < pages; page += 2)
				require(map.load(page) == other_map.load(page),
					"the two do not share");
		},
		[&] {
			for (std::size_t page = 0; page < pages; page++)
				require(map.load(page) == 1000 + page,
					"it does not see what was poked");
		});

	for (std::size_t page = 0; page < pages; page++) {
		std::byte *const address = map.page(page).data();

		/* An entry that the write has to take out of this process, too. */
		if (page % 3) {
			EXPECT_EQ(map.load(page), word_of(page + 1));
		}
		EXPECT_EQ(peek(how, target, address), word_of(page + 1));
		EXPECT_EQ(poke(how, target, address, 1000 + page), 0);
		EXPECT_EQ(peek(how, target, address), 1000 + page);
		EXPECT_EQ(peek(how, target, other_map.page(page).data()),
			  word_of(page + 1));
		EXPECT_EQ(map.load(page), 1000 + page);
	}
	EXPECT_EQ(misnumbered_page(other, pages, 1), -1);

	/* And once more, over what it has changed itself. */
	const region snapshot = written.snapshot();

	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(poke(how, target, map.page(page).data(), 7), 0);
	EXPECT_EQ(written.restore(snapshot), pages * page_size);
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(peek(how, target, map.page(page).data()), 1000 + page);
	EXPECT_TRUE(target.succeeds());
	EXPECT_EQ(misnumbered_page(other, pages, 1), -1);
}

/* By force a debugger writes to private mappings; there is none to force here. */
class forced_write : public cowsnap_fixture,
		     public testing::WithParamInterface<access_by> {};

INSTANTIATE_TEST_SUITE_P(, forced_write, each_access,
			 [](const auto &info) { return name_of(info.param); });

TEST_P(forced_write, of_a_shared_mapping_fails)
{
	const access_by how = GetParam();
	const region parent = numbered(pages);
	const region snapshot = parent.snapshot();
	const mapping read_only = parent.map(PROT_READ);
	const mapping shown = snapshot.map(PROT_READ);
	const int expected = how == access_by::process_vm ? EFAULT : EIO;
	traced_process target(
		[&] {
			for (std::size_t page = 0; page < pages; page += 2)
				require(read_only.load(page) == shown.load(page),
					"the two do not share");
		},
		[] {});

	for (const mapping *map : {&read_only, &shown}) {
		for (std::size_t page = 0; page < pages; page++) {
			std::byte *const address = map->page(page).data();

			EXPECT_EQ(poke(how, target, address, 7), expected);
			EXPECT_EQ(peek(how, target, address), word_of(page + 1));
		}
	}
	EXPECT_EQ(parent.stat().copies, 0u);
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_TRUE(target.succeeds());
}

TEST_P(forced_write, of_a_private_mapping_is_of_that_process)
{
	const access_by how = GetParam();
	const region parent = numbered(pages);
	const region snapshot = parent.snapshot();
	const mapping map = snapshot.map(PROT_READ, MAP_PRIVATE);
	const bool forces = how != access_by::process_vm;
	traced_process target(
		[&] {
			for (std::size_t page = 0; page < pages; page += 2)
				(void)map.load(page);
		},
		[&] {
			for (std::size_t page = 0; page < pages; page++)
				require(map.load(page) ==
						(forces ? 7 : word_of(page + 1)),
					"it does not see what was poked");
		});

	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(poke(how, target, map.page(page).data(), 7),
			  forces ? 0 : EFAULT);
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_EQ(map.load(page), word_of(page + 1));
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_TRUE(target.succeeds());
}

/* What gdb does to a program whose code is in a snapshot. */
using breakpoint = cowsnap_fixture;

TEST_F(breakpoint, in_a_private_mapping_stops_one_process_alone)
{
	const region parent = dev.create_pages(1);

	parent.write(0, function_that_returns(42));

	const region snapshot = parent.snapshot();
	const mapping code = snapshot.map(PROT_READ | PROT_EXEC, MAP_PRIVATE);
	traced_process target(
		[] {}, [&] { require(call(code) == 42, "other code runs"); });
	const std::uint64_t before_it =
		peek(access_by::ptrace, target, code.data());

	ASSERT_EQ(poke(access_by::ptrace, target, code.data(),
		       with_breakpoint(before_it)),
		  0);
	/* Over a FORK, and over other code in the region. */
	const region second = parent.snapshot();

	parent.write(0, function_that_returns(7));
	EXPECT_EQ(call(code), 42);
	EXPECT_EQ(snapshot.read(0, 8), function_that_returns(42));
	EXPECT_EQ(second.read(0, 8), function_that_returns(42));

	target.go_on();
	target.expect_stop(SIGTRAP);

	EXPECT_TRUE(return_to_breakpoint(target.pid(), code.data()));
	EXPECT_EQ(poke(access_by::ptrace, target, code.data(), before_it), 0);
	EXPECT_TRUE(target.succeeds());
}

/*
 * A futex between processes is known by its place in a file; a page that many
 * files share has none.
 */
class futexes : public cowsnap_fixture,
		public testing::WithParamInterface<sharing> {
protected:
	/* errno of waiting for a word that does not change; 0 never. */
	static int wait_error(const mapping &map, int operation)
	{
		const timespec moment = {0, 1'000'000};

		return ::syscall(SYS_futex, map.data(), operation,
				 static_cast<std::uint32_t>(map.load(0)), &moment,
				 nullptr, 0)
			       ? errno
			       : 0;
	}
};

INSTANTIATE_TEST_SUITE_P(, futexes, each_sharing, name_of_sharing);

TEST_P(futexes, are_of_one_process)
{
	relatives both(dev, GetParam(), pages);

	both.share();

	const region snapshot = both.source.snapshot();
	const mapping shown = snapshot.map(PROT_READ);

	for (const mapping *map : std::initializer_list<const mapping *>{
		     &both.source_map, &both.copy_map, &shown}) {
		EXPECT_EQ(wait_error(*map, FUTEX_WAIT), EFAULT);
		EXPECT_EQ(wait_error(*map, FUTEX_WAIT_PRIVATE), ETIMEDOUT);
		EXPECT_EQ(::syscall(SYS_futex, map->data(), FUTEX_WAKE, 1, nullptr,
				    nullptr, 0),
			  -1);
		EXPECT_EQ(errno, EFAULT);
	}
	EXPECT_EQ(misnumbered_page(both.source, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(both.copy, pages, 1), -1);
}

TEST_P(futexes, of_one_process_wake_it_over_it)
{
	relatives both(dev, GetParam(), pages);
	const mapping &map = both.source_map;
	auto *const word = reinterpret_cast<std::uint32_t *>(map.data());
	std::atomic<bool> waits = false;
	std::thread waiter([&] {
		const timespec minute = {60, 0};

		waits = true;
		while (map.load(0) != 7)
			if (::syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE,
				      0x01010101, &minute, nullptr, 0) &&
			    errno != EAGAIN)
				break;
	});

	eventually([&] { return waits.load(); });
	both.share();
	map.store(0, 7);
	::syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
	waiter.join();
	EXPECT_EQ(map.load(0), 7u);
	EXPECT_EQ(both.copy_map.load(0), word_of(1));
}

/* Nobody makes huge pages of what the module has mapped. */
class collapsing : public cowsnap_fixture,
		   public testing::WithParamInterface<sharing> {};

INSTANTIATE_TEST_SUITE_P(, collapsing,
			 testing::Values(sharing{operation::fork},
					 sharing{operation::restore},
					 sharing{operation::fork, 21},
					 sharing{operation::restore, 21}),
			 name_of_sharing);

TEST_P(collapsing, is_refused)
{
	constexpr int madv_collapse = 25;
	relatives both(dev, GetParam(), (4 << 20) / page_size);
	const auto refused = [](const mapping &map) {
		return ::madvise(map.data(), map.size(), madv_collapse) == -1 &&
		       errno == EINVAL;
	};

	EXPECT_TRUE(refused(both.source_map));
	both.share();
	EXPECT_TRUE(refused(both.source_map));
	EXPECT_TRUE(refused(both.copy_map));

	const region snapshot = both.source.snapshot();

	EXPECT_TRUE(refused(snapshot.map(PROT_READ)));
	EXPECT_TRUE(refused(snapshot.map(PROT_READ, MAP_PRIVATE)));
	EXPECT_EQ(both.source.stat().exclusive, 0u);
}

/*
 * What cow.c tries, and with what memory; and who does it here, the tests of this
 * program with @test in their names, or why nobody does.
 */
struct answer {
	std::string_view asked, test, reason = {};
};

constexpr std::string_view no_reader =
	"no part of a stock kernel but RDMA, VFIO and vDPA pins for good to read "
	"alone; such a pin would show the page of when it was taken, as "
	"pin_test's from_the_writer_it_shows_the_time_of_the_holding does";
constexpr std::string_view not_swapped = "a region's pages are not swapped";
constexpr std::string_view not_collapsed =
	"a region's pages are neither collapsed nor split: collapsing.is_refused";
constexpr std::string_view no_hugetlb = "a region is not hugetlb";

constexpr answer cow_c[] = {
	{"Basic COW after fork()", "/basic_over"},
	{"Basic COW after fork() with mprotect() optimization",
	 "/basic_with_mprotect_over"},
	{"vmsplice() + unmap in child", "/vmsplice_in_the_copy_over"},
	{"vmsplice() + unmap in child with mprotect() optimization",
	 "/vmsplice_in_the_copy_with_mprotect_over"},
	{"vmsplice() before fork(), unmap in parent after fork()",
	 "/vmsplice_before_over"},
	{"vmsplice() + unmap in parent after fork()", "/vmsplice_after_over"},
	{"R/O-mapping a page registered as iouring fixed buffer",
	 "long_term_pins.are_refused_or_stay_the_sources"},
	{"fork() with an iouring fixed buffer",
	 "long_term_pins.by_io_uring_are_refused"},
	{"R/O GUP pin on R/O-mapped shared page", {}, no_reader},
	{"R/O GUP-fast pin on R/O-mapped shared page", {}, no_reader},
	{"R/O GUP pin on R/O-mapped previously-shared page", {}, no_reader},
	{"R/O GUP-fast pin on R/O-mapped previously-shared page", {}, no_reader},
	{"R/O GUP pin on R/O-mapped exclusive page", {}, no_reader},
	{"R/O GUP-fast pin on R/O-mapped exclusive page", {}, no_reader},
	{"Basic COW after fork() when collapsing before fork()", {},
	 not_collapsed},
	{"Basic COW after fork() when collapsing after fork() (fully shared)", {},
	 not_collapsed},
	{"Basic COW after fork() when collapsing after fork() (lower shared)", {},
	 not_collapsed},
	{"Basic COW after fork() when collapsing after fork() (upper shared)", {},
	 not_collapsed},
	{"Basic COW", "private_mappings.are_copied_for_who_writes"},
	{"R/O longterm GUP pin", "private_mappings.are_reliably_pinned_for_good"},
	{"R/O longterm GUP-fast pin",
	 "private_mappings.are_io_urings_fixed_buffers_where_files_can_be"},
	{"with base page", "_over_a_fork"},
	{"with swapped out base page", {}, not_swapped},
	{"with THP", "_over_a_fork_of_2048k"},
	{"with swapped-out THP", {}, not_swapped},
	{"with PTE-mapped THP", "_over_a_fork_of_16_pages"},
	{"with swapped-out, PTE-mapped THP", {}, not_swapped},
	{"with single PTE of THP", "_over_a_restore_of_16_pages"},
	{"with single PTE of swapped-out THP", {}, not_swapped},
	{"with partially mremap()'ed THP", {}, not_collapsed},
	{"with partially shared THP", {}, not_collapsed},
	{"with hugetlb", {}, no_hugetlb},
	{"with shared zeropage", "private_mappings"},
	{"with memfd", "private_mappings"},
	{"with tmpfile", "private_mappings"},
	{"with huge zeropage", {}, not_collapsed},
	{"with memfd hugetlb", {}, no_hugetlb},
};

std::vector<std::string> names_of_all_tests()
{
	const testing::UnitTest &program = *testing::UnitTest::GetInstance();
	std::vector<std::string> names;

	for (int i = 0; i < program.total_test_suite_count(); i++) {
		const testing::TestSuite &suite = *program.GetTestSuite(i);

		for (int j = 0; j < suite.total_test_count(); j++)
			names.push_back(std::string(suite.name()) + "." +
					suite.GetTestInfo(j)->name());
	}
	return names;
}

TEST(cases_of_cow_c, each_has_an_answer)
{
	const std::vector<std::string> names = names_of_all_tests();

	for (const auto &[asked, test, reason] : cow_c) {
		EXPECT_NE(test.empty(), reason.empty()) << asked;
		EXPECT_TRUE(test.empty() ||
			    std::ranges::any_of(names, [test](const auto &name) {
				    return name.find(test) != name.npos;
			    })) << asked;
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
