// SPDX-License-Identifier: MIT
/* The members of a family: regions, and snapshots, which nobody can change. */
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/cowsnap.h>

#include <cowsnap/descriptor.hpp>
#include <cowsnap/diff.hpp>
#include <cowsnap/mapping.hpp>
#include <cowsnap/system_call.hpp>

namespace cowsnap {

class region;
class snapshot;

/*
 * What a region and a snapshot have in common. Offsets and lengths are in bytes; one
 * that off_t cannot hold gives EOVERFLOW. All calls may be made by several threads at
 * once, and on one that is empty they give EBADF.
 */
class member {
public:
	/* -1 when it is empty: made so, moved from, closed or released. */
	int fd() const noexcept { return fd_.get(); }
	explicit operator bool() const noexcept { return static_cast<bool>(fd_); }
	void close() noexcept { fd_.close(); }
	[[nodiscard]] descriptor release() noexcept { return std::move(fd_); }

	std::uint64_t length(std::error_code &error) const noexcept
	{
		return detail::file_length(fd(), error);
	}
	std::uint64_t length() const
	{
		return detail::or_throw("cowsnap: length", [&](std::error_code &error) {
			return length(error);
		});
	}

	/*
	 * What it is, holds and cost; cowsnap(4) has each figure. Takes time in proportion
	 * to what no other member holds, and longer where signals come faster than that.
	 */
	cowsnap_stat stat(std::error_code &error) const noexcept
	{
		auto arg = detail::sized<cowsnap_stat>();

		detail::control(fd(), COWSNAP_IOC_STAT, &arg, error);
		return arg;
	}
	cowsnap_stat stat() const
	{
		return detail::or_throw("cowsnap: stat", [&](std::error_code &error) {
			return stat(error);
		});
	}

	/*
	 * A new member that holds what this one holds at one instant of the call, to be
	 * changed or, as a snapshot, never. ENOSPC at a cap, EMFILE, ENFILE, ENOMEM.
	 */
	[[nodiscard]] region fork(std::error_code &error) const noexcept;
	[[nodiscard]] region fork() const;
	[[nodiscard]] snapshot take_snapshot(std::error_code &error) const noexcept;
	[[nodiscard]] snapshot take_snapshot() const;

	/*
	 * Where this one and @other, of the same family, do not share memory: see
	 * diff_view. Both, and @error, must outlive what is returned. Going through it
	 * gives EXDEV when they are of two families, EINVAL for a range that is none.
	 */
	[[nodiscard]] diff_view diff(const member &other, const diff_options &options,
				     std::error_code &error) const noexcept
	{
		return {fd(), other.fd(), options, &error};
	}
	[[nodiscard]] diff_view diff(const member &other, std::error_code &error) const noexcept
	{
		return diff(other, {}, error);
	}
	[[nodiscard]] diff_view diff(const member &other,
				     const diff_options &options = {}) const noexcept
	{
		return {fd(), other.fd(), options, nullptr};
	}

	/*
	 * Fills @bytes from @offset on, and returns how many it filled: fewer than asked
	 * for at the end, or before an error.
	 */
	std::size_t read(std::uint64_t offset, std::span<std::byte> bytes,
			 std::error_code &error) const noexcept
	{
		return transfer(offset, bytes, error, ::pread);
	}
	std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) const
	{
		return detail::or_throw("cowsnap: read", [&](std::error_code &error) {
			return read(offset, bytes, error);
		});
	}

	/* The first byte from @offset on that lies in no hole, if there is one. */
	std::optional<std::uint64_t> next_data(std::uint64_t offset,
					       std::error_code &error) const noexcept
	{
		return seek(offset, SEEK_DATA, error);
	}
	std::optional<std::uint64_t> next_data(std::uint64_t offset) const
	{
		return detail::or_throw("cowsnap: next_data", [&](std::error_code &error) {
			return next_data(offset, error);
		});
	}

	/*
	 * The first byte from @offset on that lies in a hole, as what is behind the end
	 * does; nothing when @offset is not below the length.
	 */
	std::optional<std::uint64_t> next_hole(std::uint64_t offset,
					       std::error_code &error) const noexcept
	{
		return seek(offset, SEEK_HOLE, error);
	}
	std::optional<std::uint64_t> next_hole(std::uint64_t offset) const
	{
		return detail::or_throw("cowsnap: next_hole", [&](std::error_code &error) {
			return next_hole(offset, error);
		});
	}

	/* To be read; of a region it shows what is stored later, too. */
	[[nodiscard]] const_mapping map(const map_options &options,
					std::error_code &error) const noexcept
	{
		return detail::map<const std::byte>(fd(), MAP_SHARED, options, error);
	}
	[[nodiscard]] const_mapping map(std::error_code &error) const noexcept
	{
		return map({}, error);
	}
	[[nodiscard]] const_mapping map(const map_options &options = {}) const
	{
		return detail::or_throw("cowsnap: map", [&](std::error_code &error) {
			return map(options, error);
		});
	}

protected:
	member() noexcept = default;
	explicit member(descriptor fd) noexcept : fd_(std::move(fd)) {}
	member(member &&) noexcept = default;
	member &operator=(member &&) noexcept = default;
	~member() = default;

	/* Whether @fd is a snapshot; ENOTTY when it is not even a region. */
	static bool is_snapshot(const descriptor &fd, std::error_code &error) noexcept
	{
		auto arg = detail::sized<cowsnap_stat>();

		return detail::control(fd.get(), COWSNAP_IOC_STAT, &arg, error) &&
		       (arg.state & COWSNAP_STAT_F_READONLY);
	}

	/* pread(2) or pwrite(2), until all is done, nothing is left or it fails. */
	template <typename Byte, typename Call>
	std::size_t transfer(std::uint64_t offset, std::span<Byte> bytes,
			     std::error_code &error, Call &&call) const noexcept
	{
		std::size_t done = 0;

		error.clear();
		while (done < bytes.size()) {
			const off_t from = detail::to_off(offset + done, error);

			if (error)
				break;

			const auto some = detail::system_call(error, [&] {
				return call(fd(), bytes.data() + done,
					    bytes.size() - done, from);
			});

			if (some <= 0)
				break;
			done += static_cast<std::size_t>(some);
		}
		return done;
	}

private:
	descriptor fork(std::uint32_t flags, std::error_code &error) const noexcept
	{
		auto arg = detail::sized<cowsnap_fork>();

		arg.flags = flags;
		if (!detail::control(fd(), COWSNAP_IOC_FORK, &arg, error))
			return {};
		return descriptor(arg.fd);
	}

	std::optional<std::uint64_t> seek(std::uint64_t offset, int whence,
					  std::error_code &error) const noexcept
	{
		const off_t from = detail::to_off(offset, error);

		if (error)
			return {};

		const off_t found = detail::system_call(
			error, [&] { return ::lseek(fd(), from, whence); });

		if (error == std::errc::no_such_device_or_address)
			error.clear();
		if (found < 0)
			return {};
		return static_cast<std::uint64_t>(found);
	}

	descriptor fd_;
};

/* A member that can be changed; through a constant one it cannot. */
class region : public member {
public:
	region() noexcept = default;

	/*
	 * Takes over a descriptor that came from elsewhere, say by a unix(7) socket. It
	 * stays the caller's when it is not a region's: ENOTTY, or is a snapshot's: EPERM.
	 * It is asked by stat(), which may take as long.
	 */
	[[nodiscard]] static region adopt(descriptor &&fd, std::error_code &error) noexcept
	{
		if (is_snapshot(fd, error))
			detail::fail(error, std::errc::operation_not_permitted);
		return error ? region() : region(std::move(fd));
	}
	[[nodiscard]] static region adopt(descriptor &&fd)
	{
		return detail::or_throw("cowsnap: adopt", [&](std::error_code &error) {
			return adopt(std::move(fd), error);
		});
	}

	/*
	 * Writes all of @bytes, extending the region where they go beyond its end. Returns
	 * how many it wrote, which is fewer only before an error: ENOSPC at a cap, EFBIG
	 * beyond RLIMIT_FSIZE, ENOMEM.
	 */
	std::size_t write(std::uint64_t offset, std::span<const std::byte> bytes,
			  std::error_code &error) noexcept
	{
		return transfer(offset, bytes, error, ::pwrite);
	}
	std::size_t write(std::uint64_t offset, std::span<const std::byte> bytes)
	{
		return detail::or_throw("cowsnap: write", [&](std::error_code &error) {
			return write(offset, bytes, error);
		});
	}

	/* Changes the length; what is new reads as zeroes. */
	void truncate(std::uint64_t length, std::error_code &error) noexcept
	{
		const off_t size = detail::to_off(length, error);

		if (!error)
			detail::system_call(error,
					    [&] { return ::ftruncate(fd(), size); });
	}
	void truncate(std::uint64_t length)
	{
		detail::or_throw("cowsnap: truncate", [&](std::error_code &error) {
			truncate(length, error);
		});
	}

	/*
	 * Makes a hole of the granules that lie in [@offset, @offset + @length) as a whole,
	 * and zeroes the rest of it. EINVAL when @length is 0; ENOSPC when a granule at an
	 * end is shared and cannot be copied.
	 */
	void punch(std::uint64_t offset, std::uint64_t length,
		   std::error_code &error) noexcept
	{
		const off_t from = detail::to_off(offset, error);

		if (error)
			return;

		const off_t size = detail::to_off(length, error);

		if (error)
			return;
		detail::system_call(error, [&] {
			return ::fallocate(fd(),
					   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					   from, size);
		});
	}
	void punch(std::uint64_t offset, std::uint64_t length)
	{
		detail::or_throw("cowsnap: punch", [&](std::error_code &error) {
			punch(offset, length, error);
		});
	}

	/*
	 * Has this region hold what @source, of the same family, holds at one instant of
	 * the call, its length included, in all mappings of all processes. Returns the
	 * bytes of the granules that the two did not share. EXDEV for another family.
	 */
	std::uint64_t restore(const member &source, std::error_code &error) noexcept
	{
		auto arg = detail::sized<cowsnap_restore>();

		arg.src_fd = source.fd();
		detail::control(fd(), COWSNAP_IOC_RESTORE, &arg, error);
		return arg.changed;
	}
	std::uint64_t restore(const member &source)
	{
		return detail::or_throw("cowsnap: restore", [&](std::error_code &error) {
			return restore(source, error);
		});
	}

	/*
	 * Does most of the next fork's work, for at most @budget granules, or for all if
	 * that is 0. Returns how many are left, also when a signal ended it early. Nobody
	 * sees a change.
	 */
	std::uint64_t prepare(std::uint64_t budget, std::error_code &error) const noexcept
	{
		auto arg = detail::sized<cowsnap_prepare>();

		arg.budget = budget;
		detail::control(fd(), COWSNAP_IOC_PREPARE, &arg, error);
		return arg.left;
	}
	std::uint64_t prepare(std::uint64_t budget = 0) const
	{
		return detail::or_throw("cowsnap: prepare", [&](std::error_code &error) {
			return prepare(budget, error);
		});
	}

	using member::map;
	/* To be read and stored to, by all who map the region alike. */
	[[nodiscard]] mapping map(const map_options &options,
				  std::error_code &error) noexcept
	{
		return detail::map<std::byte>(fd(), MAP_SHARED, options, error);
	}
	[[nodiscard]] mapping map(std::error_code &error) noexcept
	{
		return map({}, error);
	}
	[[nodiscard]] mapping map(const map_options &options = {})
	{
		return detail::or_throw("cowsnap: map", [&](std::error_code &error) {
			return map(options, error);
		});
	}

private:
	friend class device;
	friend class member;
	explicit region(descriptor fd) noexcept : member(std::move(fd)) {}
};

/* A member that nobody can change, whoever has it. */
class snapshot : public member {
public:
	snapshot() noexcept = default;

	/*
	 * Takes over a descriptor that came from elsewhere. It stays the caller's when it
	 * is not a region's: ENOTTY, or is one's that can be changed: EINVAL.
	 */
	[[nodiscard]] static snapshot adopt(descriptor &&fd,
					    std::error_code &error) noexcept
	{
		if (!is_snapshot(fd, error) && !error)
			detail::fail(error, std::errc::invalid_argument);
		return error ? snapshot() : snapshot(std::move(fd));
	}
	[[nodiscard]] static snapshot adopt(descriptor &&fd)
	{
		return detail::or_throw("cowsnap: adopt", [&](std::error_code &error) {
			return adopt(std::move(fd), error);
		});
	}

	/* What is stored there is this process's own, and the snapshot does not change. */
	[[nodiscard]] mapping map_private(const map_options &options,
					  std::error_code &error) const noexcept
	{
		return detail::map<std::byte>(fd(), MAP_PRIVATE, options, error);
	}
	[[nodiscard]] mapping map_private(std::error_code &error) const noexcept
	{
		return map_private({}, error);
	}
	[[nodiscard]] mapping map_private(const map_options &options = {}) const
	{
		return detail::or_throw("cowsnap: map_private", [&](std::error_code &error) {
			return map_private(options, error);
		});
	}

private:
	friend class device;
	friend class member;
	explicit snapshot(descriptor fd) noexcept : member(std::move(fd)) {}
};

inline region member::fork(std::error_code &error) const noexcept
{
	return region(fork(0, error));
}

inline region member::fork() const
{
	return detail::or_throw("cowsnap: fork",
				[&](std::error_code &error) { return fork(error); });
}

inline snapshot member::take_snapshot(std::error_code &error) const noexcept
{
	return snapshot(fork(COWSNAP_FORK_F_READONLY, error));
}

inline snapshot member::take_snapshot() const
{
	return detail::or_throw("cowsnap: take_snapshot", [&](std::error_code &error) {
		return take_snapshot(error);
	});
}

} // namespace cowsnap
