#include "client/plan_text.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace photon {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// "1,234,567".
std::string Grouped(int64_t number) {
  std::string digits = absl::StrCat(number);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(i, ",");
  return digits;
}

std::string Size(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / static_cast<double>(kMiB);
  if (mib < 1) return absl::StrFormat("%.1f KiB", mib * 1024);
  return mib < 1024 ? absl::StrFormat("%.1f MiB", mib) : absl::StrFormat("%.1f GiB", mib / 1024);
}

std::string MemoryLine(const Plan& plan) {
  return absl::StrCat(Size(plan.memory_bytes), plan.machine.is_gpu ? " of the card" : " in all",
                      ": weights ", Size(plan.weight_bytes),
                      plan.machine.is_gpu ? "" : " mapped and again packed", ", working memory ",
                      Size(plan.working_bytes), ", cache ", Size(plan.pool_bytes));
}

std::string RatesText(const Plan& plan) {
  std::string text = absl::StrFormat(
      "\nAt most, by arithmetic alone: %.4g TFLOP/s, %.4g TB/s, context %s\n",
      plan.machine.flops * 1e-12, plan.machine.bytes_per_second * 1e-12, Grouped(plan.context));
  absl::StrAppendFormat(&text, "  %-8s %6s %14s  %s\n", "", "rows", "tokens/s", "bound by");
  for (const Rate& rate : plan.rates) {
    absl::StrAppendFormat(&text, "  %-8s %6d %14s  %s\n", rate.phase, rate.rows,
                          Grouped(std::llround(rate.tokens_per_second)),
                          rate.is_bound_by_reads ? "memory" : "products");
  }
  return text;
}

std::string MeasuredText(const Measurements& measured) {
  std::string text = absl::StrCat("\nMeasured on ", measured.device, ", context ",
                                  Grouped(measured.context), "\n");
  absl::StrAppendFormat(&text, "  %-8s %6s %14s  %s\n", "", "rows", "tokens/s", "of the bound");
  for (const Measurement& m : measured.rows) {
    absl::StrAppendFormat(&text, "  %-8s %6d %14s", m.phase, m.rows,
                          Grouped(std::llround(m.tokens_per_second)));
    if (m.share_of_bound > 0) absl::StrAppendFormat(&text, "  %.0f %%", m.share_of_bound * 100);
    text += "\n";
  }
  return text;
}

}  // namespace

std::string PlanText(const Plan& plan, const std::optional<Measurements>& measured) {
  const std::vector<std::pair<const char*, std::string>> facts = {
      {"machine", plan.machine.name},
      {"parameters", Grouped(plan.parameters)},
      {"weights", absl::StrCat(Grouped(plan.weight_bytes), " bytes")},
      {"cache", absl::StrCat(plan.kv_bytes_per_token, " bytes a token; ", Grouped(plan.page_bytes),
                             " a page of ", plan.page_tokens, " tokens")},
      {"sequence", absl::StrCat(Grouped(plan.bytes_per_sequence), " bytes at ",
                                Grouped(plan.context), " tokens: ", plan.pages_per_sequence,
                                plan.pages_per_sequence == 1 ? " page" : " pages")},
      {"memory", MemoryLine(plan)},
      {"host", absl::StrCat(Size(plan.host_bytes), " of the process")},
      {"fits", absl::StrCat(Grouped(plan.num_pages), " pages, ", Grouped(plan.sequences),
                            " sequences that share nothing; max-rows lets ", Grouped(plan.max_rows),
                            " run at a time")},
  };
  std::string text;
  for (const auto& [name, value] : facts) absl::StrAppendFormat(&text, "%-12s %s\n", name, value);
  if (plan.rates.empty()) {
    text += "tokens/s     not told: needs --card, or --bandwidth and --flops\n";
  } else {
    text += RatesText(plan);
  }
  if (measured) text += MeasuredText(*measured);
  return text;
}

std::string PlanJson(const Plan& plan, const std::optional<Measurements>& measured) {
  nlohmann::ordered_json json = {
      {"machine", plan.machine.name},
      {"parameters", plan.parameters},
      {"weight_bytes", plan.weight_bytes},
      {"kv_bytes_per_token", plan.kv_bytes_per_token},
      {"page_tokens", plan.page_tokens},
      {"page_bytes", plan.page_bytes},
      {"context", plan.context},
      {"pages_per_sequence", plan.pages_per_sequence},
      {"bytes_per_sequence", plan.bytes_per_sequence},
      {"working_bytes", plan.working_bytes},
      {"pool_bytes", plan.pool_bytes},
      {"memory_bytes", plan.memory_bytes},
      {"host_bytes", plan.host_bytes},
      {"num_pages", plan.num_pages},
      {"sequences", plan.sequences},
      {"max_rows", plan.max_rows},
      {"bounds", nlohmann::ordered_json::array()},
  };
  for (const Rate& rate : plan.rates) {
    json["bounds"].push_back({{"phase", rate.phase},
                              {"rows", rate.rows},
                              {"tokens_per_second", rate.tokens_per_second},
                              {"bound_by", rate.is_bound_by_reads ? "memory" : "products"}});
  }
  if (measured) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const Measurement& m : measured->rows) {
      rows.push_back({{"phase", m.phase},
                      {"rows", m.rows},
                      {"tokens_per_second", m.tokens_per_second},
                      {"share_of_bound", m.share_of_bound}});
    }
    json["measured"] = {
        {"device", measured->device}, {"context", measured->context}, {"rows", std::move(rows)}};
  }
  return json.dump(2) + "\n";
}

std::string PlanKubernetes(const Plan& plan, const KubernetesOptions& options) {
  const std::string cpus = absl::StrCat(std::llround(options.cpus * 1000), "m");
  const std::string memory = absl::StrCat((plan.host_bytes + kMiB - 1) / kMiB, "Mi");
  const bool is_gpu = plan.machine.is_gpu;
  std::string text = absl::StrCat("# Written by: ", options.command, "\n");
  absl::StrAppend(&text, "# ", Grouped(plan.sequences), " sequences of ", Grouped(plan.context),
                  " tokens fit that share nothing.\n");
  absl::StrAppend(&text,
                  "apiVersion: apps/v1\n"
                  "kind: Deployment\n"
                  "metadata:\n"
                  "  name: photon\n"
                  "spec:\n"
                  "  template:\n"
                  "    spec:\n"
                  "      containers:\n"
                  "        - name: photon\n"
                  "          env:\n");
  const auto add = [&text](const char* name, const std::string& value) {
    absl::StrAppend(&text, "            - name: ", name, "\n              value: \"", value,
                    "\"\n");
  };
  add("PHOTON_KV_MEMORY", plan.kv_memory);
  add("PHOTON_MAX_ROWS", absl::StrCat(plan.max_rows));
  add("PHOTON_PAGE_TOKENS", absl::StrCat(plan.page_tokens));
  if (!is_gpu) add("PHOTON_THREADS", absl::StrCat(std::max(1LL, std::llround(options.cpus))));
  // Memory is limited to what is asked for, so that a node never has to take it back. Processor
  // time is not: a limit would only stop threads in the middle of a step.
  absl::StrAppend(&text,
                  "          resources:\n"
                  "            requests:\n"
                  "              cpu: ",
                  cpus, "\n              memory: ", memory,
                  "\n"
                  "            limits:\n"
                  "              memory: ",
                  memory, "\n");
  if (is_gpu) absl::StrAppend(&text, "              nvidia.com/gpu: \"1\"\n");
  return text;
}

}  // namespace photon
