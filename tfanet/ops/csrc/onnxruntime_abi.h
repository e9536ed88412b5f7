// The parts of ONNX Runtime's C interface that a custom operation needs; the Python package has no headers.
// The interface only grows at its end, so a function's index in the table never changes.

#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t API_VERSION = 17;  // ONNX Runtime 1.17, the first with ParallelFor

// Opaque types of ONNX Runtime.
struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

enum ElementType : int { UNDEFINED = 0, FLOAT = 1, FLOAT16 = 10 };
enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2 };
enum Characteristic : int { REQUIRED = 0 };
enum MemoryType : int { DEFAULT = 0 };

// The table of functions; `at` returns one by its index.
class Api {
 public:
  template <typename Result, typename... Arguments>
  Result call(size_t place, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(functions_[place])(arguments...);
  }

  Status* create_status(ErrorCode code, const char* message) const {
    return call<Status*>(0, code, message);
  }
  Status* create_domain(const char* name, Domain** domain) const { return call<Status*>(26, name, domain); }
  Status* add_operation(Domain* domain, const struct Operation* operation) const {
    return call<Status*>(27, domain, operation);
  }
  Status* add_domain(SessionOptions* options, Domain* domain) const {
    return call<Status*>(28, options, domain);
  }
  Status* data(Value* tensor, void** pointer) const { return call<Status*>(51, tensor, pointer); }
  Status* element_type(const TensorInfo* info, ElementType* type) const {
    return call<Status*>(60, info, type);
  }
  Status* rank(const TensorInfo* info, size_t* rank) const { return call<Status*>(61, info, rank); }
  Status* shape(const TensorInfo* info, int64_t* sizes, size_t rank) const {
    return call<Status*>(62, info, sizes, rank);
  }
  Status* info(const Value* tensor, TensorInfo** info) const { return call<Status*>(65, tensor, info); }
  Status* input(const KernelContext* context, size_t index, const Value** tensor) const {
    return call<Status*>(90, context, index, tensor);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* sizes, size_t rank,
                 Value** tensor) const {
    return call<Status*>(91, context, index, sizes, rank, tensor);
  }
  void release(TensorInfo* info) const { call<void>(99, info); }
  // function(data, i) for i = 0..total - 1, on the session's threads.
  Status* parallel_for(const KernelContext* context, void (*function)(void*, size_t), size_t total,
                       void* data) const {
    return call<Status*>(274, context, function, total, size_t{0}, data);
  }

 private:
  void (*functions_[275])();
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// The callbacks of an operation; `version` says which are present.
struct Operation {
  uint32_t version;
  void* (*create_kernel_1)(const Operation*, const Api*, const KernelInfo*);
  const char* (*name)(const Operation*);
  const char* (*provider)(const Operation*);
  ElementType (*input_type)(const Operation*, size_t);
  size_t (*input_count)(const Operation*);
  ElementType (*output_type)(const Operation*, size_t);
  size_t (*output_count)(const Operation*);
  void (*compute_1)(void*, KernelContext*);
  void (*destroy_kernel)(void*);
  Characteristic (*input_characteristic)(const Operation*, size_t);
  Characteristic (*output_characteristic)(const Operation*, size_t);
  MemoryType (*input_memory)(const Operation*, size_t);
  int (*least_inputs)(const Operation*);
  int (*inputs_alike)(const Operation*);
  int (*least_outputs)(const Operation*);
  int (*outputs_alike)(const Operation*);
  Status* (*create_kernel)(const Operation*, const Api*, const KernelInfo*, void**);
  Status* (*compute)(void*, KernelContext*);
  Status* (*infer_shape)(const Operation*, void*);
  int (*first_version)(const Operation*);
  int (*last_version)(const Operation*);
};

}  // namespace ort
