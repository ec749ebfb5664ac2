// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loading and unloading.  COWSNAP_KO names the module's file unless it is where
 * the kernel's modules are, or where vm/run-vm puts it; without one there is
 * nothing to load again.
 */
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

constexpr const char *parameter = "/sys/module/cowsnap/parameters/max_bytes";

std::optional<std::string> find_module()
{
	utsname names = {};

	if (const char *const named = std::getenv("COWSNAP_KO"))
		return named;
	check(::uname(&names), "uname");

	const std::string modules = std::string("/lib/modules/") + names.release;

	for (const std::string &path :
	     {modules + "/updates/dkms/cowsnap.ko", modules + "/updates/cowsnap.ko",
	      modules + "/extra/cowsnap.ko", std::string("/vm/module.ko")})
		if (std::filesystem::exists(path))
			return path;
	return std::nullopt;
}

/* errno of delete_module(2), 0 when the module is gone. */
int unload()
{
	return ::syscall(SYS_delete_module, "cowsnap", O_NONBLOCK) ? errno : 0;
}

class module_life : public testing::Test {
protected:
	void SetUp() override
	{
		const std::optional<std::string> path = find_module();

		if (!path)
			GTEST_SKIP() << "COWSNAP_KO does not say where cowsnap.ko is";
		file = unique_fd(check(::open(path->c_str(), O_RDONLY | O_CLOEXEC),
				       "open " + *path));
		std::ifstream(parameter) >> max_bytes;
		if (counters(device()).regions)
			GTEST_SKIP() << "somebody uses regions, so that the module "
					"cannot be unloaded";
	}

	void TearDown() override
	{
		if (!file)
			return;
		if (!loaded())
			load();
		EXPECT_EQ(counters(device()).regions, 0u);
		for (const std::string &line : log.lines_with(
			     {"BUG", "WARNING:", "Oops", "INFO: task"}))
			ADD_FAILURE() << "the kernel said: " << line;
	}

	static bool loaded() { return std::filesystem::exists(parameter); }

	void load() const
	{
		const std::string arguments =
			max_bytes.empty() ? "" : "max_bytes=" + max_bytes;

		check(::syscall(SYS_finit_module, file.get(), arguments.c_str(), 0),
		      "finit_module");
	}

	/* The node may be made a moment later, where udev makes it. */
	static device appeared()
	{
		eventually([] { return std::filesystem::exists(device_path); });
		return {};
	}

	/* Expects that the module cannot go now. */
	static void expect_busy()
	{
		const int error = unload();

		EXPECT_TRUE(error == EWOULDBLOCK || error == EBUSY) << error;
		EXPECT_TRUE(loaded());
	}

	/* A descriptor that is being closed may hold it a moment longer. */
	static void unload_for_good()
	{
		int error = 0;

		eventually([&] { return (error = unload()) == 0; });
		ASSERT_EQ(error, 0) << "the module cannot be unloaded";
		EXPECT_FALSE(loaded());
		eventually([] { return !std::filesystem::exists(device_path); });
		EXPECT_FALSE(std::filesystem::exists(device_path));
	}

	kernel_log log;
	unique_fd file;
	std::string max_bytes;
};

TEST_F(module_life, is_not_over_while_something_is_in_use)
{
	{
		const device dev = appeared();

		expect_busy();
	}
	{
		const region alone = device().create_pages(4);

		expect_busy();
		alone.fill_page(0, 1);

		/* Neither is it while only a fork, or only a mapping, is left. */
		region child = alone.snapshot();
		mapping map = alone.map();
		region gone = region(unique_fd(check(::dup(alone.fd()), "dup")));

		gone.close();
		expect_busy();
		EXPECT_TRUE(is_all(child.read_page(0), 1));
		EXPECT_TRUE(is_all(map.page(0), 1));
	}
	{
		mapping map = device().create_pages(4).map();

		expect_busy();
		fill(map.bytes(), 1);
		EXPECT_TRUE(is_all(map.bytes(), 1));
		expect_busy();
		map.shrink(page_size);
		expect_busy();
	}
	{
		const mapping map = [] {
			const region parent = device().create_pages(4);

			parent.fill_page(2, 3);
			return parent.snapshot().map(PROT_READ, MAP_PRIVATE);
		}();

		expect_busy();
		EXPECT_TRUE(is_all(map.page(2), 3));
	}
	{
		const socket_pair sockets;

		send_fd(sockets.ours.get(), device().create_pages(1).fd());
		expect_busy();
	}
	unload_for_good();
	load();
	EXPECT_EQ(appeared().query().abi_version, 1u);
}

/* A kernel setting that is another while it lives. */
class kernel_setting {
public:
	kernel_setting(const char *path, const char *value) : path_(path)
	{
		std::ifstream(path_) >> before_;
		std::ofstream(path_) << value;
	}
	~kernel_setting() { std::ofstream(path_) << before_; }
	kernel_setting(const kernel_setting &) = delete;
	kernel_setting &operator=(const kernel_setting &) = delete;

private:
	const char *path_;
	std::string before_;
};

/* Shortens what the kernel waits for when a module goes. */
struct hurry {
	kernel_setting expedited{"/sys/kernel/rcu_expedited", "1"};
	kernel_setting first{"/sys/module/rcutree/parameters/jiffies_till_first_fqs",
			     "0"};
	kernel_setting next{"/sys/module/rcutree/parameters/jiffies_till_next_fqs",
			    "1"};
};

TEST_F(module_life, begins_and_ends_many_times)
{
	const std::size_t rounds = scaled(100);
	std::optional<hurry> hurried;
	std::uint64_t available = 0;

	unload_for_good();
	for (std::size_t round = 0; round < rounds; round++) {
		if (round == 10)
			available = available_memory();
		if (round == 20)
			hurried.emplace();
		load();

		region parent = appeared().create_pages(20);
		mapping map = parent.map();

		fill(map.page(3), 1);

		region child = parent.fork();
		region snapshot = child.snapshot();

		fill(map.page(3), 2);
		child.fill_page(19, 3);
		ASSERT_TRUE(is_all(snapshot.map(PROT_READ).page(3), 1));
		ASSERT_EQ(parent.stat().id, 1u);
		if (round % 50 == 0)
			expect_busy();

		/* All that is left of them goes now. */
		map.reset();
		parent.close();
		child.close();
		snapshot.close();

		int error = 0;

		eventually([&] { return (error = unload()) == 0; });
		ASSERT_EQ(error, 0) << round;
	}
	if (rounds > 10)
		expect_memory_back(available, 8 << 20);
	load();
}

/* Somebody opens the device at any moment; nobody gets half of a module. */
TEST_F(module_life, is_not_disturbed_by_who_comes_meanwhile)
{
	const deadline end = scaled_deadline(std::chrono::seconds(4));
	const shared<std::atomic<bool>> stop;
	const shared<std::atomic<std::uint64_t>> used;
	std::uint64_t unloaded = 0, refused = 0;

	(void)seed();
	child visitor([&] {
		chance random(1);

		while (!*stop) {
			try {
				const device dev;
				const region parent = dev.create_pages(4);
				const mapping map = parent.map();

				map.store(1, 5);
				require(parent.snapshot().map(PROT_READ).load(1) == 5,
					"the snapshot is wrong");
				(*used)++;
			} catch (const std::system_error &error) {
				const int code = error.code().value();

				/* There is no such device at the moment. */
				if (code != ENOENT && code != ENODEV && code != ENXIO)
					throw;
			}
			std::this_thread::sleep_for(
				std::chrono::microseconds(random.below(2000)));
		}
	});

	while (!passed(end, [&] { return unloaded && *used; })) {
		const int error = unload();

		if (error) {
			ASSERT_TRUE(error == EWOULDBLOCK || error == EBUSY) << error;
			refused++;
			std::this_thread::sleep_for(std::chrono::microseconds(50));
		} else {
			unloaded++;
			load();
		}
	}
	*stop = true;
	EXPECT_TRUE(visitor.succeeded());
	EXPECT_GT(unloaded, 0u);
	EXPECT_GT(*used, 0u);
	std::printf("# unloaded %llu times, refused %llu times, used %llu times\n",
		    static_cast<unsigned long long>(unloaded),
		    static_cast<unsigned long long>(refused),
		    static_cast<unsigned long long>(*used));
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
