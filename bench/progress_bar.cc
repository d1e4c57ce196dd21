#include "bench/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace photon {
namespace {

constexpr int kWidth = 20;

}  // namespace

void ShowProgress(const std::string& text, double share) {
  if (isatty(STDERR_FILENO) == 0) return;
  const int done = static_cast<int>(std::clamp(share, 0.0, 1.0) * kWidth);
  std::string bar(kWidth, '.');
  std::fill_n(bar.begin(), done, '#');
  std::fprintf(stderr, "\r\033[K%s [%s] %3.0f %%", text.c_str(), bar.c_str(), 100 * share);
  std::fflush(stderr);
}

void ClearProgress() {
  if (isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
}

}  // namespace photon
