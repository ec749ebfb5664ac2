// SPDX-License-Identifier: GPL-2.0-only
/*
 * A file whose I/O takes as long as the test wants: it is the only one of a FUSE
 * file system that the test itself serves.
 */
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <linux/fuse.h>

#include "mapping.hpp"
#include "process.hpp"
#include "unique_fd.hpp"
#include "waiting_memory.hpp"

namespace cowsnap_test {

class fuse_file {
public:
	static bool supported()
	{
		return static_cast<bool>(open_device());
	}

protected:
	/* Opened with @flags, and with those of FUSE, FOPEN_*. */
	fuse_file(int flags, std::uint32_t fuse_flags)
		: device_(open_device()), root_(mount())
	{
		const fuse_open_out open_out = {0, fuse_flags, 0};

		const fuse_init_out out = init_out();

		answer(receive(FUSE_INIT), std::as_bytes(std::span(&out, 1)));

		const std::string path = "/proc/self/fd/" +
					 std::to_string(root_.get());

		call_.emplace([path, flags] {
			return ::open(path.c_str(), flags | O_RDWR | O_CLOEXEC);
		});
		answer(receive(FUSE_OPEN), std::as_bytes(std::span(&open_out, 1)));
		file_ = unique_fd(static_cast<int>(call_->result()));
		if (!file_)
			throw std::runtime_error("the FUSE file cannot be opened");
	}

public:
	/* To be used in another thread than the rest. */
	int fd() const noexcept { return file_.get(); }

	/* Waits until somebody waits. */
	void await() const
	{
		pollfd wanted = {device_.get(), POLLIN, 0};

		if (check(::poll(&wanted, 1, 30'000), "poll") == 0)
			throw std::runtime_error("nobody used the file");
	}

protected:
	struct request {
		fuse_in_header header = {};
		std::vector<std::byte> body;
	};

	request receive(std::uint32_t operation) const
	{
		std::vector<std::byte> buffer(65536);
		request received;

		await();

		const ssize_t size = check(
			::read(device_.get(), buffer.data(), buffer.size()),
			"read /dev/fuse");

		std::memcpy(&received.header, buffer.data(),
			    sizeof(received.header));
		if (received.header.opcode != operation)
			throw std::runtime_error(
				"FUSE operation " +
				std::to_string(received.header.opcode));
		received.body.assign(buffer.begin() + sizeof(received.header),
				     buffer.begin() + size);
		return received;
	}

	static fuse_out_header header_of_answer(const request &to, std::size_t size)
	{
		fuse_out_header header = {};

		header.len = static_cast<std::uint32_t>(sizeof(header) + size);
		header.unique = to.header.unique;
		return header;
	}

	void answer(const request &to, std::span<const std::byte> bytes) const
	{
		fuse_out_header header = header_of_answer(to, bytes.size());
		const std::array<iovec, 2> parts = {
			{{&header, sizeof(header)},
			 {const_cast<std::byte *>(bytes.data()), bytes.size()}}};

		check(::writev(device_.get(), parts.data(), 2), "write /dev/fuse");
	}

	int device() const noexcept { return device_.get(); }

	/* Ends, at the latest, when the device is closed. */
	std::optional<call_in_a_thread> call_;

private:
	static fuse_init_out init_out()
	{
		fuse_init_out out = {};

		out.major = FUSE_KERNEL_VERSION;
		out.minor = 31;
		/* A page in one request. */
		out.max_write = static_cast<std::uint32_t>(page_size);
		return out;
	}

	static unique_fd open_device()
	{
		return unique_fd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
	}

	/* Mounts nowhere; the root of the file system is the file. */
	unique_fd mount() const
	{
		const unique_fd context(
			check(::fsopen("fuse", FSOPEN_CLOEXEC), "fsopen"));
		const std::array<std::array<std::string, 2>, 4> options = {
			{{"fd", std::to_string(device_.get())},
			 {"rootmode", "100600"},
			 {"user_id", "0"},
			 {"group_id", "0"}}};

		for (const auto &[key, value] : options)
			check(::fsconfig(context.get(), FSCONFIG_SET_STRING,
					 key.c_str(), value.c_str(), 0),
			      "fsconfig " + key);
		check(::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr,
				 nullptr, 0),
		      "fsconfig");
		return unique_fd(check(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0),
				       "fsmount"));
	}

	unique_fd file_;
	/* Goes before the file, whose close would wait for an answer. */
	unique_fd device_;
	unique_fd root_;
};

/*
 * For O_DIRECT: what a caller reads or writes is pinned, or referred to, from when
 * the request is there until it is answered.
 */
class direct_file : public fuse_file {
public:
	direct_file() : fuse_file(O_DIRECT, FOPEN_DIRECT_IO) {}

	/* Ends a read(2) of @bytes. */
	void provide(std::span<const std::byte> bytes) const
	{
		answer(receive(FUSE_READ), bytes);
	}

	/* Ends a write(2); returns what its pages hold only now. */
	std::vector<std::byte> take() const
	{
		const request taken = receive(FUSE_WRITE);
		fuse_write_out out = {};
		fuse_write_in in = {};

		std::memcpy(&in, taken.body.data(), sizeof(in));
		out.size = in.size;
		answer(taken, std::as_bytes(std::span(&out, 1)));
		return {taken.body.begin() + sizeof(in), taken.body.end()};
	}
};

/*
 * A file of one page, which is answered for out of a pipe when it is first read:
 * the page cache takes the page itself if nobody else has it.
 */
class page_taking_file : public fuse_file {
public:
	/* Somebody reads, and is going to get what is in @page when he does. */
	explicit page_taking_file(std::span<std::byte> page)
		: fuse_file(0, FOPEN_KEEP_CACHE)
	{
		call_.emplace([this] {
			return ::pread(fd(), read_.data(), page_size, 0);
		});
		tell_length();

		const fuse_out_header header =
			header_of_answer(receive(FUSE_READ), page.size());
		const iovec gift = {page.data(), page.size()};

		check(::write(pipe_.write_end.get(), &header, sizeof(header)),
		      "write");
		check(::vmsplice(pipe_.write_end.get(), &gift, 1, SPLICE_F_GIFT),
		      "vmsplice");
	}

	std::vector<std::byte> read_first()
	{
		check(::splice(pipe_.read_end.get(), nullptr, device(), nullptr,
			       sizeof(fuse_out_header) + page_size, SPLICE_F_MOVE),
		      "splice to /dev/fuse");
		call_->expect(static_cast<ssize_t>(page_size));
		return read_;
	}

	/* Of the page cache. */
	std::vector<std::byte> read_again() const
	{
		std::vector<std::byte> bytes(page_size);

		check(::pread(fd(), bytes.data(), bytes.size(), 0), "pread");
		return bytes;
	}

private:
	void tell_length() const
	{
		fuse_attr_out out = {};

		out.attr_valid = 3600;
		out.attr.ino = FUSE_ROOT_ID;
		out.attr.size = page_size;
		out.attr.mode = S_IFREG | 0600;
		out.attr.nlink = 1;
		answer(receive(FUSE_GETATTR), std::as_bytes(std::span(&out, 1)));
	}

	pipe_pair pipe_;
	std::vector<std::byte> read_ = std::vector<std::byte>(page_size);
};

} // namespace cowsnap_test
