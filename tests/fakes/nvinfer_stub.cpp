// A stub of the libraries that TensorRT's Python bindings link and that the public index does not have.
//
// As `libnvinfer.so.<major>` it makes `import tensorrt` work over the real lean runtime and its plugin registry. It
// also drives one plugin layer through the builder's calls, in the builder's order and through the same virtual
// tables, so NVIDIA's binding code runs in between. It builds no engine.
//
// The classes below declare the positions in TensorRT's virtual tables; only functions that are called have a
// signature.

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#ifndef TENSORRT_MAJOR
#error "give -DTENSORRT_MAJOR=10 or 11"
#endif

extern "C" void* getPluginRegistry();

namespace {

constexpr int MAX_RANK = 8;
constexpr int STRICT_AOT = 4;
constexpr int BUILD_CAPABILITY = 1;
constexpr int BUILD_PHASE = 0;
constexpr int REGISTRY_SLOT_GET_CREATOR = TENSORRT_MAJOR == 10 ? 14 : 10;

struct Dims {
    int32_t rank;
    int64_t size[MAX_RANK];
};

struct TensorDesc {
    Dims dims;
    int32_t type, format;
    float scale;
};

struct DynamicTensorDesc {
    TensorDesc desc;
    Dims min, max, opt;
};

struct Fields {
    int32_t count;
    void const* fields;
};

// Symbolic sizes: constants, sizes of input dimensions, and operations on them.

struct ExpressionImpl {
    virtual ~ExpressionImpl() = default;
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
    virtual bool isSizeTensor() const = 0;
};

class Expression final : public ExpressionImpl {
    // The bindings hold a wrapper with a pointer to the class above.
    struct Wrapper {
        explicit Wrapper(ExpressionImpl* impl) : impl(impl) {}
        virtual ~Wrapper() = default;
        ExpressionImpl* impl;
    };

    enum Kind { CONSTANT = -2, INPUT = -1, SUM, PROD, MAX, MIN, SUB, EQUAL, LESS, FLOOR_DIV, CEIL_DIV };
    int kind;
    int64_t a = 0, b = 0;
    Expression const *first = nullptr, *second = nullptr;

public:
    Wrapper wrapper{this};

    explicit Expression(int64_t value) : kind(CONSTANT), a(value) {}
    Expression(int tensor, int axis) : kind(INPUT), a(tensor), b(axis) {}
    Expression(int op, Expression const* x, Expression const* y) : kind(op), first(x), second(y) {}

    static Expression const* of(void const* wrapper) {
        return wrapper ? static_cast<Expression const*>(static_cast<Wrapper const*>(wrapper)->impl) : nullptr;
    }

    bool isConstant() const override {
        return kind == CONSTANT || (kind >= SUM && first->isConstant() && second->isConstant());
    }
    int64_t getConstantValue() const override { return isConstant() ? value({}) : INT64_MIN; }
    bool isSizeTensor() const override { return false; }

    // The value for inputs of these sizes.
    int64_t value(std::vector<Dims> const& inputs) const {
        if (kind == CONSTANT) return a;
        if (kind == INPUT) return inputs[a].size[b];
        int64_t const x = first->value(inputs), y = second->value(inputs);
        switch (kind) {
            case SUM: return x + y;
            case PROD: return x * y;
            case MAX: return std::max(x, y);
            case MIN: return std::min(x, y);
            case SUB: return x - y;
            case EQUAL: return x == y;
            case LESS: return x < y;
            case FLOOR_DIV: return x / y;
            default: return (x + y - 1) / y;
        }
    }
};

struct DimsExpressions {
    int32_t rank;
    void const* size[MAX_RANK];
};

struct BuilderImpl {
    virtual ~BuilderImpl() = default;
    virtual void const* constant(int64_t value) = 0;
    virtual void const* operation(int32_t op, void const* first, void const* second) = 0;
    virtual void const* declareSizeTensor(int32_t, void const*, void const*) { return nullptr; }
};

struct ExpressionBuilder final : BuilderImpl {
    struct Wrapper {
        explicit Wrapper(BuilderImpl* impl) : impl(impl) {}
        virtual ~Wrapper() = default;
        BuilderImpl* impl;
    } wrapper{this};
    std::deque<Expression> made;

    void const* constant(int64_t value) override { return &made.emplace_back(value).wrapper; }
    void const* operation(int32_t op, void const* x, void const* y) override {
        return &made.emplace_back(op, Expression::of(x), Expression::of(y)).wrapper;
    }
    void const* input(int tensor, int axis) { return &made.emplace_back(tensor, axis).wrapper; }
};

// Where a plugin writes its launch parameters.

struct Scalar {
    virtual int32_t getType() const = 0;
    virtual int32_t getDataType() const = 0;
    virtual void* getExpr() = 0;
};

struct LaunchImpl {
    std::array<Scalar*, 7> values{};
#define PROPERTY(NAME, INDEX)                             \
    virtual Scalar* get##NAME() { return values[INDEX]; } \
    virtual bool set##NAME(Scalar* value) { values[INDEX] = value; return true; }
    PROPERTY(GridX, 0)
    PROPERTY(GridY, 1)
    PROPERTY(GridZ, 2)
    PROPERTY(BlockX, 3)
    PROPERTY(BlockY, 4)
    PROPERTY(BlockZ, 5)
    PROPERTY(SharedMem, 6)
#undef PROPERTY
    virtual ~LaunchImpl() = default;
};

struct ArgumentsImpl {
    std::vector<Scalar*> values;
    virtual Scalar* get(int32_t index) const { return values.at(index); }
    virtual bool set(int32_t index, Scalar* value) { values.at(index) = value; return true; }
    virtual int32_t count() const { return static_cast<int32_t>(values.size()); }
    virtual bool resize(int32_t count) { values.assign(count, nullptr); return true; }
    virtual ~ArgumentsImpl() = default;
};

template <typename Impl>
struct Handle {
    Impl* impl;
    explicit Handle(Impl* impl) : impl(impl) {}
    virtual ~Handle() = default;
};

// TensorRT's interfaces that plugins implement.

struct Interface {
    struct Info {
        char const* kind;
        int32_t major, minor;
    };
    virtual int32_t getAPILanguage() const = 0;
    virtual Info getInterfaceInfo() const = 0;
    virtual ~Interface() = default;
};

struct QuickAOTBuild : Interface {
    virtual int32_t getOutputDataTypes(int32_t*, int32_t, int32_t const*, int32_t const*, int32_t) const = 0;
    virtual int32_t getOutputShapes(DimsExpressions const*, int32_t, DimsExpressions const*, int32_t, DimsExpressions*,
        int32_t, ExpressionBuilder::Wrapper&) = 0;
    virtual int32_t configurePlugin(
        DynamicTensorDesc const*, int32_t, DynamicTensorDesc const*, int32_t) = 0;
    virtual int32_t getNbSupportedFormatCombinations(DynamicTensorDesc const*, int32_t, int32_t) = 0;
    virtual int32_t getSupportedFormatCombinations(
        DynamicTensorDesc const*, int32_t, int32_t, TensorDesc*, int32_t) = 0;
    virtual int32_t getNbOutputs() const = 0;
    virtual int32_t getAliasedInput(int32_t) = 0;
    virtual int32_t getValidTactics(int32_t*, int32_t) = 0;
    virtual int32_t getNbTactics() = 0;
    virtual char const* getTimingCacheID() = 0;
    virtual char const* getMetadataString() = 0;
    virtual int32_t getLaunchParams(DimsExpressions const*, DynamicTensorDesc const*, int32_t, int32_t,
        Handle<LaunchImpl>*, Handle<ArgumentsImpl>*, ExpressionBuilder::Wrapper&) = 0;
    virtual int32_t getKernel(
        TensorDesc const*, int32_t, TensorDesc const*, int32_t, char const**, char**, int32_t*) = 0;
    virtual int32_t setTactic(int32_t) = 0;
};

struct Plugin : Interface {
    virtual Interface* getCapabilityInterface(int32_t) = 0;
    virtual Plugin* clone() = 0;
};

struct QuickCreator : Interface {
    virtual Plugin* createPlugin(char const*, char const*, Fields const*, int32_t, int32_t) = 0;
};

QuickCreator* creator(char const* name, char const* domain) {
    using GetCreator = QuickCreator* (*)(void*, char const*, char const*, char const*);
    void* registry = getPluginRegistry();
    auto const table = *static_cast<void***>(registry);
    return reinterpret_cast<GetCreator>(table[REGISTRY_SLOT_GET_CREATOR])(registry, name, "1", domain);
}

struct Layer {
    QuickAOTBuild* build;
    int inputs, outputs;
    std::vector<DynamicTensorDesc> tensors;
    std::vector<DimsExpressions> inputSizes, outputSizes;
    ExpressionBuilder expressions;
    LaunchImpl launch;
    ArgumentsImpl arguments;
    char const* kernel = nullptr;
    char* code = nullptr;
    int32_t codeSize = 0;

    Layer(QuickAOTBuild* build, DynamicTensorDesc const* descs, int count)
        : build(build), inputs(count), outputs(build->getNbOutputs()), tensors(descs, descs + count) {
        tensors.resize(inputs + outputs);
        outputSizes.resize(outputs);
        for (int i = 0; i < inputs; ++i) {
            Dims const& dims = tensors[i].desc.dims;
            auto& sizes = inputSizes.emplace_back(DimsExpressions{dims.rank, {}});
            for (int axis = 0; axis < dims.rank; ++axis)
                sizes.size[axis]
                    = dims.size[axis] < 0 ? expressions.input(i, axis) : expressions.constant(dims.size[axis]);
        }
    }

    // Get the outputs' types and sizes; false if the plugin fails.
    bool describeOutputs() {
        std::vector<int32_t> types, ranks, outputTypes(outputs);
        for (int i = 0; i < inputs; ++i) {
            types.push_back(tensors[i].desc.type);
            ranks.push_back(tensors[i].desc.dims.rank);
        }
        if (build->getOutputDataTypes(outputTypes.data(), outputs, types.data(), ranks.data(), inputs)
            || build->getOutputShapes(
                inputSizes.data(), inputs, nullptr, 0, outputSizes.data(), outputs, expressions.wrapper))
            return false;
        for (int i = 0; i < outputs; ++i) {
            auto& output = tensors[inputs + i];
            output.desc.type = outputTypes[i];
            output.desc.scale = -1.0F;
            for (auto which : {&DynamicTensorDesc::min, &DynamicTensorDesc::max, &DynamicTensorDesc::opt})
                output.*which = evaluate(outputSizes[i], which);
            output.desc.dims = output.opt;
            for (int axis = 0; axis < output.opt.rank; ++axis)
                if (!Expression::of(outputSizes[i].size[axis])->isConstant()) output.desc.dims.size[axis] = -1;
        }
        return true;
    }

    Dims evaluate(DimsExpressions const& sizes, Dims DynamicTensorDesc::* which) const {
        std::vector<Dims> cases;
        for (int i = 0; i < inputs; ++i) cases.push_back(tensors[i].*which);
        Dims result{sizes.rank, {}};
        for (int axis = 0; axis < sizes.rank; ++axis)
            result.size[axis] = Expression::of(sizes.size[axis])->value(cases);
        return result;
    }

    std::vector<TensorDesc> descs() const {
        std::vector<TensorDesc> result;
        for (auto const& tensor : tensors) result.push_back(tensor.desc);
        return result;
    }
};

}  // namespace

extern "C" {

void* createInferBuilder_INTERNAL(void*, int) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* getBuilderPluginRegistry(int) { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
bool initLibNvInferPlugins(void*, char const*) { return true; }

// Create the plugin and get its outputs. `inputs` have min, max and opt sizes, and -1 in `desc` where they differ.
// Returns null if a step fails; the bindings have then printed the reason.
Layer* layer_open(char const* domain, char const* name, DynamicTensorDesc const* inputs, int32_t count) {
    QuickCreator* const match = creator(name, domain);
    Fields const none{0, nullptr};
    Plugin* plugin = match ? match->createPlugin(name, domain, &none, BUILD_PHASE, STRICT_AOT) : nullptr;
    if (plugin) plugin = plugin->clone();
    Interface* const build = plugin ? plugin->getCapabilityInterface(BUILD_CAPABILITY) : nullptr;
    if (!build) return nullptr;
    auto* const layer = new Layer(static_cast<QuickAOTBuild*>(build), inputs, count);
    return layer->describeOutputs() ? layer : nullptr;
}

int32_t layer_outputs(Layer const* layer) { return layer->outputs; }
DynamicTensorDesc const* layer_tensor(Layer const* layer, int32_t index) { return &layer->tensors[index]; }

// Types and formats of all tensors, one row per supported combination; -1 if the plugin fails.
int32_t layer_combinations(Layer* layer, int32_t* types, int32_t* formats, int32_t room) {
    int const width = layer->inputs + layer->outputs;
    int const count
        = layer->build->getNbSupportedFormatCombinations(layer->tensors.data(), layer->inputs, layer->outputs);
    if (count < 1 || count > room) return -1;
    std::vector<TensorDesc> combinations(width * count);
    if (layer->build->getSupportedFormatCombinations(
            layer->tensors.data(), layer->inputs, layer->outputs, combinations.data(), count))
        return -1;
    for (int i = 0; i < width * count; ++i) {
        types[i] = combinations[i].type;
        formats[i] = combinations[i].format;
    }
    return count;
}

// Choose a combination; returns the number of its tactics, or -1.
int32_t layer_configure(Layer* layer, int32_t const* types, int32_t const* formats, int32_t* tactics, int32_t room) {
    for (size_t i = 0; i < layer->tensors.size(); ++i) {
        layer->tensors[i].desc.type = types[i];
        layer->tensors[i].desc.format = formats[i];
    }
    auto const* tensors = layer->tensors.data();
    if (layer->build->configurePlugin(tensors, layer->inputs, tensors + layer->inputs, layer->outputs)) return -1;
    int const count = layer->build->getNbTactics();
    return count > room || (count && layer->build->getValidTactics(tactics, count)) ? -1 : count;
}

// Choose a tactic and get launch parameters and kernel; 0 on success.
int32_t layer_launch(Layer* layer, int32_t tactic) {
    Handle<LaunchImpl> launch{&layer->launch};
    Handle<ArgumentsImpl> arguments{&layer->arguments};
    auto const descs = layer->descs();
    return layer->build->setTactic(tactic)
        || layer->build->getLaunchParams(layer->inputSizes.data(), layer->tensors.data(), layer->inputs,
            layer->outputs, &launch, &arguments, layer->expressions.wrapper)
        || layer->build->getKernel(descs.data(), layer->inputs, descs.data() + layer->inputs, layer->outputs,
            &layer->kernel, &layer->code, &layer->codeSize);
}

char const* layer_kernel(Layer const* layer) { return layer->kernel; }
char const* layer_code(Layer const* layer) { return layer->code; }
int32_t layer_code_size(Layer const* layer) { return layer->codeSize; }
int32_t layer_argument_count(Layer const* layer) { return layer->arguments.count(); }

// Grid x, y, z, block x, y, z, shared memory (0..6), then the scalar arguments (7...), for inputs of these sizes.
// -1 if the plugin did not set the value, -2 if its type is not INT32.
int64_t layer_value(Layer const* layer, int32_t index, Dims const* inputs) {
    Scalar* const scalar = index < 7 ? layer->launch.values[index] : layer->arguments.get(index - 7);
    constexpr int INT32 = 2;
    if (!scalar || !scalar->getExpr()) return -1;
    if (scalar->getDataType() != INT32) return -2;
    return Expression::of(scalar->getExpr())->value({inputs, inputs + layer->inputs});
}

}  // extern "C"
