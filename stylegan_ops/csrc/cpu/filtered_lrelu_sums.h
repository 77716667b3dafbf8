// Weighted sums of contiguous memory, which both filters of filtered_lrelu are made of.
#ifndef STYLEGAN_OPS_CPU_FILTERED_LRELU_SUMS_H
#define STYLEGAN_OPS_CPU_FILTERED_LRELU_SUMS_H

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace stylegan_ops {
namespace {  // Lanes are something else in other operators.

// As many numbers as the processor computes with at once.
#if defined(__GNUC__)
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
template <typename T>
struct Numbers;
template <>
struct Numbers<float> {
    typedef float Type __attribute__((vector_size(kBytes)));
    typedef int32_t Mask __attribute__((vector_size(kBytes)));
};
template <>
struct Numbers<double> {
    typedef double Type __attribute__((vector_size(kBytes)));
    typedef int64_t Mask __attribute__((vector_size(kBytes)));
};
template <typename T>
using Vector = typename Numbers<T>::Type;
template <typename T>
using Mask = typename Numbers<T>::Mask;

template <typename T>
inline Vector<T> select(Mask<T> mask, Vector<T> yes, Vector<T> no) {
#ifdef __clang__
    return Vector<T>((mask & Mask<T>(yes)) | (~mask & Mask<T>(no)));
#else
    return mask ? yes : no;
#endif
}
template <typename T>
inline Vector<T> splat(T value) {
    return value - Vector<T>{};
}
#define SGO_INLINE inline __attribute__((always_inline))
#define SGO_INLINE_LAMBDA __attribute__((always_inline))
// Compilers would move loads up until they run out of registers.
#define SGO_IN_ORDER asm volatile("" ::: "memory")
#else
#define SGO_INLINE inline
#define SGO_INLINE_LAMBDA
#define SGO_IN_ORDER
constexpr int kBytes = 1;  // A vector is a number.
template <typename T>
using Vector = T;
template <typename T>
using Mask = bool;

template <typename T>
inline T select(bool mask, T yes, T no) {
    return mask ? yes : no;
}
template <typename T>
inline T splat(T value) {
    return value;
}
#endif

template <typename T>
constexpr int64_t kLanes = sizeof(Vector<T>) / sizeof(T);

template <typename T>
inline Vector<T> load(const T* from) {
    Vector<T> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <typename T>
inline void store(T* to, Vector<T> v) {
    std::memcpy(to, &v, sizeof v);
}

// Memory that begins with a line of the cache: vectors in it straddle no two.
template <typename T>
struct Aligned {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};

    Aligned() = default;
    template <typename Other>
    Aligned(const Aligned<Other>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
    void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
template <typename T>
using Buffer = std::vector<T, Aligned<T>>;

// Elements Shift, Shift + 1, ... of two vectors, one behind the other. Vectors of 64 bytes fill a line of the cache, and
// one that is not aligned is loaded from two; shorter ones are better loaded again.
constexpr bool kShifts = kBytes == 64;

#if defined(__GNUC__)
template <int Shift, typename T, size_t... Lane>
inline Vector<T> shifted(Vector<T> a, Vector<T> b, std::index_sequence<Lane...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, (Shift + int(Lane))...);
#else
    return __builtin_shuffle(a, b, Mask<T>{(Shift + int(Lane))...});
#endif
}
#else
template <int Shift, typename T, size_t... Lane>
inline T shifted(T a, T, std::index_sequence<Lane...>) {
    return a;
}
#endif

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }
inline int64_t whole_vectors(int64_t count, int64_t lanes) { return ceil_div(count, lanes) * lanes; }

// run(0), run(1), ... run(Count - 1), of which the compiler knows the numbers: arrays of vectors are in registers.
template <int Count, typename Run>
SGO_INLINE void unrolled(const Run& run) {
    if constexpr (Count > 0) {
        unrolled<Count - 1>(run);
        run(std::integral_constant<int, Count - 1>());
    }
}

// --- one sum at a time

// What is done to sums before they are written. As types of their own, unlike lambdas, element types can share them.
template <typename T>
struct Keep {
    Vector<T> operator()(Vector<T> sum, int64_t) const { return sum; }
};

// `then`, told the index in the whole row.
template <typename T, typename Then>
struct Shifted {
    const Then& then;
    int64_t shift;

    Vector<T> operator()(Vector<T> sum, int64_t i) const { return then(sum, shift + i); }
};

template <int Vectors, typename T, typename Then>
inline void sum_block(const T* const* sources, const T* weights, int64_t terms, int64_t at, T* out, const Then& then) {
    Vector<T> sums[Vectors];
    const Vector<T> first = splat(weights[0]);
    for (int v = 0; v < Vectors; ++v) sums[v] = first * load(sources[0] + at + v * kLanes<T>);
    for (int64_t n = 1; n < terms; ++n) {
        const T* const source = sources[n] + at;
        const Vector<T> weight = splat(weights[n]);
        for (int v = 0; v < Vectors; ++v) sums[v] += weight * load(source + v * kLanes<T>);
    }
    unrolled<Vectors>([&](auto v) SGO_INLINE_LAMBDA {
        const int64_t i = at + v * kLanes<T>;
        store(out + i, then(sums[v], i));
    });
}

// out[i] = then(sum over n of weights[n] * sources[n][i], i) for i < count, which is a multiple of kLanes.
template <typename T, typename Then>
void weighted_sum(const T* const* sources, const T* weights, int64_t terms, int64_t count, T* out, const Then& then) {
    int64_t at = 0;
    if (terms == 0) {
        for (; at < count; at += kLanes<T>) store(out + at, then(Vector<T>{}, at));
        return;
    }
    for (; at + 8 * kLanes<T> <= count; at += 8 * kLanes<T>) sum_block<8>(sources, weights, terms, at, out, then);
    if (at + 4 * kLanes<T> <= count) {
        sum_block<4>(sources, weights, terms, at, out, then);
        at += 4 * kLanes<T>;
    }
    if (at + 2 * kLanes<T> <= count) {
        sum_block<2>(sources, weights, terms, at, out, then);
        at += 2 * kLanes<T>;
    }
    if (at < count) sum_block<1>(sources, weights, terms, at, out, then);
}

template <typename T>
struct Sum {
    std::vector<const T*> sources;
    std::vector<T> weights;

    void clear() {
        sources.clear();
        weights.clear();
    }
    void add(const T* source, T weight) {
        sources.push_back(source);
        weights.push_back(weight);
    }
    template <typename Then>
    void write(int64_t count, T* out, const Then& then) const {
        weighted_sum(sources.data(), weights.data(), int64_t(sources.size()), count, out, then);
    }
    void write(int64_t count, T* out) const { write(count, out, Keep<T>()); }
};

// --- several sums at once

// float64 is for checks: it does without, which halves the time to compile all this.
template <typename T>
constexpr bool kTogether = std::is_same_v<T, float>;

// Results side by side read almost the same memory. Computed one by one, they load an operand for each multiplication, from
// two lines of the cache most of the time, and loads decide how long it takes. Computed together, they load it once.

// A row of sources, and the weights of its taps. Another row is added to it if it gets the same weights.
template <typename T>
struct Source {
    const T* row;
    const T* weights;
    const T* mirrored;
};

// What a filter's symmetry saves: loading half of a row's weights, and multiplying by half of the rows.
enum class Symmetry { kNone, kTaps, kTapsAndRows };

// As many vectors of each sum as leave registers for what is multiplied. The sanitizer's checks of so many accesses would
// take minutes to compile.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kVectors = 1;
#elif defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

template <int Taps, int Step, int Results, int Arrays, Symmetry symmetry, int Vectors, typename T, typename Then>
SGO_INLINE void correlate_block(const std::vector<Source<T>>& sources, const int64_t* offsets, int64_t at, T* out,
                                int64_t size, const Then& then) {
    constexpr int weights = symmetry == Symmetry::kNone ? Taps : (Taps + 1) / 2;
    Vector<T> sums[Results][Vectors] = {};
    for (const Source<T>& source : sources) {
        Vector<T> weight[weights];
        unrolled<weights>([&](auto n) SGO_INLINE_LAMBDA { weight[n] = splat(source.weights[n]); });
        unrolled<Arrays>([&](auto array) SGO_INLINE_LAMBDA {
            constexpr int a = decltype(array)::value, positions = (Results - 1) * Step + Taps;
            constexpr int shifts = (positions - a + Arrays - 1) / Arrays;
            const auto read = [&](int64_t i) SGO_INLINE_LAMBDA {
                i += offsets[a] + at;
                const Vector<T> x = load(source.row + i);
                return symmetry == Symmetry::kTapsAndRows ? x + load(source.mirrored + i) : x;
            };
            Vector<T> x[Vectors + 1];
            unrolled<Vectors + (kShifts && shifts > 1)>([&](auto v) SGO_INLINE_LAMBDA { x[v] = read(v * kLanes<T>); });
            SGO_IN_ORDER;
            unrolled<shifts * Vectors>([&](auto index) SGO_INLINE_LAMBDA {
                constexpr int shift = decltype(index)::value / Vectors, v = decltype(index)::value % Vectors;
                Vector<T> y = x[v];
                if constexpr (shift > 0 && kShifts) {
                    y = shifted<shift, T>(x[v], x[v + 1], std::make_index_sequence<kLanes<T>>());
                } else if constexpr (shift > 0) {
                    y = read(shift + v * kLanes<T>);
                }
                unrolled<Results>([&](auto r) SGO_INLINE_LAMBDA {
                    constexpr int tap = a + shift * Arrays - decltype(r)::value * Step;
                    if constexpr (0 <= tap && tap < Taps) sums[r][v] += weight[tap < weights ? tap : Taps - 1 - tap] * y;
                });
            });
        });
    }
    unrolled<Results>([&](auto r) SGO_INLINE_LAMBDA {
        unrolled<Vectors>([&](auto v) SGO_INLINE_LAMBDA {
            const int64_t i = r * size + at + v * kLanes<T>;
            store(out + i, then(sums[r][v], i));
        });
    });
}

// Result r is written to out + r * size: its element i < count, count being a multiple of kLanes, is
// then(the sum over sources and taps t of weights[t] * (row + mirrored)[position r * Step + t, i], r * size + i).
// Position n of a row is element offsets[n % Arrays] + n / Arrays + i of it. A vector more than these may be read.
template <int Taps, int Step, int Results, int Arrays, Symmetry symmetry, typename T, typename Then>
void correlate(const std::vector<Source<T>>& sources, const int64_t* offsets, int64_t count, T* out, int64_t size,
               const Then& then) {
    int64_t at = 0;
    for (; at + kVectors * kLanes<T> <= count; at += kVectors * kLanes<T>) {
        correlate_block<Taps, Step, Results, Arrays, symmetry, kVectors>(sources, offsets, at, out, size, then);
    }
    for (; at < count; at += kLanes<T>) {
        correlate_block<Taps, Step, Results, Arrays, symmetry, 1>(sources, offsets, at, out, size, then);
    }
}

}  // namespace
}  // namespace stylegan_ops

#endif
