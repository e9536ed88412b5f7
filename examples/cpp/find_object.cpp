// find_object PLAN IMAGE.ppm IMAGE.tokens MASK.pgm
//
// Runs a plan on one image and one expression with the C++ API of TensorRT 10, 11 or TensorRT-RTX. prepare.py
// writes the image and the tokens as the model needs them. A plan can run code: use only plans that you trust.

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Logger : nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
    }
};

void require(bool condition, std::string const& message) {
    if (!condition) throw std::runtime_error(message);
}

void check(cudaError_t status) { require(status == cudaSuccess, cudaGetErrorString(status)); }

// Unified memory of CPU and GPU. A server would use pinned buffers and copies instead.
template <typename T>
auto shared_memory(int64_t count) {
    auto const release = [](T* memory) { cudaFree(memory); };
    void* memory = nullptr;
    check(cudaMallocManaged(&memory, count * sizeof(T), cudaMemAttachGlobal));
    return std::unique_ptr<T[], decltype(release)>(static_cast<T*>(memory), release);
}

// Reads the pixels of an 8-bit binary PPM: RGB, row by row.
void read_ppm(std::string const& path, int64_t size, uint8_t* pixels) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, max_value = 0;
    file >> magic >> width >> height >> max_value;
    file.get();  // the whitespace before the pixels
    require(file.good() && magic == "P6" && max_value == 255, path + " is not an 8-bit binary PPM");
    auto const side = std::to_string(size);
    require(width == size && height == size, path + " is not " + side + " x " + side + ": use prepare.py");
    require(bool(file.read(reinterpret_cast<char*>(pixels), size * size * 3)), path + " is truncated");
}

void read_tokens(std::string const& path, int64_t length, int64_t* tokens) {
    std::ifstream file(path);
    std::vector<int64_t> const values{std::istream_iterator<int64_t>(file), {}};
    require(int64_t(values.size()) == length, path + " does not have " + std::to_string(length) + " tokens");
    std::copy(values.begin(), values.end(), tokens);
}

int64_t run(std::string const& plan, char const* image_path, char const* tokens_path, std::string const& mask) {
    std::ifstream input(plan, std::ios::binary);
    require(input.good(), "cannot read " + plan);
    std::vector<char> const bytes{std::istreambuf_iterator<char>(input), {}};

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> const runtime{nvinfer1::createInferRuntime(logger)};
    require(runtime != nullptr, "cannot create the TensorRT runtime");
    std::unique_ptr<nvinfer1::ICudaEngine> const engine{
        runtime->deserializeCudaEngine(bytes.data(), bytes.size())};
    require(engine != nullptr, plan + " is not a plan for this TensorRT and GPU");
    auto const image_shape = engine->getTensorShape("image"), tokens_shape = engine->getTensorShape("tokens");
    require(image_shape.nbDims == 4 && tokens_shape.nbDims == 2, plan + " is not a plan of tfanet");
    int64_t const size = image_shape.d[1], length = tokens_shape.d[1];

    auto const image = shared_memory<uint8_t>(size * size * 3);
    auto const tokens = shared_memory<int64_t>(length);
    auto const logits = shared_memory<float>(size * size);
    read_ppm(image_path, size, image.get());
    read_tokens(tokens_path, length, tokens.get());

    std::unique_ptr<nvinfer1::IExecutionContext> const context{engine->createExecutionContext()};
    require(context != nullptr, "not enough GPU memory");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream));
    bool const started = context->setInputShape("image", nvinfer1::Dims{4, {1, size, size, 3}}) &&
                         context->setInputShape("tokens", nvinfer1::Dims{2, {1, length}}) &&
                         context->setTensorAddress("image", image.get()) &&
                         context->setTensorAddress("tokens", tokens.get()) &&
                         context->setTensorAddress("mask_logits", logits.get()) && context->enqueueV3(stream);
    require(started, "cannot run " + plan);
    check(cudaStreamSynchronize(stream));
    check(cudaStreamDestroy(stream));

    std::ofstream output(mask, std::ios::binary);
    output << "P5\n" << size << ' ' << size << "\n255\n";
    int64_t count = 0;
    for (int64_t i = 0; i < size * size; ++i) {
        count += logits[i] > 0;
        output.put(logits[i] > 0 ? '\xff' : '\0');
    }
    require(output.flush().good(), "cannot write " + mask);
    return count;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        require(count == 5, "usage: find_object PLAN IMAGE.ppm IMAGE.tokens MASK.pgm");
        auto const pixels = run(arguments[1], arguments[2], arguments[3], arguments[4]);
        std::cout << pixels << " pixels in the mask; wrote " << arguments[4] << '\n';
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
