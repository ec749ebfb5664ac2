// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that somebody holds without a mapping while a FORK or a RESTORE happens:
 * in a pipe, in a socket, or in the middle of a system call or of the I/O of a
 * device, which the test stops there.
 */
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "fixture.hpp"
#include "fuse_file.hpp"
#include "ktap.hpp"
#include "meminfo.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"
#include "relatives.hpp"
#include "unsent_page.hpp"
#include "waiting_memory.hpp"

using namespace cowsnap_test;

namespace {

class pins : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 32;

	/* FORK and RESTORE must not wait for who waits for the test itself. */
	template <typename Action>
	static void in_time(Action action)
	{
		std::atomic<bool> done = false;
		std::thread actor([&] {
			action();
			done = true;
		});
		const bool in_time = eventually([&] { return done.load(); },
						std::chrono::seconds(20));

		EXPECT_TRUE(in_time) << "it waits for what has pinned a page";
		if (!in_time) {
			actor.detach();
			throw std::runtime_error("FORK or RESTORE hangs");
		}
		actor.join();
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

/* The child has a copy from the start, and the page stays its parent's own. */
TEST_F(pins, in_a_pipe_over_a_fork_stay_the_parents)
{
	const region parent = numbered(pages);
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
	const region parent = numbered(pages);
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

/* Who holds a page to read it later. */
class reader {
public:
	virtual ~reader() = default;
	/* What the page shows by now; lets go of it. */
	virtual std::vector<std::byte> read() = 0;
};

/* How the page got there does not matter for what it must not show. */
enum class reading {
	vmsplice,
	vmsplice_as_a_gift,
	splice,
	tcp_zerocopy,
	process_vm_readv,
	direct_write,
};

const char *name_of(reading how)
{
	switch (how) {
	case reading::vmsplice:
		return "vmsplice";
	case reading::vmsplice_as_a_gift:
		return "vmsplice_as_a_gift";
	case reading::splice:
		return "splice";
	case reading::tcp_zerocopy:
		return "tcp_zerocopy";
	case reading::process_vm_readv:
		return "process_vm_readv";
	case reading::direct_write:
		return "direct_write";
	}
	return "";
}

/* A pipe or a socket. */
template <typename Holder>
class passive_reader final : public reader {
public:
	template <typename... Arguments>
	explicit passive_reader(Arguments &&...arguments)
		: holder_(std::forward<Arguments>(arguments)...)
	{
	}

	std::vector<std::byte> read() override { return holder_.read(); }

private:
	Holder holder_;
};

/*
 * A system call that has pinned a page and waits for @Device to go on.  Without
 * an end it ends when that is gone.
 */
template <typename Device>
class stopped_call {
protected:
	template <typename Call>
	void begin(Call call)
	{
		call_.emplace(call);
		device_.await();
	}
	void end(std::size_t size) { call_->expect(static_cast<ssize_t>(size)); }

	const Device &device() const { return device_; }

private:
	std::optional<call_in_a_thread> call_;
	Device device_;
};

class process_vm_reader final : public reader, stopped_call<waiting_memory> {
public:
	explicit process_vm_reader(std::span<std::byte> page)
	{
		begin([this, page] {
			const iovec local = {device().data(), page_size};
			const iovec remote = {page.data(), page_size};

			return ::process_vm_readv(::getpid(), &local, 1, &remote, 1,
						  0);
		});
	}

	std::vector<std::byte> read() override
	{
		device().provide(0);
		end(page_size);
		return {device().data(), device().data() + page_size};
	}
};

class direct_writer_of_a_file final : public reader, stopped_call<direct_file> {
public:
	explicit direct_writer_of_a_file(std::span<std::byte> page)
	{
		begin([this, page] {
			return ::pwrite(device().fd(), page.data(), page_size, 0);
		});
	}

	std::vector<std::byte> read() override
	{
		const std::vector<std::byte> bytes = device().take();

		end(page_size);
		return bytes;
	}
};

/* Holds a page of @file, which is mapped meanwhile only. */
std::unique_ptr<reader> hold(reading how, const region &file, std::size_t index)
{
	const mapping map = file.map(PROT_READ);
	const std::span<std::byte> page = map.page(index);

	switch (how) {
	case reading::vmsplice:
		return std::make_unique<passive_reader<page_in_a_pipe>>(page);
	case reading::vmsplice_as_a_gift:
		return std::make_unique<passive_reader<page_in_a_pipe>>(
			page, SPLICE_F_GIFT);
	case reading::splice:
		return std::make_unique<passive_reader<page_in_a_pipe>>(file, index);
	case reading::tcp_zerocopy:
		return std::make_unique<passive_reader<unsent_page>>(page);
	case reading::process_vm_readv:
		return std::make_unique<process_vm_reader>(page);
	case reading::direct_write:
		return std::make_unique<direct_writer_of_a_file>(page);
	}
	return nullptr;
}

/* What is missing for it, nothing when it can be done. */
std::string missing_for(reading how)
{
	if (how == reading::process_vm_readv && !waiting_memory().supported())
		return "this kernel has no userfaultfd";
	if (how == reading::direct_write && !direct_file::supported())
		return "this kernel has no FUSE";
	return {};
}

const auto all_ways_to_read =
	testing::Values(reading::vmsplice, reading::vmsplice_as_a_gift,
			reading::splice, reading::tcp_zerocopy,
			reading::process_vm_readv, reading::direct_write);

class held_to_be_read : public pins,
			public testing::WithParamInterface<
				std::tuple<reading, sharing>> {
protected:
	void SetUp() override
	{
		const std::string missing = missing_for(std::get<reading>(GetParam()));

		if (!missing.empty())
			GTEST_SKIP() << missing;
	}

	static std::unique_ptr<reader> hold(const region &file, std::size_t page)
	{
		return ::hold(std::get<reading>(GetParam()), file, page);
	}

	relatives related() const
	{
		return {dev, std::get<sharing>(GetParam()), pages};
	}
	static void share(relatives &both)
	{
		in_time([&] { both.share(); });
	}

	/* In another granule than the first page. */
	static constexpr std::size_t last = pages - 1;

	/* Two ways to write, which a holder must see neither of. */
	static void write(const region &file, std::size_t page)
	{
		file.write(page * page_size, bytes_of(100, 97));
		fill(file.map().page(page), 98);
	}

	/* Who holds pages of @one sees nothing of @other's, and not when that is left. */
	static void expect_not_shown(region &one, mapping &one_map,
				     const region &other)
	{
		const auto held = hold(one, 0);
		const auto held_on = hold(one, last);

		write(other, 0);
		EXPECT_TRUE(is_all(held->read(), 1));
		one_map.reset();
		one.close();
		write(other, last);
		EXPECT_TRUE(is_all(held_on->read(), pages));
	}
};

/* By pages, and by granules of 16 pages. */
const auto each_sharing =
	testing::Values(sharing{operation::fork}, sharing{operation::restore},
			sharing{operation::fork, page_shift + 4},
			sharing{operation::restore, page_shift + 4});

const auto name_of_pair = [](const auto &info) {
	return std::string(name_of(std::get<0>(info.param))) + "_over_" +
	       name_of(std::get<1>(info.param));
};

INSTANTIATE_TEST_SUITE_P(, held_to_be_read,
			 testing::Combine(all_ways_to_read, each_sharing),
			 name_of_pair);

TEST_P(held_to_be_read, from_before_it_does_not_show_what_the_copy_writes)
{
	relatives both = related();
	const auto held = hold(both.source, 0);
	const auto held_on = hold(both.source, last);

	share(both);
	write(both.copy, 0);
	EXPECT_TRUE(is_all(held->read(), 1));
	EXPECT_EQ(misnumbered_page(both.source, pages, 1), -1);

	/* The copy is the only owner then, but not the only one who sees it. */
	both.source_map.reset();
	both.source.close();
	write(both.copy, last);
	EXPECT_TRUE(is_all(held_on->read(), pages));
}

TEST_P(held_to_be_read, from_the_source_it_does_not_show_what_the_copy_writes)
{
	relatives both = related();

	share(both);
	expect_not_shown(both.source, both.source_map, both.copy);
}

TEST_P(held_to_be_read, from_the_copy_it_does_not_show_what_the_source_writes)
{
	relatives both = related();

	share(both);
	expect_not_shown(both.copy, both.copy_map, both.source);
}

/* It is a copy's page that is shared, so the write goes to another. */
TEST_P(held_to_be_read, from_the_writer_it_shows_the_time_of_the_holding)
{
	relatives both = related();

	share(both);

	const auto held = hold(both.source, 0);
	const auto held_of_the_copy = hold(both.copy, last);

	write(both.source, 0);
	write(both.copy, last);
	EXPECT_TRUE(is_all(held->read(), 1));
	EXPECT_TRUE(is_all(held_of_the_copy->read(), pages));
}

class held_of_one_region : public pins,
			   public testing::WithParamInterface<reading> {
protected:
	void SetUp() override
	{
		const std::string missing = missing_for(GetParam());

		if (!missing.empty())
			GTEST_SKIP() << missing;
	}

	static std::unique_ptr<reader> hold(const region &file, std::size_t page)
	{
		return ::hold(GetParam(), file, page);
	}
};

INSTANTIATE_TEST_SUITE_P(, held_of_one_region, all_ways_to_read,
			 [](const auto &info) { return name_of(info.param); });

/* What RESTORE takes away from the region stays the holder's. */
TEST_P(held_of_one_region, shows_what_a_restore_took_away)
{
	relatives both(dev, {operation::restore}, pages);
	const auto held = hold(both.copy, 0);
	const auto held_on = hold(both.copy, 1);

	in_time([&] { both.share(); });
	fill(both.copy_map.page(0), 98);
	fill(both.source_map.page(1), 99);
	EXPECT_TRUE(is_all(held->read(), relatives::copy_first));
	EXPECT_TRUE(is_all(held_on->read(), relatives::copy_first + 1));
	EXPECT_TRUE(is_all(both.copy.read_page(1), 2));
}

TEST_P(held_of_one_region, of_a_snapshot_shows_the_snapshot)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	region snapshot = parent.snapshot();
	const auto held = hold(snapshot, 3);

	snapshot.close();
	fill(map.bytes(), 99);
	/* The one page alone is copied, if it is held and not a copy itself. */
	EXPECT_LE(parent.stat().copies, 1u);
	EXPECT_TRUE(is_all(held->read(), 4));
}

/* The zero page, too, is held by reference; what is written goes elsewhere. */
TEST_P(held_of_one_region, of_a_hole_shows_a_hole)
{
	const region parent = dev.create_pages(2);
	const auto held = hold(parent, 0);
	const region child = parent.fork();

	fill(parent.map().page(0), 1);
	fill(child.map().page(0), 2);
	EXPECT_TRUE(is_all(held->read(), 0));
}

/* The page outlives the region, and is not the module's any more. */
TEST_P(held_of_one_region, outlives_the_region)
{
	region parent = numbered(pages);
	const auto held = hold(parent, 4);

	parent.close();
	EXPECT_EQ(counters(dev), before);
	EXPECT_TRUE(is_all(held->read(), 5));
}

/* A page in a pipe may be taken by who reads it, but not from a region. */
class gifts : public pins {
protected:
	void SetUp() override
	{
		if (!fuse_file::supported())
			GTEST_SKIP() << "this kernel has no FUSE";
	}
};

TEST_F(gifts, are_not_taken_from_a_region)
{
	const region parent = numbered(pages);
	page_taking_file file(parent.map().page(3));
	const region child = parent.fork();

	EXPECT_TRUE(is_all(file.read_first(), 4));
	fill(parent.map().page(3), 50);
	fill(child.map().page(3), 60);
	EXPECT_TRUE(is_all(file.read_again(), 4));
	EXPECT_TRUE(is_all(parent.read_page(3), 50));
	EXPECT_TRUE(is_all(child.read_page(3), 60));
}

/* Nor from the region that is left of two, which could write it in place. */
TEST_F(gifts, are_not_taken_from_the_last_region)
{
	const region parent = numbered(pages);
	region child = parent.fork();
	page_taking_file file(child.map().page(3));

	child.close();
	EXPECT_TRUE(is_all(file.read_first(), 4));
	fill(parent.map().page(3), 50);
	EXPECT_TRUE(is_all(file.read_again(), 4));
	EXPECT_TRUE(is_all(parent.read_page(3), 50));
}

TEST_F(gifts, are_taken_when_the_region_is_gone)
{
	region parent = numbered(pages);
	mapping map = parent.map(PROT_READ);

	(void)map.load(3);

	const std::uint64_t frame = page_entry(map.page(3).data()).frame();
	page_taking_file file(map.page(3));

	map.reset();
	parent.close();
	EXPECT_TRUE(is_all(file.read_first(), 4));
	EXPECT_TRUE(is_all(file.read_again(), 4));

	const mapping shown(file.fd(), page_size, PROT_READ);

	(void)shown.load(0);
	EXPECT_EQ(page_entry(shown.data()).frame(), frame);
}

/* One of many pages that were allocated at once may be, or else is copied. */
TEST_F(gifts, of_a_larger_granule_are_right_when_the_region_is_gone)
{
	region parent = dev.create(pages * page_size, 0, {}, page_shift + 4);

	number_pages(parent, pages, 1);

	page_taking_file first(parent.map().page(0));
	page_taking_file other(parent.map().page(3));

	parent.close();
	EXPECT_TRUE(is_all(first.read_first(), 1));
	EXPECT_TRUE(is_all(other.read_first(), 4));
	EXPECT_TRUE(is_all(first.read_again(), 1));
	EXPECT_TRUE(is_all(other.read_again(), 4));
}

/* Who has pinned the first bytes of a page to write them later. */
class writer {
public:
	virtual ~writer() = default;
	virtual void write(unsigned int value) = 0;
};

enum class writing { process_vm_writev, direct_read };

const char *name_of(writing how)
{
	return how == writing::direct_read ? "direct_read" : "process_vm_writev";
}

class process_vm_writer final : public writer, stopped_call<waiting_memory> {
public:
	explicit process_vm_writer(std::span<std::byte> target)
		: size_(target.size())
	{
		begin([this, target] {
			const iovec local = {device().data(), target.size()};
			const iovec remote = {target.data(), target.size()};

			return ::process_vm_writev(::getpid(), &local, 1, &remote, 1,
						   0);
		});
	}

	void write(unsigned int value) override
	{
		device().provide(value);
		end(size_);
	}

private:
	std::size_t size_;
};

class direct_reader_of_a_file final : public writer, stopped_call<direct_file> {
public:
	explicit direct_reader_of_a_file(std::span<std::byte> target)
		: size_(target.size())
	{
		begin([this, target] {
			return ::pread(device().fd(), target.data(), target.size(),
				       0);
		});
	}

	void write(unsigned int value) override
	{
		device().provide(bytes_of(size_, value));
		end(size_);
	}

private:
	std::size_t size_;
};

class pinned_to_be_written : public pins,
			     public testing::WithParamInterface<
				     std::tuple<writing, sharing>> {
protected:
	void SetUp() override
	{
		const writing how = std::get<writing>(GetParam());

		if (how == writing::direct_read ? !direct_file::supported()
						: !waiting_memory().supported())
			GTEST_SKIP() << "this kernel has no "
				     << (how == writing::direct_read
						 ? "FUSE"
						 : "userfaultfd");
	}

	static std::unique_ptr<writer> pin(std::span<std::byte> target)
	{
		if (std::get<writing>(GetParam()) == writing::direct_read)
			return std::make_unique<direct_reader_of_a_file>(target);
		return std::make_unique<process_vm_writer>(target);
	}

	relatives related() const
	{
		return {dev, std::get<sharing>(GetParam()), pages};
	}
	static void share(relatives &both)
	{
		in_time([&] { both.share(); });
	}
};

INSTANTIATE_TEST_SUITE_P(, pinned_to_be_written,
			 testing::Combine(testing::Values(writing::process_vm_writev,
							  writing::direct_read),
					  each_sharing),
			 name_of_pair);

/* What a device's DMA does: the source gets the bytes, nobody else. */
TEST_P(pinned_to_be_written, from_before_it_writes_to_the_source)
{
	relatives both = related();
	const auto pinned = pin(both.source_map.page(3));

	share(both);

	const region snapshot = both.source.snapshot();

	EXPECT_EQ(both.copy.stat().exclusive, both.granule());
	pinned->write(99);
	EXPECT_TRUE(is_all(both.source_map.page(3), 99));
	EXPECT_TRUE(is_all(both.source.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(both.copy, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);

	/* Over: the next FORK shares the page as any other. */
	const region next = both.source.snapshot();

	EXPECT_EQ(next.stat().exclusive, 0u);
	EXPECT_TRUE(is_all(next.read_page(3), 99));
	fill(both.source_map.page(3), 98);
	EXPECT_TRUE(is_all(next.read_page(3), 99));
}

/* The source's stores must not move the page away from the pin. */
TEST_P(pinned_to_be_written, from_before_it_writes_to_what_was_written_since)
{
	relatives both = related();
	const auto pinned = pin(both.source_map.page(3).first(100));

	share(both);
	fill(both.source_map.page(3), 50);
	fill(both.copy_map.page(3), 60);

	region snapshot;

	in_time([&] { snapshot = both.source.snapshot(); });
	both.source_map.protect(PROT_READ);
	both.source_map.protect(PROT_READ | PROT_WRITE);
	fill(both.source_map.page(3), 51);
	pinned->write(99);
	EXPECT_TRUE(is_all(both.source_map.page(3).first(100), 99));
	EXPECT_TRUE(is_all(both.source_map.page(3).subspan(100), 51));
	EXPECT_TRUE(is_all(both.copy.read_page(3), 60));
	EXPECT_TRUE(is_all(snapshot.read_page(3), 50));
}

/* A pin that is taken later is a write, which ends the sharing first. */
TEST_P(pinned_to_be_written, afterwards_it_writes_to_its_own_side)
{
	relatives both = related();

	share(both);

	const auto of_the_source = pin(both.source_map.page(3));
	const auto of_the_copy = pin(both.copy_map.page(20));

	EXPECT_EQ(both.source.stat().exclusive, 2 * both.granule());
	of_the_source->write(99);
	of_the_copy->write(98);
	EXPECT_TRUE(is_all(both.source.read_page(3), 99));
	EXPECT_TRUE(is_all(both.source.read_page(20), 21));
	EXPECT_TRUE(is_all(both.copy.read_page(3), 4));
	EXPECT_TRUE(is_all(both.copy.read_page(20), 98));
}

TEST_P(pinned_to_be_written, of_a_closed_region_it_writes_to_nobody)
{
	relatives both = related();
	const auto before_it = pin(both.source_map.page(3));

	share(both);

	const auto after_it = pin(both.source_map.page(20));

	both.source_map.reset();
	both.source.close();
	EXPECT_EQ(both.copy.stat().exclusive, pages * page_size);
	EXPECT_EQ(held_pages(), pages);
	fill(both.copy_map.page(5), 6);
	before_it->write(99);
	after_it->write(99);
	EXPECT_EQ(misnumbered_page(both.copy, pages, 1), -1);
}

/* What a pin writes to a page that RESTORE took away is lost with it. */
TEST_P(pinned_to_be_written, of_what_a_restore_takes_away_it_writes_to_nobody)
{
	relatives both = related();

	share(both);

	const auto pinned = pin(both.source_map.page(3));

	in_time([&] {
		EXPECT_EQ(both.source.restore(both.copy), both.granule());
	});
	pinned->write(99);
	EXPECT_TRUE(is_all(both.source_map.page(3), 4));
	EXPECT_EQ(misnumbered_page(both.source, pages, 1), -1);
	EXPECT_EQ(misnumbered_page(both.copy, pages, 1), -1);
}

/* Calls that have pinned nothing yet, and wait for what they copy. */
class stopped_io : public pins {
protected:
	void SetUp() override
	{
		if (!source.supported())
			GTEST_SKIP() << "this kernel has no userfaultfd";
	}

	waiting_memory source;
};

/* A write(2) whose bytes are not there yet is not a reason to wait. */
TEST_F(stopped_io, of_write_does_not_stop_forks)
{
	const region parent = numbered(pages);
	std::thread writer([&] {
		EXPECT_EQ(::pwrite(parent.fd(), source.data(), page_size,
				   static_cast<off_t>(3 * page_size)),
			  static_cast<ssize_t>(page_size));
	});
	region child;

	source.await();
	in_time([&] { child = parent.fork(); });

	const mapping map = parent.map();

	map.store(5, 1); /* nor for others to store, or to ask */
	EXPECT_EQ(parent.stat().forks, 1u);
	source.provide(99);
	writer.join();
	EXPECT_TRUE(is_all(parent.read_page(3), 99));
	EXPECT_EQ(misnumbered_page(child, pages, 1), -1);
}

TEST_F(stopped_io, of_read_does_not_stop_forks)
{
	const region parent = numbered(pages);
	std::thread reader([&] {
		EXPECT_EQ(::pread(parent.fd(), source.data(), page_size,
				  static_cast<off_t>(3 * page_size)),
			  static_cast<ssize_t>(page_size));
	});
	region child;

	source.await();
	in_time([&] { child = parent.fork(); });
	parent.map().store(3, 1);
	child.fill_page(3, 60);
	source.provide(0);
	reader.join();
	EXPECT_EQ(std::ranges::count(std::span(source.data(), page_size),
				     std::byte{60}),
		  0);
	EXPECT_TRUE(is_all(child.read_page(3), 60));
}

TEST_F(stopped_io, of_write_lets_a_waiting_restore_be_killed)
{
	const region parent = numbered(pages);
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
	})) << "RESTORE cannot be killed";
	source.provide(99);
	writer.join();
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
