// The arguments of the kernels: abi.py packs them, the CPU library reads them through a pointer, and CUDA kernels take
// them by value.
//
// Every member is as wide as its alignment wants and wider ones come first, so that all compilers lay the structs out
// alike, without padding. NVRTC has no standard headers, hence the typedefs.
#ifndef STYLEGAN_OPS_ABI_H
#define STYLEGAN_OPS_ABI_H

#ifdef __CUDACC_RTC__
typedef int sgo_int32;
typedef long long sgo_int64;
#else
#include <stdint.h>
typedef int32_t sgo_int32;
typedef int64_t sgo_int64;
#endif

// Raised whenever a struct, an enumeration or the meaning of a member changes; abi.py has the same number.
#define STYLEGAN_OPS_ABI_VERSION 4

enum SgoDtype { SGO_FLOAT64 = 0, SGO_FLOAT32 = 1, SGO_BFLOAT16 = 2, SGO_FLOAT16 = 3 };

enum SgoActivation {
    SGO_LINEAR = 0,
    SGO_RELU = 1,
    SGO_LRELU = 2,
    SGO_TANH = 3,
    SGO_SIGMOID = 4,
    SGO_ELU = 5,
    SGO_SELU = 6,
    SGO_SOFTPLUS = 7,
    SGO_SWISH = 8
};

// With z = x + b and f(z) = gain * act(z):
//   SGO_VALUE   out = clamp(f(z))
//   SGO_GRAD    out = dy * f'(z) where |f(z)| <= clamp, else 0
//   SGO_GRAD2   out = ddx * dy * f''(z) where |f(z)| <= clamp, else 0
enum SgoOrder { SGO_VALUE = 0, SGO_GRAD = 1, SGO_GRAD2 = 2 };

// All tensors have `numel` elements of `dtype` in the same order without gaps. Element i belongs to the bias
// b[(i / bias_step) % bias_size].
struct BiasActArgs {
    const void* x;
    const void* b;    // null: no bias
    const void* dy;   // null unless order >= SGO_GRAD
    const void* ddx;  // null unless order == SGO_GRAD2
    void* out;
    void* db;  // on the CPU, with SGO_GRAD: the sums of out by bias, unless null
    sgo_int64 numel;
    sgo_int64 bias_size;  // at least 1
    sgo_int64 bias_step;  // at least 1
    double alpha;
    double gain;
    double clamp;  // negative: no clamp
    sgo_int32 order;
    sgo_int32 act;
    sgo_int32 dtype;
    sgo_int32 num_threads;  // for the CPU
};

// y[n, c, i, j] = gain * sum over k, l of w[k, l] * z[n, c, i * down_y + k - pad_y0, j * down_x + l - pad_x0], where
// z[n, c, up_y * i, up_x * j] = x[n, c, i, j] and z is 0 elsewhere, w[k, l] is filter[k, l] if `flip` and
// filter[filter_height - 1 - k, filter_width - 1 - l] otherwise. Padding at the end is implied by the size of y.
struct Upfirdn2dArgs {
    const void* x;
    const void* filter;  // float32 [filter_height, filter_width]; if `separable`, [filter_width], used along both axes
    void* y;
    sgo_int64 batch;
    sgo_int64 channels;
    sgo_int64 x_height;
    sgo_int64 x_width;
    sgo_int64 y_height;
    sgo_int64 y_width;
    sgo_int64 x_stride[4];  // of n, c, row, column, in elements; x and y are both NCHW or both channels_last
    sgo_int64 y_stride[4];
    double gain;
    sgo_int32 filter_height;
    sgo_int32 filter_width;
    sgo_int32 separable;
    sgo_int32 up_x;
    sgo_int32 up_y;
    sgo_int32 down_x;
    sgo_int32 down_y;
    sgo_int32 pad_x0;  // may be negative
    sgo_int32 pad_y0;
    sgo_int32 flip;
    sgo_int32 dtype;
    sgo_int32 num_threads;  // for the CPU
};

// One half of a resampling, by a filter w as in Upfirdn2dArgs, between an image of height x width and a finer grid, on
// which `factor` steps make a pixel and k, l count the taps:
//   upsampling    grid[i, j] = gain * sum over k, l of w[k, l] * z[i + k - pad_y, j + l - pad_x], z as in Upfirdn2dArgs
//   downsampling  image[i, j] = gain * sum over k, l of w[k, l] * grid[i * factor + k, j * factor + l]; no padding
struct Resampling {
    const void* filter;  // float32, as in Upfirdn2dArgs
    sgo_int64 height;
    sgo_int64 width;
    double gain;
    sgo_int32 filter_height;
    sgo_int32 filter_width;
    sgo_int32 separable;
    sgo_int32 flip;
    sgo_int32 factor;
    sgo_int32 pad_x;  // of the grid, may be negative
    sgo_int32 pad_y;
    sgo_int32 unused;
};

// Contiguous images. With u the grid of x + b, upsampled, f(u) = gain * lrelu(u), and v the grid of `signal`, upsampled,
// y is a downsampled grid:
//   signal is null   clamp(f(u))
//   otherwise        v * f'(u) where |f(u)| <= clamp, else 0
struct FilteredLreluArgs {
    const void* x;       // [batch, channels, x_up.height, x_up.width]
    const void* b;       // [channels], or null
    const void* signal;  // [batch, channels, signal_up.height, signal_up.width], or null
    void* y;             // [batch, channels, down.height, down.width]
    struct Resampling x_up;
    struct Resampling signal_up;
    struct Resampling down;
    sgo_int64 batch;
    sgo_int64 channels;
    double gain;
    double slope;
    double clamp;  // negative: no clamp
    sgo_int32 dtype;
    sgo_int32 num_threads;  // for the CPU
    sgo_int32 tile_height;  // of y, for CUDA
    sgo_int32 tile_width;
};

// Contiguous float32. y[n, o, i, j] = bias[o] + sum over c, k, l of w[o, c, k, l] * x[n, c, i + k - 1, j + l - 1], x
// being 0 outside; if `transposed`, w[c, o, 2 - k, 2 - l] stands for w[o, c, k, l]. If `filter_gradient`, w is the
// gradient of y and y the resulting gradient of w.
struct Conv3x3Args {
    const void* x;     // [batch, in_channels, height, width]
    const void* w;     // [out_channels, in_channels, 3, 3]
    const void* bias;  // [out_channels], or null
    void* y;           // [batch, out_channels, height, width]
    sgo_int64 batch;
    sgo_int64 in_channels;
    sgo_int64 out_channels;
    sgo_int64 height;
    sgo_int64 width;
    sgo_int32 transposed;
    sgo_int32 filter_gradient;
    sgo_int32 num_threads;
    sgo_int32 unused;
};

// Contiguous float32, in images [batch, channels, size]. y = silu(u * (1 + scale) + shift), u = n * weight + bias, where n
// is x + before less the mean of its group of channels, times `inverse`, the reciprocal square root of its variance
// + eps. If dy is given, mean and inverse are read and y is the gradient of x.
struct GroupNormArgs {
    const void* x;
    const void* before;  // [batch, channels], or null, like scale and shift
    const void* weight;  // [channels]
    const void* bias;    // [channels]
    const void* scale;
    const void* shift;
    const void* dy;  // the gradient of y, or null
    void* y;
    void* mean;     // [batch, groups]
    void* inverse;  // [batch, groups]
    void* dbefore;  // gradients; null where there is no such input
    void* dweight;
    void* dbias;
    void* dscale;
    void* dshift;
    sgo_int64 batch;
    sgo_int64 channels;
    sgo_int64 groups;
    sgo_int64 size;
    double eps;
    sgo_int32 num_threads;
    sgo_int32 unused;
};

// Contiguous float32: out[h, c, i] = sum over j of p[i, j] * qkv[h, c, 2, j], where p[i] is the softmax over j of scale *
// sum over c of qkv[h, c, 0, i] * qkv[h, c, 1, j]. If dout, the gradient of that, is given, out is the gradient of qkv.
struct AttentionArgs {
    const void* qkv;   // [heads, channels, 3, length]
    const void* dout;  // [heads, channels, length], or null
    void* out;
    sgo_int64 heads;  // of all images
    sgo_int64 channels;
    sgo_int64 length;
    double scale;
    sgo_int32 num_threads;
    sgo_int32 unused;
};

#endif
