// SPDX-License-Identifier: GPL-2.0-only
/*
 * A snapshot is of one instant while others write: two processes count rounds in
 * their pages (sequence.hpp) with plain stores or with write(2), a third copies
 * from one page to another what it finds, all of them disturbed in several ways,
 * and FORKs come in pairs, a moment apart; or FORKs that PREPARE helped, or RESTOREs
 * of other members.  Also that no store is lost, that no
 * store shows late, and that a snapshot read again later is the same.
 */
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
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

/* What a writer does to its mapping, or by what it writes, now and then. */
enum class disturbance {
	none,
	mprotect,
	remap,
	dontneed,
	mremap,
	process_fork,
	second_mapping,
	write_calls,
	remote_writes,
	grow_and_truncate,
};

const char *name_of(disturbance how)
{
	switch (how) {
	case disturbance::none:
		return "undisturbed";
	case disturbance::mprotect:
		return "mprotect";
	case disturbance::remap:
		return "remap";
	case disturbance::dontneed:
		return "dontneed";
	case disturbance::mremap:
		return "mremap";
	case disturbance::process_fork:
		return "process_fork";
	case disturbance::second_mapping:
		return "second_mapping";
	case disturbance::write_calls:
		return "write_calls";
	case disturbance::remote_writes:
		return "remote_writes";
	case disturbance::grow_and_truncate:
		return "grow_and_truncate";
	}
	return "";
}

/*
 * Who writes what: the writers' pages alternate, in one dense run that several of
 * them share a tree node in, and in a sparse one; the copier's lie behind them.
 */
constexpr std::size_t writers = 2;
constexpr std::size_t dense_pages = 40;
constexpr std::size_t sparse_pages = 12;
constexpr std::size_t copied_pages = 16;
constexpr std::size_t copies_start = 2000;
constexpr std::size_t region_pages = copies_start + copied_pages;

std::vector<std::size_t> pages_of(std::size_t writer)
{
	std::vector<std::size_t> pages;

	for (std::size_t i = 0; i < dense_pages; i++)
		pages.push_back(i * writers + writer);
	for (std::size_t i = 0; i < sparse_pages; i++)
		pages.push_back(200 + 37 * i * writers + writer);
	return pages;
}

/* The first writer's page that the copier's page @i is a copy of. */
std::size_t original_of(std::size_t i)
{
	return pages_of(0)[i * 3];
}

struct progress {
	std::atomic<bool> stop = false;
	/* Rounds that a writer has finished. */
	std::array<std::atomic<std::uint64_t>, writers> rounds = {};
};

/* A process that counts rounds in its pages until it is told to stop. */
class round_writer {
public:
	round_writer(const region &file, std::size_t number, disturbance how,
		     progress &state)
		: file_(file), number_(number), how_(how), state_(state),
		  pages_(pages_of(number)), chance_(10 + number), map_(file.map())
	{
	}

	void run()
	{
		if (how_ == disturbance::second_mapping)
			second_ = file_.map();
		while (!state_.stop) {
			const std::size_t disturbed = chance_.below(pages_.size());

			round_++;
			for (std::size_t i = 0; i < pages_.size(); i++) {
				if (i == disturbed)
					disturb(i);
				if (i >= handed_over_)
					store(pages_[i]);
			}
			handed_over_ = 0;
			state_.rounds[number_] = round_;
		}
	}

private:
	/* Stores the round; the page still has the round before it. */
	void store(std::size_t page)
	{
		const mapping &map = second_.data() && chance_.one_in(2) ? second_
									 : map_;
		const std::uint64_t value = round_;
		const auto bytes = std::as_bytes(std::span(&value, 1));

		require(map.load(page) == round_ - 1, "a store was lost");
		if (how_ == disturbance::write_calls) {
			file_.write(page * page_size, bytes);
		} else if (how_ == disturbance::remote_writes) {
			const iovec local = {const_cast<std::uint64_t *>(&value),
					     sizeof(value)};
			const iovec remote = {map.page(page).data(), sizeof(value)};

			check(::process_vm_writev(::getpid(), &local, 1, &remote, 1,
						  0),
			      "process_vm_writev");
		} else {
			map.store(page, value);
		}
		require(map.load(page) == round_, "a store does not show");
	}

	void disturb(std::size_t position)
	{
		switch (how_) {
		case disturbance::mprotect:
			map_.protect(PROT_READ);
			map_.protect(PROT_READ | PROT_WRITE);
			break;
		case disturbance::remap:
			map_.reset();
			map_ = file_.map();
			break;
		case disturbance::dontneed:
			map_.advise(MADV_DONTNEED);
			break;
		case disturbance::mremap:
			map_.move();
			break;
		case disturbance::process_fork: {
			/* The rest of the round is a child's. */
			child rest([this, position] {
				for (std::size_t i = position; i < pages_.size(); i++)
					store(pages_[i]);
			});

			require(rest.succeeded(), "the forked writer failed");
			handed_over_ = pages_.size();
			break;
		}
		case disturbance::grow_and_truncate:
			/* Only one may: the other would cut off what this adds. */
			if (number_ == 0) {
				file_.fill_page(region_pages + 5, 1);
				file_.truncate(region_pages * page_size);
			}
			break;
		default:
			break;
		}
	}

	const region &file_;
	std::size_t number_;
	disturbance how_;
	progress &state_;
	std::vector<std::size_t> pages_;
	chance chance_;
	mapping map_;
	mapping second_;
	std::uint64_t round_ = 0;
	/* Positions from here on were stored by a child already. */
	std::size_t handed_over_ = 0;
};

/* What a member of the family holds, as far as it matters here. */
struct picture {
	std::array<std::vector<std::uint64_t>, writers> rounds;
	std::vector<std::uint64_t> originals, copies;

	bool operator==(const picture &) const = default;
};

/* By the snapshot's mapping, or by read(2), which must not differ. */
picture picture_of(const region &member, bool by_mapping)
{
	const mapping map = by_mapping ? member.map(PROT_READ) : mapping();
	picture taken;

	const auto value = [&](std::size_t page) {
		std::uint64_t word = 0;

		if (by_mapping)
			return map.load(page);
		member.read(page * page_size,
			    std::as_writable_bytes(std::span(&word, 1)));
		return word;
	};

	for (std::size_t writer = 0; writer < writers; writer++)
		for (const std::size_t page : pages_of(writer))
			taken.rounds[writer].push_back(value(page));
	for (std::size_t i = 0; i < copied_pages; i++) {
		taken.copies.push_back(value(copies_start + i));
		taken.originals.push_back(value(original_of(i)));
	}
	return taken;
}

/* Why @taken is not of one instant. */
std::optional<std::string> fault_of(const picture &taken)
{
	for (std::size_t writer = 0; writer < writers; writer++) {
		if (const auto where = torn(taken.rounds[writer]))
			return "writer " + std::to_string(writer) + ": " + *where;
	}
	/* A copy that was made before the instant was made of something older. */
	for (std::size_t i = 0; i < copied_pages; i++) {
		if (taken.copies[i] > taken.originals[i])
			return "copy " + std::to_string(i) + " has " +
			       std::to_string(taken.copies[i]) +
			       ", which its original gets later than " +
			       std::to_string(taken.originals[i]);
	}
	return std::nullopt;
}

struct kept {
	region member;
	picture taken;
};

/* How what a parent holds is taken. */
enum class taking {
	fork,
	/* With so much dirty that FORK goes over it once while writers go on. */
	fork_of_much,
	/* While another process PREPAREs all the time. */
	fork_prepared,
	restore,
};

const char *name_of(taking how)
{
	switch (how) {
	case taking::fork:
		return "by_fork";
	case taking::fork_of_much:
		return "by_fork_of_much";
	case taking::fork_prepared:
		return "by_fork_prepared";
	case taking::restore:
		return "by_restore";
	}
	return "";
}

constexpr std::size_t much = 1000;

/* Makes members of the family that hold what the parent holds at an instant. */
class taker {
public:
	taker(const region &parent, taking how, chance &random)
		: parent_(parent), how_(how), random_(random)
	{
		if (how == taking::fork_of_much)
			map_ = mapping(parent.fd(), much * page_size,
				       PROT_READ | PROT_WRITE, MAP_SHARED,
				       region_pages * page_size);
	}

	region take()
	{
		for (std::size_t page = 0; page < map_.pages(); page++)
			map_.store(page, ++stored_);
		if (how_ != taking::restore)
			return random_.one_in(2) ? parent_.fork()
						 : parent_.snapshot();

		/* Over something older, which is mapped or not. */
		region made = latest_.fd() >= 0 ? latest_.fork() : parent_.fork();
		const mapping map = random_.one_in(2) ? made.map() : mapping();

		for (std::size_t page = 0; page < map.pages(); page += 3)
			if (random_.one_in(2))
				map.store(page, 1ull << 60);
			else
				(void)map.load(page);
		made.restore(parent_);
		latest_ = made.fork();
		return made;
	}

private:
	const region &parent_;
	taking how_;
	chance &random_;
	mapping map_;
	std::uint64_t stored_ = 0;
	region latest_;
};

class consistent_cut_base : public cowsnap_fixture {
protected:
	static constexpr std::uint64_t least_rounds = 3;

	/* Forks in pairs, checks what comes out, and the older ones once more. */
	template <typename Condition>
	static void fork_and_check(const region &parent, taking by,
				   std::uint64_t stream, Condition &&enough)
	{
		std::deque<kept> older;
		chance random(stream);
		taker from(parent, by, random);
		std::array<std::uint64_t, writers> last = {};

		while (!enough()) {
			std::array<region, 2> pair;

			pair[0] = from.take();
			std::this_thread::sleep_for(std::chrono::microseconds(
				random.one_in(2) ? random.below(100)
						 : random.below(2500)));
			pair[1] = from.take();
			for (region &member : pair) {
				picture taken = picture_of(member, random.one_in(2));
				const auto fault = fault_of(taken);

				require(!fault, fault.value_or(""));
				for (std::size_t i = 0; i < writers; i++) {
					require(taken.rounds[i][0] >= last[i],
						"a later snapshot is older");
					last[i] = taken.rounds[i][0];
				}
				older.push_back({std::move(member), std::move(taken)});
			}
			while (older.size() > 6) {
				require(picture_of(older.front().member,
						   random.one_in(2)) ==
						older.front().taken,
					"a snapshot changed");
				older.pop_front();
			}
		}
		for (const kept &one : older)
			require(picture_of(one.member, true) == one.taken,
				"a snapshot changed");
	}

	void run(disturbance how, std::size_t forkers, taking by = taking::fork)
	{
		const region parent = dev.create_pages(
			region_pages + (by == taking::fork_of_much ? much : 0));
		const shared<progress> state;
		std::vector<child> processes;

		(void)seed(); /* printed once, not by each child */
		for (std::size_t i = 0; i < writers; i++)
			processes.emplace_back([&, i] {
				round_writer(parent, i, how, *state).run();
			});
		processes.emplace_back([&] {
			const mapping map = parent.map();

			while (!state->stop)
				for (std::size_t i = 0; i < copied_pages; i++)
					map.store(copies_start + i,
						  map.load(original_of(i)));
		});
		if (by == taking::fork_prepared)
			processes.emplace_back([&] {
				chance random(50);

				while (!state->stop)
					parent.prepare(random.below(60));
			});

		const deadline end = scaled_deadline(std::chrono::milliseconds(1200));
		const auto enough = [&] {
			return passed(end, [&] {
				return std::ranges::all_of(
					state->rounds, [](const auto &rounds) {
						return rounds >= least_rounds;
					});
			});
		};

		for (std::size_t i = 1; i < forkers; i++)
			processes.emplace_back([&, i] {
				fork_and_check(parent, by, 100 + i, enough);
			});
		try {
			fork_and_check(parent, by, 100, enough);
		} catch (const std::exception &error) {
			ADD_FAILURE() << error.what();
		}
		state->stop = true;
		for (child &process : processes)
			EXPECT_TRUE(process.succeeded());

		const picture last = picture_of(parent, true);

		for (std::size_t i = 0; i < writers; i++) {
			/* Not once stopped by a fork for good. */
			EXPECT_GE(state->rounds[i], least_rounds);
			for (const std::uint64_t value : last.rounds[i])
				EXPECT_EQ(value, state->rounds[i]);
		}
		EXPECT_EQ(picture_of(parent, false), last);
		std::printf("# %llu forks while %llu and %llu rounds were written\n",
			    static_cast<unsigned long long>(parent.stat().forks),
			    static_cast<unsigned long long>(state->rounds[0]),
			    static_cast<unsigned long long>(state->rounds[1]));
	}
};

class consistent_cut : public consistent_cut_base,
		       public testing::WithParamInterface<disturbance> {};

INSTANTIATE_TEST_SUITE_P(
	, consistent_cut,
	testing::Values(disturbance::none, disturbance::mprotect,
			disturbance::remap, disturbance::dontneed,
			disturbance::mremap, disturbance::process_fork,
			disturbance::second_mapping, disturbance::write_calls,
			disturbance::remote_writes, disturbance::grow_and_truncate),
	[](const auto &info) { return name_of(info.param); });

TEST_P(consistent_cut, under_writers)
{
	run(GetParam(), 1);
}

using consistent_cuts = consistent_cut_base;

TEST_F(consistent_cuts, by_two_forkers_at_once)
{
	run(disturbance::none, 2);
}

TEST_F(consistent_cuts, by_two_forkers_under_mprotect)
{
	run(disturbance::mprotect, 2);
}

/* What FORK does before its writers have to stop, and who does it for FORK. */
using ways_to_take = std::tuple<taking, disturbance>;

class consistent_cut_taken : public consistent_cut_base,
			     public testing::WithParamInterface<ways_to_take> {};

INSTANTIATE_TEST_SUITE_P(
	, consistent_cut_taken,
	testing::Combine(testing::Values(taking::fork_of_much, taking::fork_prepared,
					 taking::restore),
			 testing::Values(disturbance::none, disturbance::mprotect,
					 disturbance::process_fork,
					 disturbance::write_calls,
					 disturbance::remote_writes)),
	[](const auto &info) {
		return std::string(name_of(std::get<taking>(info.param))) + "_" +
		       name_of(std::get<disturbance>(info.param));
	});

TEST_P(consistent_cut_taken, under_writers)
{
	run(std::get<disturbance>(GetParam()), 1, std::get<taking>(GetParam()));
}

TEST_F(consistent_cuts, by_two_restorers_at_once)
{
	run(disturbance::none, 2, taking::restore);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
