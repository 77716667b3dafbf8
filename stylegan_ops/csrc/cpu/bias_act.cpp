// Bias, activation, gain and clamp, and their first and second derivatives.
#include <limits>
#include <vector>

#include "element.h"
#include "elementary.h"
#include "parallel.h"

namespace stylegan_ops {
namespace {

template <int Act, typename T>
inline Jet<T> activation(T z, T alpha) {
    if constexpr (Act == SGO_RELU) {
        return {z <= 0 ? T(0) : z, z <= 0 ? T(0) : T(1), T(0)};
    } else if constexpr (Act == SGO_LRELU) {
        const T slope = z > 0 ? T(1) : alpha;
        return {z * slope, slope, T(0)};
    } else if constexpr (Act == SGO_TANH) {
        const Exponential<T> e = exponential(z < 0 ? T(2) * z : T(-2) * z);
        const T inverse = T(1) / (T(2) + e.expm1);
        const T magnitude = -e.expm1 * inverse;
        const T value = z < 0 ? -magnitude : magnitude;
        const T first = T(4) * e.exp * inverse * inverse;
        return {value, first, T(-2) * value * first};
    } else if constexpr (Act == SGO_SIGMOID) {
        return sigmoid(z);
    } else if constexpr (Act == SGO_ELU) {
        const Exponential<T> e = exponential(z > 0 ? T(0) : z);
        return {z > 0 ? z : e.expm1, z > 0 ? T(1) : e.exp, z < 0 ? e.exp : T(0)};
    } else if constexpr (Act == SGO_SELU) {
        // The fixed point of Klambauer et al., "Self-Normalizing Neural Networks" (arXiv 1706.02515).
        const T scale = T(1.0507009873554804934193349852946), steep = scale * T(1.6732632423543772848170429916717);
        const Exponential<T> e = exponential(z > 0 ? T(0) : z);
        const T curved = steep * e.exp;
        return {z > 0 ? scale * z : steep * e.expm1, z > 0 ? scale : curved, z < 0 ? curved : T(0)};
    } else if constexpr (Act == SGO_SOFTPLUS) {
        // Like PyTorch's, it is the identity above 20.
        const T e = exponential(z < 0 ? z : -z).exp;
        const Jet<T> derivative = sigmoid(z);
        return {z > 20 ? z : (z < 0 ? T(0) : z) + log1p(e), z > 20 ? T(1) : derivative.value,
                z > 20 ? T(0) : derivative.first};
    } else {
        static_assert(Act == SGO_SWISH, "unknown activation");
        const Jet<T> s = sigmoid(z);
        return {z * s.value, s.value + z * s.first, T(2) * s.first + z * s.second};
    }
}

template <typename T>
struct Factors {
    T alpha;
    T gain;
    T clamp;
};

template <int Act, int Order, typename T>
void apply(const T* __restrict z, const T* __restrict dy, const T* __restrict ddx, T* __restrict out, int64_t count,
           Factors<T> factors) {
    const T alpha = factors.alpha, gain = factors.gain, clamp = factors.clamp;
    for (int64_t i = 0; i < count; ++i) {
        const Jet<T> jet = activation<Act>(z[i], alpha);
        const T value = gain * jet.value;
        // Comparisons are written such that NaN passes.
        if constexpr (Order == SGO_VALUE) {
            const T bounded = value > clamp ? clamp : value;
            out[i] = bounded < -clamp ? -clamp : bounded;
        } else {
            const bool outside = (value > clamp) | (value < -clamp);
            T slope = gain * dy[i];
            if constexpr (Order == SGO_GRAD) {
                slope *= jet.first;
            } else {
                slope *= ddx[i] * jet.second;
            }
            out[i] = outside ? T(0) : slope;
        }
    }
}

template <typename T>
using Apply = void (*)(const T*, const T*, const T*, T*, int64_t, Factors<T>);

template <int Order, typename T>
Apply<T> find_apply(sgo_int32 act) {
    switch (act) {
        case SGO_LINEAR: return apply<SGO_LRELU, Order, T>;  // With alpha = 1; see bias_act.
        case SGO_RELU: return apply<SGO_RELU, Order, T>;
        case SGO_LRELU: return apply<SGO_LRELU, Order, T>;
        case SGO_TANH: return apply<SGO_TANH, Order, T>;
        case SGO_SIGMOID: return apply<SGO_SIGMOID, Order, T>;
        case SGO_ELU: return apply<SGO_ELU, Order, T>;
        case SGO_SELU: return apply<SGO_SELU, Order, T>;
        case SGO_SOFTPLUS: return apply<SGO_SOFTPLUS, Order, T>;
        case SGO_SWISH: return apply<SGO_SWISH, Order, T>;
        default: return nullptr;
    }
}

template <typename T>
Apply<T> find_apply(sgo_int32 order, sgo_int32 act) {
    switch (order) {
        case SGO_VALUE: return find_apply<SGO_VALUE, T>(act);
        case SGO_GRAD: return find_apply<SGO_GRAD, T>(act);
        case SGO_GRAD2: return find_apply<SGO_GRAD2, T>(act);
        default: return nullptr;
    }
}

// Elements that are worked on at a time, so that intermediate results stay in the first cache.
constexpr int64_t kBlock = 1024;

template <typename Element>
void load(const typename Element::Stored* __restrict from, typename Element::Math* __restrict to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = Element::load(from[i]);
}

template <typename Element>
void store(const typename Element::Math* __restrict from, typename Element::Stored* __restrict to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = Element::store(from[i]);
}

// z = x + b for the elements from `begin` on; x and z point at the first of them.
template <typename Element>
void add_bias(const typename Element::Stored* __restrict x, const typename Element::Stored* __restrict b,
              typename Element::Math* __restrict z, int64_t begin, int64_t count, int64_t step, int64_t size) {
    int64_t channel = begin / step % size;
    int64_t done = 0;
    if (step == 1) {
        while (done < count) {
            const int64_t run = std::min(count - done, size - channel);
            for (int64_t i = 0; i < run; ++i) z[done + i] = Element::load(x[done + i]) + Element::load(b[channel + i]);
            done += run;
            channel = 0;
        }
        return;
    }
    int64_t left = step - begin % step;
    while (done < count) {
        const int64_t run = std::min(count - done, left);
        const typename Element::Math bias = Element::load(b[channel]);
        for (int64_t i = 0; i < run; ++i) z[done + i] = Element::load(x[done + i]) + bias;
        done += run;
        channel = channel + 1 == size ? 0 : channel + 1;
        left = step;
    }
}

// What is needed at a time.
template <typename T>
struct Buffers {
    alignas(64) T z[kBlock], dy[kBlock], ddx[kBlock], result[kBlock];
};

template <typename T>
double sum(const T* values, int64_t count) {
    constexpr int lanes = 16;
    T sums[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (int lane = 0; lane < lanes; ++lane) sums[lane] += values[i + lane];
    }
    double total = 0;
    for (T partial : sums) total += partial;
    for (; i < count; ++i) total += values[i];
    return total;
}

// Have run(begin, count, buffers) compute all elements, and add up what it returns while it is in the cache. Runs of
// bias_step elements with one bias are summed by one thread each, whatever their number.
template <typename Element, typename Run>
void sum_by_bias(const BiasActArgs& args, Run run) {
    using T = typename Element::Math;
    const int64_t size = args.bias_size;
    const int64_t step = size == 1 ? std::max<int64_t>(args.numel, 1) : args.bias_step;
    const int64_t images = args.numel / (size * step);
    typename Element::Stored* const db = static_cast<typename Element::Stored*>(args.db);
    if (step == 1) {
        // Neighbors have different biases: all of an image's are summed at once, in each of a few parts of the batch.
        constexpr int64_t kParts = 16;
        const int64_t parts = std::min(kParts, std::max<int64_t>(images, 1));
        std::vector<double> sums(size_t(parts * size), 0.0);
        parallel_blocks(parts, args.numel, args.num_threads, [&](int64_t first, int64_t last) {
            Buffers<T> buffers;
            for (int64_t part = first; part < last; ++part) {
                const int64_t end = images * (part + 1) / parts * size;
                int64_t channel = 0;
                for (int64_t begin = images * part / parts * size; begin < end; begin += kBlock) {
                    const int64_t count = std::min(kBlock, end - begin);
                    const T* values = run(begin, count, buffers);
                    for (int64_t left = count; left > 0;) {
                        const int64_t together = std::min(left, size - channel);
                        double* const into = sums.data() + part * size + channel;
                        for (int64_t i = 0; i < together; ++i) into[i] += values[i];
                        values += together, left -= together;
                        channel = channel + together == size ? 0 : channel + together;
                    }
                }
            }
        });
        for (int64_t channel = 0; channel < size; ++channel) {
            double total = 0;
            for (int64_t part = 0; part < parts; ++part) total += sums[size_t(part * size + channel)];
            db[channel] = Element::store(T(total));
        }
        return;
    }
    const int64_t runs = images * size, together = std::max<int64_t>(1, kBlock / step);
    std::vector<double> sums(size_t(runs), 0.0);
    parallel_blocks((runs + together - 1) / together, args.numel, args.num_threads, [&](int64_t first, int64_t last) {
        Buffers<T> buffers;
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * together, end = std::min(begin + together, runs);
            if (step <= kBlock) {
                const T* values = run(begin * step, (end - begin) * step, buffers);
                for (int64_t i = begin; i < end; ++i, values += step) sums[size_t(i)] = sum(values, step);
            } else {
                for (int64_t done = 0; done < step; done += kBlock) {
                    const int64_t count = std::min(kBlock, step - done);
                    sums[size_t(begin)] += sum(run(begin * step + done, count, buffers), count);
                }
            }
        }
    });
    for (int64_t channel = 0; channel < size; ++channel) {
        double total = 0;
        for (int64_t image = 0; image < images; ++image) total += sums[size_t(image * size + channel)];
        db[channel] = Element::store(T(total));
    }
}

template <typename Element>
void bias_act(const BiasActArgs& args, Apply<typename Element::Math> apply_block) {
    using T = typename Element::Math;
    using Stored = typename Element::Stored;
    constexpr bool same = sizeof(T) == sizeof(Stored);
    const Stored* const x = static_cast<const Stored*>(args.x);
    const Stored* const b = static_cast<const Stored*>(args.b);
    const Stored* const dy = static_cast<const Stored*>(args.dy);
    const Stored* const ddx = static_cast<const Stored*>(args.ddx);
    Stored* const out = static_cast<Stored*>(args.out);
    const T clamp = args.clamp < 0 ? std::numeric_limits<T>::infinity() : T(args.clamp);
    // A loop of its own for `linear` comes out slower: compilers then load dy only where the clamp does not hold.
    const T alpha = args.act == SGO_LINEAR ? T(1) : T(args.alpha);
    const Factors<T> factors = {alpha, T(args.gain), clamp};

    const auto run = [&](int64_t begin, int64_t count, Buffers<T>& buffers) -> const T* {
        if (b != nullptr) {
            add_bias<Element>(x + begin, b, buffers.z, begin, count, args.bias_step, args.bias_size);
        } else {
            load<Element>(x + begin, buffers.z, count);
        }
        if constexpr (same) {
            const T* const block_dy = dy == nullptr ? nullptr : dy + begin;
            const T* const block_ddx = ddx == nullptr ? nullptr : ddx + begin;
            apply_block(buffers.z, block_dy, block_ddx, out + begin, count, factors);
            return out + begin;
        } else {
            if (dy != nullptr) load<Element>(dy + begin, buffers.dy, count);
            if (ddx != nullptr) load<Element>(ddx + begin, buffers.ddx, count);
            apply_block(buffers.z, buffers.dy, buffers.ddx, buffers.result, count, factors);
            store<Element>(buffers.result, out + begin, count);
            return buffers.result;
        }
    };
    expect_writes(out, args.numel * int64_t(sizeof(Stored)));
    if (args.db != nullptr) {
        sum_by_bias<Element>(args, run);
        return;
    }
    const int64_t blocks = (args.numel + kBlock - 1) / kBlock;
    parallel_blocks(blocks, args.numel, args.num_threads, [&](int64_t first, int64_t last) {
        Buffers<T> buffers;
        for (int64_t block = first; block < last; ++block) {
            const int64_t begin = block * kBlock;
            run(begin, std::min(kBlock, args.numel - begin), buffers);
        }
    });
}

}  // namespace
}  // namespace stylegan_ops

// 0, or 1 if the arguments name an order, an activation or a dtype that does not exist.
SGO_EXPORT int stylegan_ops_bias_act(const BiasActArgs* args) {
    using namespace stylegan_ops;
    bool known = true;
    const bool supported = dispatch(args->dtype, [&](auto element) {
        using Element = decltype(element);
        const auto apply_block = find_apply<typename Element::Math>(args->order, args->act);
        known = apply_block != nullptr;
        if (known) bias_act<Element>(*args, apply_block);
    });
    return supported && known ? 0 : 1;
}
