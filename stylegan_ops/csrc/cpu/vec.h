// Vectors of floats, and products of matrices that are summed in them.
#ifndef STYLEGAN_OPS_CPU_VEC_H
#define STYLEGAN_OPS_CPU_VEC_H

#include <cstring>
#include <memory>

#include "element.h"

namespace stylegan_ops {

// Vectors of floats as wide as the processor's.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 4;  // 16 registers hold 4 x 2 sums.
#else
constexpr int kLanes = 4, kRows = 8;
#endif

#if defined(__GNUC__)
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float RowVec __attribute__((vector_size(kRows * sizeof(float))));
#else
template <int Lanes>
struct Floats {
    float lane[Lanes];
    friend Floats operator+(Floats a, Floats b) {
        for (int i = 0; i < Lanes; ++i) a.lane[i] += b.lane[i];
        return a;
    }
    friend Floats operator-(Floats a, Floats b) {
        for (int i = 0; i < Lanes; ++i) a.lane[i] -= b.lane[i];
        return a;
    }
    friend Floats operator*(float a, Floats b) {
        for (int i = 0; i < Lanes; ++i) b.lane[i] *= a;
        return b;
    }
};
using Vec = Floats<kLanes>;
using RowVec = Floats<kRows>;
#endif

template <typename V = Vec>
inline V load_vec(const float* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <typename V>
inline void store_vec(float* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

// Rearrangements of vectors. Each element of `to` comes from the two vectors of `from` end to end.
#if defined(__GNUC__) && !defined(__clang__)
typedef int Index __attribute__((vector_size(kLanes * sizeof(int))));

// Elements begin, begin + 2, ... of both.
template <int Begin>
inline Vec every_second(Vec a, Vec b) {
    Index index;
    for (int i = 0; i < kLanes; ++i) index[i] = 2 * i + Begin;
    return __builtin_shuffle(a, b, index);
}

// One element of each in turn, from their first half (Half = 0) or second (1).
template <int Half>
inline Vec in_turn(Vec a, Vec b) {
    Index index;
    for (int i = 0; i < kLanes; ++i) index[i] = Half * kLanes / 2 + i / 2 + i % 2 * kLanes;
    return __builtin_shuffle(a, b, index);
}
#else
inline float element(const Vec& v, int i) {
    float all[kLanes];
    std::memcpy(all, &v, sizeof all);
    return all[i];
}

template <int Begin>
inline Vec every_second(Vec a, Vec b) {
    float result[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        const int from = 2 * i + Begin;
        result[i] = from < kLanes ? element(a, from) : element(b, from - kLanes);
    }
    return load_vec(result);
}

template <int Half>
inline Vec in_turn(Vec a, Vec b) {
    float result[kLanes];
    for (int i = 0; i < kLanes; ++i) result[i] = element(i % 2 == 0 ? a : b, Half * kLanes / 2 + i / 2);
    return load_vec(result);
}
#endif

// to[j * step + k] = from[4 * k + j] for the first Count j and kLanes k, `from` being four vectors
template <int Count>
inline void deal_four(const Vec* from, float* to, int64_t step) {
    const Vec even_ab = every_second<0>(from[0], from[1]), even_cd = every_second<0>(from[2], from[3]);
    const Vec odd_ab = every_second<1>(from[0], from[1]), odd_cd = every_second<1>(from[2], from[3]);
    store_vec(to, every_second<0>(even_ab, even_cd));
    store_vec(to + step, every_second<0>(odd_ab, odd_cd));
    if constexpr (Count == 4) {
        store_vec(to + 2 * step, every_second<1>(even_ab, even_cd));
        store_vec(to + 3 * step, every_second<1>(odd_ab, odd_cd));
    }
}

// The inverse: to[4 * k + j] = from[j * step + k]
inline void merge_four(const float* from, int64_t step, Vec* to) {
    const Vec a = load_vec(from), b = load_vec(from + step), c = load_vec(from + 2 * step),
              d = load_vec(from + 3 * step);
    const Vec ac_low = in_turn<0>(a, c), ac_high = in_turn<1>(a, c);
    const Vec bd_low = in_turn<0>(b, d), bd_high = in_turn<1>(b, d);
    to[0] = in_turn<0>(ac_low, bd_low);
    to[1] = in_turn<1>(ac_low, bd_low);
    to[2] = in_turn<0>(ac_high, bd_high);
    to[3] = in_turn<1>(ac_high, bd_high);
}

// to[column][row] = from[row][column] of kLanes x kLanes elements
inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step) {
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = load_vec(from + i * from_step);
    // Each round merges the first half of the vectors with the second, as one shuffles cards.
    for (int round = 1; round < kLanes; round *= 2) {
        Vec merged[kLanes];
        for (int i = 0; i < kLanes / 2; ++i) {
            merged[2 * i] = in_turn<0>(rows[i], rows[i + kLanes / 2]);
            merged[2 * i + 1] = in_turn<1>(rows[i], rows[i + kLanes / 2]);
        }
        for (int i = 0; i < kLanes; ++i) rows[i] = merged[i];
    }
    for (int i = 0; i < kLanes; ++i) store_vec(to + i * to_step, rows[i]);
}

constexpr int64_t kColumns = 2 * kLanes;  // of a product that is summed in registers

// Memory that begins where a cache line does, without a value.
class Buffer {
   public:
    explicit Buffer(int64_t count) : memory_(new char[size_t(count) * sizeof(float) + 64]) {
        const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
        begin_ = reinterpret_cast<float*>((address + 63) & ~uintptr_t(63));
    }
    float* get() const { return begin_; }

   private:
    std::unique_ptr<char[]> memory_;
    float* begin_;
};

// sums[r][column] += sum over k of left[k * left_k + r * left_r] * right[k * right_k + column]
template <int Vectors>
inline void multiply(const float* left, int64_t left_k, int64_t left_r, const float* right, int64_t right_k,
                     int64_t count, Vec (&sums)[kRows][Vectors]) {
    for (int64_t k = 0; k < count; ++k, left += left_k, right += right_k) {
        Vec values[Vectors];
        for (int v = 0; v < Vectors; ++v) values[v] = load_vec(right + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const float factor = left[r * left_r];
            for (int v = 0; v < Vectors; ++v) sums[r][v] = sums[r][v] + factor * values[v];
        }
    }
}

}  // namespace stylegan_ops

#endif
