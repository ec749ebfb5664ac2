// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which error an ioctl tells: each thing that can be wrong alone, and of any two
 * the one that is told first.  The order is that of the tables here: the size,
 * the part that the kernel does not know, flags, reserved members, values,
 * descriptors, and the state of what they refer to.  Whatever is wrong, nothing
 * is left behind.
 */
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "descriptors.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "max_bytes.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

/* What a call can refer to. */
struct subjects {
	explicit subjects(const device &dev) : dev(dev)
	{
		parent.fill_page(0, 1);
		child = parent.fork();
		child.fill_page(1, 2);
		snapshot = parent.snapshot();
		/* What it has is its own, so that it can be pinned. */
		full_child = full.fork();
		full.fill_page(0, 1);
	}

	const device &dev;
	region parent = dev.create_pages(4), child, snapshot;
	/* Of another family; and of one that is full. */
	region other = dev.create_pages(4);
	region full = dev.create(4 * page_size, page_size), full_child;
	memory_file file = make_memfd(page_size);
};

/*
 * A call that is about to be made.  It is correct until something takes it in
 * hand; then it is made, once.
 */
class call {
public:
	call(subjects &on, unsigned long number, int fd, std::uint32_t size)
		: on(on), fd(fd), size(size), number_(number)
	{
	}

	template <typename Struct>
	Struct &as() const
	{
		return *reinterpret_cast<Struct *>(memory.data());
	}

	/* errno, or 0. */
	int make()
	{
		as<std::uint32_t>() = size;

		std::optional<max_bytes_parameter> cap;
		std::optional<page_in_a_pipe> held;

		if (pins)
			held.emplace(on.full.map().page(0));
		if (over_the_cap)
			cap.emplace(counters(on.dev).held_bytes - page_size);
		if (cannot_answer)
			memory.protect(PROT_READ);
		if (entries_cannot_be_written)
			entry_memory.protect(PROT_READ);
		return no_descriptors ? make_without_descriptors() : make_now();
	}

	subjects &on;
	int fd;
	std::uint32_t size;
	bool cannot_answer = false;
	bool no_descriptors = false;
	bool over_the_cap = false;
	bool pins = false;
	bool entries_cannot_be_written = false;
	const mapping memory = anonymous(2 * page_size);
	const mapping entry_memory = anonymous(page_size);
	std::array<cowsnap_range, 4> ranges = {};

private:
	int make_without_descriptors()
	{
		const auto limit = descriptor_limit::leaving(0);

		return make_now();
	}
	int make_now()
	{
		return ::ioctl(fd, number_, memory.data()) < 0 ? errno : 0;
	}

	unsigned long number_;
};

/* One thing that is wrong.  No two can be that change the same @what. */
struct fault {
	const char *what;
	int error;
	std::function<void(call &)> make;
};

struct subject_of_a_test {
	const char *name;
	std::function<std::unique_ptr<call>(subjects &)> correct;
	/* The descriptor that it made, to be closed. */
	std::function<std::vector<int>(const call &)> made;
	/* What wins comes first. */
	std::vector<fault> faults;
};

void PrintTo(const subject_of_a_test &subject, std::ostream *out)
{
	*out << subject.name;
}

std::vector<int> makes_none(const call &)
{
	return {};
}

/* What is the same in all ioctls, in its order. */
template <typename Struct>
std::vector<fault> common_faults(std::uint32_t known_flags = 0)
{
	return {
		{"size", EINVAL, [](call &c) { c.size = sizeof(Struct) - 1; }},
		{"size", E2BIG,
		 [](call &c) {
			 c.size = static_cast<std::uint32_t>(page_size) + 1;
		 }},
		{"size", E2BIG,
		 [](call &c) {
			 c.size = sizeof(Struct) + 8;
			 c.memory.data()[sizeof(Struct) + 7] = std::byte{1};
		 }},
		{"flags", EINVAL,
		 [known_flags](call &c) {
			 c.as<Struct>().flags |= ~known_flags & 0x80;
		 }},
	};
}

template <typename Struct>
fault reserved_fault()
{
	return {"reserved", EINVAL,
		[](call &c) { c.as<Struct>().__reserved = 1; }};
}

const fault answer_fault = {"answer", EFAULT,
			    [](call &c) { c.cannot_answer = true; }};
const fault descriptors_fault = {"descriptors", EMFILE,
				 [](call &c) { c.no_descriptors = true; }};
const fault cap_fault = {"cap", ENOSPC, [](call &c) { c.over_the_cap = true; }};

std::vector<fault> operator+(std::vector<fault> first,
			     const std::vector<fault> &second)
{
	first.insert(first.end(), second.begin(), second.end());
	return first;
}

subject_of_a_test query_subject()
{
	return {"query",
		[](subjects &on) {
			return std::make_unique<call>(on, COWSNAP_IOC_QUERY,
						      on.dev.fd(),
						      sizeof(cowsnap_query));
		},
		makes_none,
		common_faults<cowsnap_query>() +
			std::vector{reserved_fault<cowsnap_query>(),
				    answer_fault}};
}

subject_of_a_test create_subject()
{
	return {"create",
		[](subjects &on) {
			auto c = std::make_unique<call>(on, COWSNAP_IOC_CREATE,
							on.dev.fd(),
							sizeof(cowsnap_create));

			c->as<cowsnap_create>().length = page_size;
			return c;
		},
		[](const call &c) {
			return std::vector{c.as<cowsnap_create>().fd};
		},
		common_faults<cowsnap_create>() +
			std::vector<fault>{
				{"length", EINVAL,
				 [](call &c) {
					 c.as<cowsnap_create>().length =
						 largest_length + 1;
				 }},
				{"granule", EINVAL,
				 [](call &c) {
					 c.as<cowsnap_create>().granule_shift =
						 11;
				 }},
				{"name", EINVAL,
				 [](call &c) {
					 std::ranges::fill(
						 c.as<cowsnap_create>().name,
						 'x');
				 }},
				descriptors_fault, answer_fault}};
}

subject_of_a_test fork_subject()
{
	return {"fork",
		[](subjects &on) {
			return std::make_unique<call>(on, COWSNAP_IOC_FORK,
						      on.full.fd(),
						      sizeof(cowsnap_fork));
		},
		[](const call &c) {
			return std::vector{c.as<cowsnap_fork>().fd};
		},
		common_faults<cowsnap_fork>(COWSNAP_FORK_F_READONLY) +
			std::vector<fault>{
				reserved_fault<cowsnap_fork>(), cap_fault,
				{"pin", ENOSPC, [](call &c) { c.pins = true; }},
				descriptors_fault, answer_fault}};
}

cowsnap_fork_entry *entries_of(const call &c)
{
	return reinterpret_cast<cowsnap_fork_entry *>(c.entry_memory.data());
}

/* The entry whose descriptor is wrong comes before those with wrong values. */
std::vector<fault> entry_faults()
{
	return {
		{"count", EINVAL,
		 [](call &c) { c.as<cowsnap_fork_many>().count = 0; }},
		{"count", EINVAL,
		 [](call &c) {
			 c.as<cowsnap_fork_many>().count =
				 COWSNAP_FORK_MANY_MAX + 1;
		 }},
		{"entries", EFAULT,
		 [](call &c) { c.as<cowsnap_fork_many>().entries = 0; }},
		{"entry flags", EINVAL,
		 [](call &c) { entries_of(c)[2].flags = 0x80; }},
		{"entry reserved", EINVAL,
		 [](call &c) { entries_of(c)[2].__reserved = 1; }},
		{"entry fd", EBADF,
		 [](call &c) { entries_of(c)[0].region_fd = -1; }},
		{"entry fd", EINVAL,
		 [](call &c) { entries_of(c)[0].region_fd = c.on.file.fd(); }},
	};
}

subject_of_a_test fork_many_subject()
{
	return {"fork_many",
		[](subjects &on) {
			auto c = std::make_unique<call>(
				on, COWSNAP_IOC_FORK_MANY, on.dev.fd(),
				sizeof(cowsnap_fork_many));
			auto &arg = c->as<cowsnap_fork_many>();

			arg.count = 3;
			arg.entries = reinterpret_cast<std::uintptr_t>(
				entries_of(*c));
			entries_of(*c)[0] = {on.parent.fd(), 0, -1, 0};
			entries_of(*c)[1] = {on.full.fd(), 0, -1, 0};
			entries_of(*c)[2] = {on.snapshot.fd(), 0, -1, 0};
			return c;
		},
		[](const call &c) {
			return std::vector{entries_of(c)[0].fd,
					   entries_of(c)[1].fd,
					   entries_of(c)[2].fd};
		},
		common_faults<cowsnap_fork_many>() +
			std::vector{reserved_fault<cowsnap_fork_many>()} +
			entry_faults() +
			std::vector<fault>{
				cap_fault,
				{"pin", ENOSPC, [](call &c) { c.pins = true; }},
				descriptors_fault,
				{"entry answer", EFAULT,
				 [](call &c) {
					 c.entries_cannot_be_written = true;
				 }}}};
}

subject_of_a_test stat_subject()
{
	return {"stat",
		[](subjects &on) {
			return std::make_unique<call>(on, COWSNAP_IOC_STAT,
						      on.parent.fd(),
						      sizeof(cowsnap_stat));
		},
		makes_none,
		common_faults<cowsnap_stat>() + std::vector{answer_fault}};
}

subject_of_a_test prepare_subject()
{
	return {"prepare",
		[](subjects &on) {
			return std::make_unique<call>(on, COWSNAP_IOC_PREPARE,
						      on.parent.fd(),
						      sizeof(cowsnap_prepare));
		},
		makes_none,
		common_faults<cowsnap_prepare>() + std::vector{answer_fault}};
}

/* What cannot be told must not be done, so that is tried before all else. */
subject_of_a_test restore_subject()
{
	return {"restore",
		[](subjects &on) {
			auto c = std::make_unique<call>(
				on, COWSNAP_IOC_RESTORE, on.full_child.fd(),
				sizeof(cowsnap_restore));

			c->as<cowsnap_restore>().src_fd = on.full.fd();
			return c;
		},
		makes_none,
		common_faults<cowsnap_restore>() +
			std::vector<fault>{
				reserved_fault<cowsnap_restore>(), answer_fault,
				{"source", EBADF,
				 [](call &c) {
					 c.as<cowsnap_restore>().src_fd = -1;
				 }},
				{"source", EINVAL,
				 [](call &c) {
					 c.as<cowsnap_restore>().src_fd =
						 c.on.file.fd();
				 }},
				{"region", EPERM,
				 [](call &c) { c.fd = c.on.snapshot.fd(); }},
				{"source", EXDEV,
				 [](call &c) {
					 c.as<cowsnap_restore>().src_fd =
						 c.on.other.fd();
				 }},
				{"pin", ENOSPC, [](call &c) { c.pins = true; }}}};
}

std::vector<fault> diff_faults()
{
	return {
		{"count", EINVAL, [](call &c) { c.as<cowsnap_diff>().count = 0; }},
		{"count", EINVAL,
		 [](call &c) {
			 c.as<cowsnap_diff>().count = COWSNAP_DIFF_MAX + 1;
		 }},
		{"end", EINVAL, [](call &c) { c.as<cowsnap_diff>().end = 0; }},
		{"end", EINVAL,
		 [](call &c) {
			 c.as<cowsnap_diff>().end = largest_length + 1;
		 }},
		{"other", EBADF,
		 [](call &c) { c.as<cowsnap_diff>().other_fd = -1; }},
		{"other", EINVAL,
		 [](call &c) {
			 c.as<cowsnap_diff>().other_fd = c.on.dev.fd();
		 }},
		{"other", EXDEV,
		 [](call &c) {
			 c.as<cowsnap_diff>().other_fd = c.on.other.fd();
		 }},
		{"ranges", EFAULT,
		 [](call &c) { c.as<cowsnap_diff>().ranges = 0; }},
		answer_fault,
	};
}

subject_of_a_test diff_subject()
{
	return {"diff",
		[](subjects &on) {
			auto c = std::make_unique<call>(on, COWSNAP_IOC_DIFF,
							on.child.fd(),
							sizeof(cowsnap_diff));
			auto &arg = c->as<cowsnap_diff>();

			arg.other_fd = on.parent.fd();
			arg.count = static_cast<std::uint32_t>(
				c->ranges.size());
			arg.end = 4 * page_size;
			arg.ranges = reinterpret_cast<std::uintptr_t>(
				c->ranges.data());
			return c;
		},
		makes_none,
		common_faults<cowsnap_diff>(COWSNAP_DIFF_F_EXACT) +
			diff_faults()};
}

class errors : public cowsnap_fixture,
	       public testing::WithParamInterface<subject_of_a_test> {
protected:
	void TearDown() override
	{
		on.reset();
		cowsnap_fixture::TearDown();
	}

	/* Every member's bytes and forks are as they were at first. */
	void expect_untouched() const
	{
		EXPECT_TRUE(is_all(on->parent.read_page(0), 1));
		EXPECT_TRUE(is_all(on->parent.read_page(1), 0));
		EXPECT_TRUE(is_all(on->child.read_page(1), 2));
		EXPECT_TRUE(is_all(on->full.read_page(0), 1));
		EXPECT_EQ(on->parent.stat().forks, 2u);
		EXPECT_EQ(on->full.stat().forks, 1u);
		EXPECT_EQ(on->snapshot.stat().forks, 0u);
	}

	/* Makes a call with these faults; it must fail with the first one's. */
	void expect_error(const std::vector<const fault *> &faults) const
	{
		const auto wrong = GetParam().correct(*on);
		const int next = next_descriptor();
		const counters count(dev);
		std::string what;

		for (const fault *one : faults) {
			one->make(*wrong);
			what += std::string(what.empty() ? "" : ", ") + one->what;
		}
		EXPECT_EQ(std::string(std::strerror(wrong->make())),
			  std::strerror(faults[0]->error))
			<< "with " << what;
		expect_back(dev, count);
		EXPECT_EQ(next_descriptor(), next) << "with " << what;
	}

	std::unique_ptr<subjects> on = std::make_unique<subjects>(dev);
};

INSTANTIATE_TEST_SUITE_P(, errors,
			 testing::Values(query_subject(), create_subject(),
					 fork_subject(), fork_many_subject(),
					 restore_subject(), diff_subject(),
					 prepare_subject(), stat_subject()),
			 [](const auto &info) { return info.param.name; });

/* Or nothing that follows would mean anything. */
TEST_P(errors, control_nothing_is_wrong)
{
	const auto good = GetParam().correct(*on);

	ASSERT_EQ(good->make(), 0);
	for (const int fd : GetParam().made(*good))
		unique_fd made(fd);
}

TEST_P(errors, one_is_told)
{
	for (const fault &wrong : GetParam().faults)
		expect_error({&wrong});
	expect_untouched();
}

TEST_P(errors, of_two_the_first_is_told)
{
	const std::vector<fault> &faults = GetParam().faults;

	for (std::size_t i = 0; i < faults.size(); i++)
		for (std::size_t j = i + 1; j < faults.size(); j++)
			if (std::strcmp(faults[i].what, faults[j].what) != 0)
				expect_error({&faults[i], &faults[j]});
	expect_untouched();
}

/* All of them at once, of each member the first that can be. */
TEST_P(errors, of_many_the_first_is_told)
{
	const std::vector<fault> &faults = GetParam().faults;

	for (std::size_t i = 0; i < faults.size(); i++) {
		std::vector<const fault *> all = {&faults[i]};

		for (std::size_t j = i + 1; j < faults.size(); j++) {
			const bool taken = std::ranges::any_of(
				all, [&](const fault *other) {
					return !std::strcmp(other->what,
							    faults[j].what);
				});

			if (!taken)
				all.push_back(&faults[j]);
		}
		expect_error(all);
	}
	expect_untouched();
}

class failed_memory : public cowsnap_fixture {};

/*
 * Memory that failed, as the kernel is told.  A granule of a page would be shared
 * as it is; of a larger one the other pages are good, and must not be.  It is lost
 * to the machine until it boots, so all that meets it does so in one test.
 */
TEST_F(failed_memory, stops_what_has_to_copy_it)
{
	const std::size_t granule = 4 * page_size;
	const region parent = dev.create(2 * granule, 0, {}, page_shift + 2);
	const region relative = parent.fork();
	const mapping map = parent.map();
	const std::vector<const region *> many = {&relative, &parent};
	const auto error_of = [](auto &&call) {
		try {
			call();
		} catch (const std::system_error &error) {
			return error.code().value();
		}
		return 0;
	};

	map.store(0, 1);
	map.store(4, 1);
	{
		/* A fork has to copy it as long as it is pinned. */
		const page_in_a_pipe held(map.page(1));
		const int error = error_of([&] {
			check(::madvise(map.page(2).data(), page_size,
					MADV_HWPOISON),
			      "madvise");
		});

		if (error == EINVAL)
			GTEST_SKIP() << "this kernel does not handle memory errors";
		/* It cannot take the page away, for which it has two words. */
		ASSERT_TRUE(error == EBUSY || error == EHWPOISON) << error;

		const counters count(dev);
		const int next = next_descriptor();

		EXPECT_EQ(error_of([&] { (void)parent.fork(); }), EHWPOISON);
		EXPECT_EQ(error_of([&] { dev.fork_all(many); }), EHWPOISON);
		EXPECT_EQ(error_of([&] { relative.restore(parent); }), EHWPOISON);
		expect_back(dev, count);
		EXPECT_EQ(next_descriptor(), next);
		EXPECT_EQ(parent.stat().forks, 1u);
		EXPECT_EQ(relative.stat().referenced, 0u);
		EXPECT_EQ(map.load(0), 1u);
	}

	/* To be rid of it takes no copy. */
	EXPECT_EQ(error_of([&] { parent.punch(0, granule); }), 0);
	EXPECT_EQ(map.load(0), 0u);
	EXPECT_EQ(map.load(4), 1u);
	EXPECT_EQ(error_of([&] { dev.fork_all(many); }), 0);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
