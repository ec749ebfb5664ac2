// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls at random by several threads at once on the same regions: right ones, nearly
 * right ones and wrong ones; ioctls, file operations, mappings.  Every snapshot is
 * a witness, as its bytes stay what they were when it was made; no call fails in a
 * way that the manual does not have; and in the end all memory comes back.
 *
 * Each thread's calls follow from the seed; how those of several threads fall
 * together does not.  Where the module and the kernel were built for it, calls that
 * reached something new are tried again, changed.
 */
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chance.hpp"
#include "coverage.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "max_bytes.hpp"
#include "region.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t threads = 4;
constexpr std::uint64_t memory_of_all = 24 << 20;
constexpr std::uint64_t large_granule = 2 << 20;
/* Where calls mostly go, and what a thread has to map in. */
constexpr std::uint64_t usual_length = 2 * large_granule;

/* One of so many pages: a few of them often, so that calls meet there. */
template <typename Random> std::size_t some_page(Random &random)
{
	return random.below(random.one_in(4) ? usual_length / page_size : 12);
}

/* What a snapshot holds, as one number: its length, and where it has which bytes. */
std::uint64_t sum_of_bytes(const memory_file &file)
{
	std::vector<std::uint64_t> words(8192);
	std::uint64_t sum = file.length();
	off_t at = 0;

	while ((at = ::lseek(file.fd(), at, SEEK_DATA)) >= 0) {
		const off_t end = check(::lseek(file.fd(), at, SEEK_HOLE), "SEEK_HOLE");

		sum = sum * 31 + static_cast<std::uint64_t>(at);
		while (at < end) {
			const std::span<std::byte> bytes = std::as_writable_bytes(
				std::span(words));
			const std::size_t size = std::min(
				bytes.size(), static_cast<std::size_t>(end - at));

			/* What is behind the end, in its last word. */
			words[(size - 1) / sizeof(words[0])] = 0;
			file.read(static_cast<std::uint64_t>(at), bytes.first(size));
			for (std::size_t i = 0; i < (size + 7) / 8; i++)
				sum = (sum ^ words[i]) * 0x100000001b3;
			at += static_cast<off_t>(size);
		}
	}
	if (errno != ENXIO)
		check(-1, "SEEK_DATA");
	return sum;
}

/* A region; and of a snapshot, what it held when it was made. */
struct member {
	region file;
	std::optional<std::uint64_t> sum;

	explicit member(int fd) : file(unique_fd(fd))
	{
		if (file.stat().state & COWSNAP_STAT_F_READONLY)
			sum = sum_of_bytes(file);
	}
	bool is_whole() const { return !sum || sum_of_bytes(file) == *sum; }
};

using member_ref = std::shared_ptr<const member>;

/* What the threads share. */
class world {
public:
	explicit world(const device &dev) : dev(dev)
	{
		no_regions.emplace_back(check(
			::memfd_create("no region", MFD_CLOEXEC), "memfd_create"));
		no_regions.emplace_back(check(::open("/", O_PATH | O_CLOEXEC), "/"));
		no_regions.emplace_back(
			check(::open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null"));
		no_regions.emplace_back(check(::dup(dev.fd()), "dup"));
		/* Families of four: a region, and two snapshots and a fork of it. */
		for (std::size_t i = 0; i < members_.size(); i += 4) {
			const region first = dev.create(usual_length, usual_length,
							"fuzz", i % 8 ? 21 : 0);

			number_pages(first, 32, 1);
			put_at(i, first);
			put_at(i + 1, first.snapshot());
			put_at(i + 2, first.snapshot());
			put_at(i + 3, first.fork());
		}
	}

	member_ref pick(tape &random)
	{
		const std::lock_guard guard(lock_);

		return members_[random.below(members_.size())];
	}
	/* Returns the one whose place it takes. */
	member_ref put(tape &random, member_ref one)
	{
		const std::lock_guard guard(lock_);

		return std::exchange(members_[random.below(members_.size())],
				     std::move(one));
	}
	void complain(const std::string &what)
	{
		const std::lock_guard guard(lock_);

		if (complaints.size() < 10)
			complaints.push_back(what);
	}
	void check_all()
	{
		for (const member_ref &one : members_)
			if (!one->is_whole())
				complain("a snapshot has changed in the end");
	}

	const device &dev;
	fault_catcher faults;
	/* Descriptors that a call must refuse. */
	std::vector<unique_fd> no_regions;
	std::vector<std::string> complaints;

private:
	void put_at(std::size_t place, const region &one)
	{
		members_[place] = std::make_shared<member>(check(
			::fcntl(one.fd(), F_DUPFD_CLOEXEC, 0), "F_DUPFD_CLOEXEC"));
	}

	std::mutex lock_;
	std::array<member_ref, 16> members_;
};

/* Addresses that nothing else has, whatever is unmapped there meanwhile. */
class arena {
public:
	explicit arena(std::size_t number)
		: start_(reinterpret_cast<std::byte *>((64ull + number) << 30))
	{
		if (::mmap(start_, 4 * usual_length, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			   0) != start_)
			check(-1, "mmap of an arena");
	}
	~arena() { ::munmap(start_, 4 * usual_length); }
	arena(const arena &) = delete;
	arena &operator=(const arena &) = delete;

	/* Behind where page() is. */
	std::byte *window() const { return start_ + 2 * usual_length; }
	template <typename Random> std::byte *page(Random &random) const
	{
		return start_ + some_page(random) * page_size;
	}

private:
	std::byte *start_;
};

/* One thread's calls. */
class user {
public:
	user(world &shared, std::size_t number)
		: shared_(shared), number_(number), random_(number),
		  touches_(threads + number), arena_(number)
	{
		int ends[2];

		check(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), "pipe2");
		pipe_out_ = unique_fd(ends[0]);
		pipe_in_ = unique_fd(ends[1]);
	}

	/* What comes next is decided by @given at first. */
	void begin(tape::numbers given) { random_.play(std::move(given)); }
	tape::numbers decisions() const { return random_.played(); }

	void step()
	{
		static constexpr std::array<void (user::*)(), 24> calls = {
			&user::query, &user::create, &user::fork_many, &user::fork,
			&user::fork, &user::restore, &user::restore, &user::diff,
			&user::stat, &user::prepare, &user::no_ioctl, &user::allocate,
			&user::allocate, &user::truncate, &user::transfer,
			&user::transfer, &user::seek, &user::splice, &user::map,
			&user::map, &user::remap, &user::advise, &user::look,
			&user::fork_process};

		steps_++;
		(this->*calls[random_.below(calls.size())])();
		/* Through what is mapped stores go on, whatever a call does. */
		for (int i = 0; i < 16; i++)
			touch();
	}

private:
	using errors = std::initializer_list<int>;

	void judge(const char *what, long result, errors documented)
	{
		if (result < 0 && !std::ranges::count(documented, errno))
			complain(std::string(what) + " failed with " +
				 std::strerror(errno));
	}
	void judge(const char *what, const void *address, errors documented)
	{
		judge(what, address == MAP_FAILED ? -1L : 0L, documented);
	}
	void complain(const std::string &what)
	{
		shared_.complain("thread " + std::to_string(number_) + ", step " +
				 std::to_string(steps_) + ": " + what);
	}

	/* Numbers at which something may go over. */
	std::uint64_t odd_number()
	{
		const unsigned int bits = static_cast<unsigned int>(random_.below(64));

		return (1ull << bits) + random_.below(3) - 1;
	}
	std::uint64_t offset()
	{
		const std::uint64_t usual = some_page(random_) * page_size;

		if (random_.one_in(10))
			return odd_number();
		return random_.one_in(4) ? usual + random_.below(page_size) : usual;
	}
	std::uint64_t length()
	{
		if (random_.one_in(10))
			return odd_number();
		return random_.one_in(4) ? random_.below(2 * page_size)
					 : random_.below(32) * page_size;
	}
	/* A descriptor, of @one or of what a call has to refuse. */
	int descriptor(const member_ref &one)
	{
		if (!random_.one_in(8))
			return one->file.fd();
		const std::size_t which = random_.below(shared_.no_regions.size() + 1);

		return which ? shared_.no_regions[which - 1].get() : -1;
	}

	member_ref adopt(int fd)
	{
		const auto made = std::make_shared<const member>(fd);
		const member_ref old = shared_.put(random_, made);

		if (random_.one_in(4) && !old->is_whole())
			complain("a snapshot has changed");
		return made;
	}

	/* An ioctl's argument, correct until spoil() had it. */
	template <typename Argument>
	Argument &argument()
	{
		argument_.fill(std::byte{});
		auto *const arg = reinterpret_cast<Argument *>(argument_.data());

		arg->size = sizeof(Argument);
		return *arg;
	}
	/* Changes some of the words, but not those of the pointer at @pointer. */
	template <typename Argument>
	void spoil(Argument &arg, std::size_t pointer = sizeof(Argument))
	{
		static constexpr std::array<int, 8> sizes = {-9999, -8, -1, 1,
							     4,	    8,	64, 4096};
		const std::size_t at = random_.below(sizeof(arg) / 4) * 4;

		switch (random_.below(8)) {
		case 0:
			arg.size += static_cast<std::uint32_t>(
				sizes[random_.below(sizes.size())]);
			if (random_.one_in(2))
				argument_[sizeof(arg) + random_.below(64)] =
					std::byte{1};
			break;
		case 1:
			arg.flags = 1u << random_.below(32);
			break;
		case 2:
			if (at < pointer || at >= pointer + 8) {
				const auto word =
					static_cast<std::uint32_t>(odd_number());

				std::memcpy(&argument_[at], &word, sizeof(word));
			}
			break;
		default:
			break;
		}
	}
	/* No process has memory there. */
	std::uint64_t nowhere()
	{
		return random_.one_in(2) ? 0 : odd_number() | 1ull << 63;
	}
	/* @good, or where nothing can be written, or where others write meanwhile. */
	std::uint64_t pointer(const void *good)
	{
		switch (random_.below(16)) {
		case 0:
			return nowhere();
		case 1:
			return reinterpret_cast<std::uintptr_t>(
				arena_.page(random_) + random_.below(page_size));
		default:
			return reinterpret_cast<std::uintptr_t>(good);
		}
	}
	/* Calls with the argument, or with a copy of it where others write. */
	void call(const char *what, int fd, unsigned long request, errors documented)
	{
		void *arg = argument_.data();

		if (random_.one_in(16)) {
			std::byte *const place = arena_.page(random_) +
						 random_.below(page_size);

			shared_.faults.raised(
				[&] { std::memcpy(place, argument_.data(), 256); });
			arg = place;
		} else if (random_.one_in(32)) {
			arg = nullptr;
		}
		judge(what, ::ioctl(fd, request, arg), documented);
	}

	void query()
	{
		spoil(argument<cowsnap_query>());
		call("QUERY", shared_.dev.fd(), COWSNAP_IOC_QUERY,
		     {EINVAL, E2BIG, EFAULT});
	}
	void create()
	{
		cowsnap_create &arg = argument<cowsnap_create>();

		arg.length = random_.one_in(4) ? length() : usual_length;
		arg.limit = random_.one_in(4) ? length() : usual_length;
		arg.granule_shift = static_cast<std::uint32_t>(
			random_.one_in(2) ? 0 : random_.between(10, 23));
		if (random_.one_in(8))
			std::memset(arg.name, 'n', random_.below(sizeof(arg.name) + 1));
		spoil(arg);

		const int result = ::ioctl(shared_.dev.fd(), COWSNAP_IOC_CREATE, &arg);

		judge("CREATE", result, {EINVAL, E2BIG, ENOMEM});
		if (result == 0)
			adopt(arg.fd);
	}
	void fork_many()
	{
		cowsnap_fork_many &arg = argument<cowsnap_fork_many>();
		std::array<member_ref, 6> parents;

		arg.count = static_cast<std::uint32_t>(random_.between(1, parents.size()));
		for (std::size_t i = 0; i < parents.size(); i++) {
			parents[i] = shared_.pick(random_);
			entries_[i] = {random_.one_in(8) ? descriptor(parents[i])
							 : parents[i]->file.fd(),
				       random_.one_in(32)
					       ? 2u
					       : static_cast<std::uint32_t>(
							 random_.below(2)),
				       -1, random_.one_in(32)};
		}
		arg.entries = random_.one_in(16)
				      ? nowhere()
				      : reinterpret_cast<std::uintptr_t>(entries_.data());
		spoil(arg, offsetof(cowsnap_fork_many, entries));

		const int result =
			::ioctl(shared_.dev.fd(), COWSNAP_IOC_FORK_MANY, &arg);

		judge("FORK_MANY", result,
		      {EINVAL, E2BIG, EFAULT, EBADF, ENOSPC, ENOMEM});
		for (std::uint32_t i = 0; result == 0 && i < arg.count; i++)
			adopt(entries_[i].fd);
	}
	/* Stores to the first pages of a region where they are mapped. */
	void store_to(std::span<std::byte> window, unsigned int twice)
	{
		for (std::size_t at = 0; at < window.size(); at += page_size) {
			volatile std::byte *const place = &window[at];
			const auto value = static_cast<std::byte>(steps_ * 2 + twice);

			shared_.faults.raised([=] { *place = value; });
		}
	}
	/* With stores before it and after it, through the same page-table entries. */
	void fork()
	{
		const member_ref one = shared_.pick(random_);
		const std::span window(arena_.window(), 8 * page_size);

		judge("mmap",
		      ::mmap(window.data(), window.size(), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_FIXED, one->file.fd(), 0),
		      {EPERM, ENOMEM});
		store_to(window, 0);
		cowsnap_fork &arg = argument<cowsnap_fork>();

		arg.flags = random_.one_in(2) ? COWSNAP_FORK_F_READONLY : 0;
		spoil(arg);

		const int result = ::ioctl(one->file.fd(), COWSNAP_IOC_FORK, &arg);

		judge("FORK", result, {EINVAL, E2BIG, ENOSPC, ENOMEM});
		if (result == 0) {
			const member_ref made = adopt(arg.fd);

			store_to(window, 1);
			if (!made->is_whole())
				complain("a snapshot has what was stored after it");
		}
		judge("mmap of nothing",
		      ::mmap(window.data(), window.size(), PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		      {ENOMEM});
	}
	/* Of members of one family as often as not. */
	void restore()
	{
		const member_ref one = shared_.pick(random_);
		const member_ref other = shared_.pick(random_);
		cowsnap_restore &arg = argument<cowsnap_restore>();

		arg.src_fd = descriptor(other);
		spoil(arg);
		call("RESTORE", one->file.fd(), COWSNAP_IOC_RESTORE,
		     {EINVAL, E2BIG, EFAULT, EBADF, EXDEV, EPERM, ENOSPC, ENOMEM});
	}
	void diff()
	{
		const member_ref one = shared_.pick(random_);
		const member_ref other = shared_.pick(random_);
		cowsnap_diff &arg = argument<cowsnap_diff>();

		arg.flags = random_.one_in(2) ? COWSNAP_DIFF_F_EXACT : 0;
		arg.other_fd = descriptor(other);
		arg.count = static_cast<std::uint32_t>(
			random_.one_in(4) ? random_.below(COWSNAP_DIFF_MAX + 2) : 8);
		arg.start = random_.one_in(2) ? 0 : offset();
		arg.end = random_.one_in(2) ? largest_length : offset();
		arg.ranges = pointer(ranges_.data());
		spoil(arg, offsetof(cowsnap_diff, ranges));
		call("DIFF", one->file.fd(), COWSNAP_IOC_DIFF,
		     {EINVAL, E2BIG, EFAULT, EBADF, EXDEV, ENOMEM});
	}
	void stat()
	{
		spoil(argument<cowsnap_stat>());
		call("STAT", shared_.pick(random_)->file.fd(), COWSNAP_IOC_STAT,
		     {EINVAL, E2BIG, EFAULT});
	}
	void prepare()
	{
		cowsnap_prepare &arg = argument<cowsnap_prepare>();

		arg.budget = random_.one_in(2) ? 0 : random_.below(64);
		spoil(arg);
		call("PREPARE", shared_.pick(random_)->file.fd(), COWSNAP_IOC_PREPARE,
		     {EINVAL, E2BIG, EFAULT});
	}
	/* Numbers that are nobody's, and those of the other file. */
	void no_ioctl()
	{
		const member_ref one = shared_.pick(random_);
		const bool on_device = random_.one_in(2);
		const auto number = static_cast<unsigned int>(random_.below(256));
		const auto size = static_cast<unsigned int>(random_.below(1 << 14));
		const unsigned int first = on_device ? 0x10 : 0;
		const unsigned long request =
			random_.one_in(2)
				? _IOC(random_.below(4), COWSNAP_IOC_MAGIC,
				       number | 0x20, size)
				: _IO(COWSNAP_IOC_MAGIC, first + number % 0x10);

		argument<cowsnap_stat>();
		if (::ioctl(on_device ? shared_.dev.fd() : one->file.fd(), request,
			    argument_.data()) != -1 ||
		    errno != ENOTTY)
			complain("ioctl " + std::to_string(request) +
				 " is not refused");
	}

	void allocate()
	{
		static constexpr std::array<int, 8> modes = {
			0,
			FALLOC_FL_KEEP_SIZE,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			FALLOC_FL_ZERO_RANGE,
			FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
			FALLOC_FL_UNSHARE_RANGE,
			FALLOC_FL_COLLAPSE_RANGE};
		const int mode = random_.one_in(8)
					 ? static_cast<int>(random_.below(256))
					 : modes[random_.below(modes.size())];

		judge("fallocate",
		      ::fallocate(shared_.pick(random_)->file.fd(), mode,
				  static_cast<off_t>(offset()),
				  static_cast<off_t>(length())),
		      {EOPNOTSUPP, EPERM, EINVAL, EFBIG, ENOSPC, ENOMEM});
	}
	void truncate()
	{
		judge("ftruncate",
		      ::ftruncate(shared_.pick(random_)->file.fd(),
				  static_cast<off_t>(offset())),
		      {EPERM, EINVAL, ENOSPC, ENOMEM});
	}
	/* To and from memory of its own, or what is mapped, or not. */
	void transfer()
	{
		const member_ref one = shared_.pick(random_);
		const std::size_t size = random_.one_in(2)
						 ? random_.below(2 * page_size)
						 : random_.below(bytes_.size() + 1);
		void *const place = random_.one_in(2) ? bytes_.data()
						      : arena_.page(random_);
		const auto at = static_cast<off_t>(offset());

		if (random_.one_in(2))
			judge("pread", ::pread(one->file.fd(), place, size, at),
			      {EINVAL, EFAULT, ENOMEM});
		else
			judge("pwrite", ::pwrite(one->file.fd(), place, size, at),
			      {EINVAL, EFAULT, EPERM, ENOSPC, EFBIG, ENOMEM});
	}
	void seek()
	{
		judge("lseek",
		      ::lseek(shared_.pick(random_)->file.fd(),
			      static_cast<off_t>(offset()),
			      static_cast<int>(random_.below(6))),
		      {ENXIO, EINVAL});
	}
	/* By a pipe, which is empty afterwards, or without. */
	void splice()
	{
		const member_ref from = shared_.pick(random_);
		const member_ref to = shared_.pick(random_);
		auto in = static_cast<off_t>(offset());
		auto out = static_cast<off_t>(offset());
		const std::size_t size = random_.below(16 * page_size);

		switch (random_.below(3)) {
		case 0:
			judge("splice from",
			      ::splice(from->file.fd(), &in, pipe_in_.get(), nullptr,
				       size, SPLICE_F_NONBLOCK),
			      {EINVAL, EAGAIN, ENOMEM});
			judge("splice to",
			      ::splice(pipe_out_.get(), nullptr, to->file.fd(), &out,
				       size, SPLICE_F_NONBLOCK),
			      {EINVAL, EAGAIN, EPERM, ENOSPC, EFBIG, ENOMEM});
			while (::read(pipe_out_.get(), bytes_.data(), bytes_.size()) > 0) {
			}
			break;
		case 1:
			judge("sendfile",
			      ::sendfile(pipe_in_.get(), from->file.fd(), &in, size),
			      {EINVAL, EAGAIN, EOVERFLOW, ENOMEM});
			while (::read(pipe_out_.get(), bytes_.data(), bytes_.size()) > 0) {
			}
			break;
		default:
			judge("copy_file_range",
			      ::copy_file_range(from->file.fd(), &in, to->file.fd(),
						&out, size, 0),
			      {EINVAL, EPERM, ENOSPC, EFBIG, EOVERFLOW, EXDEV, ENOMEM});
		}
	}

	int protection() { return static_cast<int>(random_.below(4)); }

	void map()
	{
		const member_ref one = shared_.pick(random_);
		std::byte *const place = arena_.page(random_);
		const std::size_t size = (1 + random_.below(256)) * page_size;
		int flags = MAP_FIXED | (random_.one_in(4) ? MAP_PRIVATE : MAP_SHARED);

		if (random_.one_in(8))
			flags |= MAP_POPULATE;
		if (random_.one_in(16)) {
			flags |= 1 << random_.between(5, 19);
			/* Whether it is said or not, nothing is replaced. */
			flags &= ~(MAP_ANONYMOUS | MAP_LOCKED);
		}
		judge("mmap",
		      ::mmap(place, size, protection(), flags, one->file.fd(),
			     static_cast<off_t>(offset())),
		      {EINVAL, EPERM, EOPNOTSUPP, EOVERFLOW, ENOMEM, EACCES});
	}
	void remap()
	{
		std::byte *const place = arena_.page(random_);
		const std::size_t size = random_.below(64) * page_size;
		const std::size_t other = random_.below(64) * page_size;

		switch (random_.below(4)) {
		case 0:
			judge("munmap", ::munmap(place, size), {EINVAL});
			break;
		case 1:
			judge("mprotect", ::mprotect(place, size, protection()),
			      {EACCES, ENOMEM});
			break;
		case 2:
			judge("mremap in place",
			      ::mremap(place, size, other, 0),
			      {EINVAL, EFAULT, ENOMEM});
			break;
		default:
			judge("mremap",
			      ::mremap(place, size, other,
				       MREMAP_MAYMOVE | MREMAP_FIXED,
				       arena_.page(random_)),
			      {EINVAL, EFAULT, ENOMEM});
		}
	}
	/* All that madvise(2) may do, but for marking memory as failed. */
	void advise()
	{
		judge("madvise",
		      ::madvise(arena_.page(random_), random_.below(64) * page_size,
				static_cast<int>(random_.below(30))),
		      {EINVAL, EACCES, EPERM, EFAULT, ENOMEM, EBADF, ENOSPC, EAGAIN, EBUSY});
	}
	void touch()
	{
		volatile std::byte *const place =
			arena_.page(touches_) + touches_.below(page_size);
		const auto value = static_cast<std::byte>(touches_.below(256));

		if (touches_.one_in(2))
			shared_.faults.raised([=] { (void)*place; });
		else
			shared_.faults.raised([=] { *place = value; });
	}
	void look()
	{
		const member_ref one = shared_.pick(random_);
		const std::string name =
			"/proc/self/fdinfo/" + std::to_string(one->file.fd());
		const unique_fd info(::open(name.c_str(), O_RDONLY | O_CLOEXEC));

		judge("fdinfo", ::read(info.get(), bytes_.data(), bytes_.size()), {});
		if (!one->is_whole())
			complain("a snapshot has changed");
	}
	/* Its child has the same mappings, and stores there, too. */
	void fork_process()
	{
		if (!random_.one_in(8))
			return;

		const pid_t child = ::fork();

		if (child == 0) {
			for (int i = 0; i < 16; i++)
				touch();
			::_exit(0);
		}
		judge("fork", child, {EAGAIN, ENOMEM});
		if (child > 0)
			::waitpid(child, nullptr, 0);
	}

	world &shared_;
	std::size_t number_;
	std::size_t steps_ = 0;
	tape random_;
	/* Apart, so that a tape has what decides on calls. */
	chance touches_;
	arena arena_;
	unique_fd pipe_out_, pipe_in_;
	alignas(8) std::array<std::byte, 16384> argument_ = {};
	std::vector<cowsnap_fork_entry> entries_ =
		std::vector<cowsnap_fork_entry>(COWSNAP_FORK_MANY_MAX);
	std::vector<cowsnap_range> ranges_ =
		std::vector<cowsnap_range>(COWSNAP_DIFF_MAX);
	std::vector<std::byte> bytes_ = bytes_of(16 * page_size, 7);
};

/* Steps of one thread, a few at a time, and what the module tells about them. */
class player {
public:
	player(world &shared, std::size_t number, experience &all)
		: user_(shared, number), random_(2 * threads + number), all_(all)
	{
		if (coverage::supported())
			reached_.emplace();
	}

	std::size_t play(deadline end)
	{
		std::unordered_set<std::uint64_t> places;
		std::size_t steps = 0;

		user_.begin(all_.advice(random_));
		for (; steps < 8 && !passed(end); steps++) {
			user_.step();
			if (reached_)
				reached_->take([&](auto place) { places.insert(place); });
		}
		all_.judge(user_.decisions(), places);
		return steps;
	}

private:
	user user_;
	chance random_;
	experience &all_;
	std::optional<coverage> reached_;
};

class fuzz : public cowsnap_fixture {};

TEST_F(fuzz, finds_no_call_that_does_harm)
{
	const max_bytes_parameter most(memory_of_all);
	world shared(dev);
	experience all;
	const deadline end = scaled_deadline(std::chrono::seconds(5));
	std::vector<std::jthread> running;
	std::atomic<std::size_t> steps = 0;

	for (std::size_t i = 0; i < threads; i++)
		running.emplace_back([&, i] {
			try {
				player one(shared, i, all);

				while (!passed(end))
					steps += one.play(end);
			} catch (const std::exception &error) {
				shared.complain(error.what());
			}
		});
	running.clear();
	shared.check_all();
	std::printf("# %zu steps\n", steps.load());
	if (all.places())
		std::printf("# %zu places of the module reached, %zu tapes kept\n",
			    all.places(), all.tapes());
	EXPECT_GT(steps, 0u);
	for (const std::string &complaint : shared.complaints)
		ADD_FAILURE() << complaint << "; the seed is " << seed();
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
