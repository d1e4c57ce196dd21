#include "bench/cpu_ceilings.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "engine/cpu/aligned_buffer.h"
#include "engine/cpu/thread_pool.h"

namespace photon {
namespace {

double Seconds(auto&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

typedef uint64_t Words __attribute__((vector_size(64)));

uint64_t XorAll(const uint64_t* data, int64_t count) {
  Words a = {}, b = {}, c = {}, d = {};
  for (int64_t i = 0; i + 32 <= count; i += 32) {
    Words v[4];
    __builtin_memcpy(v, data + i, sizeof(v));
    a ^= v[0], b ^= v[1], c ^= v[2], d ^= v[3];
  }
  a ^= b ^ c ^ d;
  return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

template <typename T>
double Throughput(int threads, Isa isa) {
  constexpr int kRows = 96,
                kWidth = 512;  // a 64-column panel and its rows fit the second-level cache
  constexpr int kRepeats = 400;
  const Kernels<T>& kernels = KernelsFor<T>(isa);
  ThreadPool pool(threads);
  std::vector<AlignedBuffer<T>> a, w;
  std::vector<AlignedBuffer<float>> y;
  for (int t = 0; t < threads; ++t) {
    a.emplace_back(kRows * kWidth);
    w.emplace_back(kWidth * kPanelColumns);
    y.emplace_back(kRows * kPanelColumns);
  }
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    const double seconds = Seconds([&] {
      pool.ParallelFor(threads, 1, [&](int64_t, int64_t, int thread) {
        for (int i = 0; i < kRepeats; ++i) {
          kernels.gemm(a[thread].data(), kWidth, kRows, w[thread].data(), kWidth, kPanelColumns, 0,
                       1, nullptr, false, y[thread].data(), kPanelColumns);
        }
      });
    });
    best = std::max(best, 2.0 * threads * kRepeats * kRows * kWidth * kPanelColumns / seconds);
  }
  return best;
}

}  // namespace

double ReadBandwidth(int threads) {
  constexpr int64_t kWords = int64_t{64} << 20;  // 512 MiB
  AlignedBuffer<uint64_t> data(kWords);
  for (int64_t i = 0; i < kWords; ++i) data[i] = i;
  ThreadPool pool(threads);
  std::vector<uint64_t> sums(threads);
  double best = 0;
  for (int pass = 0; pass < 25; ++pass) {
    const double seconds = Seconds([&] {
      pool.ParallelFor(kWords / 32, 1, [&](int64_t begin, int64_t end, int thread) {
        sums[thread] ^= XorAll(data.data() + begin * 32, (end - begin) * 32);
      });
    });
    best = std::max(best, kWords * sizeof(uint64_t) / seconds);
  }
  // The sums are used, so that the reads are made.
  uint64_t all = 0;
  for (uint64_t sum : sums) all ^= sum;
  return all == 1 ? 0 : best;
}

double ProductThroughput(int threads, Isa isa, bool bf16) {
  return bf16 ? Throughput<BFloat16>(threads, isa) : Throughput<float>(threads, isa);
}

}  // namespace photon
