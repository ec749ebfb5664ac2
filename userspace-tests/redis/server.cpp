// SPDX-License-Identifier: GPL-2.0-only
#include "server.hpp"

#include <chrono>
#include <csignal>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <thread>
#include <utility>

#include <unistd.h>

namespace cowsnap_redis {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char *program = "/usr/bin/redis-server";
constexpr std::chrono::milliseconds patience = 300s, between_questions = 20ms;

std::vector<std::string> arguments(const fs::path &folder, const std::vector<std::string> &options)
{
	std::vector<std::string> words = {
		program, "--port", "0", "--unixsocket", folder / "socket", "--dir", folder, "--logfile", folder / "log",
		/* It saves when it is told to. */
		"--save", "",
		"--enable-debug-command", "yes",
		/* What is random gets no smaller, only the test longer. */
		"--rdbcompression", "no",
		"--appendfsync", "no", "--auto-aof-rewrite-percentage", "0",
		/* A slow machine is no reason to begin with a replica anew. */
		"--client-output-buffer-limit", "replica 0 0 0", "--repl-timeout", "300",
		"--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"};

	words.insert(words.end(), options.begin(), options.end());
	return words;
}

cowsnap_test::child start(const fs::path &folder, const flavour &memory, const std::vector<std::string> &options)
{
	fs::create_directories(folder);
	fs::remove(folder / "socket");
	return cowsnap_test::child([&] {
		std::vector<std::string> words = arguments(folder, options), environment = memory.environment;

		environment.emplace_back("PATH=/usr/bin:/bin");
		cowsnap_test::check(::execve(program, cowsnap_test::pointers_to(words).data(),
					     cowsnap_test::pointers_to(environment).data()),
				    program);
	});
}

void show_log(const fs::path &folder)
{
	std::ifstream log(folder / "log");
	std::vector<std::string> lines;

	for (std::string line; std::getline(log, line);)
		lines.push_back(line);
	std::cout << "  what the server in " << folder.string() << " logged last:\n";
	for (std::size_t i = lines.size() > 40 ? lines.size() - 40 : 0; i < lines.size(); i++)
		std::cout << "    " << lines[i] << '\n';
	std::cout << std::flush;
}

bool has_ended(const cowsnap_test::child &process)
{
	siginfo_t what = {};

	cowsnap_test::check(::waitid(P_PID, static_cast<id_t>(process.pid()), &what, WEXITED | WNOHANG | WNOWAIT),
			    "waitid");
	return what.si_pid != 0;
}

/* The socket is there before the server listens. */
client first_connection(const cowsnap_test::child &process, const fs::path &folder)
{
	const auto until = std::chrono::steady_clock::now() + patience;

	for (;;) {
		try {
			return client(folder / "socket");
		} catch (const std::exception &) {
			if (std::chrono::steady_clock::now() >= until || has_ended(process)) {
				show_log(folder);
				throw;
			}
		}
		std::this_thread::sleep_for(between_questions);
	}
}

} // namespace

const flavour plain = {"plain", {}};
const flavour forked = {"cowsnap", {"LD_PRELOAD=/usr/lib/cowsnap/libcowsnap-fork.so"}};

flavour prepared(std::uint64_t rate)
{
	flavour result = forked;

	result.name = "cowsnap, prepared";
	result.environment.push_back("COWSNAP_FORK_PREPARE=" + std::to_string(rate));
	return result;
}

server::server(fs::path folder, const flavour &memory, const std::vector<std::string> &options)
	: folder_(std::move(folder)), process_(start(folder_, memory, options)),
	  control_(first_connection(process_, folder_)), exceptions_(std::uncaught_exceptions())
{
	wait_until("loading", "0");
}

server::~server()
{
	if (std::uncaught_exceptions() > exceptions_)
		show_log(folder_);
}

std::string server::info(const std::string &field)
{
	const std::string all = "\n" + control_.call({"INFO", "everything"}), key = "\n" + field + ":";
	const std::size_t at = all.find(key);

	if (at == std::string::npos)
		throw std::runtime_error("INFO has no " + field);
	return all.substr(at + key.size(), all.find_first_of("\r\n", at + key.size()) - at - key.size());
}

double server::cpu_time()
{
	double sum = 0;

	for (const char *const field : {"used_cpu_user", "used_cpu_sys", "used_cpu_user_children",
					"used_cpu_sys_children"})
		sum += std::stod(info(field));
	return sum;
}

void server::wait_until(const std::string &field, std::string_view value)
{
	const auto until = std::chrono::steady_clock::now() + patience;

	while (info(field) != value) {
		if (std::chrono::steady_clock::now() >= until)
			throw std::runtime_error("waited in vain for " + field + ":" + std::string(value));
		std::this_thread::sleep_for(between_questions);
	}
}

bool server::has_child()
{
	return info("rdb_bgsave_in_progress") == "1" || info("aof_rewrite_in_progress") == "1";
}

void server::wait_for_child()
{
	for (const char *const field : {"rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled"})
		wait_until(field, "0");
}

void server::end_child()
{
	const std::string me = std::to_string(pid());
	std::ifstream children("/proc/" + me + "/task/" + me + "/children");
	pid_t child = 0;

	if (!(children >> child))
		throw std::runtime_error("the server has no child");
	cowsnap_test::check(::kill(child, SIGUSR1), "kill");
	wait_for_child();
}

void server::stop()
{
	control_.send({"SHUTDOWN", "NOSAVE"});
	try {
		control_.receive();
	} catch (const refusal &) {
		throw;
	} catch (const std::exception &) {
		/* It ends without an answer. */
	}
	if (!process_.succeeded()) {
		show_log(folder_);
		throw std::runtime_error("the server did not end well");
	}
}

} // namespace cowsnap_redis
