// SPDX-License-Identifier: GPL-2.0-only
/*
 * How else a process can learn what is written to its memory, to copy it: mprotect(2) with SIGSEGV, userfaultfd's
 * write-protection (with a thread that is asked, and without, from 6.7 on), soft-dirty bits. Each arms all of the
 * memory, has a cost at the first write to a page, and tells what was written.
 */
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "mapping.hpp"
#include "process.hpp"
#include "stage.hpp"
#include "unique_fd.hpp"

namespace cowsnap_bench {

using cowsnap_test::unique_fd;

/* One at a time in a process: the signal's handler finds it by a static. */
class mprotect_tracker {
public:
	/* Of what is written the old contents are kept, when @keep. */
	explicit mprotect_tracker(const mapping &memory, bool keep = false);
	mprotect_tracker(const mprotect_tracker &) = delete;
	mprotect_tracker &operator=(const mprotect_tracker &) = delete;
	~mprotect_tracker();

	void arm();
	/* The pages written since then, in the order of the writes. */
	const pages &written() const noexcept { return written_; }
	/* What they held, page after page. */
	const std::vector<std::byte> &old_contents() const noexcept { return contents_; }
	/* Both go to the caller, whose room is used from now on. */
	void exchange(pages &written, std::vector<std::byte> &contents) noexcept
	{
		written_.swap(written);
		contents_.swap(contents);
	}

private:
	static void caught(int, siginfo_t *info, void *);
	void note(std::byte *address);

	static inline mprotect_tracker *active_ = nullptr;
	const mapping &memory_;
	bool keep_;
	pages written_;
	std::vector<std::byte> contents_;
	struct sigaction before_ = {};
};

class userfault_tracker {
public:
	/* With a thread that lets each write through, or without (@async). */
	userfault_tracker(const mapping &memory, bool async);
	userfault_tracker(const userfault_tracker &) = delete;
	userfault_tracker &operator=(const userfault_tracker &) = delete;
	~userfault_tracker();

	/* Has the kernel userfaultfd, and its writes without a thread? */
	static bool supported(bool async);

	void arm();
	/* By PAGEMAP_SCAN, so only when async: the pages written since then. */
	std::size_t written(std::size_t at_most) const;

private:
	void serve();
	void protect(std::uintptr_t start, std::size_t size, bool on) const;

	const mapping &memory_;
	unique_fd fd_;
	cowsnap_test::event stop_;
	std::thread server_;
};

class soft_dirty_tracker {
public:
	explicit soft_dirty_tracker(const mapping &memory);

	static bool supported();

	/* Of all that the process has. */
	void arm() const;
	/* The pages written since then. */
	std::size_t written();

private:
	const mapping &memory_;
	unique_fd clear_, entries_;
	std::vector<std::uint64_t> buffer_;
};

} // namespace cowsnap_bench
