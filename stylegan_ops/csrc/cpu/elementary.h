// exp, expm1 and log1p from their series, without branches, so that loops over them become vector code.
// What bias_act needs: arguments of the exponentials are never positive, that of log1p lies in [0, 1].
#ifndef STYLEGAN_OPS_CPU_ELEMENTARY_H
#define STYLEGAN_OPS_CPU_ELEMENTARY_H

#include "element.h"

namespace stylegan_ops {

template <typename T>
struct Precision;

template <>
struct Precision<float> {
    using Bits = uint32_t;
    static constexpr int mantissa = 23, bias = 127;
    static constexpr int exp_terms = 7, atanh_terms = 7;  // The next term is below the last bit.
    static constexpr float lowest = -87.0f;               // Below, the exponential counts as zero.
    // ln 2 in two parts; the product of the first with a whole number is exact.
    static constexpr float ln2_high = 355.0f / 512.0f, ln2_low = -2.12194440054690583e-4f;
};

template <>
struct Precision<double> {
    using Bits = uint64_t;
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr int exp_terms = 13, atanh_terms = 16;
    static constexpr double lowest = -708.0;
    static constexpr double ln2_high = 2977044471.0 / 4294967296.0, ln2_low = 1.9082149292705877e-10;
};

// sum over k >= 1 of r^(k-1) * K! / (K+k-1)!: the Taylor series of exp from its K-th term on, by Horner's rule.
template <int K, int Terms, typename T>
inline T exp_series(T r) {
    if constexpr (K == Terms) {
        return T(1);
    } else {
        return T(1) + r * T(1.0 / (K + 1)) * exp_series<K + 1, Terms>(r);
    }
}

// sum over k >= K of s^(k-K) / (2k + 1), for atanh.
template <int K, int Terms, typename T>
inline T atanh_series(T s) {
    if constexpr (K + 1 == Terms) {
        return T(1.0 / (2 * K + 1));
    } else {
        return T(1.0 / (2 * K + 1)) + s * atanh_series<K + 1, Terms>(s);
    }
}

template <typename T>
struct Exponential {
    T exp;
    T expm1;
};

// exp(x) = p * 2^n + 2^n, where x = n ln 2 + r, |r| <= ln(2) / 2, and p = exp(r) - 1.
template <typename T>
struct Parts {
    T p;
    T power;
};

template <typename T>
inline Parts<T> exponential_parts(T x) {
    using P = Precision<T>;
    using Bits = typename P::Bits;
    // Adding 1.5 * 2^mantissa leaves a sum whose last bits are the nearest whole number.
    constexpr T shift = T(Bits(3) << (P::mantissa - 1));
    const T shifted = x * T(1.4426950408889634) + shift;
    const T n = shifted - shift;
    const T r = (x - n * P::ln2_high) - n * P::ln2_low;
    const Bits exponent = bit_cast<Bits>(shifted) - bit_cast<Bits>(shift) + Bits(P::bias);
    return {r * exp_series<1, P::exp_terms>(r), bit_cast<T>(Bits(exponent << P::mantissa))};
}

// exp(x) and exp(x) - 1 of x <= 0.
template <typename T>
inline Exponential<T> exponential(T x) {
    using P = Precision<T>;
    const Parts<T> parts = exponential_parts(x < P::lowest ? P::lowest : x);
    const T scaled = parts.power * parts.p;
    return {x < P::lowest ? T(0) : scaled + parts.power, x < P::lowest ? T(-1) : scaled + (parts.power - T(1))};
}

// exp(x) of |x| <= 87.
inline float exponential_within(float x) {
    const Parts<float> parts = exponential_parts(x);
    return parts.power * parts.p + parts.power;
}

// log(1 + t) = 2 atanh(t / (2 + t)) of t in [0, 1].
template <typename T>
inline T log1p(T t) {
    const T s = t / (T(2) + t);
    return T(2) * s * atanh_series<0, Precision<T>::atanh_terms>(s * s);
}

// A function's value and derivatives; the compiler drops what is not used.
template <typename T>
struct Jet {
    T value;
    T first;
    T second;
};

// sigmoid and its first and second derivative, from exp(-|z|), which neither overflows nor cancels.
template <typename T>
inline Jet<T> sigmoid(T z) {
    const T e = exponential(z < 0 ? z : -z).exp;
    const T inverse = T(1) / (T(1) + e);
    const T first = e * inverse * inverse;
    const T slope = (T(1) - e) * inverse * first;
    return {z < 0 ? e * inverse : inverse, first, z < 0 ? slope : -slope};
}

}  // namespace stylegan_ops

#endif
