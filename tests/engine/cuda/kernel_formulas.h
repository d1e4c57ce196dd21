// What the tests of kernels share: formulas in double precision, and tests over both storage types.
#pragma once

#include <cmath>
#include <vector>

#include "tests/engine/cuda/gpu_fixture.h"

namespace photon::cuda {

template <typename T>
class Kernels : public OnGpu {};
using StorageTypes = testing::Types<float, __nv_bfloat16>;

using Doubles = std::vector<double>;

inline double InverseRms(const double* x, int n, double eps) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += x[i] * x[i];
  return 1 / std::sqrt(squares / n + eps);
}

template <typename T>
Doubles ToDoubles(const std::vector<T>& values) {
  Doubles doubles;
  for (T value : values) doubles.push_back(ToDouble(value));
  return doubles;
}

}  // namespace photon::cuda
