// SPDX-License-Identifier: GPL-2.0-only
#include "python.hpp"

#include <stdexcept>

#include <unistd.h>

#include <nlohmann/json.hpp>

namespace cowsnap_prefork {
namespace {

constexpr const char *program = "/usr/bin/python3", *script = "/usr/share/cowsnap/warm.py";

[[noreturn]] void become_python(const flavour &memory, const size &size)
{
	std::vector<std::string> words = {program, "-B", script, std::to_string(size.items),
					  std::to_string(size.workers)};
	/* Where in a dict a name is found depends on chance otherwise, and so does what is copied. */
	std::vector<std::string> environment = {"PATH=/usr/bin:/bin", "PYTHONHASHSEED=0"};

	if (!memory.libraries.empty())
		environment.push_back("LD_PRELOAD=" + memory.libraries);
	::execve(program, cowsnap_test::pointers_to(words).data(), cowsnap_test::pointers_to(environment).data());
	throw std::system_error(errno, std::generic_category(), program);
}

} // namespace

python::python(const flavour &memory, const size &size)
	: name_(memory.name), process_([&] {
		  cowsnap_test::check(::dup2(input_.read_end.get(), STDIN_FILENO), "dup2");
		  cowsnap_test::check(::dup2(output_.write_end.get(), STDOUT_FILENO), "dup2");
		  become_python(memory, size);
	  })
{
	input_.read_end.reset();
	output_.write_end.reset();
}

std::string python::line()
{
	std::string result;

	for (char next = 0; next != '\n'; result += next)
		if (cowsnap_test::check(::read(output_.read_end.get(), &next, 1), "read") == 0)
			throw std::runtime_error("Python ended too early, " + name_ + "; it said: " + result);
	return result;
}

served python::wait_until_served()
{
	const auto said = nlohmann::json::parse(line());
	served result;

	said.at("made").get_to(result.made);
	said.at("served").get_to(result.work);
	said.at("read").get_to(result.read);
	said.at("pauses").get_to(result.pauses);
	said.at("heap").get_to(result.heap);
	said.at("pss").get_to(result.pss);
	said.at("unchanged").get_to(result.unchanged);
	said.at("answers").get_to(result.answers);
	said.at("workers").get_to(result.workers);
	return result;
}

closed python::close()
{
	input_.write_end.reset();

	const auto said = nlohmann::json::parse(line());
	closed result;

	said.at("heaps").get_to(result.heaps);
	said.at("statuses").get_to(result.statuses);
	if (!process_.succeeded())
		throw std::runtime_error("Python did not end well, " + name_);
	return result;
}

} // namespace cowsnap_prefork
