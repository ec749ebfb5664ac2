// SPDX-License-Identifier: GPL-2.0-only
/* A memory mapping that unmaps itself, and bytes to fill it with. */
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "unique_fd.hpp"

namespace cowsnap_test {

inline const std::size_t page_size =
	static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
inline const unsigned int page_shift =
	static_cast<unsigned int>(std::countr_zero(page_size));

inline void fill(std::span<std::byte> bytes, unsigned int value)
{
	std::ranges::fill(bytes, static_cast<std::byte>(value));
}

inline bool is_all(std::span<const std::byte> bytes, unsigned int value)
{
	/* All as the first when each is as the one before it. */
	return bytes.empty() ||
	       (bytes[0] == static_cast<std::byte>(value) &&
		std::memcmp(&bytes[0], &bytes[0] + 1, bytes.size() - 1) == 0);
}

inline std::vector<std::byte> bytes_of(std::size_t size, unsigned int value)
{
	return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

class mapping {
public:
	mapping() = default;
	mapping(int fd, std::size_t size, int prot = PROT_READ | PROT_WRITE,
		int flags = MAP_SHARED, std::uint64_t offset = 0)
		: size_(size)
	{
		void *const address = ::mmap(nullptr, size, prot, flags, fd,
					     static_cast<off_t>(offset));

		if (address == MAP_FAILED)
			check(-1, "mmap");
		data_ = static_cast<std::byte *>(address);
	}
	mapping(mapping &&other) noexcept
		: data_(std::exchange(other.data_, nullptr)),
		  size_(std::exchange(other.size_, 0))
	{
	}
	mapping &operator=(mapping &&other) noexcept
	{
		std::swap(data_, other.data_);
		std::swap(size_, other.size_);
		other.reset();
		return *this;
	}
	~mapping() { reset(); }

	void reset() noexcept
	{
		if (data_)
			::munmap(data_, size_);
		data_ = nullptr;
		size_ = 0;
	}

	std::byte *data() const noexcept { return data_; }
	std::size_t size() const noexcept { return size_; }
	std::size_t pages() const noexcept { return size_ / page_size; }
	std::span<std::byte> bytes() const noexcept { return {data_, size_}; }
	std::span<std::byte> page(std::size_t index) const
	{
		return bytes().subspan(index * page_size, page_size);
	}

	/* The first word of a page; one load or one store, never torn. */
	std::uint64_t load(std::size_t page) const
	{
		return __atomic_load_n(word(page), __ATOMIC_ACQUIRE);
	}
	void store(std::size_t page, std::uint64_t value) const
	{
		__atomic_store_n(word(page), value, __ATOMIC_RELEASE);
	}

	void protect(int prot) const
	{
		check(::mprotect(data_, size_, prot), "mprotect");
	}
	void advise(int advice) const
	{
		check(::madvise(data_, size_, advice), "madvise");
	}
	/* Gives the pages behind @size back. */
	void shrink(std::size_t size)
	{
		check(::munmap(data_ + size, size_ - size), "munmap");
		size_ = size;
	}
	/* Moves the mapping to an address it did not have before. */
	void move()
	{
		mapping target(-1, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
		void *const moved = ::mremap(data_, size_, size_,
					     MREMAP_MAYMOVE | MREMAP_FIXED,
					     target.data_);

		if (moved == MAP_FAILED)
			check(-1, "mremap");
		data_ = std::exchange(target.data_, nullptr);
	}

protected:
	/* Takes over what is mapped already. */
	mapping(std::byte *data, std::size_t size) : data_(data), size_(size) {}

	std::byte *data_ = nullptr;
	std::size_t size_ = 0;

private:
	std::uint64_t *word(std::size_t page) const
	{
		return reinterpret_cast<std::uint64_t *>(data_ + page * page_size);
	}
};

inline mapping anonymous(std::size_t size)
{
	return {-1, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS};
}

} // namespace cowsnap_test
