// SPDX-License-Identifier: GPL-2.0-only
/* fork-run: a program whose fork(2) is one of a region. */
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include <fmt/format.h>

#include "commands.hpp"
#include "execute.hpp"
#include "reference.hpp"

namespace cowsnap_command {
namespace {

namespace fs = std::filesystem;

/* Where make builds it, or where it is installed. */
std::string find_library()
{
	constexpr const char *name = "libcowsnap-fork.so";
	std::error_code error;
	const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
	const fs::path installed = here.parent_path() / "lib/cowsnap" / name;

	for (const fs::path &path : {here / name, installed})
		if (fs::exists(path, error))
			return path;
	throw failure(outcome::failed,
		      fmt::format("{} is not there, which is for x86-64 only; install this "
				  "command by its package or by make install",
				  installed.string()));
}

} // namespace

outcome fork_run(const fork_run_options &options)
{
	const char *const others = std::getenv("LD_PRELOAD");
	std::string preloaded = find_library();

	/* The library would have the program run as ever where it cannot have a region. */
	open_device();
	if (!options.allocator.empty())
		preloaded += ":" + options.allocator;
	if (others)
		preloaded += fmt::format(":{}", others);
	::setenv("LD_PRELOAD", preloaded.c_str(), 1);
	if (options.prepare > 0)
		::setenv("COWSNAP_FORK_PREPARE", std::to_string(options.prepare).c_str(), 1);
	execute(options.program, {});
}

} // namespace cowsnap_command
