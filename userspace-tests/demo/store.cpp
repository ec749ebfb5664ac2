// SPDX-License-Identifier: GPL-2.0-only
#include "store.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstring>

namespace cowsnap_demo {
namespace {

using word = std::uint64_t;

constexpr word magic = 0x65726f7473776f63;
constexpr std::size_t page = 4096;
/* A record is changed by flipping these bits in each of its words. */
constexpr word flip = 0x2020202020202020;
/* Odd, and with no pattern in its bits. */
constexpr word mix = 0x9e3779b97f4a7c15;

struct header {
	word magic;
	word records;
	word begun;
	word done;
	struct {
		word record;
		word checksum_before;
		word checksum_after;
		word updates_before;
	} intent;
};

struct entry {
	word offset; /* of the text, in bytes from the store's start */
	word words;
	word checksum;
	word updates;
};

constexpr std::size_t page_up(std::size_t size)
{
	return (size + page - 1) / page * page;
}

constexpr std::size_t words_of(std::string_view record)
{
	return (record.size() + sizeof(word) - 1) / sizeof(word);
}

constexpr std::size_t text_start(std::size_t records)
{
	return page + page_up(records * sizeof(entry));
}

/* A sum of the words and a sum that depends on where each of them stands. */
struct checksum {
	word sum = 0;
	word weighted = 0;

	explicit checksum(std::span<const word> words)
	{
		/* An emulator runs short loops slowly. */
#pragma GCC unroll 16
		for (const word value : words) {
			sum += value;
			weighted += sum;
		}
	}
	/* As if @value, the @weight-th word from the end, were flipped. */
	void flip_word(word value, word weight)
	{
		sum += (value ^ flip) - value;
		weighted += ((value ^ flip) - value) * weight;
	}
	word value() const { return sum * mix + weighted; }
};

/* Stores get to memory in the order of the calls. */
void store(word &where, word value)
{
	std::atomic_ref(where).store(value, std::memory_order_release);
}

template <typename Type>
Type *at(std::span<std::byte> memory, std::size_t offset)
{
	return reinterpret_cast<Type *>(memory.data() + offset);
}

template <typename Type>
const Type *at(std::span<const std::byte> image, std::size_t offset)
{
	return reinterpret_cast<const Type *>(image.data() + offset);
}

/* Whether the words sum up to @before once those up to some point are flipped. */
bool is_begun(std::span<const word> words, word before)
{
	checksum undone(words);
	std::size_t i = 0;

	for (; undone.value() != before && i < words.size(); i++)
		undone.flip_word(words[i], words.size() - i);
	return undone.value() == before;
}

class examination {
public:
	explicit examination(std::span<const std::byte> image)
		: image_(image), head_(*at<header>(image, 0))
	{
		if (head_.magic != magic ||
		    head_.records > (image.size() - page) / sizeof(entry)) {
			violation("no store at all", 0);
			return;
		}
		found_.updates = head_.done;
		found_.in_flight = head_.begun != head_.done;
		if (found_.in_flight && head_.begun != head_.done + 1)
			violation("more than one update in flight", head_.begun);
		add_to_hash(checksum({at<word>(image, 0), page / sizeof(word)}).value());
		for (word record = 0; record < head_.records; record++)
			look_at(record);
		if (counted_ != head_.done)
			violation("the counts add up to another sum", counted_);
	}

	const findings &found() const { return found_; }

private:
	void look_at(word record)
	{
		const entry &item = at<entry>(image_, page)[record];

		found_.records++;
		if (item.offset % sizeof(word) || item.offset > image_.size() ||
		    item.words > (image_.size() - item.offset) / sizeof(word)) {
			violation("a record outside of the store", record);
			return;
		}

		const std::span words(at<word>(image_, item.offset), item.words);
		const word actual = checksum(words).value();

		counted_ += item.updates;
		add_to_hash(item.checksum);
		add_to_hash(item.updates);
		add_to_hash(actual);
		if (found_.in_flight && record == head_.intent.record)
			look_at_update(item, words, actual);
		else if (actual != item.checksum)
			violation("a record that does not match its checksum", record);
	}

	/* Each store of the update in flight is there only if those before are. */
	void look_at_update(const entry &item, std::span<const word> words, word actual)
	{
		const auto &intent = head_.intent;
		const word counted = item.updates - intent.updates_before;
		const bool summed = item.checksum == intent.checksum_after &&
				    actual == intent.checksum_after && counted <= 1;
		const bool begun = item.checksum == intent.checksum_before &&
				   counted == 0 &&
				   is_begun(words, intent.checksum_before);

		/* Counted, and yet not done. */
		counted_ -= counted;
		if (!summed && !begun)
			violation("an update that is not whole up to one store",
				  intent.record);
	}

	void violation(const char *what, word which)
	{
		if (found_.violations++ == 0)
			std::snprintf(found_.first.data(), found_.first.size(),
				      "%s (%llu)", what,
				      static_cast<unsigned long long>(which));
	}

	void add_to_hash(word value)
	{
		found_.hash = (std::rotl(found_.hash, 5) ^ value) * mix;
	}

	std::span<const std::byte> image_;
	const header &head_;
	word counted_ = 0;
	findings found_;
};

} // namespace

records split(std::string_view text)
{
	constexpr std::size_t shortest = 512, longest = 4096;
	const bool packages = text.starts_with("Package: ");
	records result;

	while (!text.empty()) {
		std::size_t end = packages ? text.find("\n\n")
					   : text.find('\n', shortest);

		/* With the blank line, or the end of the line. */
		end = end == std::string_view::npos ? text.size() : end + (packages ? 2 : 1);
		end = std::min(end, longest);
		result.push_back(text.substr(0, end));
		text.remove_prefix(end);
	}
	return result;
}

std::size_t store_size(const records &from)
{
	std::size_t size = text_start(from.size());

	for (const std::string_view record : from)
		size += words_of(record) * sizeof(word);
	return page_up(size);
}

void fill_store(std::span<std::byte> memory, const records &from)
{
	header &head = *at<header>(memory, 0);
	auto *item = at<entry>(memory, page);
	std::size_t offset = text_start(from.size());

	head.magic = magic;
	head.records = from.size();
	for (const std::string_view record : from) {
		word *const text = at<word>(memory, offset);
		const std::size_t words = words_of(record);

		std::memcpy(text, record.data(), record.size());
		*item++ = {offset, words, checksum({text, words}).value(), 0};
		offset += words * sizeof(word);
	}
}

void update_record(std::span<std::byte> memory, std::size_t record)
{
	header &head = *at<header>(memory, 0);
	entry &item = at<entry>(memory, page)[record];
	const std::span words(at<word>(memory, item.offset), item.words);
	const word number = head.done + 1;
	checksum after(words);

	for (std::size_t i = 0; i < words.size(); i++)
		after.flip_word(words[i], words.size() - i);
	store(head.intent.record, record);
	store(head.intent.checksum_before, item.checksum);
	store(head.intent.checksum_after, after.value());
	store(head.intent.updates_before, item.updates);
	store(head.begun, number);
	for (word &value : words)
		store(value, value ^ flip);
	store(item.checksum, after.value());
	store(item.updates, item.updates + 1);
	store(head.done, number);
}

std::uint64_t updates_done(std::span<std::byte> memory)
{
	return std::atomic_ref(at<header>(memory, 0)->done).load();
}

findings examine(std::span<const std::byte> image)
{
	return examination(image).found();
}

} // namespace cowsnap_demo
