// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on two families, each compared with plain arrays: what every
 * member holds, and what STAT says of it.
 */
#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>

#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

/*
 * The granules that are used: four runs, three of which lie across the borders of
 * what a node of the tree covers.  A slot is the number of one of them.
 */
constexpr std::array<std::uint64_t, 4> run_starts = {0, 1012, 65'524,
						     (1ull << 34) - 12};
constexpr std::size_t run_slots = 24;
constexpr std::size_t slots = run_starts.size() * run_slots;

std::uint64_t offset_of(std::size_t slot)
{
	return (run_starts[slot / run_slots] + slot % run_slots) * page_size;
}

/* Part of a mapping: a number of slots of one run. */
struct window {
	mapping map;
	std::size_t first = 0, count = 0;
	bool writable = false;

	std::byte *address(std::size_t slot) const
	{
		return map.data() + (slot - first) * page_size;
	}
};

/* A region and what it should be. */
struct member {
	region file;
	std::list<window> windows;

	bool read_only = false;
	std::uint64_t length = 0;
	std::vector<std::byte> bytes = bytes_of(slots * page_size, 0);
	/* Members that share a granule have the same number here; 0 is a hole. */
	std::array<std::uint64_t, slots> granule = {};
	std::array<bool, slots> dirty = {};

	std::uint64_t id = 0, parent_id = 0, family_id = 0, generation = 0;
	std::uint64_t forks = 0, copies = 0, reuses = 0, zero_fills = 0;

	bool open() const { return file.fd() >= 0; }
	std::span<std::byte> page(std::size_t slot)
	{
		return std::span(bytes).subspan(slot * page_size, page_size);
	}
	/* The bytes of the slot that lie before the end. */
	std::size_t size_in(std::size_t slot) const
	{
		const std::uint64_t offset = offset_of(slot);

		return offset >= length
			       ? 0
			       : static_cast<std::size_t>(std::min<std::uint64_t>(
					 length - offset, page_size));
	}
};

class model {
public:
	model(const device &dev, std::uint64_t stream)
		: dev_(dev), before_(dev), random_(stream)
	{
		for (int i = 0; i < 2; i++)
			create();
	}

	/* One random operation.  Throws when something is not as it should be. */
	void step()
	{
		/* Kept while it is operated on: that may be the end of it. */
		const auto chosen = members_[random_.below(members_.size())];

		said_.str("");
		said_ << "member " << chosen->id << ": ";
		operate(*chosen);
		if (chosen->open() && std::ranges::count(members_, chosen))
			check_figures(*chosen);
	}

	std::string what() const { return said_.str(); }

	/* Everything that can be compared. */
	void check_all()
	{
		std::set<std::uint64_t> distinct;

		for (const auto &each : members_) {
			for (std::size_t slot = 0; slot < slots; slot++) {
				distinct.insert(each->granule[slot]);
				if (each->open())
					check_read(*each, slot);
			}
			for (const window &view : each->windows)
				for (std::size_t slot = view.first;
				     slot < view.first + view.count; slot++)
					check_load(*each, view, slot);
			if (each->open())
				check_figures(*each);
		}
		distinct.erase(0);
		same("bytes held", counters(dev_).held_bytes - before_.held_bytes,
		     distinct.size() * page_size);
		same("regions", counters(dev_).regions - before_.regions,
		     members_.size());
	}

private:
	template <typename Value>
	static void same(const char *what, Value is, Value should_be)
	{
		if (is != should_be) {
			std::ostringstream text;

			text << what << " is " << is << ", not " << should_be;
			throw std::runtime_error(text.str());
		}
	}

	std::size_t holders(std::uint64_t granule, std::size_t slot) const
	{
		return static_cast<std::size_t>(std::ranges::count_if(
			members_, [=](const auto &each) {
				return each->granule[slot] == granule;
			}));
	}

	/* What a write of a slot does to who owns what. */
	void take(member &writer, std::size_t slot)
	{
		std::uint64_t &granule = writer.granule[slot];

		if (!granule) {
			writer.zero_fills++;
			granule = ++last_granule_;
		} else if (!writer.dirty[slot]) {
			if (holders(granule, slot) == 1) {
				writer.reuses++;
			} else {
				writer.copies++;
				granule = ++last_granule_;
			}
		}
		writer.dirty[slot] = true;
	}

	void operate(member &chosen)
	{
		switch (random_.below(24)) {
		case 0:
			fork(chosen);
			break;
		case 1:
			close_descriptor(chosen);
			break;
		case 2:
		case 3:
			map(chosen);
			break;
		case 4:
			unmap(chosen);
			break;
		case 5:
			truncate(chosen);
			break;
		case 6:
			seek(chosen);
			break;
		case 7:
			toggle(chosen);
			break;
		case 8:
			process(chosen);
			break;
		case 9:
		case 10:
		case 11:
		case 12:
			write(chosen);
			break;
		case 13:
			read(chosen);
			break;
		case 14:
			load(chosen);
			break;
		case 15:
			prepare(chosen);
			break;
		case 16:
		case 17:
			restore(chosen);
			break;
		case 18:
			diff(chosen);
			break;
		default:
			store(chosen);
			break;
		}
	}

	void create()
	{
		auto made = std::make_shared<member>();

		made->length = offset_of(slots - 1) + page_size;
		made->file = dev_.create(made->length);
		made->id = made->family_id = made->file.stat().id;
		members_.push_back(std::move(made));
	}

	void fork(member &parent)
	{
		said_ << "fork";
		if (!parent.open())
			return;
		if (members_.size() >= 10) {
			remove(random_.below(members_.size()));
			return;
		}

		auto made = std::make_shared<member>();

		made->read_only = random_.one_in(3);
		made->file = made->read_only ? parent.file.snapshot()
					     : parent.file.fork();
		made->length = parent.length;
		made->bytes = parent.bytes;
		made->granule = parent.granule;
		made->id = made->file.stat().id;
		made->parent_id = parent.id;
		made->family_id = parent.family_id;
		made->generation = parent.generation + 1;
		parent.dirty.fill(false);
		parent.forks++;
		said_ << " to " << made->id;
		members_.push_back(std::move(made));
		check_figures(*members_.back());
	}

	/* Changes nothing that is compared; nobody pins anything here. */
	void prepare(member &chosen)
	{
		const std::uint64_t budget = random_.below(slots);
		const auto dirty = static_cast<std::uint64_t>(
			std::ranges::count(chosen.dirty, true));

		said_ << "prepare of " << budget;
		if (!chosen.open())
			return;

		const std::uint64_t left = chosen.file.prepare(budget);

		same("within what is dirty",
		     left <= (budget ? dirty - std::min(dirty, budget) : 0), true);
	}

	static bool differ(const member &one, const member &other, std::size_t slot)
	{
		return one.granule[slot] != other.granule[slot];
	}

	/* By an open member of either family, the chosen one not left out. */
	member *any_other(member &chosen)
	{
		member &other = *members_[random_.below(members_.size())];

		said_ << ' ' << other.id;
		return chosen.open() && other.open() ? &other : nullptr;
	}

	void restore(member &chosen)
	{
		said_ << "restore from";

		member *const source = any_other(chosen);
		cowsnap_restore arg = {};

		if (!source)
			return;
		arg.size = sizeof(arg);
		arg.src_fd = source->file.fd();
		if (chosen.read_only || chosen.family_id != source->family_id) {
			same("restore",
			     ::ioctl(chosen.file.fd(), COWSNAP_IOC_RESTORE, &arg), -1);
			same("errno", errno, chosen.read_only ? EPERM : EXDEV);
			return;
		}

		std::uint64_t changed = 0;

		for (std::size_t slot = 0; slot < slots; slot++)
			changed += differ(chosen, *source, slot) ? page_size : 0;
		same("changed", chosen.file.restore(source->file), changed);
		if (source == &chosen)
			return;
		chosen.length = source->length;
		chosen.bytes = source->bytes;
		chosen.granule = source->granule;
		chosen.dirty.fill(false);
		source->dirty.fill(false);
		check_figures(*source);
	}

	/* What DIFF should tell of the granules in [@start, @end). */
	static std::vector<cowsnap_range> ranges_of(member &one, member &other,
						    bool exact, std::uint64_t start,
						    std::uint64_t end)
	{
		std::vector<cowsnap_range> ranges;

		for (std::size_t slot = 0; slot < slots; slot++) {
			const std::uint64_t offset = offset_of(slot);
			const std::uint32_t flags =
				one.granule[slot] ? 0 : COWSNAP_RANGE_F_HOLE;

			if (offset >= end || offset + page_size <= start ||
			    !differ(one, other, slot) ||
			    (exact && std::ranges::equal(one.page(slot),
							 other.page(slot))))
				continue;
			if (!ranges.empty() && ranges.back().flags == flags &&
			    ranges.back().offset + ranges.back().length == offset)
				ranges.back().length += page_size;
			else
				ranges.push_back({offset, page_size, flags, 0});
		}
		return ranges;
	}

	static std::string text_of(const std::vector<cowsnap_range> &ranges)
	{
		std::ostringstream text;

		for (const cowsnap_range &range : ranges)
			text << range.offset << '+' << range.length << ' '
			     << range.flags << range.__reserved << ", ";
		return text.str();
	}

	void diff(member &chosen)
	{
		const bool exact = random_.one_in(2);
		const auto count = static_cast<std::uint32_t>(
			random_.one_in(2) ? random_.between(1, 3) : 1000);
		std::uint64_t start = 0, end = largest_length;

		if (random_.one_in(2)) {
			start = offset_of(random_.below(slots)) +
				random_.below(page_size);
			end = std::max(start + 1, offset_of(random_.below(slots)) +
							  random_.below(page_size));
		}
		said_ << (exact ? "exact diff of [" : "diff of [") << start << ", "
		      << end << "), " << count << " at once, with";

		member *const other = any_other(chosen);

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
			same("diff", ::ioctl(chosen.file.fd(), COWSNAP_IOC_DIFF, &arg),
			     -1);
			same("errno", errno, EXDEV);
			return;
		}
		same("ranges",
		     text_of(chosen.file.diff(other->file,
					      exact ? COWSNAP_DIFF_F_EXACT : 0, start,
					      end, count)),
		     text_of(ranges_of(chosen, *other, exact, start, end)));
	}

	void remove(std::size_t index)
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
				remove(i);
	}

	void close_descriptor(member &chosen)
	{
		said_ << "close";
		if (!random_.one_in(4))
			return;
		chosen.file.close();
		collect();
	}

	void map(member &chosen)
	{
		const std::size_t run = random_.below(run_starts.size());
		const std::size_t first = random_.below(run_slots);
		const std::size_t count = random_.between(1, run_slots - first);
		window made;
		int flags = MAP_SHARED;

		said_ << "mmap";
		if (!chosen.open() || chosen.windows.size() >= 6)
			return;
		made.first = run * run_slots + first;
		made.count = count;
		made.writable = !chosen.read_only && !random_.one_in(4);
		if (chosen.read_only && random_.one_in(2))
			flags = MAP_PRIVATE;
		made.map = mapping(chosen.file.fd(), count * page_size,
				   made.writable ? PROT_READ | PROT_WRITE
						 : PROT_READ,
				   flags, offset_of(made.first));
		chosen.windows.push_back(std::move(made));
	}

	window *any_window(member &chosen, bool writable)
	{
		std::vector<window *> usable;

		for (window &view : chosen.windows)
			if (!writable || view.writable)
				usable.push_back(&view);
		return usable.empty() ? nullptr
				      : usable[random_.below(usable.size())];
	}

	void unmap(member &chosen)
	{
		window *const view = any_window(chosen, false);

		said_ << "munmap";
		if (!view)
			return;
		if (view->count > 1 && random_.one_in(2)) {
			view->count = random_.between(1, view->count - 1);
			view->map.shrink(view->count * page_size);
			return;
		}
		chosen.windows.remove_if(
			[view](const window &each) { return &each == view; });
		collect();
	}

	/* What must not change what a mapping shows. */
	void toggle(member &chosen)
	{
		window *const view = any_window(chosen, false);

		if (!view)
			return;
		switch (random_.below(3)) {
		case 0:
			said_ << "mremap";
			view->map.move();
			break;
		case 1:
			said_ << "madvise";
			view->map.advise(MADV_DONTNEED);
			break;
		default:
			said_ << "mprotect";
			view->map.protect(random_.one_in(2) ? PROT_READ : PROT_NONE);
			view->map.protect(view->writable ? PROT_READ | PROT_WRITE
							 : PROT_READ);
			break;
		}
	}

	void truncate(member &chosen)
	{
		const std::size_t slot = random_.below(slots);
		std::uint64_t length = offset_of(slot);

		if (random_.one_in(2))
			length += random_.below(page_size);
		else if (random_.one_in(2))
			length = offset_of(slots - 1) + page_size;
		said_ << "ftruncate to " << length;
		if (!chosen.open() || (length < chosen.length && !random_.one_in(3)))
			return;
		if (chosen.read_only) {
			same("ftruncate", ::ftruncate(chosen.file.fd(), 0), -1);
			same("errno", errno, EPERM);
			return;
		}
		const std::uint64_t old_length = chosen.length;

		chosen.file.truncate(length);
		chosen.length = length;
		for (std::size_t cut = 0; cut < slots; cut++) {
			const std::size_t left = chosen.size_in(cut);

			fill(chosen.page(cut).subspan(left), 0);
			if (left == 0) {
				chosen.granule[cut] = 0;
				chosen.dirty[cut] = false;
			}
		}
		settle(chosen, old_length);
		settle(chosen, length);
	}

	/*
	 * Whether a granule that has, or had, the end inside is copied for it
	 * depends on the module.  A write settles that it is the region's own.
	 */
	void settle(member &chosen, std::uint64_t end)
	{
		for (std::size_t slot = 0; slot < slots; slot++) {
			if (end <= offset_of(slot) ||
			    end >= offset_of(slot) + page_size ||
			    !chosen.granule[slot])
				continue;
			chosen.file.write(offset_of(slot), bytes_of(1, 0x11));
			fill(chosen.page(slot).first(1), 0x11);
			if (!chosen.dirty[slot] &&
			    holders(chosen.granule[slot], slot) > 1)
				chosen.granule[slot] = ++last_granule_;
			chosen.dirty[slot] = true;
			adopt_counts(chosen);
		}
	}

	/* Takes over what cannot be told in advance. */
	static void adopt_counts(member &chosen)
	{
		const cowsnap_stat stat = chosen.file.stat();

		chosen.copies = stat.copies;
		chosen.reuses = stat.reuses;
	}

	void seek(member &chosen)
	{
		const std::size_t slot = random_.below(slots);
		const std::uint64_t from = offset_of(slot) + random_.below(page_size);
		const bool data = random_.one_in(2);
		off_t expected = -1;

		said_ << (data ? "SEEK_DATA" : "SEEK_HOLE") << " from slot " << slot;
		if (!chosen.open())
			return;
		if (data) {
			for (std::size_t next = slots; next-- > slot;)
				if (chosen.granule[next] && from < chosen.length)
					expected = static_cast<off_t>(
						std::max(from, offset_of(next)));
		} else if (from < chosen.length) {
			std::uint64_t end = from;

			for (std::size_t next = slot;
			     next < slots && chosen.granule[next] &&
			     offset_of(next) <= end;
			     next++)
				end = offset_of(next) + page_size;
			expected = static_cast<off_t>(std::min(end, chosen.length));
		}
		same("offset",
		     ::lseek(chosen.file.fd(), static_cast<off_t>(from),
			     data ? SEEK_DATA : SEEK_HOLE),
		     expected);
	}

	/* Writes up to three slots, or parts of them, by write(2). */
	void write(member &chosen)
	{
		const std::size_t slot = random_.below(slots);
		const std::size_t run_end = (slot / run_slots + 1) * run_slots;
		std::size_t start = slot * page_size + random_.below(page_size);
		std::size_t size =
			std::min(random_.between(1, 2 * page_size),
				 run_end * page_size - start);
		bool whole = false;

		if (random_.one_in(4)) {
			start = slot * page_size;
			size = page_size;
			whole = true;
		}
		whole |= size > page_size;
		said_ << "write of slot " << slot << " and " << size << " bytes";
		if (!chosen.open())
			return;

		const std::uint64_t offset = offset_of(slot) + start % page_size;
		const std::vector<std::byte> bytes = bytes_of(size, next_value());

		if (chosen.read_only) {
			same("pwrite",
			     ::pwrite(chosen.file.fd(), bytes.data(), size,
				      static_cast<off_t>(offset)),
			     ssize_t{-1});
			same("errno", errno, EPERM);
			return;
		}
		const std::uint64_t old_length = chosen.length;

		chosen.file.write(offset, bytes);
		for (std::size_t written = slot;
		     written * page_size < start + size; written++)
			take(chosen, written);
		std::ranges::copy(bytes, chosen.bytes.begin() +
						 static_cast<std::ptrdiff_t>(start));
		chosen.length = std::max(chosen.length, offset + size);
		if (offset > old_length)
			settle(chosen, old_length);
		/* Who replaces all of a granule need not copy it. */
		if (whole)
			adopt_counts(chosen);
	}

	void read(member &chosen)
	{
		const std::size_t slot = random_.below(slots);

		said_ << "read of slot " << slot;
		if (chosen.open())
			check_read(chosen, slot);
	}

	void load(member &chosen)
	{
		const window *const view = any_window(chosen, false);

		if (!view)
			return;

		const std::size_t slot =
			view->first + random_.below(view->count);

		said_ << "load of slot " << slot;
		check_load(chosen, *view, slot);
	}

	/* A part of a slot that may be stored to, or nothing. */
	struct target {
		const window *view;
		std::size_t slot, start, size;
		unsigned int value;
	};

	std::optional<target> any_target(member &chosen)
	{
		const window *const view = any_window(chosen, true);

		if (!view)
			return std::nullopt;

		const std::size_t slot =
			view->first + random_.below(view->count);
		const std::size_t limit = chosen.size_in(slot);

		if (limit == 0) {
			expect_sigbus(*view, slot, true);
			return std::nullopt;
		}

		const std::size_t start = random_.below(limit);
		const std::size_t size = random_.between(1, limit - start);

		return target{view, slot, start, size, next_value()};
	}

	static void store_to(const target &where)
	{
		fill({where.view->address(where.slot) + where.start, where.size},
		     where.value);
	}

	void note_store(member &chosen, const target &where)
	{
		take(chosen, where.slot);
		fill(chosen.page(where.slot).subspan(where.start, where.size),
		     where.value);
	}

	void store(member &chosen)
	{
		said_ << "store";
		if (const auto where = any_target(chosen)) {
			said_ << " to slot " << where->slot;
			store_to(*where);
			note_store(chosen, *where);
		}
	}

	/* A child process stores, by the mappings that it inherits. */
	void process(member &chosen)
	{
		std::vector<target> targets;

		said_ << "stores of a child process to";
		for (std::size_t count = random_.below(4); count > 0; count--) {
			if (const auto where = any_target(chosen)) {
				said_ << " slot " << where->slot;
				targets.push_back(*where);
			}
		}
		if (targets.empty() || !random_.one_in(2))
			return;

		child other([&] { std::ranges::for_each(targets, store_to); });

		same("exit", other.succeeded(), true);
		for (const target &where : targets)
			note_store(chosen, where);
	}

	unsigned int next_value()
	{
		value_ = value_ % 255 + 1;
		return value_;
	}

	/* The slot lies beyond the end. */
	static void expect_sigbus(const window &view, std::size_t slot, bool store)
	{
		same("signal",
		     store ? signal_of_store(view.address(slot))
			   : signal_of_load(view.address(slot)),
		     SIGBUS);
	}

	static void check_load(member &chosen, const window &view, std::size_t slot)
	{
		const std::size_t size = chosen.size_in(slot);

		if (size == 0) {
			expect_sigbus(view, slot, false);
			return;
		}
		if (std::memcmp(view.address(slot), chosen.page(slot).data(), size))
			throw std::runtime_error("a mapping of " +
						 std::to_string(chosen.id) +
						 " shows something else at slot " +
						 std::to_string(slot));
	}

	static void check_read(member &chosen, std::size_t slot)
	{
		std::vector<std::byte> bytes(page_size);
		const std::size_t size = chosen.size_in(slot);

		same("bytes read",
		     ::pread(chosen.file.fd(), bytes.data(), page_size,
			     static_cast<off_t>(offset_of(slot))),
		     static_cast<ssize_t>(size));
		if (std::memcmp(bytes.data(), chosen.page(slot).data(), size))
			throw std::runtime_error("read(2) of " +
						 std::to_string(chosen.id) +
						 " finds something else at slot " +
						 std::to_string(slot));
	}

	void check_figures(member &chosen) const
	{
		const cowsnap_stat stat = chosen.file.stat();
		std::uint64_t referenced = 0, exclusive = 0, dirty = 0;

		for (std::size_t slot = 0; slot < slots; slot++) {
			const std::uint64_t granule = chosen.granule[slot];

			if (!granule)
				continue;
			referenced += page_size;
			exclusive += holders(granule, slot) == 1 ? page_size : 0;
			dirty += chosen.dirty[slot] ? page_size : 0;
		}
		same("referenced", std::uint64_t{stat.referenced}, referenced);
		same("exclusive", std::uint64_t{stat.exclusive}, exclusive);
		same("dirty", std::uint64_t{stat.dirty}, dirty);
		same("length", std::uint64_t{stat.length}, chosen.length);
		same("id", std::uint64_t{stat.id}, chosen.id);
		same("parent", std::uint64_t{stat.parent_id}, chosen.parent_id);
		same("family", std::uint64_t{stat.family_id}, chosen.family_id);
		same("generation", std::uint64_t{stat.generation},
		     chosen.generation);
		same("forks", std::uint64_t{stat.forks}, chosen.forks);
		same("zero fills", std::uint64_t{stat.zero_fills},
		     chosen.zero_fills);
		same("copies", std::uint64_t{stat.copies}, chosen.copies);
		same("reuses", std::uint64_t{stat.reuses}, chosen.reuses);
		same("bytes copied", std::uint64_t{stat.bytes_copied},
		     chosen.copies * page_size);
		same("read only", (stat.state & COWSNAP_STAT_F_READONLY) != 0,
		     chosen.read_only);
	}

	const device &dev_;
	counters before_;
	chance random_;
	std::vector<std::shared_ptr<member>> members_;
	std::uint64_t last_granule_ = 0;
	unsigned int value_ = 0;
	std::ostringstream said_;
};

class random_operations : public cowsnap_fixture,
			  public testing::WithParamInterface<std::uint64_t> {};

INSTANTIATE_TEST_SUITE_P(, random_operations,
			 testing::Values<std::uint64_t>(1, 2, 3, 4),
			 testing::PrintToStringParamName());

TEST_P(random_operations, agree_with_plain_arrays)
{
	const std::size_t steps = scaled(2500);
	std::deque<std::string> last;
	std::size_t step = 0;
	model both(dev, GetParam());

	try {
		for (; step < steps; step++) {
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
