// Memory, streams, events and graphs: everything is done at once, on the thread that asks for it.
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "tests/cuda_on_cpu/block.h"

struct CudaGraphOnCpu {
  std::vector<std::function<void()>> operations;
};
struct CudaStreamOnCpu {
  CudaGraphOnCpu* recording = nullptr;
};
struct CudaEventOnCpu {};

namespace cuda_on_cpu {
namespace {

// Two small ones: of the newest kind that the kernels know, and of one before it.
constexpr int kDevices = 2;
constexpr size_t kDeviceBytes = size_t{1} << 30;

thread_local int device = 0;

// What each device has given out.
struct Memory {
  std::mutex mutex;
  std::map<void*, std::pair<int, size_t>> blocks;  // device, bytes
  size_t taken[kDevices] = {};
};

Memory& DeviceMemory() {
  static Memory memory;
  return memory;
}

}  // namespace

void Enqueue(cudaStream_t stream, std::function<void()> operation) {
  if (stream != nullptr && stream->recording != nullptr) {
    stream->recording->operations.push_back(std::move(operation));
  } else {
    operation();
  }
}

cudaError_t Launch(const cudaLaunchConfig_t& config, std::function<void()> thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const int threads = static_cast<int>(block.x);
  const bool fits = threads >= 1 && threads <= kMaxThreads && block.y == 1 && block.z == 1 &&
                    grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.y <= 65535 &&
                    grid.z <= 65535 && config.dynamicSmemBytes <= kMaxSharedBytes;
  if (!fits) return cudaErrorInvalidValue;
  Enqueue(config.stream, [grid, threads, bytes = config.dynamicSmemBytes,
                          thread = std::move(thread)] { RunGrid(grid, threads, bytes, thread); });
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::device;
using cuda_on_cpu::DeviceMemory;
using cuda_on_cpu::kDevices;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
  }
  return "unknown error";
}

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* current) {
  *current = device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int to) {
  if (to < 0 || to >= kDevices) return cudaErrorInvalidValue;
  device = to;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int of) {
  if (of < 0 || of >= kDevices) return cudaErrorInvalidValue;
  *properties = {.name = "CUDA on the CPU",
                 .major = of == 0 ? 9 : 8,
                 .minor = of == 0 ? 0 : 9,
                 .totalGlobalMem = cuda_on_cpu::kDeviceBytes};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int of) {
  *value = of == 0 ? 9 : 8;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  auto& memory = DeviceMemory();
  std::lock_guard lock(memory.mutex);
  if (bytes > cuda_on_cpu::kDeviceBytes - memory.taken[device]) return cudaErrorMemoryAllocation;
  // With what is beyond the end as near as a sanitizer can have it.
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xff, bytes);
  memory.blocks[*data] = {device, bytes};
  memory.taken[device] += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  auto& memory = DeviceMemory();
  std::lock_guard lock(memory.mutex);
  const auto block = memory.blocks.find(data);
  if (block == memory.blocks.end()) return cudaErrorInvalidValue;
  memory.taken[block->second.first] -= block->second.second;
  memory.blocks.erase(block);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  *data = std::malloc(bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  auto& memory = DeviceMemory();
  std::lock_guard lock(memory.mutex);
  *total = cuda_on_cpu::kDeviceBytes;
  *free = *total - memory.taken[device];
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  cuda_on_cpu::Enqueue(stream, [=] { cudaMemcpy(to, from, bytes, kind); });
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CudaStreamOnCpu;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CudaEventOnCpu;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->recording != nullptr) return cudaErrorInvalidValue;
  stream->recording = new CudaGraphOnCpu;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->recording == nullptr) return cudaErrorInvalidValue;
  *graph = std::exchange(stream->recording, nullptr);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream != nullptr && stream->recording != nullptr ? cudaStreamCaptureStatusActive
                                                              : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CudaGraphOnCpu(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& operation : exec->operations) operation();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
