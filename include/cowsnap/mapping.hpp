// SPDX-License-Identifier: MIT
/* Memory of a region or a snapshot, mapped. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <system_error>
#include <type_traits>
#include <utility>

#include <sys/mman.h>

#include <cowsnap/system_call.hpp>

namespace cowsnap {

/* As a length: all that there is behind the offset. */
inline constexpr std::size_t to_end = std::numeric_limits<std::size_t>::max();

/* Which part to map, and where. */
struct map_options {
	/* In bytes, a multiple of the page size. */
	std::uint64_t offset = 0;
	/* In bytes; may go beyond the end, where loads and stores raise SIGBUS. */
	std::size_t length = to_end;
	/*
	 * A multiple of the page size where nothing may be mapped yet; otherwise EEXIST.
	 * Null lets the kernel choose.
	 */
	const void *address = nullptr;
};

/*
 * Unmaps what it has. It needs neither the object nor the descriptor that it was made
 * from: the memory lives for as long as it is mapped. Like a pointer, a constant one
 * gives access to bytes that are not; basic_mapping<const std::byte> does not.
 */
template <typename Byte>
	requires std::is_same_v<std::remove_const_t<Byte>, std::byte>
class basic_mapping {
public:
	/* T, which cannot be stored to where the bytes cannot. */
	template <typename T>
	using element = std::conditional_t<std::is_const_v<Byte>, const T, T>;

	basic_mapping() noexcept = default;
	/* Takes over what mmap(2) has mapped. */
	basic_mapping(Byte *data, std::size_t size) noexcept : data_(data), size_(size)
	{
	}
	basic_mapping(basic_mapping &&other) noexcept
		: data_(std::exchange(other.data_, nullptr)),
		  size_(std::exchange(other.size_, 0))
	{
	}
	basic_mapping &operator=(basic_mapping &&other) noexcept
	{
		if (this != &other) {
			unmap();
			data_ = std::exchange(other.data_, nullptr);
			size_ = std::exchange(other.size_, 0);
		}
		return *this;
	}
	~basic_mapping() { unmap(); }

	void unmap() noexcept
	{
		if (data_)
			::munmap(const_cast<std::byte *>(data_), size_);
		data_ = nullptr;
		size_ = 0;
	}

	explicit operator bool() const noexcept { return data_ != nullptr; }
	Byte *data() const noexcept { return data_; }
	/* In bytes, as asked for. */
	std::size_t size() const noexcept { return size_; }
	std::span<Byte> bytes() const noexcept { return {data_, size_}; }

	/*
	 * @count objects of type T from @offset on, in bytes. They must lie within the
	 * mapping, and aligned: otherwise EINVAL.
	 */
	template <typename T>
	std::span<element<T>> as(std::size_t offset, std::size_t count,
				 std::error_code &error) const noexcept
	{
		static_assert(std::is_trivially_copyable_v<T>,
			      "other processes, and a RESTORE, change the bytes alone");
		if (offset > size_ || count > (size_ - offset) / sizeof(T) ||
		    (reinterpret_cast<std::uintptr_t>(data_) + offset) % alignof(T)) {
			detail::fail(error, std::errc::invalid_argument);
			return {};
		}
		error.clear();
		return {reinterpret_cast<element<T> *>(data_ + offset), count};
	}
	template <typename T>
	std::span<element<T>> as(std::size_t offset, std::size_t count) const
	{
		return detail::or_throw("cowsnap: as", [&](std::error_code &error) {
			return as<T>(offset, count, error);
		});
	}

	/* All of the mapping as T; EINVAL when that is no whole number of them. */
	template <typename T>
	std::span<element<T>> as(std::error_code &error) const noexcept
	{
		if (size_ % sizeof(T)) {
			detail::fail(error, std::errc::invalid_argument);
			return {};
		}
		return as<T>(0, size_ / sizeof(T), error);
	}
	template <typename T> std::span<element<T>> as() const
	{
		return detail::or_throw("cowsnap: as", [&](std::error_code &error) {
			return as<T>(error);
		});
	}

	/*
	 * Makes the page-table entries for loads. EFAULT when some of the mapping lies
	 * beyond the end.
	 */
	void populate(std::error_code &error) const noexcept
	{
		advise(MADV_POPULATE_READ, error);
	}
	void populate() const
	{
		detail::or_throw("cowsnap: populate",
				 [&](std::error_code &error) { populate(error); });
	}

	/*
	 * Makes those for stores: fills holes and copies what is shared, so that until the
	 * next fork no store here needs memory, and none raises SIGBUS for want of it.
	 * EFAULT when some of the mapping lies beyond the end, or at a limit.
	 */
	void populate_write(std::error_code &error) const noexcept
		requires(!std::is_const_v<Byte>)
	{
		advise(MADV_POPULATE_WRITE, error);
	}
	void populate_write() const
		requires(!std::is_const_v<Byte>)
	{
		detail::or_throw("cowsnap: populate_write", [&](std::error_code &error) {
			populate_write(error);
		});
	}

private:
	void advise(int advice, std::error_code &error) const noexcept
	{
		detail::system_call(error, [&] {
			return ::madvise(const_cast<std::byte *>(data_), size_, advice);
		});
	}

	Byte *data_ = nullptr;
	std::size_t size_ = 0;
};

using mapping = basic_mapping<std::byte>;
using const_mapping = basic_mapping<const std::byte>;

namespace detail {

template <typename Byte>
basic_mapping<Byte> map(int fd, int flags, const map_options &options,
			std::error_code &error) noexcept
{
	const int prot = std::is_const_v<Byte> ? PROT_READ : PROT_READ | PROT_WRITE;
	const off_t offset = to_off(options.offset, error);
	std::size_t size = options.length;

	if (error)
		return {};
	if (size == to_end) {
		const std::uint64_t length = file_length(fd, error);
		const std::uint64_t left =
			length > options.offset ? length - options.offset : 0;

		if (!error && !std::in_range<std::size_t>(left))
			fail(error, std::errc::value_too_large);
		if (error)
			return {};
		size = static_cast<std::size_t>(left);
	}

	void *const address =
		::mmap(const_cast<void *>(options.address), size, prot,
		       options.address ? flags | MAP_FIXED_NOREPLACE : flags, fd, offset);

	if (address == MAP_FAILED) {
		error.assign(errno, std::generic_category());
		return {};
	}
	return {static_cast<Byte *>(address), size};
}

} // namespace detail
} // namespace cowsnap
