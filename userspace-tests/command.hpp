// SPDX-License-Identifier: GPL-2.0-only
/* Running the command `cowsnap`, which lies beside the test. */
#pragma once

#include <cerrno>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "region.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

inline std::filesystem::path beside(std::string_view name)
{
	return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

/* A file without a name, which takes what a program says however much that is. */
class scratch {
public:
	explicit scratch(std::string_view text = {})
		: fd_(check(::memfd_create("scratch", MFD_CLOEXEC), "memfd_create"))
	{
		if (::write(fd_.get(), text.data(), text.size()) !=
		    static_cast<ssize_t>(text.size()))
			throw std::system_error(errno, std::generic_category(), "write");
		::lseek(fd_.get(), 0, SEEK_SET);
	}

	int fd() const noexcept { return fd_.get(); }

	std::string text() const
	{
		const off_t size = ::lseek(fd_.get(), 0, SEEK_END);
		std::string all(static_cast<std::size_t>(size), '\0');

		check(::pread(fd_.get(), all.data(), all.size(), 0), "pread");
		return all;
	}

private:
	unique_fd fd_;
};

/* What a program that ended has said. */
struct ended {
	int status = -1;
	std::string out;
	std::string err;
};

/* What it is given: descriptors by the numbers that it has them at, and its input. */
struct given_to {
	std::map<int, int> fds = {};
	std::string_view input = {};
};

inline ended run_program(std::vector<std::string> words, const given_to &what = {})
{
	const scratch in(what.input);
	const scratch out;
	const scratch err;
	posix_spawn_file_actions_t actions;
	std::vector<char *> arguments;
	pid_t pid = 0;
	ended result;

	for (std::string &word : words)
		arguments.push_back(word.data());
	arguments.push_back(nullptr);
	::posix_spawn_file_actions_init(&actions);
	::posix_spawn_file_actions_adddup2(&actions, in.fd(), 0);
	::posix_spawn_file_actions_adddup2(&actions, out.fd(), 1);
	::posix_spawn_file_actions_adddup2(&actions, err.fd(), 2);

	/* Copies far above, so that no number is overwritten before it is copied. */
	std::vector<unique_fd> copies;

	for (const auto &[number, fd] : what.fds) {
		copies.emplace_back(check(::fcntl(fd, F_DUPFD_CLOEXEC, 700), "fcntl"));
		::posix_spawn_file_actions_adddup2(&actions, copies.back().get(), number);
	}

	const int error = ::posix_spawn(&pid, arguments[0], &actions, nullptr,
					arguments.data(), environ);

	::posix_spawn_file_actions_destroy(&actions);
	if (error != 0)
		throw std::system_error(error, std::generic_category(), words[0]);
	while (::waitpid(pid, &result.status, 0) < 0 && errno == EINTR)
		;
	result.status = WIFEXITED(result.status) ? WEXITSTATUS(result.status) : -1;
	result.out = out.text();
	result.err = err.text();
	return result;
}

/* cowsnap @words... */
inline ended run_command(std::vector<std::string> words, const given_to &what = {})
{
	words.insert(words.begin(), beside("cowsnap"));
	return run_program(std::move(words), what);
}

} // namespace cowsnap_test
