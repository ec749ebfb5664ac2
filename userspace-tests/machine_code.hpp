// SPDX-License-Identifier: GPL-2.0-only
/* Code to be put into memory and called, and breakpoints in it, on the machines there are. */
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* Two words of 32 bits. */
inline std::vector<std::byte> function_that_returns(std::uint8_t value)
{
#ifdef __x86_64__
	/* mov eax, value; ret */
	const std::array<std::uint8_t, 8> code = {0xb8, value, 0, 0, 0, 0xc3, 0, 0};
#else
	/* mov w0, value; ret */
	const std::array<std::uint32_t, 2> code = {0x52800000U | value * 32U,
						   0xd65f03c0U};
#endif
	const auto bytes = std::as_bytes(std::span(code));

	return {bytes.begin(), bytes.end()};
}

inline int call(const mapping &code)
{
	/* The CPU may have what was there before. */
	__builtin___clear_cache(reinterpret_cast<char *>(code.data()),
				reinterpret_cast<char *>(code.data()) + 8);
	return reinterpret_cast<int (*)()>(code.data())();
}

/* A word of code with a breakpoint for its first instruction. */
inline std::uint64_t with_breakpoint(std::uint64_t word)
{
#ifdef __x86_64__
	return (word & ~std::uint64_t{0xff}) | 0xcc;
#else
	return (word & ~std::uint64_t{0xffffffff}) | 0xd4200000;
#endif
}

/* Takes a process that stopped at a breakpoint back to it; false for another one. */
inline bool return_to_breakpoint([[maybe_unused]] pid_t pid,
				 [[maybe_unused]] const std::byte *at)
{
#ifdef __x86_64__
	user_regs_struct registers = {};

	check(::ptrace(PTRACE_GETREGS, pid, nullptr, &registers), "PTRACE_GETREGS");
	registers.rip--;
	check(::ptrace(PTRACE_SETREGS, pid, nullptr, &registers), "PTRACE_SETREGS");
	return registers.rip == reinterpret_cast<std::uintptr_t>(at);
#else
	/* It did not go on. */
	return true;
#endif
}

} // namespace cowsnap_test
