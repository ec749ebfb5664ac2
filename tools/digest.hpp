// SPDX-License-Identifier: GPL-2.0-only
/* What a region holds, in 128 bits. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "data.hpp"
#include "progress.hpp"

namespace cowsnap_command {

struct digest {
	std::uint64_t low = 0;
	std::uint64_t high = 0;

	friend bool operator==(const digest &, const digest &) = default;
};

/*
 * XXH3 of the pages that have a byte other than 0, each behind its offset, and of the
 * length. Holes and zeroes are the same to it, and so are granules of any size.
 */
inline digest digest_of(const cowsnap::member &of, const char *why)
{
	constexpr std::size_t page = 4096;
	static_assert(piece % page == 0);

	const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
									     XXH3_freeState);
	const std::uint64_t length = of.length();
	progress shown(why, length);

	if (!state)
		throw std::bad_alloc();
	XXH3_128bits_reset(state.get());

	const auto add = [&state](std::uint64_t number) {
		XXH3_128bits_update(state.get(), &number, sizeof(number));
	};

	each_data(of, 0, length, [&](std::uint64_t start, std::uint64_t size) {
		each_piece(of, start, size, [&](std::uint64_t offset, auto bytes) {
			for (std::size_t at = 0; at < bytes.size(); at += page) {
				const auto one = bytes.subspan(
					at, std::min(page, bytes.size() - at));

				if (all_zero(one))
					continue;
				add(offset + at);
				XXH3_128bits_update(state.get(), one.data(), one.size());
			}
			shown.at(offset);
		});
	});
	add(length);

	const XXH128_hash_t hash = XXH3_128bits_digest(state.get());

	return {hash.low64, hash.high64};
}

} // namespace cowsnap_command
