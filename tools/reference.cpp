// SPDX-License-Identifier: GPL-2.0-only
#include "reference.hpp"

#include <cerrno>
#include <charconv>
#include <system_error>

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "failure.hpp"

namespace cowsnap_command {
namespace {

/* A number that is all of @text; -1 for another text. */
int number_in(std::string_view text)
{
	int number = -1;
	const auto [end, error] =
		std::from_chars(text.data(), text.data() + text.size(), number);

	return error == std::errc() && end == text.data() + text.size() ? number : -1;
}

cowsnap::descriptor inherited(int fd)
{
	cowsnap::descriptor copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));

	if (!copy)
		throw failure(outcome::failed,
			      fmt::format("descriptor {} is not open here; start this by "
					  "`cowsnap run`, or name a region as PID:FD, which "
					  "`cowsnap ls` shows",
					  fd));
	return copy;
}

cowsnap::descriptor of_process(int pid, int fd)
{
	const cowsnap::descriptor process(
		static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));

	if (!process)
		throw failure(outcome::failed,
			      fmt::format("there is no process {}; `cowsnap ls` shows who holds "
					  "regions",
					  pid));

	cowsnap::descriptor copy(
		static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), fd, 0)));

	if (copy)
		return copy;
	if (errno == EPERM)
		throw failure(outcome::failed,
			      fmt::format("process {} may not be looked into; that takes the "
					  "right to ptrace(2) it, so run this as root or as its "
					  "user, with kernel.yama.ptrace_scope at 0",
					  pid));
	if (errno == EBADF)
		throw failure(outcome::failed,
			      fmt::format("process {} has no descriptor {}; `cowsnap ls` shows "
					  "those of regions",
					  pid, fd));
	throw std::system_error(errno, std::generic_category(), "pidfd_getfd");
}

} // namespace

cowsnap::device open_device()
{
	std::error_code error;
	cowsnap::device device = cowsnap::device::open(error);

	if (error)
		throw failure(outcome::failed,
			      fmt::format("{} cannot be used: {}; `cowsnap doctor` says what "
					  "mends it",
					  cowsnap::device_path, error.message()));
	return device;
}

cowsnap::descriptor descriptor_of(const std::string &reference)
{
	const std::size_t colon = reference.find(':');

	if (colon == reference.npos) {
		const int fd = number_in(reference);

		if (fd >= 0)
			return inherited(fd);
	} else {
		const int pid = number_in(std::string_view(reference).substr(0, colon));
		const int fd = number_in(std::string_view(reference).substr(colon + 1));

		if (pid > 0 && fd >= 0)
			return of_process(pid, fd);
	}
	throw failure(outcome::misused,
		      fmt::format("{} is no name of a region; give the number of a descriptor "
				  "that was inherited, or PID:FD",
				  reference));
}

any_member member_of(const std::string &reference)
{
	cowsnap::descriptor fd = descriptor_of(reference);
	std::error_code error;
	cowsnap::region region = cowsnap::region::adopt(std::move(fd), error);

	if (!error)
		return region;
	if (error == std::errc::operation_not_permitted)
		return cowsnap::snapshot::adopt(std::move(fd));
	throw failure(outcome::failed,
		      fmt::format("{} is a descriptor of something else, not of a region; "
				  "`cowsnap ls` shows those of regions",
				  reference));
}

cowsnap::region region_of(const std::string &reference)
{
	any_member any = member_of(reference);

	if (cowsnap::region *const region = std::get_if<cowsnap::region>(&any))
		return std::move(*region);
	throw failure(outcome::failed,
		      fmt::format("{} is a snapshot, which nobody can change; fork it, and use "
				  "the fork",
				  reference));
}

cowsnap::snapshot still_of(const std::string &reference)
{
	any_member any = member_of(reference);

	if (cowsnap::snapshot *const snapshot = std::get_if<cowsnap::snapshot>(&any))
		return std::move(*snapshot);
	return base_of(any).take_snapshot();
}

} // namespace cowsnap_command
