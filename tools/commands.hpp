// SPDX-License-Identifier: GPL-2.0-only
/* What can be asked of each command. They return how the process is to exit. */
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "failure.hpp"

namespace cowsnap_command {

/* A new region, as the command line describes it. */
struct new_region {
	std::uint64_t length = 0;
	std::string name;
	std::uint64_t granule = 0;
	std::uint64_t limit = 0;
};

struct list_options {
	bool json = false;
};
outcome list(const list_options &options);

struct stat_options {
	std::string region;
	bool json = false;
};
outcome stat(const stat_options &options);

struct top_options {
	double interval = 2;
	/* 0 for as long as nobody interrupts it. */
	std::uint64_t count = 0;
};
outcome top(const top_options &options);

struct run_options {
	std::optional<new_region> create;
	std::vector<std::string> regions;
	std::vector<std::string> program;
};
outcome run(const run_options &options);

struct fork_options {
	std::string region;
	bool snapshot = false;
	std::vector<std::string> program;
};
outcome fork(const fork_options &options);

struct fork_run_options {
	/* Bytes per second that PREPARE may see to, 0 for none. */
	std::uint64_t prepare = 0;
	/* A library whose malloc() calls mmap(). */
	std::string allocator;
	std::vector<std::string> program;
};
outcome fork_run(const fork_run_options &options);

struct diff_command_options {
	std::string region;
	std::string other;
	bool exact = false;
	bool json = false;
};
outcome diff(const diff_command_options &options);

struct save_options {
	std::string region;
	std::string file;
};
outcome save(const save_options &options);

struct load_options {
	std::string file;
	/* Into this one, or into a new one for a program. */
	std::string into;
	new_region create;
	std::vector<std::string> program;
};
outcome load(const load_options &options);

struct send_options {
	std::string region;
	/* What the receiver has already; empty when it has nothing. */
	std::string base;
	std::uint64_t from = 0;
};
outcome send(const send_options &options);

struct receive_options {
	std::string region;
	/* Where what arrived is kept when the stream ends early. */
	std::string partial;
	/* Only say where to go on from. */
	bool tell = false;
};
outcome receive(const receive_options &options);

struct doctor_options {
	std::string root;
	bool json = false;
};
outcome doctor(const doctor_options &options);

struct bench_options {
	std::uint64_t size = 64 << 20;
	bool json = false;
};
outcome bench(const bench_options &options);

} // namespace cowsnap_command
