// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the test VM: loads the module, runs each test program under a time limit, unloads the module and ends the
 * VM with a verdict. Results go to the second serial line as KTAP, the kernel's messages to the first.
 *
 * run-vm puts beside it: /vm/options ("key value" lines), /vm/env (KEY=VALUE lines), /vm/programs (names in /tests)
 * and, when there is a module, /vm/module.ko.
 */
#include <fcntl.h>
#include <linux/module.h>
#include <poll.h>
#include <sched.h>
#ifdef __x86_64__
#include <sys/io.h>
#endif
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using clock_type = std::chrono::steady_clock;

// isa-debug-exit makes QEMU's status 2 * code + 1: 33 passed, 35 failed; a program run raw passes its own status on.
constexpr int code_base = 16;
constexpr int highest_status = 100;

#ifdef __x86_64__
constexpr auto results_line = "/dev/ttyS1";

void end_qemu(int code)
{
	constexpr unsigned short exit_port = 0xf4;

	if (ioperm(exit_port, 4, 1) == 0)
		outl(static_cast<unsigned>(code), exit_port);
}
#else
constexpr auto results_line = "/dev/ttyS0";

// There is no such device here, but QEMU takes a status from who asks it for what a debugger would do.
void end_qemu(int code)
{
	constexpr unsigned long exit_extended = 0x20, application_exit = 0x20026;
	const unsigned long why[] = {application_exit, static_cast<unsigned long>(2 * code + 1)};
	register unsigned long operation asm("x0") = exit_extended;
	register const unsigned long *argument asm("x1") = why;

	asm volatile("hlt #0xf000" : "+r"(operation) : "r"(argument) : "memory");
}
#endif

constexpr int status_skip = 4; // kselftest's
constexpr auto kill_patience = 10s;
constexpr auto unload_patience = 5s;
// The kernel takes nothing for a leak that is younger than 5 s.
constexpr auto age_of_leaks = 6s;

// What the kernel sets for a bad page, a death, a warning and a lockup.
constexpr unsigned long bad_taint = 1UL << 5 | 1UL << 7 | 1UL << 9 | 1UL << 14;

[[noreturn]] void fail_errno(const std::string &what)
{
	throw std::system_error(errno, std::generic_category(), what);
}

class file {
public:
	file() = default;
	explicit file(int fd) : fd_(fd) {}
	file(file &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
	file &operator=(file &&other) noexcept
	{
		std::swap(fd_, other.fd_);
		return *this;
	}
	file(const file &) = delete;
	file &operator=(const file &) = delete;
	~file() { reset(); }

	void reset()
	{
		if (fd_ >= 0)
			close(fd_);
		fd_ = -1;
	}
	[[nodiscard]] int get() const { return fd_; }
	[[nodiscard]] bool is_open() const { return fd_ >= 0; }

	static file open(const char *path, int flags)
	{
		file opened(::open(path, flags | O_CLOEXEC));
		if (!opened.is_open())
			fail_errno(path);
		return opened;
	}

	void write(std::string_view text) const
	{
		while (!text.empty()) {
			const ssize_t done = ::write(fd_, text.data(), text.size());
			if (done < 0 && errno != EINTR)
				fail_errno("write");
			if (done > 0)
				text.remove_prefix(static_cast<size_t>(done));
		}
	}

private:
	int fd_ = -1;
};

std::string read_text(const fs::path &path)
{
	std::ifstream in(path);
	return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> read_lines(const fs::path &path)
{
	std::vector<std::string> lines;
	std::ifstream in(path);
	for (std::string line; std::getline(in, line);)
		lines.push_back(line);
	return lines;
}

std::string seconds_since(clock_type::time_point start)
{
	char text[32];
	std::snprintf(text, sizeof text, "%.2f",
		      std::chrono::duration<double>(clock_type::now() - start).count());
	return text;
}

[[noreturn]] void end_vm(int status)
{
	sync();
	end_qemu(code_base + status);
	// PID 1 that ends is a panic, which the other side takes for what it is: no verdict.
	_exit(1);
}

struct options {
	std::chrono::seconds limit{120};
	std::chrono::seconds settle{0};
	std::string module;
	std::string module_arguments;
	bool raw = false;
	bool kmemleak = false;

	static options read(const fs::path &path)
	{
		options result;
		for (const auto &line : read_lines(path)) {
			const auto space = line.find(' ');
			const auto key = line.substr(0, space);
			const auto value = space == line.npos ? std::string() : line.substr(space + 1);
			if (key == "limit")
				result.limit = std::chrono::seconds(std::stol(value));
			else if (key == "settle")
				result.settle = std::chrono::seconds(std::stol(value));
			else if (key == "module")
				result.module = value;
			else if (key == "module-arguments")
				result.module_arguments = value;
			else if (key == "raw")
				result.raw = true;
			else if (key == "kmemleak")
				result.kmemleak = true;
			else
				throw std::runtime_error("unknown option " + key);
		}
		return result;
	}
};

void mount_one(const char *type, const fs::path &where, unsigned long flags = 0, const char *data = nullptr)
{
	fs::create_directories(where);
	if (mount(type, where.c_str(), type, flags, data) != 0)
		fail_errno("mount " + where.string());
}

void prepare_system()
{
	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	mount_one("devtmpfs", "/dev");
	mount_one("tmpfs", "/dev/shm", 0, "mode=1777");
	mount_one("devpts", "/dev/pts");
	mount_one("tmpfs", "/tmp", 0, "mode=1777");
	mount_one("tmpfs", "/run");
	mount_one("cgroup2", "/sys/fs/cgroup");
	// A kernel without one of these still runs tests; those that need it say so themselves.
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, nullptr);
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, nullptr);
	std::ofstream("/sys/fs/cgroup/cgroup.subtree_control") << "+memory +pids";
	std::ofstream("/proc/sys/kernel/hung_task_timeout_secs") << 60;

	// devtmpfs has none of these.
	fs::create_symlink("/proc/self/fd", "/dev/fd");
	fs::create_symlink("/proc/self/fd/0", "/dev/stdin");
	fs::create_symlink("/proc/self/fd/1", "/dev/stdout");
	fs::create_symlink("/proc/self/fd/2", "/dev/stderr");

	// Whatever the command line says, every message from here on shows on the console.
	klogctl(8, nullptr, 8);
}

file open_results()
{
	auto results = file::open(results_line, O_RDWR | O_NOCTTY);
	termios settings{};
	if (tcgetattr(results.get(), &settings) != 0)
		fail_errno(results_line);
	cfmakeraw(&settings);
	cfsetspeed(&settings, B115200);
	settings.c_cflag |= CLOCAL;
	tcsetattr(results.get(), TCSANOW, &settings);
	return results;
}

// Tells the console's reader which program its lines belong to.
void mark(std::string_view text)
{
	const auto kmsg = file::open("/dev/kmsg", O_WRONLY);
	kmsg.write("<6>cowsnap-vm: " + std::string(text) + "\n");
}

unsigned long taint()
{
	return std::strtoul(read_text("/proc/sys/kernel/tainted").c_str(), nullptr, 10);
}

bool is_number(const std::string &text)
{
	return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

// Says of each thread of each program what it waits for: what hangs, and where.
void dump_tasks(const file &console, std::string_view program)
{
	std::ostringstream out;
	out << "cowsnap-vm: what hangs in " << program << ":\n";
	for (const auto &process : fs::directory_iterator("/proc")) {
		const auto pid = process.path().filename().string();
		std::error_code no_exe;
		if (!is_number(pid) || pid == "1" || fs::read_symlink(process.path() / "exe", no_exe).empty())
			continue;
		std::error_code gone;
		for (const auto &thread : fs::directory_iterator(process.path() / "task", gone)) {
			const auto stat = read_text(thread.path() / "stat");
			const auto after_name = stat.rfind(')');
			auto name = read_text(thread.path() / "comm");
			name.erase(name.find_last_not_of('\n') + 1);
			out << "thread " << thread.path().filename().string() << " of " << pid << " (" << name << "), state "
			    << (after_name == stat.npos ? "gone" : stat.substr(after_name + 2, 1))
			    << ", wchan " << read_text(thread.path() / "wchan")
			    << ", syscall " << read_text(thread.path() / "syscall")
			    << read_text(thread.path() / "stack");
		}
	}
	console.write(out.str());
	// The stacks of what runs rather than waits.
	std::ofstream("/proc/sysrq-trigger") << 'l';
}

// Passes a program's output on, each line behind the prefix that makes it KTAP.
class line_forwarder {
public:
	line_forwarder(const file &to, std::string prefix) : to_(to), prefix_(std::move(prefix)) {}

	// False at the end of the stream.
	bool forward_from(int fd)
	{
		char buffer[16384];
		const ssize_t got = read(fd, buffer, sizeof buffer);
		if (got < 0)
			return errno == EAGAIN || errno == EINTR;
		pending_.append(buffer, static_cast<size_t>(got));
		std::string out;
		size_t start = 0;
		for (size_t end; (end = pending_.find('\n', start)) != pending_.npos; start = end + 1)
			out += prefix_ + pending_.substr(start, end + 1 - start);
		pending_.erase(0, start);
		to_.write(out);
		return got > 0;
	}

	void finish()
	{
		if (!pending_.empty())
			to_.write(prefix_ + std::exchange(pending_, {}) + "\n");
	}

private:
	const file &to_;
	std::string prefix_;
	std::string pending_;
};

struct pipe_ends {
	file read_end;
	file write_end;

	pipe_ends()
	{
		int fds[2];
		if (pipe2(fds, O_CLOEXEC) != 0)
			fail_errno("pipe");
		read_end = file(fds[0]);
		write_end = file(fds[1]);
		fcntl(read_end.get(), F_SETFL, O_NONBLOCK);
	}
};

file child_signals()
{
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, nullptr);
	file signals(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
	if (!signals.is_open())
		fail_errno("signalfd");
	return signals;
}

[[noreturn]] void become(const std::string &program, int out, int err, const std::vector<std::string> &environment)
{
	setpgid(0, 0);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, nullptr);
	dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	if (chdir("/tmp") != 0)
		_exit(126);

	std::string path = "/tests/" + program;
	char *arguments[] = {path.data(), nullptr};
	std::vector<std::string> settings = environment;
	std::vector<char *> pointers;
	for (auto &setting : settings)
		pointers.push_back(setting.data());
	pointers.push_back(nullptr);
	execve(path.c_str(), arguments, pointers.data());
	dprintf(STDERR_FILENO, "cannot run %s: %s\n", path.c_str(), std::strerror(errno));
	_exit(127);
}

// Every process but this one belongs to the program that runs, whichever group or session it moved to.
class program_run {
public:
	enum class end { exited, timed_out, unkillable };

	program_run(const std::string &name, const file &console, const file &signals)
		: name_(name), console_(console), signals_(signals) {}

	end run(const file &results, bool raw, std::chrono::seconds limit, const std::vector<std::string> &environment)
	{
		pipe_ends out, err;
		child_ = fork();
		if (child_ < 0)
			fail_errno("fork");
		if (child_ == 0)
			become(name_, raw ? results.get() : out.write_end.get(), raw ? results.get() : err.write_end.get(),
			       environment);
		out.write_end.reset();
		err.write_end.reset();

		line_forwarder output(results, "  "), complaints(results, "  # ");
		const auto pass_on = [&](std::chrono::milliseconds patience) {
			pollfd waiting[] = {
				{signals_.get(), POLLIN, 0}, {out.read_end.get(), POLLIN, 0}, {err.read_end.get(), POLLIN, 0}};
			poll(waiting, std::size(waiting), static_cast<int>(patience.count()));
			if (waiting[0].revents)
				reap();
			if (waiting[1].revents && !output.forward_from(out.read_end.get()))
				out.read_end.reset();
			if (waiting[2].revents && !complaints.forward_from(err.read_end.get()))
				err.read_end.reset();
		};

		const auto deadline = clock_type::now() + limit;
		while (!status_ && clock_type::now() < deadline)
			pass_on(200ms);
		end result = end::exited;
		if (!status_) {
			dump_tasks(console_, name_);
			result = end::timed_out;
		}
		if (!kill_all(pass_on)) {
			dump_tasks(console_, name_);
			result = end::unkillable;
		}
		// Nothing writes any more, so what is left in the pipes is all there is.
		while (out.read_end.is_open() && output.forward_from(out.read_end.get()) && result != end::unkillable) {}
		while (err.read_end.is_open() && complaints.forward_from(err.read_end.get()) && result != end::unkillable) {}
		output.finish();
		complaints.finish();
		return result;
	}

	[[nodiscard]] int status() const { return *status_; }

private:
	// False when no process is left.
	bool reap()
	{
		signalfd_siginfo drained;
		while (read(signals_.get(), &drained, sizeof drained) > 0) {}
		for (;;) {
			int status = 0;
			const pid_t pid = waitpid(-1, &status, WNOHANG);
			if (pid < 0)
				return errno != ECHILD;
			if (pid == 0)
				return true;
			if (pid == child_)
				status_ = status;
		}
	}

	template <typename PassOn>
	bool kill_all(const PassOn &pass_on)
	{
		const auto deadline = clock_type::now() + kill_patience;
		for (;;) {
			kill(-1, SIGKILL);
			if (!reap())
				return true;
			if (clock_type::now() >= deadline)
				return false;
			pass_on(20ms);
		}
	}

	std::string name_;
	const file &console_;
	const file &signals_;
	pid_t child_ = -1;
	std::optional<int> status_;
};

class harness {
public:
	harness(options settings, std::vector<std::string> programs, std::vector<std::string> environment)
		: settings_(std::move(settings)), programs_(std::move(programs)), environment_(std::move(environment)) {}

	// The status to end the VM with.
	int run()
	{
		const int status = run_all();
		mark("verdict " + std::to_string(status));
		tcdrain(results_.get());
		return status;
	}

private:
	int run_all()
	{
		if (!settings_.raw) {
			const size_t module_steps = settings_.module.empty() ? 0 : 3;
			const size_t leak_steps = settings_.kmemleak ? 2 : 0;
			results_.write("KTAP version 1\n1.." +
				       std::to_string(programs_.size() + module_steps + leak_steps) + "\n");
		}
		std::this_thread::sleep_for(settings_.settle);
		load_kernel_modules();
		if (!settings_.module.empty() && !step("module loads", [this] { load_module(); })) {
			results_.write(settings_.raw ? "the module does not load\n" : "Bail out! The module does not load.\n");
			return 1;
		}
		if (settings_.raw)
			return run_raw();
		for (const auto &program : programs_) {
			if (!run_program(program)) {
				results_.write("Bail out! What " + program + " left behind cannot be killed.\n");
				return 1;
			}
		}
		// Now the report still knows the names of the module's functions.
		if (settings_.kmemleak)
			step("kmemleak finds nothing", [this] { find_leaks(); });
		if (!settings_.module.empty()) {
			step("module unloads", [this] { unload_module(); });
			step("module loads and unloads again", [this] {
				load_module();
				unload_module();
			});
		}
		if (settings_.kmemleak)
			step("kmemleak finds nothing of what is unloaded", [this] { find_leaks(); });
		return failures_ == 0 ? 0 : 1;
	}

	int run_raw()
	{
		program_run run(programs_.at(0), console_, signals_);
		switch (run.run(results_, true, settings_.limit, environment_)) {
		case program_run::end::exited:
			break;
		case program_run::end::timed_out:
			results_.write("\nstopped after " + std::to_string(settings_.limit.count()) + " s without an end\n");
			return 1;
		case program_run::end::unkillable:
			results_.write("\nhangs in the kernel\n");
			return 1;
		}
		const int status = WIFEXITED(run.status()) ? WEXITSTATUS(run.status()) : 1;
		if (WIFSIGNALED(run.status()))
			results_.write("\nended by signal " + std::to_string(WTERMSIG(run.status())) + "\n");
		return std::min(status, highest_status);
	}

	// False when the VM is no longer fit to go on.
	bool run_program(const std::string &name)
	{
		mark("run " + name);
		results_.write("# Subtest: " + name + "\n");
		// If it takes the kernel down, what came before is told.
		tcdrain(results_.get());
		const auto start = clock_type::now();
		const auto taint_before = taint();
		program_run run(name, console_, signals_);
		const auto end = run.run(results_, false, settings_.limit, environment_);
		results_.write("# took " + seconds_since(start) + " s\n");

		std::string why;
		bool skipped = false;
		if (end == program_run::end::unkillable)
			why = "hangs in the kernel and cannot be killed";
		else if (end == program_run::end::timed_out)
			why = "timed out after " + std::to_string(settings_.limit.count()) + " s";
		else if (WIFSIGNALED(run.status()))
			why = "signal=" + std::to_string(WTERMSIG(run.status()));
		else if (WEXITSTATUS(run.status()) == status_skip)
			skipped = true;
		else if (WEXITSTATUS(run.status()) != 0)
			why = "exit=" + std::to_string(WEXITSTATUS(run.status()));
		if (why.empty() && (taint() & ~taint_before & bad_taint))
			why = "tainted the kernel";
		report(why.empty(), name + (skipped ? " # SKIP" : why.empty() ? "" : " # " + why));
		mark("end " + name);
		return end != program_run::end::unkillable;
	}

	template <typename Action>
	bool step(const std::string &name, const Action &action)
	{
		mark("run " + name);
		const auto start = clock_type::now();
		std::string why;
		try {
			action();
		} catch (const std::exception &problem) {
			why = problem.what();
		}
		if (!settings_.raw) {
			results_.write("# took " + seconds_since(start) + " s\n");
			report(why.empty(), name + (why.empty() ? "" : " # " + why));
		}
		mark("end " + name);
		return why.empty();
	}

	void report(bool good, const std::string &text)
	{
		failures_ += good ? 0 : 1;
		results_.write((good ? "ok " : "not ok ") + std::to_string(++reported_) + " " + text + "\n");
	}

	static void insert(const fs::path &module, const std::string &arguments)
	{
		const auto image = file::open(module.c_str(), O_RDONLY);
		if (syscall(SYS_finit_module, image.get(), arguments.c_str(), 0) != 0)
			fail_errno("finit_module " + module.filename().string());
	}

	// What this kernel has as a module and the test programs want.
	static void load_kernel_modules()
	{
		const fs::path directory = "/vm/modules";
		if (!fs::exists(directory))
			return;
		for (const auto &module : fs::directory_iterator(directory))
			insert(module.path(), "");
	}

	void load_module()
	{
		insert("/vm/module.ko", settings_.module_arguments);
		if (!fs::exists(fs::path("/sys/module") / settings_.module))
			throw std::runtime_error("/sys/module/" + settings_.module + " did not appear");
		if (!fs::is_character_file(device()))
			throw std::runtime_error(device().string() + " did not appear");
	}

	void unload_module()
	{
		// What the last program held may be let go of a moment after it died.
		const auto deadline = clock_type::now() + unload_patience;
		while (syscall(SYS_delete_module, settings_.module.c_str(), O_NONBLOCK) != 0) {
			if ((errno != EWOULDBLOCK && errno != EBUSY) || clock_type::now() >= deadline)
				fail_errno("delete_module");
			std::this_thread::sleep_for(50ms);
		}
		if (read_text("/proc/modules").starts_with(settings_.module + " ") ||
		    read_text("/proc/modules").find("\n" + settings_.module + " ") != std::string::npos)
			throw std::runtime_error("still in /proc/modules");
		if (fs::exists(fs::path("/sys/module") / settings_.module))
			throw std::runtime_error("/sys/module/" + settings_.module + " stayed");
		if (fs::exists(device()))
			throw std::runtime_error(device().string() + " stayed");
	}

	// The first scan takes what changed since the last one for no leak.
	void find_leaks() const
	{
		const char *const path = "/sys/kernel/debug/kmemleak";
		std::this_thread::sleep_for(age_of_leaks);
		const auto control = file::open(path, O_WRONLY);
		control.write("scan");
		control.write("scan");
		const auto report = read_text(path);
		if (report.empty())
			return;
		console_.write(report);
		control.write("clear");
		throw std::runtime_error("it does; the console has what");
	}

	[[nodiscard]] fs::path device() const { return fs::path("/dev") / settings_.module; }

	options settings_;
	std::vector<std::string> programs_;
	std::vector<std::string> environment_;
	file results_ = open_results();
	file console_ = file::open("/dev/console", O_WRONLY | O_NOCTTY);
	file signals_ = child_signals();
	int reported_ = 0;
	int failures_ = 0;
};

} // namespace

int main()
{
	try {
		prepare_system();
		harness tests(options::read("/vm/options"), read_lines("/vm/programs"), read_lines("/vm/env"));
		end_vm(tests.run());
	} catch (const std::exception &problem) {
		std::fprintf(stderr, "cowsnap-vm: the VM could not be set up: %s\n", problem.what());
		return 1;
	}
}
