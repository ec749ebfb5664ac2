// SPDX-License-Identifier: MIT
/* The options of an example: numbers and names that have defaults. */
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <variant>
#include <vector>

#include <getopt.h>

namespace example {

struct option {
	const char *name;
	/* Where its value goes, which holds the default until then. */
	std::variant<std::uint64_t *, std::string *> value;
	const char *what;
};

inline std::uint64_t to_number(const char *name, const std::string &text)
{
	std::uint64_t number = 0;
	const char *const end = text.data() + text.size();
	const auto [stopped, error] = std::from_chars(text.data(), end, number);

	if (error != std::errc() || stopped != end || number == 0)
		throw std::invalid_argument("--" + std::string(name) +
					    " takes a number from 1 on, not \"" + text + '"');
	return number;
}

/* Shows what there is and ends the program. */
[[noreturn]] inline void show_options(const char *program, std::span<const option> options)
{
	std::cout << "usage: " << program << " [--option value]...\n";
	for (const option &each : options) {
		std::cout << "  --" << each.name << ": " << each.what << " (";
		std::visit([](const auto *value) { std::cout << *value; }, each.value);
		std::cout << ")\n";
	}
	std::exit(EXIT_SUCCESS);
}

inline void read_options(int count, char **words, const std::vector<option> &options)
{
	std::vector<::option> known;
	int at = 0;

	for (const option &each : options)
		known.push_back({each.name, required_argument, nullptr, 1});
	known.push_back({"help", no_argument, nullptr, 2});
	known.push_back({});
	for (int found; (found = ::getopt_long(count, words, "", known.data(), &at)) != -1;) {
		if (found == 2)
			show_options(words[0], options);
		if (found != 1)
			throw std::invalid_argument("--help lists the options");

		const option &which = options[static_cast<std::size_t>(at)];

		if (auto *const number = std::get_if<std::uint64_t *>(&which.value))
			**number = to_number(which.name, ::optarg);
		else
			*std::get<std::string *>(which.value) = ::optarg;
	}
	if (::optind != count)
		throw std::invalid_argument(std::string("what is ") + words[::optind] +
					    "? --help lists the options");
}

} // namespace example
