// SPDX-License-Identifier: MIT
/*
 * An index of std::pmr containers that lives in a region: saved by a snapshot, changed,
 * read as it was by a child process, and rolled back.
 */
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <memory_resource>
#include <stdexcept>
#include <string>
#include <string_view>

#include <sys/wait.h>
#include <unistd.h>

#include <cowsnap/cowsnap.hpp>
#include <cowsnap/memory_resource.hpp>

namespace {

using index_of_words = std::pmr::map<std::pmr::string, long>;

void expect(bool holds, std::string_view what)
{
	if (!holds)
		throw std::runtime_error("it is not so that " + std::string(what));
}

/* Ends with the status that says whether @snapshot has what it should. */
[[noreturn]] void read_in_child(const cowsnap::snapshot &snapshot, cowsnap::mapping &live)
try {
	const void *const address = live.data();

	/* Pointers in the containers hold at the address where they were made. */
	live.unmap();

	const cowsnap::const_mapping then = snapshot.map({.address = address});
	const auto *const index = cowsnap::find_in_segment<index_of_words>(then, "index");

	expect(index && index->size() == 2, "the snapshot has two words");
	expect(index->find("two")->second == 2, "two is 2 in the snapshot");
	std::cout << "the child reads " << index->size() << " words\n"
		  << std::flush;
	std::_Exit(EXIT_SUCCESS);
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	std::_Exit(EXIT_FAILURE);
}

} // namespace

int main()
try {
	const auto device = cowsnap::device::open();
	/* A gigabyte of addresses; memory is taken by what is stored. */
	auto region = device.create({.length = 1 << 30, .name = "index"});
	auto live = region.map();
	auto segment = cowsnap::create_segment(live);
	cowsnap::segment_resource memory(segment);
	auto &index = *segment.construct<index_of_words>("index")(&memory);

	index["one"] = 1;
	index["two"] = 2;

	const auto saved = region.take_snapshot();

	index["two"] = 22;
	for (long number = 3; number < 1000; number++)
		index[std::pmr::string("number ") + std::to_string(number).c_str()] = number;

	const pid_t child = ::fork();

	if (child == 0)
		read_in_child(saved, live);

	int status = 0;

	expect(child > 0 && ::waitpid(child, &status, 0) == child && status == 0,
	       "a child can read the snapshot");
	expect(index.size() == 999 && index["two"] == 22, "the index went on");
	std::cout << "the index has " << index.size() << " words\n";

	const auto changed = region.restore(saved);

	expect(index.size() == 2 && index["two"] == 2, "the index was rolled back");
	std::cout << "after " << changed << " bytes were restored it has " << index.size()
		  << '\n';
	index["three"] = 3;
	expect(index.size() == 3 && segment.check_sanity(), "the index goes on from there");
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
