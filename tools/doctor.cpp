// SPDX-License-Identifier: GPL-2.0-only
/* doctor: what keeps cowsnap from working here, and the line that mends it. */
#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cowsnap/cowsnap.hpp>

#include "commands.hpp"
#include "text.hpp"

namespace cowsnap_command {
namespace {

namespace fs = std::filesystem;

struct finding {
	bool wrong;
	std::string check;
	std::string said;
	std::string mend;
};

class examination {
public:
	explicit examination(std::string root) : root_(std::move(root)) {}

	std::vector<finding> all()
	{
		release_ = line_of("/proc/sys/kernel/osrelease");
		loaded_ = exists("/sys/module/cowsnap");
		kernel();
		headers();
		secure_boot();
		module();
		device();
		memory();
		descriptors();
		return std::move(found_);
	}

private:
	std::string at(const std::string &path) const { return root_ + path; }

	bool exists(const std::string &path) const
	{
		std::error_code error;

		return fs::exists(at(path), error);
	}

	std::string line_of(const std::string &path) const
	{
		std::ifstream file(at(path));
		std::string line;

		std::getline(file, line);
		return line;
	}

	std::uint64_t number_of(const std::string &path) const
	{
		const std::string line = line_of(path);
		std::uint64_t number = 0;

		std::from_chars(line.data(), line.data() + line.size(), number);
		return number;
	}

	void ok(const std::string &check, const std::string &said)
	{
		found_.push_back({false, check, said, ""});
	}
	void wrong(const std::string &check, const std::string &said, const std::string &mend)
	{
		found_.push_back({true, check, said, mend});
	}

	/* Whether the release is 6.1 or later, as dkms.conf has it. */
	bool recent_enough() const
	{
		const char *const end = release_.data() + release_.size();
		unsigned int major = 0;
		unsigned int minor = 0;
		const char *const dot = std::from_chars(release_.data(), end, major).ptr;

		if (dot != end)
			std::from_chars(dot + 1, end, minor);
		return major > 6 || (major == 6 && minor >= 1);
	}

	void kernel()
	{
		const std::array tested = {"6.1.", "6.12.", "7.3."};

		if (loaded_)
			ok("kernel", fmt::format("Linux {} runs the module", release_));
		else if (!recent_enough())
			wrong("kernel",
			      fmt::format("Linux {} is too old; the module is for 6.1 and later",
					  release_.empty() ? "of an unknown release" : release_),
			      "sudo apt-get install linux-image-amd64 && sudo reboot");
		else if (std::ranges::any_of(tested, [this](const char *series) {
				 return release_.starts_with(series);
			 }))
			ok("kernel", fmt::format("Linux {} is one that the module is tested on", release_));
		else
			ok("kernel", fmt::format("Linux {} is recent enough; the module is tested on "
						 "6.1, 6.12 and 7.3",
						 release_));
	}

	void headers()
	{
		const std::string tree = fmt::format("/lib/modules/{}/build", release_);

		if (exists(tree + "/include/config/kernel.release"))
			ok("headers", fmt::format("{} is there", tree));
		else if (loaded_)
			ok("headers", "are missing, and not needed while the module is loaded");
		else
			wrong("headers", fmt::format("{} is missing, which the module is built with", tree),
			      fmt::format("sudo apt-get install linux-headers-{}", release_));
	}

	/* The fifth byte of the variable, behind its attributes. */
	bool boots_securely() const
	{
		std::ifstream file(at("/sys/firmware/efi/efivars/"
				      "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"));
		std::array<char, 5> variable = {};

		file.read(variable.data(), variable.size());
		return file.gcount() == 5 && variable[4] == 1;
	}

	void secure_boot()
	{
		const bool locked =
			line_of("/sys/kernel/security/lockdown").find("[none]") == std::string::npos &&
			exists("/sys/kernel/security/lockdown");

		if (!boots_securely() && !locked)
			ok("Secure Boot", "is off, modules need no signature");
		else if (loaded_)
			ok("Secure Boot", "is on, and the module is loaded all the same");
		else
			wrong("Secure Boot", "is on, and the kernel takes signed modules only",
			      "sudo mokutil --import /var/lib/dkms/mok.pub && sudo reboot");
	}

	bool installed() const
	{
		const fs::path modules = at(fmt::format("/lib/modules/{}", release_));

		for (const char *folder : {"updates", "updates/dkms", "extra"})
			for (const char *suffix : {"", ".xz", ".zst", ".gz"})
				if (std::error_code error; fs::exists(
					    modules / folder / (std::string("cowsnap.ko") + suffix),
					    error))
					return true;
		return false;
	}

	void module()
	{
		const std::string version = line_of("/sys/module/cowsnap/version");

		if (loaded_ && version == COWSNAP_VERSION)
			ok("module", fmt::format("cowsnap {} is loaded", version));
		else if (loaded_)
			wrong("module",
			      fmt::format("cowsnap {} is loaded, and this is the command of {}",
					  version, COWSNAP_VERSION),
			      "sudo rmmod cowsnap && sudo modprobe cowsnap");
		else if (installed())
			wrong("module", "is installed, but not loaded", "sudo modprobe cowsnap");
		else if (exists(fmt::format("/usr/src/cowsnap-{}/dkms.conf", COWSNAP_VERSION)))
			wrong("module", "is installed, but not built for this kernel",
			      fmt::format("sudo dkms install cowsnap/{}", COWSNAP_VERSION));
		else
			wrong("module", "is not installed",
			      "sudo apt-get install ./cowsnap-dkms_*.deb, or in the sources: "
			      "sudo make install-module");
	}

	/* Whose members may open the device, as udev is told. */
	std::optional<::gid_t> group() const
	{
		std::ifstream file(at("/etc/group"));

		for (std::string line; std::getline(file, line);) {
			::gid_t gid = 0;

			if (!line.starts_with("cowsnap:"))
				continue;
			line.erase(0, line.find(':', line.find(':') + 1) + 1);
			if (std::from_chars(line.data(), line.data() + line.size(), gid).ec == std::errc())
				return gid;
		}
		return std::nullopt;
	}

	std::string way_in(const std::string &path) const
	{
		const std::optional<::gid_t> members = group();
		struct stat node = {};

		if (!members)
			return fmt::format("sudo setfacl -m u:{}:rw {}", ::geteuid(), path);
		if (::stat(path.c_str(), &node) == 0 && node.st_gid != *members)
			return fmt::format("sudo chgrp cowsnap {}", path);
		return "sudo usermod -aG cowsnap $(id -un) && newgrp cowsnap";
	}

	void device()
	{
		const std::string path = at(cowsnap::device_path);
		std::error_code error;
		const cowsnap::device device = cowsnap::device::open(path.c_str(), error);

		if (error == std::errc::permission_denied)
			wrong("device", fmt::format("{} may not be opened by this user", path),
			      way_in(path));
		else if (error == std::errc::no_such_file_or_directory && !loaded_)
			wrong("device", fmt::format("{} is not there without the module", path),
			      "sudo modprobe cowsnap");
		else if (error == std::errc::no_such_file_or_directory)
			wrong("device", fmt::format("{} is missing, though the module is loaded", path),
			      fmt::format("sudo mknod -m 0660 {} c 10 $(awk '$2 == \"cowsnap\" "
					  "{{print $1}}' /proc/misc)",
					  path));
		else if (error)
			wrong("device",
			      fmt::format("{} is something else: {}", path, error.message()),
			      fmt::format("sudo rm {} && sudo rmmod cowsnap && sudo modprobe cowsnap",
					  path));
		else
			interface(device);
	}

	void interface(const cowsnap::device &device)
	{
		const std::uint32_t version = device.query().abi_version;

		if (version == COWSNAP_ABI_VERSION)
			ok("device", fmt::format("can be used, version {} of the interface",
						 version));
		else
			wrong("device",
			      fmt::format("the module has version {} of the interface, this command {}",
					  version, COWSNAP_ABI_VERSION),
			      "sudo rmmod cowsnap && sudo modprobe cowsnap");
		held(device.query());
	}

	void held(const cowsnap_query &query)
	{
		if (query.max_bytes != 0 && query.held_bytes >= query.max_bytes)
			wrong("regions",
			      fmt::format("hold {}, all of the {} that they may", human(query.held_bytes),
					  human(query.max_bytes)),
			      fmt::format("echo {} | sudo tee {}", query.held_bytes * 2, max_bytes));
		else
			ok("regions", fmt::format("{}, which hold {}", query.regions,
						  human(query.held_bytes)));
	}

	std::uint64_t total_memory() const
	{
		std::ifstream file(at("/proc/meminfo"));
		std::string key;
		std::uint64_t kilobytes = 0;

		while (file >> key >> kilobytes) {
			if (key == "MemTotal:")
				return kilobytes << 10;
			file.ignore(1000, '\n');
		}
		return 0;
	}

	void memory()
	{
		if (!loaded_ || !exists(max_bytes))
			return;

		const std::uint64_t limit = number_of(max_bytes);
		const std::uint64_t total = total_memory();

		if (limit != 0 && (total == 0 || limit <= total))
			ok("max_bytes", fmt::format("{} of {} of memory", human(limit), human(total)));
		else
			wrong("max_bytes",
			      limit == 0 ? "there is no cap on what regions hold"
					 : fmt::format("{} are more than the memory, {}", human(limit),
						       human(total)),
			      fmt::format("echo {} | sudo tee {}", total / 2, max_bytes));
	}

	void descriptors()
	{
		rlimit limit = {};

		::getrlimit(RLIMIT_NOFILE, &limit);
		if (limit.rlim_cur >= 1024)
			ok("descriptors", fmt::format("{} for each process", limit.rlim_cur));
		else
			wrong("descriptors",
			      fmt::format("a process may have only {}, and each region takes one",
					  limit.rlim_cur),
			      "ulimit -n 1024");
	}

	static constexpr const char *max_bytes = "/sys/module/cowsnap/parameters/max_bytes";

	std::string root_;
	std::string release_;
	bool loaded_ = false;
	std::vector<finding> found_;
};

} // namespace

outcome doctor(const doctor_options &options)
{
	const std::vector<finding> all = examination(options.root).all();
	nlohmann::ordered_json entries = nlohmann::ordered_json::array();

	for (const finding &one : all) {
		if (options.json) {
			entries.push_back({{"check", one.check},
					   {"ok", !one.wrong},
					   {"said", one.said}});
			if (one.wrong)
				entries.back()["mend"] = one.mend;
			continue;
		}
		std::cout << fmt::format("{:<6}{}: {}\n", one.wrong ? "wrong" : "ok", one.check,
					 one.said);
		if (one.wrong)
			std::cout << fmt::format("      mend: {}\n", one.mend);
	}
	if (options.json)
		std::cout << entries.dump(2, ' ', false,
					  nlohmann::json::error_handler_t::replace)
			  << '\n';
	return std::ranges::any_of(all, &finding::wrong) ? outcome::failed : outcome::done;
}

} // namespace cowsnap_command
