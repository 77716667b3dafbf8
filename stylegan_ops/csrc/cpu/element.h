// The four element types: how each is stored, and what arithmetic on it is done in.
#ifndef STYLEGAN_OPS_CPU_ELEMENT_H
#define STYLEGAN_OPS_CPU_ELEMENT_H

#include <cstdint>
#include <cstring>

#include "../abi.h"

#ifdef _WIN32
#define SGO_EXPORT extern "C" __declspec(dllexport)
#else
#define SGO_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace stylegan_ops {

template <typename To, typename From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast changes the type, not the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename T>
struct Plain {
    using Stored = T;
    using Math = T;
    static Math load(Stored v) { return v; }
    static Stored store(Math v) { return v; }
};

using Float64 = Plain<double>;
using Float32 = Plain<float>;

struct BFloat16 {
    using Stored = uint16_t;
    using Math = float;

    static float load(uint16_t v) { return bit_cast<float>(uint32_t(v) << 16); }

    static uint16_t store(float v) {
        uint32_t bits = bit_cast<uint32_t>(v);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // To nearest, ties to even.
        return uint16_t(v != v ? 0x7fc0u : rounded);
    }
};

// IEEE binary16, converted with operations that every vector unit has.
struct Float16 {
    using Stored = uint16_t;
    using Math = float;

    static float load(uint16_t v) {
        uint32_t magnitude = uint32_t(v & 0x7fffu) << 13;
        // Moves the exponent's bias from 15 to 127; the product is exact for subnormal numbers too.
        float scaled = bit_cast<float>(magnitude) * 0x1p112f;
        uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // Infinity and NaN.
        return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | (uint32_t(v & 0x8000u) << 16));
    }

    static uint16_t store(float v) {
        uint32_t bits = bit_cast<uint32_t>(v);
        uint32_t magnitude = bits & 0x7fffffffu;
        // Normal results: move the bias and round the 13 surplus bits to nearest, ties to even.
        uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
        // Subnormal results: an addition whose result has the unit 2^-24 in its last place rounds likewise.
        uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
        uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
        half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // From 65520 on, infinity is nearest.
        half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
        return uint16_t(half | ((bits >> 16) & 0x8000u));
    }
};

// Calls run(Element()) with the element type of `dtype`; false if there is none.
template <typename Run>
bool dispatch(sgo_int32 dtype, Run run) {
    switch (dtype) {
        case SGO_FLOAT64: run(Float64()); return true;
        case SGO_FLOAT32: run(Float32()); return true;
        case SGO_BFLOAT16: run(BFloat16()); return true;
        case SGO_FLOAT16: run(Float16()); return true;
        default: return false;
    }
}

}  // namespace stylegan_ops

#endif
