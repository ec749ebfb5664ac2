// SPDX-License-Identifier: GPL-2.0-only
#include "benchmark.hpp"

#include <array>
#include <sstream>
#include <stdexcept>
#include <vector>

#include <unistd.h>

#include "keys.hpp"
#include "process.hpp"

namespace cowsnap_redis {
namespace {

constexpr const char *program = "/usr/bin/redis-benchmark";

std::string output_of(std::vector<std::string> words)
{
	cowsnap_test::pipe_pair pipe;
	cowsnap_test::child process([&] {
		cowsnap_test::check(::dup2(pipe.write_end.get(), STDOUT_FILENO), "dup2");
		cowsnap_test::check(::execv(program, cowsnap_test::pointers_to(words).data()), program);
	});
	std::array<char, 4096> buffer = {};
	std::string all;

	pipe.write_end.reset();
	while (const ssize_t got =
		       cowsnap_test::check(::read(pipe.read_end.get(), buffer.data(), buffer.size()), "read"))
		all.append(buffer.data(), static_cast<std::size_t>(got));
	if (!process.succeeded())
		throw std::runtime_error("redis-benchmark failed: " + all);
	return all;
}

/* "SET","1234.5",... without the quotes. */
std::vector<std::string> fields(const std::string &line)
{
	std::vector<std::string> result;
	std::istringstream text(line);

	for (std::string field; std::getline(text, field, ',');)
		result.push_back(field.size() > 2 ? field.substr(1, field.size() - 2) : field);
	return result;
}

} // namespace

std::map<std::string, speed> benchmark(const server &of, std::size_t keys, std::size_t requests)
{
	std::map<std::string, speed> result;
	std::istringstream lines(
		output_of({program, "-s", of.socket(), "--csv", "-t", "set,get", "-c", "8", "-P", "8", "-d",
			   std::to_string(value_size), "-r", std::to_string(keys), "-n", std::to_string(requests)}));

	/* A line that names the fields comes first: test, rps, and latencies, of which the last is the highest. */
	for (std::string line; std::getline(lines, line);) {
		const std::vector<std::string> found = fields(line);

		if (found.size() == 8 && found[0] != "test")
			result[found[0]] = {std::stod(found[1]), std::stod(found[7])};
	}
	if (!result.contains("SET") || !result.contains("GET"))
		throw std::runtime_error("redis-benchmark says something else than it did: " + lines.str());
	return result;
}

} // namespace cowsnap_redis
