// SPDX-License-Identifier: GPL-2.0-only
/*
 * Many threads store to the same and to different pages while FORKs go on: no
 * store is lost, no reader sees time go back, and a snapshot is of one instant.
 */
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/uio.h>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"
#include "sequence.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t writers = 4;
constexpr std::size_t pages = 48;

/* The word of a page that belongs to one writer. */
std::uint64_t *slot(const mapping &map, std::size_t page, std::size_t writer)
{
	return reinterpret_cast<std::uint64_t *>(map.data() + page * page_size) +
	       writer * 8;
}

std::uint64_t load(const std::uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void store(std::uint64_t *word, std::uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* Threads that are joined when it goes. */
class crew {
public:
	~crew()
	{
		stop_ = true;
		for (std::thread &thread : threads_)
			thread.join();
	}
	/* Calls @work again and again until the crew goes. */
	void add(std::function<void()> work)
	{
		threads_.emplace_back([this, work = std::move(work)] {
			while (!stop_)
				work();
		});
	}

private:
	std::atomic<bool> stop_ = false;
	std::vector<std::thread> threads_;
};

/* Leaves a crew at work, until more than @least of its @rounds were made at any rate. */
void let_work(std::chrono::seconds time, const std::atomic<std::uint64_t> &rounds,
	      std::uint64_t least)
{
	const deadline end = scaled_deadline(time);

	while (!passed(end, [&] { return rounds > least; }))
		std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

class threads : public cowsnap_fixture {
protected:
	/* What readers and writers found wrong. */
	std::atomic<std::uint64_t> lost = 0, back = 0;

	void expect_sound()
	{
		EXPECT_EQ(lost, 0u) << "stores were lost";
		EXPECT_EQ(back, 0u) << "readers saw an older value";
	}
};

/* Each thread has a word in every page: all pages are everybody's. */
TEST_F(threads, that_share_pages_lose_no_store)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	const mapping second = parent.map();
	static constexpr std::uint64_t least = 4;
	std::array<std::atomic<std::uint64_t>, writers> rounds = {};
	std::uint64_t forks = 0;

	{
		crew working;

		for (std::size_t writer = 0; writer < writers; writer++) {
			working.add([&, writer] {
				const mapping &own = writer % 2 ? second : map;
				const std::uint64_t round = ++rounds[writer];

				for (std::size_t page = 0; page < pages; page++) {
					std::uint64_t *const word =
						slot(own, page, writer);

					lost += load(word) != round - 1;
					store(word, round);
					lost += load(word) != round;
				}
			});
		}

		const deadline end = scaled_deadline(std::chrono::seconds(2));
		const auto progress = [&] {
			return forks >= least &&
			       std::ranges::all_of(rounds, [](const auto &each) {
				       return each >= least;
			       });
		};

		while (!passed(end, progress)) {
			const region snapshot = parent.snapshot();
			const mapping shown = snapshot.map(PROT_READ);

			forks++;
			for (std::size_t writer = 0; writer < writers; writer++) {
				std::vector<std::uint64_t> values;

				for (std::size_t page = 0; page < pages; page++)
					values.push_back(
						load(slot(shown, page, writer)));

				const auto where = torn(values);

				ASSERT_FALSE(where) << *where;
			}
		}
	}
	expect_sound();
	EXPECT_GE(forks, least);
	for (std::size_t writer = 0; writer < writers; writer++) {
		EXPECT_GE(rounds[writer].load(), least);
		for (std::size_t page = 0; page < pages; page++)
			ASSERT_EQ(load(slot(map, page, writer)),
				  rounds[writer].load());
	}
}

TEST_F(threads, that_read_see_no_older_value)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	const mapping second = parent.map();
	const mapping reading = parent.map(PROT_READ);
	std::uint64_t round = 0;

	{
		crew working;

		working.add([&] {
			round++;
			for (std::size_t page = 0; page < pages; page++)
				store(slot(map, page, 0), round);
		});
		for (const mapping *through : {&second, &reading}) {
			working.add([&, through,
				     seen = std::vector<std::uint64_t>(pages)]() mutable {
				for (std::size_t page = pages; page-- > 0;) {
					const std::uint64_t value =
						load(slot(*through, page, 0));

					back += value < seen[page];
					/* Nor older than a page written later. */
					if (page + 1 < pages)
						back += value < seen[page + 1];
					seen[page] = value;
				}
			});
		}

		const deadline end = scaled_deadline(std::chrono::seconds(1));

		while (!passed(end))
			(void)parent.fork();
	}
	expect_sound();
	for (const mapping *through : {&map, &second, &reading})
		for (std::size_t page = 0; page < pages; page++)
			ASSERT_EQ(load(slot(*through, page, 0)), round);
}

/* Atomic additions by all threads to the same words add up. */
TEST_F(threads, that_add_to_the_same_word_add_up)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	const mapping second = parent.map();
	std::array<std::atomic<std::uint64_t>, pages> added = {};

	{
		crew working;

		for (std::size_t writer = 0; writer < writers; writer++) {
			working.add([&, writer,
				     random = chance(writer)]() mutable {
				const std::size_t page = random.below(pages);

				__atomic_fetch_add(slot(writer % 2 ? map : second,
							page, 0),
						   1, __ATOMIC_SEQ_CST);
				added[page]++;
			});
		}

		const deadline end = scaled_deadline(std::chrono::seconds(1));

		while (!passed(end))
			(void)parent.snapshot();
	}
	for (std::size_t page = 0; page < pages; page++)
		ASSERT_EQ(load(slot(map, page, 0)), added[page]);
}

/* Parts of pages by write(2) and by stores, at the same time. */
TEST_F(threads, that_write_and_store_lose_neither)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	std::array<std::uint64_t, writers> rounds = {};

	{
		crew working;

		for (std::size_t writer = 0; writer < writers; writer++) {
			working.add([&, writer] {
				const std::uint64_t round = ++rounds[writer];

				for (std::size_t page = 0; page < pages; page++) {
					std::uint64_t *const word =
						slot(map, page, writer);
					const auto offset = static_cast<std::size_t>(
						reinterpret_cast<std::byte *>(word) -
						map.data());
					std::uint64_t value = round;

					if (writer % 2)
						store(word, value);
					else
						parent.write(
							offset,
							std::as_bytes(std::span(
								&value, 1)));
					value = 0;
					parent.read(offset,
						    std::as_writable_bytes(
							    std::span(&value, 1)));
					lost += value != round;
					lost += load(word) != round;
				}
			});
		}

		const deadline end = scaled_deadline(std::chrono::seconds(1));

		while (!passed(end))
			(void)parent.fork();
	}
	expect_sound();
}

/*
 * From 6.14 on MADV_DONTNEED frees the page tables that it empties, also under the
 * faults that make entries in them: those are to try again.
 */
TEST_F(threads, that_lose_their_page_tables_fault_again)
{
	const std::size_t size = std::size_t{8} << 20;
	std::vector<region> regions;
	std::vector<mapping> maps;

	for (const unsigned int granule_shift : {page_shift, page_shift + 4}) {
		regions.push_back(dev.create(size, 0, {}, granule_shift));
		regions.back().write(size / 2, bytes_of(2 * page_size, 1));
		maps.push_back(regions.back().map());
		regions.push_back(regions.back().snapshot());
		maps.push_back(regions.back().map(PROT_READ));
	}

	std::atomic<std::uint64_t> failures = 0, rounds = 0;
	crew working;

	working.add([&] {
		for (const mapping &map : maps)
			map.advise(MADV_DONTNEED);
	});
	for (const mapping &map : maps) {
		working.add([&] {
			std::byte byte;
			const iovec local = {&byte, 1};
			const iovec remote = {map.data() + size / 2, 1};

			failures += ::process_vm_readv(::getpid(), &local, 1, &remote,
						       1, 0) != 1;
			failures += map.load(size / 2 / page_size + 1) == 0;
			rounds++;
		});
	}
	let_work(std::chrono::seconds(4), rounds, 100);
	EXPECT_EQ(failures, 0u);
	EXPECT_GT(rounds, 100u);
}

/* Two that read a page at once: what one finds missing the other has mapped already. */
TEST_F(threads, that_read_the_same_page_at_once_both_get_it)
{
	const region one = dev.create_pages(1);

	one.write(0, bytes_of(page_size, 1));

	const region snapshot = one.snapshot();
	const mapping map = one.map(), shown = snapshot.map(PROT_READ);
	std::atomic<std::uint64_t> failures = 0, rounds = 0;
	crew working;

	for (int reader = 0; reader < 3; reader++) {
		working.add([&] {
			for (const mapping *of : {&map, &shown}) {
				failures += of->load(0) != 0x0101010101010101u;
				of->advise(MADV_DONTNEED);
			}
			rounds++;
		});
	}
	let_work(std::chrono::seconds(2), rounds, 100);
	EXPECT_EQ(failures, 0u);
	EXPECT_GT(rounds, 100u);
}

/* Forks of forks, made and closed by all threads at once. */
TEST_F(threads, that_fork_and_close_leave_nothing)
{
	const region parent = dev.create_pages(pages);
	std::atomic<std::uint64_t> forks = 0, wrong = 0;

	number_pages(parent, pages, 1);

	const counters count(dev);

	{
		crew working;

		for (std::size_t worker = 0; worker < writers; worker++) {
			working.add([&, random = chance(20 + worker)]() mutable {
				const region child = parent.fork();
				const region grandchild = child.fork();
				const std::size_t page = random.below(pages);

				forks++;
				child.fill_page(page, 0xee);
				wrong += !is_all(grandchild.read_page(page),
						 static_cast<unsigned int>(page + 1));
				grandchild.map().store(page, 1);
				wrong += !is_all(child.read_page(page), 0xee);
				wrong += child.stat().exclusive < page_size;
			});
		}
		std::this_thread::sleep_until(
			scaled_deadline(std::chrono::seconds(1)));
	}
	EXPECT_EQ(wrong, 0u);
	EXPECT_EQ(parent.stat().forks, forks);
	EXPECT_EQ(counters(dev).held_bytes, count.held_bytes);
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
}

/*
 * Everything at once, in several processes: whatever happens, a page that is
 * read has been written as that page, or never.
 */
class commotion {
public:
	commotion(const region &common, std::uint64_t stream)
		: common_(common), random_(stream)
	{
		members_.push_back(common.fork());
	}

	void step()
	{
		region &member = members_[random_.below(members_.size())];
		const std::size_t page = random_.below(pages);

		switch (random_.below(11)) {
		case 0:
			if (members_.size() < 6)
				members_.push_back(random_.one_in(2)
							   ? member.fork()
							   : common_.fork());
			break;
		case 1:
			if (members_.size() > 1)
				members_.erase(members_.begin());
			break;
		case 2:
			member.truncate(random_.below(pages) * page_size + 77);
			member.truncate(pages * page_size);
			break;
		case 3:
			mark(common_, page);
			break;
		case 4:
			mark(member, page);
			break;
		case 5:
			inspect(member.snapshot().map(PROT_READ));
			break;
		case 6: {
			const mapping map = member.map();

			map.store(page, value_of(page));
			map.protect(PROT_READ);
			map.protect(PROT_READ | PROT_WRITE);
			map.store(page, value_of(page));
			break;
		}
		case 7: {
			mapping map = common_.map();

			inspect(map);
			map.move();
			map.store(page, value_of(page));
			map.shrink(map.size() / 2);
			break;
		}
		case 8: {
			const mapping map = member.map();
			child forked([&] { map.store(page, value_of(page)); });

			require(forked.succeeded(), "a forked writer failed");
			break;
		}
		case 9:
			require(member.stat().length == pages * page_size,
				"the length is wrong");
			break;
		default:
			(void)::lseek(member.fd(), 0, SEEK_DATA);
			common_.map().advise(MADV_DONTNEED);
			break;
		}
	}

private:
	/* Tells the page, in a way that parts of other values do not. */
	static std::uint64_t value_of(std::size_t page)
	{
		return 0x5a5a000000000000 + page * 0x0001000100010001;
	}

	static void mark(const region &member, std::size_t page)
	{
		const std::uint64_t value = value_of(page);

		member.write(page * page_size,
			     std::as_bytes(std::span(&value, 1)));
	}

	static void inspect(const mapping &map)
	{
		for (std::size_t page = 0; page < map.pages(); page++) {
			const std::uint64_t value = map.load(page);

			require(value == 0 || value == value_of(page),
				"a page has what belongs elsewhere");
		}
	}

	const region &common_;
	chance random_;
	std::vector<region> members_;
};

TEST_F(threads, and_processes_in_commotion_leave_nothing)
{
	const region common = dev.create_pages(pages);
	const deadline end = scaled_deadline(std::chrono::seconds(4));
	std::vector<child> processes;

	(void)seed();
	for (std::uint64_t i = 0; i < 4; i++) {
		processes.emplace_back([&, i] {
			commotion chaos(common, 40 + i);

			while (!passed(end))
				chaos.step();
		});
	}
	for (child &process : processes)
		EXPECT_TRUE(process.succeeded());
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  common.stat().referenced);
	EXPECT_EQ(common.stat().exclusive, common.stat().referenced);
	EXPECT_EQ(counters(dev).regions, before.regions + 1);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
