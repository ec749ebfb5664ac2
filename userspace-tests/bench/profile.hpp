// SPDX-License-Identifier: GPL-2.0-only
/*
 * Markers in the guest's code for the plugin that counts its instructions: a NOP
 * with a number in it.
 */
#pragma once

#include <cstdint>

namespace cowsnap_bench {

inline constexpr std::uint32_t marker_begin = 0x5c0abe91;
inline constexpr std::uint32_t marker_end = 0x5c0aefd0;

template <std::uint32_t number>
inline void marker()
{
#ifdef __x86_64__
	asm volatile(".byte 0x0f, 0x1f, 0x80; .long %c0" ::"i"(number) : "memory");
#endif
}

} // namespace cowsnap_bench
