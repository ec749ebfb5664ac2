// SPDX-License-Identifier: GPL-2.0-only
/* A page that is referred to without a mapping. */
#pragma once

#include <span>
#include <stdexcept>
#include <vector>

#include <fcntl.h>
#include <sys/uio.h>

#include "mapping.hpp"
#include "process.hpp"
#include "region.hpp"

namespace cowsnap_test {

/* A page of memory in a pipe, as a reference and not as a copy. */
class page_in_a_pipe {
public:
	explicit page_in_a_pipe(std::span<std::byte> page, unsigned int flags = 0)
	{
		const iovec part = {page.data(), page.size()};

		if (check(::vmsplice(pipe_.write_end.get(), &part, 1, flags),
			  "vmsplice") != static_cast<ssize_t>(page.size()))
			throw std::runtime_error("short vmsplice");
	}

	/* By splice(2), which copies only since Linux 6.5. */
	page_in_a_pipe(const memory_file &file, std::size_t page)
	{
		off_t offset = static_cast<off_t>(page * page_size);

		if (check(::splice(file.fd(), &offset, pipe_.write_end.get(),
				   nullptr, page_size, 0),
			  "splice") != static_cast<ssize_t>(page_size))
			throw std::runtime_error("short splice");
	}

	/* Takes the page out of the pipe. */
	std::vector<std::byte> read() const
	{
		std::vector<std::byte> bytes(page_size);

		check(::read(pipe_.read_end.get(), bytes.data(), bytes.size()),
		      "read");
		return bytes;
	}

private:
	pipe_pair pipe_;
};

} // namespace cowsnap_test
