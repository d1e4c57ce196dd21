#include "engine/cpu/recursive_decoder.h"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace photon {
namespace {

// A slot's token that no computation is spent on: it is given, and nobody asks for its logits.
bool IsForced(const DecodeRow& row, int slot) {
  return slot < static_cast<int>(row.forced.size()) && row.row->logits.empty();
}

}  // namespace

void DecodeRow::Begin(const Row& new_row, int new_index, int64_t new_first_token,
                      std::span<const TokenId> new_forced, const float* new_condition) {
  row = &new_row;
  index = new_index;
  first_token = new_first_token;
  forced = new_forced;
  condition = new_condition;
  num_reported = static_cast<int>(forced.size());
  ended = false;
  for (size_t slot = 0; slot < forced.size(); ++slot) tokens[slot].token = forced[slot];
}

template <typename T>
RecursiveDecoder<T>::RecursiveDecoder(CpuModel<T>& model, LatentPages<T>& pages,
                                      const BatchLimits& limits, const CpuContext<T>& context)
    : model_(model), pages_(pages), context_(context), sampling_(context.pool.num_threads()) {
  const ModelConfig& config = model.config();
  const int64_t max_rows = limits.max_rows;
  int64_t widest_state = 0, widest_condition = max_rows * config.levels.back().encoder.hidden_size;
  for (int i = 0; i < config.num_levels(); ++i) {
    const LevelConfig& level = config.levels[i];
    const int64_t lanes = max_rows * (config.meta_tokens() / config.tokens_per_unit(i));
    const int64_t units = max_rows * level.chunk_size * config.chunker_unit_width(i);
    Level& scratch = levels_.emplace_back();
    scratch.windows =
        KvWindows<T>(model.levels()[i].decoder, lanes, level.converter_width + level.chunk_size);
    scratch.predictions = AlignedBuffer<float>(lanes * decoder_width(i));
    scratch.units = AlignedBuffer<float>(units);
    if (!config.level_grows(i)) {
      scratch.blocks =
          KvWindows<T>(model.levels()[i].encoder, max_rows, config.levels[i + 1].chunk_size);
    }
    widest_state = std::max({widest_state, units, lanes * level.converter_width * decoder_width(i),
                             lanes * level.encoder.hidden_size});
    widest_condition = std::max(widest_condition, lanes * level.encoder.hidden_size);
  }
  gathered_ = AlignedBuffer<float>(widest_state);
  states_ = AlignedBuffer<float>(widest_state);
  conditions_ = AlignedBuffer<float>(widest_condition);
  next_conditions_ = AlignedBuffer<float>(widest_condition);
  embeddings_ = AlignedBuffer<float>(levels_[0].predictions.size());
  logits_ = AlignedBuffer<float>(int64_t{CpuModel<T>::kMaxLogitsRows} * config.vocab_size);
}

template <typename T>
void RecursiveDecoder<T>::DecodeExact(std::span<DecodeRow> rows, TokenSink& sink) {
  const int top = model_.config().num_levels() - 1, width = pages_.latent_width();
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy_n(rows[r].condition, width, conditions_.data() + r * width);
  }
  lanes_.resize(rows.size());
  std::iota(lanes_.begin(), lanes_.end(), 0);
  DecodeGroup(top, rows, lanes_, 0, conditions_.data(), sink);
  FoldTop(rows, lanes_);
}

template <typename T>
void RecursiveDecoder<T>::DecodeGroup(int i, std::span<DecodeRow> rows, std::vector<int>& alive,
                                      int slot, const float* conditions, TokenSink& sink) {
  const ModelConfig& config = model_.config();
  const int chunk_size = config.levels[i].chunk_size;
  const int unit_tokens = config.tokens_per_unit(i - 1);
  const int64_t unit_width = config.chunker_unit_width(i);
  Level& level = levels_[i];

  // Rows with a token to predict in this group; the others only need their children encoded.
  std::vector<int>& predicting = level.predicting;
  const auto select_predicting = [&] {
    predicting.clear();
    const int last_slot = slot + chunk_size * unit_tokens - 1;
    std::copy_if(alive.begin(), alive.end(), std::back_inserter(predicting),
                 [&](int r) { return !IsForced(rows[r], last_slot); });
  };
  select_predicting();
  if (!predicting.empty()) Prime(i, predicting, conditions);

  for (int j = 0; j < chunk_size && !alive.empty(); ++j) {
    const int unit_slot = slot + j * unit_tokens;
    if (i == 0) {
      slots_.clear();
      for (int r : alive) {
        if (!IsForced(rows[r], unit_slot)) slots_.push_back({r, &rows[r], unit_slot});
      }
      Sample(slots_);
      for (int r : alive) {
        Report(rows[r], unit_slot + 1, sink);
        model_.EmbedForEncoder(rows[r].tokens[unit_slot].token,
                               level.units.data() + (int64_t{r} * chunk_size + j) * unit_width);
      }
      sink.OnSlotEnd();
      std::erase_if(alive, [&](int r) { return rows[r].ended; });
    } else {
      DecodeGroup(i - 1, rows, alive, unit_slot, level.predictions.data(), sink);
      Fold(i - 1, rows, alive, unit_slot);
      for (size_t n = 0; n < alive.size(); ++n) {
        std::copy_n(states_.data() + n * unit_width, unit_width,
                    level.units.data() + (int64_t{alive[n]} * chunk_size + j) * unit_width);
      }
    }
    if (j + 1 == chunk_size) break;
    select_predicting();
    if (predicting.empty()) continue;
    if (i == 0) {
      const int width = decoder_width(0);
      for (int r : predicting) {
        model_.EmbedForDecoder(rows[r].tokens[unit_slot].token,
                               embeddings_.data() + int64_t{r} * width);
      }
      Advance(0, predicting, j, embeddings_.data(), width);
    } else {
      Advance(i, predicting, j, level.units.data() + j * unit_width, chunk_size * unit_width);
    }
  }
}

template <typename T>
void RecursiveDecoder<T>::DecodeParallel(std::span<DecodeRow> rows, TokenSink& sink) {
  const ModelConfig& config = model_.config();
  const int top = config.num_levels() - 1, num_rows = static_cast<int>(rows.size());
  const int width = pages_.latent_width();
  for (int r = 0; r < num_rows; ++r) {
    std::copy_n(rows[r].condition, width, conditions_.data() + int64_t{r} * width);
  }

  // Above the tokens: each level's predictions are its own content and the level below's
  // conditions.
  std::vector<int>& lanes = lanes_;
  lanes.resize(num_rows);
  std::iota(lanes.begin(), lanes.end(), 0);
  for (int i = top; i > 0; --i) {
    const int chunk_size = config.levels[i].chunk_size;
    const int64_t state = decoder_width(i);
    Prime(i, lanes, conditions_.data());
    for (int j = 0; j < chunk_size; ++j) {
      const float* predictions = levels_[i].predictions.data();
      for (int lane : lanes) {
        std::copy_n(predictions + lane * state, state,
                    next_conditions_.data() + (int64_t{lane} * chunk_size + j) * state);
      }
      if (j + 1 < chunk_size) Advance(i, lanes, j, predictions, state);
    }
    std::swap(conditions_, next_conditions_);
    if (i == top) {
      // The children that kRecGen advances on: [rows, C_L, D_{L-1}].
      std::copy_n(conditions_.data(), num_rows * chunk_size * state, levels_[top].units.data());
    }
    lanes.resize(lanes.size() * chunk_size);
    std::iota(lanes.begin(), lanes.end(), 0);
  }

  // The tokens: slot j of every level-1 group at once.
  const int chunk_size = config.levels[0].chunk_size, width0 = decoder_width(0);
  const int groups_per_row = config.meta_tokens() / chunk_size;
  Prime(0, lanes, conditions_.data());
  for (int j = 0; j < chunk_size && !lanes.empty(); ++j) {
    slots_.clear();
    for (int lane : lanes) {
      slots_.push_back(
          {lane, &rows[lane / groups_per_row], lane % groups_per_row * chunk_size + j});
    }
    Sample(slots_);
    // Text order: the first group's tokens as they come, the rest when the last slot is done.
    const int end = j + 1 < chunk_size ? j + 1 : config.meta_tokens();
    for (DecodeRow& row : rows) {
      if (!row.ended) Report(row, end, sink);
    }
    sink.OnSlotEnd();
    if (j + 1 == chunk_size) break;
    std::erase_if(lanes, [&](int lane) { return rows[lane / groups_per_row].ended; });
    for (int lane : lanes) {
      const int slot = lane % groups_per_row * chunk_size + j;
      model_.EmbedForDecoder(rows[lane / groups_per_row].tokens[slot].token,
                             embeddings_.data() + int64_t{lane} * width0);
    }
    Advance(0, lanes, j, embeddings_.data(), width0);
  }

  std::vector<int>& advancing = lanes_;
  advancing.clear();
  for (int r = 0; r < num_rows; ++r) {
    if (!rows[r].ended && rows[r].row->mode == GenerationMode::kRecGen) advancing.push_back(r);
  }
  FoldTop(rows, advancing);
}

template <typename T>
void RecursiveDecoder<T>::Prime(int i, std::span<const int> lanes, const float* conditions) {
  CpuLevel<T>& modules = model_.levels()[i];
  const int64_t condition_width = model_.config().levels[i].encoder.hidden_size;
  const int64_t width = decoder_width(i);
  const int num_vectors = modules.converter.num_vectors();
  for (size_t n = 0; n < lanes.size(); ++n) {
    std::copy_n(conditions + lanes[n] * condition_width, condition_width,
                gathered_.data() + n * condition_width);
  }
  modules.converter.Forward(gathered_.data(), static_cast<int>(lanes.size()), states_.data());
  stack_rows_.clear();
  for (int lane : lanes) {
    for (int v = 0; v < num_vectors; ++v) stack_rows_.push_back({levels_[i].windows[lane], v});
  }
  modules.decoder.Forward(stack_rows_, states_.data());
  for (size_t n = 0; n < lanes.size(); ++n) {
    std::copy_n(states_.data() + (n * num_vectors + num_vectors - 1) * width, width,
                levels_[i].predictions.data() + lanes[n] * width);
  }
}

template <typename T>
void RecursiveDecoder<T>::Advance(int i, std::span<const int> lanes, int j, const float* contents,
                                  int64_t stride) {
  CpuLevel<T>& modules = model_.levels()[i];
  const int64_t width = decoder_width(i);
  const int position = modules.converter.num_vectors() + j;
  stack_rows_.clear();
  for (size_t n = 0; n < lanes.size(); ++n) {
    std::copy_n(contents + lanes[n] * stride, width, states_.data() + n * width);
    stack_rows_.push_back({levels_[i].windows[lanes[n]], position});
  }
  modules.decoder.Forward(stack_rows_, states_.data());
  for (size_t n = 0; n < lanes.size(); ++n) {
    std::copy_n(states_.data() + n * width, width,
                levels_[i].predictions.data() + lanes[n] * width);
  }
}

template <typename T>
void RecursiveDecoder<T>::Fold(int i, std::span<DecodeRow> rows, std::span<const int> alive,
                               int slot) {
  if (alive.empty()) return;
  const ModelConfig& config = model_.config();
  CpuLevel<T>& modules = model_.levels()[i];
  const int tokens_per_unit = config.tokens_per_unit(i);
  const int64_t children = int64_t{config.levels[i].chunk_size} * config.chunker_unit_width(i);
  stack_rows_.clear();
  for (size_t n = 0; n < alive.size(); ++n) {
    const int r = alive[n];
    std::copy_n(levels_[i].units.data() + r * children, children, gathered_.data() + n * children);
    if (config.level_grows(i)) {
      const int64_t position = (rows[r].first_token + slot) / tokens_per_unit;
      stack_rows_.push_back({pages_.Kv(i, rows[r].row->pages.data()), static_cast<int>(position)});
    } else {
      const int position = slot / tokens_per_unit % config.levels[i + 1].chunk_size;
      stack_rows_.push_back({levels_[i].blocks[r], position});
    }
  }
  modules.chunker.Forward(gathered_.data(), static_cast<int>(alive.size()), states_.data());
  modules.encoder.Forward(stack_rows_, states_.data());
}

template <typename T>
void RecursiveDecoder<T>::FoldTop(std::span<DecodeRow> rows, std::span<const int> alive) {
  Fold(model_.config().num_levels() - 1, rows, alive, 0);
  const int width = pages_.latent_width();
  for (size_t n = 0; n < alive.size(); ++n) {
    const DecodeRow& row = rows[alive[n]];
    std::copy_n(states_.data() + n * width, width,
                pages_.Latent(row.row->pages.data(), row.first_token));
  }
}

template <typename T>
void RecursiveDecoder<T>::Sample(std::span<const SlotRef> slots) {
  const int64_t width = decoder_width(0), vocab = model_.config().vocab_size;
  constexpr size_t kBlock = CpuModel<T>::kMaxLogitsRows;
  for (size_t begin = 0; begin < slots.size(); begin += kBlock) {
    const auto block = slots.subspan(begin, std::min(kBlock, slots.size() - begin));
    for (size_t n = 0; n < block.size(); ++n) {
      std::copy_n(levels_[0].predictions.data() + block[n].lane * width, width,
                  gathered_.data() + n * width);
    }
    model_.Logits(gathered_.data(), static_cast<int>(block.size()), logits_.data());
    context_.pool.ParallelFor(
        static_cast<int64_t>(block.size()), 4, [&](int64_t first, int64_t last, int thread) {
          for (int64_t n = first; n < last; ++n) {
            const auto [lane, row, slot] = block[n];
            const std::span<const float> logits(logits_.data() + n * vocab, vocab);
            if (!row->row->logits.empty()) {
              std::copy(logits.begin(), logits.end(), row->row->logits.begin() + slot * vocab);
            }
            if (slot < static_cast<int>(row->forced.size())) continue;
            row->tokens[slot] = SampleToken(context_.kernels, logits, row->row->sampling,
                                            row->first_token + slot, sampling_[thread]);
          }
        });
  }
}

template <typename T>
void RecursiveDecoder<T>::Report(DecodeRow& row, int end, TokenSink& sink) {
  if (end <= row.num_reported) return;
  reported_.clear();
  for (int slot = row.num_reported; slot < end; ++slot) {
    const SampledLogits& sampled = row.tokens[slot];
    reported_.push_back({sampled.token, sampled.logprob, sampled.top});
  }
  row.num_reported = end;
  row.ended = !sink.OnTokens(row.index, reported_);
}

template class RecursiveDecoder<float>;
template class RecursiveDecoder<BFloat16>;

}  // namespace photon
