// SPDX-License-Identifier: GPL-2.0-only
/* send. */
#include <algorithm>
#include <optional>

#include <unistd.h>

#include "commands.hpp"
#include "diff.hpp"
#include "reference.hpp"
#include "stream.hpp"

namespace cowsnap_command {

outcome send(const send_options &options)
{
	if (::isatty(STDOUT_FILENO) == 1)
		throw failure(outcome::misused,
			      "a stream is nothing for a terminal; send it to a file or to "
			      "`cowsnap recv`");

	const cowsnap::snapshot sent = still_of(options.region);
	std::optional<cowsnap::snapshot> base;
	stream_header header;

	header.length = sent.length();
	header.from = options.from;
	if (options.from > header.length)
		throw failure(outcome::misused,
			      "there is nothing at the offset to go on from; `cowsnap recv --tell` "
			      "says which it is");
	if (!options.base.empty()) {
		base = still_of(options.base);
		/* Before anything is sent: one of another family is refused. */
		require_relatives(sent, *base);
		header.flags |= stream_incremental;
		header.base = digest_of(*base, "reading what the receiver has");
	}
	header.target = digest_of(sent, "reading what to send");

	stream_writer out(STDOUT_FILENO, header);
	progress shown("sending", header.length);
	const auto send_data = [&](std::uint64_t start, std::uint64_t size) {
		each_piece(sent, start, size, [&](std::uint64_t offset, auto bytes) {
			out.data(offset, bytes);
			shown.at(offset);
		});
	};

	if (!base) {
		each_data(sent, header.from, header.length, send_data);
	} else {
		for_each_difference(sent, *base, true, [&](const cowsnap::range &part) {
			const std::uint64_t start = std::max(part.offset, header.from);
			const std::uint64_t end =
				std::min(part.offset + part.length, header.length);

			if (start >= end)
				return;
			if (part.hole)
				out.hole(start, end - start);
			else
				send_data(start, end - start);
		});
	}
	out.end();
	return outcome::done;
}

} // namespace cowsnap_command
