// SPDX-License-Identifier: GPL-2.0-only
/*
 * What send writes and recv reads; cowsnap(1) documents it, in the section on the stream.
 * All numbers are little-endian. Each checksum is seeded with the one before it, so that
 * a record in another place, or of another stream, does not fit.
 */
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "digest.hpp"

namespace cowsnap_command {

static_assert(std::endian::native == std::endian::little, "the stream is little-endian");

inline constexpr std::array<char, 8> stream_magic = {'c', 'o', 'w', 's', 'n', 'a', 'p', '\n'};
inline constexpr std::uint32_t stream_version = 1;

inline constexpr std::uint32_t stream_incremental = 1;

struct stream_header {
	std::array<char, 8> magic = stream_magic;
	std::uint32_t version = stream_version;
	/* 0, or stream_incremental. */
	std::uint32_t flags = 0;
	/* Of what is sent. */
	std::uint64_t length = 0;
	digest target;
	/* What the receiver has, where it is incremental; otherwise 0. */
	digest base;
	/* What lies below is not in it. */
	std::uint64_t from = 0;
	std::uint64_t check = 0;
};
static_assert(sizeof(stream_header) == 72);

enum class record_kind : std::uint32_t {
	data = 0x41544144, /* "DATA" */
	hole = 0x454c4f48, /* "HOLE" */
	end = 0x53444e45,  /* "ENDS" */
};

struct stream_record {
	record_kind kind = record_kind::end;
	std::uint32_t reserved = 0;
	/* Above all before it. In the last one, how many these are. */
	std::uint64_t offset = 0;
	/* In the last one, the bytes of data in them together. */
	std::uint64_t length = 0;
	/* Of the record without it, and of the data that follow. */
	std::uint64_t check = 0;
};
static_assert(sizeof(stream_record) == 32);

/* The most data that a record may have. */
inline constexpr std::uint64_t record_max = piece;

inline std::uint64_t check_of(const stream_header &header)
{
	return XXH3_64bits(&header, offsetof(stream_header, check));
}

inline std::uint64_t check_of(const stream_record &record, std::span<const std::byte> data,
			      std::uint64_t before)
{
	const std::uint64_t check =
		XXH3_64bits_withSeed(&record, offsetof(stream_record, check), before);

	return XXH3_64bits_withSeed(data.data(), data.size(), check);
}

/* Reads a stream, and throws a failure that refuses it where it is not as it was sent. */
class stream_reader {
public:
	explicit stream_reader(int fd) : fd_(fd), data_(record_max) {}

	/* False where there is nothing at all. */
	bool begin();
	/* False after the last record. An early end is outcome::unfinished. */
	bool next();

	const stream_header &header() const noexcept { return header_; }
	const stream_record &record() const noexcept { return record_; }
	/* Where the last record ended, up to which nothing is missing. */
	std::uint64_t reached() const noexcept { return end_; }
	std::span<const std::byte> data() const noexcept
	{
		return std::span(data_).first(
			record_.kind == record_kind::data ? record_.length : 0);
	}

private:
	friend class stream_writer;
	void read_whole(std::span<std::byte> bytes);
	void check_range() const;

	int fd_;
	stream_header header_;
	stream_record record_;
	std::vector<std::byte> data_;
	/* As of the last good record. */
	std::uint64_t check_ = 0;
	std::uint64_t end_ = 0;
	std::uint64_t records_ = 0;
	std::uint64_t bytes_ = 0;
};

/* Writes one. */
class stream_writer {
public:
	stream_writer(int fd, stream_header header);
	/* Goes on where what was read had ended early. */
	stream_writer(int fd, const stream_reader &before);

	void data(std::uint64_t offset, std::span<const std::byte> bytes);
	void hole(std::uint64_t offset, std::uint64_t length);
	void end();

private:
	void put(stream_record record, std::span<const std::byte> bytes);

	int fd_;
	std::uint64_t check_;
	std::uint64_t records_ = 0;
	std::uint64_t bytes_ = 0;
};

} // namespace cowsnap_command
