// The 2-D selective scan on a CPU; equation and table of shapes in tfanet/ops/cross_selective_scan.py.

#pragma once

#include <cstdint>

namespace tfanet {

constexpr int kDirections = 4;
constexpr int kMaxStates = 16;

// Sizes by the names of the table of shapes.
struct Sizes {
  int64_t batch, height, width, channels, rank, states;
};

// FP32 tensors, contiguous.
struct CrossScan {
  Sizes sizes;
  const float* x;           // [batch, H, W, D]
  const float* p;           // [batch, H, W, 4 (R + 2N)]
  const float* dt_weight;   // [4D, R]
  const float* A;           // [4D, N]
  const float* D;           // [4D]
  const float* delta_bias;  // [4D]
  float* y;                 // [batch, H, W, D]
};

// The scan is split into parts that may run in parallel: some channels of one image each.
int64_t part_count(const Sizes& sizes);
void run_part(const CrossScan& scan, int64_t part);

}  // namespace tfanet
