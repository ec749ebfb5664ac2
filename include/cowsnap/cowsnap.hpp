// SPDX-License-Identifier: MIT
/* Memory that can be forked: see cowsnap(3). */
#pragma once

#include <cowsnap/descriptor.hpp>
#include <cowsnap/device.hpp>
#include <cowsnap/diff.hpp>
#include <cowsnap/mapping.hpp>
#include <cowsnap/region.hpp>
