# SPDX-License-Identifier: GPL-2.0-only
#
# How the programs are built that demos run in VMs: those of all sources of a
# folder, into OUTPUT. Who includes it sets name, and LDLIBS.

OUTPUT ?= $(CURDIR)

CXXFLAGS ?= -O2
override CXXFLAGS += -std=c++20 -Wall -Wextra -Wconversion
override CPPFLAGS += -I.. -I../../uapi -MMD -MP
# Static: they also run where there is nothing but a kernel.
override LDFLAGS += -static

program := $(OUTPUT)/$(name)
objects := $(patsubst %.cpp,$(OUTPUT)/%.o,$(wildcard *.cpp))

$(program): $(objects)
	$(CXX) $(CXXFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(OUTPUT)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c $< -o $@

clean:
	$(RM) $(program) $(objects) $(objects:.o=.d)

.PHONY: clean

-include $(objects:.o=.d)
