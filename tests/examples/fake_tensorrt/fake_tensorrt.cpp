// A fake TensorRT with one network, on the CPU: mask_logits is the mean over RGB of the image, minus the sum of
// the tokens modulo 256. A plan is the text "SIZE LENGTH". Memory is valid between cudaMalloc and cudaFree only,
// and results are written when the stream is synchronized, so an example that forgets either fails.

#include <NvInferRuntime.h>

#include <functional>
#include <map>
#include <numeric>
#include <sstream>
#include <string>

namespace {

std::function<void()> queued;

struct Context : nvinfer1::IExecutionContext {
    Context(int64_t size, int64_t length) : size(size), length(length) {}

    bool setInputShape(char const* name, nvinfer1::Dims const& dims) noexcept override {
        std::string const tensor = name;
        if (dims.d[0] != 1) return false;
        shaped += tensor == "image" && dims.nbDims == 4 && dims.d[1] == size && dims.d[2] == size && dims.d[3] == 3;
        shaped += tensor == "tokens" && dims.nbDims == 2 && dims.d[1] == length;
        return true;
    }

    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses[name] = data;
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (stream == nullptr || shaped != 2 || addresses.size() != 3) return false;
        queued = [this] {
            auto const image = static_cast<uint8_t const*>(addresses.at("image"));
            auto const tokens = static_cast<int64_t const*>(addresses.at("tokens"));
            auto const logits = static_cast<float*>(addresses.at("mask_logits"));
            auto const threshold = std::accumulate(tokens, tokens + length, int64_t{0}) % 256;
            for (int64_t i = 0; i < size * size; ++i)
                logits[i] = (image[3 * i] + image[3 * i + 1] + image[3 * i + 2]) / 3.0F - threshold;
        };
        return true;
    }

    int64_t size, length;
    int shaped = 0;
    std::map<std::string, void*> addresses;
};

struct Engine : nvinfer1::ICudaEngine {
    Engine(int64_t size, int64_t length) : size(size), length(length) {}

    nvinfer1::Dims getTensorShape(char const* name) const noexcept override {
        if (std::string(name) == "image") return {4, {-1, size, size, 3}};
        if (std::string(name) == "tokens") return {2, {-1, length}};
        return {-1, {}};
    }

    nvinfer1::IExecutionContext* createExecutionContext() noexcept override { return new Context(size, length); }

    int64_t size, length;
};

struct Runtime : nvinfer1::IRuntime {
    explicit Runtime(nvinfer1::ILogger& logger) : logger(logger) {}

    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        std::istringstream plan(std::string(static_cast<char const*>(blob), size));
        int64_t side = 0, length = 0;
        if (plan >> side >> length) return new Engine(side, length);
        logger.log(nvinfer1::ILogger::Severity::kERROR, "not a plan");
        logger.log(nvinfer1::ILogger::Severity::kINFO, "not for the user");
        return nullptr;
    }

    nvinfer1::ILogger& logger;
};

int stream_object;

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) { return new Runtime(logger); }

extern "C" {

cudaError_t cudaMallocManaged(void** memory, std::size_t size, unsigned int) {
    *memory = ::operator new(size);
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    ::operator delete(memory);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = reinterpret_cast<cudaStream_t>(&stream_object);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    if (queued) queued();
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

char const* cudaGetErrorString(cudaError_t) { return "an error of CUDA"; }
}
