// SPDX-License-Identifier: MIT
/*
 * SQLite with its heap in a region: a database in memory is saved while transactions run,
 * as BGSAVE of other stores does it, and the writer stops only for a FORK and a fork(2).
 *
 * A thread moves money between accounts. Every now and then, between two calls of
 * sqlite3_step(), the region gets a snapshot and the process a child. The child maps the
 * snapshot where the region was, and thereby has the heap of that instant at its
 * address; what SQLite keeps outside of the heap it has by fork(2). A transaction that was
 * open is open there, too, and is rolled back. What remains must pass PRAGMA
 * integrity_check, have all the money, and exactly the transfers that were committed
 * before the snapshot, before and after VACUUM INTO has put it into a file.
 *
 * No step may be under way at that instant, and this is all that is asked of the writer:
 * what is half changed by a step is half changed in the snapshot. No lock of SQLite is held
 * then either; here it has none, as only one thread at a time uses it.
 *
 *     g++ -std=c++20 -O2 sqlite.cpp $(pkg-config --cflags --libs cowsnap sqlite3) \
 *         -o sqlite
 *     ./sqlite --accounts 100000 --snapshots 20
 */
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include <sqlite3.h>

#include <cowsnap/cowsnap.hpp>
#include <cowsnap/interprocess.hpp>

#include "support/expect.hpp"
#include "support/options.hpp"
#include "support/process.hpp"
#include "support/stopwatch.hpp"

namespace {

using example::expect;

constexpr std::int64_t money_of_each = 1000;
/* For the writer to get on. */
constexpr std::chrono::milliseconds moment(5);

/* What SQLite allocates from. */
cowsnap::segment *heap;

void *allocate(int size)
{
	return heap->allocate(static_cast<std::size_t>(size), std::nothrow);
}

void release(void *memory)
{
	heap->deallocate(memory);
}

int size_of(void *memory)
{
	return memory ? static_cast<int>(heap->get_segment_manager()->size(memory)) : 0;
}

void *reallocate(void *memory, int size)
{
	void *const made = allocate(size);

	if (made) {
		std::memcpy(made, memory,
			    static_cast<std::size_t>(std::min(size, size_of(memory))));
		release(memory);
	}
	return made;
}

/* Before anything else is asked of SQLite. */
void give_sqlite(cowsnap::segment &segment)
{
	static const sqlite3_mem_methods methods = {
		.xMalloc = allocate,
		.xFree = release,
		.xRealloc = reallocate,
		.xSize = size_of,
		.xRoundup = [](int size) { return (size + 7) & ~7; },
		.xInit = [](void *) { return SQLITE_OK; },
		.xShutdown = [](void *) {},
		.pAppData = nullptr,
	};

	heap = &segment;
	expect(sqlite3_config(SQLITE_CONFIG_MALLOC, &methods) == SQLITE_OK &&
		       sqlite3_config(SQLITE_CONFIG_SINGLETHREAD) == SQLITE_OK,
	       "SQLite takes another heap");
}

using database = std::unique_ptr<sqlite3, decltype([](sqlite3 *db) { sqlite3_close_v2(db); })>;

void check(sqlite3 *db, bool good, std::string_view what)
{
	if (!good)
		throw std::runtime_error(std::string(what) + ": " + sqlite3_errmsg(db));
}

database open(const std::string &name)
{
	sqlite3 *db = nullptr;
	const int result = sqlite3_open(name.c_str(), &db);
	database opened(db);

	check(db, result == SQLITE_OK, name);
	return opened;
}

class statement {
public:
	statement(sqlite3 *db, const char *sql) : db_(db)
	{
		check(db, sqlite3_prepare_v2(db, sql, -1, &statement_, nullptr) == SQLITE_OK,
		      sql);
	}
	statement(statement &&) = delete;
	~statement() { sqlite3_finalize(statement_); }

	/* Whether there is a row; without one it is ready to begin again. */
	bool step()
	{
		const int result = sqlite3_step(statement_);

		check(db_, result == SQLITE_ROW || result == SQLITE_DONE,
		      sqlite3_sql(statement_));
		if (result == SQLITE_DONE)
			sqlite3_reset(statement_);
		return result == SQLITE_ROW;
	}
	statement &bind(int which, std::int64_t value)
	{
		check(db_, sqlite3_bind_int64(statement_, which, value) == SQLITE_OK, "bind");
		return *this;
	}
	std::int64_t number() const { return sqlite3_column_int64(statement_, 0); }
	std::string text() const
	{
		return reinterpret_cast<const char *>(sqlite3_column_text(statement_, 0));
	}

private:
	sqlite3 *db_;
	sqlite3_stmt *statement_ = nullptr;
};

void run(sqlite3 *db, const std::string &sql)
{
	check(db, sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK, sql);
}

std::int64_t number(sqlite3 *db, const char *sql)
{
	statement asked(db, sql);

	asked.step();
	return asked.number();
}

constexpr auto sum = "SELECT sum(balance) FROM accounts";
constexpr auto transfers = "SELECT count(*) FROM transfers";

void expect_sound(sqlite3 *db, std::int64_t money, std::int64_t committed,
		  const std::string &where)
{
	statement integrity(db, "PRAGMA integrity_check");

	integrity.step();
	expect(integrity.text() == "ok", where + " passes PRAGMA integrity_check");
	expect(number(db, sum) == money, where + " has all the money and no more");
	expect(number(db, transfers) == committed,
	       where + " has the transfers that were committed, and no others");
}

/* One goes a step at a time, and others come in between. */
class turns {
public:
	template <typename Call> void step(Call &&call)
	{
		wanted_.wait(true);

		const std::lock_guard lock(mutex_);

		call();
	}
	template <typename Call> void between_steps(Call &&call)
	{
		wanted_ = true;

		const std::lock_guard lock(mutex_);

		wanted_ = false;
		wanted_.notify_one();
		call();
	}

private:
	std::mutex mutex_;
	std::atomic<bool> wanted_ = false;
};

/* What moves the money; nobody else looks at its members but between steps. */
class writer {
public:
	writer(sqlite3 *db, turns &turn, std::uint64_t accounts, std::uint64_t seed)
		: begin_(db, "BEGIN"),
		  take_(db, "UPDATE accounts SET balance = balance - ?1 WHERE id = ?2"),
		  give_(db, "UPDATE accounts SET balance = balance + ?1 WHERE id = ?2"),
		  note_(db, "INSERT INTO transfers(amount, account) VALUES(?1, ?2)"),
		  audit_(db, "SELECT balance FROM accounts LIMIT 50"), commit_(db, "COMMIT"),
		  turn_(turn), dice_(seed), account_(1, static_cast<long>(accounts)),
		  thread_([this](const std::stop_token &stop) { work(stop); })
	{
	}

	std::int64_t committed() const { return committed_; }
	/* A transfer has left one account, and arrived nowhere. */
	bool half_way() const { return half_way_; }
	/* Throws what ended it, if anything did. */
	void expect_at_work() const
	{
		if (failure_)
			std::rethrow_exception(failure_);
	}

private:
	void work(const std::stop_token &stop)
	try {
		std::uniform_int_distribution<std::int64_t> amount(1, 100);

		while (!stop.stop_requested()) {
			const auto what = amount(dice_);

			turn_.step([&] { begin_.step(); });
			turn_.step([&] {
				take_.bind(1, what).bind(2, account_(dice_)).step();
				half_way_ = true;
			});
			/* So that snapshots meet a statement half way, too. */
			for (bool more = committed_ % 50 == 49; more;)
				turn_.step([&] { more = audit_.step(); });
			turn_.step([&] {
				give_.bind(1, what).bind(2, account_(dice_)).step();
				half_way_ = false;
			});
			turn_.step([&] { note_.bind(1, what).bind(2, account_(dice_)).step(); });
			turn_.step([&] {
				commit_.step();
				committed_++;
			});
		}
	} catch (...) {
		turn_.step([this] { failure_ = std::current_exception(); });
	}

	/* Made before the thread is, as to prepare a statement is no step. */
	statement begin_, take_, give_, note_, audit_, commit_;
	turns &turn_;
	std::mt19937_64 dice_;
	std::uniform_int_distribution<std::int64_t> account_;
	std::int64_t committed_ = 0;
	bool half_way_ = false;
	std::exception_ptr failure_;
	std::jthread thread_;
};

/* In the child: opens what @snapshot holds, checks it and saves it. */
void save(const cowsnap::snapshot &snapshot, cowsnap::mapping &live, sqlite3 *db,
	  const writer &stopped, std::int64_t money, const std::string &file)
{
	const example::stopwatch watch;
	const void *const address = live.data();

	/* Pointers in the heap hold at its address; what is stored stays in this process. */
	live.unmap();

	const auto then = snapshot.map_private({.address = address});
	const auto lacks = money - number(db, sum);
	int under_way = 0;

	expect((lacks > 0) == stopped.half_way(), "money lacks while it is on its way");
	for (auto *each = sqlite3_next_stmt(db, nullptr); each;
	     each = sqlite3_next_stmt(db, each)) {
		under_way += sqlite3_stmt_busy(each) != 0;
		sqlite3_reset(each);
	}

	const bool open_transaction = !sqlite3_get_autocommit(db);

	if (open_transaction)
		run(db, "ROLLBACK");
	expect_sound(db, money, stopped.committed(), "the snapshot");

	const auto fresh = file + ".new";

	std::remove(fresh.c_str());
	run(db, "VACUUM INTO '" + fresh + '\'');
	expect_sound(open(fresh).get(), money, stopped.committed(), "the saved file");
	expect(std::rename(fresh.c_str(), file.c_str()) == 0, "the file can be renamed");
	std::cout << "  saved " << stopped.committed() << " transfers in "
		  << watch.milliseconds() << " ms"
		  << (open_transaction ? ", rolled one back" : "")
		  << (lacks ? " that was half way" : "")
		  << (under_way ? ", a SELECT was under way" : "") << '\n';
}

void fill(sqlite3 *db, std::uint64_t accounts)
{
	run(db, "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER, note TEXT);"
		"CREATE TABLE transfers(id INTEGER PRIMARY KEY, amount INTEGER, account INTEGER);"
		"CREATE INDEX by_account ON transfers(account);"
		"WITH RECURSIVE all_of(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM all_of"
		" WHERE id < " + std::to_string(accounts) +
			") INSERT INTO accounts SELECT id, " + std::to_string(money_of_each) +
			", hex(zeroblob(100)) FROM all_of");
}

/* What the same takes by SQLite's own means, which no transaction may be open for. */
double copy_milliseconds(sqlite3 *db, turns &turn)
{
	double pause = 0;
	const auto copy_now = [&] {
		if (!sqlite3_get_autocommit(db))
			return;

		const example::stopwatch watch;
		const auto copy = open(":memory:");
		sqlite3_backup *const backup =
			sqlite3_backup_init(copy.get(), "main", db, "main");

		check(copy.get(), backup != nullptr, "backup");

		const int result = sqlite3_backup_step(backup, -1);

		sqlite3_backup_finish(backup);
		expect(result == SQLITE_DONE, "the backup is complete");
		pause = watch.milliseconds();
	};

	while (pause == 0) {
		std::this_thread::sleep_for(moment);
		turn.between_steps(copy_now);
	}
	return pause;
}

} // namespace

int main(int count, char **words)
try {
	std::uint64_t accounts = 50000, snapshots = 10, megabytes = 256, seed = 1;
	std::string file = "/tmp/accounts.db";

	example::read_options(count, words,
			      {{"accounts", &accounts, "how many there are"},
			       {"snapshots", &snapshots, "how many are taken"},
			       {"heap", &megabytes, "the most that SQLite may have, in MiB"},
			       {"seed", &seed, "for the transfers"},
			       {"file", &file, "where they are saved, one after the other"}});

	const auto device = cowsnap::device::open();
	auto region = device.create({.length = megabytes << 20, .name = "sqlite"});
	auto live = region.map();
	auto segment = cowsnap::create_segment(live);

	give_sqlite(segment);

	const auto db = open(":memory:");
	const auto money = static_cast<std::int64_t>(accounts) * money_of_each;

	fill(db.get(), accounts);
	std::cout << accounts << " accounts, a heap of " << region.stat().referenced / 1024
		  << " KiB" << '\n';

	turns turn;
	writer moving(db.get(), turn, accounts, seed);
	example::median forks, pauses, copies;
	const example::stopwatch all;

	for (std::uint64_t i = 0; i < snapshots; i++) {
		std::unique_ptr<example::process> child;

		/* Every other one where it is worst, and the rest wherever they happen. */
		while (!child) {
			std::this_thread::sleep_for(moment);
			turn.between_steps([&] {
				moving.expect_at_work();
				if (i % 2 && !moving.half_way())
					return;

				const example::stopwatch watch;
				const auto snapshot = region.take_snapshot();

				forks.add(watch.milliseconds());
				child = std::make_unique<example::process>([&] {
					save(snapshot, live, db.get(), moving, money, file);
				});
				pauses.add(watch.milliseconds());
			});
		}
		/* The child saves, and the writer goes on. */
		expect(child->wait() == 0, "snapshot " + std::to_string(i) + " is sound");
		copies.add(copy_milliseconds(db.get(), turn));
	}
	turn.between_steps([&] {
		const auto cost = region.stat();

		moving.expect_at_work();
		expect(moving.committed() > 0, "the writer got on meanwhile");
		std::cout << "the writer committed " << moving.committed() << " transfers in "
			  << all.seconds() << " s, and " << cost.bytes_copied / 1024
			  << " KiB were copied for the snapshots\n"
			  << "a pause takes " << pauses.get() << " ms, " << forks.get()
			  << " of them FORK; that of a copy by the backup API "
			  << copies.get() << " ms\n"
			  << "all " << snapshots << " snapshots are sound" << '\n';
	});
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
