// What kernels share on the device: conversions, vectors of four, reductions.
#pragma once

#include "engine/cuda/kernels/layout.h"

namespace photon::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarp = 32;

__device__ inline float ToFloat(float value) {
  return value;
}
__device__ inline float ToFloat(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
__device__ inline T FromFloat(float value);
template <>
__device__ inline float FromFloat(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 FromFloat(float value) {
  return __float2bfloat16_rn(value);
}

// Four elements at an address that is a multiple of their size.
__device__ inline float4 Load4(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ inline float4 Load4(const __nv_bfloat16* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
          __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u)};
}
__device__ inline void Store4(float* to, float4 v) {
  *reinterpret_cast<float4*>(to) = v;
}
__device__ inline void Store4(__nv_bfloat16* to, float4 v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y),
                       high = __floats2bfloat162_rn(v.z, v.w);
  uint2 bits;
  bits.x = *reinterpret_cast<const unsigned*>(&low);
  bits.y = *reinterpret_cast<const unsigned*>(&high);
  *reinterpret_cast<uint2*>(to) = bits;
}

// Eight, likewise.
struct Float8 {
  float4 low, high;
};
__device__ inline Float8 Load8(const float* from) {
  return {Load4(from), Load4(from + 4)};
}
__device__ inline Float8 Load8(const __nv_bfloat16* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const auto low = [](unsigned two) { return __uint_as_float(two << 16); };
  const auto high = [](unsigned two) { return __uint_as_float(two & 0xffff0000u); };
  return {{low(bits.x), high(bits.x), low(bits.y), high(bits.y)},
          {low(bits.z), high(bits.z), low(bits.w), high(bits.w)}};
}
__device__ inline void Store8(float* to, const Float8& v) {
  Store4(to, v.low);
  Store4(to + 4, v.high);
}
__device__ inline void Store8(__nv_bfloat16* to, const Float8& v) {
  const auto pack = [](float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  };
  *reinterpret_cast<uint4*>(to) = {pack(v.low.x, v.low.y), pack(v.low.z, v.low.w),
                                   pack(v.high.x, v.high.y), pack(v.high.z, v.high.w)};
}

// Asks for a line of memory ahead of its use.
__device__ inline void Prefetch([[maybe_unused]] const void* address) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
#endif
}

// Asks for `count` parameters, which no kernel writes, with all threads of a block.
__device__ inline void PrefetchBlock(const float* parameters, int count) {
  constexpr int kLineFloats = 32;
  for (unsigned i = threadIdx.x * kLineFloats; i < static_cast<unsigned>(count);
       i += blockDim.x * kLineFloats) {
    Prefetch(parameters + i);
  }
}

// The shared memory that a kernel is launched with.
template <typename T>
__device__ T* DynamicShared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
#else  // tests run kernels on the CPU
  unsigned char* dynamic_shared = cuda_on_cpu::DynamicShared();
#endif
  return reinterpret_cast<T*>(dynamic_shared);
}

// silu(gate) * up, by the fast exponential and quotient: to a relative 1e-5. exp() overflows to
// infinity for gates below -88, and the quotient is then the zero it should be.
__device__ inline float GatedUp(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}
__device__ inline float4 GatedUp(float4 gate, float4 up) {
  return {GatedUp(gate.x, up.x), GatedUp(gate.y, up.y), GatedUp(gate.z, up.z),
          GatedUp(gate.w, up.w)};
}

// All values of the warp combined, in every lane.
template <typename T, typename Combine>
__device__ T WarpReduce(T value, Combine combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

template <typename T>
__device__ T WarpSum(T value) {
  return WarpReduce(value, [](T a, T b) { return a + b; });
}

// All values of the block combined, in every thread; 0 changes nothing. `partial` is shared memory
// of a float per warp; it may be used again after the next barrier.
template <typename Combine>
__device__ float BlockReduce(float value, float* partial, Combine combine) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int num_warps = (blockDim.x + kWarp - 1) / kWarp;
  value = WarpReduce(value, combine);
  if (lane == 0) partial[warp] = value;
  __syncthreads();  // every warp's share is there
  return WarpReduce(lane < num_warps ? partial[lane] : 0.0f, combine);
}

__device__ inline float BlockSum(float value, float* partial) {
  return BlockReduce(value, partial, [](float a, float b) { return a + b; });
}

// Of values that are not negative.
__device__ inline float BlockMax(float value, float* partial) {
  return BlockReduce(value, partial, [](float a, float b) { return fmaxf(a, b); });
}

// acc += A B on the tensor cores: A [16, 16] weights, B [16, 8], bf16, as PTX's m16n8k16 spreads
// them over a warp. a0, a2: the lane's first row of A; a1, a3: its second.
__device__ inline void MultiplyAdd(float (&acc)[4], unsigned a0, unsigned a1, unsigned a2,
                                   unsigned a3, unsigned b0, unsigned b1) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else  // tests run kernels on the CPU
  cuda_on_cpu::MultiplyAdd(acc, a0, a1, a2, a3, b0, b1);
#endif
}

// Waits until all work before this kernel on its stream has ended, and lets the next kernel's
// blocks take the places of this one's as they become free. Every kernel here calls it before it
// touches what other kernels write or read; what comes before it overlaps the end of the previous
// kernel ("programmatic dependent launch", compute capability 9.0; elsewhere kernels start one
// after the other).
__device__ inline void AwaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether it does, on the GPU that is in use.
inline bool LaunchesOverlap() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

// Launches a kernel that calls AwaitPrevious().
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchKernel(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                         size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = LaunchesOverlap() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

inline constexpr unsigned DivideUp(int64_t n, int64_t by) {
  return static_cast<unsigned>((n + by - 1) / by);
}

}  // namespace photon::cuda
