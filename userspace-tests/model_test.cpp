// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on two families, each compared with a model: what every member
 * holds, and after each step what STAT, fdinfo and QUERY say.
 */
#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <fstream>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "memory_group.hpp"
#include "model.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"
#include "view.hpp"

using namespace cowsnap_test;

namespace {

template <typename Text, typename Value>
void same(const Text &what, const Value &is, const Value &should_be)
{
	if (is != should_be) {
		std::ostringstream text;

		text << what << " is " << is << ", not " << should_be;
		throw std::runtime_error(text.str());
	}
}

/* Expects that a call failed. */
void refused(const char *what, ssize_t result, int error)
{
	same(what, result, ssize_t{-1});
	same("errno", errno, error);
}

off_t signed_of(std::uint64_t offset)
{
	return static_cast<off_t>(offset);
}

/* What STAT tells, but for its flags, and how fdinfo calls it. */
using figure = std::pair<const char *, __u64 cowsnap_stat::*>;

constexpr std::array<figure, 13> figures = {{
	{"id", &cowsnap_stat::id},
	{"parent", &cowsnap_stat::parent_id},
	{"family", &cowsnap_stat::family_id},
	{"generation", &cowsnap_stat::generation},
	{"length", &cowsnap_stat::length},
	{"referenced", &cowsnap_stat::referenced},
	{"exclusive", &cowsnap_stat::exclusive},
	{"dirty", &cowsnap_stat::dirty},
	{"forks", &cowsnap_stat::forks},
	{"copies", &cowsnap_stat::copies},
	{"reuses", &cowsnap_stat::reuses},
	{"zero-fills", &cowsnap_stat::zero_fills},
	{"bytes-copied", &cowsnap_stat::bytes_copied},
}};

/* What fdinfo says, as it says it, from the module's first line on. */
std::string fdinfo(const region &file)
{
	const std::string name = "/proc/self/fdinfo/" + std::to_string(file.fd());
	const unique_fd info(check(::open(name.c_str(), O_RDONLY | O_CLOEXEC),
				   name));
	std::array<char, 2048> text;
	const auto size = static_cast<std::size_t>(
		check(::read(info.get(), text.data(), text.size()), name));
	const std::string all(text.data(), size);
	const std::size_t start = all.find("cowsnap-");

	return start == std::string::npos ? "" : all.substr(start);
}

std::string text_of(const std::vector<cowsnap_range> &ranges)
{
	std::ostringstream text;

	for (const cowsnap_range &range : ranges)
		text << range.offset << '+' << range.length << ' ' << range.flags
		     << range.__reserved << ", ";
	return text.str();
}

/* Part of a file, mapped. */
struct window {
	view map;
	std::uint64_t offset = 0;
	bool writable = false;
	/* Of one VMA still: others cannot be moved by one call. */
	bool whole = true;
	/* What a private mapping shows. */
	std::optional<painted> own;

	std::uint64_t end() const { return offset + map.size(); }
	std::byte *address(std::uint64_t place) const
	{
		return map.data() + (place - offset);
	}
};

/* A region, and what it should be. */
struct subject : member {
	region file;
	std::list<window> windows;

	bool open() const { return file.fd() >= 0; }
	/* Where SIGBUS begins. */
	std::uint64_t mapped_end() const
	{
		return (length + page_size - 1) & ~(page_size - 1);
	}
	const painted &shown(const window &in) const
	{
		return in.own ? *in.own : content;
	}
};

class session {
public:
	session(const device &dev, geometry shape, std::uint64_t stream)
		: dev_(dev), before_(dev), shape_(shape), should_be_(shape),
		  random_(stream)
	{
		for (int i = 0; i < 2; i++)
			create();
	}

	/* One random operation.  Throws when something is not as it should be. */
	void step()
	{
		{
			/* Kept while operated on: that may be the end of it. */
			const auto chosen = any_member();

			said_.str("");
			said_ << "member " << chosen->id << ": ";
			operate(*chosen);
		}
		check_figures();
	}

	std::string what() const { return said_.str(); }

	/* Everything that can be compared. */
	void check_all()
	{
		for (const auto &each : members_) {
			for (const window &in : each->windows)
				check_shown(*each, in);
			if (!each->open())
				continue;
			for (std::size_t slot = 0; slot < shape_.slots(); slot++)
				check_slot(*each, slot);
		}
	}

private:
	struct choice {
		std::size_t weight;
		void (session::*operation)(subject &);
	};

	void operate(subject &chosen)
	{
		static constexpr std::array<choice, 22> choices = {{
			{3, &session::fork},	  {2, &session::fork_many},
			{3, &session::close},	  {8, &session::map},
			{4, &session::unmap},	  {4, &session::truncate},
			{3, &session::seek},	  {4, &session::toggle},
			{3, &session::process},	  {12, &session::write},
			{4, &session::read},	  {8, &session::load},
			{16, &session::store},	  {3, &session::populate},
			{3, &session::prepare},	  {6, &session::restore},
			{4, &session::diff},	  {9, &session::allocate},
			{4, &session::punch},	  {3, &session::remove_pages},
			{6, &session::pin},	  {3, &session::unpin},
		}};
		std::size_t sum = 0, left = 0;

		for (const choice &each : choices)
			sum += each.weight;
		left = random_.below(sum);
		for (const choice &each : choices) {
			if (left < each.weight) {
				(this->*each.operation)(chosen);
				return;
			}
			left -= each.weight;
		}
	}

	const std::shared_ptr<subject> &any_member()
	{
		return members_[random_.below(members_.size())];
	}

	/* A part of a run: some bytes, some pages or some granules. */
	byte_range any_range()
	{
		const byte_range run = shape_.run(random_.below(geometry::runs));
		const std::size_t most = random_.one_in(3) ? 2 * shape_.granule()
							   : 2 * page_size;
		const std::uint64_t unit =
			random_.one_in(3)
				? 1
				: (random_.one_in(2) ? page_size : shape_.granule());
		byte_range range = {run.start + random_.below(run.size()), 0};

		range.end = range.start + random_.between(1, most);
		range.start -= range.start % unit;
		range.end += (unit - range.end % unit) % unit;
		range.end = std::min(range.end, run.end);
		said_ << " [" << range.start << ", " << range.end << ")";
		return range;
	}

	unsigned int next_value()
	{
		value_ = value_ % 255 + 1;
		return value_;
	}

	std::uint64_t any_length()
	{
		const byte_range run = shape_.run(random_.below(geometry::runs));
		const std::uint64_t length = run.start + random_.below(run.size());

		switch (random_.below(4)) {
		case 0:
			return length;
		case 1:
			return length - length % page_size;
		case 2:
			return length - length % shape_.granule();
		default:
			return shape_.end();
		}
	}

	/* The life of members. */

	void enter(std::shared_ptr<subject> made)
	{
		made->id = made->file.stat().id;
		members_.push_back(std::move(made));
	}

	void create()
	{
		auto made = std::make_shared<subject>();

		made->length = shape_.end();
		made->file = dev_.create(made->length, 0, {}, shape_.shift);
		made->slots.resize(shape_.slots());
		made->family_id = made->file.stat().id;
		enter(std::move(made));
	}

	void end(std::size_t index)
	{
		said_ << ", end of " << members_[index]->id;
		members_.erase(members_.begin() +
			       static_cast<std::ptrdiff_t>(index));
		if (members_.empty())
			create();
	}

	/* What nobody refers to any more is gone. */
	void collect()
	{
		for (std::size_t i = members_.size(); i-- > 0;)
			if (!members_[i]->open() && members_[i]->windows.empty())
				end(i);
	}

	void close(subject &chosen)
	{
		said_ << "close";
		if (!random_.one_in(4))
			return;
		chosen.file.close();
		collect();
	}

	void enter_fork(subject &parent, const std::vector<slot_state> &image,
			region file, bool read_only)
	{
		auto made = std::make_shared<subject>();

		model::fork(parent, image, *made);
		made->file = std::move(file);
		made->read_only = read_only;
		enter(std::move(made));
		said_ << " to " << members_.back()->id;
	}

	bool is_full()
	{
		if (members_.size() < 10)
			return false;
		end(random_.below(members_.size()));
		return true;
	}

	void fork(subject &parent)
	{
		const bool read_only = random_.one_in(3);

		said_ << "fork";
		if (!parent.open() || is_full())
			return;

		region made = read_only ? parent.file.snapshot() : parent.file.fork();

		enter_fork(parent, should_be_.image(parent), std::move(made),
			   read_only);
	}

	void fork_many(subject &first)
	{
		const std::size_t count = random_.between(1, 4);
		std::vector<subject *> parents;
		std::vector<cowsnap_fork_entry> entries;

		said_ << "fork of many:";
		if (!first.open() || is_full())
			return;
		while (parents.size() < count) {
			subject &parent = random_.one_in(2) ? first : *any_member();

			if (!parent.open())
				continue;
			said_ << ' ' << parent.id;
			parents.push_back(&parent);
			entries.push_back({parent.file.fd(),
					   random_.one_in(3) ? COWSNAP_FORK_F_READONLY
							     : 0,
					   -1, 0});
		}
		if (random_.one_in(6)) {
			expect_none(entries);
			return;
		}
		dev_.fork_many(entries);

		/* One image of each. */
		std::map<subject *, std::vector<slot_state>> images;

		for (subject *parent : parents)
			if (!images.contains(parent))
				images[parent] = should_be_.image(*parent);
		for (std::size_t i = 0; i < count; i++)
			enter_fork(*parents[i], images[parents[i]],
				   region(unique_fd(entries[i].fd)),
				   entries[i].flags & COWSNAP_FORK_F_READONLY);
	}

	/* With an entry that is no region nothing is forked. */
	void expect_none(std::vector<cowsnap_fork_entry> &entries)
	{
		cowsnap_fork_many arg = {};

		said_ << ", one of them no region";
		entries.push_back({dev_.fd(), 0, -1, 0});
		arg.size = sizeof(arg);
		arg.count = static_cast<std::uint32_t>(entries.size());
		arg.entries = reinterpret_cast<std::uintptr_t>(entries.data());
		refused("fork of many",
			::ioctl(dev_.fd(), COWSNAP_IOC_FORK_MANY, &arg), EINVAL);
	}

	/* What families are for. */

	void prepare(subject &chosen)
	{
		const std::uint64_t budget =
			random_.one_in(2) ? random_.below(shape_.slots()) : 0;

		said_ << "prepare of " << budget;
		if (chosen.open())
			same("left", chosen.file.prepare(budget),
			     should_be_.prepare(chosen, budget));
	}

	/* An open member of either family, the chosen one not left out. */
	subject *any_other(subject &chosen)
	{
		subject &other = *any_member();

		said_ << ' ' << other.id;
		return chosen.open() && other.open() ? &other : nullptr;
	}

	void restore(subject &chosen)
	{
		said_ << "restore from";

		subject *const source = any_other(chosen);

		if (!source)
			return;
		if (chosen.read_only || chosen.family_id != source->family_id) {
			cowsnap_restore arg = {};

			arg.size = sizeof(arg);
			arg.src_fd = source->file.fd();
			refused("restore",
				::ioctl(chosen.file.fd(), COWSNAP_IOC_RESTORE, &arg),
				chosen.read_only ? EPERM : EXDEV);
			return;
		}
		same("changed", chosen.file.restore(source->file),
		     should_be_.restore(chosen, *source));
	}

	void diff(subject &chosen)
	{
		const bool exact = random_.one_in(2);
		const auto count = static_cast<std::uint32_t>(
			random_.one_in(2) ? random_.between(1, 3) : 1000);
		byte_range asked = {0, largest_length};

		said_ << (exact ? "exact diff of" : "diff of");
		if (random_.one_in(2))
			asked = {any_range().start, any_range().end};
		asked.end = std::max(asked.start + 1, asked.end);
		said_ << ", " << count << " at once, with";

		subject *const other = any_other(chosen);

		if (!other)
			return;
		if (chosen.family_id != other->family_id) {
			cowsnap_range range = {};
			cowsnap_diff arg = {};

			arg.size = sizeof(arg);
			arg.other_fd = other->file.fd();
			arg.count = 1;
			arg.end = page_size;
			arg.ranges = reinterpret_cast<std::uintptr_t>(&range);
			refused("diff",
				::ioctl(chosen.file.fd(), COWSNAP_IOC_DIFF, &arg),
				EXDEV);
			return;
		}
		same("ranges",
		     text_of(chosen.file.diff(other->file,
					      exact ? COWSNAP_DIFF_F_EXACT : 0,
					      asked.start, asked.end, count)),
		     text_of(should_be_.diff(chosen, *other, exact, asked)));
	}

	/* The file. */

	void write(subject &chosen)
	{
		said_ << "write of";

		const byte_range range = any_range();

		if (!chosen.open())
			return;

		const unsigned int value = next_value();
		const std::vector<std::byte> bytes = bytes_of(range.size(), value);

		if (chosen.read_only) {
			refused("pwrite",
				::pwrite(chosen.file.fd(), bytes.data(), bytes.size(),
					 signed_of(range.start)),
				EPERM);
			return;
		}
		if (random_.one_in(2)) {
			chosen.file.write(range.start, bytes);
		} else {
			seek_to(chosen, range.start);
			same("bytes written",
			     ::write(chosen.file.fd(), bytes.data(), bytes.size()),
			     static_cast<ssize_t>(bytes.size()));
		}
		should_be_.write(chosen, range, value);
	}

	static void seek_to(subject &chosen, std::uint64_t offset)
	{
		same("offset",
		     ::lseek(chosen.file.fd(), signed_of(offset), SEEK_SET),
		     signed_of(offset));
	}

	void read(subject &chosen)
	{
		said_ << "read of";

		const byte_range range = any_range();

		if (chosen.open())
			check_read(chosen, range, random_.one_in(2));
	}

	void seek(subject &chosen)
	{
		const byte_range run = shape_.run(random_.below(geometry::runs));
		const std::uint64_t from = run.start + random_.below(run.size());
		const bool data = random_.one_in(2);

		said_ << (data ? "SEEK_DATA" : "SEEK_HOLE") << " from " << from;
		if (chosen.open())
			same("offset",
			     ::lseek(chosen.file.fd(), signed_of(from),
				     data ? SEEK_DATA : SEEK_HOLE),
			     data ? should_be_.seek_data(chosen, from)
				  : should_be_.seek_hole(chosen, from));
	}

	void truncate(subject &chosen)
	{
		const window *const in = any_window(chosen);
		/* Where somebody looks, or anywhere. */
		const std::uint64_t length =
			in && random_.one_in(2)
				? in->offset + random_.below(in->map.size())
				: any_length();

		said_ << "ftruncate to " << length;
		if (!chosen.open() || (length < chosen.length && !random_.one_in(3)))
			return;
		if (chosen.read_only) {
			refused("ftruncate", ::ftruncate(chosen.file.fd(), 0), EPERM);
			return;
		}
		chosen.file.truncate(length);
		should_be_.truncate(chosen, length);
	}

	void allocate_as(subject &chosen, byte_range range, int mode)
	{
		if (!chosen.open())
			return;
		if (chosen.read_only) {
			refused("fallocate",
				::fallocate(chosen.file.fd(), mode,
					    signed_of(range.start),
					    signed_of(range.size())),
				EPERM);
			return;
		}
		chosen.file.allocate(range.start, range.size(), mode);
		should_be_.allocate(chosen, range, mode);
	}

	void allocate(subject &chosen)
	{
		constexpr std::array<std::pair<const char *, int>, 3> modes = {{
			{"allocation", 0},
			{"unsharing", FALLOC_FL_UNSHARE_RANGE},
			{"zeroing", FALLOC_FL_ZERO_RANGE},
		}};
		const auto &[name, mode] = modes[random_.below(modes.size())];
		const bool keep = random_.one_in(2);

		said_ << name << (keep ? ", length kept, of" : " of");
		allocate_as(chosen, any_range(),
			    mode | (keep ? FALLOC_FL_KEEP_SIZE : 0));
	}

	void punch(subject &chosen)
	{
		said_ << "punch";

		byte_range range = any_range();

		/* Across what nobody ever wrote. */
		if (random_.one_in(4)) {
			const byte_range other = any_range();

			range = {std::min(range.start, other.start),
				 std::max(range.end, other.end)};
		}
		allocate_as(chosen, range,
			    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	}

	/* Mappings. */

	void map(subject &chosen)
	{
		const byte_range run = shape_.run(random_.below(geometry::runs));
		const std::size_t pages = run.size() / page_size;
		const std::size_t first = random_.below(pages);
		const std::size_t count = random_.between(1, pages - first);
		const std::size_t alignment =
			random_.one_in(2) ? page_size : shape_.granule();
		int flags = MAP_SHARED;
		window made;

		made.offset = run.start + first * page_size;
		made.writable = !random_.one_in(4);
		said_ << "mmap of [" << made.offset << ", "
		      << made.offset + count * page_size << ")";
		if (!chosen.open() || chosen.windows.size() >= 6)
			return;
		if (chosen.read_only) {
			if (random_.one_in(2)) {
				flags = MAP_PRIVATE;
				made.own = chosen.content;
			} else {
				made.writable = false;
			}
		}
		made.map = view(chosen.file.fd(), made.offset, count * page_size,
				made.writable ? PROT_READ | PROT_WRITE : PROT_READ,
				flags, alignment);
		chosen.windows.push_back(std::move(made));
	}

	window *any_window(subject &chosen,
			   const std::function<bool(const window &)> &usable)
	{
		std::vector<window *> found;

		for (window &in : chosen.windows)
			if (usable(in))
				found.push_back(&in);
		return found.empty() ? nullptr : found[random_.below(found.size())];
	}
	window *any_window(subject &chosen)
	{
		return any_window(chosen, [](const window &) { return true; });
	}
	window *any_writable_window(subject &chosen)
	{
		return any_window(chosen,
				  [](const window &in) { return in.writable; });
	}

	/* Some pages of a window. */
	byte_range any_pages(const window &in)
	{
		const std::size_t first = random_.below(in.map.pages());
		const std::size_t count =
			random_.between(1, in.map.pages() - first);
		const std::uint64_t start = in.offset + first * page_size;

		said_ << " [" << start << ", " << start + count * page_size << ")";
		return {start, start + count * page_size};
	}

	void unmap(subject &chosen)
	{
		window *const in = any_window(chosen);

		said_ << "munmap";
		if (!in)
			return;
		if (random_.one_in(2)) {
			const byte_range kept = any_pages(*in);

			in->map.shrink(kept.start - in->offset, kept.size());
			in->offset = kept.start;
			return;
		}
		chosen.windows.remove_if(
			[in](const window &each) { return &each == in; });
		collect();
	}

	/* What must not change what a shared mapping shows. */
	void toggle(subject &chosen)
	{
		window *const in = any_window(chosen);

		if (!in)
			return;
		if (in->whole && random_.one_in(3)) {
			said_ << "mremap";
			in->map.move(in->offset, random_.one_in(2) ? page_size
								   : shape_.granule());
			return;
		}
		if (random_.one_in(2)) {
			/* Gives back what a private mapping wrote. */
			said_ << "MADV_DONTNEED of all";
			check(::madvise(in->map.data(), in->map.size(), MADV_DONTNEED),
			      "madvise");
			if (in->own)
				in->own = chosen.content;
			return;
		}
		said_ << "mprotect of";

		const byte_range pages = any_pages(*in);

		in->whole &= pages.size() == in->map.size();
		for (const int prot :
		     {random_.one_in(2) ? PROT_READ : PROT_NONE,
		      in->writable ? PROT_READ | PROT_WRITE : PROT_READ})
			check(::mprotect(in->address(pages.start), pages.size(), prot),
			      "mprotect");
	}

	void load(subject &chosen)
	{
		const window *const in = any_window(chosen);

		said_ << "load";
		if (in)
			check_shown(chosen, *in);
	}

	/* Bytes that may be stored to. */
	struct target {
		window *in;
		byte_range range;
		unsigned int value;
	};

	std::optional<target> any_target(subject &chosen)
	{
		window *const in = any_writable_window(chosen);

		if (!in)
			return std::nullopt;

		byte_range range = any_pages(*in);

		range.start += random_.below(page_size);
		if (!random_.one_in(4))
			range.end = std::min(range.end,
					     range.start + 1 +
						     random_.below(2 * page_size));
		range.end = std::min(range.end, chosen.length);
		if (range.start >= range.end)
			return std::nullopt;
		return target{in, range, next_value()};
	}

	static void store_to(const target &where)
	{
		fill({where.in->address(where.range.start), where.range.size()},
		     where.value);
	}

	/* The same by a call that looks the pages up. */
	static void write_memory(const target &where)
	{
		const std::vector<std::byte> bytes =
			bytes_of(where.range.size(), where.value);
		const iovec local = {const_cast<std::byte *>(bytes.data()),
				     bytes.size()};
		const iovec remote = {where.in->address(where.range.start),
				      bytes.size()};

		same("bytes written",
		     ::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0),
		     static_cast<ssize_t>(bytes.size()));
	}

	void note_store(subject &chosen, const target &where)
	{
		if (where.in->own)
			where.in->own->paint(where.range.start, where.range.end,
					     where.value);
		else
			should_be_.store(chosen, where.range, where.value);
	}

	void store(subject &chosen)
	{
		said_ << "store to";

		const std::optional<target> where = any_target(chosen);

		if (!where)
			return;
		if (random_.one_in(4))
			write_memory(*where);
		else
			store_to(*where);
		note_store(chosen, *where);
	}

	/* A child process stores, by the mappings that it inherits. */
	void process(subject &chosen)
	{
		std::vector<target> targets;

		said_ << "a child process stores to";
		for (std::size_t count = random_.below(4); count > 0; count--)
			if (const auto where = any_target(chosen))
				targets.push_back(*where);
		if (targets.empty() || !random_.one_in(2))
			return;

		child other([&] { std::ranges::for_each(targets, store_to); });

		same("exit", other.succeeded(), true);
		for (const target &where : targets)
			if (!where.in->own)
				note_store(chosen, where);
	}

	/* Faults of pages that nobody looks at yet. */
	void populate(subject &chosen)
	{
		const bool write = random_.one_in(2);
		window *const in = write ? any_writable_window(chosen)
					 : any_window(chosen);

		said_ << (write ? "MADV_POPULATE_WRITE of" : "MADV_POPULATE_READ of");
		if (!in)
			return;

		const byte_range pages = any_pages(*in);
		const int result =
			::madvise(in->address(pages.start), pages.size(),
				  write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);

		if (pages.end > chosen.mapped_end())
			refused("madvise", result, EFAULT);
		else
			same("madvise", result, 0);
		/* What lies before the end was still seen to. */
		if (write && !in->own)
			should_be_.own(chosen, {pages.start,
						std::min(pages.end,
							 chosen.mapped_end())});
	}

	/* The parts of @pages that the kernel sees as mappings of their own. */
	static std::vector<byte_range> mapped_parts(const window &in,
						    byte_range pages)
	{
		const auto start = reinterpret_cast<std::uintptr_t>(
			in.address(pages.start));
		std::vector<byte_range> parts;
		std::ifstream maps("/proc/self/maps");
		std::uintptr_t from = 0, to = 0;
		char dash = 0;

		for (std::string line; std::getline(maps, line);) {
			std::istringstream(line) >> std::hex >> from >> dash >> to;
			from = std::max(from, start);
			to = std::min<std::uintptr_t>(to, start + pages.size());
			if (from < to)
				parts.push_back({pages.start + (from - start),
						 pages.start + (to - start)});
		}
		return parts;
	}

	/* MADV_REMOVE is the hole puncher of who has no descriptor. */
	void remove_pages(subject &chosen)
	{
		window *const in = any_window(chosen);

		said_ << "MADV_REMOVE of";
		if (!in)
			return;

		const byte_range pages = any_pages(*in);
		const auto remove = [&] {
			return ::madvise(in->address(pages.start), pages.size(),
					 MADV_REMOVE);
		};

		if (chosen.read_only) {
			refused("madvise", remove(), EACCES);
		} else if (in->writable) {
			same("madvise", remove(), 0);
			for (const byte_range part : mapped_parts(*in, pages))
				should_be_.allocate(chosen, part,
						    FALLOC_FL_PUNCH_HOLE |
							    FALLOC_FL_KEEP_SIZE);
		}
	}

	/* Pages that are referred to without a mapping. */

	struct held_page : pinned_page {
		explicit held_page(std::span<std::byte> page) : pipe(page) {}

		page_in_a_pipe pipe;
	};

	void pin(subject &chosen)
	{
		const window *const in = any_window(
			chosen, [](const window &each) { return !each.own; });

		said_ << "vmsplice";
		if (!in || pins_.size() >= 5)
			return;

		const std::uint64_t offset = any_pages(*in).start;

		if (offset >= chosen.length)
			return;
		/* What is written is copied by a fork when it is pinned. */
		if (in->writable && !random_.one_in(3)) {
			*in->address(offset) = static_cast<std::byte>(next_value());
			should_be_.store(chosen, {offset, offset + 1}, value_);
		}
		pins_.emplace_back(std::span(in->address(offset), page_size));

		pinned_page &pinned = pins_.back();

		pinned.offset = offset;
		pinned.content = chosen.content;
		for (const std::size_t slot :
		     should_be_.touched({offset, offset + page_size}))
			pinned.of = chosen.slots[slot].held;
		should_be_.add(pinned);
	}

	void unpin(subject &)
	{
		said_ << "read of a pipe";
		if (pins_.empty())
			return;

		held_page &pinned = pins_.front();

		same("what the pipe has, as it should be",
		     pinned.content.shown_by(pinned.pipe.read(), pinned.offset), true);
		should_be_.remove(pinned);
		pins_.pop_front();
	}

	/* Comparing. */

	void check_shown(subject &chosen, const window &in)
	{
		const std::uint64_t end = std::min(in.end(), chosen.mapped_end());

		if (end > in.offset &&
		    !chosen.shown(in).shown_by(
			    {in.map.data(),
			     static_cast<std::size_t>(end - in.offset)},
			    in.offset))
			throw std::runtime_error("a mapping of " +
						 std::to_string(chosen.id) + " at " +
						 std::to_string(in.offset) +
						 " shows something else");
		if (chosen.mapped_end() < in.end()) {
			const std::uint64_t first = std::max(end, in.offset);
			const std::size_t pages = (in.end() - first) / page_size;

			expect_sigbus(in, first);
			expect_sigbus(in, first + random_.below(pages) * page_size);
		}
	}

	void expect_sigbus(const window &in, std::uint64_t place)
	{
		same("signal",
		     in.writable && random_.one_in(2)
			     ? signal_of_store(in.address(place))
			     : signal_of_load(in.address(place)),
		     SIGBUS);
	}

	/* Of large granules a few pages. */
	void check_slot(subject &chosen, std::size_t slot)
	{
		const byte_range place = shape_.slot(slot);
		const std::size_t pages = place.size() / page_size;

		if (pages <= 4) {
			check_read(chosen, place, false);
			return;
		}
		for (const std::size_t page :
		     {std::size_t{0}, random_.below(pages), pages - 1})
			check_read(chosen,
				   {place.start + page * page_size,
				    place.start + (page + 1) * page_size},
				   false);
	}

	static void check_read(subject &chosen, byte_range range, bool by_position)
	{
		const std::uint64_t end = std::min(range.end, chosen.length);
		std::vector<std::byte> bytes(range.size());
		ssize_t done = 0;

		if (by_position) {
			seek_to(chosen, range.start);
			done = ::read(chosen.file.fd(), bytes.data(), bytes.size());
		} else {
			done = ::pread(chosen.file.fd(), bytes.data(), bytes.size(),
				       signed_of(range.start));
		}
		bytes.resize(end > range.start ? end - range.start : 0);
		same("bytes read", done, static_cast<ssize_t>(bytes.size()));
		if (!chosen.content.shown_by(bytes, range.start))
			throw std::runtime_error("read(2) of " +
						 std::to_string(chosen.id) + " at " +
						 std::to_string(range.start) +
						 " finds something else");
	}

	void check_figures()
	{
		std::vector<const subject *> open;

		for (const auto &each : members_) {
			if (!each->open())
				continue;
			check_stat(*each);
			open.push_back(each.get());
		}
		if (!open.empty())
			check_fdinfo(*open[random_.below(open.size())]);

		const counters now(dev_);

		same("bytes held", now.held_bytes - before_.held_bytes,
		     should_be_.held_bytes());
		same("regions", now.regions - before_.regions, members_.size());
	}

	void check_stat(const subject &one) const
	{
		const cowsnap_stat is = one.file.stat();
		const cowsnap_stat should_be = should_be_.stat(one);

		for (const auto &[name, figure] : figures)
			if (is.*figure != should_be.*figure)
				same(name + (" of " + std::to_string(one.id)),
				     is.*figure, should_be.*figure);
		same("state", is.state, should_be.state);
		same("granule", is.granule_shift, should_be.granule_shift);
	}

	static void check_fdinfo(const subject &one)
	{
		const cowsnap_stat stat = one.file.stat();
		const std::string text = fdinfo(one.file);

		for (const auto &[name, figure] : figures)
			expect_line(text, name, stat.*figure);
		/* No fault happens between the two. */
		expect_line(text, "faults", stat.faults);
		expect_line(text, "readonly", stat.state & COWSNAP_STAT_F_READONLY);
		expect_line(text, "granule", 1ull << stat.granule_shift);
	}

	static void expect_line(const std::string &text, const char *name,
				std::uint64_t value)
	{
		std::array<char, 100> line;

		std::snprintf(line.data(), line.size(), "cowsnap-%s:\t%llu\n", name,
			      static_cast<unsigned long long>(value));
		if (text.find(line.data()) == std::string::npos)
			throw std::runtime_error("fdinfo has no line " +
						 std::string(line.data()) + "but " +
						 text);
	}

	const device &dev_;
	counters before_;
	geometry shape_;
	model should_be_;
	chance random_;
	std::vector<std::shared_ptr<subject>> members_;
	std::list<held_page> pins_;
	unsigned int value_ = 0;
	std::ostringstream said_;
};

struct random_run {
	unsigned int shift;
	std::uint64_t stream;
	/* Of granules for which there are no large folios. */
	bool in_pieces = false;
};

class random_operations : public cowsnap_fixture,
			  public testing::WithParamInterface<random_run> {
protected:
	void SetUp() override
	{
		if (GetParam().in_pieces)
			make_scarce(scarce, 48 << 20);
	}

	static geometry shape()
	{
		/* Ten members that share nothing have to fit. */
		return {GetParam().shift, GetParam().shift > page_shift + 4 ? 4u : 24u};
	}
	static std::size_t steps()
	{
		return scaled(GetParam().shift > page_shift + 4 ? 400 : 1200);
	}

	std::optional<scarce_memory> scarce;
};

INSTANTIATE_TEST_SUITE_P(, random_operations,
			 testing::Values(random_run{page_shift, 1}, random_run{page_shift, 2},
					 random_run{page_shift, 3}, random_run{page_shift + 2, 4},
					 random_run{page_shift + 4, 5}, random_run{page_shift + 4, 6},
					 random_run{page_shift + 6, 7, true}, random_run{21, 8}),
			 [](const auto &info) {
				 return std::to_string(
						1u << (info.param.shift - 10)) +
					"_KiB_" + std::to_string(info.param.stream) +
					(info.param.in_pieces ? "_in_pieces" : "");
			 });

TEST_P(random_operations, agree_with_a_model)
{
	std::deque<std::string> last;
	std::size_t step = 0;
	session both(dev, shape(), GetParam().stream);

	try {
		for (; step < steps(); step++) {
			both.step();
			last.push_back(both.what());
			if (last.size() > 20)
				last.pop_front();
			if (step % 50 == 49)
				both.check_all();
		}
	} catch (const std::exception &error) {
		std::ostringstream story;

		for (const std::string &each : last)
			story << each << '\n';
		FAIL() << error.what() << "\nafter " << step << " steps of seed "
		       << seed() << ", the last of which were\n"
		       << story.str() << both.what();
	}
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
