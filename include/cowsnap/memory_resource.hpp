// SPDX-License-Identifier: MIT
/*
 * Containers of the standard library in a region: std::pmr on a segment. Needs the
 * headers of Boost, for cowsnap/interprocess.hpp.
 */
#pragma once

#include <cstddef>
#include <memory_resource>
#include <new>

#include <cowsnap/interprocess.hpp>

namespace cowsnap {

/*
 * Hands out memory of a segment, which says where the bookkeeping is, that it has no lock
 * and does not grow. std::bad_alloc when no free piece is large enough. Alignments of any
 * power of two; those above a page hold at this address only.
 *
 * Containers of std::pmr have pointers to their elements, and to this object:
 * - a snapshot is read as it is when it is mapped at the address where the region was,
 *   after that was unmapped or in another process, and wherever this object is then;
 * - to change a container that was forked with the region, the process must also have
 *   this object, alive and at its address: the process that made it, with another
 *   member of the family mapped there, or a child by fork(2) can.
 */
class segment_resource final : public std::pmr::memory_resource {
public:
	/* The bytes of @in have to stay mapped, @in itself need not be kept. */
	explicit segment_resource(segment &in) noexcept : manager_(in.get_segment_manager())
	{
	}
	/* Containers know its address. */
	segment_resource(const segment_resource &) = delete;
	segment_resource &operator=(const segment_resource &) = delete;

private:
	void *do_allocate(std::size_t size, std::size_t alignment) override
	{
		/* More would overflow where Boost adds the two. */
		const std::size_t most = manager_->get_size();
		void *const made =
			size <= most && alignment <= most
				? manager_->allocate_aligned(size, alignment, std::nothrow)
				: nullptr;

		if (!made)
			throw std::bad_alloc();
		return made;
	}

	void do_deallocate(void *made, std::size_t, std::size_t) override
	{
		manager_->deallocate(made);
	}

	bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
	{
		const auto *const same = dynamic_cast<const segment_resource *>(&other);

		return same && same->manager_ == manager_;
	}

	segment::segment_manager *manager_;
};

} // namespace cowsnap
