// The part of TensorRT's C++ API that find_object uses, with TensorRT's declarations but not its ABI: enough to
// compile and run the example without TensorRT and without a GPU. Implemented in fake_tensorrt.cpp.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nvinfer1 {

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

class ILogger {
   public:
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity severity, char const* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
   public:
    virtual ~IExecutionContext() = default;
    virtual bool setInputShape(char const* name, Dims const& dims) noexcept = 0;
    virtual bool setTensorAddress(char const* name, void* data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
   public:
    virtual ~ICudaEngine() = default;
    virtual Dims getTensorShape(char const* name) const noexcept = 0;
    virtual IExecutionContext* createExecutionContext() noexcept = 0;
};

class IRuntime {
   public:
    virtual ~IRuntime() = default;
    virtual ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept = 0;
};

IRuntime* createInferRuntime(ILogger& logger);

}  // namespace nvinfer1
