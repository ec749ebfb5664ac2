// SPDX-License-Identifier: GPL-2.0-only
#include "trackers.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cowsnap_bench {
namespace {

using cowsnap_test::check;

/* Newer than the headers that this is built with. */
constexpr std::uint64_t feature_wp_async = 1UL << 15;

struct scan_region {
	std::uint64_t start, end, categories;
};
struct scan_arg {
	std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, scan_arg);
constexpr std::uint64_t page_is_written = 1UL << 1;

constexpr std::uint64_t entry_soft_dirty = 1UL << 55;

std::uintptr_t address_of(const mapping &memory)
{
	return reinterpret_cast<std::uintptr_t>(memory.data());
}

/* A userfaultfd with these features, none where the kernel has them not. */
unique_fd open_userfaultfd(std::uint64_t features)
{
	/* One that blocks cannot be polled. */
	unique_fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
	uffdio_api api = {};

	api.api = UFFD_API;
	api.features = features;
	if (!fd || ::ioctl(fd.get(), UFFDIO_API, &api))
		return {};
	return fd;
}

} // namespace

mprotect_tracker::mprotect_tracker(const mapping &memory, bool keep) : memory_(memory), keep_(keep)
{
	struct sigaction action = {};

	/* So that the handler needs no memory. */
	written_.reserve(memory.pages());
	active_ = this;
	action.sa_sigaction = &mprotect_tracker::caught;
	action.sa_flags = SA_SIGINFO;
	check(::sigaction(SIGSEGV, &action, &before_), "sigaction");
}

mprotect_tracker::~mprotect_tracker()
{
	::mprotect(memory_.data(), memory_.size(), PROT_READ | PROT_WRITE);
	::sigaction(SIGSEGV, &before_, nullptr);
	active_ = nullptr;
}

void mprotect_tracker::arm()
{
	written_.clear();
	contents_.clear();
	memory_.protect(PROT_READ);
}

void mprotect_tracker::caught(int, siginfo_t *info, void *)
{
	active_->note(static_cast<std::byte *>(info->si_addr));
}

void mprotect_tracker::note(std::byte *address)
{
	const auto page = static_cast<std::size_t>(address - memory_.data()) / page_size;

	/* A fault of anybody else's: the second one is fatal. */
	if (page >= memory_.pages()) {
		::signal(SIGSEGV, SIG_DFL);
		return;
	}

	std::byte *const start = memory_.data() + page * page_size;

	/* A store raises it, never the allocator, so that this may be used here. */
	if (keep_)
		contents_.insert(contents_.end(), start, start + page_size);
	written_.push_back(page);
	if (::mprotect(start, page_size, PROT_READ | PROT_WRITE))
		::signal(SIGSEGV, SIG_DFL);
}

userfault_tracker::userfault_tracker(const mapping &memory, bool async)
	: memory_(memory), fd_(open_userfaultfd(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
						(async ? feature_wp_async : 0)))
{
	uffdio_register wanted = {};

	if (!fd_)
		throw std::runtime_error("the kernel has no such userfaultfd");
	wanted.range = {address_of(memory), memory.size()};
	wanted.mode = UFFDIO_REGISTER_MODE_WP;
	check(::ioctl(fd_.get(), UFFDIO_REGISTER, &wanted), "UFFDIO_REGISTER");
	if (!async)
		server_ = std::thread([this] { serve(); });
}

userfault_tracker::~userfault_tracker()
{
	if (server_.joinable()) {
		stop_.tell();
		server_.join();
	}
}

bool userfault_tracker::supported(bool async)
{
	return static_cast<bool>(open_userfaultfd(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
						  (async ? feature_wp_async : 0)));
}

void userfault_tracker::protect(std::uintptr_t start, std::size_t size, bool on) const
{
	uffdio_writeprotect arg = {};

	arg.range = {start, size};
	arg.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
	check(::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &arg), "UFFDIO_WRITEPROTECT");
}

void userfault_tracker::arm()
{
	protect(address_of(memory_), memory_.size(), true);
}

void userfault_tracker::serve()
{
	std::array<pollfd, 2> wanted = {{{fd_.get(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}}};

	for (;;) {
		uffd_msg message = {};

		check(::poll(wanted.data(), wanted.size(), -1), "poll");
		if (wanted[1].revents)
			return;
		if (::read(fd_.get(), &message, sizeof(message)) < 0) {
			if (errno != EAGAIN)
				check(-1, "read of a userfaultfd");
			continue;
		}
		protect(message.arg.pagefault.address / page_size * page_size, page_size, false);
	}
}

std::size_t userfault_tracker::written(std::size_t at_most) const
{
	const unique_fd file(check(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "open pagemap"));
	std::vector<scan_region> found(at_most);
	std::size_t count = 0;
	scan_arg arg = {};

	arg.size = sizeof(arg);
	arg.start = address_of(memory_);
	arg.end = arg.start + memory_.size();
	arg.vec = reinterpret_cast<std::uintptr_t>(found.data());
	arg.vec_len = found.size();
	arg.category_mask = arg.return_mask = page_is_written;
	const long regions = check(::ioctl(file.get(), pagemap_scan, &arg), "PAGEMAP_SCAN");
	for (const scan_region &one : std::span(found).first(static_cast<std::size_t>(regions)))
		count += (one.end - one.start) / page_size;
	return count;
}

soft_dirty_tracker::soft_dirty_tracker(const mapping &memory)
	: memory_(memory),
	  clear_(check(::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC), "open clear_refs")),
	  entries_(check(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "open pagemap")),
	  buffer_(mebibyte / sizeof(std::uint64_t))
{
}

bool soft_dirty_tracker::supported()
{
	const mapping one = small_pages(page_size);
	soft_dirty_tracker tracker(one);

	tracker.arm();
	one.store(0, 1);
	return tracker.written() == 1;
}

void soft_dirty_tracker::arm() const
{
	check(::write(clear_.get(), "4", 1), "write to clear_refs");
}

std::size_t soft_dirty_tracker::written()
{
	const std::size_t first = address_of(memory_) / page_size;
	std::size_t count = 0;

	for (std::size_t page = 0; page < memory_.pages();) {
		const std::size_t some = std::min(buffer_.size(), memory_.pages() - page);

		check(::pread(entries_.get(), buffer_.data(), some * sizeof(buffer_[0]),
			      static_cast<off_t>((first + page) * sizeof(buffer_[0]))),
		      "read pagemap");
		for (const std::uint64_t entry : std::span(buffer_).first(some))
			count += (entry & entry_soft_dirty) != 0;
		page += some;
	}
	return count;
}

} // namespace cowsnap_bench
