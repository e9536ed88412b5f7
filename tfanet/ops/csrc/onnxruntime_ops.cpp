// `tfanet::CrossSelectiveScan` for ONNX Runtime on a CPU. A session whose options have this library
// registered runs the kernel instead of the function body in the file.

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cross_selective_scan.h"
#include "onnxruntime_abi.h"

namespace tfanet {
namespace {

constexpr size_t INPUTS = 6;
constexpr std::array<const char*, INPUTS> NAMES = {"x", "p", "dt_weight", "A", "D", "delta_bias"};
constexpr std::array<size_t, INPUTS> RANKS = {4, 4, 2, 2, 1, 1};

// A status of ONNX Runtime, to be returned to it.
struct Failure {
  ort::Status* status;
};

void require(ort::Status* status) {
  if (status != nullptr) throw Failure{status};
}

[[noreturn]] void refuse(const ort::Api& api, const std::string& message) {
  throw Failure{api.create_status(ort::INVALID_ARGUMENT, ("CrossSelectiveScan: " + message).c_str())};
}

float widened(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, rest = half & 0x7fffu;
  uint32_t bits;
  if (rest >= 0x7c00) {
    bits = 0x7f800000u | (rest & 0x3ffu) << 13;  // infinite or NaN
  } else if (rest >= 0x400) {
    bits = (rest << 13) + 0x38000000u;
  } else {
    const float value = static_cast<float>(rest) * 0x1p-24f;  // below the normal numbers
    std::memcpy(&bits, &value, sizeof(bits));
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// A contiguous input as FP32: its own memory, or a copy of FP16.
class Input {
 public:
  Input(const ort::Api& api, const ort::KernelContext* context, size_t index) {
    const ort::Value* tensor = nullptr;
    require(api.input(context, index, &tensor));
    ort::TensorInfo* found = nullptr;
    require(api.info(tensor, &found));
    const auto release = [&api](ort::TensorInfo* info) { api.release(info); };
    const std::unique_ptr<ort::TensorInfo, decltype(release)> info(found, release);
    size_t rank = 0;
    require(api.rank(info.get(), &rank));
    if (rank != RANKS[index])
      refuse(api, std::string(NAMES[index]) + " has " + std::to_string(rank) + " axes, not " +
                      std::to_string(RANKS[index]));
    shape.resize(rank);
    require(api.shape(info.get(), shape.data(), rank));
    ort::ElementType type = ort::UNDEFINED;
    require(api.element_type(info.get(), &type));
    void* memory = nullptr;
    require(api.data(const_cast<ort::Value*>(tensor), &memory));
    if (type == ort::FLOAT) {
      values = static_cast<const float*>(memory);
    } else if (type == ort::FLOAT16) {
      int64_t count = 1;
      for (const int64_t size : shape) count *= size;
      const auto* half = static_cast<const uint16_t*>(memory);
      copy_.resize(count);
      std::transform(half, half + count, copy_.begin(), widened);
      values = copy_.data();
    } else {
      refuse(api, std::string(NAMES[index]) + " is neither float nor float16");
    }
  }

  std::vector<int64_t> shape;
  const float* values = nullptr;

 private:
  std::vector<float> copy_;
};

void require_shape(const ort::Api& api, const Input& input, size_t index,
                   const std::vector<int64_t>& expected) {
  if (input.shape != expected) refuse(api, std::string(NAMES[index]) + " does not fit x, dt_weight and A");
}

void run(const ort::Api& api, ort::KernelContext* context) {
  const Input x(api, context, 0), p(api, context, 1), dt_weight(api, context, 2), A(api, context, 3),
      D(api, context, 4), delta_bias(api, context, 5);
  const Sizes sizes{x.shape[0], x.shape[1], x.shape[2], x.shape[3], dt_weight.shape[1], A.shape[1]};
  if (sizes.states < 1 || sizes.states > kMaxStates)
    refuse(api, std::to_string(sizes.states) + " states; 1 to " + std::to_string(kMaxStates) + " can be run");
  const int64_t scanned = kDirections * sizes.channels;
  require_shape(api, p, 1, {sizes.batch, sizes.height, sizes.width,
                            kDirections * (sizes.rank + 2 * sizes.states)});
  require_shape(api, dt_weight, 2, {scanned, sizes.rank});
  require_shape(api, A, 3, {scanned, sizes.states});
  require_shape(api, D, 4, {scanned});
  require_shape(api, delta_bias, 5, {scanned});

  ort::Value* output = nullptr;
  require(api.output(context, 0, x.shape.data(), x.shape.size(), &output));
  void* y = nullptr;
  require(api.data(output, &y));
  struct Work {
    CrossScan scan;
    std::atomic<bool> failed{false};
  } work{{sizes, x.values, p.values, dt_weight.values, A.values, D.values, delta_bias.values,
          static_cast<float*>(y)}};
  const auto part = [](void* data, size_t index) {
    auto* work = static_cast<Work*>(data);
    try {
      run_part(work->scan, static_cast<int64_t>(index));
    } catch (const std::exception&) {
      work->failed = true;  // an exception may not pass through ONNX Runtime
    }
  };
  require(api.parallel_for(context, part, part_count(sizes), &work));
  if (work.failed) throw Failure{api.create_status(ort::FAIL, "CrossSelectiveScan: out of memory")};
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const auto& api = *static_cast<const ort::Api*>(kernel);
  try {
    run(api, context);
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api.create_status(ort::FAIL, error.what());
  }
}

ort::Operation describe() {
  using ort::Operation;
  Operation op{};
  op.version = ort::API_VERSION;
  op.name = [](const Operation*) { return "CrossSelectiveScan"; };
  op.provider = [](const Operation*) -> const char* { return nullptr; };  // the CPU's
  op.input_type = [](const Operation*, size_t) { return ort::UNDEFINED; };  // float or float16, each its own
  op.input_count = [](const Operation*) { return INPUTS; };
  op.output_type = [](const Operation*, size_t) { return ort::FLOAT; };
  op.output_count = [](const Operation*) { return size_t{1}; };
  op.destroy_kernel = [](void*) {};
  op.input_characteristic = [](const Operation*, size_t) { return ort::REQUIRED; };
  op.output_characteristic = op.input_characteristic;
  op.input_memory = [](const Operation*, size_t) { return ort::DEFAULT; };
  op.least_inputs = op.least_outputs = [](const Operation*) { return 1; };
  op.inputs_alike = op.outputs_alike = [](const Operation*) { return 0; };
  op.create_kernel = [](const Operation*, const ort::Api* api, const ort::KernelInfo*,
                        void** kernel) -> ort::Status* {
    *kernel = const_cast<ort::Api*>(api);  // the kernel needs nothing else
    return nullptr;
  };
  op.compute = compute;
  op.first_version = [](const Operation*) { return 1; };
  op.last_version = [](const Operation*) { return INT_MAX; };
  return op;
}

}  // namespace
}  // namespace tfanet

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(
    ort::SessionOptions* options, const ort::ApiBase* base) {
  static const ort::Operation operation = tfanet::describe();
  const ort::Api* api = base->get_api(ort::API_VERSION);
  ort::Domain* domain = nullptr;  // lives as long as the process, as the operation does
  if (ort::Status* status = api->create_domain("tfanet", &domain)) return status;
  if (ort::Status* status = api->add_operation(domain, &operation)) return status;
  return api->add_domain(options, domain);
}
