// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that somebody holds without a mapping while a FORK happens: in a pipe, or
 * pinned by a system call that is stopped in the middle by userfaultfd; and what
 * io_uring does later than it was told to.
 */
#include <atomic>
#include <cstdint>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/io_uring.h>
#include <linux/userfaultfd.h>

#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

class pins : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 20;

	region numbered() const
	{
		region made = dev.create_pages(pages);
		const mapping map = made.map();

		for (std::size_t page = 0; page < pages; page++)
			fill(map.page(page), static_cast<unsigned int>(page + 1));
		return made;
	}
};

TEST_F(pins, control_a_pipe_shows_what_is_written_to_its_page)
{
	const memory_file file = make_memfd(page_size);
	const mapping map = file.map();

	fill(map.bytes(), 1);

	const page_in_a_pipe held(map.page(0));

	fill(map.bytes(), 2);
	EXPECT_TRUE(is_all(held.read(), 2));
}

/* What a page in a pipe must not show does not depend on how it got there. */
enum class way { vmsplice, splice };

class pages_in_pipes : public pins, public testing::WithParamInterface<way> {
protected:
	static page_in_a_pipe hold(const region &file, std::size_t page)
	{
		if (GetParam() == way::splice)
			return page_in_a_pipe(file, page);
		return page_in_a_pipe(file.map(PROT_READ).page(page));
	}
};

INSTANTIATE_TEST_SUITE_P(, pages_in_pipes,
			 testing::Values(way::vmsplice, way::splice),
			 [](const auto &info) {
				 return info.param == way::splice ? "splice"
								  : "vmsplice";
			 });

/* Held before the FORK: the child must not write where the pipe looks. */
TEST_P(pages_in_pipes, from_before_a_fork_do_not_show_what_the_child_writes)
{
	const region parent = numbered();
	const page_in_a_pipe held = hold(parent, 0);
	const region child = parent.fork();

	fill(child.map().bytes(), 99);
	EXPECT_TRUE(is_all(held.read(), 1));
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
}

TEST_P(pages_in_pipes, from_before_a_fork_do_not_show_what_the_child_writes_alone)
{
	region parent = numbered();
	const page_in_a_pipe held = hold(parent, 0);
	const page_in_a_pipe held_on = hold(parent, 1);
	const region child = parent.fork();

	/* The child is the only owner then, but not the only one who sees it. */
	parent.close();
	child.fill_page(0, 98);
	fill(child.map().bytes(), 99);
	EXPECT_TRUE(is_all(held.read(), 1));
	EXPECT_TRUE(is_all(held_on.read(), 2));
}

/* The child has a copy from the start, and the page stays its parent's own. */
TEST_F(pins, in_a_pipe_over_a_fork_stay_the_parents)
{
	const region parent = numbered();
	const mapping map = parent.map();
	const page_in_a_pipe held(map.page(0));
	const region snapshot = parent.snapshot();

	EXPECT_EQ(snapshot.stat().exclusive, page_size);
	EXPECT_EQ(parent.stat().exclusive, page_size);
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  (pages + 1) * page_size);
	fill(map.page(0), 50);
	/* Written in place: the pipe shows it, as it would a memfd's. */
	EXPECT_TRUE(is_all(held.read(), 50));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);

	/* And so over a second FORK; after the pipe let go it is shared. */
	const region second = parent.snapshot();

	EXPECT_EQ(parent.stat().exclusive, 0u);
	EXPECT_TRUE(is_all(second.read_page(0), 50));
	fill(map.page(0), 51);
	EXPECT_TRUE(is_all(second.read_page(0), 50));
	EXPECT_TRUE(is_all(snapshot.read_page(0), 1));
}

TEST_F(pins, over_two_forks)
{
	const region parent = numbered();
	const mapping map = parent.map();
	const page_in_a_pipe held(map.page(7));
	const region first = parent.snapshot();

	fill(map.page(7), 50);

	const region second = parent.fork();

	fill(map.page(7), 51);
	fill(second.map().page(7), 52);
	EXPECT_TRUE(is_all(held.read(), 51));
	EXPECT_TRUE(is_all(first.read_page(7), 8));
	EXPECT_TRUE(is_all(second.read_page(7), 52));
	EXPECT_TRUE(is_all(parent.read_page(7), 51));
}

/* Held after the FORK: from the child, while the parent writes. */
TEST_P(pages_in_pipes, of_the_child_do_not_show_what_the_parent_writes)
{
	const region parent = numbered();
	const mapping map = parent.map();
	region child = parent.fork();
	const page_in_a_pipe held = hold(child, 0);
	const page_in_a_pipe held_on = hold(child, 1);

	fill(map.page(0), 99);
	EXPECT_TRUE(is_all(held.read(), 1));
	child.close();
	fill(map.page(1), 98);
	parent.write(page_size, bytes_of(100, 97));
	EXPECT_TRUE(is_all(held_on.read(), 2));
}

TEST_P(pages_in_pipes, of_the_parent_do_not_show_what_the_child_writes)
{
	region parent = numbered();
	const region child = parent.fork();
	const mapping child_map = child.map();
	const page_in_a_pipe held = hold(parent, 0);
	const page_in_a_pipe held_on = hold(parent, 1);

	fill(child_map.page(0), 99);
	EXPECT_TRUE(is_all(held.read(), 1));
	parent.close();
	fill(child_map.page(1), 98);
	EXPECT_TRUE(is_all(held_on.read(), 2));
}

TEST_P(pages_in_pipes, of_a_snapshot_show_the_snapshot)
{
	const region parent = numbered();
	const mapping map = parent.map();
	region snapshot = parent.snapshot();
	const page_in_a_pipe held = hold(snapshot, 0);

	snapshot.close();
	fill(map.bytes(), 99);
	EXPECT_TRUE(is_all(held.read(), 1));
}

/* The zero page, too, is held by reference; what is written goes elsewhere. */
TEST_P(pages_in_pipes, of_a_hole_show_a_hole)
{
	const region parent = dev.create_pages(2);
	const page_in_a_pipe held = hold(parent, 0);
	const region child = parent.fork();

	fill(parent.map().page(0), 1);
	fill(child.map().page(0), 2);
	EXPECT_TRUE(is_all(held.read(), 0));
}

/* The page outlives the region, and is not the module's any more. */
TEST_P(pages_in_pipes, outlive_the_region)
{
	region parent = numbered();
	const page_in_a_pipe held = hold(parent, 4);

	parent.close();
	EXPECT_EQ(counters(dev), before);
	EXPECT_TRUE(is_all(held.read(), 5));
}

/*
 * Memory whose first touch waits until the test says what it holds: a system call
 * that copies from or to it stops in the middle, with what it pinned.
 */
class waiting_memory {
public:
	waiting_memory()
		: uffd_(static_cast<int>(::syscall(SYS_userfaultfd,
						   O_CLOEXEC | O_NONBLOCK))),
		  memory_(anonymous(page_size))
	{
		if (!uffd_)
			return;

		uffdio_api api = {UFFD_API, 0, 0};
		uffdio_register arg = {address_range(),
				       UFFDIO_REGISTER_MODE_MISSING, 0};

		check(::ioctl(uffd_.get(), UFFDIO_API, &api), "UFFDIO_API");
		check(::ioctl(uffd_.get(), UFFDIO_REGISTER, &arg),
		      "UFFDIO_REGISTER");
	}

	bool supported() const { return static_cast<bool>(uffd_); }
	std::byte *data() const { return memory_.data(); }

	/* Waits until somebody waits. */
	void await() const
	{
		pollfd wanted = {uffd_.get(), POLLIN, 0};
		uffd_msg message = {};

		if (check(::poll(&wanted, 1, 30'000), "poll") == 0)
			throw std::runtime_error("nobody touched the memory");
		check(::read(uffd_.get(), &message, sizeof(message)), "read");
	}

	/* Lets who waits go on, with @value in the page. */
	void provide(unsigned int value) const
	{
		std::vector<std::byte> bytes = bytes_of(page_size, value);
		uffdio_copy arg = {};

		arg.dst = reinterpret_cast<std::uintptr_t>(memory_.data());
		arg.src = reinterpret_cast<std::uintptr_t>(bytes.data());
		arg.len = page_size;
		check(::ioctl(uffd_.get(), UFFDIO_COPY, &arg), "UFFDIO_COPY");
	}

private:
	uffdio_range address_range() const
	{
		return {reinterpret_cast<std::uintptr_t>(memory_.data()),
			memory_.size()};
	}

	unique_fd uffd_;
	mapping memory_;
};

class stopped_calls : public pins {
protected:
	void SetUp() override
	{
		if (!source.supported())
			GTEST_SKIP() << "this kernel has no userfaultfd";
	}

	/* FORK must not wait for a call that waits for the test itself. */
	static region fork_in_time(const region &parent)
	{
		region made;
		std::atomic<bool> done = false;
		std::thread forker([&] {
			made = parent.fork();
			done = true;
		});
		const bool in_time = eventually([&] { return done.load(); },
						std::chrono::seconds(20));

		EXPECT_TRUE(in_time) << "FORK waits for a stopped system call";
		if (!in_time) {
			forker.detach();
			throw std::runtime_error("FORK hangs");
		}
		forker.join();
		return made;
	}

	waiting_memory source;
};

/*
 * process_vm_writev(2) pins the pages that it writes to, then waits for what to
 * write: what a device's DMA does.  The parent gets the bytes, nobody else.
 */
TEST_F(stopped_calls, write_to_pages_that_they_pinned)
{
	const region parent = numbered();
	const mapping map = parent.map();
	std::thread writer([&] {
		const iovec local = {source.data(), page_size};
		const iovec remote = {map.page(3).data(), page_size};

		EXPECT_EQ(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0),
			  static_cast<ssize_t>(page_size));
	});

	source.await();

	const region child = fork_in_time(parent);
	const region snapshot = parent.snapshot();

	source.provide(99);
	writer.join();
	EXPECT_TRUE(is_all(map.page(3), 99));
	EXPECT_TRUE(is_all(parent.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(child, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	EXPECT_EQ(child.stat().exclusive, page_size);

	/* Over: the next FORK shares the page as any other. */
	const region next = parent.snapshot();

	EXPECT_EQ(next.stat().exclusive, 0u);
	EXPECT_TRUE(is_all(next.read_page(3), 99));
	fill(map.page(3), 98);
	EXPECT_TRUE(is_all(next.read_page(3), 99));
}

/* The pin is on the page, not on the mapping: it may be gone meanwhile. */
TEST_F(stopped_calls, write_to_pages_that_were_written_since)
{
	const region parent = numbered();
	const mapping map = parent.map();
	std::thread writer([&] {
		const iovec local = {source.data(), 100};
		const iovec remote = {map.page(3).data(), 100};

		EXPECT_EQ(::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0),
			  100);
	});

	source.await();

	const region child = fork_in_time(parent);

	/* The parent's store must not move the page away from the pin. */
	fill(map.page(3), 50);
	fill(child.map().page(3), 60);

	const region snapshot = fork_in_time(parent);

	source.provide(99);
	writer.join();
	EXPECT_TRUE(is_all(map.page(3).first(100), 99));
	EXPECT_TRUE(is_all(map.page(3).subspan(100), 50));
	EXPECT_TRUE(is_all(child.read_page(3), 60));
	EXPECT_TRUE(is_all(snapshot.read_page(3), 50));
}

/* A write(2) whose bytes are not there yet is not a reason to wait. */
TEST_F(stopped_calls, of_write_do_not_stop_forks)
{
	const region parent = numbered();
	std::thread writer([&] {
		EXPECT_EQ(::pwrite(parent.fd(), source.data(), page_size,
				   static_cast<off_t>(3 * page_size)),
			  static_cast<ssize_t>(page_size));
	});

	source.await();

	const region child = fork_in_time(parent);
	const mapping map = parent.map();

	map.store(5, 1); /* nor for others to store, or to ask */
	EXPECT_EQ(parent.stat().forks, 1u);
	source.provide(99);
	writer.join();
	EXPECT_TRUE(is_all(parent.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(child, pages, 1), -1);
}

TEST_F(stopped_calls, of_read_do_not_stop_forks)
{
	const region parent = numbered();
	std::thread reader([&] {
		EXPECT_EQ(::pread(parent.fd(), source.data(), page_size,
				  static_cast<off_t>(3 * page_size)),
			  static_cast<ssize_t>(page_size));
	});

	source.await();

	const region child = fork_in_time(parent);

	parent.map().store(3, 1);
	child.fill_page(3, 60);
	source.provide(0);
	reader.join();
	EXPECT_EQ(std::ranges::count(std::span(source.data(), page_size),
				     std::byte{60}),
		  0);
	EXPECT_TRUE(is_all(child.read_page(3), 60));
}

TEST_F(stopped_calls, of_write_let_a_waiting_restore_be_killed)
{
	const region parent = numbered();
	const region snapshot = parent.snapshot();
	std::thread writer([&] {
		EXPECT_EQ(::pwrite(parent.fd(), source.data(), page_size,
				   static_cast<off_t>(3 * page_size)),
			  static_cast<ssize_t>(page_size));
	});

	source.await();
	child restorer([&] { parent.restore(snapshot); });
	std::this_thread::sleep_for(std::chrono::seconds(1));
	::kill(restorer.pid(), SIGKILL);
	EXPECT_TRUE(eventually([&] {
		siginfo_t info = {};

		return ::waitid(P_PID, static_cast<id_t>(restorer.pid()), &info,
				WEXITED | WNOHANG | WNOWAIT) == 0 &&
		       info.si_pid != 0;
	}, std::chrono::seconds(5))) << "RESTORE cannot be killed";
	source.provide(99);
	writer.join();
}

/* A page pinned for reading through the snapshot stays the snapshot's. */
TEST_F(stopped_calls, that_read_from_a_closed_snapshot)
{
	const region parent = numbered();
	const mapping map = parent.map();
	region snapshot = parent.snapshot();
	mapping shown = snapshot.map(PROT_READ);
	std::thread reader([&] {
		const iovec local = {source.data(), page_size};
		const iovec remote = {shown.page(3).data(), page_size};

		EXPECT_EQ(::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0),
			  static_cast<ssize_t>(page_size));
	});

	source.await();
	shown.reset();
	snapshot.close();
	fill(map.bytes(), 99);
	EXPECT_EQ(parent.stat().copies, 1u);
	source.provide(0);
	reader.join();
	EXPECT_TRUE(is_all(std::span(source.data(), page_size), 4));
}

/* The little of io_uring that one operation at a time needs. */
class io_ring {
public:
	io_ring()
	{
		io_uring_params params = {};

		ring_ = unique_fd(static_cast<int>(
			::syscall(SYS_io_uring_setup, 4, &params)));
		if (!ring_)
			return;
		head_ = params.cq_off.head;
		tail_ = params.sq_off.tail;
		array_ = params.sq_off.array;
		mask_ = params.sq_off.ring_mask;
		completions_ = params.cq_off.cqes;
		completion_mask_ = params.cq_off.ring_mask;
		submission_ring_ = mapping(ring_.get(),
					   array_ + params.sq_entries * 4,
					   PROT_READ | PROT_WRITE, MAP_SHARED,
					   IORING_OFF_SQ_RING);
		completion_ring_ =
			mapping(ring_.get(),
				completions_ +
					params.cq_entries * sizeof(io_uring_cqe),
				PROT_READ | PROT_WRITE, MAP_SHARED,
				IORING_OFF_CQ_RING);
		entries_ = mapping(ring_.get(),
				   params.sq_entries * sizeof(io_uring_sqe),
				   PROT_READ | PROT_WRITE, MAP_SHARED,
				   IORING_OFF_SQES);
	}

	bool supported() const { return static_cast<bool>(ring_); }

	/* errno of registering @buffer as number 0. */
	int register_buffer(std::span<std::byte> buffer) const
	{
		const iovec part = {buffer.data(), buffer.size()};

		return ::syscall(SYS_io_uring_register, ring_.get(),
				 IORING_REGISTER_BUFFERS, &part, 1)
			       ? errno
			       : 0;
	}

	/* Begins to read from, or to write to, @fd; does not wait. */
	void submit(std::uint8_t operation, int fd, std::span<std::byte> buffer,
		    std::uint64_t offset)
	{
		auto *const entry =
			reinterpret_cast<io_uring_sqe *>(entries_.data());
		const std::uint32_t tail = *word(submission_ring_, tail_);

		std::memset(entry, 0, sizeof(*entry));
		entry->opcode = operation;
		entry->fd = fd;
		entry->off = offset;
		entry->addr = reinterpret_cast<std::uintptr_t>(buffer.data());
		entry->len = static_cast<std::uint32_t>(buffer.size());
		word(submission_ring_,
		     array_)[tail & *word(submission_ring_, mask_)] = 0;
		__atomic_store_n(word(submission_ring_, tail_), tail + 1,
				 __ATOMIC_RELEASE);
		enter(1, 0);
	}

	/* Waits for the end of what was submitted. */
	int result()
	{
		enter(0, 1);

		const std::uint32_t head = *word(completion_ring_, head_);
		const auto *const completion =
			reinterpret_cast<io_uring_cqe *>(completion_ring_.data() +
							 completions_) +
			(head & *word(completion_ring_, completion_mask_));
		const int result = completion->res;

		__atomic_store_n(word(completion_ring_, head_), head + 1,
				 __ATOMIC_RELEASE);
		return result;
	}

private:
	static std::uint32_t *word(const mapping &ring, std::uint32_t offset)
	{
		return reinterpret_cast<std::uint32_t *>(ring.data() + offset);
	}

	void enter(unsigned int submit, unsigned int wait) const
	{
		check(::syscall(SYS_io_uring_enter, ring_.get(), submit, wait,
				wait ? IORING_ENTER_GETEVENTS : 0, nullptr, 0),
		      "io_uring_enter");
	}

	unique_fd ring_;
	mapping submission_ring_, completion_ring_, entries_;
	std::uint32_t head_ = 0, tail_ = 0, array_ = 0, mask_ = 0;
	std::uint32_t completions_ = 0, completion_mask_ = 0;
};

/* What io_uring would pin for as long as it likes, it is not given. */
TEST_F(pins, of_io_uring_for_good_are_refused)
{
	const region parent = numbered();
	const mapping map = parent.map();
	const io_ring ring;

	if (!ring.supported())
		GTEST_SKIP() << "this kernel has no io_uring";

	const int error = ring.register_buffer(map.page(3));

	EXPECT_TRUE(error == EFAULT || error == EOPNOTSUPP) << error;
	EXPECT_EQ(parent.snapshot().stat().exclusive, 0u);
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
}

/* A read that ends after the FORK writes to the parent alone. */
TEST_F(pins, of_io_uring_that_waits_do_not_reach_the_child)
{
	const region parent = numbered();
	const mapping map = parent.map();
	const pipe_pair pipe;
	std::vector<std::byte> bytes = bytes_of(page_size, 99);
	io_ring ring;

	if (!ring.supported())
		GTEST_SKIP() << "this kernel has no io_uring";
	ring.submit(IORING_OP_READ, pipe.read_end.get(), map.page(3), 0);

	const region child = parent.fork();
	const region snapshot = parent.snapshot();

	check(::write(pipe.write_end.get(), bytes.data(), page_size), "write");
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(map.page(3), 99));
	EXPECT_TRUE(is_all(parent.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(child, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);

	/* And on the descriptors: a write to one side, a read of the other. */
	ring.submit(IORING_OP_WRITE, child.fd(), bytes, 5 * page_size);
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(child.read_page(5), 99));
	ring.submit(IORING_OP_READ, parent.fd(), bytes, 5 * page_size);
	ASSERT_EQ(ring.result(), static_cast<int>(page_size));
	EXPECT_TRUE(is_all(bytes, 6));
	ring.submit(IORING_OP_WRITE, snapshot.fd(), bytes, 0);
	EXPECT_EQ(ring.result(), -EPERM);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
