// SPDX-License-Identifier: MIT
/* Where two members of a family differ, as a range. */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <ranges>
#include <system_error>

#include <linux/cowsnap.h>

#include <cowsnap/system_call.hpp>

namespace cowsnap {

/* The largest length of a region, and the largest offset. */
inline constexpr std::uint64_t largest_length = std::numeric_limits<std::int64_t>::max();

/* A part of a region, in bytes; multiples of the granule. */
struct range {
	std::uint64_t offset = 0;
	std::uint64_t length = 0;
	/* The region has nothing there, which reads as zeroes. */
	bool hole = false;

	friend bool operator==(const range &, const range &) = default;
};

/* What of the two is compared, and how. */
struct diff_options {
	/* Leave out granules with equal bytes, for which they are read. */
	bool exact = false;
	/* In bytes: where to look, widened to whole granules. */
	std::uint64_t start = 0;
	/* Above start; the end of the longer one is not gone beyond. */
	std::uint64_t end = largest_length;
};

/*
 * The parts that differ, in the order of their offsets, asked of the kernel some at a
 * time as the range is gone through, which can be done once. The two members must be
 * there meanwhile. Parts that touch are one, unless one has a hole and the other has
 * not, a call's room ends there, or a signal came in between. What is changed
 * meanwhile may be found or not.
 */
class diff_view : public std::ranges::view_base {
public:
	class iterator {
	public:
		using iterator_concept = std::input_iterator_tag;
		using value_type = range;
		using difference_type = std::ptrdiff_t;

		iterator() noexcept = default;
		explicit iterator(diff_view &view) noexcept : view_(&view) {}

		range operator*() const noexcept { return view_->current(); }
		iterator &operator++()
		{
			view_->advance();
			return *this;
		}
		void operator++(int) { ++*this; }
		bool operator==(std::default_sentinel_t) const noexcept
		{
			return view_->at_ == view_->count_;
		}

	private:
		diff_view *view_ = nullptr;
	};

	/* With an @error begin() and ++ set it and end the range, without they throw. */
	diff_view(int fd, int other, const diff_options &options,
		  std::error_code *error) noexcept
		: fd_(fd), other_(other), options_(options), error_(error)
	{
		if (error_)
			error_->clear();
	}

	iterator begin()
	{
		next_ = options_.start;
		fetch();
		return iterator(*this);
	}
	std::default_sentinel_t end() const noexcept { return {}; }

private:
	range current() const noexcept
	{
		const cowsnap_range &found = ranges_[at_];

		return {found.offset, found.length,
			(found.flags & COWSNAP_RANGE_F_HOLE) != 0};
	}

	void advance()
	{
		if (++at_ == count_ && next_ < options_.end)
			fetch();
	}

	void fetch()
	{
		std::error_code error;
		auto arg = detail::sized<cowsnap_diff>();

		at_ = count_ = 0;
		arg.flags = options_.exact ? COWSNAP_DIFF_F_EXACT : 0;
		arg.other_fd = other_;
		arg.end = options_.end;
		arg.ranges = reinterpret_cast<std::uintptr_t>(ranges_.data());
		/* A signal ends a call early, maybe with nothing found. */
		do {
			arg.start = next_;
			arg.count = static_cast<__u32>(ranges_.size());
			if (!detail::control(fd_, COWSNAP_IOC_DIFF, &arg, error))
				return fail(error);
			next_ = arg.next;
		} while (arg.count == 0 && next_ < options_.end);
		count_ = arg.count;
	}

	void fail(const std::error_code &error)
	{
		if (!error_)
			throw std::system_error(error, "cowsnap: diff");
		*error_ = error;
	}

	int fd_;
	int other_;
	diff_options options_;
	std::error_code *error_;
	std::uint64_t next_ = 0;
	std::size_t at_ = 0;
	std::size_t count_ = 0;
	std::array<cowsnap_range, 64> ranges_;
};

static_assert(std::ranges::input_range<diff_view>);
static_assert(std::ranges::view<diff_view>);

} // namespace cowsnap
