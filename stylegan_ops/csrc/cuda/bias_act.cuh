// bias_act and its first and second derivative, as SgoOrder in abi.h defines them.
#ifndef STYLEGAN_OPS_CUDA_BIAS_ACT_CUH
#define STYLEGAN_OPS_CUDA_BIAS_ACT_CUH

#include "common.cuh"

// Activations: value, first and second derivative at z. At a kink they follow PyTorch's autograd, as the comparisons
// with zero do for NaN.

template <typename A>
struct Linear {
    static __device__ __forceinline__ A value(A z, A) { return z; }
    static __device__ __forceinline__ A grad(A, A) { return A(1); }
    static __device__ __forceinline__ A grad2(A, A) { return A(0); }
};

template <typename A>
struct Relu {
    static __device__ __forceinline__ A value(A z, A) { return z <= A(0) ? A(0) : z; }
    static __device__ __forceinline__ A grad(A z, A) { return z <= A(0) ? A(0) : A(1); }
    static __device__ __forceinline__ A grad2(A, A) { return A(0); }
};

template <typename A>
struct Lrelu {
    static __device__ __forceinline__ A value(A z, A alpha) { return z > A(0) ? z : alpha * z; }
    static __device__ __forceinline__ A grad(A z, A alpha) { return z > A(0) ? A(1) : alpha; }
    static __device__ __forceinline__ A grad2(A, A) { return A(0); }
};

template <typename A>
struct Tanh {
    static __device__ __forceinline__ A value(A z, A) { return tanh(z); }
    static __device__ __forceinline__ A grad(A z, A) {
        const A t = tanh(z);
        return A(1) - t * t;
    }
    static __device__ __forceinline__ A grad2(A z, A) {
        const A t = tanh(z);
        return A(-2) * t * (A(1) - t * t);
    }
};

// With e = exp(-|z|), which never overflows: sigmoid'(z) = e / (1 + e)^2.
template <typename A>
struct Sigmoid {
    static __device__ __forceinline__ A value(A z, A) { return A(1) / (A(1) + exp(-z)); }
    static __device__ __forceinline__ A grad(A z, A) {
        const A e = exp(-fabs(z));
        return e / ((A(1) + e) * (A(1) + e));
    }
    static __device__ __forceinline__ A grad2(A z, A alpha) { return grad(z, alpha) * (A(1) - A(2) * value(z, alpha)); }
};

template <typename A>
struct Elu {
    static __device__ __forceinline__ A value(A z, A) { return z > A(0) ? z : expm1(z); }
    static __device__ __forceinline__ A grad(A z, A) { return z <= A(0) ? exp(z) : A(1); }
    static __device__ __forceinline__ A grad2(A z, A) { return z < A(0) ? exp(z) : A(0); }
};

// Klambauer et al., "Self-Normalizing Neural Networks", arXiv 1706.02515.
template <typename A>
struct Selu {
    static __device__ __forceinline__ A scale() { return A(1.0507009873554804934193349852946); }
    static __device__ __forceinline__ A slope() { return scale() * A(1.6732632423543772848170429916717); }
    static __device__ __forceinline__ A value(A z, A) { return z > A(0) ? scale() * z : slope() * expm1(z); }
    static __device__ __forceinline__ A grad(A z, A) { return z <= A(0) ? slope() * exp(z) : scale(); }
    static __device__ __forceinline__ A grad2(A z, A) { return z < A(0) ? slope() * exp(z) : A(0); }
};

// log(1 + exp(z)), written so that nothing overflows.
template <typename A>
struct Softplus {
    static __device__ __forceinline__ A value(A z, A) { return z > A(20) ? z : log1p(exp(z)); }
    static __device__ __forceinline__ A grad(A z, A) { return z > A(20) ? A(1) : Sigmoid<A>::value(z, A(0)); }
    static __device__ __forceinline__ A grad2(A z, A) { return z > A(20) ? A(0) : Sigmoid<A>::grad(z, A(0)); }
};

template <typename A>
struct Swish {
    static __device__ __forceinline__ A value(A z, A alpha) { return z * Sigmoid<A>::value(z, alpha); }
    static __device__ __forceinline__ A grad(A z, A alpha) {
        return Sigmoid<A>::value(z, alpha) + z * Sigmoid<A>::grad(z, alpha);
    }
    static __device__ __forceinline__ A grad2(A z, A alpha) {
        const A s = Sigmoid<A>::value(z, alpha);
        return Sigmoid<A>::grad(z, alpha) * (A(2) + z * (A(1) - A(2) * s));
    }
};

template <typename A>
struct Constants {
    A alpha;
    A gain;
    A clamp;
};

// The result at z = x + b. Dispatch is by type, so that each order computes what it needs only.
template <int ORDER>
struct Order;

template <>
struct Order<SGO_VALUE> {
    template <template <typename> class Act, typename A>
    static __device__ __forceinline__ A result(A z, A, A, const Constants<A>& k) {
        const A y = k.gain * Act<A>::value(z, k.alpha);
        if (k.clamp < A(0)) return y;
        return y > k.clamp ? k.clamp : y < -k.clamp ? -k.clamp : y;
    }
};

// Whether the gradient passes the clamp; it does so at the limit itself, and does not at NaN.
template <template <typename> class Act, typename A>
__device__ __forceinline__ bool is_within_clamp(A z, const Constants<A>& k) {
    if (k.clamp < A(0)) return true;
    const A y = k.gain * Act<A>::value(z, k.alpha);
    return y >= -k.clamp && y <= k.clamp;
}

template <>
struct Order<SGO_GRAD> {
    template <template <typename> class Act, typename A>
    static __device__ __forceinline__ A result(A z, A dy, A, const Constants<A>& k) {
        if (!is_within_clamp<Act>(z, k)) return A(0);
        return dy * k.gain * Act<A>::grad(z, k.alpha);
    }
};

template <>
struct Order<SGO_GRAD2> {
    template <template <typename> class Act, typename A>
    static __device__ __forceinline__ A result(A z, A dy, A ddx, const Constants<A>& k) {
        if (!is_within_clamp<Act>(z, k)) return A(0);
        return ddx * dy * k.gain * Act<A>::grad2(z, k.alpha);
    }
};

// Which bias belongs to an element, kept up to date from element to element without dividing anew.
struct BiasPosition {
    sgo_int64 index;
    sgo_int64 step;

    __device__ __forceinline__ BiasPosition(const BiasActArgs& args, sgo_int64 i) {
        const sgo_int64 row = divide(i, args.bias_step);
        step = i - row * args.bias_step;
        index = row - divide(row, args.bias_size) * args.bias_size;
    }
    __device__ __forceinline__ void advance(const BiasActArgs& args) {
        if (++step < args.bias_step) return;
        step = 0;
        if (++index == args.bias_size) index = 0;
    }
};

// COUNT consecutive elements from i on, each tensor in one access.
template <typename T, int ORDER, template <typename> class Act, int COUNT, typename A>
__device__ __forceinline__ void bias_act_elements(const BiasActArgs& args, const Constants<A>& constants, sgo_int64 i) {
    typedef Pack<T, COUNT> Elements;
    const Elements x = *reinterpret_cast<const Elements*>(static_cast<const T*>(args.x) + i);
    Elements dy = {}, ddx = {}, out;
    if (ORDER >= SGO_GRAD) dy = *reinterpret_cast<const Elements*>(static_cast<const T*>(args.dy) + i);
    if (ORDER == SGO_GRAD2) ddx = *reinterpret_cast<const Elements*>(static_cast<const T*>(args.ddx) + i);
    A bias[COUNT];
    if (args.b) {
        BiasPosition position(args, i);
        SGO_UNROLL
        for (int e = 0; e < COUNT; ++e) {
            bias[e] = Element<T>::load(static_cast<const T*>(args.b)[position.index]);
            position.advance(args);
        }
    } else {
        SGO_UNROLL
        for (int e = 0; e < COUNT; ++e) bias[e] = A(-0.0);  // Adding it keeps every x, -0 too.
    }
    SGO_UNROLL
    for (int e = 0; e < COUNT; ++e) {
        const A z = Element<T>::load(x.element[e]) + bias[e];
        const A dy_e = ORDER >= SGO_GRAD ? Element<T>::load(dy.element[e]) : A(0);
        const A ddx_e = ORDER == SGO_GRAD2 ? Element<T>::load(ddx.element[e]) : A(0);
        out.element[e] = Element<T>::store(Order<ORDER>::template result<Act, A>(z, dy_e, ddx_e, constants));
    }
    *reinterpret_cast<Elements*>(static_cast<T*>(args.out) + i) = out;
}

template <typename T, int ORDER, template <typename> class Act>
__device__ __forceinline__ void bias_act_all(const BiasActArgs& args) {
    typedef typename Element<T>::Arithmetic A;
    const int COUNT = 16 / sizeof(T);
    const Constants<A> constants = {static_cast<A>(args.alpha), static_cast<A>(args.gain), static_cast<A>(args.clamp)};
    // Null is aligned, so tensors that this order does not have do not matter.
    const bool aligned = is_aligned(args.x, 16) && is_aligned(args.dy, 16) && is_aligned(args.ddx, 16) &&
                         is_aligned(args.out, 16);
    const sgo_int64 first = static_cast<sgo_int64>(blockIdx.x) * SGO_BLOCK + threadIdx.x;
    const sgo_int64 threads = static_cast<sgo_int64>(gridDim.x) * SGO_BLOCK;
    const sgo_int64 packs = aligned ? args.numel / COUNT : 0;
    for (sgo_int64 i = first; i < packs; i += threads) {
        bias_act_elements<T, ORDER, Act, COUNT>(args, constants, i * COUNT);
    }
    for (sgo_int64 i = packs * COUNT + first; i < args.numel; i += threads) {
        bias_act_elements<T, ORDER, Act, 1>(args, constants, i);
    }
}

// The activation is chosen once for all elements, not for each.
template <typename T, int ORDER>
__device__ __forceinline__ void bias_act(const BiasActArgs& args) {
    switch (args.act) {
        case SGO_LINEAR: return bias_act_all<T, ORDER, Linear>(args);
        case SGO_RELU: return bias_act_all<T, ORDER, Relu>(args);
        case SGO_LRELU: return bias_act_all<T, ORDER, Lrelu>(args);
        case SGO_TANH: return bias_act_all<T, ORDER, Tanh>(args);
        case SGO_SIGMOID: return bias_act_all<T, ORDER, Sigmoid>(args);
        case SGO_ELU: return bias_act_all<T, ORDER, Elu>(args);
        case SGO_SELU: return bias_act_all<T, ORDER, Selu>(args);
        case SGO_SOFTPLUS: return bias_act_all<T, ORDER, Softplus>(args);
        case SGO_SWISH: return bias_act_all<T, ORDER, Swish>(args);
    }
}

#endif
