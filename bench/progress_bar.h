// One line on the standard error, rewritten while a load runs; nothing where that is no terminal.
#pragma once

#include <functional>
#include <string>

namespace photon {

// Called now and then with the share that is done, 0 to 1.
using OnProgress = std::function<void(double share)>;

// "throughput: 64 clients, round 2 of 5 [##########..........]  50 %"
void ShowProgress(const std::string& text, double share);
void ClearProgress();

}  // namespace photon
