// SPDX-License-Identifier: MIT
/* /dev/cowsnap: where regions come from, and forks of several at one instant. */
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <ranges>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>

#include <linux/cowsnap.h>

#include <cowsnap/descriptor.hpp>
#include <cowsnap/region.hpp>
#include <cowsnap/system_call.hpp>

namespace cowsnap {

inline constexpr const char *device_path = "/dev/cowsnap";

/* What region to create. */
struct create_options {
	/* In bytes; it takes no memory until it is written to. */
	std::uint64_t length = 0;
	/* The most bytes of memory that the family may hold together; 0 for no limit. */
	std::uint64_t limit = 0;
	/*
	 * What is shared and copied as a whole, in bytes: a power of two from a page to 2
	 * MiB; 0 for a page.
	 */
	std::uint64_t granule = 0;
	/* At most 31 bytes, none of them 0. */
	std::string_view name = {};
};

/* What fork_many() makes: regions or snapshots. */
template <typename Type>
concept family_member = std::same_as<Type, region> || std::same_as<Type, snapshot>;

/* What fork_many() forks: regions, snapshots, or references to such. */
template <typename Range>
concept range_of_members =
	std::ranges::input_range<Range> &&
	std::convertible_to<std::ranges::range_reference_t<Range>, const member &>;

/* May be used by several threads at once. */
class device {
public:
	device() noexcept = default;

	/* ENOENT when the module is not loaded, EACCES, and ENOTTY for another file. */
	[[nodiscard]] static device open(const char *path, std::error_code &error) noexcept
	{
		descriptor fd(detail::system_call(
			error, [=] { return ::open(path, O_RDWR | O_CLOEXEC); }));

		return error ? device() : adopt(std::move(fd), error);
	}
	[[nodiscard]] static device open(std::error_code &error) noexcept
	{
		return open(device_path, error);
	}
	[[nodiscard]] static device open(const char *path = device_path)
	{
		constexpr const char *what = "cowsnap: open: see `cowsnap doctor`";

		return detail::or_throw(what, [&](std::error_code &error) {
			return open(path, error);
		});
	}

	/*
	 * Takes over a descriptor that came from elsewhere; it stays the caller's when it
	 * is not one of the device: ENOTTY.
	 */
	[[nodiscard]] static device adopt(descriptor &&fd, std::error_code &error) noexcept
	{
		auto arg = detail::sized<cowsnap_query>();

		if (!detail::control(fd.get(), COWSNAP_IOC_QUERY, &arg, error))
			return {};
		return device(std::move(fd));
	}
	[[nodiscard]] static device adopt(descriptor &&fd)
	{
		return detail::or_throw("cowsnap: adopt", [&](std::error_code &error) {
			return adopt(std::move(fd), error);
		});
	}

	/* -1 when it is empty: made so, moved from, closed or released. */
	int fd() const noexcept { return fd_.get(); }
	explicit operator bool() const noexcept { return static_cast<bool>(fd_); }
	void close() noexcept { fd_.close(); }
	[[nodiscard]] descriptor release() noexcept { return std::move(fd_); }

	/* What the module is and holds; cowsnap(4) has each figure. */
	cowsnap_query query(std::error_code &error) const noexcept
	{
		auto arg = detail::sized<cowsnap_query>();

		detail::control(fd(), COWSNAP_IOC_QUERY, &arg, error);
		return arg;
	}
	cowsnap_query query() const
	{
		return detail::or_throw("cowsnap: query", [&](std::error_code &error) {
			return query(error);
		});
	}

	/*
	 * A region, the first of a family. EINVAL when an option is not what it may be;
	 * EMFILE, ENFILE, ENOMEM.
	 */
	[[nodiscard]] region create(const create_options &options,
				    std::error_code &error) const noexcept
	{
		auto arg = detail::sized<cowsnap_create>();

		/* 2 to the power of 0, which the ioctl takes for a page, is no granule. */
		if (options.name.size() >= sizeof(arg.name) ||
		    options.name.find('\0') != options.name.npos ||
		    (options.granule != 0 &&
		     (options.granule == 1 || !std::has_single_bit(options.granule)))) {
			detail::fail(error, std::errc::invalid_argument);
			return {};
		}
		arg.length = options.length;
		arg.limit = options.limit;
		if (options.granule != 0)
			arg.granule_shift =
				static_cast<__u32>(std::countr_zero(options.granule));
		std::ranges::copy(options.name, arg.name);
		if (!detail::control(fd(), COWSNAP_IOC_CREATE, &arg, error))
			return {};
		return region(descriptor(arg.fd));
	}
	[[nodiscard]] region create(const create_options &options) const
	{
		return detail::or_throw("cowsnap: create", [&](std::error_code &error) {
			return create(options, error);
		});
	}

	/*
	 * A fork of each of @parents, in their order, all of one instant: what was stored to
	 * one after a store to another is not in its fork without the other. All are made
	 * or none is. They are snapshots with fork_many<snapshot>(). One may stand there
	 * several times. EINVAL for none, or for more than COWSNAP_FORK_MANY_MAX; EBADF when
	 * one is empty; otherwise as fork(). All forms throw std::bad_alloc.
	 */
	template <family_member Fork = region, range_of_members Parents>
	[[nodiscard]] std::vector<Fork> fork_many(Parents &&parents,
						  std::error_code &error) const
	{
		std::vector<cowsnap_fork_entry> entries;

		for (const member &parent : parents)
			entries.push_back(entry<Fork>(parent));
		return fork_entries<Fork>(entries, error);
	}
	template <family_member Fork = region, range_of_members Parents>
	[[nodiscard]] std::vector<Fork> fork_many(Parents &&parents) const
	{
		return detail::or_throw("cowsnap: fork_many", [&](std::error_code &error) {
			return fork_many<Fork>(parents, error);
		});
	}

	/* The same for those between braces: fork_many({index, heap}). */
	using members = std::initializer_list<std::reference_wrapper<const member>>;
	template <family_member Fork = region>
	[[nodiscard]] std::vector<Fork> fork_many(members parents,
						  std::error_code &error) const
	{
		return fork_many<Fork, members &>(parents, error);
	}
	template <family_member Fork = region>
	[[nodiscard]] std::vector<Fork> fork_many(members parents) const
	{
		return fork_many<Fork, members &>(parents);
	}

	/* @count forks of one. */
	template <family_member Fork = region>
	[[nodiscard]] std::vector<Fork> fork_many(const member &parent, std::size_t count,
						  std::error_code &error) const
	{
		/* One too many are as wrong as any number more. */
		std::vector<cowsnap_fork_entry> entries(
			std::min<std::size_t>(count, COWSNAP_FORK_MANY_MAX + 1),
			entry<Fork>(parent));

		return fork_entries<Fork>(entries, error);
	}
	template <family_member Fork = region>
	[[nodiscard]] std::vector<Fork> fork_many(const member &parent,
						  std::size_t count) const
	{
		return detail::or_throw("cowsnap: fork_many", [&](std::error_code &error) {
			return fork_many<Fork>(parent, count, error);
		});
	}

private:
	explicit device(descriptor fd) noexcept : fd_(std::move(fd)) {}

	template <family_member Fork>
	static cowsnap_fork_entry entry(const member &parent) noexcept
	{
		constexpr bool readonly = std::same_as<Fork, snapshot>;

		return {parent.fd(), readonly ? COWSNAP_FORK_F_READONLY : 0, -1, 0};
	}

	template <family_member Fork>
	std::vector<Fork> fork_entries(std::vector<cowsnap_fork_entry> &entries,
				       std::error_code &error) const
	{
		auto arg = detail::sized<cowsnap_fork_many>();
		std::vector<Fork> forks;

		/* Nothing may throw while the descriptors have no owner. */
		forks.reserve(entries.size());
		arg.count = static_cast<__u32>(
			std::min<std::size_t>(entries.size(), COWSNAP_FORK_MANY_MAX + 1));
		arg.entries = reinterpret_cast<std::uintptr_t>(entries.data());
		if (detail::control(fd(), COWSNAP_IOC_FORK_MANY, &arg, error))
			for (const cowsnap_fork_entry &made : entries)
				forks.push_back(Fork(descriptor(made.fd)));
		return forks;
	}

	descriptor fd_;
};

} // namespace cowsnap
