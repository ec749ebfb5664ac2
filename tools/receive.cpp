// SPDX-License-Identifier: GPL-2.0-only
/*
 * recv. A stream is applied to a fork of the region, and when the fork holds just what was
 * sent the region is restored from it: at one instant, for all who have it.
 */
#include <cerrno>
#include <iostream>
#include <optional>
#include <string>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "commands.hpp"
#include "reference.hpp"
#include "stream.hpp"

namespace cowsnap_command {
namespace {

/* A fork of the region that takes what a stream has. */
class replica {
public:
	replica(const cowsnap::region &of, const stream_header &header)
		: made_(of.fork()), header_(header)
	{
		const bool incremental = (header.flags & stream_incremental) != 0;

		if (incremental && digest_of(made_, "reading what is there") != header.base)
			throw failure(outcome::refused,
				      "the stream is refused: the region does not hold what it "
				      "builds on; send -i what the region holds, or all of it "
				      "without -i");
		if (!incremental)
			made_.truncate(0);
		made_.truncate(header.length);
	}

	void apply(const stream_record &record, std::span<const std::byte> data)
	{
		if (record.kind == record_kind::hole)
			made_.punch(record.offset, record.length);
		else
			made_.write(record.offset, data);
	}

	void commit(cowsnap::region &into)
	{
		if (digest_of(made_, "reading what arrived") != header_.target)
			throw failure(outcome::refused,
				      "the stream is refused: what it makes is not what was sent; "
				      "send all of it, without -i and --from");
		into.restore(made_);
	}

private:
	cowsnap::region made_;
	stream_header header_;
};

/* What arrived of a stream, kept in a file as a stream that ends early. */
class kept_stream {
public:
	explicit kept_stream(const std::string &name)
		: name_(name),
		  fd_(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)), in_(fd_.get())
	{
		if (!fd_)
			throw failure(outcome::failed,
				      fmt::format("{} cannot be opened: {}; name a file in a folder "
						  "that can be written to",
						  name, std::generic_category().message(errno)));
	}

	/*
	 * Calls @visit(record, data) for all that is there, and drops what is behind: what
	 * was being written when the machine failed.
	 */
	template <typename Visit> void replay(Visit &&visit)
	{
		off_t good = 0;

		::lseek(fd_.get(), 0, SEEK_SET);
		try {
			begun_ = in_.begin();
			good = begun_ ? ::lseek(fd_.get(), 0, SEEK_CUR) : 0;
			while (begun_ && in_.next()) {
				visit(in_.record(), in_.data());
				good = ::lseek(fd_.get(), 0, SEEK_CUR);
			}
		} catch (const failure &error) {
			if (error.how() != outcome::unfinished)
				throw failure(outcome::refused,
					      fmt::format("{} is damaged, or no file of `cowsnap "
							  "recv --partial`; remove it, and send all "
							  "again",
							  name_));
		}
		if (::ftruncate(fd_.get(), good) < 0 ||
		    ::lseek(fd_.get(), good, SEEK_SET) < 0)
			throw std::system_error(errno, std::generic_category(), name_);
		if (begun_)
			out_.emplace(fd_.get(), in_);
	}

	/* Forgets what is there, for the stream that has this header. */
	void restart(const stream_header &header)
	{
		if (::ftruncate(fd_.get(), 0) < 0 || ::lseek(fd_.get(), 0, SEEK_SET) < 0)
			throw std::system_error(errno, std::generic_category(), name_);
		out_.emplace(fd_.get(), header);
	}

	void keep(const stream_record &record, std::span<const std::byte> data)
	{
		if (record.kind == record_kind::hole)
			out_->hole(record.offset, record.length);
		else
			out_->data(record.offset, data);
	}

	std::uint64_t reached() const noexcept { return begun_ ? in_.reached() : 0; }

	/* Whether @header is that of the rest of what is there. */
	bool continued_by(const stream_header &header) const
	{
		const stream_header &first = in_.header();

		return begun_ && header.from == reached() && header.flags == first.flags &&
		       header.length == first.length && header.target == first.target &&
		       header.base == first.base;
	}

	void remove() { ::unlink(name_.c_str()); }

private:
	std::string name_;
	cowsnap::descriptor fd_;
	stream_reader in_;
	std::optional<stream_writer> out_;
	bool begun_ = false;
};

[[noreturn]] void refuse_rest(const stream_header &header, std::uint64_t reached)
{
	throw failure(outcome::refused,
		      fmt::format("the stream is refused: it goes on from {}, and not from {} with "
				  "the same regions; send --from {}, which takes --partial here, or "
				  "send all again",
				  header.from, reached, reached));
}

/* Takes one stream, of which the header was read. */
void receive_one(cowsnap::region &into, stream_reader &in, const std::string &partial)
{
	const stream_header header = in.header();
	std::optional<kept_stream> kept;
	replica made(into, header);

	if (!partial.empty())
		kept.emplace(partial);
	if (header.from > 0) {
		if (!kept)
			refuse_rest(header, 0);
		kept->replay([&](const stream_record &record, auto data) {
			made.apply(record, data);
		});
		if (!kept->continued_by(header))
			refuse_rest(header, kept->reached());
	} else if (kept) {
		kept->restart(header);
	}

	progress shown("receiving", header.length);

	try {
		while (in.next()) {
			made.apply(in.record(), in.data());
			if (kept)
				kept->keep(in.record(), in.data());
			shown.at(in.reached());
		}
	} catch (const failure &error) {
		if (!kept)
			throw failure(error.how(), fmt::format("{}; send it again", error.what()));
		throw failure(error.how(),
			      fmt::format("{}; what arrived is kept, go on with send --from {}",
					  error.what(), in.reached()));
	}
	try {
		made.commit(into);
	} catch (const failure &) {
		/* To go on with it leads to the same. */
		if (kept)
			kept->remove();
		throw;
	}
	if (kept)
		kept->remove();
}

std::uint64_t kept_in(const std::string &partial)
{
	if (::access(partial.c_str(), F_OK) != 0)
		return 0;

	kept_stream kept(partial);

	kept.replay([](const stream_record &, auto) {});
	return kept.reached();
}

} // namespace

outcome receive(const receive_options &options)
{
	if (options.tell) {
		std::cout << kept_in(options.partial) << '\n';
		return outcome::done;
	}
	if (options.region.empty())
		throw failure(outcome::misused, "there is no region to receive into; name one");

	cowsnap::region into = region_of(options.region);
	stream_reader in(STDIN_FILENO);

	if (!in.begin())
		throw failure(outcome::unfinished,
			      "there is no stream at all, and nothing was changed; look at what "
			      "the sender says");
	do
		receive_one(into, in, options.partial);
	while (in.begin());
	return outcome::done;
}

} // namespace cowsnap_command
