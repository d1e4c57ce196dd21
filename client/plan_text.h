// A plan for people, for programs, and for Kubernetes.
#pragma once

#include <optional>
#include <string>

#include "client/plan.h"

namespace photon {

// A line per fact, names aligned; then tokens per second, bounds and measurements apart.
std::string PlanText(const Plan& plan, const std::optional<Measurements>& measured);

// One JSON object, indented.
std::string PlanJson(const Plan& plan, const std::optional<Measurements>& measured);

struct KubernetesOptions {
  std::string command;  // that made the plan, for the comment at the top
  double cpus = 0;      // of the container
};

// A patch for the container `photon` of the Deployment `photon`: resources, and the settings of the
// server that they are for.
std::string PlanKubernetes(const Plan& plan, const KubernetesOptions& options);

}  // namespace photon
