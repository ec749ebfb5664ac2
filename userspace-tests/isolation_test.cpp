// SPDX-License-Identifier: GPL-2.0-only
/*
 * Point in time and isolation, one writer at a time: what is written after a
 * FORK, by whatever path and from whatever state of the page tables, is seen on
 * the side that wrote it, everywhere and at once, and nowhere else.
 */
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

/* What a mapping of @file shows, compared with what read(2) returns. */
bool shows(const mapping &map, const memory_file &file)
{
	return std::ranges::equal(map.bytes(), file.read(0, map.size()));
}

enum class side { parent, child };
enum class entries { as_forked, absent, read_only };
enum class path {
	store,
	pwrite,
	read_into_mapping,
	process_vm_writev,
	proc_mem,
	second_mapping,
	other_process,
	inherited_mapping,
};

const char *name_of(side writer)
{
	return writer == side::parent ? "parent" : "child";
}

const char *name_of(entries state)
{
	switch (state) {
	case entries::as_forked:
		return "as_forked";
	case entries::absent:
		return "absent";
	case entries::read_only:
		return "read_only";
	}
	return "";
}

const char *name_of(path how)
{
	switch (how) {
	case path::store:
		return "store";
	case path::pwrite:
		return "pwrite";
	case path::read_into_mapping:
		return "read_into_mapping";
	case path::process_vm_writev:
		return "process_vm_writev";
	case path::proc_mem:
		return "proc_mem";
	case path::second_mapping:
		return "second_mapping";
	case path::other_process:
		return "other_process";
	case path::inherited_mapping:
		return "inherited_mapping";
	}
	return "";
}

/* Writes @bytes at @offset of the region that @map is a mapping of. */
void write_by(path how, const region &file, const mapping &map,
	      std::size_t offset, std::span<const std::byte> bytes)
{
	std::byte *const target = map.data() + offset;
	const iovec local = {const_cast<std::byte *>(bytes.data()), bytes.size()};
	const iovec remote = {target, bytes.size()};

	switch (how) {
	case path::store:
		std::ranges::copy(bytes, target);
		break;
	case path::pwrite:
		file.write(offset, bytes);
		break;
	case path::read_into_mapping: {
		const pipe_pair pipe;

		check(::write(pipe.write_end.get(), bytes.data(), bytes.size()),
		      "write");
		check(::read(pipe.read_end.get(), target, bytes.size()), "read");
		break;
	}
	case path::process_vm_writev:
		check(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0),
		      "process_vm_writev");
		break;
	case path::proc_mem: {
		const unique_fd memory(check(
			::open("/proc/self/mem", O_RDWR | O_CLOEXEC), "open mem"));

		check(::pwrite(memory.get(), bytes.data(), bytes.size(),
			       static_cast<off_t>(
				       reinterpret_cast<std::uintptr_t>(target))),
		      "pwrite to mem");
		break;
	}
	case path::second_mapping:
		std::ranges::copy(bytes, file.map().data() + offset);
		break;
	case path::other_process: {
		child other([&] {
			std::ranges::copy(bytes, file.map().data() + offset);
		});

		if (!other.succeeded())
			throw std::runtime_error("the other process failed");
		break;
	}
	case path::inherited_mapping: {
		child other([&] { std::ranges::copy(bytes, target); });

		if (!other.succeeded())
			throw std::runtime_error("the other process failed");
		break;
	}
	}
}

using combination = std::tuple<side, entries, path>;

class after_a_fork : public cowsnap_fixture,
		     public testing::WithParamInterface<combination> {};

INSTANTIATE_TEST_SUITE_P(
	, after_a_fork,
	testing::Combine(testing::Values(side::parent, side::child),
			 testing::Values(entries::as_forked, entries::absent,
					 entries::read_only),
			 testing::Values(path::store, path::pwrite,
					 path::read_into_mapping,
					 path::process_vm_writev, path::proc_mem,
					 path::second_mapping, path::other_process,
					 path::inherited_mapping)),
	[](const auto &info) {
		return std::string(name_of(std::get<side>(info.param))) + "_" +
		       name_of(std::get<entries>(info.param)) + "_" +
		       name_of(std::get<path>(info.param));
	});

TEST_P(after_a_fork, writes_stay_on_their_side)
{
	constexpr std::size_t pages = 24;
	const auto [writing, state, how] = GetParam();
	const region parent = dev.create_pages(pages);
	const mapping parent_map = parent.map();

	/* A third each: shared since an older fork, dirty, never written. */
	for (std::size_t page = 0; page < pages; page += 3)
		fill(parent_map.page(page), static_cast<unsigned int>(10 + page));

	const region older = parent.snapshot();
	const std::vector<std::byte> older_bytes = older.read(0, parent_map.size());

	for (std::size_t page = 1; page < pages; page += 3)
		fill(parent_map.page(page), static_cast<unsigned int>(60 + page));

	const std::vector<std::byte> at_fork = parent.read(0, parent_map.size());
	const region forked = parent.fork();
	const mapping forked_map = forked.map();
	const bool parent_writes = writing == side::parent;
	const region &writer = parent_writes ? parent : forked;
	const region &reader = parent_writes ? forked : parent;
	const mapping &writer_map = parent_writes ? parent_map : forked_map;
	const mapping &reader_map = parent_writes ? forked_map : parent_map;

	ASSERT_TRUE(std::ranges::equal(reader_map.bytes(), at_fork));
	if (state == entries::absent) {
		writer_map.advise(MADV_DONTNEED);
	} else if (state == entries::read_only) {
		ASSERT_TRUE(std::ranges::equal(writer_map.bytes(), at_fork));
	}

	/* A part of each page, so that the rest has to be right as well. */
	std::vector<std::byte> expected = at_fork;

	for (std::size_t page = 0; page < pages; page++) {
		const std::size_t offset = page * page_size + 16 * (page + 1);
		const std::vector<std::byte> bytes =
			bytes_of(100, static_cast<unsigned int>(120 + page));

		write_by(how, writer, writer_map, offset, bytes);
		std::ranges::copy(bytes, expected.begin() +
						 static_cast<std::ptrdiff_t>(offset));
		ASSERT_TRUE(std::ranges::equal(
			writer_map.page(page),
			std::span(expected).subspan(page * page_size, page_size)))
			<< page;
		ASSERT_TRUE(std::ranges::equal(
			reader_map.page(page),
			std::span(at_fork).subspan(page * page_size, page_size)))
			<< page;
	}
	EXPECT_EQ(writer.read(0, expected.size()), expected);
	EXPECT_EQ(reader.read(0, at_fork.size()), at_fork);
	EXPECT_EQ(writer.stat().dirty, pages * page_size);
	EXPECT_EQ(reader.stat().dirty, 0u);

	/* Now the other side, on top of what was left to it alone. */
	fill(reader_map.bytes(), 0xee);
	EXPECT_TRUE(std::ranges::equal(writer_map.bytes(), expected));
	EXPECT_EQ(writer.read(0, expected.size()), expected);
	EXPECT_TRUE(shows(reader_map, reader));
	EXPECT_EQ(older.read(0, older_bytes.size()), older_bytes);
}

class isolation : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 20;
};

/* The control: the same steps find the leak that MAP_PRIVATE of a memfd has. */
TEST_F(isolation, control_a_private_mapping_of_a_memfd_is_no_snapshot)
{
	const memory_file file = make_memfd(pages * page_size);
	const mapping map = file.map();

	number_pages(file, pages, 1);

	const mapping no_snapshot = file.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

	no_snapshot.store(0, 77); /* this page is copied, */
	fill(map.bytes(), 99);
	EXPECT_NE(no_snapshot.load(0), map.load(0));
	EXPECT_TRUE(is_all(no_snapshot.page(1), 99)); /* and this one leaks */
}

TEST_F(isolation, of_a_snapshot_from_a_writer_before_anybody_reads_it)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	number_pages(parent, pages, 1);

	const region snapshot = parent.snapshot();

	fill(map.bytes(), 99);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	for (std::size_t page = 0; page < pages; page++)
		EXPECT_TRUE(is_all(snapshot.map(PROT_READ).page(page),
				   static_cast<unsigned int>(page + 1)));
}

TEST_F(isolation, of_a_private_mapping_of_a_snapshot)
{
	const region parent = dev.create_pages(pages);

	number_pages(parent, pages, 1);

	const region snapshot = parent.snapshot();
	const mapping first = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const mapping second = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const mapping shared = snapshot.map(PROT_READ);

	/* Copied by a write to a present page, and to an absent one. */
	EXPECT_TRUE(is_all(first.page(0), 1));
	fill(first.page(0), 50);
	fill(first.page(1), 51);
	/* The parent's later writes show nowhere: what memfd cannot do. */
	fill(parent.map().bytes(), 99);
	EXPECT_TRUE(is_all(first.page(0), 50));
	EXPECT_TRUE(is_all(first.page(1), 51));
	EXPECT_TRUE(is_all(first.page(2), 3));
	for (std::size_t page = 0; page < pages; page++) {
		EXPECT_TRUE(is_all(second.page(page),
				   static_cast<unsigned int>(page + 1)));
		EXPECT_TRUE(is_all(shared.page(page),
				   static_cast<unsigned int>(page + 1)));
	}
	/*
	 * A write by force breaks a read-only private mapping, not the snapshot.
	 * Debian's 6.12 lets any process do that to itself, its 7.3 only a debugger
	 * to another (gup_test).
	 */
	first.protect(PROT_READ);

	const unique_fd memory(
		check(::open("/proc/self/mem", O_RDWR | O_CLOEXEC), "open mem"));
	const std::vector<std::byte> bytes = bytes_of(8, 52);
	const bool forced =
		::pwrite(memory.get(), bytes.data(), 8,
			 static_cast<off_t>(reinterpret_cast<std::uintptr_t>(
				 first.page(5).data()))) == 8;

	EXPECT_TRUE(forced || errno == EIO);
	EXPECT_TRUE(is_all(first.page(5).first(8), forced ? 52 : 6));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_TRUE(is_all(shared.page(5), 6));
	EXPECT_TRUE(is_all(second.page(5), 6));
}

/* What nobody may write is not written by force either. */
TEST_F(isolation, of_a_snapshot_from_a_debugger)
{
	const region parent = dev.create_pages(pages);

	number_pages(parent, pages, 1);

	const region snapshot = parent.snapshot();
	const mapping map = snapshot.map(PROT_READ);
	const mapping read_only = parent.map(PROT_READ);
	const unique_fd memory(
		check(::open("/proc/self/mem", O_RDWR | O_CLOEXEC), "open mem"));
	const std::vector<std::byte> bytes = bytes_of(8, 52);

	for (const mapping *target : {&map, &read_only}) {
		const iovec local = {const_cast<std::byte *>(bytes.data()), 8};
		const iovec remote = {target->data(), 8};

		EXPECT_EQ(::pwrite(memory.get(), bytes.data(), 8,
				   static_cast<off_t>(
					   reinterpret_cast<std::uintptr_t>(
						   target->data()))),
			  -1);
		EXPECT_EQ(errno, EIO);
		EXPECT_EQ(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0),
			  -1);
		EXPECT_EQ(errno, EFAULT);
	}
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
}

TEST_F(isolation, from_ptrace)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	number_pages(parent, pages, 1);

	child traced([&] {
		check(::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr), "ptrace");
		map.load(0);
		::raise(SIGSTOP);
		require(map.load(0) == 0x1234 && map.load(1) == 0x5678,
			"what was poked is not there");
	});
	int status = 0;

	check(::waitpid(traced.pid(), &status, 0), "waitpid");
	ASSERT_TRUE(WIFSTOPPED(status));

	const region snapshot = parent.snapshot();

	check(::ptrace(PTRACE_POKEDATA, traced.pid(), map.page(0).data(), 0x1234),
	      "ptrace");
	check(::ptrace(PTRACE_POKEDATA, traced.pid(), map.page(1).data(), 0x5678),
	      "ptrace");
	check(::ptrace(PTRACE_CONT, traced.pid(), nullptr, nullptr), "ptrace");
	EXPECT_TRUE(traced.succeeded());
	EXPECT_EQ(map.load(0), 0x1234u);
	EXPECT_EQ(map.load(1), 0x5678u);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

/*
 * mprotect(2) to read-only and back makes an entry that is dirty writable
 * without asking the module.
 */
class mprotect_toggling : public isolation,
			  public testing::WithParamInterface<std::string> {};

INSTANTIATE_TEST_SUITE_P(, mprotect_toggling,
			 testing::Values("after", "around", "after_reading",
					 "around_and_reading", "none_after",
					 "in_the_child"),
			 [](const auto &info) { return info.param; });

TEST_P(mprotect_toggling, makes_no_shared_page_writable)
{
	const std::string when = GetParam();
	const region parent = dev.create_pages(pages);
	const mapping parent_map = parent.map();

	for (std::size_t page = 0; page < pages; page++)
		fill(parent_map.page(page), static_cast<unsigned int>(page + 1));
	if (when.starts_with("around"))
		parent_map.protect(PROT_READ);

	const region forked = parent.fork();
	const mapping forked_map = forked.map();
	const bool in_child = when == "in_the_child";
	const region &writer = in_child ? forked : parent;
	const region &reader = in_child ? parent : forked;
	const mapping &map = in_child ? forked_map : parent_map;

	if (when.ends_with("reading") || in_child) {
		for (std::size_t page = 0; page < pages; page++)
			ASSERT_TRUE(is_all(map.page(page),
					   static_cast<unsigned int>(page + 1)));
	}
	if (when == "none_after") {
		map.protect(PROT_NONE);
	} else {
		map.protect(PROT_READ);
	}
	map.protect(PROT_READ | PROT_WRITE);
	for (std::size_t page = 0; page < pages; page++)
		fill(map.page(page), 99);
	EXPECT_EQ(misnumbered_page(reader, pages, 1), -1);
	EXPECT_TRUE(is_all(map.bytes(), 99));
	EXPECT_EQ(writer.stat().copies, pages);

	/* Once more: the pages that are private now, through an older state. */
	const region snapshot = writer.snapshot();

	map.protect(PROT_READ);
	map.protect(PROT_READ | PROT_WRITE);
	fill(map.bytes(), 98);
	EXPECT_TRUE(is_all(snapshot.read(0, map.size()), 99));
	EXPECT_EQ(misnumbered_page(reader, pages, 1), -1);
}

TEST_F(isolation, of_pages_mapped_twice)
{
	const region parent = dev.create_pages(pages);
	const mapping first = parent.map();
	const mapping second = parent.map();
	const mapping reading = parent.map(PROT_READ);

	number_pages(parent, pages, 1);
	for (std::size_t page = 0; page < pages; page++) {
		first.store(page, 1000 + page);
		second.store(page, 2000 + page);
		ASSERT_EQ(reading.load(page), 2000 + page);
	}

	const region snapshot = parent.snapshot();

	/* All have the shared page; then one gets another. */
	for (std::size_t page = 0; page < pages; page++) {
		const mapping &writer = page % 2 ? first : second;
		const mapping &other = page % 2 ? second : first;

		ASSERT_EQ(reading.load(page), 2000 + page);
		ASSERT_EQ(other.load(page), 2000 + page);
		writer.store(page, 3000 + page);
		ASSERT_EQ(reading.load(page), 3000 + page);
		ASSERT_EQ(other.load(page), 3000 + page);
		other.store(page, 4000 + page);
		ASSERT_EQ(reading.load(page), 4000 + page);
		ASSERT_EQ(writer.load(page), 4000 + page);
		ASSERT_EQ(snapshot.map(PROT_READ).load(page), 2000 + page);
	}
	EXPECT_EQ(parent.stat().copies, pages);
	EXPECT_TRUE(shows(first, parent));
	EXPECT_TRUE(shows(second, parent));
	EXPECT_TRUE(shows(reading, parent));
}

/* Root may map it; to a fork it is an address as any other. */
TEST_F(isolation, of_a_page_mapped_at_address_0)
{
	const region parent = dev.create_pages(2);
	/* The page is, what is stored to need not be; and the compiler is not to know. */
	const volatile std::uintptr_t address = sizeof(std::uint64_t);
	void *const page = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_FIXED, parent.fd(), 0);

	ASSERT_NE(page, MAP_FAILED) << std::strerror(errno);

	auto *const word = reinterpret_cast<std::uint64_t *>(address);
	std::uint64_t then = 0, now = 0;

	/* By one run of two pages of which one is mapped. */
	parent.fill_page(1, 1);
	__atomic_store_n(word, 1, __ATOMIC_RELEASE);

	const region snapshot = parent.snapshot();

	__atomic_store_n(word, 2, __ATOMIC_RELEASE);
	snapshot.read(sizeof(*word), std::as_writable_bytes(std::span(&then, 1)));
	parent.read(sizeof(*word), std::as_writable_bytes(std::span(&now, 1)));
	check(::munmap(page, page_size), "munmap");
	EXPECT_EQ(then, 1u);
	EXPECT_EQ(now, 2u);
}

/* What was written is mapped writable when it is read, what is around it is not. */
TEST_F(isolation, of_what_is_mapped_with_what_is_read)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	number_pages(parent, pages, 1);

	const region snapshot = parent.snapshot();

	for (std::size_t page = 1; page < pages; page += 5)
		map.store(page, 1000 + page);
	map.advise(MADV_DONTNEED);
	for (std::size_t page = 1; page < pages; page += 5)
		ASSERT_EQ(map.load(page), 1000 + page);
	for (std::size_t page = 0; page < pages; page++)
		map.store(page, 2000 + page);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_TRUE(shows(map, parent));
}

/* Parts that begin and end anywhere, with and without entries of their own. */
TEST_F(isolation, of_pages_mapped_in_parts)
{
	constexpr std::size_t many = 1200;
	const region parent = dev.create_pages(many);
	const std::vector<std::pair<std::size_t, std::size_t>> parts = {
		{700, 500}, {0, 3}, {3, 700}, {1, many - 1}, {511, 2}, {513, 600}};
	std::vector<mapping> maps;

	for (const auto &[first, count] : parts)
		maps.emplace_back(parent.fd(), count * page_size,
				  PROT_READ | PROT_WRITE, MAP_SHARED,
				  first * page_size);
	for (unsigned int round = 1; round < 5; round++) {
		/* In a row, and scattered; all by one mapping, or by turns. */
		for (std::size_t page = 0; page < many; page += round) {
			for (std::size_t i = round % 2; i < parts.size(); i++) {
				const auto &[first, count] = parts[i];

				if (page >= first && page < first + count)
					maps[i].store(page - first, round * many + page);
			}
		}

		const std::vector<std::byte> then = parent.read(0, many * page_size);
		const region snapshot = parent.snapshot();

		for (std::size_t i = 0; i < parts.size(); i++) {
			for (std::size_t page = 0; page < parts[i].second; page++)
				maps[i].store(page, i);
		}
		ASSERT_TRUE(std::ranges::equal(
			snapshot.read(0, many * page_size), then))
			<< round;
	}
}

TEST_F(isolation, of_pages_mapped_in_two_processes)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	const event written, forked, stored, checked;

	number_pages(parent, pages, 1);
	child other([&] {
		const mapping own = parent.map();

		for (std::size_t page = 0; page < pages; page++)
			own.store(page, 1000 + page);
		written.tell();
		forked.wait();
		/* Present read-only here when the first process copies it. */
		for (std::size_t page = 0; page < pages; page++)
			require(own.load(page) == 1000 + page, "the fork changed it");
		checked.tell();
		stored.wait();
		for (std::size_t page = 0; page < pages; page++)
			require(own.load(page) == (page % 2 ? 1000 : 2000) + page,
				"the other process's store does not show");
		for (std::size_t page = 1; page < pages; page += 2)
			own.store(page, 3000 + page);
		checked.tell();
	});

	written.wait();
	for (std::size_t page = 0; page < pages; page++)
		ASSERT_EQ(map.load(page), 1000 + page);

	const region snapshot = parent.snapshot();

	for (std::size_t page = 0; page < pages; page++)
		ASSERT_EQ(map.load(page), 1000 + page);
	forked.tell();
	checked.wait();
	for (std::size_t page = 0; page < pages; page += 2)
		map.store(page, 2000 + page);
	stored.tell();
	checked.wait();
	for (std::size_t page = 0; page < pages; page++) {
		EXPECT_EQ(map.load(page), (page % 2 ? 3000 : 2000) + page);
		EXPECT_EQ(snapshot.map(PROT_READ).load(page), 1000 + page);
	}
	EXPECT_TRUE(other.succeeded());
}

/* A store of another process before the FORK is in the snapshot. */
TEST_F(isolation, what_was_stored_elsewhere_before_is_in_and_after_is_not)
{
	const region parent = dev.create_pages(pages);
	const event stored, forked, again;

	child other([&] {
		const mapping own = parent.map();

		for (std::uint64_t round = 1; round <= 10; round++) {
			for (std::size_t page = 0; page < pages; page++)
				own.store(page, round);
			stored.tell();
			forked.wait();
			for (std::size_t page = 0; page < pages; page++)
				own.store(page, 1000 + round);
			again.tell();
		}
	});

	for (std::uint64_t round = 1; round <= 10; round++) {
		stored.wait();

		const region snapshot = parent.fork();

		forked.tell();
		again.wait();

		const mapping shown = snapshot.map(PROT_READ);

		for (std::size_t page = 0; page < pages; page++)
			ASSERT_EQ(shown.load(page), round);
	}
	EXPECT_TRUE(other.succeeded());
}

TEST_F(isolation, of_a_read_only_mapping_made_writable)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map(PROT_READ);

	number_pages(parent, pages, 1);
	EXPECT_TRUE(is_all(map.page(3), 4));

	const region snapshot = parent.snapshot();

	EXPECT_TRUE(is_all(map.page(3), 4));
	map.protect(PROT_READ | PROT_WRITE);
	fill(map.bytes(), 99);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_TRUE(shows(map, parent));
}

TEST_F(isolation, of_a_mapping_that_moved)
{
	const region parent = dev.create_pages(pages);
	mapping map = parent.map();

	for (std::size_t page = 0; page < pages; page++)
		fill(map.page(page), static_cast<unsigned int>(page + 1));
	map.move();

	const region first = parent.snapshot();

	map.move();
	EXPECT_TRUE(is_all(map.page(0), 1));
	map.move();
	fill(map.bytes(), 50);

	const region second = parent.snapshot();

	map.move();
	fill(map.bytes(), 51);
	EXPECT_EQ(misnumbered_page(first, pages, 1), -1);
	EXPECT_TRUE(is_all(second.read(0, map.size()), 50));
	EXPECT_TRUE(is_all(parent.read(0, map.size()), 51));
}

/* fork(2): the child process maps the same region, in no older state. */
TEST_F(isolation, of_a_mapping_that_a_process_inherits)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	for (std::size_t page = 0; page < pages; page++)
		fill(map.page(page), static_cast<unsigned int>(page + 1));

	const event forked, stored;
	child heir([&] {
		forked.wait();
		for (std::size_t page = 0; page < pages; page += 2)
			fill(map.page(page), 70);
		stored.tell();
		forked.wait();
		for (std::size_t page = 0; page < pages; page++)
			require(is_all(map.page(page), page % 2 ? 80 : 70),
				"the processes do not share the region");
	});
	const region snapshot = parent.snapshot();

	forked.tell();
	stored.wait();
	for (std::size_t page = 1; page < pages; page += 2)
		fill(map.page(page), 80);
	forked.tell();
	EXPECT_TRUE(heir.succeeded());
	EXPECT_TRUE(is_all(map.page(0), 70));
	EXPECT_TRUE(shows(map, parent));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

/* Each of ten generations writes a page more; no other generation sees it. */
TEST_F(isolation, through_generations)
{
	std::vector<region> line;

	line.push_back(dev.create_pages(pages));
	for (std::size_t page = 0; page < 10; page++) {
		line.push_back(page % 3 ? line.back().fork()
					: line.back().snapshot().fork());
		line.back().map().store(page, page + 1);
		line.back().map().store(pages - 1, 100 + page);
	}
	for (std::size_t member = 0; member < line.size(); member++) {
		const mapping map = line[member].map(PROT_READ);

		for (std::size_t page = 0; page < 10; page++)
			EXPECT_EQ(map.load(page), page < member ? page + 1 : 0)
				<< member << ' ' << page;
		EXPECT_EQ(map.load(pages - 1), member ? 99 + member : 0);
	}
}

/* Every hole is one page, which nobody may get to write. */
TEST_F(isolation, of_holes)
{
	const region first = dev.create_pages(pages);
	const region other = dev.create_pages(pages);
	const mapping map = first.map();
	const mapping reading = first.map(PROT_READ);
	const mapping other_map = other.map();
	const region child = first.fork();
	const mapping child_map = child.map();

	EXPECT_TRUE(is_all(map.bytes(), 0));
	EXPECT_TRUE(is_all(reading.bytes(), 0));
	EXPECT_TRUE(is_all(other_map.bytes(), 0));
	EXPECT_TRUE(is_all(child_map.bytes(), 0));
	for (std::size_t page = 0; page < 8; page++) {
		write_by(static_cast<path>(page), first, map, page * page_size + 8,
			 bytes_of(200, 0xff));
		EXPECT_TRUE(is_all(reading.page(page).subspan(8, 200), 0xff));
		EXPECT_TRUE(is_all(map.page(page).subspan(8, 200), 0xff));
	}
	map.protect(PROT_READ);
	map.protect(PROT_READ | PROT_WRITE);
	fill(map.bytes().subspan(8 * page_size), 0xff);
	EXPECT_TRUE(is_all(reading.bytes().subspan(8 * page_size), 0xff));
	EXPECT_TRUE(is_all(other_map.bytes(), 0));
	EXPECT_TRUE(is_all(child_map.bytes(), 0));
	EXPECT_TRUE(is_all(dev.create_pages(pages).map().bytes(), 0));
	EXPECT_TRUE(is_all(other.read(0, pages * page_size), 0));
}

/* A file mapped and written at offsets beyond 4 GiB, and beyond 1 EiB. */
TEST_F(isolation, far_away)
{
	const region parent = dev.create(
		static_cast<std::uint64_t>(std::numeric_limits<off_t>::max()));

	for (const std::uint64_t offset :
	     {std::uint64_t{1} << 32, (std::uint64_t{1} << 40) - page_size,
	      std::uint64_t{1} << 60,
	      (std::uint64_t{1} << 63) - 4 * page_size}) {
		const mapping map(parent.fd(), 2 * page_size,
				  PROT_READ | PROT_WRITE, MAP_SHARED, offset);

		map.store(0, offset);
		map.store(1, 1);

		const region snapshot = parent.snapshot();

		map.store(0, 7);
		parent.write(offset + page_size, bytes_of(8, 7));

		const mapping shown(snapshot.fd(), 2 * page_size, PROT_READ,
				    MAP_SHARED, offset);

		EXPECT_EQ(shown.load(0), offset);
		EXPECT_EQ(shown.load(1), 1u);
		EXPECT_EQ(map.load(0), 7u);
		EXPECT_EQ(map.load(1), 0x0707070707070707u);
	}
	EXPECT_EQ(parent.stat().referenced, 8 * page_size);
}

TEST_F(isolation, of_a_hundred_families)
{
	std::vector<region> parents, children;

	for (unsigned int i = 0; i < 100; i++) {
		parents.push_back(dev.create_pages(2));
		parents.back().fill_page(0, i);
		children.push_back(parents.back().fork());
		children.back().fill_page(1, i + 100);
	}
	for (unsigned int i = 0; i < 100; i++) {
		EXPECT_TRUE(is_all(parents[i].read_page(0), i));
		EXPECT_TRUE(is_all(parents[i].read_page(1), 0));
		EXPECT_TRUE(is_all(children[i].read_page(0), i));
		EXPECT_TRUE(is_all(children[i].read_page(1), i + 100));
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
