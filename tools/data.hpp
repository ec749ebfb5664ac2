// SPDX-License-Identifier: GPL-2.0-only
/* Bytes of descriptors and of regions. */
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <system_error>
#include <vector>

#include <unistd.h>

#include <cowsnap/cowsnap.hpp>

namespace cowsnap_command {

/* What is read, compared and sent at once. */
inline constexpr std::size_t piece = 1 << 20;

inline bool all_zero(std::span<const std::byte> bytes)
{
	return bytes.empty() ||
	       (bytes[0] == std::byte(0) &&
		std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

/* As many as there are until the end of the file, up to all of @bytes. */
inline std::size_t read_all(int fd, std::span<std::byte> bytes)
{
	std::size_t done = 0;

	while (done < bytes.size()) {
		const ssize_t some = ::read(fd, bytes.data() + done, bytes.size() - done);

		if (some < 0 && errno == EINTR)
			continue;
		if (some < 0)
			throw std::system_error(errno, std::generic_category(),
						"the input cannot be read");
		if (some == 0)
			break;
		done += static_cast<std::size_t>(some);
	}
	return done;
}

inline void write_all(int fd, std::span<const std::byte> bytes)
{
	while (!bytes.empty()) {
		const ssize_t some = ::write(fd, bytes.data(), bytes.size());

		if (some < 0 && errno == EINTR)
			continue;
		if (some < 0)
			throw std::system_error(errno, std::generic_category(),
						"the output cannot be written");
		bytes = bytes.subspan(static_cast<std::size_t>(some));
	}
}

/* Calls @visit(offset, length) for each part of [@start, @end) that lies in no hole. */
template <typename Visit>
void each_data(const cowsnap::member &of, std::uint64_t start, std::uint64_t end,
	       Visit &&visit)
{
	while (start < end) {
		const auto data = of.next_data(start);

		if (!data || *data >= end)
			return;

		const auto hole = std::min(of.next_hole(*data).value_or(end), end);

		visit(*data, hole - *data);
		start = hole;
	}
}

/* Calls @visit(offset, bytes) for the bytes of a part, a piece at a time. */
template <typename Visit>
void each_piece(const cowsnap::member &of, std::uint64_t offset, std::uint64_t length,
		Visit &&visit)
{
	std::vector<std::byte> buffer(std::min<std::uint64_t>(length, piece));

	while (length > 0) {
		/* Pieces end where multiples of their size are. */
		const std::uint64_t room = piece - offset % piece;
		const auto bytes =
			std::span(buffer).first(std::min({length, room, std::uint64_t(piece)}));

		if (of.read(offset, bytes) != bytes.size())
			throw std::system_error(
				std::make_error_code(std::errc::io_error),
				"the region became shorter while it was read");
		visit(offset, bytes);
		offset += bytes.size();
		length -= bytes.size();
	}
}

} // namespace cowsnap_command
