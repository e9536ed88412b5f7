// A time-major selective scan and its gradients: equations and shapes in
// tfanet/ops/recurrence.py.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "cross_selective_scan.h"
#include "instruction_sets.h"
#include "parts.h"

namespace tfanet {
namespace {

constexpr int LANES = 32;  // channels of a block
constexpr float kNothing[LANES] = {};

// [batch, L, M], channels innermost and contiguous; steps between sequences and between tokens in floats.
struct Rows {
  const float* data;
  int64_t sequence, row;
};

struct Scan {
  int64_t batch, length, channels, states;
  bool reverse;
  Rows raw, u, dout;
  const float* A;  // [M, N]
  const float* B;  // [batch, L, N]
  const float* C;  // [batch, L, N]
};

// Some channels of one sequence; pointers to their first values.
struct Block {
  int count;
  const float *raw, *u, *dout, *A, *B, *C;
};

struct Gradients {
  float* raw;  // [batch, L, M], like u
  float* u;
  float* A;  // [batch, M, N], one a sequence
  float* B;  // [batch, L, N], zero at first
  float* C;
};

// A token's values that the gradients of a block need.
struct Token {
  float u[LANES], dout[LANES], step[LANES], slope[LANES], decay[LANES], state[LANES], dstep[LANES], du[LANES];
};

void read_rates(const Scan& scan, const Block& block, float (*A)[LANES]) {
  for (int64_t n = 0; n < scan.states; ++n)
    for (int lane = 0; lane < LANES; ++lane)
      A[n][lane] = lane < block.count ? block.A[lane * scan.states + n] : 0;
}

#define PART "scan_part.inc"
#include "each_set.inc"

Block block_of(const Scan& scan, int64_t sequence, int64_t first) {
  const auto at = [&](const Rows& rows) {
    return rows.data ? rows.data + sequence * rows.sequence + first : nullptr;
  };
  const int64_t own = sequence * scan.length * scan.states;
  return {static_cast<int>(std::min<int64_t>(LANES, scan.channels - first)),
          at(scan.raw), at(scan.u), at(scan.dout), scan.A + first * scan.states, scan.B + own, scan.C + own};
}

}  // namespace
}  // namespace tfanet

// For PyTorch, by ctypes, on `threads` threads; steps as in `Rows`, and the caller checks the sizes. Both
// return 0, or 1 if memory runs out.

// Adds the sum over N of C h to `out`, whose steps are u's.
extern "C" __attribute__((visibility("default"))) int tfanet_scan(
    float* out, const float* raw, const float* u, const float* A, const float* B, const float* C,
    int64_t batch, int64_t length, int64_t channels, int64_t states, int64_t reverse, int64_t out_sequence,
    int64_t out_row, int64_t raw_sequence, int64_t raw_row, int64_t u_sequence, int64_t u_row,
    int64_t threads) {
  using namespace tfanet;
  const Scan scan{batch, length, channels, states, reverse != 0, {raw, raw_sequence, raw_row},
                  {u, u_sequence, u_row}, {}, A, B, C};
  const int64_t blocks = (channels + LANES - 1) / LANES;
  const auto run = FASTEST(scan_block);
  return run_parts(batch * blocks, threads, [&](int64_t part) {
    const int64_t sequence = part / blocks, first = part % blocks * LANES;
    run(scan, block_of(scan, sequence, first), out + sequence * out_sequence + first, out_row);
  });
}

extern "C" __attribute__((visibility("default"))) int tfanet_scan_gradients(
    const float* dout, const float* raw, const float* u, const float* A, const float* B, const float* C,
    float* draw, float* du, float* dA, float* dB, float* dC, int64_t batch, int64_t length, int64_t channels,
    int64_t states, int64_t reverse, int64_t dout_sequence, int64_t dout_row, int64_t raw_sequence,
    int64_t raw_row, int64_t u_sequence, int64_t u_row, int64_t threads) {
  using namespace tfanet;
  const Scan scan{batch, length, channels, states, reverse != 0, {raw, raw_sequence, raw_row},
                  {u, u_sequence, u_row}, {dout, dout_sequence, dout_row}, A, B, C};
  const auto run = FASTEST(gradient_block);
  // A part is a whole sequence: its blocks add to the same gradients of B and C.
  return run_parts(batch, threads, [&](int64_t sequence) {
    const std::unique_ptr<Token[]> tokens(new Token[length]);
    for (int64_t first = 0; first < channels; first += LANES) {
      const int64_t rows = sequence * length * channels + first, own = sequence * length * states;
      run(scan, block_of(scan, sequence, first),
          {draw + rows, du + rows, dA + (sequence * channels + first) * states, dB + own, dC + own},
          tokens.get());
    }
  });
}
