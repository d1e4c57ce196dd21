# Language, warnings, sanitizers, and the tools that make builds quick (ccache, mold) where they are
# installed. No -march here: engine/cpu compiles each kernel for its own instruction set.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wall> $<$<COMPILE_LANGUAGE:CXX>:-Wextra>)
# Designated initialisers leave out members on purpose: their defaults are in the struct.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # False alarms on "text" + std::to_string(n): https://gcc.gnu.org/PR105651
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
if(PHOTON_WERROR)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

if(PHOTON_CUDA)
  # Kernels share constexpr functions with the host.
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr>")
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>")
  if(PHOTON_WERROR)
    add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings>")
  endif()
endif()
# The CUDA engine is a module, and so is what stands in for it in tests; the libraries in them are
# linked into programs too.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(PHOTON_SANITIZER STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all)
elseif(PHOTON_SANITIZER STREQUAL "thread")
  set(sanitize -fsanitize=thread)
else()
  set(sanitize)
endif()
add_compile_options(${sanitize} "$<$<BOOL:${PHOTON_SANITIZER}>:-fno-omit-frame-pointer>")
add_link_options(${sanitize})
if(PHOTON_FUZZ)
  # Instruments every library for coverage; only fuzz targets link libFuzzer itself.
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

find_program(PHOTON_CCACHE ccache)
if(PHOTON_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER "${PHOTON_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${PHOTON_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${PHOTON_CCACHE}")
endif()
find_program(PHOTON_MOLD mold)
if(PHOTON_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
