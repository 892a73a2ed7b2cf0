# SPDX-License-Identifier: Apache-2.0
# Compiler options shared by every target of this project.

add_library(sparsekern_options INTERFACE)
target_compile_options(sparsekern_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion>)

if(SPARSEKERN_NATIVE)
  target_compile_options(sparsekern_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()

if(SPARSEKERN_SANITIZE)
  set(sanitize -fsanitize=${SPARSEKERN_SANITIZE} -fno-sanitize-recover=all
    -fno-omit-frame-pointer -g)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${sanitize}>")
  add_link_options(-fsanitize=${SPARSEKERN_SANITIZE})
endif()

if(CMAKE_SYSTEM_NAME STREQUAL "WASI")
  # WebAssembly has neither threads nor exceptions here; a failed allocation traps. size_t has 32
  # bits, so int64_t counts are narrowed all over; whoever allocates must check that bytes fit first.
  add_compile_options(-fno-exceptions)
  target_compile_options(sparsekern_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-shorten-64-to-32>)
endif()
