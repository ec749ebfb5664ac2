# SPDX-License-Identifier: MIT
# find_package(cowsnap): the headers, as the target cowsnap::cowsnap. They are found from where this file is.
if(NOT TARGET cowsnap::cowsnap)
  get_filename_component(_cowsnap_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  add_library(cowsnap::cowsnap INTERFACE IMPORTED)
  set_target_properties(cowsnap::cowsnap PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_cowsnap_prefix}/include"
    INTERFACE_COMPILE_FEATURES cxx_std_20)
  unset(_cowsnap_prefix)
endif()
