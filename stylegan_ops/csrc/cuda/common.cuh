// What all kernels share: element types, 16-byte accesses and the macro that declares a kernel.
//
// Compiled by nvcc, by NVRTC (no standard headers) and, with the simulator's header in place of CUDA, by g++.
#ifndef STYLEGAN_OPS_CUDA_COMMON_CUH
#define STYLEGAN_OPS_CUDA_COMMON_CUH

#include "../abi.h"

#ifdef __CUDACC__
// The type and the name of an array in the shared memory that the launch asked for.
#define SGO_DYNAMIC_SHARED(type, name)                          \
    extern __shared__ __align__(16) unsigned char sgo_shared[]; \
    type* const name = reinterpret_cast<type*>(sgo_shared)
// A kernel that the host finds by its name; its one parameter is a struct of abi.h. With fewer registers a
// multiprocessor holds more blocks: at least `min_blocks`, where 0 leaves the choice to the compiler.
#define SGO_KERNEL(name, min_blocks, Args, ...)                                                 \
    extern "C" __global__ void __launch_bounds__(SGO_BLOCK, min_blocks) name(const Args args) { \
        __VA_ARGS__(args);                                                                      \
    }
#define SGO_UNROLL _Pragma("unroll")
#else
#include "../sim/cusim.h"
#endif

// Threads of a block, in every kernel; cuda.py has the same number.
#define SGO_BLOCK 256

// One kernel per element type; the first name is the one that kernels are called by.
#define SGO_FOR_EACH_DTYPE(M) \
    M(f64, double)            \
    M(f32, float)             \
    M(bf16, BFloat16)         \
    M(f16, Float16)

struct BFloat16 {
    unsigned short bits;
};

struct Float16 {
    unsigned short bits;
};

// How an element type is read into, and written from, the type that arithmetic is done in.
template <typename T>
struct Element;

template <>
struct Element<double> {
    typedef double Arithmetic;
    static __device__ __forceinline__ double load(double x) { return x; }
    static __device__ __forceinline__ double store(double x) { return x; }
};

template <>
struct Element<float> {
    typedef float Arithmetic;
    static __device__ __forceinline__ float load(float x) { return x; }
    static __device__ __forceinline__ float store(float x) { return x; }
};

template <>
struct Element<BFloat16> {
    typedef float Arithmetic;
    static __device__ __forceinline__ float load(BFloat16 x) {
        return __uint_as_float(static_cast<unsigned int>(x.bits) << 16);
    }
    static __device__ __forceinline__ BFloat16 store(float x) {
        BFloat16 result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
        const unsigned int bits = __float_as_uint(x);
        const unsigned int to_nearest_even = 0x7fffu + ((bits >> 16) & 1u);
        result.bits = x != x ? 0x7fffu : static_cast<unsigned short>((bits + to_nearest_even) >> 16);
#endif
        return result;
    }
};

template <>
struct Element<Float16> {
    typedef float Arithmetic;
    static __device__ __forceinline__ float load(Float16 x) {
#ifdef __CUDA_ARCH__
        float result;
        asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
        return result;
#else
        return cusim::float_from_half_bits(x.bits);
#endif
    }
    static __device__ __forceinline__ Float16 store(float x) {
        Float16 result;
#ifdef __CUDA_ARCH__
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
        result.bits = cusim::half_bits_from_float(x);
#endif
        return result;
    }
};

// Elements that are read or written in one access; their address must be a multiple of their size.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T)) Pack {
    T element[COUNT];
};

__device__ __forceinline__ bool is_aligned(const void* address, unsigned int bytes) {
    return (reinterpret_cast<unsigned long long>(address) & (bytes - 1)) == 0;
}

// a / b for a >= 0, b > 0: GPUs divide 64-bit numbers in software, and hardly any tensor needs it.
__device__ __forceinline__ sgo_int64 divide(sgo_int64 a, sgo_int64 b) {
    if (((a | b) >> 32) == 0) return static_cast<unsigned int>(a) / static_cast<unsigned int>(b);
    return a / b;
}

// The remainder of a / b, b > 0, that is not negative.
__device__ __forceinline__ int positive_modulo(int a, int b) {
    const int remainder = a % b;
    return remainder < 0 ? remainder + b : remainder;
}

#endif
