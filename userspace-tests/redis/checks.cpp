// SPDX-License-Identifier: GPL-2.0-only
#include "checks.hpp"

#include <filesystem>
#include <string>

#include <sys/resource.h>

#include "keys.hpp"
#include "demo/measure.hpp"
#include "region.hpp"

namespace cowsnap_redis {
namespace {

namespace fs = std::filesystem;

class run {
public:
	run(const flavour &memory, std::size_t keys, cowsnap_demo::results &results)
		: memory_(memory), keys_(keys), results_(results), root_("/tmp/" + memory.name),
		  live_(root_ / "live", memory, {"--port", "7001"})
	{
	}

	void all()
	{
		fill();
		save();
		rewrite();
		replicate();
		if (!memory_.environment.empty())
			no_fork();
		live_.stop();
	}

	void saving()
	{
		fill();
		save();
		live_.stop();
	}

private:
	void add(bool holds, const std::string &what) { results_.add(holds, memory_.name + ": " + what); }

	void fill()
	{
		client to = live_.connect();

		set_row(to, 0, keys_);

		/* Otherwise all that follows would hold, and say nothing. */
		const std::uint64_t held = cowsnap_test::device().query().held_bytes;
		const std::uint64_t data = keys_ * value_size;
		const std::string what = cowsnap_demo::grouped(keys_) + " keys, " +
					 cowsnap_demo::mebibytes(live_.figure("used_memory")) + " MiB of Redis, " +
					 cowsnap_demo::mebibytes(held) + " MiB in regions";

		add(memory_.environment.empty() ? held == 0 : held >= data, what);
	}

	/*
	 * Commands that come in one piece are run without another client's in
	 * between, so the digest is that of the fork, while writers go on.
	 */
	std::string digest_and(const char *command)
	{
		live_.control().send({"DEBUG", "DIGEST"});
		live_.control().send({command});

		std::string digest = live_.control().receive();

		live_.control().receive();
		return digest;
	}

	void save()
	{
		writer going_on(live_, keys_);

		going_on.wait_for(100);

		const std::string at_the_fork = digest_and("BGSAVE");
		const std::uint64_t before = going_on.written();

		live_.wait_for_child();

		const std::uint64_t meanwhile = going_on.written() - before;

		going_on.stop();
		add(live_.info("rdb_last_bgsave_status") == "ok",
		    "BGSAVE ends well, with " + cowsnap_demo::grouped(meanwhile) + " keys set meanwhile");
		add(meanwhile >= keys_ / 100, "at least 1 % of the keys are set meanwhile");
		add(live_.digest() != at_the_fork, "what is live has another digest than at the fork");
		fs::create_directories(root_ / "saved");
		fs::rename(live_.folder() / "dump.rdb", root_ / "saved/dump.rdb");
		add(digest_of("saved", {}) == at_the_fork,
		    "the dump, loaded by a plain server, has the digest of the fork");
	}

	void rewrite()
	{
		live_.control().call({"CONFIG", "SET", "appendonly", "yes"});
		live_.wait_for_child();

		const std::uint64_t forks = live_.figure("total_forks");
		writer going_on(live_, keys_);

		going_on.wait_for(100);
		live_.control().call({"BGREWRITEAOF"});
		live_.wait_for_child();
		going_on.wait_for(going_on.written() + 100);
		going_on.stop();
		add(live_.info("aof_last_bgrewrite_status") == "ok" && live_.figure("total_forks") > forks,
		    "BGREWRITEAOF ends well, while keys are set");

		const std::string at_the_end = live_.digest();

		/* Closes the file with all in it. */
		live_.control().call({"CONFIG", "SET", "appendonly", "no"});
		fs::create_directories(root_ / "rewritten");
		fs::rename(live_.folder() / "appendonlydir", root_ / "rewritten/appendonlydir");
		add(digest_of("rewritten", {"--appendonly", "yes"}) == at_the_end,
		    "what it rewrote and what came after, loaded by a plain server, has the digest of what is live");
	}

	void replicate()
	{
		const std::uint64_t forks = live_.figure("total_forks");
		writer going_on(live_, keys_);
		server replica(root_ / "replica", plain, {"--port", "7002"});

		going_on.wait_for(100);
		replica.control().call({"REPLICAOF", "127.0.0.1", "7001"});
		replica.wait_until("master_link_status", "up");
		going_on.wait_for(going_on.written() + 100);
		going_on.stop();
		replica.wait_until("slave_repl_offset", live_.info("master_repl_offset"));
		add(live_.figure("total_forks") > forks && !fs::exists(live_.folder() / "dump.rdb"),
		    "a replica is filled by a fork and without a file, while keys are set");
		add(replica.digest() == live_.digest(), "the replica has the digest of what is live");
		replica.stop();
	}

	/* The module's fork is a descriptor, for which there is no room. */
	void no_fork()
	{
		const std::string before = live_.digest();
		std::string answer = "OK";
		const rlimit files = limit_files(nullptr), none = {1, files.rlim_max};

		limit_files(&none);
		try {
			answer = live_.control().call({"BGSAVE"});
		} catch (const refusal &said) {
			answer = said.what();
		}
		limit_files(&files);
		add(answer.starts_with("ERR"), "BGSAVE that cannot fork answers: " + answer);
		add(live_.digest() == before, "the server goes on, with all that it held");
		live_.control().call({"BGSAVE"});
		live_.wait_for_child();
		add(live_.info("rdb_last_bgsave_status") == "ok", "and saves when it can fork again");
	}

	rlimit limit_files(const rlimit *wanted) const
	{
		rlimit before = {};

		cowsnap_test::check(::prlimit(live_.pid(), RLIMIT_NOFILE, wanted, &before), "prlimit");
		return before;
	}

	std::string digest_of(const char *folder, const std::vector<std::string> &options)
	{
		std::string digest;
		{
			server loaded(root_ / folder, plain, options);

			digest = loaded.digest();
			loaded.stop();
		}
		fs::remove_all(root_ / folder);
		return digest;
	}

	const flavour &memory_;
	const std::size_t keys_;
	cowsnap_demo::results &results_;
	const fs::path root_;
	server live_;
};

} // namespace

void check_saves(const flavour &memory, std::size_t keys, cowsnap_demo::results &results)
{
	run(memory, keys, results).all();
}

void check_save(const flavour &memory, std::size_t keys, cowsnap_demo::results &results)
{
	run(memory, keys, results).saving();
}

} // namespace cowsnap_redis
