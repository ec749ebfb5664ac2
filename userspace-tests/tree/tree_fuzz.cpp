// SPDX-License-Identifier: GPL-2.0-only
// The tree against its model, with what is done to it chosen by libFuzzer: its input decides where a test of random
// steps rolls dice, and the branches of tree.c that it reaches decide what it tries next.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>

#include "random_step.hpp"
#include "region_model.hpp"

namespace tree_test {
namespace {

/* Decides by the input, and when that is at its end for the first choice. */
class input {
public:
	explicit input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

	bool at_end() const { return bytes_.empty(); }

	/* One of 0 ... @bound - 1; takes no more bytes than @bound needs. */
	std::size_t below(std::size_t bound)
	{
		std::size_t value = 0;

		for (std::size_t left = bound - 1; left && !at_end(); left >>= 8) {
			value = value << 8 | bytes_.front();
			bytes_ = bytes_.subspan(1);
		}
		return value % bound;
	}
	std::size_t between(std::size_t first, std::size_t last)
	{
		return first + below(last - first + 1);
	}
	bool one_in(std::size_t n) { return below(n) == n - 1; }

private:
	std::span<const std::uint8_t> bytes_;
};

/* libFuzzer keeps the input with which it aborts. */
class aborter : public testing::EmptyTestEventListener {
	void OnTestPartResult(const testing::TestPartResult &part) override
	{
		if (part.failed())
			std::abort();
	}
};

void check(const regions &family)
{
	for (std::size_t i = 0; i < family.size(); ++i) {
		family[i]->check();
		family[i]->check_diff(*family[(i + 1) % family.size()]);
	}
	if (family.size() == 1)
		family.front()->check_shape();
}

void try_out(input choose)
{
	cowsnap_account account{};

	ASSERT_EQ(cowsnap_tree_module_init(), 0);
	shim_rcu_eager(choose.one_in(2));
	{
		const unsigned int bits = index_bits[choose.below(index_bits.size())];
		regions family;

		family.push_back(std::make_unique<region>(account));
		while (!choose.at_end()) {
			step(family, choose, bits);
			if (choose.one_in(64))
				check(family);
		}
		check(family);
	}
	EXPECT_EQ(cowsnap_tree_nodes(), 0U);
	EXPECT_EQ(atomic_long_read(&account.held), 0);
	EXPECT_EQ(shim_live_pages(), 0U);
	cowsnap_tree_module_exit();
	EXPECT_EQ(shim_live_objects(), 0U);
}

} // namespace
} // namespace tree_test

extern "C" int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	testing::InitGoogleTest(argc, *argv);
	testing::UnitTest::GetInstance()->listeners().Append(
		std::make_unique<tree_test::aborter>().release());
	return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size)
{
	tree_test::try_out(tree_test::input({data, size}));
	return 0;
}
