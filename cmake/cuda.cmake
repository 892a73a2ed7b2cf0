# SPDX-License-Identifier: Apache-2.0
# libsparsekern_cuda: the operators' CUDA kernels, a library of its own that Python loads only
# beside a CUDA build of torch. Needs nvcc to build; with SPARSEKERN_CUDA=ON no CUDA torch.

file(GLOB cuda_sources CONFIGURE_DEPENDS base/cuda/*.cu ops/*/cuda_*.cu bind/cuda_*.cc bind/cuda_*.cu)
set(build_cuda OFF)
if(SPARSEKERN_CUDA STREQUAL "AUTO")
  # Beside a CPU build of torch nothing would load it, and nvcc takes half of the build's time.
  set(torch_cuda
    "${torch_dir}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}torch_cuda${CMAKE_SHARED_LIBRARY_SUFFIX}")
  if(cuda_sources AND EXISTS "${torch_cuda}")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(build_cuda ON)
    endif()
  endif()
elseif(SPARSEKERN_CUDA)
  if(NOT cuda_sources)
    message(FATAL_ERROR "SPARSEKERN_CUDA=ON: csrc holds no cuda_* file")
  endif()
  set(build_cuda ON)
endif()
message(STATUS "CUDA operator library: ${build_cuda}")

if(build_cuda)
  # Ampere and everything after it by its PTX; Hopper's own instructions beside it.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "80;90a")
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)

  # A CPU-only torch has no libtorch_cuda.so to link. This stand-in of the same name gives the linker
  # the one function used of it; it is neither installed nor loaded.
  file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stand_in.cc" CONTENT
    "extern \"C\" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n")
  add_library(torch_cuda_stand_in SHARED "${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stand_in.cc")
  set_target_properties(torch_cuda_stand_in PROPERTIES OUTPUT_NAME torch_cuda
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/stand_in")

  add_library(sparsekern_cuda SHARED ${cuda_sources})
  sk_operator_library(sparsekern_cuda)
  target_compile_definitions(sparsekern_cuda PRIVATE USE_CUDA)
  # With code for plain sm_90 beside it, which has none of Hopper's kernels, that might be loaded.
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a" AND NOT CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90(-|;|$)")
    target_compile_definitions(sparsekern_cuda PRIVATE SPARSEKERN_SM90A)
  endif()
  target_link_libraries(sparsekern_cuda PRIVATE CUDA::cudart_static torch_cuda_stand_in)
  set_target_properties(sparsekern_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden)
endif()
