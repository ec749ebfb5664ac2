// SPDX-License-Identifier: GPL-2.0-only
/* A redis-server in a folder of its own, on a socket there. */
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "client.hpp"
#include "process.hpp"

namespace cowsnap_redis {

/* What a server's memory is. */
struct flavour {
	std::string name;
	std::vector<std::string> environment;
};

extern const flavour plain, forked;
/* With the library's own thread at work, so many bytes per second. */
flavour prepared(std::uint64_t rate);

class server {
public:
	/* Waits until it has loaded what it finds there. */
	server(std::filesystem::path folder, const flavour &memory, const std::vector<std::string> &options = {});
	server(const server &) = delete;
	server &operator=(const server &) = delete;
	/* Says what the server logged last, if an exception is what ends it. */
	~server();

	const std::filesystem::path &folder() const { return folder_; }
	std::string socket() const { return folder_ / "socket"; }
	client connect() const { return client(socket()); }
	/* For who has no more to say to it at once. */
	client &control() { return control_; }
	pid_t pid() const { return process_.pid(); }

	std::string info(const std::string &field);
	std::uint64_t figure(const std::string &field) { return std::stoull(info(field)); }
	/* In seconds, of all its threads, and of the children that ended. */
	double cpu_time();
	std::string digest() { return control_.call({"DEBUG", "DIGEST"}); }

	/* Asks for the field over and over; throws after five minutes of the clock. */
	void wait_until(const std::string &field, std::string_view value);
	/* Whether the child that BGSAVE or BGREWRITEAOF made is at work. */
	bool has_child();
	void wait_for_child();
	/* Has that child end before it is done, in the way that Redis itself has. */
	void end_child();
	void stop();

private:
	std::filesystem::path folder_;
	cowsnap_test::child process_;
	client control_;
	int exceptions_;
};

} // namespace cowsnap_redis
