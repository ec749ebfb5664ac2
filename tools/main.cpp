// SPDX-License-Identifier: GPL-2.0-only
/* The command line of cowsnap(1). */
#include <csignal>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <string>
#include <system_error>

#include <unistd.h>

#include <CLI/CLI.hpp>

#include "commands.hpp"

namespace {

using namespace cowsnap_command;

/* Bytes, with K, M, G or T for powers of 1024. */
CLI::AsSizeValue size_suffixes()
{
	return CLI::AsSizeValue(false);
}

/* A command that is called with what was parsed for it. */
template <typename Options>
CLI::App *add(CLI::App &app, std::function<outcome()> &chosen, const std::string &name,
	      const std::string &what, Options &options, outcome (*call)(const Options &))
{
	CLI::App *const command = app.add_subcommand(name, what);

	command->callback([&chosen, &options, call] {
		chosen = [&options, call] { return call(options); };
	});
	return command;
}

void add_json(CLI::App *command, bool &json)
{
	command->add_flag("--json", json, "print JSON, for scripts");
}

void add_region(CLI::App *command, std::string &region)
{
	command->add_option("REGION", region,
			    "a descriptor that was inherited, or PID:FD of a process")
		->required();
}

CLI::Option *add_program(CLI::App *command, std::vector<std::string> &program)
{
	return command->add_option("PROGRAM", program, "what to execute, after --");
}

void add_new_region(CLI::App *command, new_region &made)
{
	command->add_option("--name", made.name, "its name, of at most 31 bytes");
	command->add_option("--granule", made.granule,
			    "what is shared and copied as a whole, from 4K to 2M")
		->transform(size_suffixes());
	command->add_option("--limit", made.limit,
			    "the most that its family may hold together")
		->transform(size_suffixes());
}

/* What is left of the options when the command line was taken apart. */
struct all_options {
	list_options ls;
	stat_options stat;
	top_options top;
	run_options run;
	new_region created;
	fork_options fork;
	fork_run_options fork_run;
	diff_command_options diff;
	save_options save;
	load_options load;
	send_options send;
	receive_options recv;
	doctor_options doctor;
	bench_options bench;
};

void add_lists(CLI::App &app, std::function<outcome()> &chosen, all_options &all)
{
	CLI::App *command = add(app, chosen, "ls", "list the regions of this machine", all.ls,
				cowsnap_command::list);

	add_json(command, all.ls.json);
	command = add(app, chosen, "stat", "say what a region is, holds and cost", all.stat,
		      cowsnap_command::stat);
	add_region(command, all.stat.region);
	add_json(command, all.stat.json);
	command = add(app, chosen, "top", "watch the regions of this machine", all.top,
		      cowsnap_command::top);
	command->add_option("--interval", all.top.interval, "seconds between two looks")
		->check(CLI::Range(0.01, 86400.0));
	command->add_option("--count", all.top.count, "how often to look; 0 for ever");
}

void add_starters(CLI::App &app, std::function<outcome()> &chosen, all_options &all)
{
	CLI::App *command = add(app, chosen, "run", "execute a program that has regions",
				all.run, cowsnap_command::run);
	CLI::Option *const create =
		command->add_option("--create", all.created.length,
				    "make a region of that length, as 1G")
			->transform(size_suffixes());

	add_new_region(command, all.created);
	for (const char *name : {"--name", "--granule", "--limit"})
		command->get_option(name)->needs(create);
	command->add_option("--region", all.run.regions,
			    "pass on this one; may be repeated")
		->allow_extra_args(false);
	add_program(command, all.run.program);

	command = add(app, chosen, "fork", "execute a program that has a fork of a region",
		      all.fork, cowsnap_command::fork);
	add_region(command, all.fork.region);
	command->add_flag("--snapshot", all.fork.snapshot,
			  "a snapshot, which nobody can change");
	add_program(command, all.fork.program);

	command = add(app, chosen, "fork-run",
		      "execute a program whose fork(2) does not copy its memory", all.fork_run,
		      cowsnap_command::fork_run);
	command->add_option("--prepare", all.fork_run.prepare,
			    "have a thread prepare so many bytes per second for the next fork")
		->transform(size_suffixes());
	command->add_option("--allocator", all.fork_run.allocator,
			    "a library for the program's malloc, as libjemalloc.so.2");
	add_program(command, all.fork_run.program);
	/* What follows the program's name is the program's. */
	command->positionals_at_end();
}

void add_images(CLI::App &app, std::function<outcome()> &chosen, all_options &all)
{
	CLI::App *command = add(app, chosen, "diff", "list where two regions differ", all.diff,
				cowsnap_command::diff);

	command->add_option("A", all.diff.region, "a region")->required();
	command->add_option("B", all.diff.other, "another one of its family")->required();
	command->add_flag("--exact", all.diff.exact,
			  "compare the bytes, and leave out what is equal");
	add_json(command, all.diff.json);

	command = add(app, chosen, "save", "write a region to a sparse file", all.save,
		      cowsnap_command::save);
	add_region(command, all.save.region);
	command->add_option("FILE", all.save.file, "where to; - for standard output")
		->required();

	command = add(app, chosen, "load", "read a region from a file", all.load,
		      cowsnap_command::load);
	command->add_option("FILE", all.load.file, "where from; - for standard input")
		->required();
	CLI::Option *const into =
		command->add_option("--into", all.load.into,
				    "have this region hold it, instead of a new one");
	add_new_region(command, all.load.create);
	for (const char *name : {"--name", "--granule", "--limit"})
		into->excludes(command->get_option(name));
	into->excludes(add_program(command, all.load.program));
}

void add_streams(CLI::App &app, std::function<outcome()> &chosen, all_options &all)
{
	CLI::App *command = add(app, chosen, "send", "write a region to a stream", all.send,
				cowsnap_command::send);

	add_region(command, all.send.region);
	command->add_option("-i,--incremental", all.send.base,
			    "only what is not as in this one, which the receiver has");
	command->add_option("--from", all.send.from, "go on from this offset");

	command = add(app, chosen, "recv", "have a region hold what a stream has", all.recv,
		      cowsnap_command::receive);
	command->add_option("REGION", all.recv.region,
			    "a descriptor that was inherited, or PID:FD of a process");
	command->add_option("--partial", all.recv.partial,
			    "keep in this file what arrives, until all of it did");
	command->add_flag("--tell", all.recv.tell,
			  "only print the offset to go on from with send --from")
		->needs(command->get_option("--partial"));
}

void add_helpers(CLI::App &app, std::function<outcome()> &chosen, all_options &all)
{
	CLI::App *command = add(app, chosen, "doctor",
				"say what keeps cowsnap from working, and what mends it",
				all.doctor, cowsnap_command::doctor);

	add_json(command, all.doctor.json);
	command->add_option("--root", all.doctor.root)->group("");

	command = add(app, chosen, "bench", "measure forks on this machine", all.bench,
		      cowsnap_command::bench);
	command->add_option("--size", all.bench.size, "how large a region to fork")
		->transform(size_suffixes());
	add_json(command, all.bench.json);
}

outcome parse_and_call(int argc, char **argv)
{
	CLI::App app("Memory regions that can be forked: see cowsnap(1).", "cowsnap");
	std::function<outcome()> chosen;
	all_options all;

	app.set_version_flag("--version", "cowsnap " COWSNAP_VERSION);
	app.require_subcommand(1);
	add_lists(app, chosen, all);
	add_starters(app, chosen, all);
	add_images(app, chosen, all);
	add_streams(app, chosen, all);
	add_helpers(app, chosen, all);
	try {
		app.parse(argc, argv);
	} catch (const CLI::ParseError &error) {
		return app.exit(error) == 0 ? outcome::done : outcome::misused;
	}
	if (app.get_subcommand("run")->count("--create"))
		all.run.create = all.created;
	return chosen();
}

} // namespace

int main(int argc, char **argv)
{
	using cowsnap_command::outcome;

	/* A reader that went away is an error as any other. */
	std::signal(SIGPIPE, SIG_IGN);
	try {
		const outcome how = parse_and_call(argc, argv);

		std::cout.flush();
		if (!std::cout) {
			std::cerr << "cowsnap: the output cannot be written; look whether its "
				     "disk is full or its reader went away\n";
			return static_cast<int>(outcome::failed);
		}
		return static_cast<int>(how);
	} catch (const cowsnap_command::failure &error) {
		std::cerr << "cowsnap: " << error.what() << '\n';
		return static_cast<int>(error.how());
	} catch (const std::exception &error) {
		std::cerr << "cowsnap: " << error.what() << '\n';
		return static_cast<int>(outcome::failed);
	}
}
