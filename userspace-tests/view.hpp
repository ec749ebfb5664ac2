// SPDX-License-Identifier: GPL-2.0-only
/* A mapping of any part of a file, at an address with any alignment. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <sys/mman.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

class view : public mapping {
public:
	view() = default;
	/*
	 * @offset is a multiple of the page; the address lies @shift bytes behind one
	 * that corresponds to the offset's place in @alignment.
	 */
	view(int fd, std::uint64_t offset, std::size_t size, int prot,
	     int flags = MAP_SHARED, std::size_t alignment = page_size,
	     std::size_t shift = 0)
		: view(place(offset + shift, size, alignment), size)
	{
		if (::mmap(data_, size, prot, flags | MAP_FIXED, fd,
			   static_cast<off_t>(offset)) == MAP_FAILED)
			check(-1, "mmap");
	}
	/* Gives what lies before @front and behind @front + @size back. */
	void shrink(std::size_t front, std::size_t size)
	{
		if (front)
			check(::munmap(data_, front), "munmap");
		data_ += front;
		size_ -= front;
		if (size < size_)
			check(::munmap(data_ + size, size_ - size), "munmap");
		size_ = size;
	}

	/* Moves all of it to an address it did not have before. */
	void move(std::uint64_t offset, std::size_t alignment = page_size)
	{
		view target(place(offset, size_, alignment), size_);

		if (::mremap(data_, size_, size_, MREMAP_MAYMOVE | MREMAP_FIXED,
			     target.data_) == MAP_FAILED)
			check(-1, "mremap");
		data_ = std::exchange(target.data_, nullptr);
	}

private:
	view(std::byte *data, std::size_t size) : mapping(data, size) {}

	/* Reserves @size bytes whose address is @offset's modulo @alignment. */
	static std::byte *place(std::uint64_t offset, std::size_t size,
				std::size_t alignment)
	{
		const std::size_t all = size + alignment;
		void *const found = ::mmap(nullptr, all, PROT_NONE,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (found == MAP_FAILED)
			check(-1, "mmap");

		auto *const start = static_cast<std::byte *>(found);
		const std::size_t front =
			(offset - reinterpret_cast<std::uintptr_t>(start)) &
			(alignment - 1);

		if (front)
			::munmap(start, front);
		::munmap(start + front + size, alignment - front);
		return start + front;
	}
};

} // namespace cowsnap_test
