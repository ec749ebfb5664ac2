// SPDX-License-Identifier: GPL-2.0-only
#include "proc.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <utility>

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace cowsnap_command {

const std::vector<figure> figures = {
	{"id", &region_info::id},
	{"parent", &region_info::parent},
	{"family", &region_info::family},
	{"generation", &region_info::generation},
	{"length", &region_info::length},
	{"granule", &region_info::granule},
	{"referenced", &region_info::referenced},
	{"exclusive", &region_info::exclusive},
	{"dirty", &region_info::dirty},
	{"forks", &region_info::forks},
	{"faults", &region_info::faults},
	{"copies", &region_info::copies},
	{"reuses", &region_info::reuses},
	{"zero-fills", &region_info::zero_fills},
	{"bytes-copied", &region_info::bytes_copied},
};

namespace {

namespace fs = std::filesystem;

/* What /proc calls a file with; device and inode. */
using file_key = std::pair<std::uint64_t, std::uint64_t>;

constexpr std::string_view deleted = " (deleted)";

/* The name in "/cowsnap:name (deleted)", nothing for what is no region. */
std::optional<std::string> name_in(std::string_view title)
{
	if (!title.starts_with("/cowsnap") || !title.ends_with(deleted))
		return {};
	title.remove_prefix(std::string_view("/cowsnap").size());
	title.remove_suffix(deleted.size());
	if (title.empty())
		return "";
	if (!title.starts_with(':'))
		return {};
	return std::string(title.substr(1));
}

/* Takes back "\012" for a newline. */
std::string unescaped(std::string_view text)
{
	std::string plain;

	for (std::size_t i = 0; i < text.size(); i++) {
		unsigned int code = 0;

		if (text[i] == '\\' && i + 3 < text.size() &&
		    std::from_chars(text.data() + i + 1, text.data() + i + 4, code, 8).ptr ==
			    text.data() + i + 4) {
			plain += static_cast<char>(code);
			i += 3;
		} else {
			plain += text[i];
		}
	}
	return plain;
}

std::optional<region_info> parse(std::istream &lines)
{
	region_info info;
	bool found = false;

	for (std::string line; std::getline(lines, line);) {
		constexpr std::string_view prefix = "cowsnap-";
		const std::size_t end = line.find(":\t");

		if (!line.starts_with(prefix) || end == line.npos)
			continue;

		const std::string key = line.substr(prefix.size(), end - prefix.size());
		const std::string value = line.substr(end + 2);

		if (key == "name") {
			info.name = unescaped(value);
		} else if (key == "readonly") {
			info.readonly = value == "1";
		} else {
			for (const figure &known : figures)
				if (key == known.name)
					std::from_chars(value.data(),
							value.data() + value.size(),
							info.*known.value);
			found = true;
		}
	}
	return found ? std::optional(info) : std::nullopt;
}

std::optional<region_info> read_info(const fs::path &path)
{
	/* A signal that comes in between leaves the lines out. */
	for (int attempt = 0; attempt < 3; attempt++) {
		std::ifstream file(path);

		if (const auto info = parse(file))
			return info;
	}
	return {};
}

int number(const fs::path &path)
{
	const std::string name = path.filename();
	int value = -1;
	const auto [end, error] =
		std::from_chars(name.data(), name.data() + name.size(), value);

	return error == std::errc() && end == name.data() + name.size() ? value : -1;
}

class search {
public:
	void look_into(const fs::path &process)
	{
		std::error_code error;
		fs::directory_iterator fds(process / "fd", error);

		if (error == std::errc::permission_denied) {
			found_.unreadable++;
			return;
		}
		std::getline(std::ifstream(process / "comm"), command_ = "");
		pid_ = number(process);
		for (; !error && fds != fs::directory_iterator(); fds.increment(error))
			look_at(process, fds->path());
		look_at_maps(process / "maps");
	}

	regions_found take()
	{
		for (auto &[key, region] : by_file_)
			found_.regions.push_back(std::move(region));
		std::ranges::stable_sort(found_.regions, {}, [](const held_region &region) {
			return region.info ? region.info->id
					   : std::numeric_limits<std::uint64_t>::max();
		});
		return std::move(found_);
	}

private:
	void look_at(const fs::path &process, const fs::path &fd)
	{
		std::error_code error;
		const auto name = name_in(fs::read_symlink(fd, error).native());
		struct stat status = {};

		/* A file may have such a name, too; only a region has the lines. */
		if (error || !name || ::stat(fd.c_str(), &status) < 0)
			return;

		const file_key key(status.st_dev, status.st_ino);
		const auto known = by_file_.find(key);

		if (known == by_file_.end() || !known->second.info) {
			const auto info = read_info(process / "fdinfo" / fd.filename());

			if (!info)
				return;
			by_file_[key].info = info;
			by_file_[key].name = info->name;
		}
		by_file_[key].holders.push_back({pid_, number(fd), command_});
	}

	/* address perms offset major:minor inode name */
	void look_at_maps(const fs::path &path)
	{
		std::ifstream file(path);

		for (std::string line; std::getline(file, line);) {
			std::istringstream words(line);
			std::string address, rights, offset, device, title;
			std::uint64_t inode = 0;

			words >> address >> rights >> offset >> device >> inode >> std::ws;
			std::getline(words, title);

			const auto name = name_in(title);
			const std::size_t colon = device.find(':');

			/* Pseudo file systems have the major number 0. */
			if (!name || colon == device.npos ||
			    std::strtoul(device.c_str(), nullptr, 16) != 0)
				continue;

			const auto minor = std::strtoul(device.c_str() + colon + 1, nullptr, 16);
			held_region &region = by_file_[{
				makedev(0, static_cast<unsigned int>(minor)), inode}];

			if (!region.info)
				region.name = unescaped(*name);
			if (std::ranges::none_of(region.holders, [this](const holder &other) {
				    return other.pid == pid_;
			    }))
				region.holders.push_back({pid_, -1, command_});
		}
	}

	std::map<file_key, held_region> by_file_;
	regions_found found_;
	std::string command_;
	int pid_ = 0;
};

} // namespace

regions_found find_regions()
{
	search all;

	for (const auto &entry : fs::directory_iterator("/proc"))
		if (number(entry.path()) > 0)
			all.look_into(entry.path());
	return all.take();
}

std::optional<region_info> info_of(int fd)
{
	return read_info("/proc/self/fdinfo/" + std::to_string(fd));
}

} // namespace cowsnap_command
