// SPDX-License-Identifier: GPL-2.0-only
/*
 * A region is a file that behaves like a memfd: what both can do is done to
 * both, and what they answered is compared.
 */
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

/* Bytes that differ from place to place. */
std::vector<std::byte> text(std::size_t size, unsigned int start = 0)
{
	std::vector<std::byte> bytes(size);

	for (std::size_t i = 0; i < size; i++)
		bytes[i] = static_cast<std::byte>((start + i * 7 + i / 251) & 0xff);
	return bytes;
}

/* Does things to a file and writes down how each of them ended. */
class session {
public:
	explicit session(const memory_file &file) : file_(file) {}

	int fd() const { return file_.fd(); }
	const memory_file &file() const { return file_; }
	std::string log() const { return log_.str(); }

	void note(const std::string &what, long long result)
	{
		const int error = errno;

		log_ << what << ": ";
		if (result == -1)
			log_ << std::strerror(error) << '\n';
		else
			log_ << result << '\n';
	}

	void write(std::span<const std::byte> bytes)
	{
		note("write", ::write(fd(), bytes.data(), bytes.size()));
	}
	void pwrite(std::span<const std::byte> bytes, off_t offset)
	{
		note("pwrite at " + std::to_string(offset),
		     ::pwrite(fd(), bytes.data(), bytes.size(), offset));
	}
	void read(std::size_t size)
	{
		std::vector<std::byte> bytes(size);

		note("read", ::read(fd(), bytes.data(), size));
		note_bytes(bytes);
	}
	void pread(std::size_t size, off_t offset)
	{
		std::vector<std::byte> bytes(size);

		note("pread at " + std::to_string(offset),
		     ::pread(fd(), bytes.data(), size, offset));
		note_bytes(bytes);
	}
	void seek(off_t offset, int whence)
	{
		note("lseek " + std::to_string(offset) + " " +
			     std::to_string(whence),
		     ::lseek(fd(), offset, whence));
	}
	void allocate(int mode, off_t offset, off_t length)
	{
		note("fallocate " + std::to_string(mode) + " " +
			     std::to_string(offset) + " " +
			     std::to_string(length),
		     ::fallocate(fd(), mode, offset, length));
	}
	void truncate(off_t length)
	{
		note("ftruncate " + std::to_string(length),
		     ::ftruncate(fd(), length));
	}

	/* The length, and all that is in the file. */
	void contents()
	{
		const std::uint64_t length = file_.length();

		note("length", static_cast<long long>(length));
		pread(length + 1, 0);
	}

	void note_bytes(std::span<const std::byte> bytes)
	{
		std::uint64_t hash = 0xcbf29ce484222325;

		for (const std::byte byte : bytes)
			hash = (hash ^ static_cast<std::uint64_t>(byte)) *
			       0x100000001b3;
		log_ << "  bytes hash to " << std::hex << hash << std::dec << '\n';
	}

private:
	const memory_file &file_;
	std::ostringstream log_;
};

class file_like_a_memfd : public cowsnap_fixture {
protected:
	template <typename Script>
	void expect_same(std::uint64_t length, Script &&script)
	{
		const memory_file control = make_memfd(length);
		const region subject = dev.create(length);
		session on_control(control), on_subject(subject);

		script(on_control);
		script(on_subject);
		EXPECT_EQ(on_subject.log(), on_control.log());
	}
};

const auto page = static_cast<off_t>(page_size);

TEST_F(file_like_a_memfd, reads_and_writes_at_its_position)
{
	expect_same(0, [](session &on) {
		on.read(100);
		on.write(text(100));
		on.write(text(page_size * 2, 5));
		on.write({});
		on.seek(0, SEEK_CUR);
		on.read(10);
		on.seek(-50, SEEK_END);
		on.read(100);
		on.read(100);
		on.seek(50, SEEK_SET);
		on.read(2 * page_size);
		on.seek(1000, SEEK_END);
		on.read(1);
		on.write(text(1));
		on.contents();
	});
}

TEST_F(file_like_a_memfd, reads_and_writes_at_offsets)
{
	expect_same(3 * page_size + 17, [](session &on) {
		on.pwrite(text(10), 0);
		on.pwrite(text(10, 1), page - 5);
		on.pwrite(text(2 * page_size, 2), page / 2);
		on.pwrite(text(1, 3), 3 * page + 16);
		on.pread(1, 3 * page + 16);
		on.pread(1, 3 * page + 17);
		on.pread(page_size, 3 * page);
		on.pread(0, 0);
		on.pread(10, -1);
		on.pwrite(text(10), -1);
		on.pwrite({}, 100 * page);
		on.contents();
	});
}

TEST_F(file_like_a_memfd, takes_vectors)
{
	expect_same(0, [](session &on) {
		std::vector<std::byte> first = text(100), second = text(5000, 9);
		std::vector<std::byte> third;
		const std::array<iovec, 3> parts = {
			{{first.data(), first.size()},
			 {third.data(), third.size()},
			 {second.data(), second.size()}}};

		on.note("writev", ::writev(on.fd(), parts.data(), 3));
		on.note("pwritev", ::pwritev(on.fd(), parts.data(), 3, 4000));
		on.note("pwritev2 at the position",
			::pwritev2(on.fd(), parts.data(), 3, -1, 0));
		on.contents();
		on.note("preadv", ::preadv(on.fd(), parts.data(), 3, 77));
		on.note_bytes(first);
		on.note_bytes(second);
		on.seek(0, SEEK_SET);
		on.note("readv", ::readv(on.fd(), parts.data(), 3));
		on.note_bytes(first);
		on.note_bytes(second);
	});
}

TEST_F(file_like_a_memfd, appends)
{
	expect_same(100, [](session &on) {
		on.note("F_SETFL", ::fcntl(on.fd(), F_SETFL, O_APPEND));
		on.write(text(50));
		on.pwrite(text(60, 1), 0);
		on.seek(0, SEEK_CUR);
		on.contents();
	});
}

TEST_F(file_like_a_memfd, grows_by_writing_beyond_its_end)
{
	expect_same(10, [](session &on) {
		on.pwrite(text(10), 0);
		on.pwrite(text(10, 1), 20);
		on.pwrite(text(10, 2), 3 * page + 1);
		on.pwrite(text(3 * page_size, 3), 40 * page + 100);
		on.contents();
	});
}

TEST_F(file_like_a_memfd, is_truncated_both_ways)
{
	expect_same(4 * page_size, [](session &on) {
		on.pwrite(text(4 * page_size), 0);
		on.truncate(3 * page + 100);
		on.contents();
		/* What was cut off does not come back. */
		on.truncate(4 * page);
		on.contents();
		on.truncate(page + 1);
		on.truncate(page + 2);
		on.contents();
		on.truncate(2 * page);
		on.truncate(2 * page);
		on.truncate(1);
		on.truncate(0);
		on.contents();
		on.truncate(2 * page);
		on.contents();
		on.truncate(-1);
		on.truncate(std::numeric_limits<off_t>::max());
		on.truncate(std::numeric_limits<off_t>::min());
		on.truncate(100);
		on.pwrite(text(10), 50);
		on.contents();
	});
}

TEST_F(file_like_a_memfd, seeks_data_and_holes)
{
	expect_same(0, [](session &on) {
		const auto seek_around = [&on] {
			for (const int whence : {SEEK_DATA, SEEK_HOLE})
				for (const off_t offset :
				     {off_t{0}, off_t{1}, page - 1, page, page + 1,
				      2 * page, 3 * page, 3 * page + 5, 9 * page,
				      15 * page, 16 * page, 17 * page,
				      17 * page + 99, 17 * page + 100,
				      17 * page + 101, 99 * page, off_t{-1}})
					on.seek(offset, whence);
		};

		seek_around();
		on.truncate(17 * page + 100);
		seek_around();
		on.pwrite(text(10), page + 10);
		on.pwrite(text(page_size * 2), 9 * page);
		seek_around();
		on.pwrite(text(1), 15 * page);
		on.pwrite(text(1), 17 * page);
		seek_around();
		on.pwrite(text(17 * page_size), 0);
		seek_around();
		on.truncate(16 * page);
		on.truncate(17 * page + 100);
		seek_around();
		on.seek(0, 77);
	});
}

TEST_F(file_like_a_memfd, seeks_data_far_away)
{
	expect_same(std::numeric_limits<off_t>::max(), [](session &on) {
		constexpr off_t exbibyte = off_t{1} << 60;

		for (off_t offset = 3 * exbibyte + 5 * page; offset > page;
		     offset /= 64)
			on.pwrite(text(1), offset);
		for (off_t offset = 0; offset >= 0;) {
			offset = ::lseek(on.fd(), offset, SEEK_DATA);
			on.note("data", offset);
			if (offset < 0)
				break;
			offset = ::lseek(on.fd(), offset, SEEK_HOLE);
			on.note("hole", offset);
		}
	});
}

TEST_F(file_like_a_memfd, reaches_the_largest_offset)
{
	expect_same(0, [](session &on) {
		constexpr off_t last = std::numeric_limits<off_t>::max();

		on.pwrite(text(10), last - 10);
		on.note("length", static_cast<long long>(on.file().length()));
		on.pread(20, last - 10);
		on.pread(20, last - page);
		on.pwrite(text(10), last - 5);
		on.pwrite(text(1), last);
		on.pread(1, last);
		on.truncate(last - 5);
		on.pread(8, last - 10);
		on.seek(0, SEEK_END);
		on.seek(100, SEEK_END);
	});
}

TEST_F(file_like_a_memfd, takes_what_it_can_of_a_bad_buffer)
{
	expect_same(4 * page_size, [](session &on) {
		const mapping buffer = anonymous(3 * page_size);

		fill(buffer.bytes(), 0x55);
		check(::mprotect(buffer.data() + page_size, page_size, PROT_NONE),
		      "mprotect");

		const std::byte *const bad = buffer.data() + page_size;

		on.note("write of nowhere", ::pwrite(on.fd(), bad, 100, 0));
		on.note("read to nowhere",
			::pread(on.fd(), buffer.data() + page_size, 100, 0));
		on.note("write of half nowhere",
			::pwrite(on.fd(), buffer.data(), 2 * page_size, 0));
		on.note("read to half nowhere",
			::pread(on.fd(), buffer.data(), 2 * page_size, 0));
		on.contents();
	});
}

TEST_F(file_like_a_memfd, respects_the_file_size_limit)
{
	std::signal(SIGXFSZ, SIG_IGN);
	expect_same(0, [](session &on) {
		rlimit before = {};
		rlimit low = {};

		check(::getrlimit(RLIMIT_FSIZE, &before), "getrlimit");
		low = {2 * page_size + 10, before.rlim_max};
		check(::setrlimit(RLIMIT_FSIZE, &low), "setrlimit");
		on.pwrite(text(10), 2 * page);
		on.pwrite(text(10), 2 * page + 5);
		on.pwrite(text(10), 2 * page + 10);
		on.truncate(2 * page + 11);
		on.allocate(0, page, 2 * page);
		on.truncate(2 * page + 10);
		on.allocate(0, page, page);
		check(::setrlimit(RLIMIT_FSIZE, &before), "setrlimit");
		on.contents();
	});
	std::signal(SIGXFSZ, SIG_DFL);
}

TEST_F(file_like_a_memfd, is_allocated)
{
	expect_same(3 * page_size + 10, [](session &on) {
		on.pwrite(text(2 * page_size), 10);
		on.allocate(0, page, page);
		on.contents();
		/* It grows, and does not. */
		on.allocate(0, 3 * page, page + 100);
		on.contents();
		on.allocate(FALLOC_FL_KEEP_SIZE, 4 * page, 3 * page);
		on.contents();
		on.truncate(6 * page);
		on.contents();
		on.allocate(0, 20 * page + 1, 1);
		on.contents();
		/* Of what there is not and what is no range. */
		on.allocate(0, 0, 0);
		on.allocate(0, -1, 10);
		on.allocate(0, 10, -1);
		on.allocate(0, 1, std::numeric_limits<off_t>::max());
		on.allocate(0x100, 0, 1);
		on.allocate(FALLOC_FL_COLLAPSE_RANGE, 0, page);
		on.allocate(FALLOC_FL_INSERT_RANGE, 0, page);
		on.contents();
	});
}

TEST_F(file_like_a_memfd, is_punched)
{
	constexpr int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	expect_same(9 * page_size + 10, [](session &on) {
		const mapping map = on.file().map();

		on.pwrite(text(9 * page_size), 10);
		on.allocate(punch, page, 2 * page);
		for (const off_t start : {0 * page, page, 2 * page + 1})
			for (const auto whence : {SEEK_DATA, SEEK_HOLE})
				on.seek(start, whence);
		/* Here a memfd fills its holes when they are read. */
		on.note_bytes(map.bytes());
		on.contents();
		/* Parts of pages, in one, over two, over more. */
		on.allocate(punch, 4 * page + 5, 7);
		on.allocate(punch, 5 * page - 5, 10);
		on.allocate(punch, 6 * page + 100, 2 * page);
		on.contents();
		on.note_bytes(map.bytes());
		/* Over the end, behind it, of holes, of everything. */
		on.allocate(punch, 9 * page + 3, 9 * page);
		on.allocate(punch, 20 * page, page);
		on.allocate(punch, 0, 2 * page + 100);
		on.contents();
		on.allocate(punch, 0, std::numeric_limits<off_t>::max());
		on.contents();
		on.seek(0, SEEK_DATA);
		on.allocate(FALLOC_FL_PUNCH_HOLE, 0, page);
		on.allocate(punch, 0, 0);
		on.note_bytes(map.bytes());
		on.note("madvise", ::madvise(map.data(), page_size, MADV_REMOVE));
		on.note("madvise", ::madvise(map.data() + 1, page_size,
					     MADV_REMOVE));
	});
}

TEST_F(file_like_a_memfd, is_synced)
{
	expect_same(page_size, [](session &on) {
		const mapping map = on.file().map();

		map.store(0, 1);
		on.note("msync", ::msync(map.data(), map.size(), MS_SYNC));
		on.note("msync", ::msync(map.data(), map.size(), MS_ASYNC));
		on.note("fsync", ::fsync(on.fd()));
		on.note("fdatasync", ::fdatasync(on.fd()));
	});
}

/* sendfile(2) and splice(2) may move less than they were asked to. */
template <typename Move>
std::size_t move_all(std::size_t size, Move &&move)
{
	std::size_t done = 0;

	while (done < size) {
		const ssize_t moved = check(move(size - done), "sendfile or splice");

		if (moved == 0)
			break;
		done += static_cast<std::size_t>(moved);
	}
	return done;
}

TEST_F(file_like_a_memfd, is_sent_and_received)
{
	constexpr std::size_t size = 10'000;

	expect_same(0, [](session &on) {
		const memory_file other = make_memfd(0);
		off_t from = 3;

		on.pwrite(text(size), 0);
		const std::size_t sent = move_all(size, [&](std::size_t left) {
			return ::sendfile(other.fd(), on.fd(), &from, left);
		});
		on.note("sendfile from", static_cast<long long>(sent));
		on.note_bytes(other.read(0, size - 3));

		/* The other way around, with a gap. */
		from = 0;
		on.seek(20'000, SEEK_SET);
		const std::size_t received =
			move_all(size, [&](std::size_t left) {
				return ::sendfile(on.fd(), other.fd(), &from, left);
			});
		on.note("sendfile to", static_cast<long long>(received));
		on.contents();
	});
}

TEST_F(file_like_a_memfd, is_spliced)
{
	expect_same(0, [](session &on) {
		constexpr std::size_t size = 10'000;
		const pipe_pair pipe;
		std::vector<std::byte> bytes(size);
		off_t offset = 100;

		on.pwrite(text(size), 0);
		on.truncate(size + 2 * page);
		const std::size_t out = move_all(size, [&](std::size_t left) {
			return ::splice(on.fd(), &offset, pipe.write_end.get(),
					nullptr, left, 0);
		});
		on.note("splice out", static_cast<long long>(out));
		on.note("offset", offset);
		on.note("read of the pipe",
			::read(pipe.read_end.get(), bytes.data(), size));
		on.note_bytes(bytes);

		check(::write(pipe.write_end.get(), bytes.data(), size), "write");
		offset = 5 * page + 1;
		const std::size_t in = move_all(size, [&](std::size_t left) {
			return ::splice(pipe.read_end.get(), nullptr, on.fd(),
					&offset, left, 0);
		});
		on.note("splice in", static_cast<long long>(in));
		on.contents();
	});
}

TEST_F(file_like_a_memfd, copies_a_range_of_itself)
{
	expect_same(8 * page_size, [](session &on) {
		off_t from = 10;
		off_t to = 4 * page;

		on.pwrite(text(2 * page_size), 0);
		const std::size_t copied =
			move_all(2 * page_size, [&](std::size_t left) {
				return ::copy_file_range(on.fd(), &from, on.fd(),
							 &to, left, 0);
			});
		on.note("copy_file_range", static_cast<long long>(copied));
		on.contents();
	});
}

TEST_F(file_like_a_memfd, is_the_same_through_mappings_and_calls)
{
	expect_same(4 * page_size + 100, [](session &on) {
		const mapping map = on.file().map();

		on.pwrite(text(page_size), 50);
		on.note_bytes(map.bytes());
		fill(map.page(2).subspan(7, 100), 0x77);
		on.contents();
		on.pwrite(text(page_size, 3), 2 * page);
		on.note_bytes(map.bytes());
		/* To a page that is in the mapping, read-only, as a hole. */
		on.pwrite(text(10, 4), 3 * page);
		on.note_bytes(map.bytes());
		on.contents();
	});
}

TEST_F(file_like_a_memfd, is_a_regular_file_without_a_name)
{
	const region subject = dev.create(12345);
	struct stat status = {};

	check(::fstat(subject.fd(), &status), "fstat");
	EXPECT_TRUE(S_ISREG(status.st_mode));
	EXPECT_EQ(status.st_size, 12345);
	EXPECT_EQ(status.st_nlink, 0u);
}

class region_file : public cowsnap_fixture {};

TEST_F(region_file, of_no_length_gets_one)
{
	const region subject = dev.create(0);

	EXPECT_EQ(subject.length(), 0u);
	EXPECT_THROW(subject.map(), std::system_error); /* of no bytes */
	subject.truncate(2 * page_size);
	EXPECT_EQ(subject.stat().length, 2 * page_size);
	subject.map().store(1, 5);
	EXPECT_EQ(subject.map().load(1), 5u);
}

TEST_F(region_file, and_its_forks_have_positions_and_lengths_of_their_own)
{
	const region parent = dev.create_pages(4);

	parent.fill_page(0, 1);
	check(::lseek(parent.fd(), 100, SEEK_SET), "lseek");

	const region child = parent.fork();

	EXPECT_EQ(::lseek(child.fd(), 0, SEEK_CUR), 0);
	EXPECT_EQ(child.length(), 4 * page_size);
	parent.truncate(10);
	EXPECT_EQ(child.length(), 4 * page_size);
	child.truncate(9 * page_size);
	EXPECT_EQ(parent.length(), 10u);
	EXPECT_EQ(child.stat().length, 9 * page_size);
	EXPECT_EQ(parent.stat().length, 10u);
}

/* Cutting a granule in two clears the part that is cut off, here alone. */
TEST_F(region_file, truncation_does_not_reach_the_snapshot)
{
	const region parent = dev.create_pages(8);

	number_pages(parent, 8, 1);

	const region snapshot = parent.snapshot();
	const region child = parent.fork();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping child_map = child.map();

	EXPECT_TRUE(is_all(shown.page(2), 3));
	EXPECT_TRUE(is_all(child_map.page(2), 3));
	parent.truncate(2 * page_size + 100);
	EXPECT_EQ(misnumbered_page(snapshot, 8, 1), -1);
	EXPECT_EQ(misnumbered_page(child, 8, 1), -1);
	EXPECT_TRUE(is_all(shown.page(2), 3));
	EXPECT_TRUE(is_all(child_map.page(2), 3));
	parent.truncate(8 * page_size);
	EXPECT_TRUE(is_all(parent.read(2 * page_size, 100), 3));
	EXPECT_TRUE(is_all(parent.read(2 * page_size + 100, page_size - 100), 0));
	EXPECT_TRUE(is_all(parent.read_page(3), 0));
	parent.truncate(0);
	EXPECT_EQ(misnumbered_page(snapshot, 8, 1), -1);
	EXPECT_EQ(misnumbered_page(child, 8, 1), -1);
	EXPECT_EQ(child.stat().referenced, 8 * page_size);
}

/* A store may reach the rest of the last page; it does not stay there. */
TEST_F(region_file, grows_by_zeroes_whatever_was_stored_beyond_its_end)
{
	for (const bool by_write : {false, true}) {
		const region parent = dev.create(page_size + 100);
		const mapping map(parent.fd(), 2 * page_size);

		fill(map.bytes(), 0xff);

		const region child = parent.fork();

		for (const region *member : {&parent, &child}) {
			if (by_write)
				member->write(3 * page_size, bytes_of(1, 1));
			else
				member->truncate(3 * page_size);
			EXPECT_TRUE(is_all(member->read(0, page_size + 100), 0xff));
			EXPECT_TRUE(is_all(member->read(page_size + 100,
							2 * page_size - 100),
					   0));
		}
	}
}

TEST_F(region_file, truncation_gives_memory_back)
{
	const region parent = dev.create_pages(100);

	number_pages(parent, 100, 0);
	parent.truncate(10 * page_size);
	EXPECT_EQ(counters(dev).held_bytes, before.held_bytes + 10 * page_size);
	EXPECT_EQ(parent.stat().referenced, 10 * page_size);
	EXPECT_EQ(parent.stat().exclusive, 10 * page_size);
	EXPECT_EQ(parent.stat().dirty, 10 * page_size);

	const region snapshot = parent.snapshot();

	parent.truncate(0);
	EXPECT_EQ(parent.stat().referenced, 0u);
	EXPECT_EQ(snapshot.stat().exclusive, 10 * page_size);
	EXPECT_EQ(counters(dev).held_bytes, before.held_bytes + 10 * page_size);
}

TEST_F(region_file, mapped_pages_beyond_the_end_raise_sigbus)
{
	const region subject = dev.create_pages(4);
	const mapping map = subject.map();

	fill(map.bytes(), 1);
	subject.truncate(page_size + 1);
	EXPECT_EQ(signal_of_load(&map.page(1)[0]), 0);
	/* What is left of the last page is zeroed at once, not when it grows. */
	EXPECT_TRUE(is_all(map.page(1).first(1), 1));
	EXPECT_TRUE(is_all(map.page(1).subspan(1), 0));
	EXPECT_EQ(signal_of_load(&map.page(2)[0]), SIGBUS);
	EXPECT_EQ(signal_of_store(&map.page(2)[0]), SIGBUS);
	EXPECT_EQ(signal_of_store(&map.page(3)[0]), SIGBUS);
	subject.truncate(3 * page_size);
	EXPECT_EQ(signal_of_load(&map.page(2)[0]), 0);
	EXPECT_TRUE(is_all(map.page(2), 0));
	EXPECT_EQ(signal_of_store(&map.page(2)[0]), 0);
	EXPECT_EQ(signal_of_load(&map.page(3)[0]), SIGBUS);
}

TEST_F(region_file, a_snapshot_cannot_be_changed)
{
	const region parent = dev.create_pages(4);

	number_pages(parent, 4, 1);

	const region snapshot = parent.snapshot();
	const std::vector<std::byte> bytes = text(100);
	const iovec part = {const_cast<std::byte *>(bytes.data()), bytes.size()};
	const pipe_pair pipe;
	const memory_file other = make_memfd(page_size);
	off_t offset = 0;

	const auto refused = [](ssize_t result) {
		return result == -1 && errno == EPERM;
	};

	EXPECT_TRUE(refused(::write(snapshot.fd(), bytes.data(), 100)));
	EXPECT_TRUE(refused(::pwrite(snapshot.fd(), bytes.data(), 100, 0)));
	EXPECT_TRUE(refused(::pwrite(snapshot.fd(), bytes.data(), 100, 9 * page)));
	EXPECT_TRUE(refused(::writev(snapshot.fd(), &part, 1)));
	EXPECT_TRUE(refused(::pwritev(snapshot.fd(), &part, 1, 0)));
	EXPECT_TRUE(refused(::ftruncate(snapshot.fd(), 0)));
	EXPECT_TRUE(refused(::fallocate(snapshot.fd(), 0, 0, page)));
	EXPECT_TRUE(refused(::ftruncate(snapshot.fd(), 9 * page)));
	EXPECT_TRUE(refused(::sendfile(snapshot.fd(), other.fd(), &offset, 100)));
	check(::write(pipe.write_end.get(), bytes.data(), 100), "write");
	EXPECT_TRUE(refused(::splice(pipe.read_end.get(), nullptr, snapshot.fd(),
				     nullptr, 100, 0)));
	/* What is wrong with the buffer does not matter any more. */
	const mapping nowhere = anonymous(page_size);

	nowhere.protect(PROT_NONE);
	EXPECT_TRUE(refused(::pwrite(snapshot.fd(), nowhere.data(), 100, 0)));
	EXPECT_EQ(misnumbered_page(snapshot, 4, 1), -1);
	EXPECT_EQ(snapshot.length(), 4 * page_size);
	EXPECT_EQ(snapshot.stat().dirty, 0u);
}

TEST_F(region_file, a_snapshot_is_read_in_every_way)
{
	const region parent = dev.create_pages(4);

	parent.fill_page(1, 5);

	const region snapshot = parent.snapshot();
	const pipe_pair pipe;
	std::vector<std::byte> bytes(page_size);
	off_t offset = page;

	parent.fill_page(1, 6);
	EXPECT_TRUE(is_all(snapshot.read_page(0), 0));
	EXPECT_TRUE(is_all(snapshot.read_page(1), 5));
	EXPECT_TRUE(is_all(snapshot.map(PROT_READ).page(1), 5));
	EXPECT_TRUE(is_all(snapshot.map(PROT_READ, MAP_PRIVATE).page(1), 5));
	EXPECT_EQ(::lseek(snapshot.fd(), 0, SEEK_DATA), page);
	EXPECT_EQ(::lseek(snapshot.fd(), page, SEEK_HOLE), 2 * page);
	move_all(page_size, [&](std::size_t left) {
		return ::sendfile(pipe.write_end.get(), snapshot.fd(), &offset, left);
	});
	check(::read(pipe.read_end.get(), bytes.data(), page_size), "read");
	EXPECT_TRUE(is_all(bytes, 5));
}

/* A buffer that is the region itself must not make it wait for itself. */
TEST_F(region_file, is_written_from_its_own_mapping)
{
	const region subject = dev.create_pages(8);
	const mapping map = subject.map();

	fill(map.page(0), 1);
	subject.write(page_size, map.page(0));
	EXPECT_TRUE(is_all(map.page(1), 1));
	/* From a page that has to fault, onto one that has to be copied. */
	fill(map.page(2), 2);

	const region snapshot = subject.snapshot();

	map.advise(MADV_DONTNEED);
	subject.write(page_size, map.page(2));
	EXPECT_TRUE(is_all(subject.read_page(1), 2));
	/* Onto itself, absent and shared. */
	map.advise(MADV_DONTNEED);
	subject.write(0, map.page(0));
	EXPECT_TRUE(is_all(subject.read_page(0), 1));
	/* From a hole onto a hole, and shifted over itself. */
	subject.write(6 * page_size, map.page(5));
	EXPECT_TRUE(is_all(subject.read_page(6), 0));
	subject.write(1, map.bytes().first(3 * page_size));
	EXPECT_TRUE(is_all(subject.read_page(0), 1));
	/* All of it at once. */
	map.advise(MADV_DONTNEED);
	subject.write(8 * page_size, map.bytes());
	EXPECT_EQ(subject.length(), 16 * page_size);
	EXPECT_EQ(subject.read(0, 8 * page_size),
		  subject.read(8 * page_size, 8 * page_size));
	EXPECT_TRUE(is_all(snapshot.read_page(0), 1));
	EXPECT_TRUE(is_all(snapshot.read_page(1), 1));
	EXPECT_TRUE(is_all(snapshot.read_page(2), 2));
}

TEST_F(region_file, is_read_into_its_own_mapping)
{
	const region subject = dev.create_pages(8);
	const mapping map = subject.map();

	number_pages(subject, 4, 1);

	const region snapshot = subject.snapshot();

	subject.read(0, map.page(6));
	EXPECT_TRUE(is_all(map.page(6), 1));
	map.advise(MADV_DONTNEED);
	subject.read(page_size, map.page(1));
	EXPECT_TRUE(is_all(map.page(1), 2));
	map.advise(MADV_DONTNEED);
	subject.read(2 * page_size, map.page(3));
	EXPECT_TRUE(is_all(map.page(3), 3));
	subject.read(5 * page_size, map.page(0));
	EXPECT_TRUE(is_all(map.page(0), 0));
	/* Into a mapping of the snapshot's parent, out of the snapshot. */
	snapshot.read(0, map.bytes());
	EXPECT_EQ(misnumbered_page(subject, 4, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, 4, 1), -1);
}

TEST_F(region_file, fdinfo_tells_what_stat_tells)
{
	const region parent = dev.create(16 * page_size, 0, "two\nlines");
	const mapping map = parent.map();

	map.store(0, 1);
	parent.fill_page(1, 1);

	const region child = parent.fork();

	map.store(0, 2);
	map.store(5, 2);
	child.map().store(2, 1);

	const region snapshot = child.snapshot();

	for (const region *member : {&parent, &child, &snapshot}) {
		std::ifstream file("/proc/self/fdinfo/" +
				   std::to_string(member->fd()));
		std::map<std::string, std::string> lines;
		std::string line;
		const cowsnap_stat stat = member->stat();

		while (std::getline(file, line)) {
			const std::size_t colon = line.find(":\t");

			if (line.starts_with("cowsnap-")) {
				ASSERT_NE(colon, std::string::npos) << line;
				lines[line.substr(8, colon - 8)] =
					line.substr(colon + 2);
			}
		}
		const auto text = [](std::uint64_t value) {
			return std::to_string(value);
		};

		EXPECT_EQ(lines, (std::map<std::string, std::string>{
					 {"id", text(stat.id)},
					 {"parent", text(stat.parent_id)},
					 {"family", text(stat.family_id)},
					 {"name", "two\\012lines"},
					 {"length", text(stat.length)},
					 {"granule", text(1u << stat.granule_shift)},
					 {"referenced", text(stat.referenced)},
					 {"exclusive", text(stat.exclusive)},
					 {"dirty", text(stat.dirty)},
					 {"generation", text(stat.generation)},
					 {"readonly",
					  text(stat.state &
					       COWSNAP_STAT_F_READONLY)},
					 {"forks", text(stat.forks)},
					 {"faults", text(stat.faults)},
					 {"copies", text(stat.copies)},
					 {"reuses", text(stat.reuses)},
					 {"zero-fills", text(stat.zero_fills)},
					 {"bytes-copied", text(stat.bytes_copied)},
				 }));
	}
}

TEST_F(region_file, its_family_carries_the_name)
{
	const auto names_of = [](const region &member) {
		const mapping map = member.map(PROT_READ);
		const std::string link = std::filesystem::read_symlink(
			"/proc/self/fd/" + std::to_string(member.fd()));
		std::ifstream maps("/proc/self/maps");
		std::ostringstream start;
		std::string line, mapped;

		start << std::hex << reinterpret_cast<std::uintptr_t>(map.data())
		      << '-';
		while (std::getline(maps, line))
			if (line.starts_with(start.str()))
				mapped = line.substr(line.find('/'));
		return std::pair(link, mapped);
	};
	const region named = dev.create(page_size, 0, "heap 1");
	const region unnamed = dev.create(page_size);
	const std::string name = "/cowsnap:heap 1 (deleted)";
	const std::string no_name = "/cowsnap (deleted)";

	EXPECT_EQ(names_of(named), std::pair(name, name));
	EXPECT_EQ(names_of(named.fork()), std::pair(name, name));
	EXPECT_EQ(names_of(named.snapshot().fork()), std::pair(name, name));
	EXPECT_EQ(names_of(unnamed), std::pair(no_name, no_name));
}

TEST_F(region_file, is_handed_to_another_process)
{
	const socket_pair sockets;
	/* Made first: it inherits no region. */
	child receiver([&] {
		const region parent(receive_fd(sockets.theirs.get()));
		const region snapshot(receive_fd(sockets.theirs.get()));
		const mapping map = parent.map();

		require(is_all(map.page(0), 1), "the region shows something else");
		require(is_all(snapshot.map(PROT_READ).page(1), 2),
			"the snapshot shows something else");
		fill(map.page(0), 3);
		parent.fill_page(1, 4);
		send_fd(sockets.theirs.get(), parent.fork().fd());
	});
	const region parent = dev.create_pages(2);

	parent.fill_page(0, 1);
	parent.fill_page(1, 2);
	{
		const region snapshot = parent.snapshot();

		send_fd(sockets.ours.get(), parent.fd());
		send_fd(sockets.ours.get(), snapshot.fd());
	}

	const region returned(receive_fd(sockets.ours.get()));

	EXPECT_TRUE(receiver.succeeded());
	EXPECT_TRUE(is_all(parent.read_page(0), 3));
	EXPECT_TRUE(is_all(parent.read_page(1), 4));
	EXPECT_TRUE(is_all(returned.read_page(0), 3));
	EXPECT_EQ(returned.stat().parent_id, parent.stat().id);
}

TEST_F(region_file, lives_in_a_message_that_nobody_has_read)
{
	const socket_pair sockets;

	{
		const region subject = dev.create_pages(1);

		subject.fill_page(0, 7);
		send_fd(sockets.ours.get(), subject.fd());
	}
	EXPECT_EQ(counters(dev).regions, before.regions + 1);
	EXPECT_TRUE(is_all(region(receive_fd(sockets.theirs.get())).read_page(0), 7));
}

TEST_F(region_file, lives_by_its_mapping_alone)
{
	region parent = dev.create_pages(4);
	mapping map = parent.map();

	number_pages(parent, 4, 1);

	const region snapshot = parent.snapshot();

	parent.close();
	EXPECT_EQ(counters(dev).regions, before.regions + 2);
	EXPECT_TRUE(is_all(map.page(3), 4));
	fill(map.page(3), 9);
	EXPECT_TRUE(is_all(map.page(3), 9));
	EXPECT_EQ(misnumbered_page(snapshot, 4, 1), -1);
	/* A part of the mapping is enough. */
	map.shrink(page_size);
	EXPECT_EQ(counters(dev).regions, before.regions + 2);
	EXPECT_TRUE(is_all(map.page(0), 1));
	map.reset();
	EXPECT_EQ(counters(dev).regions, before.regions + 1);
	EXPECT_EQ(snapshot.stat().exclusive, 4 * page_size);
}

/* What is handed on is the descriptor: it cannot be opened anew. */
TEST_F(region_file, is_not_opened_through_proc)
{
	const region subject = dev.create_pages(1);
	const std::string path = "/proc/self/fd/" + std::to_string(subject.fd());

	for (const int mode : {O_RDONLY, O_WRONLY, O_RDWR}) {
		EXPECT_EQ(::open(path.c_str(), mode | O_CLOEXEC), -1);
		EXPECT_EQ(errno, ENXIO);
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
