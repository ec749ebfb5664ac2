// SPDX-License-Identifier: GPL-2.0-only
/* save and load: what a region holds, in a file with the same holes. */
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "commands.hpp"
#include "data.hpp"
#include "execute.hpp"
#include "progress.hpp"
#include "reference.hpp"

namespace cowsnap_command {
namespace {

[[noreturn]] void fail(const std::string &file, const char *what, const char *mend)
{
	throw failure(outcome::failed,
		      fmt::format("{} cannot be {}: {}; {}", file, what,
				  std::generic_category().message(errno), mend));
}

/* Where a symbolic link leads to, which is to stay one. What is no file is not replaced. */
std::string file_behind(const std::string &name)
{
	namespace fs = std::filesystem;

	std::error_code error;
	const fs::path real = fs::weakly_canonical(name, error);

	if (!error && fs::exists(real, error) && !fs::is_regular_file(real, error))
		throw failure(outcome::failed,
			      fmt::format("{} is no regular file; name another, or - and redirect "
					  "standard output",
					  name));
	return error ? name : real.string();
}

/* A file that appears under its name when it is complete, and before is removed with this. */
class new_file {
public:
	explicit new_file(const std::string &name)
		: name_(file_behind(name)), part_(name_ + ".XXXXXX")
	{
		fd_ = cowsnap::descriptor(::mkostemp(part_.data(), O_CLOEXEC));
		if (!fd_)
			fail(name, "made", "name a file in a folder that can be written to");

		/* As open(2) would make it. */
		const mode_t mask = ::umask(0);

		::umask(mask);
		::fchmod(fd_.get(), 0666 & ~mask);
	}
	new_file(const new_file &) = delete;
	new_file &operator=(const new_file &) = delete;
	~new_file()
	{
		if (fd_)
			::unlink(part_.c_str());
	}

	int fd() const noexcept { return fd_.get(); }

	void commit()
	{
		if (::fsync(fd_.get()) < 0 ||
		    ::rename(part_.c_str(), name_.c_str()) < 0)
			fail(name_, "written", "look whether its disk is full");
		fd_.close();
	}

private:
	std::string name_;
	std::string part_;
	cowsnap::descriptor fd_;
};

void save_file(const cowsnap::snapshot &from, std::uint64_t length, const std::string &name)
{
	new_file file(name);
	progress shown("saving", length);

	if (::ftruncate(file.fd(), static_cast<off_t>(length)) < 0)
		fail(name, "made that long", "save to another file system");
	each_data(from, 0, length, [&](std::uint64_t start, std::uint64_t size) {
		each_piece(from, start, size, [&](std::uint64_t offset, auto bytes) {
			if (::lseek(file.fd(), static_cast<off_t>(offset), SEEK_SET) < 0)
				fail(name, "written", "name a regular file");
			write_all(file.fd(), bytes);
			shown.at(offset);
		});
	});
	file.commit();
}

void save_pipe(const cowsnap::snapshot &from, std::uint64_t length)
{
	progress shown("saving", length);

	each_piece(from, 0, length, [&](std::uint64_t offset, auto bytes) {
		write_all(STDOUT_FILENO, bytes);
		shown.at(offset);
	});
}

/* All but zeroes, so that these are holes. */
std::uint64_t load_pipe(cowsnap::region &into, int fd)
{
	std::vector<std::byte> buffer(piece);
	std::uint64_t offset = 0;
	progress shown("loading", 0);

	for (;;) {
		const auto bytes = std::span(buffer).first(read_all(fd, buffer));

		if (bytes.empty())
			return offset;
		if (!all_zero(bytes))
			into.write(offset, bytes);
		offset += bytes.size();
		shown.at(offset);
	}
}

std::uint64_t load_file(cowsnap::region &into, int fd, std::uint64_t length)
{
	std::vector<std::byte> buffer(piece);
	progress shown("loading", length);
	off_t data = 0;

	while ((data = ::lseek(fd, data, SEEK_DATA)) >= 0) {
		const off_t hole = ::lseek(fd, data, SEEK_HOLE);

		if (hole < 0 || ::lseek(fd, data, SEEK_SET) < 0)
			break;
		while (data < hole) {
			const auto wanted = std::span(buffer).first(
				std::min<std::uint64_t>(piece,
							static_cast<std::uint64_t>(hole - data)));
			const auto bytes = wanted.first(read_all(fd, wanted));

			if (bytes.empty())
				throw failure(outcome::failed,
					      "the file became shorter while it was read; load "
					      "it again");
			if (!all_zero(bytes))
				into.write(static_cast<std::uint64_t>(data), bytes);
			data += static_cast<off_t>(bytes.size());
			shown.at(static_cast<std::uint64_t>(data));
		}
	}
	if (errno != ENXIO)
		throw std::system_error(errno, std::generic_category(),
					"the file cannot be read");
	return length;
}

/* Has @into, which is all holes, hold the file. */
void load_into(cowsnap::region &into, const std::string &file)
{
	struct stat status = {};
	cowsnap::descriptor opened;
	int fd = STDIN_FILENO;

	if (file != "-") {
		opened = cowsnap::descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
		if (!opened)
			fail(file, "read", "name a file that `cowsnap save` wrote");
		fd = opened.get();
	}
	if (::fstat(fd, &status) < 0)
		fail(file, "read", "name another one");
	/* Standard input may be a file that was read in part. */
	const bool whole = S_ISREG(status.st_mode) && file != "-";

	into.truncate(whole ? load_file(into, fd, static_cast<std::uint64_t>(status.st_size))
			    : load_pipe(into, fd));
}

} // namespace

outcome save(const save_options &options)
{
	const cowsnap::snapshot from = still_of(options.region);
	const std::uint64_t length = from.length();

	if (options.file == "-")
		save_pipe(from, length);
	else
		save_file(from, length, options.file);
	return outcome::done;
}

outcome load(const load_options &options)
{
	if (!options.into.empty()) {
		cowsnap::region into = region_of(options.into);
		cowsnap::region made = into.fork();

		/* Nobody sees a part of it. */
		made.truncate(0);
		load_into(made, options.file);
		into.restore(made);
		return outcome::done;
	}
	if (options.program.empty())
		throw failure(outcome::misused,
			      "a new region would be gone at once; name a program to execute "
			      "after --, or a region after --into");

	cowsnap::region made = create(options.create);
	std::vector<cowsnap::descriptor> added;

	load_into(made, options.file);
	added.push_back(made.release());
	execute(options.program, std::move(added));
}

} // namespace cowsnap_command
