#include "cross_selective_scan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "instruction_sets.h"
#include "parts.h"

namespace tfanet {
namespace {

constexpr int LANES = 32;  // channels of a part
constexpr int TILE = 32;   // tokens of a tile
constexpr int ROWS = 4;    // tokens whose delta is computed at once, in registers
constexpr int LINE = 16;   // floats of a cache line

// One part's weights and tile for a direction, channels innermost; channels past the image's are zero.
struct Direction {
  const float* dt_weight;  // [R, LANES]
  float A[kMaxStates][LANES];
  float delta_bias[LANES];
};

struct Tile {
  float u[TILE][LANES];  // x, then delta x
  float step[TILE][LANES];
  float decay[TILE][LANES];
  float sum[TILE][LANES];  // y of the tile's tokens
};

#define PART "cross_selective_scan_part.inc"
#include "each_set.inc"

// The pixels of a map in a direction's order of time.
class Traversal {
 public:
  Traversal(const Sizes& sizes, bool by_columns, bool reversed)
      : length_(sizes.height * sizes.width),
        stride_(by_columns ? sizes.width : 1),
        run_(by_columns ? sizes.height : length_),
        reversed_(reversed) {}

  // Writes the next pixels, TILE at most; returns their number.
  int next(int64_t* pixels) {
    int count = 0;
    for (; count < TILE && time_ < length_; ++count, ++time_) {
      pixels[count] = reversed_ ? length_ - 1 - at_ : at_;
      at_ += stride_;
      if (++in_run_ == run_) {
        in_run_ = 0;
        at_ -= run_ * stride_ - 1;
      }
    }
    return count;
  }

 private:
  int64_t length_, stride_, run_;
  bool reversed_;
  int64_t time_ = 0, in_run_ = 0, at_ = 0;
};

void read_direction(const CrossScan& scan, int64_t own, int count, std::vector<float>& dt_weight,
                    Direction& into) {
  const auto [batch, height, width, channels, rank, states] = scan.sizes;
  dt_weight.assign(rank * LANES, 0.0f);
  std::memset(into.A, 0, sizeof(into.A));
  std::memset(into.delta_bias, 0, sizeof(into.delta_bias));
  into.dt_weight = dt_weight.data();
  for (int lane = 0; lane < count; ++lane) {
    into.delta_bias[lane] = scan.delta_bias[own + lane];
    for (int64_t r = 0; r < rank; ++r) dt_weight[r * LANES + lane] = scan.dt_weight[(own + lane) * rank + r];
    for (int64_t n = 0; n < states; ++n) into.A[n][lane] = scan.A[(own + lane) * states + n];
  }
}

}  // namespace

int64_t part_count(const Sizes& sizes) {
  return sizes.batch * ((sizes.channels + LANES - 1) / LANES);
}

void run_part(const CrossScan& scan, int64_t part) {
  static const auto run_tile = FASTEST(run_tile);
  const auto [batch, height, width, channels, rank, states] = scan.sizes;
  const int64_t length = height * width, blocks = (channels + LANES - 1) / LANES;
  const int64_t picture = part / blocks, first = part % blocks * LANES;
  const int count = static_cast<int>(std::min<int64_t>(LANES, channels - first));
  const int64_t own_size = rank + 2 * states, p_size = kDirections * own_size;
  const float* x = scan.x + picture * length * channels + first;
  float* y = scan.y + picture * length * channels + first;
  const size_t bytes = count * sizeof(float);

  float skip[LANES] = {};
  for (int k = 0; k < kDirections; ++k)
    for (int lane = 0; lane < count; ++lane) skip[lane] += scan.D[k * channels + first + lane];

  const auto tile = std::make_unique<Tile>();  // zeroed
  std::vector<float> dt_weight;
  Direction direction;
  for (int k = 0; k < kDirections; ++k) {
    read_direction(scan, k * channels + first, count, dt_weight, direction);
    const float* p = scan.p + picture * length * p_size + k * own_size;
    Traversal traversal(scan.sizes, k % 2 == 1, k >= 2);
    float state[kMaxStates][LANES] = {};
    int64_t pixels[2][TILE];
    const float* own[TILE];
    int now = 0;
    for (int tokens = traversal.next(pixels[now]), upcoming; tokens > 0; tokens = upcoming, now = 1 - now) {
      // A column's pixels are too far apart for the processor's prefetcher.
      upcoming = traversal.next(pixels[1 - now]);
      for (int i = 0; i < upcoming; ++i) {
        const int64_t pixel = pixels[1 - now][i];
        for (int lane = 0; lane < LANES; lane += LINE) {
          __builtin_prefetch(x + pixel * channels + lane);
          __builtin_prefetch(y + pixel * channels + lane, 1);
        }
        __builtin_prefetch(p + pixel * p_size);
      }
      for (int i = 0; i < tokens; ++i) {
        own[i] = p + pixels[now][i] * p_size;
        std::memcpy(tile->u[i], x + pixels[now][i] * channels, bytes);
        if (k > 0) std::memcpy(tile->sum[i], y + pixels[now][i] * channels, bytes);
      }
      if (k == 0)
        for (int i = 0; i < tokens; ++i)
          for (int lane = 0; lane < LANES; ++lane) tile->sum[i][lane] = skip[lane] * tile->u[i][lane];
      run_tile(direction, own, tokens, rank, states, *tile, state);
      for (int i = 0; i < tokens; ++i)
        std::memcpy(y + pixels[now][i] * channels, tile->sum[i], bytes);
    }
  }
}

}  // namespace tfanet

// For PyTorch, by ctypes: the whole scan on `threads` threads. The caller checks the sizes. Returns 0, or 1
// if memory runs out.
extern "C" __attribute__((visibility("default"))) int tfanet_cross_selective_scan(
    const float* x, const float* p, const float* dt_weight, const float* A, const float* D,
    const float* delta_bias, float* y, int64_t batch, int64_t height, int64_t width, int64_t channels,
    int64_t rank, int64_t states, int64_t threads) {
  const tfanet::CrossScan scan{{batch, height, width, channels, rank, states}, x, p, dt_weight, A, D,
                               delta_bias, y};
  return tfanet::run_parts(tfanet::part_count(scan.sizes), threads,
                           [&](int64_t part) { tfanet::run_part(scan, part); });
}
