// SPDX-License-Identifier: MIT
/* Memory of the heap that goes elsewhere: mremap(), and what only the kernel can have. */
#include "heap.hpp"

#include <algorithm>

#include <sys/mman.h>
#include <unistd.h>

#include "guard.hpp"

namespace cowsnap_preload {
/* What the region has there, but no holes. */
long heap::copy(range from, address to) const noexcept
{
	const address shift = to - from.start;
	long at = offset_of(from.start);
	const long end = offset_of(from.end);

	while (at < end) {
		at = system_call(SYS_lseek, fd_, at, SEEK_DATA);
		if (at == -ENXIO)
			return 0;
		if (at < 0)
			return at;

		const long hole = std::min(end, system_call(SYS_lseek, fd_, at, SEEK_HOLE));

		while (at < hole) {
			const long done = patient_call(
				SYS_pread64, fd_, all_.start + static_cast<address>(at) + shift,
				hole - at, at);

			if (done <= 0)
				return done < 0 ? done : -EFAULT;
			at += done;
		}
	}
	return 0;
}

long heap::hand_over_one(range wanted) noexcept
{
	const long made = system_call(SYS_mmap, nullptr, wanted.size(), readable_and_writable,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (is_error(made))
		return made;

	const kernel_call call = {SYS_mremap,
				  {made, static_cast<long>(wanted.size()),
				   static_cast<long>(wanted.size()), MREMAP_MAYMOVE | MREMAP_FIXED,
				   static_cast<long>(wanted.start), 0}};
	long result = copy(wanted, static_cast<address>(made));

	if (result == 0)
		result = map_over_locked(wanted, true, call);
	if (is_error(result))
		system_call(SYS_munmap, made, wanted.size());
	return result;
}

void heap::hand_over(range wanted) noexcept
{
	const guard hold;

	layout_.visit(wanted, [&](range some, const part &kind) {
		if (kind == part{use::taken, readable_and_writable})
			hand_over_one(some);
	});
}

/* To where there is room, or to @target, in place of what is there. */
long heap::move(range old, int protection, std::size_t size, bool fixed, address target) noexcept
{
	const range wanted = {target, target + size};
	long moved = 0;

	if (!fixed)
		moved = find(0, size, readable_and_writable);
	else if (all_.has(wanted))
		moved = place_locked(wanted, readable_and_writable, true);
	else if (touches(wanted))
		return -EINVAL;
	if (moved == 0 || (!fixed && moved == -ENOMEM))
		moved = system_call(SYS_mmap, target, size, readable_and_writable,
				    MAP_PRIVATE | MAP_ANONYMOUS | (fixed ? MAP_FIXED : 0), -1, 0);
	if (is_error(moved))
		return moved;

	const auto start = static_cast<address>(moved);
	const range made = {start, start + size};
	long result = copy({old.start, std::min(old.end, old.start + size)}, start);

	if (result == 0 && protection != readable_and_writable) {
		result = system_call(SYS_mprotect, start, size, protection);
		if (result == 0 && touches(made) && can_change())
			layout_.assign(made, {use::taken, protection});
	}
	if (result == 0)
		result = release_locked(old);
	else
		release_locked(made);
	return result < 0 ? result : moved;
}

/* Of one mapping that is the heap's, where it is if that can be. */
long heap::resize_taken(range old, int protection, std::size_t size, bool may_move) noexcept
{
	const range tail = {old.start + size, old.end};
	const range growth = {old.end, old.start + size};
	long result = 0;

	if (!tail.empty())
		result = release_locked(tail);
	else if (!growth.empty() && all_.has(growth) && layout_.is_free(growth))
		result = take(growth, protection);
	else if (!growth.empty())
		return may_move ? move(old, protection, size, false, 0) : -ENOMEM;
	return is_error(result) ? result : static_cast<long>(old.start);
}

long heap::resize(range old, std::size_t size, int flags, address target) noexcept
{
	const guard hold;
	const bool fixed = flags & MREMAP_FIXED;
	const range wanted = {target, target + size};
	const part kind = touches(old) ? layout_.at(old.common(all_).start).second
				       : part{use::foreign};
	const auto is_alike = [&](const part &other) { return other == kind; };

	/* More than one mapping, or none. */
	if (kind.is_free() || !layout_.all_of(old, is_alike) || (touches(old) && !all_.has(old)))
		return -EFAULT;
	if (kind.used == use::foreign) {
		const kernel_call call = {SYS_mremap,
					  {static_cast<long>(old.start),
					   static_cast<long>(old.size()), static_cast<long>(size),
					   flags, static_cast<long>(target), 0}};

		return fixed && touches(wanted) ? map_over_locked(wanted, true, call) : call.make();
	}
	if (flags & MREMAP_DONTUNMAP || (fixed && !wanted.common(old).empty()))
		return -EINVAL;
	if (fixed)
		return move(old, kind.protection, size, true, target);
	return resize_taken(old, kind.protection, size, flags & MREMAP_MAYMOVE);
}

} // namespace cowsnap_preload
