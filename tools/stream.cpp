// SPDX-License-Identifier: GPL-2.0-only
#include "stream.hpp"

#include "failure.hpp"

namespace cowsnap_command {
namespace {

template <typename Type> std::span<std::byte> bytes_of(Type &object)
{
	return std::as_writable_bytes(std::span(&object, 1));
}

[[noreturn]] void refuse(const char *why)
{
	throw failure(outcome::refused, std::string("the stream is refused: ") + why);
}

} // namespace

void stream_reader::read_whole(std::span<std::byte> bytes)
{
	if (read_all(fd_, bytes) != bytes.size())
		throw failure(outcome::unfinished,
			      "the stream ended early, and nothing was changed");
}

bool stream_reader::begin()
{
	const std::size_t size = read_all(fd_, bytes_of(header_));

	if (size == 0)
		return false;
	if (size >= sizeof(header_.magic) && header_.magic != stream_magic)
		refuse("it is none of `cowsnap send`; look at what was put into the pipe");
	if (size != sizeof(header_))
		throw failure(outcome::unfinished,
			      "the stream ended early, and nothing was changed");
	if (header_.version != stream_version)
		refuse("it is of another version; have the same version of cowsnap on both "
		       "sides");
	if (header_.check != check_of(header_))
		refuse("it was damaged on its way");
	if ((header_.flags & ~stream_incremental) != 0 ||
	    header_.length > cowsnap::largest_length || header_.from > header_.length)
		refuse("its head has values that none can have");
	check_ = header_.check;
	end_ = header_.from;
	records_ = bytes_ = 0;
	return true;
}

void stream_reader::check_range() const
{
	const std::uint64_t length = header_.length;

	if (record_.offset < end_ || record_.offset > length || record_.length == 0 ||
	    record_.length > length - record_.offset)
		refuse("a record is out of place");
}

bool stream_reader::next()
{
	read_whole(bytes_of(record_));
	/* What follows is as long as this says, which is not checked yet. */
	if (record_.kind == record_kind::data && record_.length > record_max)
		refuse("it was damaged on its way");
	if (record_.kind == record_kind::data)
		read_whole(std::span(data_).first(record_.length));
	if (record_.check != check_of(record_, data(), check_))
		refuse("it was damaged on its way");
	switch (record_.kind) {
	case record_kind::data:
	case record_kind::hole:
		check_range();
		check_ = record_.check;
		end_ = record_.offset + record_.length;
		records_++;
		bytes_ += data().size();
		return true;
	case record_kind::end:
		if (record_.offset != records_ || record_.length != bytes_)
			refuse("records are missing");
		return false;
	}
	refuse("it has a record of an unknown kind; have the same version of cowsnap on both "
	       "sides");
}

stream_writer::stream_writer(int fd, stream_header header) : fd_(fd)
{
	header.check = check_of(header);
	check_ = header.check;
	write_all(fd_, bytes_of(header));
}

stream_writer::stream_writer(int fd, const stream_reader &before)
	: fd_(fd), check_(before.check_), records_(before.records_), bytes_(before.bytes_)
{
}

void stream_writer::put(stream_record record, std::span<const std::byte> bytes)
{
	record.check = check_of(record, bytes, check_);
	check_ = record.check;
	write_all(fd_, bytes_of(record));
	write_all(fd_, bytes);
}

void stream_writer::data(std::uint64_t offset, std::span<const std::byte> bytes)
{
	put({record_kind::data, 0, offset, bytes.size()}, bytes);
	records_++;
	bytes_ += bytes.size();
}

void stream_writer::hole(std::uint64_t offset, std::uint64_t length)
{
	put({record_kind::hole, 0, offset, length}, {});
	records_++;
}

void stream_writer::end()
{
	put({record_kind::end, 0, records_, bytes_}, {});
}

} // namespace cowsnap_command
