// SPDX-License-Identifier: MIT
/*
 * Boost.Interprocess in a region: memory that is allocated and given back, objects with
 * names, and containers whose pointers hold wherever the region is mapped. Needs the
 * headers of Boost, 1.74 or later; cowsnap/cowsnap.hpp does not include this one.
 */
#pragma once

#include <cstddef>
#include <system_error>

#include <boost/interprocess/creation_tags.hpp>
#include <boost/interprocess/indexes/iset_index.hpp>
#include <boost/interprocess/managed_external_buffer.hpp>
#include <boost/interprocess/mem_algo/rbtree_best_fit.hpp>

#include <cowsnap/mapping.hpp>
#include <cowsnap/system_call.hpp>

namespace cowsnap {

/*
 * Best fit, from a tree of what is free; neighbours that are free become one. All of the
 * bookkeeping lies in the mapped bytes, with offsets for pointers: a fork or a RESTORE
 * takes it along, and what was forked is opened by any process at any address.
 *
 * There is no lock. One in the region would be forked as it is at that instant, maybe
 * locked for ever, and processes cannot wait for one there (cowsnap(4), BUGS). Whoever
 * allocates, or changes what is there, has to exclude others who do, and FORK and
 * RESTORE: they must find what is in the region between two changes, as its owner must.
 *
 * It does not grow. A region takes no memory for what was never written, so it can be as
 * long from the start as it may ever become. What is freed is used again, and given back
 * to the system with the region only. At a cap of the family or the module a store raises
 * SIGBUS; mapping::populate_write() makes sure beforehand.
 */
using segment = boost::interprocess::managed_external_buffer;

/*
 * Makes a segment of all the bytes of @in, whatever they held, which have to stay mapped
 * while it is used. EINVAL when they are too few, some hundred.
 */
[[nodiscard]] inline segment create_segment(const mapping &in, std::error_code &error)
{
	if (in.size() < segment::segment_manager::get_min_size()) {
		detail::fail(error, std::errc::invalid_argument);
		return {};
	}
	error.clear();
	return {boost::interprocess::create_only, in.data(), in.size()};
}
[[nodiscard]] inline segment create_segment(const mapping &in)
{
	return detail::or_throw("cowsnap: create_segment", [&](std::error_code &error) {
		return create_segment(in, error);
	});
}

/* Opens the segment that was created in what @in maps, or in what that is a fork of. */
[[nodiscard]] inline segment open_segment(const mapping &in)
{
	return {boost::interprocess::open_only, in.data(), in.size()};
}

/*
 * The object that was constructed as a T with @name in the segment in @in, or null.
 * Nothing is written, so @in may show a snapshot.
 */
template <typename T>
[[nodiscard]] const T *find_in_segment(const const_mapping &in, const char *name)
{
	segment opened(boost::interprocess::open_only, const_cast<std::byte *>(in.data()),
		       in.size());

	return opened.find_no_lock<T>(name).first;
}

} // namespace cowsnap
