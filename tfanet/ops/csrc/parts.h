// Parts of a computation on several threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace tfanet {

// `run(part)` for every part from 0 to `parts` - 1, on `threads` threads. Returns 0, or 1 if memory ran
// out.
template <class Run>
int run_parts(int64_t parts, int64_t threads, const Run& run) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    try {
      for (int64_t part; (part = next++) < parts;) run(part);
    } catch (const std::exception&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min(threads, parts); ++i) others.emplace_back(work);
  } catch (const std::exception&) {
    // Fewer threads than asked for do the same work.
  }
  work();
  for (std::thread& other : others) other.join();
  return failed;
}

}  // namespace tfanet
