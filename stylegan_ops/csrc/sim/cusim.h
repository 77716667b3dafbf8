// CUDA C++ on the CPU: what the kernels use of the language, so that g++ compiles them, and what runs them.
//
// Each thread of a block is a fiber; `__syncthreads` switches to the next. Fibers run in an order that is drawn anew
// between any two barriers, and shared memory holds NaN when a block begins, so that a missing barrier shows in the
// result. What it cannot show: races within a warp, and anything about speed. One launch at a time.
#ifndef STYLEGAN_OPS_CUSIM_H
#define STYLEGAN_OPS_CUSIM_H

#include <math.h>
#include <string.h>

#define __device__
#define __forceinline__ inline
#define SGO_UNROLL
#define SGO_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cusim::shared_memory)
#define SGO_KERNEL(name, min_blocks, Args, ...) \
    static void name(const void* params) {      \
        Args args;                              \
        memcpy(&args, params, sizeof args);     \
        __VA_ARGS__(args);                      \
    }                                           \
    static const cusim::Registration name##_registration(#name, name);

namespace cusim {

struct Dimensions {
    unsigned int x, y, z;
};

typedef void (*Kernel)(const void* params);

// Enters a kernel into the table that cusim_launch looks names up in.
struct Registration {
    Registration(const char* name, Kernel kernel);
};

extern void* shared_memory;

void barrier();

// IEEE 754 half precision, rounded to nearest even, as the instructions of the GPU do it.
inline float float_from_half_bits(unsigned short bits) {
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 0x1f) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf(static_cast<float>(fraction), -24);
    return sign * ldexpf(static_cast<float>(fraction + 0x400), exponent - 25);
}

inline unsigned short half_bits_from_float(float x) {
    const unsigned short sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return 0x7fff;
    x = fabsf(x);
    if (x >= 65520.0f) return sign | 0x7c00;  // Halfway between the largest number and the next that would be.
    int exponent = -14;                       // That of the subnormal and the smallest normal numbers.
    if (x >= ldexpf(1.0f, -14)) exponent = ilogbf(x);
    // In units of the last place; rint rounds to even. 1024 units beyond the leading bit carry into the exponent.
    const int units = static_cast<int>(rintf(ldexpf(x, 10 - exponent)));
    return sign | static_cast<unsigned short>(units + ((exponent + 14) << 10));
}

}  // namespace cusim

extern cusim::Dimensions gridDim, blockIdx, blockDim, threadIdx;

inline void __syncthreads() { cusim::barrier(); }

inline float __uint_as_float(unsigned int bits) {
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

inline unsigned int __float_as_uint(float x) {
    unsigned int result;
    memcpy(&result, &x, sizeof result);
    return result;
}

#endif
