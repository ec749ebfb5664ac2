// SPDX-License-Identifier: GPL-2.0-only
/*
 * By the name that it is run as the program is one of three: preload_test, as the
 * environment has it; preload_jemalloc_test, with jemalloc behind what is preloaded;
 * preload_plain_test, with nothing preloaded.
 */
#include <cstdlib>
#include <filesystem>
#include <string>

#include "suite.hpp"

using namespace cowsnap_test;

namespace {

void choose_kind(const std::string &name)
{
	const char *const preloaded = std::getenv("LD_PRELOAD");
	const char *const jemalloc = std::getenv("COWSNAP_JEMALLOC");
	const std::string kind = std::string(kind_variable) + "=";
	const auto shorter = [](const char *scale) {
		const char *const wanted = std::getenv("COWSNAP_SCALE");

		return std::string("COWSNAP_SCALE=") + (wanted ? wanted : scale);
	};

	if (std::getenv(kind_variable))
		return;
	/* What goes on for long does so with the library alone. */
	if (name == "preload_jemalloc_test")
		become({}, {kind + "jemalloc", shorter("0.5"),
			    "LD_PRELOAD=" + std::string(preloaded ? preloaded : "") + " " +
				    (jemalloc ? jemalloc : "libjemalloc.so.2")});
	if (name == "preload_plain_test")
		become({}, {kind + "plain", shorter("0.2"), "LD_PRELOAD", "GTEST_FILTER=-served*"});
}

} // namespace

int main(int argc, char **argv)
{
	choose_kind(std::filesystem::path(argv[0]).filename());
	if (argc == 3 && std::string_view(argv[1]) == "--role")
		return role::play(argv[2]);
	/* From here on there is a region, whatever the first case does. */
	const mapping first = anonymous(1 << 20);

	return ktap::run(argc, argv);
}
