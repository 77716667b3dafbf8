// The transforms of Winograd's F(4x4, 3x3): a tile of 4 x 4 results of a 3 x 3 correlation takes 36 products instead of
// 144 (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308).
//
// Results and filters are values of polynomials at the points 0, +-a, +-b and infinity. The usual a = 1 and b = 2 lose
// twice the precision of a^2 = 1/2 and b^2 = 2 used here, for which (x^2 - a^2) (x^2 - b^2) = x^4 - 5/2 x^2 + 1.
#ifndef STYLEGAN_OPS_CPU_WINOGRAD_H
#define STYLEGAN_OPS_CPU_WINOGRAD_H

#include "vec.h"

namespace stylegan_ops {

constexpr float kA2 = 0.5f, kB2 = 2.0f, kSum = kA2 + kB2;
constexpr float kA = 0.70710678118654752440f, kB = 1.41421356237309504880f;
constexpr float kInvA = 1.0f / (2 * kA2 * (kA2 - kB2)), kInvB = 1.0f / (2 * kB2 * (kB2 - kA2));

// Six pixels to six values.
struct InputTransform {
    static constexpr int from = 6, to = 6;
    template <typename T>
    static void run(const T* d, T* v) {
        const T even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
        const T even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
        v[0] = d[0] - kSum * d[2] + d[4];
        v[1] = even_a + odd_a;
        v[2] = even_a - odd_a;
        v[3] = even_b + odd_b;
        v[4] = even_b - odd_b;
        v[5] = d[1] - kSum * d[3] + d[5];
    }
};

// Three taps to six values.
struct FilterTransform {
    static constexpr int from = 3, to = 6;
    template <typename T>
    static void run(const T* g, T* u) {
        const T even_a = kInvA * (g[0] + kA2 * g[2]), odd_a = (kInvA * kA) * g[1];
        const T even_b = kInvB * (g[0] + kB2 * g[2]), odd_b = (kInvB * kB) * g[1];
        u[0] = g[0];
        u[1] = even_a + odd_a;
        u[2] = even_a - odd_a;
        u[3] = even_b + odd_b;
        u[4] = even_b - odd_b;
        u[5] = g[2];
    }
};

// The adjoint of that: gradients of six values to those of three taps.
struct FilterGradient {
    static constexpr int from = 6, to = 3;
    template <typename T>
    static void run(const T* u, T* g) {
        const T even_a = kInvA * (u[1] + u[2]), odd_a = (kInvA * kA) * (u[1] - u[2]);
        const T even_b = kInvB * (u[3] + u[4]), odd_b = (kInvB * kB) * (u[3] - u[4]);
        g[0] = u[0] + even_a + even_b;
        g[1] = odd_a + odd_b;
        g[2] = kA2 * even_a + kB2 * even_b + u[5];
    }
};

// Six products to four results.
struct OutputTransform {
    static constexpr int from = 6, to = 4;
    template <typename T>
    static void run(const T* m, T* y) {
        const T even_a = m[1] + m[2], odd_a = kA * (m[1] - m[2]);
        const T even_b = m[3] + m[4], odd_b = kB * (m[3] - m[4]);
        y[0] = m[0] + even_a + even_b;
        y[1] = odd_a + odd_b;
        y[2] = kA2 * even_a + kB2 * even_b;
        y[3] = kA2 * odd_a + kB2 * odd_b + m[5];
    }
};

// The adjoint of that: gradients of four results to those of six products.
struct OutputGradient {
    static constexpr int from = 4, to = 6;
    template <typename T>
    static void run(const T* y, T* m) {
        const T even_a = y[0] + kA2 * y[2], odd_a = kA * (y[1] + kA2 * y[3]);
        const T even_b = y[0] + kB2 * y[2], odd_b = kB * (y[1] + kB2 * y[3]);
        m[0] = y[0];
        m[1] = even_a + odd_a;
        m[2] = even_a - odd_a;
        m[3] = even_b + odd_b;
        m[4] = even_b - odd_b;
        m[5] = y[3];
    }
};

// Along both axes: load(i, j) gives the element of a from x from matrix, store(i, j, value) takes that of the result.
template <typename Transform, typename T, typename Load, typename Store>
inline void transform(Load load, Store store) {
    constexpr int from = Transform::from, to = Transform::to;
    T half[to][from];
    for (int j = 0; j < from; ++j) {
        T column[from], result[to];
        for (int i = 0; i < from; ++i) column[i] = load(i, j);
        Transform::run(column, result);
        for (int i = 0; i < to; ++i) half[i][j] = result[i];
    }
    for (int i = 0; i < to; ++i) {
        T result[to];
        Transform::run(half[i], result);
        for (int j = 0; j < to; ++j) store(i, j, result[j]);
    }
}

}  // namespace stylegan_ops

#endif
