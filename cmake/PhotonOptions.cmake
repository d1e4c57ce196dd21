# What a build can be asked for. CMakePresets.json names the useful combinations.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, RelWithDebInfo or Debug" FORCE)
endif()

include(CTest)  # BUILD_TESTING

option(PHOTON_WERROR "Treat compiler warnings as errors" ON)
option(PHOTON_FUZZ "Build the libFuzzer targets (needs Clang)" OFF)

set(PHOTON_SANITIZER "" CACHE STRING "Empty, address (with undefined behaviour) or thread")
set_property(CACHE PHOTON_SANITIZER PROPERTY STRINGS "" address thread)
if(NOT PHOTON_SANITIZER MATCHES "^(|address|thread)$")
  message(FATAL_ERROR "PHOTON_SANITIZER is '${PHOTON_SANITIZER}': expected address, thread or nothing")
endif()
if(PHOTON_FUZZ AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "PHOTON_FUZZ needs Clang; the compiler is ${CMAKE_CXX_COMPILER_ID}")
endif()

include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  set(photon_cuda_default ON)
else()
  set(photon_cuda_default OFF)
endif()
option(PHOTON_CUDA "Compile for NVIDIA GPUs (needs the CUDA toolkit)" ${photon_cuda_default})
if(PHOTON_CUDA)
  # Ampere and Hopper, and for what comes after them code that the driver compiles.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
  endif()
  enable_language(CUDA)
  # CMake 3.25 does not know nvcc's C++20; CMAKE_CUDA_STANDARD stays unset for the same reason.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  find_package(CUDAToolkit REQUIRED)
endif()
