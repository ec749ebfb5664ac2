// SPDX-License-Identifier: GPL-2.0-only
/* /dev/cowsnap and its regions; what fails throws std::system_error. */
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <linux/cowsnap.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

inline constexpr const char *device_path = "/dev/cowsnap";

/* A file of bytes: a region, or the memfd that it is compared with. */
class memory_file {
public:
	memory_file() = default;
	explicit memory_file(unique_fd fd) : fd_(std::move(fd)) {}

	int fd() const noexcept { return fd_.get(); }
	void close() noexcept { fd_.reset(); }

	std::uint64_t length() const
	{
		struct stat status = {};

		check(::fstat(fd(), &status), "fstat");
		return static_cast<std::uint64_t>(status.st_size);
	}

	void truncate(std::uint64_t length) const
	{
		check(::ftruncate(fd(), static_cast<off_t>(length)), "ftruncate");
	}

	/* By fallocate(2), whose modes @flags adds to. */
	void allocate(std::uint64_t offset, std::uint64_t length,
		      int flags = 0) const
	{
		check(::fallocate(fd(), flags, static_cast<off_t>(offset),
				  static_cast<off_t>(length)),
		      "fallocate");
	}
	void punch(std::uint64_t offset, std::uint64_t length) const
	{
		allocate(offset, length,
			 FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	}
	void zero(std::uint64_t offset, std::uint64_t length, int flags = 0) const
	{
		allocate(offset, length, FALLOC_FL_ZERO_RANGE | flags);
	}
	void unshare(std::uint64_t offset, std::uint64_t length,
		     int flags = 0) const
	{
		allocate(offset, length, FALLOC_FL_UNSHARE_RANGE | flags);
	}

	/* Writes all of @bytes, as one write(2). */
	void write(std::uint64_t offset, std::span<const std::byte> bytes) const
	{
		const ssize_t done = check(::pwrite(fd(), bytes.data(), bytes.size(),
						    static_cast<off_t>(offset)),
					   "pwrite");

		if (static_cast<std::size_t>(done) != bytes.size())
			throw std::runtime_error("short pwrite");
	}

	void read(std::uint64_t offset, std::span<std::byte> bytes) const
	{
		const ssize_t done = check(::pread(fd(), bytes.data(), bytes.size(),
						   static_cast<off_t>(offset)),
					   "pread");

		if (static_cast<std::size_t>(done) != bytes.size())
			throw std::runtime_error("short pread");
	}

	std::vector<std::byte> read(std::uint64_t offset, std::size_t size) const
	{
		std::vector<std::byte> bytes(size);

		read(offset, std::span(bytes));
		return bytes;
	}

	void fill_page(std::size_t page, unsigned int value) const
	{
		write(page * page_size, bytes_of(page_size, value));
	}

	std::vector<std::byte> read_page(std::size_t page) const
	{
		return read(page * page_size, page_size);
	}

	mapping map(int prot = PROT_READ | PROT_WRITE, int flags = MAP_SHARED) const
	{
		const std::uint64_t size =
			(length() + page_size - 1) / page_size * page_size;

		return {fd(), static_cast<std::size_t>(size), prot, flags};
	}

private:
	unique_fd fd_;
};

/* What a file can have at most. */
inline constexpr std::uint64_t largest_length =
	std::numeric_limits<std::int64_t>::max();

class region : public memory_file {
public:
	using memory_file::memory_file;

	region fork(std::uint32_t flags = 0) const
	{
		cowsnap_fork arg = {};

		arg.size = sizeof(arg);
		arg.flags = flags;
		check(::ioctl(fd(), COWSNAP_IOC_FORK, &arg), "COWSNAP_IOC_FORK");
		return region(unique_fd(arg.fd));
	}
	region snapshot() const { return fork(COWSNAP_FORK_F_READONLY); }

	cowsnap_stat stat() const
	{
		cowsnap_stat arg = {};

		arg.size = sizeof(arg);
		check(::ioctl(fd(), COWSNAP_IOC_STAT, &arg), "COWSNAP_IOC_STAT");
		return arg;
	}

	/* Returns the granules that are left. */
	std::uint64_t prepare(std::uint64_t budget = 0) const
	{
		cowsnap_prepare arg = {};

		arg.size = sizeof(arg);
		arg.budget = budget;
		check(::ioctl(fd(), COWSNAP_IOC_PREPARE, &arg),
		      "COWSNAP_IOC_PREPARE");
		return arg.left;
	}

	/* Returns the bytes that changed. */
	std::uint64_t restore(const memory_file &source) const
	{
		cowsnap_restore arg = {};

		arg.size = sizeof(arg);
		arg.src_fd = source.fd();
		check(::ioctl(fd(), COWSNAP_IOC_RESTORE, &arg),
		      "COWSNAP_IOC_RESTORE");
		return arg.changed;
	}

	/* All differences in [@start, @end), by calls that tell @count each. */
	std::vector<cowsnap_range>
	diff(const memory_file &other, std::uint32_t flags = 0,
	     std::uint64_t start = 0, std::uint64_t end = largest_length,
	     std::uint32_t count = 1000) const
	{
		std::vector<cowsnap_range> all, some(count);
		cowsnap_diff arg = {};

		arg.size = sizeof(arg);
		arg.flags = flags;
		arg.other_fd = other.fd();
		arg.end = end;
		arg.ranges = reinterpret_cast<std::uintptr_t>(some.data());
		for (arg.start = start; arg.start < end; arg.start = arg.next) {
			arg.count = count;
			check(::ioctl(fd(), COWSNAP_IOC_DIFF, &arg),
			      "COWSNAP_IOC_DIFF");
			all.insert(all.end(), some.begin(),
				   some.begin() + arg.count);
		}
		return all;
	}
};

class device {
public:
	device() : fd_(::open(device_path, O_RDWR | O_CLOEXEC))
	{
		if (!fd_)
			check(-1, "cannot open /dev/cowsnap; load the module first");
	}

	int fd() const noexcept { return fd_.get(); }

	cowsnap_query query() const
	{
		cowsnap_query arg = {};

		arg.size = sizeof(arg);
		check(::ioctl(fd(), COWSNAP_IOC_QUERY, &arg), "COWSNAP_IOC_QUERY");
		return arg;
	}

	region create(std::uint64_t length, std::uint64_t limit = 0,
		      std::string_view name = {},
		      std::uint32_t granule_shift = 0) const
	{
		cowsnap_create arg = {};

		arg.size = sizeof(arg);
		arg.length = length;
		arg.limit = limit;
		arg.granule_shift = granule_shift;
		std::memcpy(arg.name, name.data(),
			    std::min(name.size(), sizeof(arg.name) - 1));
		check(::ioctl(fd(), COWSNAP_IOC_CREATE, &arg), "COWSNAP_IOC_CREATE");
		return region(unique_fd(arg.fd));
	}

	region create_pages(std::size_t pages) const
	{
		return create(pages * page_size);
	}

	/* The descriptors that @entries have afterwards are the caller's. */
	void fork_many(std::span<cowsnap_fork_entry> entries) const
	{
		cowsnap_fork_many arg = {};

		arg.size = sizeof(arg);
		arg.count = static_cast<std::uint32_t>(entries.size());
		arg.entries = reinterpret_cast<std::uintptr_t>(entries.data());
		check(::ioctl(fd(), COWSNAP_IOC_FORK_MANY, &arg),
		      "COWSNAP_IOC_FORK_MANY");
	}

	/* One fork of each of @parents, all of one instant. */
	std::vector<region> fork_all(const std::vector<const region *> &parents,
				     std::uint32_t flags = 0) const
	{
		std::vector<cowsnap_fork_entry> entries;
		std::vector<region> forks;

		for (const region *parent : parents)
			entries.push_back({parent->fd(), flags, -1, 0});
		fork_many(entries);
		for (const cowsnap_fork_entry &entry : entries)
			forks.emplace_back(unique_fd(entry.fd));
		return forks;
	}

private:
	unique_fd fd_;
};

inline memory_file make_memfd(std::uint64_t length)
{
	memory_file file(unique_fd(check(::memfd_create("control", MFD_CLOEXEC),
					 "memfd_create")));

	file.truncate(length);
	return file;
}

/* Fills each page with the low byte of @first plus its index. */
inline void number_pages(const memory_file &file, std::size_t pages,
			 unsigned int first)
{
	for (std::size_t page = 0; page < pages; page++)
		file.fill_page(page, static_cast<unsigned int>(first + page) & 0xff);
}

/* The first page that number_pages() would have filled otherwise, or -1. */
inline int misnumbered_page(const memory_file &file, std::size_t pages,
			    unsigned int first)
{
	for (std::size_t page = 0; page < pages; page++)
		if (!is_all(file.read_page(page),
			    static_cast<unsigned int>(first + page) & 0xff))
			return static_cast<int>(page);
	return -1;
}

} // namespace cowsnap_test
