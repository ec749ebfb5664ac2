// SPDX-License-Identifier: GPL-2.0-only
/*
 * Everything fails once: each system call on a region is made with its first
 * allocation or user copy failing, on a new region with the second one, and so on
 * until there are no more.  Each time the error is one that is documented, all
 * regions hold what they held, the call succeeds when it is made again, and
 * nothing is left behind.  As the kernel's own iommufd_fail_nth does.  And the same
 * with all pages refused from the first on, from the second on, and so on: a large
 * granule can do without any one piece of memory.
 *
 * A store of a program is tried again by the kernel until its fault finds memory,
 * so that no failure shows.  Faults are taken by calls here, which tell of them.
 */
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include "fault_injection.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "view.hpp"

using namespace cowsnap_test;

namespace {

using bytes = std::vector<std::byte>;

/* Granules in the subject, which has two leaves, and where it ends. */
constexpr std::size_t granules = 20;
constexpr std::size_t cut_off = 100;

/* What the granules are: shared unless they are written or holes. */
constexpr std::size_t shared = 0, dirty = 1, hole = 4, last = granules - 1;

/* Far enough from other mappings to have page tables of its own. */
constexpr std::size_t alone = 1 << 30;

/* A family: what its members hold is known, and what is mapped is not faulted in. */
struct family {
	family(const device &dev, std::uint32_t shift)
		: dev(dev), granule(std::size_t{1} << shift),
		  subject(dev.create(granules * granule - cut_off, 0, "subject",
				     shift))
	{
		for (std::size_t index = 0; index < granules; index++)
			if (index / 2 != hole / 2 && index < granules - 3)
				fill_granule(subject, held, index, 1);
		fill_granule(subject, held, last, 1);
		child_held = held;
		child = subject.fork();
		fill_granule(child, child_held, shared + 3, 2);
		snapshot_held = held;
		snapshot = subject.snapshot();
		fill_granule(subject, held, dirty, 3);
		fill_granule(subject, held, dirty + 1, 3);
		map = view(subject.fd(), 0, granules * granule,
			   PROT_READ | PROT_WRITE, MAP_SHARED, alone);
	}

	std::size_t at(std::size_t index) const { return index * granule; }

	/* Fills one granule, as far as the region goes, with a value and its index. */
	void fill_granule(const region &where, bytes &what, std::size_t index,
			  unsigned int value) const
	{
		const std::size_t size =
			std::min(granule, where.length() - at(index));
		const bytes pattern = bytes_of(
			size, static_cast<unsigned int>(value * granules + index));

		where.write(at(index), pattern);
		if (what.size() < where.length())
			what.resize(where.length());
		std::ranges::copy(pattern, what.begin() +
						   static_cast<std::ptrdiff_t>(at(index)));
	}

	const device &dev;
	std::size_t granule;
	bytes held, child_held, snapshot_held;
	region subject, child, snapshot;
	view map;
	/* What a call works with, or makes. */
	std::optional<page_in_a_pipe> pin;
	std::array<region, 3> made;
	mapping other_map;
	void *mapped = nullptr;
	memory_file file;
	bytes buffer;
	cowsnap_restore restored = {};
	std::vector<cowsnap_range> ranges = std::vector<cowsnap_range>(granules);
};

/* A result as the kernel gives it: an error is negative. */
long result_of(long result)
{
	return result < 0 ? -errno : result;
}

/*
 * A system call in many guises.  What it is made on holds afterwards, when it
 * succeeded, what @done makes of what it held; a short result comes with it.
 */
struct call {
	const char *name;
	std::function<long(family &)> make;
	/* None when nothing in it can fail. */
	std::set<int> errors;
	std::function<void(family &, long)> done = [](family &, long) {};
	std::function<void(family &)> prepare = [](family &) {};
	/* It does all or nothing, so that STAT tells the same after an error. */
	bool whole = false;
	/* After this error it may have been done all the same. */
	int done_with = 0;
	/* It needs pages for granules, whatever else. */
	bool fills = false;
};

template <typename Struct>
long do_ioctl(int fd, unsigned long number, Struct &arg)
{
	arg.size = sizeof(arg);
	return result_of(::ioctl(fd, number, &arg));
}

long make_fork(family &on, std::uint32_t flags)
{
	cowsnap_fork arg = {};

	arg.flags = flags;

	const long result = do_ioctl(on.subject.fd(), COWSNAP_IOC_FORK, arg);

	if (!result)
		on.made[0] = region(unique_fd(arg.fd));
	return result;
}

/* Two forks of the subject, and one of its child. */
long make_forks(family &on)
{
	std::array<cowsnap_fork_entry, 3> entries = {};
	cowsnap_fork_many arg = {};

	for (std::size_t i = 0; i < entries.size(); i++)
		entries[i].region_fd = i < 2 ? on.subject.fd() : on.child.fd();
	entries[0].flags = COWSNAP_FORK_F_READONLY;
	arg.count = static_cast<std::uint32_t>(entries.size());
	arg.entries = reinterpret_cast<std::uintptr_t>(entries.data());

	const long result = do_ioctl(on.dev.fd(), COWSNAP_IOC_FORK_MANY, arg);

	for (std::size_t i = 0; !result && i < entries.size(); i++)
		on.made[i] = region(unique_fd(entries[i].fd));
	return result;
}

void expect_forks(family &on, long)
{
	EXPECT_TRUE(on.made[0].read(0, on.held.size()) == on.held);
	if (on.made[1].fd() < 0)
		return;
	EXPECT_TRUE(on.made[1].read(0, on.held.size()) == on.held);
	EXPECT_TRUE(on.made[2].read(0, on.child_held.size()) == on.child_held);
}

long make_restore(family &on, const region &target, const region &source)
{
	on.restored = {};
	on.restored.src_fd = source.fd();
	return do_ioctl(target.fd(), COWSNAP_IOC_RESTORE, on.restored);
}

long make_diff(family &on, std::uint32_t flags)
{
	cowsnap_diff arg = {};

	arg.flags = flags;
	arg.other_fd = on.made[0].fd();
	arg.count = static_cast<std::uint32_t>(on.ranges.size());
	arg.end = largest_length;
	arg.ranges = reinterpret_cast<std::uintptr_t>(on.ranges.data());

	const long result = do_ioctl(on.child.fd(), COWSNAP_IOC_DIFF, arg);

	return result ? result : arg.count;
}

/* Neither it nor what it is compared with was used before. */
void prepare_diff(family &on)
{
	on.child = on.child.fork();
	on.made[0] = on.snapshot.fork();
}

void expect_difference(family &on, long count)
{
	ASSERT_EQ(count, 1);
	EXPECT_EQ(on.ranges[0].offset, on.at(shared + 3));
	EXPECT_EQ(on.ranges[0].length, on.granule);
}

/* What is to be written, or room for what is read: @size bytes from @offset on. */
std::function<void(family &)> with_buffer(double granules_long)
{
	return [=](family &on) {
		on.buffer = bytes_of(static_cast<std::size_t>(
					     granules_long *
					     static_cast<double>(on.granule)),
				     0xaa);
	};
}

call writing(const char *name, double from, double granules_long,
	     const std::set<int> &errors = {ENOMEM, EFAULT})
{
	const auto offset = [from](const family &on) {
		return static_cast<std::size_t>(from *
						static_cast<double>(on.granule));
	};

	return {.name = name,
		.make =
			[=](family &on) {
				return result_of(::pwrite(
					on.subject.fd(), on.buffer.data(),
					on.buffer.size(),
					static_cast<off_t>(offset(on))));
			},
		.errors = errors,
		.done =
			[=](family &on, long done) {
				const auto end = offset(on) +
						 static_cast<std::size_t>(done);

				if (on.held.size() < end)
					on.held.resize(end);
				std::fill_n(on.held.begin() +
						    static_cast<std::ptrdiff_t>(
							    offset(on)),
					    done, std::byte{0xaa});
			},
		.prepare = with_buffer(granules_long),
		.fills = !errors.empty()};
}

call reading(const char *name, std::size_t from, bool of_a_fork)
{
	return {.name = name,
		.make =
			[=](family &on) {
				return result_of(::pread(
					of_a_fork ? on.made[0].fd()
						  : on.subject.fd(),
					on.buffer.data(), on.buffer.size(),
					static_cast<off_t>(on.at(from))));
			},
		.errors = {ENOMEM, EFAULT},
		.done =
			[=](family &on, long done) {
				EXPECT_EQ(std::memcmp(on.buffer.data(),
						      &on.held[on.at(from)],
						      static_cast<std::size_t>(
							      done)),
					  0);
			},
		.prepare =
			[](family &on) {
				with_buffer(2)(on);
				on.made[0] = on.subject.fork();
			}};
}

/* From @from to @to granules, in fact less: neither end is at a granule's. */
call allocating(const char *name, int mode, std::size_t from, std::size_t to)
{
	return {.name = name,
		.make =
			[=](family &on) {
				return result_of(::fallocate(
					on.subject.fd(), mode,
					static_cast<off_t>(on.at(from) + cut_off),
					static_cast<off_t>(on.at(to - from) -
							   2 * cut_off)));
			},
		.errors = {ENOMEM},
		.done =
			[=](family &on, long) {
				const auto start = on.at(from) + cut_off;
				const auto end = on.at(to) - cut_off;

				if (!(mode & FALLOC_FL_KEEP_SIZE) &&
				    end > on.held.size())
					on.held.resize(end);
				if (mode & (FALLOC_FL_PUNCH_HOLE |
					    FALLOC_FL_ZERO_RANGE))
					std::fill_n(
						on.held.begin() +
							static_cast<std::ptrdiff_t>(
								start),
						std::min(end, on.held.size()) -
							start,
						std::byte{0});
			},
		.done_with = mode & FALLOC_FL_ZERO_RANGE ? ENOMEM : 0,
		.fills = true};
}

call truncating(const char *name, std::size_t granule, std::size_t beyond)
{
	return {.name = name,
		.make =
			[=](family &on) {
				return result_of(::ftruncate(
					on.subject.fd(),
					static_cast<off_t>(on.at(granule) +
							   beyond)));
			},
		.errors = {ENOMEM},
		.done = [=](family &on,
			    long) { on.held.resize(on.at(granule) + beyond); }};
}

/* Behind the end is what a store left there, and now it is shared. */
call growing(const char *name)
{
	call made = truncating(name, granules + 40, cut_off);

	made.prepare = [](family &on) {
		on.map.bytes().back() = std::byte{9};
		on.made[0] = on.subject.snapshot();
	};
	return made;
}

call populating(const char *name, std::size_t index, int advice,
		bool present = false)
{
	return {.name = name,
		.make =
			[=](family &on) {
				return result_of(::madvise(
					on.map.data() + on.at(index), page_size,
					advice));
			},
		.errors = {ENOMEM},
		.prepare =
			[=](family &on) {
				if (present)
					on.map.load(on.at(index) / page_size);
			}};
}

/* By who copies to memory and takes the faults of it: a read(2) of another file. */
call storing(const char *name, std::size_t index)
{
	return {.name = name,
		.make =
			[=](family &on) {
				return result_of(
					::pread(on.file.fd(),
						on.map.data() + on.at(index),
						on.buffer.size(), 0));
			},
		.errors = {EFAULT},
		.done =
			[=](family &on, long done) {
				std::fill_n(on.held.begin() +
						    static_cast<std::ptrdiff_t>(
							    on.at(index)),
					    done, std::byte{0xaa});
			},
		.prepare =
			[](family &on) {
				with_buffer(1)(on);
				on.file = make_memfd(on.buffer.size());
				on.file.write(0, on.buffer);
			}};
}

call storing_from_afar(const char *name, std::size_t index)
{
	call made = storing(name, index);

	made.make = [=](family &on) {
		const iovec from = {on.buffer.data(), on.buffer.size()};
		const iovec to = {on.map.data() + on.at(index), on.buffer.size()};

		return result_of(
			::process_vm_writev(::getpid(), &from, 1, &to, 1, 0));
	};
	made.errors = {EFAULT, ENOMEM};
	return made;
}

call mapping_of(const char *name, bool of_a_fork, int protection, int flags)
{
	return {.name = name,
		.make =
			[=](family &on) {
				const region &what =
					of_a_fork ? on.made[0] : on.snapshot;

				on.mapped = ::mmap(nullptr, on.held.size(),
						   protection, flags, what.fd(),
						   0);
				return result_of(on.mapped == MAP_FAILED ? -1 : 0);
			},
		.errors = {ENOMEM},
		.done = [](family &on,
			   long) { ::munmap(on.mapped, on.held.size()); },
		.prepare = [](family &on) { on.made[0] = on.subject.fork(); },
		.whole = true};
}

call forking(const char *name, std::uint32_t flags, bool pinned)
{
	return {.name = name,
		.make = [=](family &on) { return make_fork(on, flags); },
		.errors = {ENOMEM, EFAULT},
		.done = expect_forks,
		.prepare =
			[=](family &on) {
				if (pinned)
					on.pin.emplace(on.map.bytes().subspan(
						on.at(dirty), page_size));
			},
		.whole = true};
}

call restoring(const char *name, bool commit, bool pinned)
{
	return {.name = name,
		.make =
			[=](family &on) {
				return make_restore(on, on.subject,
						    commit ? on.child
							   : on.snapshot);
			},
		.errors = {ENOMEM, EFAULT},
		.done =
			[=](family &on, long) {
				on.held = commit ? on.child_held
						 : on.snapshot_held;
			},
		.prepare =
			[=](family &on) {
				if (!pinned)
					return;
				on.other_map = on.child.map();
				on.pin.emplace(on.other_map.bytes().subspan(
					on.at(shared + 3), page_size));
			},
		.whole = true,
		.done_with = EFAULT};
}

const std::vector<call> whole_regions = {
	{.name = "query",
	 .make =
		 [](family &on) {
			 cowsnap_query arg = {};

			 return do_ioctl(on.dev.fd(), COWSNAP_IOC_QUERY, arg);
		 },
	 .errors = {EFAULT},
	 .whole = true},
	{.name = "create",
	 .make =
		 [](family &on) {
			 cowsnap_create arg = {};

			 arg.length = page_size;

			 const long result =
				 do_ioctl(on.dev.fd(), COWSNAP_IOC_CREATE, arg);

			 if (!result)
				 on.made[0] = region(unique_fd(arg.fd));
			 return result;
		 },
	 .errors = {ENOMEM, EFAULT},
	 .done =
		 [](family &on, long) {
			 EXPECT_EQ(on.made[0].length(), page_size);
		 },
	 .whole = true},
	forking("fork", 0, false),
	forking("snapshot", COWSNAP_FORK_F_READONLY, false),
	forking("fork_of_what_is_pinned", 0, true),
	{.name = "fork_many",
	 .make = make_forks,
	 .errors = {ENOMEM, EFAULT},
	 .done = expect_forks,
	 .prepare =
		 [](family &on) {
			 on.pin.emplace(on.map.bytes().subspan(on.at(dirty),
							       page_size));
		 },
	 .whole = true},
	restoring("rollback", false, false),
	restoring("commit", true, false),
	restoring("commit_of_what_is_pinned", true, true),
	{.name = "diff",
	 .make = [](family &on) { return make_diff(on, 0); },
	 .errors = {ENOMEM, EFAULT},
	 .done = expect_difference,
	 .prepare = prepare_diff,
	 .whole = true},
	{.name = "exact_diff",
	 .make = [](family &on) { return make_diff(on, COWSNAP_DIFF_F_EXACT); },
	 .errors = {ENOMEM, EFAULT},
	 .done = expect_difference,
	 .prepare = prepare_diff,
	 .whole = true},
	{.name = "prepare",
	 .make =
		 [](family &on) {
			 cowsnap_prepare arg = {};

			 return do_ioctl(on.subject.fd(), COWSNAP_IOC_PREPARE,
					 arg);
		 },
	 .errors = {EFAULT},
	 .whole = true},
	{.name = "stat",
	 .make =
		 [](family &on) {
			 cowsnap_stat arg = {};

			 return do_ioctl(on.subject.fd(), COWSNAP_IOC_STAT, arg);
		 },
	 .errors = {EFAULT},
	 .whole = true},
};

const std::vector<call> file_operations = {
	reading("read_of_data", dirty, false),
	reading("read_over_a_hole", hole - 1, false),
	reading("read_of_a_fork", shared, true),
	writing("write_to_a_hole", hole, 0.5),
	writing("write_to_what_is_shared", shared, 0.5),
	/* What could not be copied is copied once more. */
	writing("write_to_what_is_dirty", dirty, 0.5, {}),
	writing("write_over_two_granules", hole - 0.5, 1),
	writing("write_beyond_the_end", granules + 2, 0.5),
	truncating("truncation_to_nothing", 0, 0),
	truncating("truncation_inside_a_granule", shared, cut_off),
	truncating("truncation_between_granules", 7, 0),
	growing("growth"),
	allocating("allocation", 0, hole - 1, hole + 2),
	allocating("allocation_beyond_the_end", 0, last - 2, last + 3),
	allocating("allocation_that_keeps_the_size", FALLOC_FL_KEEP_SIZE, last - 2,
		   last + 3),
	allocating("unsharing", FALLOC_FL_UNSHARE_RANGE, 7, 10),
	allocating("punching", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 7, 11),
	allocating("punching_inside_a_granule",
		   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 7, 8),
	allocating("zeroing", FALLOC_FL_ZERO_RANGE, 7, 11),
	allocating("zeroing_that_keeps_the_size",
		   FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, last - 2, last + 3),
	{.name = "seeking",
	 .make =
		 [](family &on) {
			 return result_of(::lseek(on.subject.fd(), 0, SEEK_HOLE));
		 },
	 .errors = {},
	 .done =
		 [](family &on, long found) {
			 EXPECT_EQ(static_cast<std::size_t>(found), on.at(hole));
		 },
	 .whole = true},
	{.name = "sendfile_to_what_is_shared",
	 .make =
		 [](family &on) {
			 return result_of(::sendfile(on.subject.fd(),
						     on.file.fd(), nullptr,
						     on.buffer.size()));
		 },
	 .errors = {ENOMEM},
	 .done =
		 [](family &on, long done) {
			 std::fill_n(on.held.begin(), done, std::byte{0xaa});
		 },
	 .prepare =
		 [](family &on) {
			 with_buffer(1)(on);
			 on.file = make_memfd(on.buffer.size());
			 on.file.write(0, on.buffer);
		 }},
	{.name = "sendfile_from_data",
	 .make =
		 [](family &on) {
			 return result_of(::sendfile(on.file.fd(),
						     on.subject.fd(), nullptr,
						     on.granule));
		 },
	 .errors = {ENOMEM},
	 .done =
		 [](family &on, long done) {
			 const auto size = static_cast<std::size_t>(done);

			 EXPECT_EQ(std::memcmp(on.file.read(0, size).data(),
					       on.held.data(), size),
				   0);
		 },
	 .prepare = [](family &on) { on.file = make_memfd(on.granule); }},
	{.name = "fdinfo",
	 .make =
		 [](family &on) {
			 return result_of(::pread(on.file.fd(),
						  on.buffer.data(),
						  on.buffer.size(), 0));
		 },
	 .errors = {ENOMEM, EFAULT},
	 .prepare =
		 [](family &on) {
			 const std::string path =
				 "/proc/self/fdinfo/" +
				 std::to_string(on.subject.fd());

			 with_buffer(1)(on);
			 on.file = memory_file(unique_fd(check(
				 ::open(path.c_str(), O_RDONLY | O_CLOEXEC),
				 path)));
		 },
	 .whole = true},
	{.name = "closing",
	 .make =
		 [](family &on) {
			 on.made[0].close();
			 return 0L;
		 },
	 .errors = {},
	 .prepare =
		 [](family &on) {
			 on.made[0] = on.subject.fork();
			 on.made[0].write(0, bytes_of(on.granule, 9));
		 },
	 .whole = true},
};

const std::vector<call> mappings = {
	mapping_of("mapping", true, PROT_READ | PROT_WRITE, MAP_SHARED),
	mapping_of("mapping_of_a_snapshot", false, PROT_READ, MAP_SHARED),
	mapping_of("private_mapping", false, PROT_READ | PROT_WRITE, MAP_PRIVATE),
	populating("load_of_data", shared, MADV_POPULATE_READ),
	populating("load_of_a_hole", hole, MADV_POPULATE_READ),
	populating("store_to_a_hole", hole, MADV_POPULATE_WRITE),
	populating("store_to_a_hole_that_was_read", hole, MADV_POPULATE_WRITE, true),
	populating("store_to_what_is_shared", shared, MADV_POPULATE_WRITE),
	populating("store_to_what_is_shared_and_was_read", shared,
		   MADV_POPULATE_WRITE, true),
	populating("store_to_what_is_dirty", dirty, MADV_POPULATE_WRITE),
	storing("copy_to_a_hole", hole),
	storing("copy_to_what_is_shared", shared),
	storing_from_afar("copy_from_afar_to_a_hole", hole),
	storing_from_afar("copy_from_afar_to_what_is_shared", shared),
	{.name = "copy_to_a_private_mapping",
	 .make =
		 [](family &on) {
			 return result_of(::madvise(on.other_map.data(),
						    page_size,
						    MADV_POPULATE_WRITE));
		 },
	 .errors = {ENOMEM},
	 .prepare =
		 [](family &on) {
			 on.other_map = on.snapshot.map(PROT_READ | PROT_WRITE,
							MAP_PRIVATE);
		 }},
};

struct sweep {
	call tried;
	std::uint32_t granule_shift;

	/* How GoogleTest prints one. */
	friend void PrintTo(const sweep &value, std::ostream *out)
	{
		*out << value.tried.name;
	}
};

std::vector<sweep> sweeps_of(const std::vector<call> &calls)
{
	std::vector<sweep> all;

	for (const call &tried : calls)
		for (const std::uint32_t shift : {page_shift, page_shift + 2})
			all.push_back({tried, shift});
	return all;
}

const auto name_of_sweep = [](const auto &info) {
	return std::string(info.param.tried.name) + "_" +
	       std::to_string((1U << info.param.granule_shift) / 1024) + "_KiB";
};

class failures : public cowsnap_fixture,
		 public testing::WithParamInterface<sweep> {
protected:
	void SetUp() override
	{
		if (!fault_injection::supported())
			GTEST_SKIP() << "this kernel has no fault injection";
	}

	static void expect_held(const family &on)
	{
		ASSERT_EQ(on.subject.length(), on.held.size());
		EXPECT_TRUE(on.subject.read(0, on.held.size()) == on.held);
		EXPECT_TRUE(on.child.read(0, on.child_held.size()) ==
			    on.child_held);
		EXPECT_TRUE(on.snapshot.read(0, on.snapshot_held.size()) ==
			    on.snapshot_held);
	}

	/* @sealed: a fork was made that was of no use, which shows in what is dirty. */
	static void expect_same_stat(cowsnap_stat before, cowsnap_stat after,
				     bool sealed)
	{
		if (sealed) {
			before.dirty = after.dirty;
			before.copies = after.copies;
			before.bytes_copied = after.bytes_copied;
		}
		EXPECT_EQ(std::memcmp(&before, &after, sizeof(before)), 0);
	}

	/* Makes the call, by @inject, which tells whether something failed. */
	template <typename Inject>
	bool strike(Inject &&inject);
	/* Until @inject, which gets a number, has nothing left to fail. */
	template <typename Inject>
	unsigned int strike_all(Inject &&inject);

	std::optional<fault_injection> injection;
	unsigned int errors = 0;
};

template <typename Inject>
bool failures::strike(Inject &&inject)
{
	const call &tried = GetParam().tried;
	family on(dev, GetParam().granule_shift);
	long result = 0;

	tried.prepare(on);

	const cowsnap_stat before = on.subject.stat();
	const bool struck = inject([&] { result = tried.make(on); });

	if (result < 0) {
		errors++;
		EXPECT_TRUE(struck) << "it failed all by itself";
		EXPECT_TRUE(tried.errors.contains(static_cast<int>(-result)))
			<< std::strerror(static_cast<int>(-result));
		if (result == -tried.done_with &&
		    on.subject.read(0, on.subject.length()) != on.held)
			tried.done(on, 0);
		else if (tried.whole)
			expect_same_stat(before, on.subject.stat(),
					 result == -EFAULT);
		expect_held(on);
		result = tried.make(on);
		EXPECT_GE(result, 0) << "it fails when it is made again, too";
	}
	if (result >= 0)
		tried.done(on, result);
	expect_held(on);
	return struck;
}

template <typename Inject>
unsigned int failures::strike_all(Inject &&inject)
{
	const unsigned int most = 1000;
	unsigned int number = 0;

	/* What is made once and stays is not to be taken for a leak. */
	{
		family on(dev, GetParam().granule_shift);

		GetParam().tried.prepare(on);

		const long result = GetParam().tried.make(on);

		EXPECT_GE(result, 0);
		GetParam().tried.done(on, result);
	}
	injection.emplace();
	while (number < most &&
	       strike([&](auto &&make) { return inject(number, make); })) {
		expect_back(dev, before);
		if (HasFailure()) {
			ADD_FAILURE() << "with failure " << number;
			break;
		}
		number++;
	}
	EXPECT_LT(number, most) << "there is always one more";
	return number;
}

TEST_P(failures, change_nothing)
{
	const auto strike_each = [&](unsigned int number, auto &&make) {
		return injection->strike(number + 1, make);
	};
	unsigned int attempts = strike_all(strike_each);

	if (GetParam().tried.errors.empty())
		return;
	EXPECT_GT(attempts, 0u) << "there was nothing to fail";
	if (GetParam().granule_shift > page_shift)
		return;
	/* What watches the kernel asks for memory now and then, and shifts the rest. */
	for (int again = 0; again < 3 && !errors; again++)
		attempts = strike_all(strike_each);
	EXPECT_GT(errors, 0u) << "of " << attempts << " attempts none failed it";
}

/* The kernel tells who asked for what it has not got. */
TEST_P(failures, of_all_pages_change_nothing)
{
	quiet = false;

	const unsigned int pages = strike_all(
		[&](unsigned int number, auto &&make) {
			return injection->run_out(number, make);
		});

	/* Others may have what they need from pages that are there. */
	if (GetParam().tried.fills) {
		EXPECT_GT(errors, 0u) << "of " << pages << " pages it needs none";
	}
}

INSTANTIATE_TEST_SUITE_P(of_ioctls, failures,
			 testing::ValuesIn(sweeps_of(whole_regions)),
			 name_of_sweep);
INSTANTIATE_TEST_SUITE_P(of_file_operations, failures,
			 testing::ValuesIn(sweeps_of(file_operations)),
			 name_of_sweep);
INSTANTIATE_TEST_SUITE_P(of_mappings, failures,
			 testing::ValuesIn(sweeps_of(mappings)), name_of_sweep);

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
