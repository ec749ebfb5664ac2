// SPDX-License-Identifier: GPL-2.0-only
/*
 * Markers in the guest's code for the plugin that counts its instructions: a NOP
 * with a number in it.
 */
#pragma once

#include <cstdint>

namespace cowsnap_bench {

/* The number: whose it is, begin or end, and of which section. */
inline constexpr std::uint32_t marker_magic = 0x5c0a0000;
inline constexpr std::uint32_t marker_magic_mask = 0xffff0000;
inline constexpr std::uint32_t marker_kind = 0x8000;
inline constexpr std::uint32_t marker_end = 0x8000;
inline constexpr std::uint32_t marker_section = 0x7fff;

template <std::uint32_t number>
inline void marker()
{
#ifdef __x86_64__
	asm volatile(".byte 0x0f, 0x1f, 0x80; .long %c0" ::"i"(number) : "memory");
#endif
}

/* Counts what @work executes as section @id. */
template <std::uint32_t id, typename Work>
void profiled(Work &&work)
{
	static_assert(id <= marker_section);
	marker<marker_magic | id>();
	work();
	marker<marker_magic | marker_end | id>();
}

} // namespace cowsnap_bench
