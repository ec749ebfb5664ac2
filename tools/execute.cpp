// SPDX-License-Identifier: GPL-2.0-only
/* run and fork. */
#include "execute.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <sstream>
#include <system_error>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "reference.hpp"

namespace cowsnap_command {
namespace {

/* Those of the commands around this one that are still open. */
std::vector<int> inherited()
{
	const char *const text = std::getenv("COWSNAP_FDS");
	std::istringstream numbers(text ? text : "");
	std::vector<int> fds;

	for (int fd = -1; numbers >> fd;)
		if (::fcntl(fd, F_GETFD) >= 0)
			fds.push_back(fd);
	return fds;
}

/* A copy that stays open in the program; those that it is copied from do not count. */
int pass_on(const cowsnap::descriptor &fd)
{
	const int number = ::fcntl(fd.get(), F_DUPFD, 3);

	if (number < 0)
		throw std::system_error(errno, std::generic_category(),
					"a descriptor cannot be passed on");
	return number;
}

/* Above all that programs use, to leave the low numbers free. */
void move_up(cowsnap::descriptor &fd)
{
	cowsnap::descriptor copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 512));

	if (copy)
		fd = std::move(copy);
}

void require_program(const std::vector<std::string> &program)
{
	if (program.empty())
		throw failure(outcome::misused,
			      "there is no program to execute; name one after --");
}

} // namespace

cowsnap::region create(const new_region &wanted)
{
	std::error_code error;
	cowsnap::region made = open_device().create({.length = wanted.length,
						     .limit = wanted.limit,
						     .granule = wanted.granule,
						     .name = wanted.name},
						    error);

	if (error == std::errc::invalid_argument)
		throw failure(outcome::misused,
			      "there cannot be such a region; the length is at most 2^63-1, the "
			      "granule a power of two from 4K to 2M, the name at most 31 bytes");
	if (error)
		throw std::system_error(error, "a region cannot be created");
	return made;
}

void execute(const std::vector<std::string> &program, std::vector<cowsnap::descriptor> added)
{
	std::vector<int> fds = inherited();
	std::vector<char *> arguments;

	require_program(program);
	for (cowsnap::descriptor &fd : added)
		move_up(fd);
	for (const cowsnap::descriptor &fd : added)
		fds.push_back(pass_on(fd));
	::setenv("COWSNAP_FDS", fmt::format("{}", fmt::join(fds, " ")).c_str(), 1);
	for (const std::string &argument : program)
		arguments.push_back(const_cast<char *>(argument.c_str()));
	arguments.push_back(nullptr);
	/* This command ignores it, which the program would inherit. */
	std::signal(SIGPIPE, SIG_DFL);
	::execvp(arguments[0], arguments.data());

	const std::error_code error(errno, std::generic_category());

	throw failure(error == std::errc::no_such_file_or_directory ? outcome::not_found
								    : outcome::not_executable,
		      fmt::format("{} cannot be executed: {}; name a program that is in PATH, "
				  "or give its path",
				  program[0], error.message()));
}

outcome run(const run_options &options)
{
	std::vector<cowsnap::descriptor> added;

	require_program(options.program);
	if (options.create)
		added.push_back(create(*options.create).release());
	for (const std::string &reference : options.regions) {
		any_member any = member_of(reference);

		added.push_back(
			std::visit([](auto &member) { return member.release(); }, any));
	}
	execute(options.program, std::move(added));
}

outcome fork(const fork_options &options)
{
	std::vector<cowsnap::descriptor> added;

	require_program(options.program);
	{
		const any_member any = member_of(options.region);
		const cowsnap::member &parent = base_of(any);

		added.push_back(options.snapshot ? parent.take_snapshot().release()
						 : parent.fork().release());
	}
	execute(options.program, std::move(added));
}

} // namespace cowsnap_command
