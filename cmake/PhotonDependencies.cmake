# Packages of Debian 12 and Ubuntu 24.04; scripts/install_deps installs them.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(Protobuf REQUIRED)  # module mode: these packages carry no CMake config
find_package(nlohmann_json CONFIG REQUIRED)

find_package(gRPC CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)

if(BUILD_TESTING)
  find_package(GTest CONFIG REQUIRED)
endif()
